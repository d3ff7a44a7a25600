//! The eight parameters of the portal's update-customer call, in the order of its parameter table.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One parameter of the portal's call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// Which customer; the only required one.
    EntityId,
    /// E-mail address, unique at the portal.
    Email,
    /// Mobile number.
    MobileNo,
    /// Street address.
    Address,
    /// Country name.
    Country,
    /// City name.
    City,
    /// State name.
    State,
    /// Postal code.
    Pincode,
}

impl Field {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// All of them, in the order of the portal's parameter table.
    pub const ALL: [Field; Self::COUNT] = [
        Field::EntityId,
        Field::Email,
        Field::MobileNo,
        Field::Address,
        Field::Country,
        Field::City,
        Field::State,
        Field::Pincode,
    ];

    /// The portal's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Field::EntityId => "entity_id",
            Field::Email => "email",
            Field::MobileNo => "mobile_no",
            Field::Address => "address",
            Field::Country => "country",
            Field::City => "city",
            Field::State => "state",
            Field::Pincode => "pincode",
        }
    }

    /// Its number in a ledger's rows. Ledgers outlive releases: a number is never changed nor used
    /// again, and a new field takes the next one.
    const fn number(self) -> u32 {
        match self {
            Field::EntityId => 0,
            Field::Email => 1,
            Field::MobileNo => 2,
            Field::Address => 3,
            Field::Country => 4,
            Field::City => 5,
            Field::State => 6,
            Field::Pincode => 7,
        }
    }

    /// The field of that name.
    pub fn parse(name: &str) -> Option<Field> {
        Field::ALL.into_iter().find(|field| field.name() == name)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct FieldSet(u32);

/// Every field has its place in the table and a bit of its own in a set: a ninth one is added in
/// `ALL` and `number`, or nothing compiles.
const _: () = {
    let (mut index, mut bits) = (0, 0_u32);
    while index < Field::COUNT {
        let field = Field::ALL[index];
        assert!(field as usize == index, "a field stands at its own place in ALL");
        assert!(field.number() < u32::BITS, "a set has room for the field");
        assert!(bits & bit(field) == 0, "two fields share a number");
        bits |= bit(field);
        index += 1;
    }
};

impl From<FieldSet> for u32 {
    fn from(fields: FieldSet) -> u32 {
        fields.0
    }
}

/// A set that holds a field we do not know: a newer relay wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a field of a newer relay")]
pub struct UnknownField;

impl TryFrom<u32> for FieldSet {
    type Error = UnknownField;

    fn try_from(bits: u32) -> Result<FieldSet, UnknownField> {
        let known = Field::ALL.into_iter().collect::<FieldSet>().0;
        if bits & !known == 0 { Ok(FieldSet(bits)) } else { Err(UnknownField) }
    }
}

impl FieldSet {
    /// No field.
    pub const NONE: FieldSet = FieldSet(0);

    /// Whether the field is in it.
    pub fn contains(self, field: Field) -> bool {
        self.0 & bit(field) != 0
    }

    /// Whether no field is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// With this field too.
    #[must_use]
    pub fn with(self, field: Field) -> FieldSet {
        FieldSet(self.0 | bit(field))
    }

    /// Without the other's fields.
    #[must_use]
    pub fn without(self, other: FieldSet) -> FieldSet {
        FieldSet(self.0 & !other.0)
    }

    /// How many fields are in it.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The names of the fields in it, if there are any.
    pub fn names(self) -> Option<String> {
        let names: Vec<&str> = self.iter().map(Field::name).collect();
        (!names.is_empty()).then(|| names.join(","))
    }

    /// The fields in it, in the table's order.
    pub fn iter(self) -> impl Iterator<Item = Field> {
        Field::ALL.into_iter().filter(move |field| self.contains(*field))
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> FieldSet {
        fields.into_iter().fold(FieldSet::NONE, FieldSet::with)
    }
}

const fn bit(field: Field) -> u32 {
    1 << field.number()
}

/// One value of type `T` for each field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerField<T>([T; Field::COUNT]);

impl<T> PerField<T> {
    /// Asks `value` for each field, in the table's order.
    pub fn from_fn(mut value: impl FnMut(Field) -> T) -> Self {
        PerField(Field::ALL.map(&mut value))
    }

    /// Each field with its value, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (Field, &T)> {
        Field::ALL.into_iter().zip(&self.0)
    }
}

impl<T> std::ops::Index<Field> for PerField<T> {
    type Output = T;

    fn index(&self, field: Field) -> &T {
        &self.0[field as usize]
    }
}

impl<T> std::ops::IndexMut<Field> for PerField<T> {
    fn index_mut(&mut self, field: Field) -> &mut T {
        &mut self.0[field as usize]
    }
}

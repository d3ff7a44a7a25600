//! The eight fields of the page's parameter table, the order in which the portal hashes them, and
//! a decoded form body. Pure; knows no rule about a field's value.

use std::borrow::Cow;
use std::str::FromStr;

use serde::ser::{Serialize, SerializeMap, Serializer};

/// A parameter that the page names, in the order of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    EntityId,
    Email,
    MobileNo,
    Address,
    Country,
    City,
    State,
    Pincode,
}

impl Field {
    /// All fields in the order of the parameter table.
    pub(crate) const ALL: [Self; 8] = [
        Self::EntityId,
        Self::Email,
        Self::MobileNo,
        Self::Address,
        Self::Country,
        Self::City,
        Self::State,
        Self::Pincode,
    ];

    /// The parameter's name on the wire.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::EntityId => "entity_id",
            Self::Email => "email",
            Self::MobileNo => "mobile_no",
            Self::Address => "address",
            Self::Country => "country",
            Self::City => "city",
            Self::State => "state",
            Self::Pincode => "pincode",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// The order in which the portal joins the values that it hashes: a permutation of all fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FieldOrder([Field; 8]);

impl FieldOrder {
    /// The fields in this order.
    pub(crate) fn fields(self) -> impl Iterator<Item = Field> {
        self.0.into_iter()
    }
}

impl Default for FieldOrder {
    fn default() -> Self {
        Self(Field::ALL)
    }
}

impl FromStr for FieldOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut order = Vec::with_capacity(Field::ALL.len());
        for name in text.split(',').map(str::trim) {
            let field = Field::named(name).ok_or_else(|| format!("`{name}` is not a field"))?;
            if order.contains(&field) {
                return Err(format!("`{name}` is named twice"));
            }
            order.push(field);
        }
        let complete = <[Field; 8]>::try_from(order);
        complete.map(Self).map_err(|_| "name all eight fields, separated by commas".to_owned())
    }
}

/// Values by field; a field may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields([Option<String>; 8]);

impl Fields {
    /// The value of `field`, if there is one.
    pub(crate) fn get(&self, field: Field) -> Option<&str> {
        self.0[field as usize].as_deref()
    }

    /// Sets `field` to `value`.
    pub(crate) fn set(&mut self, field: Field, value: &str) {
        self.0[field as usize] = Some(value.to_owned());
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for field in Field::ALL {
            if let Some(value) = self.get(field) {
                map.serialize_entry(field.name(), value)?;
            }
        }
        map.end()
    }
}

/// A decoded form body: every pair as it was sent, and where the known fields are.
#[derive(Debug, Default)]
pub(crate) struct Form {
    pairs: Vec<(Cow<'static, str>, String)>,
    position: [Option<usize>; 8],
    has_unknown: bool,
    has_repeated: bool,
}

impl Form {
    /// Decodes a form-urlencoded body; of a repeated parameter the first value counts.
    pub(crate) fn parse(body: &[u8]) -> Self {
        let mut form = Self::default();
        for (name, value) in form_urlencoded::parse(body) {
            form.push(&name, value.into_owned());
        }
        form
    }

    fn push(&mut self, name: &str, value: String) {
        let Some(field) = Field::named(name) else {
            self.has_unknown = true;
            self.pairs.push((Cow::Owned(name.to_owned()), value));
            return;
        };
        let position = &mut self.position[field as usize];
        self.has_repeated |= position.is_some();
        position.get_or_insert(self.pairs.len());
        self.pairs.push((Cow::Borrowed(field.name()), value));
    }

    /// The value sent for `field`, decoded and otherwise as it came.
    pub(crate) fn get(&self, field: Field) -> Option<&str> {
        self.position[field as usize].map(|index| self.pairs[index].1.as_str())
    }

    /// The customer this call is about; empty when the call names none.
    pub(crate) fn entity_id(&self) -> &str {
        self.get(Field::EntityId).unwrap_or_default()
    }

    /// The known fields that were sent, in the table's order.
    pub(crate) fn sent(&self) -> impl Iterator<Item = (Field, &str)> {
        Field::ALL.into_iter().filter_map(|field| Some((field, self.get(field)?)))
    }

    /// All parameter names in the body's order, unknown and repeated ones too.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_ref())
    }

    /// All values in the body's order, unknown and repeated ones too.
    pub(crate) fn values(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(_, value)| value.as_str())
    }

    /// Was a parameter sent that the page does not name?
    pub(crate) fn has_unknown(&self) -> bool {
        self.has_unknown
    }

    /// Was a parameter of the page sent more than once?
    pub(crate) fn has_repeated(&self) -> bool {
        self.has_repeated
    }
}

impl Serialize for Form {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (field, value) in self.sent() {
            map.serialize_entry(field.name(), value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_must_name_every_field_once() {
        let curl = "entity_id,email,mobile_no,address,city,state,country,pincode";
        let order = curl.parse::<FieldOrder>().expect("a permutation");
        let names: Vec<_> = order.fields().map(Field::name).collect();
        assert_eq!(names.join(","), curl);
        for wrong in ["", "entity_id", &format!("{curl},email"), &curl.replace("email", "mail")] {
            assert!(wrong.parse::<FieldOrder>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_form_keeps_the_order_sent_and_decodes_values() {
        let form = Form::parse(b"city=Kochi&entity_id=C%2B1&address=12+MG+Road");
        assert_eq!(form.names().collect::<Vec<_>>(), ["city", "entity_id", "address"]);
        assert_eq!(form.entity_id(), "C+1");
        assert_eq!(form.get(Field::Address), Some("12 MG Road"));
        assert!(!form.has_unknown() && !form.has_repeated());
    }

    #[test]
    fn unknown_and_repeated_parameters_are_noticed() {
        assert!(Form::parse(b"entity_id=C1&pin_code=1").has_unknown());
        let repeated = Form::parse(b"entity_id=C1&entity_id=C2");
        assert!(repeated.has_repeated());
        assert_eq!(repeated.entity_id(), "C1");
        assert_eq!(repeated.values().collect::<Vec<_>>(), ["C1", "C2"]);
    }
}

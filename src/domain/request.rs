//! The signed call: one ordered list of values makes both the form body and the checksum.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::field::Field;
use super::update::Update;

/// The order in which values are hashed and sent: a permutation of the eight fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldOrder([Field; 8]);

/// A field order that is no permutation of the eight names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; it must name each of {names} once", names = FieldOrder::default())]
pub struct InvalidFieldOrder(String);

impl Default for FieldOrder {
    /// The order of the portal's parameter table.
    fn default() -> Self {
        FieldOrder(Field::ALL)
    }
}

impl std::fmt::Display for FieldOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.map(Field::name).join(","))
    }
}

impl FieldOrder {
    /// Reads the names, in order.
    pub fn try_new<'a>(
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<FieldOrder, InvalidFieldOrder> {
        let mut order = Vec::with_capacity(8);
        for (index, name) in names.into_iter().enumerate() {
            let place = index + 1;
            let field = Field::parse(name)
                .ok_or_else(|| InvalidFieldOrder(format!("name {place} is no field")))?;
            if order.contains(&field) {
                return Err(InvalidFieldOrder(format!("{name} stands twice")));
            }
            order.push(field);
        }
        let order = order.try_into();
        order.map(FieldOrder).map_err(|short: Vec<_>| {
            InvalidFieldOrder(format!("{} of 8 fields are named", short.len()))
        })
    }
}

/// A call's body and the checksum that signs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRequest {
    /// `application/x-www-form-urlencoded`.
    pub form: String,
    /// Lower-case hex SHA-256 of the values and the secret.
    pub checksum: String,
}

/// Makes the call for an update. Absent fields are in neither the form nor the hash.
pub fn sign(update: &Update, order: FieldOrder, secret_key: &SecretString) -> SignedRequest {
    let values = order.0.into_iter().filter_map(|field| Some((field, update.value(field)?)));
    let mut form = form_urlencoded::Serializer::new(String::with_capacity(256));
    for (field, value) in values.clone() {
        form.append_pair(field.name(), value);
    }
    let checksum = checksum(values.map(|(_, value)| value), secret_key.expose_secret());
    SignedRequest { form: form.finish(), checksum }
}

/// The portal's checksum: plain SHA-256 over the values as given, unseparated, the secret last.
///
/// It does not bind where one value ends, so it identifies nothing.
pub fn checksum<'a>(values: impl IntoIterator<Item = &'a str>, secret_key: &str) -> String {
    let mut hash = Sha256::new();
    for value in values {
        hash.update(value);
    }
    hash.update(secret_key);
    hex(&hash.finalize())
}

/// Lower-case hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])).collect()
}

/// What is hashed, for people: the values in order, `***` for the secret.
pub fn canonical(update: &Update, order: FieldOrder) -> String {
    let values = order.0.into_iter().filter_map(|field| update.value(field));
    values.chain(["***"]).collect()
}

#[cfg(test)]
mod tests {
    use super::FieldOrder;

    #[test]
    fn an_order_is_a_permutation_of_the_eight_names() {
        let curl = "entity_id,email,mobile_no,address,city,state,country,pincode";
        let order = FieldOrder::try_new(curl.split(',')).expect("a permutation");
        assert_eq!(order.to_string(), curl);
        for (names, problem) in [
            ("entity_id,email", "2 of 8 fields are named"),
            ("entity_id,entity_id", "entity_id stands twice"),
            ("entity_id,phone", "name 2 is no field"),
        ] {
            let error = FieldOrder::try_new(names.split(',')).expect_err("refused").to_string();
            assert!(error.starts_with(problem), "{error}");
        }
    }
}

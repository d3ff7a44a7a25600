//! The rules of the portal operator's update-customer page: path, checksum, and what each field
//! may hold. Pure, and written from the page alone: it must not know the relay.

use sha2::{Digest, Sha256};

use crate::fields::{Field, FieldOrder, Form};

/// The path of the page's only call.
pub(crate) const PATH: &str = "/airpay/ms/cards/api/update-customer";

/// The content type that the page's request example names.
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";

/// A rule that a refused call has broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    TooLarge,
    ContentType,
    Token,
    Checksum,
    UnknownParameter,
    RepeatedParameter,
    Value(Field),
    CustomerNotFound,
    EmailTaken,
}

impl Rule {
    /// A stable name for statistics and the request log.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::ContentType => "content_type",
            Self::Token => "token",
            Self::Checksum => "checksum",
            Self::UnknownParameter => "unknown_parameter",
            Self::RepeatedParameter => "repeated_parameter",
            Self::Value(field) => field.name(),
            Self::CustomerNotFound => "customer_not_found",
            Self::EmailTaken => "email_taken",
        }
    }

    /// What the portal says about it when it says more than `fail`.
    pub(crate) fn message(self) -> String {
        match self {
            Self::TooLarge => "request too large".to_owned(),
            Self::ContentType => "invalid content type".to_owned(),
            Self::Token => "invalid token".to_owned(),
            Self::Checksum => "checksum mismatch".to_owned(),
            Self::UnknownParameter => "unknown parameter".to_owned(),
            Self::RepeatedParameter => "repeated parameter".to_owned(),
            Self::Value(field) => format!("invalid {}", field.name()),
            Self::CustomerNotFound => "customer not found".to_owned(),
            Self::EmailTaken => "email already exists".to_owned(),
        }
    }
}

/// The lower-case hex SHA-256 over the known values that were sent, in the portal's own order and
/// with no separator, the secret key last.
pub(crate) fn checksum(form: &Form, order: FieldOrder, secret_key: &str) -> String {
    let mut hash = Sha256::new();
    for value in order.fields().filter_map(|field| form.get(field)) {
        hash.update(value);
    }
    hash.update(secret_key);
    lower_hex(&hash.finalize())
}

fn lower_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
        hex.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    hex
}

/// Checks the parameters against the page; `stored_country` stands in for one that is not sent.
pub(crate) fn check(form: &Form, stored_country: Option<&str>) -> Result<(), Rule> {
    if form.has_unknown() {
        return Err(Rule::UnknownParameter);
    }
    if form.has_repeated() {
        return Err(Rule::RepeatedParameter);
    }
    if form.get(Field::EntityId).is_none() {
        return Err(Rule::Value(Field::EntityId));
    }
    let country = form.get(Field::Country).or(stored_country);
    let broken = form.sent().find(|&(field, value)| !is_allowed(field, value, country));
    broken.map_or(Ok(()), |(field, _)| Err(Rule::Value(field)))
}

fn is_allowed(field: Field, value: &str, country: Option<&str>) -> bool {
    if value.trim().is_empty() {
        return false;
    }
    match field {
        Field::EntityId => value.chars().count() <= 50,
        Field::Email => is_email(value),
        Field::MobileNo => is_mobile_no(value),
        Field::Address => has_only(value, |byte| byte.is_ascii_alphanumeric() || byte == b' '),
        Field::Country => has_only(value, |byte| byte.is_ascii_alphabetic() || byte == b' '),
        Field::City | Field::State => has_only(value, |byte| byte.is_ascii_alphabetic()),
        Field::Pincode => is_pincode(value, country),
    }
}

fn has_only(value: &str, allowed: impl Fn(u8) -> bool) -> bool {
    value.bytes().all(allowed)
}

fn is_mobile_no(value: &str) -> bool {
    value.len() == 10
        && value.starts_with(['6', '7', '8', '9'])
        && has_only(value, |byte| byte.is_ascii_digit())
}

/// One to six digits; exactly six for India, which is also meant when no country is known.
fn is_pincode(value: &str, country: Option<&str>) -> bool {
    let is_india = country.is_none_or(|name| name.trim().eq_ignore_ascii_case("india"));
    let shortest = if is_india { 6 } else { 1 };
    (shortest..=6).contains(&value.len()) && has_only(value, |byte| byte.is_ascii_digit())
}

fn is_email(value: &str) -> bool {
    value.len() <= 254
        && value.split_once('@').is_some_and(|(local, domain)| {
            local.len() <= 64 && local.split('.').all(is_local_part) && is_domain(domain)
        })
}

fn is_local_part(part: &str) -> bool {
    !part.is_empty()
        && has_only(part, |byte| {
            byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
        })
}

fn is_domain(domain: &str) -> bool {
    domain.contains('.') && domain.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && has_only(label, |byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "test_secret_key_do_not_use";
    const CURL_ORDER: &str = "entity_id,email,mobile_no,address,city,state,country,pincode";
    const ALL: &str = "entity_id=CUST0001&email=xyz%40airpay.co.in&mobile_no=9876543879\
        &address=12+MG+Road&country=India&city=Kochi&state=Kerala&pincode=682308";

    fn hash(body: &str, order: FieldOrder) -> String {
        checksum(&Form::parse(body.as_bytes()), order, SECRET)
    }

    fn verdict(body: &str) -> Result<(), Rule> {
        check(&Form::parse(body.as_bytes()), None)
    }

    #[track_caller]
    fn expect(field: Field, allowed: &[&str], refused: &[&str]) {
        for (values, wanted) in [(allowed, Ok(())), (refused, Err(Rule::Value(field)))] {
            for value in values {
                let mut body = form_urlencoded::Serializer::new(String::new());
                if field != Field::EntityId {
                    body.append_pair("entity_id", "C1");
                }
                body.append_pair(field.name(), value);
                assert_eq!(verdict(&body.finish()), wanted, "{} {value:?}", field.name());
            }
        }
    }

    #[test]
    fn the_checksum_matches_the_reference_vectors_in_the_tables_order() {
        let vectors = [
            (ALL, "de28cfdd685ffd8c6d35e4f4e9ab7f4cf57af5066402efe936e1f49fc8a4252a"),
            (
                "entity_id=CUST0001&email=xyz%40airpay.co.in&pincode=682308",
                "9e7c3983afe11576f0433695bcf5d0c44537c8ab75de3ed0c23053aa8418cd36",
            ),
            (
                "entity_id=CUST0001&email=xyz%40airpay.co.in&mobile_no=9876543879\
                 &address=Cafe%CC%81+12+%E0%A4%AE%E0%A5%81%E0%A4%82%E0%A4%AC%E0%A4%88+%F0%9F%8F%A0\
                 &country=India&city=Kochi&state=Kerala&pincode=682308",
                "add66850531ef92b3eb660bb546050439bdcfae3f8264c00127a2da9ffa55fa1",
            ),
            (
                "entity_id=CUST0001&email=xyz%40airpay.co.in&mobile_no=9876543879\
                 &address=++12+MG+Road+&country=India&city=Kochi+&state=Kerala&pincode=682308",
                "30b61bed98367aa932fd8d84a013b849301cbddc39d73650db57c1c46f9995ce",
            ),
            (
                "entity_id=CUST0001",
                "bbb131d2134bd68d9781d2a1e469ba10585caaba45ced218b539619748913a37",
            ),
        ];
        for (body, wanted) in vectors {
            assert_eq!(hash(body, FieldOrder::default()), wanted, "{body}");
        }
    }

    #[test]
    fn the_checksum_follows_the_configured_order_and_not_the_bodys() {
        let curl = CURL_ORDER.parse().expect("a permutation");
        let wanted = "a5dd0d20c15de4c1e5237db108a70109deaf3f61bc090caa7b233a77dd8b34eb";
        assert_eq!(hash(ALL, curl), wanted);
        let reversed: Vec<_> = ALL.split('&').rev().collect();
        assert_eq!(hash(&reversed.join("&"), curl), wanted);
    }

    #[test]
    fn an_entity_id_is_required_and_has_one_to_fifty_characters() {
        assert_eq!(verdict("city=Kochi"), Err(Rule::Value(Field::EntityId)));
        expect(Field::EntityId, &["C", &"é".repeat(50)], &["", " ", &"x".repeat(51)]);
    }

    #[test]
    fn an_email_has_a_valid_format() {
        let refused =
            ["", "a", "a@b", "@b.in", "a@b..in", "a b@c.in", "a@b@c.in", "a@-b.in", ".a@b.in"];
        expect(Field::Email, &["xyz@airpay.co.in", "A.b+c@x-y.example"], &refused);
    }

    #[test]
    fn a_mobile_number_is_ten_digits_from_six_to_nine() {
        let refused = ["", "5876543879", "987654387", "98765438790", "9XXXXXX879", "+919876543"];
        expect(Field::MobileNo, &["6000000000", "9876543879"], &refused);
    }

    #[test]
    fn an_address_has_letters_digits_and_spaces() {
        expect(Field::Address, &["12 MG Road"], &["", "  ", "12/4 MG Road", "Café", "a\tb"]);
    }

    #[test]
    fn names_of_places_are_letters_and_only_a_country_has_spaces() {
        expect(Field::Country, &["India", "Sri Lanka"], &["", " ", "India1", "C-te"]);
        expect(Field::City, &["Kochi"], &["", "New Delhi", "Kochi1"]);
        expect(Field::State, &["Kerala"], &["", "Tamil Nadu", "J&K"]);
    }

    #[test]
    fn a_pincode_has_six_digits_in_india_and_one_to_six_elsewhere() {
        expect(Field::Pincode, &["682308"], &["", "68230", "6823081", "68230a"]);
        let short = Form::parse(b"entity_id=C1&pincode=68");
        let refused = Err(Rule::Value(Field::Pincode));
        assert_eq!(check(&short, Some("Nepal")), Ok(()));
        assert_eq!(check(&short, Some("india")), refused);
        assert_eq!(verdict("entity_id=C1&country=Nepal&pincode=68"), Ok(()));
        let sent = Form::parse(b"entity_id=C1&country=India&pincode=68");
        assert_eq!(check(&sent, Some("Nepal")), refused);
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        assert_eq!(verdict("entity_id=C1&zip=1"), Err(Rule::UnknownParameter));
        assert_eq!(verdict("entity_id=C1&city=A&city=B"), Err(Rule::RepeatedParameter));
    }
}

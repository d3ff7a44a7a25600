//! The field rules: raw values become an [`Update`] that the portal can be expected to take, or
//! faults that each name the field, the rule and the setting that would change it.
//!
//! Rules follow the portal's page; where it contradicts itself or practice, there is a setting.
//! What would have to be guessed is refused: the portal has no read-back, and a refused event can
//! be replayed after one setting is changed.

use std::fmt;

use regex::Regex;
use serde_json::Value;

use super::field::{Field, FieldSet, PerField};

/// Field values that passed every rule, trimmed: the same bytes are signed and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The entity id among them: `validate` makes no update without one.
    values: PerField<Option<String>>,
    /// Its pincode is one also where no country is named.
    pincode_stands_alone: bool,
}

impl Update {
    /// Whose update it is.
    pub fn entity_id(&self) -> &str {
        self.value(Field::EntityId).expect("validate makes no update without one")
    }

    /// The value of a field, if the update sets it.
    pub fn value(&self, field: Field) -> Option<&str> {
        self.values[field].as_deref()
    }

    /// The fields that it sets; whose it is is not one of them.
    pub fn fields(&self) -> FieldSet {
        let set = self.values().map(|(field, _)| field);
        set.filter(|field| *field != Field::EntityId).collect()
    }

    /// What can be sent of these fields of it: a pincode that needs the country that it came with does not
    /// go without, since it would be judged as of the default country.
    pub fn without_lone_pincode(&self, fields: FieldSet) -> FieldSet {
        let has_country = self.value(Field::Country).is_some();
        let is_alone = has_country && !fields.contains(Field::Country);
        if is_alone && !self.pincode_stands_alone {
            fields.without(FieldSet::NONE.with(Field::Pincode))
        } else {
            fields
        }
    }

    /// An update of the same customer with other values.
    pub(super) fn with_values(&self, values: PerField<Option<String>>) -> Update {
        let mut values = values;
        values[Field::EntityId] = Some(self.entity_id().to_owned());
        Update { values, pincode_stands_alone: self.pincode_stands_alone }
    }

    /// Each field the update sends, in the parameter table's order.
    pub fn values(&self) -> impl Iterator<Item = (Field, &str)> {
        self.values.iter().filter_map(|(field, value)| Some((field, value.as_deref()?)))
    }
}

/// What one field's value breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldFault {
    /// The field.
    pub field: Field,
    /// The broken rule, one of a bounded set.
    pub rule: &'static str,
    /// What is wrong and what is allowed, without the value.
    pub problem: String,
    /// The setting that rules here, where there is one.
    pub setting: Option<&'static str>,
}

impl fmt::Display for FieldFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FieldFault { field, rule, problem, setting } = self;
        write!(f, "{field}: {problem} (rule {rule}")?;
        setting.map_or(Ok(()), |setting| write!(f, ", setting {setting}"))?;
        f.write_str(")")
    }
}

/// What happens to characters of an address that the page does not list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPolicy {
    /// Refuse the event.
    Reject,
    /// Make each run of them one space.
    Clean,
    /// Send them.
    Keep,
}

/// What happens to spaces inside a city or state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpacePolicy {
    /// Refuse the event.
    Reject,
    /// Remove them.
    Squeeze,
    /// Send them.
    Keep,
}

/// The field rules with every choice made; one setting each.
#[derive(Clone, Debug)]
pub struct FieldPolicies {
    /// `fields.entity_id_max_length`, in characters.
    pub entity_id_max_length: usize,
    /// `fields.mobile_no_normalize`: strip `+91`, a leading 0, spaces and hyphens first.
    pub mobile_no_normalize: bool,
    /// `fields.mobile_no_pattern`, anchored at both ends.
    pub mobile_no_pattern: Regex,
    /// `fields.address`.
    pub address: AddressPolicy,
    /// `fields.city_spaces`.
    pub city_spaces: SpacePolicy,
    /// `fields.state_spaces`.
    pub state_spaces: SpacePolicy,
    /// `fields.default_country`: what an absent country means for the pincode.
    pub default_country: String,
    /// `fields.foreign_pincode_pattern`, anchored at both ends.
    pub foreign_pincode_pattern: Regex,
}

impl FieldPolicies {
    /// Judges every field of an event; all faults are reported, in the table's order.
    pub fn validate(&self, raw: &PerField<Option<Value>>) -> Result<Update, Vec<FieldFault>> {
        let mut faults = Vec::new();
        let values = PerField::from_fn(|field| {
            let value = raw[field].as_ref()?;
            let text = text_of(field, value).and_then(|text| self.apply(field, text));
            text.map_err(|fault| faults.push(fault)).ok()
        });
        let country = values[Field::Country].as_deref().unwrap_or(&self.default_country);
        if let Some(pincode) = &values[Field::Pincode] {
            faults.extend(self.check_pincode(pincode, country).err());
        }
        faults.sort_by_key(|fault| fault.field);
        if raw[Field::EntityId].is_none() {
            faults.insert(0, fault(Field::EntityId, "required", "missing", None));
        } else if Field::ALL[1..].iter().all(|&field| raw[field].is_none()) {
            faults.push(fault(
                Field::EntityId,
                "nothing-to-update",
                "stands alone: no other field is set, so nothing would change",
                None,
            ));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let pincode = values[Field::Pincode].as_deref();
        let stands_alone = |pincode| self.check_pincode(pincode, &self.default_country).is_ok();
        let pincode_stands_alone = pincode.is_none_or(stands_alone);
        Ok(Update { values, pincode_stands_alone })
    }

    fn apply(&self, field: Field, text: String) -> Result<String, FieldFault> {
        match field {
            Field::EntityId => self.entity_id(text),
            Field::Email => email(text),
            Field::MobileNo => self.mobile_no(text),
            Field::Address => self.address(text),
            Field::Country => country(text),
            Field::City => letters(field, text, self.city_spaces, "fields.city_spaces"),
            Field::State => letters(field, text, self.state_spaces, "fields.state_spaces"),
            // Judged when the country is known.
            Field::Pincode => Ok(text),
        }
    }

    fn entity_id(&self, text: String) -> Result<String, FieldFault> {
        let max = self.entity_id_max_length;
        if text.chars().count() > max {
            let problem = format!("longer than {max} characters");
            let setting = Some("fields.entity_id_max_length");
            return Err(fault(Field::EntityId, "too-long", problem, setting));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            let problem = "white space or a control character inside";
            return Err(fault(Field::EntityId, "characters", problem, None));
        }
        Ok(text)
    }

    fn mobile_no(&self, text: String) -> Result<String, FieldFault> {
        let text = if self.mobile_no_normalize { national_number(&text) } else { text };
        if self.mobile_no_pattern.is_match(&text) {
            return Ok(text);
        }
        let problem = "not a whole mobile number (masked, too short or too long, or with a prefix \
                       that fields.mobile_no_normalize would strip)";
        Err(fault(Field::MobileNo, "pattern", problem, Some("fields.mobile_no_pattern")))
    }

    fn address(&self, text: String) -> Result<String, FieldFault> {
        let listed = |c: char| c.is_ascii_alphanumeric() || c == ' ';
        let setting = Some("fields.address");
        match self.address {
            AddressPolicy::Keep if text.chars().any(char::is_control) => {
                Err(fault(Field::Address, "characters", "a control character inside", None))
            }
            AddressPolicy::Keep => Ok(text),
            _ if text.chars().all(listed) => Ok(text),
            AddressPolicy::Reject => {
                let problem = "characters other than letters, digits and spaces; \"clean\" makes \
                               them spaces, \"keep\" sends them";
                Err(fault(Field::Address, "alphanumeric", problem, setting))
            }
            AddressPolicy::Clean => {
                let words = text.split(|c: char| !c.is_ascii_alphanumeric());
                let cleaned = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
                if cleaned.is_empty() {
                    let problem = "nothing is left once it is cleaned";
                    return Err(fault(Field::Address, "blank", problem, setting));
                }
                Ok(cleaned)
            }
        }
    }

    fn check_pincode(&self, pincode: &str, country: &str) -> Result<(), FieldFault> {
        if country.eq_ignore_ascii_case("India") {
            let digits = pincode.len() == 6 && pincode.bytes().all(|b| b.is_ascii_digit());
            if digits && !pincode.starts_with('0') {
                return Ok(());
            }
            let problem = "not six digits with the first not 0, which India needs; an absent \
                           country counts as fields.default_country";
            let setting = Some("fields.default_country");
            return Err(fault(Field::Pincode, "six-digits", problem, setting));
        }
        if self.foreign_pincode_pattern.is_match(pincode) {
            return Ok(());
        }
        let setting = Some("fields.foreign_pincode_pattern");
        Err(fault(Field::Pincode, "pattern", "not a pincode outside India", setting))
    }
}

fn fault(
    field: Field,
    rule: &'static str,
    problem: impl Into<String>,
    setting: Option<&'static str>,
) -> FieldFault {
    FieldFault { field, rule, problem: problem.into(), setting }
}

/// The value as trimmed text: a string, or for numbers written as such, an integer.
fn text_of(field: Field, value: &Value) -> Result<String, FieldFault> {
    let integer_allowed = matches!(field, Field::MobileNo | Field::Pincode);
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) if integer_allowed && (number.is_u64() || number.is_i64()) => {
            number.to_string()
        }
        _ if integer_allowed => {
            return Err(fault(field, "type", "neither a JSON string nor an integer", None));
        }
        _ => return Err(fault(field, "type", "not a JSON string", None)),
    };
    if text.is_empty() {
        let problem = "empty; the portal has no documented way to clear a field";
        return Err(fault(field, "blank", problem, None));
    }
    Ok(text)
}

fn national_number(text: &str) -> String {
    let digits: String = text.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    let national = digits.strip_prefix("+91").or_else(|| digits.strip_prefix('0'));
    national.unwrap_or(&digits).to_owned()
}

/// A deliverable shape only: ASCII, one `@`, a dotted domain, at most 254 characters.
fn email(text: String) -> Result<String, FieldFault> {
    let allowed_local = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b);
    let local_ok =
        |local: &str| local.bytes().all(allowed_local) && !local.split('.').any(str::is_empty);
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let well_formed = text.len() <= 254
        && text.split_once('@').is_some_and(|(local, domain)| {
            local_ok(local) && domain.contains('.') && domain.split('.').all(label_ok)
        });
    if well_formed {
        return Ok(text);
    }
    let problem = "not an ASCII e-mail address with one @, a dotted domain and at most 254 \
                   characters";
    Err(fault(Field::Email, "format", problem, None))
}

fn country(text: String) -> Result<String, FieldFault> {
    if text.chars().all(|c| c.is_ascii_alphabetic() || c == ' ') {
        return Ok(text);
    }
    Err(fault(Field::Country, "letters", "characters other than letters and spaces", None))
}

fn letters(
    field: Field,
    text: String,
    spaces: SpacePolicy,
    setting: &'static str,
) -> Result<String, FieldFault> {
    if !text.chars().all(|c| c.is_ascii_alphabetic() || c == ' ') {
        let problem = "characters other than letters a-z and A-Z";
        return Err(fault(field, "letters", problem, None));
    }
    match spaces {
        SpacePolicy::Reject if text.contains(' ') => {
            let problem = "spaces are not allowed; \"squeeze\" removes them, \"keep\" sends them";
            Err(fault(field, "spaces", problem, Some(setting)))
        }
        SpacePolicy::Reject | SpacePolicy::Keep => Ok(text),
        SpacePolicy::Squeeze => Ok(text.replace(' ', "")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::domain) fn default_policies() -> FieldPolicies {
        FieldPolicies {
            entity_id_max_length: 50,
            mobile_no_normalize: false,
            mobile_no_pattern: Regex::new("^[6-9][0-9]{9}$").expect("pattern"),
            address: AddressPolicy::Reject,
            city_spaces: SpacePolicy::Reject,
            state_spaces: SpacePolicy::Reject,
            default_country: "India".into(),
            foreign_pincode_pattern: Regex::new("^[0-9]{1,6}$").expect("pattern"),
        }
    }

    pub(in crate::domain) fn raw(values: &Value) -> PerField<Option<Value>> {
        PerField::from_fn(|field| values.get(field.name()).cloned())
    }

    fn judge(policies: &FieldPolicies, mut values: Value) -> Result<Update, Vec<FieldFault>> {
        if values.get("entity_id").is_none() {
            values["entity_id"] = json!("C1");
        }
        policies.validate(&raw(&values))
    }

    fn value(policies: &FieldPolicies, field: &str, text: &str) -> Result<String, &'static str> {
        let field = Field::parse(field).expect("a field");
        match judge(policies, json!({ field.name(): text })) {
            Ok(update) => Ok(update.value(field).expect("set").to_owned()),
            Err(faults) => Err(faults[0].rule),
        }
    }

    #[test]
    fn values_are_trimmed_once_and_otherwise_kept() {
        let policies = default_policies();
        assert_eq!(value(&policies, "address", "  12 MG Road "), Ok("12 MG Road".into()));
        assert_eq!(value(&policies, "email", "A.b@Example.com"), Ok("A.b@Example.com".into()));
        assert_eq!(value(&policies, "country", "Sri Lanka"), Ok("Sri Lanka".into()));
    }

    #[test]
    fn the_default_rules_refuse_by_name() {
        let policies = default_policies();
        for (field, text, rule) in [
            ("entity_id", "A B", "characters"),
            ("email", "", "blank"),
            ("email", "a@b", "format"),
            ("email", "a@b@example.com", "format"),
            ("email", "é@example.com", "format"),
            ("mobile_no", "9XXXXXX879", "pattern"),
            ("mobile_no", "5876543879", "pattern"),
            ("mobile_no", "98765438791", "pattern"),
            ("address", "12/4 MG Road", "alphanumeric"),
            ("country", "India1", "letters"),
            ("city", "New Delhi", "spaces"),
            ("state", "Tamil Nadu", "spaces"),
            ("city", "Kochi2", "letters"),
            ("pincode", "068230", "six-digits"),
            ("pincode", "68230", "six-digits"),
        ] {
            assert_eq!(value(&policies, field, text), Err(rule), "{field} {text:?}");
        }
        assert_eq!(value(&policies, "entity_id", &"x".repeat(51)), Err("too-long"));
    }

    #[test]
    fn each_policy_changes_its_field() {
        let policies = FieldPolicies {
            mobile_no_normalize: true,
            address: AddressPolicy::Clean,
            city_spaces: SpacePolicy::Squeeze,
            state_spaces: SpacePolicy::Keep,
            default_country: "Nepal".into(),
            ..default_policies()
        };
        assert_eq!(value(&policies, "mobile_no", "+91 98765-43879"), Ok("9876543879".into()));
        assert_eq!(value(&policies, "mobile_no", "09876543879"), Ok("9876543879".into()));
        assert_eq!(value(&policies, "address", "12/4, MG Road."), Ok("12 4 MG Road".into()));
        assert_eq!(value(&policies, "address", "#--#"), Err("blank"));
        assert_eq!(value(&policies, "city", "New Delhi"), Ok("NewDelhi".into()));
        assert_eq!(value(&policies, "state", "Tamil Nadu"), Ok("Tamil Nadu".into()));
        assert_eq!(value(&policies, "pincode", "0440"), Ok("0440".into()));
    }

    #[test]
    fn only_strings_and_for_two_fields_integers_are_values() {
        let policies = default_policies();
        let update = judge(&policies, json!({"mobile_no": 9_876_543_879_u64, "pincode": 682_308}))
            .expect("integers");
        assert_eq!(update.value(Field::Pincode), Some("682308"));
        for values in [
            json!({"email": 1}),
            json!({"pincode": 682_308.0}),
            json!({"city": true}),
            json!({"city": ["Kochi"]}),
            json!({"address": {"line": "1"}}),
            json!({"entity_id": 7, "city": "Kochi"}),
        ] {
            let faults = judge(&policies, values).expect_err("refused");
            assert_eq!(faults[0].rule, "type");
        }
    }

    #[test]
    fn an_update_needs_a_customer_and_something_to_update() {
        let policies = default_policies();
        let faults = policies.validate(&raw(&json!({"city": "New Delhi"}))).expect_err("refused");
        let rules: Vec<_> = faults.iter().map(|fault| fault.rule).collect();
        assert_eq!(rules, ["required", "spaces"], "all faults are told");
        let faults = judge(&policies, json!({})).expect_err("refused");
        assert_eq!(faults[0].rule, "nothing-to-update");
    }

    #[test]
    fn a_fault_names_field_rule_and_setting_but_no_value() {
        let faults = judge(&default_policies(), json!({"state": "Tamil Nadu"})).expect_err("fault");
        let text = faults[0].to_string();
        assert!(text.starts_with("state: spaces are not allowed"), "{text}");
        assert!(text.ends_with("(rule spaces, setting fields.state_spaces)"), "{text}");
        assert!(!text.contains("Tamil"));
    }
}

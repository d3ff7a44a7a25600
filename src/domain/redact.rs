//! Takes personal data out of texts that others wrote: the portal's messages may echo what was
//! sent.

use regex::Regex;
use std::sync::LazyLock;

/// What looks personal wherever it stands: addresses with an @, and four or more digits in a row.
static PERSONAL: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"[^\s@<>]+@[^\s@<>]+|\d[\d -]{2,}\d").ok());

/// The text with every occurrence of `values` (in any case) and everything that looks like an
/// e-mail address or a long number replaced by `***`, control characters by spaces, cut to
/// `max_bytes`.
pub fn redact<'a>(
    text: &str,
    values: impl IntoIterator<Item = &'a str>,
    max_bytes: usize,
) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut values: Vec<&str> = values.into_iter().filter(|value| value.len() > 1).collect();
    // Longest first, so that a value inside another leaves no rest of it.
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in values {
        text = replace_ignoring_case(&text, value);
    }
    if let Some(personal) = &*PERSONAL {
        text = personal.replace_all(&text, "***").into_owned();
    }
    cut(&text, max_bytes).to_owned()
}

fn replace_ignoring_case(text: &str, value: &str) -> String {
    let pattern = format!("(?i){}", regex::escape(value));
    match Regex::new(&pattern) {
        Ok(pattern) => pattern.replace_all(text, "***").into_owned(),
        // A value too large to search for: keep nothing of the text.
        Err(_) => "***".into(),
    }
}

/// A personal value, so that whoever knows it can recognise it: its first and last characters.
pub fn mask(value: &str) -> String {
    let characters: Vec<char> = value.chars().collect();
    match &characters[..] {
        [first, second, .., last] if characters.len() > 6 => format!("{first}{second}***{last}"),
        [first, .., _] if characters.len() > 2 => format!("{first}***"),
        _ => "***".to_owned(),
    }
}

/// The longest beginning of at most `max_bytes` that ends between characters.
pub fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::{mask, redact};

    #[test]
    fn a_masked_value_shows_its_ends_if_there_is_much_between_them() {
        assert_eq!(mask("asha@example.com"), "as***m");
        assert_eq!(mask("Kochi"), "K***");
        assert_eq!((mask("ab"), mask("")), ("***".into(), "***".into()));
    }

    #[test]
    fn what_was_sent_does_not_come_back() {
        let echo = "E-mail Asha@Example.com of CUST0001 (New Road 5) already used by 98765 43879";
        let values = ["asha@example.com", "CUST0001", "New Road 5", "New"];
        let redacted = redact(echo, values, 500);
        assert_eq!(redacted, "E-mail *** of *** (***) already used by ***");
        assert_eq!(redact("other@example.com 400 fail", [], 500), "*** 400 fail");
        assert_eq!(redact("ääää", [], 5), "ää");
    }
}

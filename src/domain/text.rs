//! Texts that others wrote, made fit to be kept and shown: characters that no one can see are
//! escaped, lengths are bounded, personal data is taken out.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::LazyLock;

use regex::Regex;

/// A text from outside, fit for a ledger, a header, a log line, a terminal and a file name: every
/// [unprintable](is_unprintable) character is written as `\u{…}`, and at most `max_bytes` are kept,
/// cut between characters and never within an escape.
///
/// No database refuses the result. A text that is escaped already stays as it is: a backslash is
/// no special character.
pub fn escape(text: &str, max_bytes: usize) -> Cow<'_, str> {
    let kept = cut(text, max_bytes);
    if is_printable(kept) {
        return Cow::Borrowed(kept);
    }
    let mut escaped = String::with_capacity(max_bytes.min(2 * kept.len()));
    for character in kept.chars() {
        let start = escaped.len();
        push(&mut escaped, character);
        if escaped.len() > max_bytes {
            escaped.truncate(start);
            break;
        }
    }
    Cow::Owned(escaped)
}

/// A page of several lines for a terminal: its line feeds stay, everything else that is unprintable
/// is escaped. A text from outside within the page is [escaped](escape) before, or it could pose as
/// a line of its own.
pub fn escape_page(page: &str) -> Cow<'_, str> {
    escape_between_lines(page, push)
}

/// A page for a terminal, as [`escape_page`], with the colours of a log line left in it. A text from
/// outside within it has lost its escape characters before.
pub fn escape_coloured_page(page: &str) -> Cow<'_, str> {
    let mut pieces = page.split('\x1b');
    let first = escape_page(pieces.next().expect("a split has a first piece"));
    let mut escaped = first.into_owned();
    for piece in pieces {
        escaped.push_str(if starts_with_colour(piece) { "\x1b" } else { r"\u{1b}" });
        escaped.push_str(&escape_page(piece));
    }
    Cow::Owned(escaped)
}

/// What follows an escape character to set a colour or a style: `[1;31m`.
fn starts_with_colour(piece: &str) -> bool {
    let style = piece.strip_prefix('[').and_then(|rest| rest.split_once('m'));
    style.is_some_and(|(style, _)| style.bytes().all(|b| b.is_ascii_digit() || b == b';'))
}

/// A JSON text for a terminal: what JSON lets through raw within its strings, and a terminal may
/// obey, is escaped by JSON's own rule. It says the same as before.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    escape_between_lines(json, |escaped, character| {
        // Whatever is unprintable lies within 16 bits: no surrogates are needed.
        write!(escaped, "\\u{:04x}", u32::from(character)).expect(WRITE);
    })
}

fn escape_between_lines(text: &str, push: impl Fn(&mut String, char)) -> Cow<'_, str> {
    let stays = |character| character == '\n' || !is_unprintable(character);
    if all_bytes(text, |byte| matches!(byte, b' '..=b'~' | b'\n')) || text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(2 * text.len());
    for character in text.chars() {
        if stays(character) { escaped.push(character) } else { push(&mut escaped, character) }
    }
    Cow::Owned(escaped)
}

const WRITE: &str = "writing to a String cannot fail";

fn push(text: &mut String, character: char) {
    if is_unprintable(character) {
        write!(text, "\\u{{{:x}}}", u32::from(character)).expect(WRITE);
    } else {
        text.push(character);
    }
}

/// Whether a character is obeyed instead of shown: control characters (C0, DEL and C1), line and
/// paragraph separators, what turns the direction of the text around it, and what has no width. What
/// joins letters or keeps them apart (U+200C, U+200D) is part of how some languages are written.
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Whether a text has no [unprintable](is_unprintable) character.
pub fn is_printable(text: &str) -> bool {
    all_bytes(text, |byte| matches!(byte, b' '..=b'~')) || !text.chars().any(is_unprintable)
}

/// Nearly all texts are ASCII, which needs no decoding. Without an end at the first byte that is not
/// meant, many are looked at together.
fn all_bytes(text: &str, is_meant: impl Fn(u8) -> bool) -> bool {
    text.bytes().fold(true, |all, byte| all & is_meant(byte))
}

/// What looks personal wherever it stands: addresses with an @, and four or more digits in a row,
/// whatever blanks, invisible or telephone characters are between them.
static PERSONAL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"[^\s@<>]+(?:@|%40)[^\s@<>]+|\d[\d\s\p{Cc}\p{Cf}+.()/-]{2,}\d")
        .expect("the pattern is valid")
});

/// The text with every occurrence of `values` (in any case) and everything that looks like an
/// e-mail address or a long number replaced by `***`, [escaped](escape), at most `max_bytes` long.
pub fn redact<'a>(
    text: &str,
    values: impl IntoIterator<Item = &'a str>,
    max_bytes: usize,
) -> String {
    // A longer value cannot stand in it, in no spelling: each of its characters is one at least.
    let longest = text.chars().count();
    let mut text = text.to_owned();
    let may_stand_in_it = |value: &&str| value.len() > 1 && value.chars().nth(longest).is_none();
    let mut values: Vec<&str> = values.into_iter().filter(may_stand_in_it).collect();
    // Longest first, so that a value inside another leaves no rest of it.
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in values {
        text = replace_ignoring_case(&text, value);
    }
    escape(&PERSONAL.replace_all(&text, "***"), max_bytes).into_owned()
}

fn replace_ignoring_case(text: &str, value: &str) -> String {
    let pattern: String = value.chars().map(in_any_spelling).collect();
    match Regex::new(&format!("(?i){pattern}")) {
        Ok(pattern) => pattern.replace_all(text, "***").into_owned(),
        // A value too large to search for: keep nothing of the text.
        Err(_) => "***".into(),
    }
}

/// A character as it is, or as it stands in the form that we send, which an answer may quote.
fn in_any_spelling(character: char) -> String {
    let mut bytes = [0; 4];
    let plain = character.encode_utf8(&mut bytes);
    let quoted: Vec<String> = plain.bytes().map(|byte| format!("%{byte:02X}")).collect();
    match character {
        ' ' => r"(?:[\s\p{Cc}+]|%20)".to_owned(),
        _ if character.is_ascii_alphanumeric() => plain.to_owned(),
        _ => format!("(?:{}|{quoted})", regex::escape(plain), quoted = quoted.concat()),
    }
}

/// A personal value, so that whoever knows it can recognise it: its first and last characters.
pub fn mask(value: &str) -> String {
    let characters: Vec<char> = value.chars().collect();
    let masked = match &characters[..] {
        [first, second, .., last] if characters.len() > 6 => format!("{first}{second}***{last}"),
        [first, .., _] if characters.len() > 2 => format!("{first}***"),
        _ => "***".to_owned(),
    };
    escape(&masked, usize::MAX).into_owned()
}

/// The longest beginning of at most `max_bytes` that ends between characters.
pub fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_cannot_be_seen_is_escaped() {
        for (text, escaped) in [
            ("evt-1", "evt-1"),
            ("", ""),
            ("\0", r"\u{0}"),
            ("a\nb\tc\r", r"a\u{a}b\u{9}c\u{d}"),
            ("\x1b[2J", r"\u{1b}[2J"),
            ("\x7f\u{80}\u{85}\u{9f}\u{a0}", "\\u{7f}\\u{80}\\u{85}\\u{9f}\u{a0}"),
            ("\u{2028}\u{2029}", r"\u{2028}\u{2029}"),
            ("\u{202a}\u{202e}\u{2066}\u{2069}", r"\u{202a}\u{202e}\u{2066}\u{2069}"),
            ("Zoë 雪 😀 \\u{0}", "Zoë 雪 😀 \\u{0}"),
        ] {
            assert_eq!(escape(text, 1000), escaped);
        }
        assert!(matches!(escape("evt-1", 5), Cow::Borrowed("evt-1")));
    }

    #[test]
    fn a_cut_falls_between_characters_and_escapes() {
        assert_eq!(escape("ab\0cd", 7), r"ab\u{0}");
        assert_eq!(escape("ab\0cd", 6), "ab");
        assert_eq!(escape("ää", 3), "ä");
        assert_eq!(escape("\0", 0), "");
    }

    #[test]
    fn a_page_keeps_its_lines() {
        assert_eq!(escape_page("a\nb\u{85}\x1b[m\n"), "a\nb\\u{85}\\u{1b}[m\n");
        let coloured = "\x1b[2m12:00\x1b[0m \x1b[1;31mred\x1b[m";
        assert_eq!(escape_coloured_page(coloured), coloured);
        assert_eq!(escape_coloured_page("\x1b[2J\n\x1b]0;m"), "\\u{1b}[2J\n\\u{1b}]0;m");
    }

    #[test]
    fn a_masked_value_shows_its_ends_if_there_is_much_between_them() {
        assert_eq!(mask("asha@example.com"), "as***m");
        assert_eq!(mask("Kochi"), "K***");
        assert_eq!((mask("ab"), mask("")), ("***".into(), "***".into()));
        assert_eq!(mask("\x1bKochi\u{202e}"), r"\u{1b}K***\u{202e}");
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

    #[test]
    fn invisible_characters_hide_nothing_from_the_redaction() {
        let echo = "\x1b[31mNew\nRoad\u{0}5: 98\u{200b}76\u{202e}5\n43879\u{85}";
        assert_eq!(redact(echo, ["New Road 5"], 500), r"\u{1b}[31m***: ***\u{85}");
    }

    /// Texts with many characters that are escaped, some that look like escapes, and all others.
    fn hostile() -> impl Strategy<Value = String> {
        let characters = prop_oneof![
            3 => any::<char>(),
            2 => prop::char::range('\0', '\u{a0}'),
            2 => prop::char::range('\u{2020}', '\u{2070}'),
            1 => prop::sample::select(vec!['\\', 'u', '{', '0', '}', '"']),
        ];
        prop::collection::vec(characters, 0..60).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn an_escaped_text_is_printable_bounded_and_stays_as_it_is(
            text in hostile(),
            max_bytes in 0_usize..200,
        ) {
            let escaped = escape(&text, max_bytes);
            prop_assert!(is_printable(&escaped) && escaped.len() <= max_bytes);
            prop_assert_eq!(escape(&escaped, max_bytes), &*escaped);
            prop_assert!(escape(&text, usize::MAX).starts_with(&*escaped));
            if is_printable(&text) {
                prop_assert_eq!(&*escaped, cut(&text, max_bytes));
            }
        }

        #[test]
        fn texts_without_backslashes_are_told_apart(a in hostile(), b in hostile()) {
            let [a, b] = [a, b].map(|text| text.replace('\\', ""));
            prop_assert_eq!(a == b, escape(&a, usize::MAX) == escape(&b, usize::MAX));
        }

        #[test]
        fn an_escaped_page_says_the_same_lines(lines in prop::collection::vec(hostile(), 0..5)) {
            let lines: Vec<_> = lines.iter().map(|line| line.replace('\n', "")).collect();
            let escaped: Vec<_> = lines.iter().map(|line| escape(line, usize::MAX)).collect();
            let page = lines.join("\n");
            prop_assert_eq!(escape_page(&page), escaped.join("\n"));
        }

        #[test]
        fn escaped_json_says_the_same_and_is_printable(texts in prop::collection::vec(hostile(), 0..5)) {
            let value = Value::from(texts);
            let json = format!("{value:#}");
            let escaped = escape_json(&json);
            prop_assert!(is_printable(&escaped.replace('\n', "")));
            prop_assert_eq!(serde_json::from_str::<Value>(&escaped).expect("JSON"), value);
        }

        #[test]
        fn redaction_never_panics_and_is_printable(text in hostile(), value in hostile()) {
            let redacted = redact(&text, [value.as_str()], 100);
            prop_assert!(is_printable(&redacted) && redacted.len() <= 100);
            prop_assert!(is_printable(&mask(&text)));
        }
    }
}

//! Texts of every kind that JSON and AMQP allow, as far as they are UTF-8.

use rand::RngExt;
use rand::rngs::StdRng;

/// Each without a control character.
const STRANGE: [&str; 26] = [
    "",
    "null",
    "~0123456789abcdef",
    "#0123456789abcdef",
    "../../../etc/passwd",
    "/a/b?c=d&e=f#g",
    "%00%0a%ff%n%s",
    "a+b&c=d;e",
    "'; DROP TABLE customers; --",
    "\\\"'`$(id)${x}{{y}}",
    "--yes",
    "-1",
    "{\"status\":200}",
    "<script>alert(1)</script>",
    "\u{202e}desrever\u{202c}",
    "\u{2066}isolate\u{2069}\u{200f}",
    "\u{200b}\u{200d}\u{2060}",
    "\u{feff}mark",
    "\u{fffd}\u{ffff}\u{10ffff}",
    "e\u{301}\u{327}\u{489}",
    "👩‍👩‍👧‍👦🏴‍☠️",
    "कोच्चि",
    "Ω≈ç√∫˜µ≤≥÷",
    "ﷺ",
    "١٢٣٤٥٦٧٨٩",
    "=cmd|'/c calc'!A1",
];

/// What an id may not hold beside control characters: what is obeyed instead of shown, or has no width.
const TURNS: [char; 28] = [
    '\u{61c}', '\u{200b}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}', '\u{202a}', '\u{202b}',
    '\u{202c}', '\u{202d}', '\u{202e}', '\u{2060}', '\u{2061}', '\u{2062}', '\u{2063}', '\u{2064}',
    '\u{2065}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}', '\u{206a}', '\u{206b}', '\u{206c}',
    '\u{206d}', '\u{206e}', '\u{206f}', '\u{feff}',
];

/// Each with a control character.
const CONTROLS: [&str; 11] = [
    "\0",
    "a\0b",
    "\u{1}\u{2}\u{1f}",
    "line\nbreak",
    "carriage\r\nInjected: header",
    "tab\tbed",
    "\u{1b}[2J\u{1b}[31mred\u{1b}]0;title\u{7}",
    "back\u{8}space",
    "\u{7f}delete",
    "\u{9b}31mc1 sequence\u{85}next line",
    "{\"level\":\"ERROR\"}\n{\"level\":\"ERROR\"}",
];

fn one(texts: &[&str], dice: &mut StdRng) -> String {
    texts[dice.random_range(0..texts.len())].to_owned()
}

/// A text without control characters, at most so many bytes long.
pub fn strange(dice: &mut StdRng, max_bytes: usize) -> String {
    let text = match dice.random_range(0..10) {
        0 => long(dice, max_bytes),
        1 => random(dice, false),
        2 => format!("{} {}", one(&STRANGE, dice), one(&STRANGE, dice)),
        _ => one(&STRANGE, dice),
    };
    cut(text, max_bytes)
}

/// A text with at least one control character, at most so many bytes long.
pub fn with_controls(dice: &mut StdRng, max_bytes: usize) -> String {
    let text = match dice.random_range(0..6) {
        0 => format!("\u{1b}{}", random(dice, true)),
        1 => format!("\u{9f}{}", one(&STRANGE, dice)),
        _ => one(&CONTROLS, dice),
    };
    cut(text, max_bytes)
}

/// Without what turns the direction of a text either: fit for an id.
pub fn fit(dice: &mut StdRng, max_bytes: usize) -> String {
    strange(dice, max_bytes).chars().filter(|c| !TURNS.contains(c)).collect()
}

/// Either.
pub fn any(dice: &mut StdRng, max_bytes: usize) -> String {
    if dice.random_bool(0.5) { strange(dice, max_bytes) } else { with_controls(dice, max_bytes) }
}

/// A text that fills its room.
pub fn long(dice: &mut StdRng, bytes: usize) -> String {
    let part = ["x", "ä", "👩‍👩‍👧‍👦", "\u{202e}", "0123456789"][dice.random_range(0..5)];
    cut(part.repeat(bytes / part.len() + 1), bytes)
}

/// Any characters.
fn random(dice: &mut StdRng, may_control: bool) -> String {
    let length = dice.random_range(1..40);
    (0..length)
        .map(|_| {
            loop {
                let c: char = dice.random();
                if may_control || !(c.is_control() || c.is_whitespace()) {
                    break c;
                }
            }
        })
        .collect()
}

fn cut(mut text: String, max_bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(max_bytes));
    text
}

/// Bytes, about a third of them valid UTF-8.
pub fn bytes(dice: &mut StdRng, most: usize) -> Vec<u8> {
    match dice.random_range(0..3) {
        0 => any(dice, most).into_bytes(),
        1 => vec![[0, 0x80, 0xff][dice.random_range(0..3)]; dice.random_range(0..=most)],
        _ => (0..dice.random_range(0..=most)).map(|_| dice.random()).collect(),
    }
}

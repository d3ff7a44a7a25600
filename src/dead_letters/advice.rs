//! What to do about a reason: the runbook's own words.

use crate::domain::dead_letter::Reason;

const RUNBOOK: &str = include_str!("../../deploy/RUNBOOK.md");

/// The runbook's entry.
pub fn advice(reason: Reason) -> &'static str {
    let heading = format!("\n### {}\n", reason.name());
    let entry = RUNBOOK.split_once(heading.as_str()).map(|(_, entry)| entry);
    let entry = entry.expect("the runbook has an entry for each reason");
    entry.split_once("\n##").map_or(entry, |(entry, _)| entry).trim()
}

/// Its first paragraph's first sentence, on one line.
pub fn hint(reason: Reason) -> String {
    let entry = advice(reason).replace('\n', " ");
    entry.split_once(". ").map_or(entry.clone(), |(first, _)| format!("{first}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_advice_that_begins_with_a_sentence() {
        for reason in Reason::ALL {
            assert!(advice(reason).len() > 80, "{}", reason.name());
            assert!(!advice(reason).contains("\n#"), "{}", reason.name());
            let hint = hint(reason);
            assert!(hint.ends_with('.') && hint.len() < 200 && !hint.contains('\n'), "{hint}");
        }
    }
}

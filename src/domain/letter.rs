//! A dead letter as an operator meets it: what it says about itself, without its body, and the
//! group it belongs to.

use jiff::Timestamp;
use uuid::Uuid;

use super::dead_letter::Reason;
use super::text::escape;
use super::version::MAX_EVENT_BYTES;

/// One message of the dead-letter queue, without anything personal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its dead id; of one that no relay made, an id that follows from its content.
    pub id: Uuid,
    /// Which event, in the CRM's words.
    pub event: Option<String>,
    /// Why it is here.
    pub reason: Reason,
    /// In words.
    pub detail: Option<String>,
    /// The field at fault.
    pub field: Option<String>,
    /// The rule it breaks.
    pub rule: Option<String>,
    /// HTTP status of the last answer.
    pub http_status: Option<u16>,
    /// Status in the body of the last answer.
    pub portal_status: Option<i64>,
    /// Attempts made.
    pub attempts: u32,
    /// When it became a dead letter, as far as anybody knows.
    pub died: Option<Timestamp>,
    /// `needs-review`, `unwitnessed`, or both with a comma.
    pub flags: Option<String>,
    /// How often it was put back before.
    pub replays: u32,
    /// How often an operator has edited it.
    pub revision: u32,
}

impl Letter {
    /// A letter of no event, to see whether it can be written.
    pub fn sample(at: Timestamp) -> Letter {
        Letter {
            id: Uuid::now_v7(),
            event: None,
            reason: Reason::Unrecordable,
            detail: None,
            field: None,
            rule: None,
            http_status: None,
            portal_status: None,
            attempts: 0,
            died: Some(at),
            flags: None,
            replays: 0,
            revision: 0,
        }
    }

    /// What letters of one group share: reason, field, rule and portal status.
    pub fn fingerprint(&self) -> String {
        let status = self.portal_status.map(|status| status.to_string());
        let parts = [self.field.as_deref(), self.rule.as_deref(), status.as_deref()];
        parts.into_iter().flatten().fold(self.reason.name().to_owned(), |mut all, part| {
            all.push(':');
            all.push_str(part);
            all
        })
    }
}

/// Letters that died of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What they share.
    pub fingerprint: String,
    /// Their reason.
    pub reason: Reason,
    /// How many there are.
    pub count: usize,
    /// When the first of them died.
    pub oldest: Option<Timestamp>,
    /// When the last of them died.
    pub newest: Option<Timestamp>,
}

/// The groups of these letters, the largest first.
pub fn group<'a>(letters: impl Iterator<Item = &'a Letter>) -> Vec<Group> {
    let mut groups = std::collections::BTreeMap::new();
    for letter in letters {
        let fingerprint = letter.fingerprint();
        let group = groups.entry(fingerprint.clone()).or_insert_with(|| Group {
            fingerprint,
            reason: letter.reason,
            count: 0,
            oldest: None,
            newest: None,
        });
        group.count += 1;
        group.oldest = group.oldest.into_iter().chain(letter.died).min();
        group.newest = group.newest.max(letter.died);
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

/// Which letters are meant. What is not asked for does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// These, whatever else is asked.
    pub ids: Vec<Uuid>,
    /// Of this group.
    pub group: Option<String>,
    /// With this reason.
    pub reason: Option<Reason>,
    /// With this field at fault.
    pub field: Option<String>,
    /// Of this event.
    pub event: Option<String>,
    /// Whose detail holds this, in any case.
    pub text: Option<String>,
    /// That died before this moment.
    pub before: Option<Timestamp>,
    /// That died after this moment.
    pub after: Option<Timestamp>,
}

impl Filter {
    /// Whether a letter is meant.
    pub fn is_met_by(&self, letter: &Letter) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        // Asked for as the CRM wrote it, or as it is shown.
        let is_event = |wanted: &str| {
            let found = letter.event.as_deref().map(|event| escape(event, MAX_EVENT_BYTES));
            found == Some(escape(wanted, MAX_EVENT_BYTES))
        };
        let holds_text = |text: &String| {
            let detail = letter.detail.as_deref().unwrap_or("");
            detail.to_lowercase().contains(&text.to_lowercase())
        };
        (self.ids.is_empty() || self.ids.contains(&letter.id))
            && self.group.as_ref().is_none_or(|group| *group == letter.fingerprint())
            && self.reason.is_none_or(|reason| reason == letter.reason)
            && is(&self.field, letter.field.as_deref())
            && self.event.as_deref().is_none_or(is_event)
            && self.text.as_ref().is_none_or(holds_text)
            && self.before.is_none_or(|before| letter.died.is_some_and(|died| died < before))
            && self.after.is_none_or(|after| letter.died.is_some_and(|died| died > after))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::domain) fn letter(id: u128, reason: Reason, field: Option<&str>) -> Letter {
        Letter {
            id: Uuid::from_u128(id),
            event: Some(format!("e{id}")),
            reason,
            detail: Some("state: spaces inside".into()),
            field: field.map(str::to_owned),
            rule: None,
            http_status: None,
            portal_status: None,
            attempts: 0,
            died: Timestamp::from_second(i64::try_from(id).expect("small")).ok(),
            flags: None,
            replays: 0,
            revision: 0,
        }
    }

    #[test]
    fn letters_that_died_of_one_thing_are_one_group_and_the_largest_is_first() {
        let letters = [
            letter(1, Reason::Rejected, None),
            letter(2, Reason::InvalidEvent, Some("state")),
            letter(3, Reason::InvalidEvent, Some("state")),
            letter(4, Reason::InvalidEvent, Some("city")),
        ];
        let groups = group(letters.iter());
        let told: Vec<(&str, usize)> =
            groups.iter().map(|group| (group.fingerprint.as_str(), group.count)).collect();
        assert_eq!(told, [("invalid-event:state", 2), ("invalid-event:city", 1), ("rejected", 1)]);
        assert_eq!((groups[0].oldest, groups[0].newest), (letters[1].died, letters[2].died));
    }

    #[test]
    fn a_filter_wants_all_that_it_names() {
        let one = letter(7, Reason::InvalidEvent, Some("state"));
        let wants = |filter: Filter| filter.is_met_by(&one);
        assert!(wants(Filter::default()));
        assert!(wants(Filter {
            ids: vec![one.id],
            text: Some("SPACES".into()),
            ..Filter::default()
        }));
        assert!(!wants(Filter { ids: vec![Uuid::nil()], ..Filter::default() }));
        assert!(!wants(Filter { reason: Some(Reason::Rejected), ..Filter::default() }));
        assert!(!wants(Filter { event: Some("e8".into()), ..Filter::default() }));
        assert!(!wants(Filter { before: one.died, ..Filter::default() }));
        assert!(wants(Filter { group: Some("invalid-event:state".into()), ..Filter::default() }));
    }
}

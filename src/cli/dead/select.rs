//! Which dead letters are meant.

use std::collections::HashSet;

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::Usage;
use crate::clock;
use crate::dead_letters::Office;
use crate::domain::dead_letter::Reason;
use crate::domain::letter::{Filter, Letter};

/// Letters by id, by group, or by what they say; all conditions must hold.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Selection {
    /// Dead ids, as `dead list` shows them.
    #[arg(value_name = "ID")]
    ids: Vec<Uuid>,
    /// A group, as `dead groups` shows it.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// A reason, such as invalid-event.
    #[arg(long, value_name = "REASON", value_parser = reason)]
    reason: Option<Reason>,
    /// The field at fault, such as state.
    #[arg(long, value_name = "FIELD")]
    field: Option<String>,
    /// A customer's entity id.
    #[arg(long, value_name = "ENTITY_ID")]
    customer: Option<String>,
    /// The CRM's id of an event.
    #[arg(long, value_name = "EVENT_ID")]
    event: Option<String>,
    /// Words in the detail, in any case.
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Dead for longer than this, such as 2h.
    #[arg(long, value_name = "DURATION")]
    older_than: Option<SignedDuration>,
    /// Dead for less long than this.
    #[arg(long, value_name = "DURATION")]
    newer_than: Option<SignedDuration>,
}

fn reason(name: &str) -> Result<Reason, String> {
    Reason::parse(name).ok_or_else(|| {
        let known = Reason::ALL.map(Reason::name).join(", ");
        format!("no such reason; there are {known}")
    })
}

impl Selection {
    /// Whether nothing is said: everything is meant, which a change must say outright.
    fn is_open(&self) -> bool {
        self.filter() == Filter::default() && self.customer.is_none()
    }

    pub(super) fn filter(&self) -> Filter {
        let now = clock::now();
        let ago = |age: SignedDuration| now.checked_sub(age).unwrap_or(Timestamp::MIN);
        Filter {
            ids: self.ids.clone(),
            group: self.group.clone(),
            reason: self.reason,
            field: self.field.clone(),
            event: self.event.clone(),
            text: self.text.clone(),
            before: self.older_than.map(ago),
            after: self.newer_than.map(ago),
        }
    }

    pub(super) async fn list(&self, office: &Office<'_>) -> anyhow::Result<Vec<Letter>> {
        office.list(&self.filter(), self.customer.as_deref()).await
    }

    /// The letters that a change is to be made to. `all` says that everything is meant.
    pub(super) async fn ids(
        &self,
        office: &Office<'_>,
        all: bool,
    ) -> anyhow::Result<HashSet<Uuid>> {
        self.refuse_unless_said(all)?;
        // Ids need no look at all the others.
        let only_ids = Filter { ids: self.ids.clone(), ..Filter::default() };
        if !self.ids.is_empty() && self.filter() == only_ids && self.customer.is_none() {
            return Ok(self.ids.iter().copied().collect());
        }
        Ok(self.list(office).await?.into_iter().map(|letter| letter.id).collect())
    }

    pub(super) fn refuse_unless_said(&self, all: bool) -> anyhow::Result<()> {
        if self.is_open() && !all {
            bail!(Usage(
                "which letters? Name ids, --group, --reason, --field, --customer, --event, --text, \
                 --older-than or --newer-than; or --all"
                    .into()
            ));
        }
        Ok(())
    }

    /// The selection in words for the operators' log, without a customer's name.
    pub(super) fn described(&self) -> String {
        let Selection { ids, group, reason, field, event, text, .. } = self;
        let mut parts = Vec::new();
        if !ids.is_empty() {
            let shown: Vec<String> = ids.iter().take(5).map(Uuid::to_string).collect();
            let more = if ids.len() > shown.len() { " …" } else { "" };
            parts.push(format!("{}{more}", shown.join(" ")));
        }
        let reason = reason.map(|reason| reason.name().to_owned());
        let ages = [self.older_than, self.newer_than].map(|age| age.map(|age| age.to_string()));
        for (name, value) in [
            ("group", group),
            ("reason", &reason),
            ("field", field),
            ("event", event),
            ("text", &text.as_ref().map(|_| "…".to_owned())),
            ("customer", &self.customer.as_ref().map(|_| "…".to_owned())),
            ("older than", &ages[0]),
            ("newer than", &ages[1]),
        ] {
            parts.extend(value.as_ref().map(|value| format!("{name} {value}")));
        }
        if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
    }
}

//! Events of one customer that go as one call, held against what the ledger has of the customer.
//! Nearly always it is one event.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::admit::Admitted;
use crate::domain::field::FieldSet;
use crate::domain::history::History;
use crate::domain::merge::{Candidate, Plan};
use crate::domain::retry::after;
use crate::domain::row::Row;
use crate::domain::update::Update;
use crate::domain::verdict::Verdict;
use crate::domain::version::{OrderBy, Version};
use crate::ledger::{Change, CustomerKey, Lease, Opened};

/// One event of a group.
pub(super) struct Member {
    pub(super) admitted: Box<Admitted>,
    pub(super) version: Version,
    /// Which of its fields are sent.
    pub(super) share: FieldSet,
}

impl Member {
    fn candidate(&self) -> Candidate<'_> {
        let Admitted { update, history, .. } = &*self.admitted;
        Candidate { version: &self.version, update, passage: history.passage() }
    }

    /// Which of its fields are not sent.
    pub(super) fn withheld(&self) -> FieldSet {
        self.admitted.update.fields().without(self.share)
    }
}

/// The events, and their customer's row.
pub(super) struct Group {
    pub(super) members: Vec<Member>,
    pub(super) key: CustomerKey,
    pub(super) row: Row,
    lease: Option<Lease>,
    /// The row is not what the ledger has.
    is_changed: bool,
    /// Nothing but the row tells when one of them was first received.
    must_announce: bool,
    by: OrderBy,
    settle_after: Duration,
}

impl Group {
    pub(super) fn new(
        head: Box<Admitted>,
        key: CustomerKey,
        opened: Opened,
        (by, settle_after): (OrderBy, Duration),
        now: Timestamp,
    ) -> Group {
        let (row, lease) = (Row::default(), None);
        let (members, is_changed, must_announce) = (Vec::with_capacity(1), false, false);
        let mut group =
            Group { members, key, row, lease, is_changed, must_announce, by, settle_after };
        group.reopen(opened, now);
        group.add(head, now);
        group
    }

    /// The event that came first.
    pub(super) fn head(&self) -> &Admitted {
        &self.members[0].admitted
    }

    pub(super) fn lease(&self) -> Option<Lease> {
        self.lease
    }

    /// The customer was read again.
    pub(super) fn reopen(&mut self, opened: Opened, now: Timestamp) {
        (self.row, self.lease, self.is_changed) = (opened.row, opened.lease, false);
        if opened.was_taken_over {
            self.row.mark(None, after(now, self.settle_after), now);
            self.is_changed = true;
        }
        for member in std::mem::take(&mut self.members) {
            self.add(member.admitted, now);
        }
    }

    /// One more goes along.
    pub(super) fn add(&mut self, mut admitted: Box<Admitted>, now: Timestamp) {
        let receipt = admitted.receipt();
        let first_seen = receipt.told.unwrap_or(admitted.history.first_seen);
        let version = self.row.version(&admitted.place, receipt, first_seen);
        if self.row.must_announce(&version, receipt, self.by) {
            self.row.announce(&version, self.by);
            (self.is_changed, self.must_announce) = (true, true);
        }
        if receipt.is_redelivery {
            let until = after(now, self.settle_after);
            self.row.mark(Some(&version.place.event), until, now);
            self.is_changed = true;
        }
        admitted.history.receipt = Some(version.receipt);
        self.members.push(Member { admitted, version, share: FieldSet::NONE });
    }

    /// What is to be sent for all of them; `None` if there is nothing that is newer than what the
    /// portal has.
    pub(super) fn plan(&mut self) -> Option<Arc<Update>> {
        let candidates: Vec<Candidate<'_>> = self.members.iter().map(Member::candidate).collect();
        let plan = Plan::new(&candidates, &self.row, self.by);
        let update = plan.update(&candidates);
        let is_empty = plan.is_empty();
        for (member, share) in self.members.iter_mut().zip(plan.shares) {
            member.share = share;
        }
        if is_empty {
            return None;
        }
        Some(update.map_or_else(|| Arc::clone(&self.head().update), Arc::new))
    }

    /// What must be committed before the call, if anything must.
    pub(super) fn announcement(&mut self, now: Timestamp) -> Option<Change> {
        if !std::mem::take(&mut self.must_announce) {
            return None;
        }
        let change = Change { keeps_lease: true, ..self.change(now) };
        self.is_changed = false;
        Some(change)
    }

    /// A call of theirs may be under way at the portal for a while yet.
    pub(super) fn mark_under_way(&mut self, now: Timestamp) {
        let event = match &self.members[..] {
            [one] => Some(one.version.place.event.clone()),
            _ => None,
        };
        self.row.mark(event.as_deref(), after(now, self.settle_after), now);
        self.is_changed = true;
    }

    /// Leaves the one that comes first in the customer's order, and gives the others back in that
    /// order: each is to go by itself.
    #[expect(clippy::vec_box, reason = "lanes hold boxes: what each task copies is a pointer")]
    pub(super) fn split(&mut self) -> Vec<Box<Admitted>> {
        let by = self.by;
        self.members.sort_by(|a, b| a.version.order(&b.version, by));
        for member in &mut self.members {
            member.admitted.goes_alone = true;
        }
        self.members.drain(1..).map(|member| member.admitted).collect()
    }

    /// The portal has what was sent.
    pub(super) fn record(&mut self, now: Timestamp) {
        for member in &self.members {
            self.row.record(&member.version, member.share, self.by);
        }
        self.row.lift_mark(now);
        self.is_changed = true;
    }

    /// One of them had nothing to send.
    pub(super) fn count_superseded(&mut self) {
        self.row.count_superseded();
        self.is_changed = true;
    }

    /// One verdict for each.
    pub(super) fn each(&self, verdict: impl Fn(&History) -> Verdict) -> Vec<Verdict> {
        self.members.iter().map(|member| verdict(&member.admitted.history)).collect()
    }

    pub(super) fn change_histories(&mut self, change: impl Fn(&mut History)) {
        self.members.iter_mut().for_each(|member| change(&mut member.admitted.history));
    }

    /// The version that keeps a member's fields from being sent.
    pub(super) fn superseding(&self, member: &Member) -> Option<&Version> {
        self.row.superseding(member.withheld(), self.by)
    }

    /// What is to be committed, without notes; the lease ends with it.
    pub(super) fn change(&self, now: Timestamp) -> Change {
        Change {
            customer: Some(self.key),
            row: self.is_changed.then(|| self.row.pack()),
            lease: self.lease,
            keeps_lease: false,
            at: now,
            notes: Vec::new(),
        }
    }
}

//! Events of one customer that go as one call, held against what the ledger has of the customer.
//! Nearly always it is one event.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::doubt::Lost;
use super::field::FieldSet;
use super::history::{History, NotBefore};
use super::merge::{Candidate, Plan};
use super::retry::{Tier, Tiers, after};
use super::row::{Passage, Receipt, Row, Seen};
use super::settlement::End;
use super::update::Update;
use super::verdict::Verdict;
use super::version::{OrderBy, Place, Version};

/// An event that only needs its turn.
#[derive(Debug)]
pub struct Event {
    /// Whose lane it goes in.
    pub customer: Arc<str>,
    /// Its place among its customer's events.
    pub place: Place,
    /// What is to be sent.
    pub update: Arc<Update>,
    /// What it went through.
    pub history: History,
    /// It was part of a merged call that was refused: now it is tried by itself.
    pub goes_alone: bool,
}

impl Event {
    /// Whether it may be sent in one call with others. What an operator or the relay itself has
    /// sent again goes by itself.
    pub fn may_merge(&self) -> bool {
        let is_plain = self.history.passage() == Passage::Newer && self.history.revision == 0;
        // Of a replay it is asked first whether it has come before.
        let is_replay = self.history.replay_id.is_some();
        is_plain && !is_replay && !self.goes_alone
    }

    /// See [`Waiting::moment`](super::lanes::Waiting::moment).
    pub fn moment(&self) -> Option<u64> {
        self.history.is_new.then(|| self.place.moment())
    }

    /// Whether somebody has had it in hand before, and not told what came of it.
    pub fn is_redelivery(&self) -> bool {
        self.history.returns > 0
    }

    /// Whether the ledger's gap covers it, as far as the message tells.
    pub fn is_covered(&self, lost: Option<Lost>) -> bool {
        let Receipt { told, is_redelivery } = self.receipt();
        lost.is_some_and(|lost| lost.covers_place(&self.place, told, is_redelivery))
    }

    /// What its delivery says of its first receipt.
    pub fn receipt(&self) -> Receipt {
        Receipt { told: self.history.receipt, is_redelivery: self.is_redelivery() }
    }
}

/// What carries an event: a delivery, for the worker.
pub trait Carrier {
    /// The event.
    fn event(&self) -> &Event;
    /// The same, to change what it went through.
    fn event_mut(&mut self) -> &mut Event;
}

/// One event of a group.
#[derive(Debug)]
pub struct Member<T> {
    /// What carries it.
    pub carrier: T,
    /// Its version.
    pub version: Version,
    /// Which of its fields are sent.
    pub share: FieldSet,
}

impl<T: Carrier> Member<T> {
    /// The event.
    pub fn event(&self) -> &Event {
        self.carrier.event()
    }

    fn candidate(&self) -> Candidate<'_> {
        let Event { update, history, .. } = self.event();
        Candidate { version: &self.version, update, passage: history.passage() }
    }

    /// Which of its fields are not sent.
    pub fn withheld(&self) -> FieldSet {
        self.event().update.fields().without(self.share)
    }
}

/// Whether an event was in doubt, since an older copy of the ledger was put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It is.
    Now,
    /// It is, and was counted before: it is sent again because an older call may have undone it.
    Again,
    /// It is not, but may have been when it came before.
    Past,
}

/// By which rules a group is ordered and marked.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// `order.by`
    pub by: OrderBy,
    /// `portal.settle_after`: how long a call that was given up may be under way.
    pub settle_after: Duration,
}

/// The events, and their customer's row.
#[derive(Debug)]
pub struct Group<T> {
    /// Never empty; the first one came first.
    pub members: Vec<Member<T>>,
    /// What the ledger has, or will have.
    pub row: Row,
    /// The row is not what the ledger has.
    is_changed: bool,
    /// Nothing but the row tells when one of them was first received.
    must_announce: bool,
    /// It may overwrite what was applied in the ledger's gap.
    is_in_doubt: bool,
    order: Order,
}

impl<T: Carrier> Group<T> {
    /// One event, held against its customer's row. `was_taken_over`: another relay may have a call of
    /// the customer under way.
    pub fn new(head: T, row: Row, was_taken_over: bool, order: Order, now: Timestamp) -> Group<T> {
        let mut group = Group {
            members: Vec::with_capacity(1),
            row: Row::default(),
            is_changed: false,
            must_announce: false,
            is_in_doubt: false,
            order,
        };
        group.reload(row, was_taken_over, now);
        group.add(head, now);
        group
    }

    /// The event that came first.
    pub fn head(&self) -> &T {
        &self.members[0].carrier
    }

    /// The customer was read again. A call of this turn that may be under way is not in the ledger
    /// yet.
    pub fn reload(&mut self, row: Row, was_taken_over: bool, now: Timestamp) {
        let before = std::mem::replace(&mut self.row, row);
        let is_shortened = self.row.shorten_marks(self.order.settle_after, now);
        self.is_changed = self.row.inherit_marks(&before, now) || is_shortened;
        if was_taken_over {
            self.row.mark(None, after(now, self.order.settle_after), now);
            self.is_changed = true;
        }
        for member in std::mem::take(&mut self.members) {
            self.add(member.carrier, now);
        }
        // Their first receipts have been told to nobody yet.
        if self.must_announce {
            self.members.iter().for_each(|one| self.row.announce(&one.version, self.order.by));
            self.is_changed = true;
        }
    }

    /// One more goes along.
    pub fn add(&mut self, mut carrier: T, now: Timestamp) {
        let event = carrier.event_mut();
        let receipt = event.receipt();
        let seen = Seen { first: event.history.first_seen, now };
        let version = self.row.version(&event.place, receipt, seen, self.order.by);
        if self.row.must_announce(&version, receipt, self.order.by) {
            self.row.announce(&version, self.order.by);
            (self.is_changed, self.must_announce) = (true, true);
        }
        if receipt.is_redelivery {
            let until = after(now, self.order.settle_after);
            self.row.mark(Some(&version.place.event), until, now);
            self.is_changed = true;
        }
        let mut version = version;
        let of_copies = self.members.iter().filter(|one| one.version.place == version.place);
        if let Some(first) = of_copies.map(|one| one.version.receipt).min() {
            version.receipt = version.receipt.min(first);
            self.receive_copies(&version);
        }
        event.history.receipt = Some(version.receipt);
        self.members.push(Member { carrier, version, share: FieldSet::NONE });
    }

    /// Copies of one event have the first receipt of them all.
    fn receive_copies(&mut self, version: &Version) {
        for copy in self.members.iter_mut().filter(|one| one.version.place == version.place) {
            copy.version.receipt = version.receipt;
            copy.carrier.event_mut().history.receipt = Some(version.receipt);
        }
    }

    /// What is to be sent for all of them; `None` if there is nothing that is newer than what the
    /// portal has.
    pub fn plan(&mut self) -> Option<Arc<Update>> {
        let candidates: Vec<Candidate<'_>> = self.members.iter().map(Member::candidate).collect();
        let plan = Plan::new(&candidates, &self.row, self.order.by);
        let update = plan.update(&candidates);
        let is_empty = plan.is_empty();
        for (member, share) in self.members.iter_mut().zip(plan.shares) {
            member.share = share;
        }
        if is_empty {
            return None;
        }
        Some(update.map_or_else(|| Arc::clone(&self.head().event().update), Arc::new))
    }

    /// Whether what is planned may overwrite what was applied in the ledger's gap. Events that a gap
    /// covers go alone: what is said of the first one is said of all.
    pub fn judge_doubt(&mut self, lost: Lost) -> bool {
        let row = &self.row;
        self.is_in_doubt = self.members.iter().any(|member| {
            let event = member.event();
            let (is_redelivery, history) = (event.is_redelivery(), &event.history);
            lost.doubts(&member.version, is_redelivery, (member.share, history.passage()), row)
        });
        self.is_in_doubt
    }

    /// What is to be noted of a member's doubt: nothing, that it is in doubt, or how it ended if it
    /// ever was.
    fn doubt(&self, member: &Member<T>, lost: Option<Lost>) -> Option<Doubt> {
        let is_redelivery = member.event().is_redelivery();
        let is_covered = lost.is_some_and(|lost| lost.covers(&member.version, is_redelivery));
        let is_again = member.event().history.is_resend;
        match (self.is_in_doubt, is_covered) {
            (true, _) if is_again => Some(Doubt::Again),
            (true, _) => Some(Doubt::Now),
            (false, true) => Some(Doubt::Past),
            (false, false) => None,
        }
    }

    /// Whether the row must be committed before the call: nothing else would remember when an event
    /// was first received.
    pub fn must_announce(&self) -> bool {
        self.must_announce
    }

    /// The row was committed.
    pub fn announced(&mut self) {
        (self.must_announce, self.is_changed) = (false, false);
    }

    /// A call of theirs may be under way at the portal for a while yet.
    pub fn mark_under_way(&mut self, now: Timestamp) {
        let event = match &self.members[..] {
            [one] => Some(one.version.place.event.clone()),
            _ => None,
        };
        self.row.mark(event.as_ref(), after(now, self.order.settle_after), now);
        self.is_changed = true;
    }

    /// Leaves the one that comes first in the customer's order, and gives the others back in that
    /// order: each is to go by itself.
    pub fn split(&mut self) -> Vec<T> {
        let by = self.order.by;
        self.members.sort_by(|a, b| a.version.order(&b.version, by));
        for member in &mut self.members {
            member.carrier.event_mut().goes_alone = true;
        }
        self.members.drain(1..).map(|member| member.carrier).collect()
    }

    /// The portal has what was sent.
    fn record(&mut self, now: Timestamp) {
        for member in &self.members {
            self.row.record(&member.version, member.share, self.order.by);
        }
        // One that had nothing to send beside a later one of its moment may come once more.
        for member in self.members.iter().filter(|member| member.share.is_empty()) {
            self.row.announce(&member.version, self.order.by);
        }
        self.row.lift_marks(now);
        self.is_changed = true;
    }

    /// What was not sent for its country's sake counts: nothing older is to take its place.
    fn record_withheld_pincodes(&mut self, verdicts: &[Verdict]) {
        for (member, verdict) in self.members.iter().zip(verdicts) {
            if matches!(verdict, Verdict::Applied | Verdict::Superseded) {
                let (update, by) = (&member.event().update, self.order.by);
                let passing = self.row.fence(&member.version, update.fields(), Passage::Newer, by);
                let withheld = passing.without(update.without_lone_pincode(passing));
                if !withheld.is_empty() {
                    self.row.record(&member.version, withheld, by);
                }
            }
        }
    }

    /// One of them had nothing to send.
    fn count_superseded(&mut self) {
        self.row.count_superseded();
        self.is_changed = true;
    }

    /// One verdict for each.
    pub fn each(&self, verdict: impl Fn(&History) -> Verdict) -> Vec<Verdict> {
        self.members.iter().map(|member| verdict(&member.event().history)).collect()
    }

    /// Changes what all of them went through.
    pub fn change_histories(&mut self, change: impl Fn(&mut History)) {
        self.members.iter_mut().for_each(|member| change(&mut member.carrier.event_mut().history));
    }

    /// The version that keeps a member's fields from being sent.
    pub fn superseding(&self, member: &Member<T>) -> Option<&Version> {
        self.row.superseding(member.withheld(), self.order.by)
    }

    /// The row, if it is not what the ledger has.
    pub fn changed_row(&self) -> Option<&Row> {
        self.is_changed.then_some(&self.row)
    }

    /// Ends the turn: what the portal has is recorded, and each member gets what follows from its
    /// verdict. `is_fenced`: a ledger keeps older events from overwriting newer ones.
    pub fn conclude(
        mut self,
        verdicts: Vec<Verdict>,
        (tiers, is_fenced): (&Tiers, bool),
        lost: Option<Lost>,
        now: Timestamp,
    ) -> Conclusion<T> {
        // Our clock may have been set during the call.
        self.is_changed |= self.row.shorten_marks(self.order.settle_after, now);
        if verdicts.contains(&Verdict::Applied) {
            self.record(now);
        }
        for _ in verdicts.iter().filter(|verdict| **verdict == Verdict::Superseded) {
            self.count_superseded();
        }
        self.record_withheld_pincodes(&verdicts);
        let follow = verdicts.first().and_then(Verdict::tier);
        let mut ends = Vec::with_capacity(verdicts.len());
        for (member, verdict) in std::mem::take(&mut self.members).into_iter().zip(verdicts) {
            let event = &member.version.place.event;
            // Without a ledger nothing would keep it from overwriting what is newer by then.
            let danger = match verdict {
                Verdict::Applied if is_fenced => self.row.endangered(event, now),
                _ => None,
            };
            let doubt = self.doubt(&member, lost);
            let history = &member.event().history;
            let resend = danger
                .map(|left| (tiers.at_least(left), history.resend(NotBefore::after(now, left))));
            let Member { carrier, version, .. } = member;
            let event = Some(version.place.event);
            let past = (verdict == Verdict::Applied).then(|| carrier.event().history.clone());
            ends.push(End { carrier, verdict, event, past, resend, doubt });
        }
        Conclusion { row: self.is_changed.then_some(self.row), ends, follow }
    }
}

/// What is to be done at the end of a turn.
#[derive(Debug)]
pub struct Conclusion<T> {
    /// To be recorded, if it has changed.
    pub row: Option<Row>,
    /// In the members' order.
    pub ends: Vec<End<T>>,
    /// Events that wait behind these follow to this tier, untried, so that they do not overtake.
    pub follow: Option<Tier>,
}

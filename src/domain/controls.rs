//! Control calls: an update that was applied is sent once more, to find out whether the portal takes
//! anything at all. One at a time, and ever more rarely while no event goes well.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::field::FieldSet;
use super::row::Row;
use super::update::Update;
use super::version::Version;

/// Updates kept that were applied, each of another customer.
const MAX_CANDIDATES: usize = 4;
/// They need not be the very latest.
const REMEMBER_EVERY: Duration = Duration::from_secs(1);
/// The gap after a control call; while no event goes well each further one is twice as long.
const FIRST_GAP: Duration = Duration::from_secs(1);
const LONGEST_GAP: Duration = Duration::from_secs(4);
/// A probe customer that fails while events go well is checked again after so long at first, each time
/// after twice as long.
const FIRST_CHECK_GAP: Duration = Duration::from_secs(10);
/// It is left out after so many failed checks in a row, until one goes well: a portal that has just
/// recovered may stumble.
pub(super) const UNFIT_AFTER: u32 = 2;
/// The same of checks that are throttled, which everybody may be now and then.
pub(super) const UNFIT_AFTER_THROTTLED: u32 = 4;
const LONGEST_CHECK_GAP: Duration = Duration::from_mins(10);

/// Whose update a control call may send (`outage.control_calls`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlCalls {
    /// The latest that were applied, or the probe customer's.
    Applied,
    /// The probe customer's alone.
    ProbeCustomer,
    /// Nobody's: no control call is made.
    Off,
}

/// An update that may be sent again as long as it is its customer's newest.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Whose.
    pub customer: Arc<str>,
    /// What is sent.
    pub update: Arc<Update>,
    /// The versions it consisted of; none for the probe customer's, which is nobody's event.
    pub versions: Vec<(Version, FieldSet)>,
}

impl Candidate {
    /// Whether it would overwrite nothing newer: the customer's row says so.
    pub fn is_newest(&self, row: &Row) -> bool {
        if self.versions.is_empty() {
            return self.update.fields().iter().all(|field| row.newest(field).is_none());
        }
        self.versions
            .iter()
            .all(|(version, fields)| fields.iter().all(|field| row.newest(field) == Some(version)))
    }
}

/// What is thought of the probe customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// A fault of its update is everybody's.
    Fit,
    /// Its update told nothing, or failed: others are asked rather, and once an event goes well, it is
    /// checked.
    Doubted,
    /// It proves nothing: it is only checked.
    Unfit,
}

/// Whether the probe customer is asked while events go well: then a fault is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    None,
    Due,
    UnderWay,
}

/// What can be sent, and when.
#[derive(Debug)]
pub struct Controls {
    setting: ControlCalls,
    probe_customer: Option<Candidate>,
    trust: Trust,
    check: Check,
    /// Checks in a row that did not go well, and when the next one may follow.
    failed_checks: u32,
    next_check: Option<Instant>,
    applied: VecDeque<Candidate>,
    remembered_at: Option<Instant>,
    /// Since an event last went well.
    made: u32,
    next_at: Option<Instant>,
    /// Since a call last went well.
    failed: u32,
    is_under_way: bool,
    /// All candidates' customers have events of their own in hand.
    is_busy: bool,
}

impl Controls {
    pub(super) fn new(setting: ControlCalls, probe_customer: Option<Arc<Update>>) -> Controls {
        let probe_customer = probe_customer.filter(|_| setting != ControlCalls::Off);
        let probe_customer = probe_customer.map(|update| Candidate {
            customer: update.entity_id().into(),
            update,
            versions: Vec::new(),
        });
        Controls {
            setting,
            probe_customer,
            trust: Trust::Fit,
            check: Check::None,
            failed_checks: 0,
            next_check: None,
            applied: VecDeque::new(),
            remembered_at: None,
            made: 0,
            next_at: None,
            failed: 0,
            is_under_way: false,
            is_busy: false,
        }
    }

    /// An update was applied.
    pub(super) fn remember(
        &mut self,
        now: Instant,
        candidate: impl FnOnce() -> Candidate,
        customer: &str,
    ) {
        if self.setting != ControlCalls::Applied {
            return;
        }
        if let Some(known) = self.applied.iter_mut().find(|known| &*known.customer == customer) {
            *known = candidate();
            return;
        }
        if self.remembered_at.is_some_and(|at| now.duration_since(at) < REMEMBER_EVERY) {
            return;
        }
        self.remembered_at = Some(now);
        if self.applied.len() == MAX_CANDIDATES {
            self.applied.pop_front();
        }
        self.applied.push_back(candidate());
    }

    /// A later update of this customer may have been applied: the kept one is not to be sent again.
    pub(super) fn forget(&mut self, customer: &str) {
        self.applied.retain(|known| &*known.customer != customer);
    }

    /// Whether there is anything to send now.
    pub(super) fn is_possible(&self) -> bool {
        self.probe().is_some() || !self.applied.is_empty()
    }

    /// Whether there can ever be anything to send.
    pub(super) fn can_be_made(&self) -> bool {
        self.setting == ControlCalls::Applied || self.probe_customer.is_some()
    }

    fn probe(&self) -> Option<&Candidate> {
        self.probe_customer.as_ref().filter(|_| self.trust != Trust::Unfit)
    }

    fn is_probe(&self, customer: &str) -> bool {
        self.probe_customer.as_ref().is_some_and(|probe| &*probe.customer == customer)
    }

    /// This customer's update told nothing, or failed.
    pub(super) fn doubt(&mut self, customer: &str) {
        if self.is_probe(customer) && self.trust == Trust::Fit {
            self.trust = Trust::Doubted;
        }
    }

    /// A control call with this customer's update failed: another one is asked rather.
    pub(super) fn distrust(&mut self, customer: &str) {
        self.doubt(customer);
        self.forget(customer);
    }

    /// Whether the probe customer is to be checked.
    pub(super) fn wants_check(&self) -> bool {
        self.check == Check::Due
    }

    /// The check of the probe customer did not go well. True if `most` in a row did not.
    pub(super) fn check_failed(&mut self, most: u32, now: Instant) -> bool {
        let gap =
            FIRST_CHECK_GAP.saturating_mul(1 << self.failed_checks.min(10)).min(LONGEST_CHECK_GAP);
        self.next_check = Some(now + gap);
        self.failed_checks += 1;
        self.failed_checks >= most
    }

    /// This customer's update proves nothing. True if it is the probe customer's, which is only checked
    /// from now on.
    pub(super) fn give_up(&mut self, customer: &str, now: Instant) -> bool {
        self.forget(customer);
        let is_probe = self.is_probe(customer);
        if is_probe {
            self.trust = Trust::Unfit;
            self.next_check = Some(now + LONGEST_CHECK_GAP);
        }
        is_probe
    }

    /// Whether a control call failed, and none went well since.
    pub(super) fn has_failed(&self) -> bool {
        self.failed > 0
    }

    /// The next candidate whose customer is free. The one that was asked first goes last.
    pub(super) fn next(&mut self, is_free: impl Fn(&Arc<str>) -> bool) -> Option<Candidate> {
        if self.check == Check::Due {
            let probe =
                self.probe_customer.as_ref().filter(|probe| is_free(&probe.customer)).cloned();
            if probe.is_none() {
                (self.check, self.is_busy) = (Check::None, true);
            }
            return probe;
        }
        let is_last = self.trust == Trust::Doubted && !self.applied.is_empty();
        let probe = self.probe().into_iter().filter(|_| !is_last);
        let found =
            probe.chain(self.applied.iter().rev()).find(|one| is_free(&one.customer)).cloned();
        self.is_busy = found.is_none();
        if let Some(found) = &found
            && let Some(index) = self.applied.iter().position(|one| one.customer == found.customer)
            && let Some(asked) = self.applied.remove(index)
        {
            self.applied.push_front(asked);
        }
        found
    }

    pub(super) fn begin(&mut self, candidate: &Candidate) {
        self.is_under_way = true;
        if self.check == Check::Due && self.is_probe(&candidate.customer) {
            self.check = Check::UnderWay;
        }
    }

    /// A control call was not made after all: what is held up by it need not wait for it.
    pub(super) fn give_back(&mut self) {
        self.end();
        self.is_busy = true;
    }

    /// Whether all that could be sent is of customers for whom this holds.
    pub(super) fn are_all(&self, holds: impl Fn(&str) -> bool) -> bool {
        self.probe().into_iter().chain(&self.applied).all(|one| holds(&one.customer))
    }

    /// A control call has ended. True if it was the check of the probe customer.
    pub(super) fn end(&mut self) -> bool {
        self.is_under_way = false;
        let was_check = self.check == Check::UnderWay;
        if was_check {
            self.check = Check::None;
        }
        was_check
    }

    /// It went well: the next one comes later, and ever later if it was no trial of a throttled portal:
    /// the throttle makes those rare.
    pub(super) fn succeeded(&mut self, customer: &str, was_trial: bool, now: Instant) {
        self.failed = 0;
        if self.is_probe(customer) {
            (self.trust, self.check) = (Trust::Fit, Check::None);
            (self.failed_checks, self.next_check) = (0, None);
        }
        self.made = if was_trial { 1 } else { self.made.saturating_add(1) };
        let gap = FIRST_GAP.saturating_mul(1 << (self.made - 1).min(10)).min(LONGEST_GAP);
        self.next_at = Some(now + gap);
    }

    /// It failed: another candidate, if there is one, is asked at once. True if there is none.
    pub(super) fn failed(&mut self, customer: &str) -> bool {
        self.failed += 1;
        self.distrust(customer);
        let is_other = |one: &Candidate| &*one.customer != customer;
        let has_other = self.applied.iter().any(is_other) || self.probe().is_some_and(is_other);
        self.failed > 1 || !has_other
    }

    /// It told nothing: not sooner than this again.
    pub(super) fn postpone(&mut self, until: Instant) {
        self.next_at = self.next_at.max(Some(until));
    }

    /// An event went well: they need not be ever rarer any more.
    pub(super) fn event_succeeded(&mut self, now: Instant) {
        (self.made, self.failed) = (0, 0);
        let may_check = self.next_check.is_none_or(|at| at <= now);
        if self.trust != Trust::Fit && self.check == Check::None && may_check {
            self.check = Check::Due;
        }
    }

    /// The outage that they spoke for is declared.
    pub(super) fn outage_declared(&mut self) {
        self.failed = 0;
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// Customers' lanes have moved on: one may be free now.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// When the next one may be made; `None` for now.
    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        self.next_at.filter(|at| *at > now)
    }
}

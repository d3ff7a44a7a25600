//! What comes before a call: the customer is read, the update planned, the gate passed, the lease
//! secured, and what nothing but the row would remember is committed.

use std::sync::Arc;
use std::time::Duration;

use super::{Action, Ending, InCall, Read, State, Step, Turn};
use crate::domain::doubt::OnDoubt;
use crate::domain::gate::Pass;
use crate::domain::group::{Carrier, Group};
use crate::domain::settlement::Committed;
use crate::domain::update::Update;
use crate::domain::verdict::Verdict;

impl<T: Carrier> Turn<T> {
    pub(super) fn read(
        &mut self,
        read: Read,
        mut pauses: std::slice::Iter<'static, Duration>,
        step: &mut Step<'_>,
    ) -> Action<T> {
        match read {
            Read::Ours { row, was_taken_over } => {
                let head = self.head.take().expect("the customer is read once");
                let (order, now) = (step.policy.order, step.moment.wall);
                self.group = Some(Group::new(head, row, was_taken_over, order, now));
                self.plan(step)
            }
            Read::Held => match pauses.next() {
                Some(pause) => {
                    self.state = State::Reading { pauses };
                    Action::Sleep(*pause)
                }
                None => Action::End(Ending::HandBackLane),
            },
            Read::Repeated => Action::End(Ending::Repeated),
            Read::Undecided => Action::End(Ending::HandBackLane),
            Read::Unreadable(error) => Action::End(Ending::Unreadable(error)),
            Read::Refused => Action::End(Ending::Unrecordable),
        }
    }

    /// What is to be sent, held against the row.
    pub(super) fn plan(&mut self, step: &mut Step<'_>) -> Action<T> {
        let group = self.group_mut();
        let Some(planned) = group.plan() else {
            return self.end_each(|_| Verdict::Superseded);
        };
        if let Some(lost) = step.moment.lost {
            let is_in_doubt = group.judge_doubt(lost);
            let is_held = step.policy.on_doubt == OnDoubt::Hold;
            if is_in_doubt && is_held && !group.head().event().history.doubt_accepted {
                return self.end_each(|history| Verdict::in_doubt(history, lost.gap));
            }
        }
        self.state = State::Asking(planned);
        Action::Pass
    }

    pub(super) fn permitted(
        &mut self,
        pass: Pass,
        planned: Arc<Update>,
        step: &Step<'_>,
    ) -> Action<T> {
        self.state = State::Securing(pass, planned);
        let head = self.first().event();
        let joins = step.policy.merges && head.may_merge() && !head.is_covered(step.moment.lost);
        Action::Secure { joins }
    }

    pub(super) fn secured(
        &mut self,
        (pass, planned): (Pass, Arc<Update>),
        read: Option<Read>,
        joined: Vec<T>,
        step: &mut Step<'_>,
    ) -> Action<T> {
        let wall = step.moment.wall;
        let mut is_as_planned = joined.is_empty();
        let group = self.group_mut();
        for carrier in joined {
            group.add(carrier, wall);
        }
        match read {
            None => {}
            Some(Read::Ours { row, was_taken_over }) => {
                group.reload(row, was_taken_over, wall);
                is_as_planned = false;
            }
            Some(
                Read::Held | Read::Repeated | Read::Undecided | Read::Unreadable(_) | Read::Refused,
            ) => {
                step.give_back(pass);
                return self.hand_back(step);
            }
        }
        let update = if is_as_planned { Some(planned) } else { group.plan() };
        let Some(update) = update else {
            step.give_back(pass);
            return self.end_each(|_| Verdict::Superseded);
        };
        if group.must_announce() {
            self.state = State::Announcing(pass, update);
            return Action::Announce;
        }
        self.call(pass, update)
    }

    pub(super) fn announced(
        &mut self,
        pass: Pass,
        update: Arc<Update>,
        committed: &Committed,
        step: &mut Step<'_>,
    ) -> Action<T> {
        match committed {
            Committed::Done => {
                self.group_mut().announced();
                // However long that took: the customer must still be ours.
                self.state = State::Securing(pass, update);
                Action::Secure { joins: false }
            }
            Committed::LeaseLost => {
                step.give_back(pass);
                self.hand_back(step)
            }
            Committed::Refused => {
                step.give_back(pass);
                self.end_each(Verdict::unrecordable)
            }
        }
    }

    fn call(&mut self, pass: Pass, update: Arc<Update>) -> Action<T> {
        self.state = State::Calling(InCall { pass, update: Arc::clone(&update), last: None });
        Action::Call(update)
    }
}

//! Whose fault was it? The gate's rules as sentences: the event's, the customer's, everybody's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use customer_relay::clock;
use customer_relay::domain::breaker::{Kind, OutagePolicy, State};
use customer_relay::domain::gate::{Gate, GatePolicy, Intake, News, Pass, Ruling, Standing};
use customer_relay::domain::response::{Judgement, Outcome, Scope};
use customer_relay::domain::witness::Call;

use crate::harness::{Context, suite};

suite!(NoBroker:
    three_faults_in_a_row_are_an_outage_of_their_kind,
    a_success_or_an_overtaking_one_clears_the_suspicion,
    one_customer_is_no_outage_but_three_refused_connections_are,
    an_outage_ends_with_an_answer_that_proves_the_portal_healthy,
    calls_that_were_under_way_when_it_began_count_nothing,
    probes_come_later_each_time_and_go_to_another_customer_each_time,
    after_an_outage_calls_ramp_up,
    a_throttled_portal_is_left_alone_as_long_as_it_asks,
    a_customer_who_is_throttled_alone_is_no_concern_of_others,
    a_rejection_is_final_only_between_two_successes,
    a_control_call_decides_when_everybody_is_rejected,
    an_operator_pauses_and_accepts_rejections,
);

const SECOND: Duration = Duration::from_secs(1);

/// A gate and a clock.
struct Bench {
    gate: Gate,
    now: Instant,
}

impl Bench {
    fn new() -> Bench {
        let max_probe_interval = SECOND * 30;
        let outage = OutagePolicy { threshold: 3, first_probe: SECOND, max_probe_interval };
        let policy = GatePolicy { outage, in_flight: 8, max_retry_after: SECOND * 3600 };
        Bench { gate: Gate::new(policy), now: clock::instant() }
    }

    /// A customer's event passes, if it may.
    fn begin(&mut self, customer: &str) -> Option<(Call, Pass)> {
        let customer: Arc<str> = customer.into();
        let ticket = self.gate.ask(&customer);
        if self.gate.wants_control(self.now) {
            self.gate.skip_control();
        }
        let Some((admitted, pass)) = self.gate.admit(self.now) else {
            self.gate.withdraw(ticket);
            return None;
        };
        assert_eq!(admitted, ticket, "somebody else was waiting");
        Some((Call { customer, started: self.now, credentials: 0 }, pass))
    }

    fn end(
        &mut self,
        (call, pass): &(Call, Pass),
        outcome: Outcome,
        retry_after: Option<Duration>,
    ) -> (Standing, Option<News>) {
        let (http_status, portal_status, message) = (None, None, None);
        let judgement = Judgement { outcome, http_status, portal_status, message, retry_after };
        self.gate.end(call, *pass, &judgement, (self.now, clock::now()), 1.0)
    }

    /// A whole call of ten milliseconds.
    fn call(&mut self, customer: &str, outcome: Outcome) -> (Standing, Option<News>) {
        let begun = self.begin(customer).expect("passes");
        self.now += Duration::from_millis(10);
        self.end(&begun, outcome, None)
    }

    fn is_closed(&self) -> bool {
        self.gate.state() == State::Closed
    }

    /// Opens the breaker.
    fn break_down(&mut self, kind: Kind) {
        let outcome = match kind {
            Kind::Unreachable => Outcome::Unreachable,
            Kind::Failing => Outcome::Failed,
            Kind::Credentials => Outcome::Unauthorized,
            Kind::Configuration => Outcome::Misrouted,
            Kind::RejectingAll => Outcome::Rejected,
            Kind::Throttled => {
                for n in 0..3 {
                    let begun = self.begin(&format!("T{n}")).expect("passes");
                    self.end(&begun, Outcome::Throttled, Some(SECOND * 40));
                }
                return;
            }
        };
        for n in 0..3 {
            self.call(&format!("B{n}"), outcome);
        }
        self.gate.control_is_impossible(self.now, 1.0);
    }
}

async fn three_faults_in_a_row_are_an_outage_of_their_kind(_: Context) -> Result<()> {
    for (outcome, kind) in [
        (Outcome::Unreachable, Kind::Unreachable),
        (Outcome::Failed, Kind::Failing),
        (Outcome::GatewayFailed, Kind::Failing),
        (Outcome::TimedOut, Kind::Failing),
        (Outcome::Interrupted, Kind::Failing),
        (Outcome::ContractViolation, Kind::Failing),
        (Outcome::Unauthorized, Kind::Credentials),
        (Outcome::Misrouted, Kind::Configuration),
        (Outcome::UnknownEntity, Kind::Configuration),
    ] {
        let mut bench = Bench::new();
        for customer in ["A", "B"] {
            let settled = (Standing::Settle(outcome.scope()), None);
            assert_eq!(bench.call(customer, outcome), settled, "{outcome:?}");
        }
        let opened = (Standing::Hold, Some(News::Opened(kind)));
        assert_eq!(bench.call("C", outcome), opened, "{outcome:?}");
        assert!(bench.begin("D").is_none(), "{outcome:?}: a call in an outage");
        assert_eq!(bench.gate.intake(), Intake::One);
    }
    Ok(())
}

async fn a_success_or_an_overtaking_one_clears_the_suspicion(_: Context) -> Result<()> {
    let mut bench = Bench::new();
    for n in 0..20 {
        bench.call(&format!("A{n}"), Outcome::Failed);
        bench.call(&format!("B{n}"), Outcome::Failed);
        bench.call("C", Outcome::Applied);
    }
    // Slow calls that fail while later ones go well.
    let slow: Vec<_> = (0..5).filter_map(|n| bench.begin(&format!("S{n}"))).collect();
    bench.now += SECOND;
    bench.call("C", Outcome::Applied);
    for call in &slow {
        bench.end(call, Outcome::TimedOut, None);
    }
    assert!(bench.is_closed());
    Ok(())
}

async fn one_customer_is_no_outage_but_three_refused_connections_are(_: Context) -> Result<()> {
    let mut bench = Bench::new();
    for outcome in [Outcome::Failed, Outcome::Unauthorized, Outcome::TimedOut, Outcome::Rejected] {
        for _ in 0..10 {
            bench.call("P", outcome);
        }
    }
    assert!(bench.is_closed(), "one poison customer");
    bench.call("P", Outcome::Unreachable);
    bench.call("P", Outcome::Misrouted);
    bench.call("P", Outcome::Rejected);
    bench.call("P", Outcome::GatewayFailed);
    bench.call("P", Outcome::GatewayFailed);
    assert!(bench.is_closed(), "not in a row");
    let (_, news) = bench.call("P", Outcome::Unreachable);
    assert_eq!(news, Some(News::Opened(Kind::Unreachable)));
    Ok(())
}

async fn an_outage_ends_with_an_answer_that_proves_the_portal_healthy(_: Context) -> Result<()> {
    for kind in Kind::ALL {
        for outcome in Outcome::ALL {
            let mut bench = Bench::new();
            bench.break_down(kind);
            assert!(!bench.is_closed(), "{kind:?}");
            bench.now += SECOND * 60;
            let probe = bench.begin("P").expect("a probe");
            assert_eq!(probe.1, Pass::Probe);
            bench.end(&probe, outcome, None);
            let hides_a_secret = matches!(kind, Kind::Credentials | Kind::RejectingAll);
            let proves_health = match outcome {
                Outcome::Applied | Outcome::DuplicateEmail => true,
                Outcome::Rejected => !hides_a_secret,
                Outcome::UnknownEntity => !hides_a_secret && kind != Kind::Configuration,
                _ => false,
            };
            assert_eq!(bench.is_closed(), proves_health, "{kind:?}, {outcome:?}");
        }
    }
    Ok(())
}

async fn calls_that_were_under_way_when_it_began_count_nothing(_: Context) -> Result<()> {
    let mut bench = Bench::new();
    let late: Vec<_> = (0..4).filter_map(|n| bench.begin(&format!("L{n}"))).collect();
    bench.break_down(Kind::Failing);
    for (call, outcome, standing) in [
        (&late[0], Outcome::Failed, Standing::Hold),
        (&late[1], Outcome::Rejected, Standing::Hold),
        (&late[2], Outcome::Throttled, Standing::Hold),
        (&late[3], Outcome::Applied, Standing::Settle(None)),
    ] {
        assert_eq!(bench.end(call, outcome, None), (standing, None), "{outcome:?}");
    }
    assert!(!bench.is_closed(), "what began before proves nothing");
    Ok(())
}

async fn probes_come_later_each_time_and_go_to_another_customer_each_time(
    _: Context,
) -> Result<()> {
    let mut bench = Bench::new();
    bench.break_down(Kind::Failing);
    let waiting: Vec<Arc<str>> = (0..5).map(|n| format!("W{n}").into()).collect();
    for customer in &waiting {
        bench.gate.ask(customer);
    }
    let (mut pauses, mut tickets) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        bench.gate.skip_control();
        let due = bench.gate.next_change(bench.now).expect("a probe is due");
        pauses.push(due.duration_since(bench.now).as_secs());
        bench.now += Duration::from_millis(pauses[pauses.len() - 1] * 1000 - 1);
        assert!(bench.gate.admit(bench.now).is_none(), "too early");
        bench.now = due;
        let (ticket, pass) = bench.gate.admit(bench.now).expect("a probe");
        assert!(bench.gate.admit(bench.now).is_none(), "one at a time");
        let customer = waiting[tickets.len() % 5].clone();
        tickets.push(ticket);
        let call = Call { customer: Arc::clone(&customer), started: bench.now, credentials: 0 };
        bench.end(&(call, pass), Outcome::Failed, None);
        bench.gate.ask(&customer);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    tickets.dedup();
    assert_eq!(tickets.len(), 8, "each probe is another event's");
    Ok(())
}

async fn after_an_outage_calls_ramp_up(_: Context) -> Result<()> {
    let mut bench = Bench::new();
    bench.break_down(Kind::Unreachable);
    bench.now += SECOND;
    let (_, news) = bench.call("P", Outcome::Applied);
    assert!(matches!(news, Some(News::Closed(Kind::Unreachable, _))));
    let mut rounds = Vec::new();
    while bench.gate.limit() < 8 {
        let round: Vec<_> = (0..8).filter_map(|n| bench.begin(&format!("C{n}"))).collect();
        rounds.push(round.len());
        for call in &round {
            bench.end(call, Outcome::Applied, None);
        }
    }
    assert_eq!(rounds, [1, 2, 4]);
    assert_eq!(bench.gate.intake(), Intake::Full);
    Ok(())
}

async fn a_throttled_portal_is_left_alone_as_long_as_it_asks(_: Context) -> Result<()> {
    let mut bench = Bench::new();
    let calls: Vec<_> = (0..8).filter_map(|n| bench.begin(&format!("C{n}"))).collect();
    for (call, asked) in calls.iter().zip([2, 3, 1, 2, 2, 2, 2, 2]) {
        let (standing, _) = bench.end(call, Outcome::Throttled, Some(SECOND * asked));
        assert_eq!(standing, Standing::HoldUntil(bench.now + SECOND * asked));
    }
    bench.now += Duration::from_millis(2999);
    assert!(bench.begin("C0").is_none(), "sooner than the longest wait asked for");
    bench.now += Duration::from_millis(1);
    let passed: Vec<_> = (0..8).filter_map(|n| bench.begin(&format!("C{n}"))).collect();
    assert_eq!(passed.len(), 4, "halved once");
    assert!(bench.is_closed());
    Ok(())
}

async fn a_customer_who_is_throttled_alone_is_no_concern_of_others(_: Context) -> Result<()> {
    let mut bench = Bench::new();
    let mut standings = Vec::new();
    for _ in 0..4 {
        bench.now += SECOND * 40;
        standings.push(matches!(bench.call("T", Outcome::Throttled).0, Standing::Settle(_)));
        bench.now += SECOND * 40;
        bench.call("A", Outcome::Applied);
        bench.call("B", Outcome::Applied);
    }
    assert_eq!(standings, [false, false, true, true]);

    // Calls that were under way with it all go well: nobody else has to wait.
    let mut bench = Bench::new();
    let calls: Vec<_> = (0..8).filter_map(|n| bench.begin(&format!("C{n}"))).collect();
    bench.end(&calls[0], Outcome::Throttled, Some(SECOND * 20));
    for call in &calls[1..6] {
        bench.end(call, Outcome::Applied, None);
        assert!(bench.begin("D").is_none(), "nobody knows yet");
    }
    bench.end(&calls[6], Outcome::Applied, None);
    assert!(bench.begin("D").is_some() && bench.gate.limit() == 8);
    Ok(())
}

async fn a_rejection_is_final_only_between_two_successes(_: Context) -> Result<()> {
    // Successes before and after, and how late: the ruling.
    for (before, after, ruling) in [
        (Some(100), Some(100), Some(Ruling::Final)),
        (Some(100), None, None),
        (None, Some(100), Some(Ruling::Hold)),
        (Some(1500), Some(100), Some(Ruling::Hold)),
        (Some(100), Some(1500), Some(Ruling::Hold)),
    ] {
        let mut bench = Bench::new();
        if let Some(before) = before {
            bench.call("W", Outcome::Applied);
            bench.now += Duration::from_millis(before);
        }
        let rejected = bench.begin("R").expect("passes");
        let (standing, _) = bench.end(&rejected, Outcome::Rejected, None);
        assert_eq!(standing, Standing::Settle(Some(Scope::Message)));
        let doubt = bench.gate.doubt(&rejected.0, bench.now, false);
        assert_eq!(bench.gate.ruling(&doubt), None);
        if let Some(after) = after {
            bench.now += Duration::from_millis(after);
            bench.call("W", Outcome::Applied);
        }
        assert_eq!(bench.gate.ruling(&doubt), ruling, "{before:?}, {after:?}");
    }
    // With other credentials a success says nothing.
    let mut bench = Bench::new();
    let rejected = bench.begin("R").expect("passes");
    bench.end(&rejected, Outcome::Rejected, None);
    let doubt = bench.gate.doubt(&rejected.0, bench.now, false);
    let (call, pass) = bench.begin("W").expect("passes");
    bench.end(&(Call { credentials: 1, ..call }, pass), Outcome::Applied, None);
    assert_eq!(bench.gate.ruling(&doubt), None);
    Ok(())
}

async fn a_control_call_decides_when_everybody_is_rejected(_: Context) -> Result<()> {
    let rejected = |bench: &mut Bench| {
        let calls = ["A", "B", "C"].map(|customer| bench.begin(customer).expect("passes"));
        for call in &calls {
            bench.end(call, Outcome::Rejected, None);
        }
        bench.gate.doubt(&calls[2].0, bench.now, false)
    };
    let control = |bench: &mut Bench, outcome| {
        let pass = bench.gate.admit_control(bench.now).expect("passes");
        let call = Call { customer: "W".into(), started: bench.now, credentials: 0 };
        bench.end(&(call, pass), outcome, None)
    };
    let mut bench = Bench::new();
    let doubt = rejected(&mut bench);
    assert!(bench.is_closed(), "not before it was asked");
    assert_eq!(bench.gate.ruling(&doubt), Some(Ruling::Ask));
    control(&mut bench, Outcome::Applied);
    assert_eq!(bench.gate.ruling(&doubt), Some(Ruling::Hold), "one of many: called once more");
    let again = bench.begin("C").expect("passes");
    bench.end(&again, Outcome::Rejected, None);
    let doubt = bench.gate.doubt(&again.0, bench.now, true);
    control(&mut bench, Outcome::Applied);
    assert_eq!(bench.gate.ruling(&doubt), Some(Ruling::Final));

    let mut bench = Bench::new();
    let doubt = rejected(&mut bench);
    let (_, news) = control(&mut bench, Outcome::Rejected);
    assert_eq!(news, Some(News::Opened(Kind::RejectingAll)));
    assert_eq!(bench.gate.ruling(&doubt), Some(Ruling::Hold));

    let mut bench = Bench::new();
    bench.call("A", Outcome::Rejected);
    assert_eq!(bench.gate.control_is_impossible(bench.now, 1.0), None, "one is not everybody");
    rejected(&mut bench);
    let news = bench.gate.control_is_impossible(bench.now, 1.0);
    assert_eq!(news, Some(News::Opened(Kind::RejectingAll)));
    Ok(())
}

async fn an_operator_pauses_and_accepts_rejections(_: Context) -> Result<()> {
    let mut bench = Bench::new();
    bench.gate.set_paused(true);
    assert!(bench.begin("A").is_none() && bench.gate.admit_control(bench.now).is_none());
    assert_eq!(bench.gate.intake(), Intake::Nothing);
    bench.gate.set_paused(false);
    bench.break_down(Kind::RejectingAll);
    let news = bench.gate.set_accepts_rejections(true, bench.now);
    assert!(matches!(news, Some(News::Closed(Kind::RejectingAll, _))));
    for n in 0..10 {
        let (standing, _) = bench.call(&format!("R{n}"), Outcome::Rejected);
        assert_eq!(standing, Standing::Settle(Some(Scope::Message)));
    }
    assert!(bench.is_closed());
    Ok(())
}

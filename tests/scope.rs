//! Whose fault was it? The gate's rules as sentences: the event's, the customer's, everybody's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use customer_relay::clock;
use customer_relay::config::{Config, Layers, Needs, Sources};
use customer_relay::domain::breaker::{Kind, OutagePolicy, State};
use customer_relay::domain::controls::{Candidate, ControlCalls};
use customer_relay::domain::faults::{Call, FaultId, FaultPolicy, Finding, Proof};
use customer_relay::domain::field::PerField;
use customer_relay::domain::gate::{Attribution, Control, Gate, GatePolicy, Intake, News, Pass};
use customer_relay::domain::outcome::Outcome;
use customer_relay::domain::response::Judgement;
use customer_relay::domain::update::Update;

use crate::harness::{Context, suite};

suite!(NoBroker:
    three_customers_faults_are_an_outage_if_a_control_call_fails_too,
    a_good_control_call_makes_each_fault_its_events_own,
    without_a_control_call_three_customers_are_an_outage_and_one_waits,
    credentials_that_never_went_well_are_an_outage_at_the_first_rejection,
    a_success_clears_the_suspicion,
    one_customer_is_no_outage_but_three_refused_connections_are,
    an_outage_ends_with_an_answer_that_proves_the_portal_healthy,
    calls_that_were_under_way_when_it_began_count_nothing,
    probes_come_later_each_time_and_go_to_another_customer_each_time,
    an_outage_soon_after_another_goes_on_with_its_pauses,
    after_an_outage_calls_ramp_up,
    a_throttled_portal_gets_one_call_before_its_time,
    a_portal_that_throttles_by_customer_holds_up_nobody_else,
    one_customer_that_is_to_wait_for_long_slows_nobody_and_comes_to_an_end,
    a_control_call_that_fails_while_events_go_well_is_no_outage,
    a_rejection_is_final_at_once_only_between_two_successes,
    control_calls_become_rare_while_no_event_goes_well,
    an_operator_pauses_and_accepts_rejections,
    by_an_operators_word_a_rejected_probe_customer_proves_nothing,
);

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// A gate and a clock.
struct Bench {
    gate: Gate,
    now: Instant,
}

fn update() -> Arc<Update> {
    let sources = Sources { file: None, environment: Vec::new(), flags: Vec::new() };
    let config = Layers::new(&sources).expect("the defaults are layers");
    let config = Config::load(&config, Needs::Broker).expect("the defaults are a configuration");
    let raw = PerField::from_fn(|field| {
        matches!(field.name(), "entity_id" | "city").then(|| "Kochi".into())
    });
    Arc::new(config.rules.fields.validate(&raw).expect("valid"))
}

impl Bench {
    fn new() -> Bench {
        Bench::with_probe(None)
    }

    fn with_probe(probe: Option<Arc<Update>>) -> Bench {
        let outage = OutagePolicy { first_probe: SECOND, max_probe_interval: SECOND * 30 };
        let faults = FaultPolicy { threshold: 3, patience: PATIENCE, longest: SECOND * 120 };
        let control_calls = ControlCalls::Applied;
        let policy = GatePolicy { outage, faults, control_calls, in_flight: 8 };
        Bench { gate: Gate::new(policy, probe), now: clock::instant() }
    }

    /// One in which a customer's update can be sent again.
    fn with_candidates(customers: &[&str]) -> Bench {
        let mut bench = Bench::new();
        for customer in customers {
            bench.call(customer, Outcome::Applied);
            bench.remember(customer);
            bench.now += SECOND * 2;
        }
        bench
    }

    fn remember(&mut self, customer: &str) {
        let (name, update, versions) = (customer.into(), update(), Vec::new());
        let candidate = || Candidate { customer: name, update, versions };
        self.gate.remember(self.now, customer, candidate);
    }

    /// A customer's event passes, if it may.
    fn begin(&mut self, customer: &str) -> Option<(Call, Pass)> {
        let customer: Arc<str> = customer.into();
        let ticket = self.gate.ask(&customer);
        let Some((admitted, pass)) = self.gate.admit(self.now) else {
            self.gate.withdraw(ticket);
            return None;
        };
        assert_eq!(admitted, ticket, "somebody else was waiting");
        Some((Call::new(customer, self.now, 0), pass))
    }

    fn end(
        &mut self,
        (call, pass): &(Call, Pass),
        outcome: Outcome,
        retry_after: Option<Duration>,
    ) -> (Attribution, Option<News>) {
        let (http_status, portal_status, message) = (None, None, None);
        let judgement = Judgement { outcome, http_status, portal_status, message, retry_after };
        self.gate.end(call, *pass, &judgement, (self.now, clock::now()), 1.0)
    }

    /// A whole call of ten milliseconds.
    fn call(&mut self, customer: &str, outcome: Outcome) -> (Attribution, Option<News>) {
        let begun = self.begin(customer).expect("passes");
        self.now += Duration::from_millis(10);
        self.end(&begun, outcome, None)
    }

    /// A call that opens a fault.
    fn fault(&mut self, customer: &str, outcome: Outcome) -> FaultId {
        match self.call(customer, outcome) {
            (Attribution::Open(fault), None) => fault,
            other => panic!("{outcome:?}: {other:?}"),
        }
    }

    /// The control call that is due, if there is one: who was asked, and what came of it.
    fn control(&mut self, outcome: Outcome) -> (Option<Arc<str>>, Option<News>) {
        let (control, news) = self.gate.control((self.now, clock::now()), 1.0, |_| true);
        let Control::Call(candidate, pass) = control else { return (None, news) };
        let call = Call::new(Arc::clone(&candidate.customer), self.now, 0);
        self.now += Duration::from_millis(10);
        let (_, news) = self.end(&(call, pass), outcome, None);
        (Some(candidate.customer), news)
    }

    fn finding(&self, fault: FaultId) -> Finding {
        self.gate.finding(fault, self.now)
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
                for n in 0..4 {
                    let begun = self.begin(&format!("T{n}")).expect("the last one is the trial");
                    self.end(&begun, Outcome::Throttled, Some(SECOND * 40));
                    self.now += SECOND;
                }
                return;
            }
        };
        for n in 0..3 {
            self.call(&format!("B{n}"), outcome);
        }
        self.control(Outcome::Failed);
    }
}

/// Faults of everybody's, and what they are an outage of.
const FAULTS: [(Outcome, Kind); 9] = [
    (Outcome::Failed, Kind::Failing),
    (Outcome::GatewayFailed, Kind::Failing),
    (Outcome::TimedOut, Kind::Failing),
    (Outcome::Interrupted, Kind::Failing),
    (Outcome::ContractViolation, Kind::Failing),
    (Outcome::Unauthorized, Kind::Credentials),
    (Outcome::Misrouted, Kind::Configuration),
    (Outcome::UnknownEntity, Kind::Configuration),
    (Outcome::Rejected, Kind::RejectingAll),
];

async fn three_customers_faults_are_an_outage_if_a_control_call_fails_too(
    _: Context,
) -> Result<()> {
    for (outcome, kind) in FAULTS {
        let mut bench = Bench::with_candidates(&["V", "W"]);
        let faults = ["A", "B", "C"].map(|customer| bench.fault(customer, outcome));
        assert!(bench.gate.is_suspended() && bench.is_closed(), "{outcome:?}");
        assert!(bench.begin("D").is_none(), "{outcome:?}: a call while nobody knows");
        // One that fails may have a fault of its own: another one is asked.
        let (first, news) = bench.control(outcome);
        assert_eq!((first.as_deref(), news), (Some("W"), None), "{outcome:?}");
        let (second, news) = bench.control(outcome);
        assert_eq!((second.as_deref(), news), (Some("V"), Some(News::Opened(kind))));
        assert!(bench.begin("D").is_none(), "{outcome:?}: a call in an outage");
        assert_eq!(bench.gate.intake(), Intake::One);
        for fault in faults {
            assert_eq!(bench.finding(fault), Finding::CallAgain, "{outcome:?}: counted");
        }
    }
    Ok(())
}

async fn a_good_control_call_makes_each_fault_its_events_own(_: Context) -> Result<()> {
    for (outcome, _) in FAULTS {
        let mut bench = Bench::with_candidates(&["W"]);
        bench.now += SECOND * 5;
        let faults = ["A", "B", "C"].map(|customer| bench.fault(customer, outcome));
        assert_eq!(bench.control(Outcome::Applied), (Some("W".into()), None));
        for fault in faults {
            assert_eq!(bench.finding(fault), Finding::Refuted(Proof::Later), "{outcome:?}");
            bench.gate.take_fault(fault);
        }
        assert!(bench.begin("D").is_some(), "{outcome:?}: suspended for nothing");
        // A lone one is patient first: traffic may tell.
        let lone = bench.fault("A", outcome);
        assert_eq!(bench.control(Outcome::Applied).0, None);
        bench.now += PATIENCE;
        assert_eq!(bench.finding(lone), Finding::Open);
        assert_eq!(bench.control(Outcome::Applied), (Some("W".into()), None));
        assert_eq!(bench.finding(lone), Finding::Refuted(Proof::Later), "{outcome:?}");
    }
    Ok(())
}

async fn without_a_control_call_three_customers_are_an_outage_and_one_waits(
    _: Context,
) -> Result<()> {
    for (outcome, kind) in FAULTS {
        let mut bench = Bench::new();
        // These credentials have gone well.
        bench.call("W", Outcome::Applied);
        bench.now += SECOND;
        let lone = bench.fault("A", outcome);
        bench.now += PATIENCE;
        assert_eq!(bench.control(Outcome::Applied), (None, None), "{outcome:?}");
        assert_eq!(bench.finding(lone), Finding::Untellable, "{outcome:?}");
        bench.gate.take_fault(lone);
        for customer in ["A", "B", "C"] {
            bench.fault(customer, outcome);
        }
        assert_eq!(bench.control(Outcome::Applied), (None, Some(News::Opened(kind))));
    }
    Ok(())
}

async fn credentials_that_never_went_well_are_an_outage_at_the_first_rejection(
    _: Context,
) -> Result<()> {
    for (outcome, kind) in
        [(Outcome::Rejected, Kind::RejectingAll), (Outcome::Unauthorized, Kind::Credentials)]
    {
        let mut bench = Bench::new();
        bench.fault("A", outcome);
        bench.now += PATIENCE;
        assert_eq!(bench.control(Outcome::Applied), (None, Some(News::Opened(kind))));
    }
    Ok(())
}

async fn a_success_clears_the_suspicion(_: Context) -> Result<()> {
    let mut bench = Bench::with_candidates(&["W"]);
    for n in 0..20 {
        bench.fault(&format!("A{n}"), Outcome::Failed);
        bench.fault(&format!("B{n}"), Outcome::Failed);
        bench.call("C", Outcome::Applied);
    }
    // A success that began before a fault ended clears the suspicion, and refutes nothing.
    let slow: Vec<_> = (0..3).filter_map(|n| bench.begin(&format!("S{n}"))).collect();
    let overtaking = bench.begin("C").expect("passes");
    bench.now += SECOND;
    let faults: Vec<FaultId> = slow
        .iter()
        .filter_map(|call| match bench.end(call, Outcome::TimedOut, None).0 {
            Attribution::Open(fault) => Some(fault),
            _ => None,
        })
        .collect();
    assert!(bench.gate.is_suspended());
    bench.now += Duration::from_millis(1);
    bench.end(&overtaking, Outcome::Applied, None);
    assert!(!bench.gate.is_suspended() && bench.is_closed());
    assert!(faults.iter().all(|fault| bench.finding(*fault) == Finding::Open));
    Ok(())
}

async fn one_customer_is_no_outage_but_three_refused_connections_are(_: Context) -> Result<()> {
    let mut bench = Bench::with_candidates(&["W"]);
    for outcome in [Outcome::Failed, Outcome::Unauthorized, Outcome::TimedOut, Outcome::Rejected] {
        for _ in 0..10 {
            bench.fault("P", outcome);
        }
    }
    assert!(bench.is_closed() && !bench.gate.is_suspended(), "one poison customer");
    for outcome in [Outcome::Unreachable, Outcome::Unreachable, Outcome::Misrouted] {
        bench.fault("P", outcome);
    }
    bench.fault("P", Outcome::Unreachable);
    bench.fault("P", Outcome::Unreachable);
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
    for (call, outcome, attribution) in [
        (&late[0], Outcome::Failed, Attribution::Again),
        (&late[1], Outcome::Rejected, Attribution::Again),
        (&late[2], Outcome::Throttled, Attribution::Again),
        (&late[3], Outcome::Applied, Attribution::Applied),
    ] {
        assert_eq!(bench.end(call, outcome, None), (attribution, None), "{outcome:?}");
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
        let due = bench.gate.next_change(bench.now).expect("a probe is due");
        pauses.push(due.duration_since(bench.now).as_secs());
        bench.now += Duration::from_millis(pauses[pauses.len() - 1] * 1000 - 1);
        assert!(bench.gate.admit(bench.now).is_none(), "too early");
        bench.now = due;
        bench.control(Outcome::Failed);
        let (ticket, pass) = bench.gate.admit(bench.now).expect("a probe");
        assert!(bench.gate.admit(bench.now).is_none(), "one at a time");
        let customer = waiting[tickets.len() % 5].clone();
        tickets.push(ticket);
        let call = Call::new(Arc::clone(&customer), bench.now, 0);
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

async fn an_outage_soon_after_another_goes_on_with_its_pauses(_: Context) -> Result<()> {
    let mut pauses = Vec::new();
    let mut bench = Bench::new();
    for after in [0, 60, 60, 601] {
        bench.now += SECOND * after;
        bench.break_down(Kind::Unreachable);
        bench.gate.ask(&"P".into());
        let due = bench.gate.next_change(bench.now).expect("a probe is due");
        pauses.push(due.duration_since(bench.now).as_secs());
        bench.now = due;
        let (_, pass) = bench.gate.admit(bench.now).expect("a probe");
        let call = Call::new("P".into(), bench.now, 0);
        bench.end(&(call, pass), Outcome::Applied, None);
        assert!(bench.is_closed());
    }
    assert_eq!(pauses, [1, 2, 4, 1]);
    Ok(())
}

async fn a_throttled_portal_gets_one_call_before_its_time(_: Context) -> Result<()> {
    let mut bench = Bench::new();
    let calls: Vec<_> = (0..8).filter_map(|n| bench.begin(&format!("C{n}"))).collect();
    for (call, asked) in calls.iter().zip([2, 3, 1, 2, 2, 2, 2, 2]) {
        let (attribution, _) = bench.end(call, Outcome::Throttled, Some(SECOND * asked));
        assert_eq!(attribution, Attribution::AgainAt(bench.now + SECOND * asked));
    }
    bench.now += Duration::from_millis(999);
    assert!(bench.begin("D").is_none(), "sooner than the trial");
    bench.now += Duration::from_millis(1);
    assert!(bench.begin("C0").is_none(), "a customer that was throttled makes no trial");
    let trial = bench.begin("D").expect("the trial");
    assert!(bench.begin("E").is_none(), "one is enough");
    bench.end(&trial, Outcome::Throttled, Some(SECOND));
    bench.now += Duration::from_millis(1999);
    assert!(bench.begin("E").is_none(), "sooner than the longest wait asked for");
    bench.now += Duration::from_millis(1);
    let passed: Vec<_> = (0..8).filter_map(|n| bench.begin(&format!("C{n}"))).collect();
    assert!(passed.len() <= 4, "halved");
    assert!(bench.is_closed());
    Ok(())
}

async fn a_portal_that_throttles_by_customer_holds_up_nobody_else(_: Context) -> Result<()> {
    // Trials that go well open the gate at once; after two of them it closes to nobody.
    let mut bench = Bench::new();
    for n in 0..2 {
        let begun = bench.begin(&format!("T{n}")).expect("passes");
        bench.end(&begun, Outcome::Throttled, Some(SECOND * 20));
        assert!(bench.begin("A").is_none(), "nobody knows yet");
        bench.now += SECOND;
        let (_, news) = bench.call("A", Outcome::Applied);
        assert_eq!(news, Some(News::ThrottledAlone));
        assert!(bench.begin("B").is_some(), "open again");
    }
    for n in 2..40 {
        let begun = bench.begin(&format!("T{n}"));
        if let Some(begun) = begun {
            let (attribution, _) = bench.end(&begun, Outcome::Throttled, Some(SECOND * 20));
            assert_eq!(attribution, Attribution::Wait);
        }
        bench.now += Duration::from_millis(100);
        bench.call("A", Outcome::Applied);
    }
    // One that gets them again and again uses up its attempts.
    let mut own = 0;
    for _ in 0..5 {
        bench.now += SECOND * 20;
        let begun = bench.begin("T2").expect("passes");
        let (attribution, _) = bench.end(&begun, Outcome::Throttled, Some(SECOND * 20));
        own += usize::from(attribution == Attribution::Own);
        bench.call("A", Outcome::Applied);
    }
    assert!(own >= 3, "{own} attempts counted");

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

async fn one_customer_that_is_to_wait_for_long_slows_nobody_and_comes_to_an_end(
    _: Context,
) -> Result<()> {
    let mut bench = Bench::with_probe(Some(update()));
    let limit = bench.gate.limit();
    let mut ends = Vec::new();
    for _ in 0..3 {
        let begun = bench.begin("T").expect("passes");
        ends.push(bench.end(&begun, Outcome::Throttled, Some(SECOND * 60)).0);
        assert!(bench.begin("D").is_some(), "others wait");
        bench.now += SECOND;
        // There is no traffic: only so is it known that others are not throttled.
        let is_asked = bench.control(Outcome::Applied).0.is_some();
        assert_eq!(is_asked, ends.len() < 3);
        bench.now += SECOND * 60;
    }
    assert_eq!(ends, [Attribution::Wait, Attribution::Wait, Attribution::Own]);
    assert_eq!(bench.gate.limit(), limit);
    Ok(())
}

async fn a_control_call_that_fails_while_events_go_well_is_no_outage(_: Context) -> Result<()> {
    let mut bench = Bench::with_probe(Some(update()));
    bench.fault("A", Outcome::Rejected);
    bench.now += PATIENCE;
    let (control, _) = bench.gate.control((bench.now, clock::now()), 1.0, |_| true);
    let Control::Call(candidate, pass) = control else { panic!("none is due") };
    let call = Call::new(candidate.customer, bench.now, 0);
    bench.now += SECOND;
    bench.call("B", Outcome::Applied);
    bench.now += SECOND * 29;
    let (_, news) = bench.end(&(call, pass), Outcome::TimedOut, None);
    assert!(news.is_none() && bench.is_closed(), "{news:?}");
    Ok(())
}

async fn a_rejection_is_final_at_once_only_between_two_successes(_: Context) -> Result<()> {
    // Successes before and after, and how late: what they prove.
    for (before, after, proof) in [
        (Some(100), Some(100), Some(Proof::Close)),
        (Some(100), None, None),
        (None, Some(100), Some(Proof::Later)),
        (Some(1500), Some(100), Some(Proof::Later)),
        (Some(100), Some(1500), Some(Proof::Later)),
    ] {
        let mut bench = Bench::new();
        if let Some(before) = before {
            bench.call("W", Outcome::Applied);
            bench.now += Duration::from_millis(before);
        }
        let fault = bench.fault("R", Outcome::Rejected);
        assert_eq!(bench.finding(fault), Finding::Open);
        if let Some(after) = after {
            bench.now += Duration::from_millis(after);
            bench.call("W", Outcome::Applied);
        }
        let finding = proof.map_or(Finding::Open, Finding::Refuted);
        assert_eq!(bench.finding(fault), finding, "{before:?}, {after:?}");
    }
    // With other credentials a success says only that it is worth another call.
    let mut bench = Bench::new();
    let fault = bench.fault("R", Outcome::Rejected);
    let (call, pass) = bench.begin("W").expect("passes");
    bench.end(&(Call { credentials: 1, ..call }, pass), Outcome::Applied, None);
    assert_eq!(bench.finding(fault), Finding::CallAgain);
    Ok(())
}

async fn control_calls_become_rare_while_no_event_goes_well(_: Context) -> Result<()> {
    let mut bench = Bench::with_candidates(&["W"]);
    let start = bench.now;
    let mut times = Vec::new();
    for n in 0..600 {
        for customer in ["A", "B", "C"] {
            if let Some(begun) = bench.begin(&format!("{customer}{n}")) {
                bench.end(&begun, Outcome::Failed, None);
            }
        }
        if bench.control(Outcome::Applied).0.is_some() {
            times.push(bench.now.duration_since(start).as_secs());
        }
        bench.now += Duration::from_millis(100);
    }
    assert!(bench.is_closed(), "evidence against an outage, and yet one");
    assert!((10..=17).contains(&times.len()), "{times:?}");
    Ok(())
}

async fn an_operator_pauses_and_accepts_rejections(_: Context) -> Result<()> {
    let mut bench = Bench::new();
    bench.gate.set_paused(true);
    assert!(bench.begin("A").is_none() && !bench.gate.wants_control(bench.now));
    assert_eq!(bench.gate.intake(), Intake::Nothing);
    bench.gate.set_paused(false);
    bench.break_down(Kind::RejectingAll);
    let news = bench.gate.set_accepts_rejections(true, bench.now);
    assert!(matches!(news, Some(News::Closed(Kind::RejectingAll, _))));
    for n in 0..10 {
        let (attribution, _) = bench.call(&format!("R{n}"), Outcome::Rejected);
        assert_eq!(attribution, Attribution::Own);
    }
    assert!(bench.is_closed());
    Ok(())
}

/// The portal rejects the probe customer too: by the operator's word that is the fault of its update.
async fn by_an_operators_word_a_rejected_probe_customer_proves_nothing(_: Context) -> Result<()> {
    let mut bench = Bench::with_probe(Some(update()));
    for customer in ["A", "B", "C"] {
        bench.fault(customer, Outcome::Rejected);
    }
    assert_eq!(bench.control(Outcome::Rejected).1, Some(News::Opened(Kind::RejectingAll)));
    assert!(bench.gate.set_accepts_rejections(true, bench.now).is_some());
    let mut controls = 0;
    for n in 0..600 {
        bench.call(&format!("R{n}"), Outcome::Rejected);
        bench.call(&format!("G{n}"), Outcome::Applied);
        while bench.gate.wants_control(bench.now) {
            let (control, _) = bench.gate.control((bench.now, clock::now()), 1.0, |_| true);
            let Control::Call(candidate, pass) = control else { break };
            controls += 1;
            assert!(controls < 100, "one control call after another");
            let call = Call::new(candidate.customer, bench.now, 0);
            bench.end(&(call, pass), Outcome::Rejected, None);
        }
        bench.now += Duration::from_millis(100);
    }
    assert!(bench.is_closed() && (1..=3).contains(&controls), "{controls} control calls");
    Ok(())
}

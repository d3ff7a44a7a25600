//! Makes a trial of each test on each broker there is, starts a broker or a PostgreSQL when its
//! first trial needs it, and leaves nothing behind.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use crate::repeat::{repeated, runs};
use crate::support::bed::Bed;
use crate::support::broker::{self, Broker, Kind, Source};
use crate::support::postgres::{self, Postgres};
use crate::support::traffic::is_long;

/// Trials at once: most of a test is waiting.
const TEST_THREADS: usize = 4;

/// A test's function.
pub type Run = fn(Context) -> Pin<Box<dyn Future<Output = Result<()>>>>;

/// What a test needs of a broker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// None: it runs once.
    NoBroker,
    /// One to share with others.
    Broker,
    /// One to share, and `rabbitmqctl`.
    ManagedBroker,
    /// One for itself, to kill.
    OwnBroker,
    /// One to share, and a PostgreSQL to share.
    Postgres,
    /// One to share, and a PostgreSQL for itself, to kill.
    OwnPostgres,
    /// No broker, but a PostgreSQL to share: it runs once.
    PostgresAlone,
}

impl Needs {
    fn postgres(self) -> bool {
        matches!(self, Needs::Postgres | Needs::OwnPostgres | Needs::PostgresAlone)
    }

    fn broker(self) -> bool {
        !matches!(self, Needs::NoBroker | Needs::PostgresAlone)
    }
}

/// The tests of one file.
pub type Suite = Vec<(&'static str, Needs, Run)>;

/// Lists a file's tests: `suite!(Broker: a, b; OwnBroker: c)`. One that is forgotten is dead code,
/// which the compiler tells.
macro_rules! suite {
    ($($needs:ident: $($test:ident),+ $(,)?);+ $(;)?) => {
        pub(crate) fn suite() -> crate::harness::Suite {
            vec![$($((
                stringify!($test),
                crate::harness::Needs::$needs,
                (|context| Box::pin($test(context))) as crate::harness::Run,
            )),+),+]
        }
    };
}
pub(crate) use suite;

/// What a test is given.
#[derive(Clone)]
pub struct Context {
    name: &'static str,
    shared: Option<Arc<SharedBroker>>,
    postgres: Option<Arc<SharedPostgres>>,
    cleanups: TaskTracker,
}

struct SharedBroker {
    source: Source,
    running: OnceCell<Broker>,
    /// The versions that brokers of this source stated, and how each of them came to be.
    tested: Mutex<BTreeSet<String>>,
    containers: AtomicUsize,
}

impl SharedBroker {
    fn new(source: Source) -> SharedBroker {
        let (running, tested, containers) = Default::default();
        SharedBroker { source, running, tested, containers }
    }

    async fn shared(&self) -> Result<&Broker> {
        self.running.get_or_try_init(|| self.start()).await
    }

    async fn start(&self) -> Result<Broker> {
        let broker = self.source.start().await?;
        self.containers.fetch_add(usize::from(broker.kind() == Kind::Docker), Ordering::Relaxed);
        let version = format!("{} ({:?})", broker.version(), broker.kind());
        self.tested.lock().unwrap_or_else(PoisonError::into_inner).insert(version);
        Ok(broker)
    }
}

/// One for all brokers' tests.
#[derive(Default)]
struct SharedPostgres {
    running: OnceCell<Postgres>,
    /// The versions that servers stated, and how each of them came to be.
    tested: Mutex<BTreeSet<String>>,
}

impl SharedPostgres {
    async fn shared(&self) -> Result<&Postgres> {
        self.running.get_or_try_init(|| self.start()).await
    }

    async fn start(&self) -> Result<Postgres> {
        let postgres = Postgres::start().await?;
        let version = format!("{} ({:?})", postgres.version(), postgres.kind());
        self.tested.lock().unwrap_or_else(PoisonError::into_inner).insert(version);
        Ok(postgres)
    }
}

impl Context {
    /// The broker that tests share.
    pub async fn broker(&self) -> Result<&Broker> {
        self.shared.as_ref().context("listed as a test without a broker")?.shared().await
    }

    /// A broker of the test's own.
    pub async fn own_broker(&self) -> Result<Broker> {
        self.shared.as_ref().context("listed as a test without a broker")?.start().await
    }

    /// The PostgreSQL that tests share.
    pub async fn postgres(&self) -> Result<&Postgres> {
        self.postgres.as_ref().context("listed as a test without PostgreSQL")?.shared().await
    }

    /// A PostgreSQL of the test's own.
    pub async fn own_postgres(&self) -> Result<Postgres> {
        self.postgres.as_ref().context("listed as a test without PostgreSQL")?.start().await
    }

    /// A bed on the shared broker.
    pub async fn bed(&self) -> Result<Bed> {
        self.bed_with(&[]).await
    }

    /// A bed whose simulator has arguments.
    pub async fn bed_with(&self, simulator_args: &[&str]) -> Result<Bed> {
        self.bed_on(self.broker().await?, simulator_args).await
    }

    /// A bed on a broker of the test's own.
    pub async fn bed_on(&self, broker: &Broker, simulator_args: &[&str]) -> Result<Bed> {
        Bed::new(&broker.url(), self.name, simulator_args, self.cleanups.clone()).await
    }
}

/// Runs what the command line selects.
pub fn run(suites: &[(&'static str, Suite)]) -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(TEST_THREADS);
    match run_on_brokers(&args, suites) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_on_brokers(args: &Arguments, suites: &[(&'static str, Suite)]) -> Result<ExitCode> {
    let runtime = Arc::new(Runtime::new()?);
    let brokers: Vec<Arc<SharedBroker>> = runtime
        .block_on(broker::available())?
        .into_iter()
        .map(|source| Arc::new(SharedBroker::new(source)))
        .collect();
    let mut harness = Harness {
        runtime,
        runs: runs()?,
        postgres: Arc::default(),
        cleanups: TaskTracker::new(),
        begun: Arc::default(),
        trials: Vec::new(),
        left_out: BTreeSet::new(),
    };
    harness.add(None, suites);
    for broker in &brokers {
        harness.add(Some(broker), suites);
    }
    let Harness { runtime, postgres, cleanups, begun, trials, left_out, .. } = harness;
    if !left_out.is_empty() {
        println!(
            "a given server is not ours to kill or administer; left out: {}",
            Vec::from_iter(left_out).join(", ")
        );
    }
    let conclusion = libtest_mimic::run(args, trials);
    cleanups.close();
    let ended = runtime.block_on(async {
        // Each has a limit of its own.
        cleanups.wait().await;
        (stop(brokers).await, stop_postgres(postgres).await)
    });
    runtime_of(runtime);
    let ((brokers, broker_problem), (servers, problem)) = ended;
    let tested: Vec<String> = [("RabbitMQ", brokers), ("PostgreSQL", servers)]
        .into_iter()
        .filter(|(_, versions)| !versions.is_empty())
        .map(|(name, versions)| format!("{name} {}", versions.join(", ")))
        .collect();
    if !tested.is_empty() {
        println!("tested on {}\n", tested.join(" and "));
    }
    let broker_problem = broker_problem.filter(|_| begun.load(Ordering::Relaxed) > 0);
    if let Some(problem) = broker_problem.or(problem) {
        return Err(anyhow!(problem));
    }
    Ok(conclusion.exit_code())
}

struct Harness {
    runtime: Arc<Runtime>,
    runs: usize,
    postgres: Arc<SharedPostgres>,
    cleanups: TaskTracker,
    /// Trials that need a broker, and nothing else.
    begun: Arc<AtomicUsize>,
    trials: Vec<Trial>,
    left_out: BTreeSet<String>,
}

impl Harness {
    fn add(&mut self, shared: Option<&Arc<SharedBroker>>, suites: &[(&'static str, Suite)]) {
        let is_given = shared.is_some_and(|shared| matches!(shared.source, Source::Given(_)));
        for (suite, tests) in suites {
            for (test, needs, run) in tests {
                if needs.broker() != shared.is_some() {
                    continue;
                }
                let is_left_out = match needs {
                    Needs::ManagedBroker | Needs::OwnBroker => is_given,
                    Needs::OwnPostgres => postgres::is_given(),
                    Needs::NoBroker | Needs::Broker | Needs::Postgres | Needs::PostgresAlone => {
                        false
                    }
                };
                if is_left_out {
                    self.left_out.insert(format!("{suite}::{test}"));
                    continue;
                }
                let label = shared.map(|shared| format!("{}::", shared.source.label()));
                let name = format!("{}{suite}::{test}", label.unwrap_or_default());
                let context = Context {
                    name: test,
                    shared: shared.cloned(),
                    postgres: needs.postgres().then(|| Arc::clone(&self.postgres)),
                    cleanups: self.cleanups.clone(),
                };
                self.trials.push(self.trial(name, context, *run));
            }
        }
    }

    fn trial(&self, name: String, context: Context, run: Run) -> Trial {
        let (runtime, begun) = (Arc::clone(&self.runtime), Arc::clone(&self.begun));
        let timed = std::env::var_os("TEST_TIMES").is_some();
        let runs = self.runs;
        Trial::test(name.clone(), move || {
            let needs_broker = context.shared.is_some() && context.postgres.is_none();
            begun.fetch_add(usize::from(needs_broker), Ordering::Relaxed);
            let once = || {
                let start = std::time::Instant::now();
                let ended = runtime.block_on(limited(run(context.clone())));
                if timed {
                    eprintln!("{name}: {:.1} s", start.elapsed().as_secs_f64());
                }
                ended
            };
            if runs == 1 { once() } else { repeated(&name, runs, once) }
        })
    }
}

async fn limited(run: impl Future<Output = Result<()>>) -> Result<(), Failed> {
    let limit = Duration::from_mins(if is_long() { 15 } else { 4 });
    match tokio::time::timeout(limit, run).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failed::from(format!("{error:#}"))),
        Err(_) => Err(Failed::from(format!("did not end within {limit:?}"))),
    }
}

/// Ends the brokers. What was tested on, and what of it must fail the run: a run that has Docker
/// must not pass on anything else, or on nothing.
async fn stop(brokers: Vec<Arc<SharedBroker>>) -> (Vec<String>, Option<String>) {
    let (mut versions, mut problem) = (Vec::new(), None);
    let has_docker = brokers.iter().any(|shared| matches!(shared.source, Source::Docker(_)));
    let mut containers = 0;
    for shared in brokers {
        let tested = shared.tested.lock().unwrap_or_else(PoisonError::into_inner).clone();
        versions.extend(tested);
        containers += shared.containers.load(Ordering::Relaxed);
        let Some(SharedBroker { running, .. }) = Arc::into_inner(shared) else { continue };
        let Some(broker) = running.into_inner() else { continue };
        if let Err(error) = broker.stop().await {
            problem = Some(format!("a broker does not stop: {error:#}"));
        }
    }
    if has_docker && containers == 0 {
        problem = Some("Docker works, but no container ran".to_owned());
    }
    (versions, problem)
}

/// Ends the PostgreSQL. What was tested on, and what of it must fail the run.
async fn stop_postgres(shared: Arc<SharedPostgres>) -> (Vec<String>, Option<String>) {
    let tested = shared.tested.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let running = Arc::into_inner(shared).and_then(|shared| shared.running.into_inner());
    let Some(postgres) = running else { return (tested.into_iter().collect(), None) };
    let problem = postgres.stop().await.err();
    let problem = problem.map(|error| format!("a PostgreSQL does not stop: {error:#}"));
    (tested.into_iter().collect(), problem)
}

/// A task that hangs must not keep the process.
fn runtime_of(runtime: Arc<Runtime>) {
    if let Some(runtime) = Arc::into_inner(runtime) {
        runtime.shutdown_timeout(Duration::from_secs(2));
    }
}

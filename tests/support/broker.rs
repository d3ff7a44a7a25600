//! One running RabbitMQ for the tests, the demo and the benchmark: a given one, a container, or a
//! private `rabbitmq-server` process. What is started here ends with this process, however it ends.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lapin::{Connection, ConnectionProperties, uri::AMQPUri};
use testcontainers::{GenericImage, runners::AsyncRunner};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::container::{self, Container};
use super::local_node::LocalNode;
use super::{setting, tail};

const STARTED: &str = "Server startup complete";
const START_LIMIT: Duration = Duration::from_mins(2);
const PULL_LIMIT: Duration = Duration::from_mins(3);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
const PORT: u16 = 5672;

/// A RabbitMQ release the tests run on: the oldest supported one and the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 3.10
    V3,
    /// 4
    V4,
}

impl Release {
    const ALL: [Release; 2] = [Release::V3, Release::V4];

    fn tag(self) -> &'static str {
        match self {
            Release::V3 => "3.10-management",
            Release::V4 => "4-management",
        }
    }

    fn image(self) -> String {
        format!("rabbitmq:{}", self.tag())
    }
}

/// How a broker came to be, which decides what may be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `TEST_AMQP_URL`: never started, stopped or administered from here.
    Given,
    /// A container.
    Docker,
    /// A process of the installed package.
    Local,
}

/// A RabbitMQ that can be had; `start` it to get one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The broker at this URL.
    Given(String),
    /// A container of this release.
    Docker(Release),
    /// The installed package, whichever release that is.
    Local,
}

/// What the tests run on: the given broker, else both releases in Docker, else the installed package.
/// `TEST_BROKER=docker` or `=local` forces a kind.
pub async fn available() -> Result<Vec<Source>> {
    if let Some(url) = setting("TEST_AMQP_URL") {
        return Ok(vec![Source::Given(url)]);
    }
    let forced = setting("TEST_BROKER");
    let forced = forced.as_deref();
    if let Some(unknown) = forced.filter(|kind| !["docker", "local"].contains(kind)) {
        bail!("TEST_BROKER is `{unknown}`; it can be `docker`, `local` or unset");
    }
    let mut tried = vec!["a given broker: TEST_AMQP_URL is not set".to_owned()];
    if forced == Some("local") {
        tried.push("Docker: ruled out by TEST_BROKER=local".to_owned());
    } else {
        match in_docker().await? {
            Ok(sources) => return Ok(sources),
            Err(reason) => tried.push(format!("Docker: {reason:#}")),
        }
    }
    if forced == Some("docker") {
        tried.push("the installed package: ruled out by TEST_BROKER=docker".to_owned());
    } else {
        match LocalNode::installed() {
            Ok(_) => return Ok(vec![Source::Local]),
            Err(reason) => tried.push(format!("the installed package: {reason:#}")),
        }
    }
    bail!(
        "there is no RabbitMQ to run on. Tried:\n  - {}\nWays out:\n  - `make setup` gets one\n  - \
         start Docker\n  - install the package rabbitmq-server\n  - TEST_AMQP_URL=amqp://… names a \
         running broker",
        tried.join("\n  - ")
    )
}

/// The inner error says why Docker is out; the outer one ends the search. In CI a missing release
/// does, so that it cannot go untested unnoticed.
async fn in_docker() -> Result<Result<Vec<Source>>> {
    let docker = match container::engine().await {
        Ok(docker) => docker,
        Err(reason) => return Ok(Err(reason)),
    };
    let (mut sources, mut missing) = (Vec::new(), Vec::new());
    for release in Release::ALL {
        if docker.inspect_image(&release.image()).await.is_ok() {
            sources.push(Source::Docker(release));
            continue;
        }
        match timeout(PULL_LIMIT, image(release).pull_image()).await {
            Ok(Ok(_)) => sources.push(Source::Docker(release)),
            Ok(Err(error)) => missing.push(format!("no image {} ({error})", release.image())),
            Err(_) => missing.push(format!("no image {} (the pull hangs)", release.image())),
        }
    }
    let missing = missing.join(", ");
    if missing.is_empty() {
        return Ok(Ok(sources));
    }
    ensure!(setting("CI").is_none(), "{missing}. CI tests both releases; `make setup` gets them");
    if sources.is_empty() {
        return Ok(Err(anyhow::Error::msg(missing)));
    }
    warn(&format!("NOT TESTED ON EVERY RELEASE: {missing}. `make setup` gets it."));
    Ok(Ok(sources))
}

impl Source {
    /// A short name, known before the start: `3.10`, `4`, `given` or `local`.
    pub fn label(&self) -> &'static str {
        match self {
            Source::Given(_) => "given",
            Source::Docker(Release::V3) => "3.10",
            Source::Docker(Release::V4) => "4",
            Source::Local => "local",
        }
    }

    /// A broker that has finished its start and accepts connections.
    pub async fn start(&self) -> Result<Broker> {
        let (url, node) = match self {
            Source::Given(url) => (url.clone(), Node::Given),
            Source::Docker(release) => {
                let container = Container::start(image(*release).into(), PORT).await?;
                (local_url(container.port()), Node::Docker(Box::new(container)))
            }
            Source::Local => {
                let node = LocalNode::start()?;
                (local_url(node.port()), Node::Local(node))
            }
        };
        let mut broker = Broker { url, version: "unknown".to_owned(), starts: 0, node };
        broker.wait_until_ready().await?;
        if let Ok(Ok(version)) = timeout(ANSWER_LIMIT, stated_version(&broker.url)).await {
            broker.version = version;
        }
        Ok(broker)
    }
}

/// One running RabbitMQ. Dropping it leaves nothing behind.
pub struct Broker {
    url: String,
    version: String,
    starts: usize,
    node: Node,
}

enum Node {
    Given,
    Docker(Box<Container>),
    Local(LocalNode),
}

impl Broker {
    /// `amqp://user:password@host:port/%2f`; the same after `start_again`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// `host:port`, as it stands in the URL.
    pub fn address(&self) -> String {
        let uri = self.url.parse::<AMQPUri>().unwrap_or_default();
        format!("{}:{}", uri.authority.host, uri.authority.port)
    }

    /// The version the broker itself states, as `4.0.5`; `unknown` where TLS hides it.
    pub fn version(&self) -> String {
        self.version.clone()
    }

    /// How this broker came to be.
    pub fn kind(&self) -> Kind {
        match self.node {
            Node::Given => Kind::Given,
            Node::Docker(_) => Kind::Docker,
            Node::Local(_) => Kind::Local,
        }
    }

    /// Ends the broker by SIGKILL; its data stays for `start_again`.
    pub async fn kill(&mut self) -> Result<()> {
        match &mut self.node {
            Node::Given => bail!("the broker of TEST_AMQP_URL is not ours to kill"),
            Node::Docker(container) => container.kill().await,
            Node::Local(node) => node.kill(),
        }
    }

    /// Starts a killed broker on the same port and data; returns when it is ready.
    pub async fn start_again(&mut self) -> Result<()> {
        match &mut self.node {
            Node::Given => bail!("the broker of TEST_AMQP_URL is not ours to start"),
            Node::Docker(container) => container.start_again().await?,
            Node::Local(node) => node.start_again()?,
        }
        self.wait_until_ready().await
    }

    /// What `rabbitmqctl` prints, without its introductions; an error when it fails.
    pub async fn ctl(&self, args: &[&str]) -> Result<String> {
        let args = [&["--quiet"], args].concat();
        let (succeeded, out, err) = match &self.node {
            Node::Given => bail!("rabbitmqctl cannot reach the broker of TEST_AMQP_URL"),
            Node::Docker(container) => {
                container.run(&[&["rabbitmqctl"], args.as_slice()].concat()).await?
            }
            Node::Local(node) => {
                let output = node.ctl(&args).await?;
                (output.status.success(), output.stdout, output.stderr)
            }
        };
        let [out, err] = [out, err].map(|text| String::from_utf8_lossy(&text).trim().to_owned());
        ensure!(succeeded, "rabbitmqctl {} failed: {err} {out}", args.join(" "));
        Ok(out)
    }

    /// Ends the broker and removes its data. A given broker runs on.
    pub async fn stop(self) -> Result<()> {
        match self.node {
            Node::Docker(container) => container.stop().await,
            Node::Given | Node::Local(_) => Ok(()),
        }
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        self.starts += 1;
        if let Node::Given = self.node {
            return connect_once(&self.url).await.context("cannot connect to TEST_AMQP_URL");
        }
        let failure = match timeout(START_LIMIT, self.become_ready()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("not ready within {START_LIMIT:?}"),
        };
        let log = self.log().await.unwrap_or_default();
        Err(failure.context(format!("RabbitMQ does not start; its log ends:\n{}", tail(&log))))
    }

    /// The log holds every start so far, so this start's line is the last of as many.
    async fn become_ready(&mut self) -> Result<()> {
        while self.log().await?.matches(STARTED).count() < self.starts {
            ensure!(self.is_running().await?, "the broker has exited");
            sleep(POLL).await;
        }
        while let Err(error) = connect_once(&self.url).await {
            ensure!(self.is_running().await?, "the broker has exited ({error:#})");
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn is_running(&mut self) -> Result<bool> {
        match &mut self.node {
            Node::Given => Ok(true),
            Node::Docker(container) => container.is_running().await,
            Node::Local(node) => node.is_running(),
        }
    }

    async fn log(&self) -> Result<String> {
        match &self.node {
            Node::Given => Ok(String::new()),
            Node::Docker(container) => container.stdout().await,
            Node::Local(node) => node.log(),
        }
    }
}

fn image(release: Release) -> GenericImage {
    GenericImage::new("rabbitmq", release.tag())
}

fn local_url(port: u16) -> String {
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
}

async fn connect_once(url: &str) -> Result<()> {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    let connection = timeout(ANSWER_LIMIT, connecting).await??;
    connection.close(200, "ready".into()).await?;
    Ok(())
}

/// Reads the version out of the first frame a broker sends, connection.start, in which a table entry
/// is its name's length, the name, `S` for a string, and the string after its length.
async fn stated_version(url: &str) -> Result<String> {
    const ENTRY: &[u8] = b"\x07versionS";
    let uri: AMQPUri = url.parse().map_err(anyhow::Error::msg)?;
    let mut stream = TcpStream::connect((uri.authority.host, uri.authority.port)).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    let mut frame = vec![0; 16 * 1024];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut frame[filled..]).await?;
        ensure!(read > 0, "the broker states no version");
        filled += read;
        let entry = frame[..filled].windows(ENTRY.len()).position(|bytes| bytes == ENTRY);
        let Some((length, rest)) =
            entry.and_then(|at| frame[at + ENTRY.len()..filled].split_first_chunk())
        else {
            continue;
        };
        if let Some(version) = rest.get(..u32::from_be_bytes(*length) as usize) {
            return Ok(String::from_utf8_lossy(version).into_owned());
        }
    }
}

#[expect(clippy::print_stderr, reason = "the person running the tests must see it")]
fn warn(message: &str) {
    eprintln!("{message}");
}

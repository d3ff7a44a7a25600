//! One running PostgreSQL for the tests: a given one, a container, or a private process of the
//! installed package. What is started here ends with this process, however it ends.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testcontainers::{ContainerRequest, GenericImage, ImageExt};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};
use url::Url;
use uuid::Uuid;

use super::container::{self, Container};
use super::local_postgres::LocalPostgres;
use super::{setting, tail};

/// Whom a server started here knows.
pub const USER: &str = "relay";
/// That user's password.
pub const PASSWORD: &str = "password-of-tests";
/// The default, scram-sha-256, costs a client without optimisation 90 ms a connection.
pub const AUTH: &str = "password";
/// Data that only lives as long as a test.
pub const INITDB: [&str; 3] = ["--no-sync", "--no-locale", "--encoding=UTF8"];
/// Shared memory in files, so that a killed server leaves none behind.
pub const SETTINGS: [&str; 6] =
    ["-c", "fsync=off", "-c", "max_connections=200", "-c", "dynamic_shared_memory_type=mmap"];

const IMAGE: [&str; 2] = ["postgres", "17"];
const PORT: u16 = 5432;
const START_LIMIT: Duration = Duration::from_mins(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// How a server came to be, which decides what may be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `TEST_POSTGRES_URL`: never started or stopped from here.
    Given,
    /// A container.
    Docker,
    /// A process of the installed package.
    Local,
}

/// Whether the tests run on a server that is not theirs to kill.
pub fn is_given() -> bool {
    setting("TEST_POSTGRES_URL").is_some()
}

/// What the tests run on: the given server, else a container, else the installed package.
/// `TEST_POSTGRES=docker` or `=local` forces a kind.
async fn available() -> Result<Kind> {
    if is_given() {
        return Ok(Kind::Given);
    }
    let forced = setting("TEST_POSTGRES");
    let forced = forced.as_deref();
    if let Some(unknown) = forced.filter(|kind| !["docker", "local"].contains(kind)) {
        bail!("TEST_POSTGRES is `{unknown}`; it can be `docker`, `local` or unset");
    }
    let mut tried = vec!["a given server: TEST_POSTGRES_URL is not set".to_owned()];
    if forced == Some("local") {
        tried.push("Docker: ruled out by TEST_POSTGRES=local".to_owned());
    } else {
        match in_docker().await {
            Ok(()) => return Ok(Kind::Docker),
            Err(reason) => tried.push(format!("Docker: {reason:#}")),
        }
    }
    if forced == Some("docker") {
        tried.push("the installed package: ruled out by TEST_POSTGRES=docker".to_owned());
    } else {
        match LocalPostgres::installed() {
            Ok(_) => return Ok(Kind::Local),
            Err(reason) => tried.push(format!("the installed package: {reason:#}")),
        }
    }
    bail!(
        "there is no PostgreSQL to run on. Tried:\n  - {}\nWays out:\n  - `make setup` gets one\n  \
         - start Docker\n  - install the package postgresql\n  - TEST_POSTGRES_URL=postgres://… \
         names a running server",
        tried.join("\n  - ")
    )
}

/// Asks no registry: `make setup` does, once.
async fn in_docker() -> Result<()> {
    let image = IMAGE.join(":");
    let docker = container::engine().await?;
    let present = timeout(ANSWER_LIMIT, docker.inspect_image(&image)).await;
    present.context("the engine does not answer")?.with_context(|| format!("no image {image}"))?;
    Ok(())
}

/// One running PostgreSQL. Dropping it leaves nothing behind; of a given one, `stop` drops the
/// databases created here.
pub struct Postgres {
    url: Url,
    version: String,
    databases: Mutex<Vec<String>>,
    node: Node,
}

enum Node {
    Given,
    Docker(Box<Container>),
    Local(LocalPostgres),
}

impl Postgres {
    /// A server that accepts connections.
    pub async fn start() -> Result<Postgres> {
        let (url, node) = match available().await? {
            Kind::Given => (given_url()?, Node::Given),
            Kind::Docker => {
                let container = Container::start(image(), PORT).await?;
                (local_url(container.port())?, Node::Docker(Box::new(container)))
            }
            Kind::Local => {
                let server = tokio::task::spawn_blocking(LocalPostgres::start).await??;
                (local_url(server.port())?, Node::Local(server))
            }
        };
        let (version, databases) = Default::default();
        let mut postgres = Postgres { url, version, databases, node };
        postgres.wait_until_ready().await?;
        Ok(postgres)
    }

    /// The version the server itself states, as `17.5`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How this server came to be.
    pub fn kind(&self) -> Kind {
        match self.node {
            Node::Given => Kind::Given,
            Node::Docker(_) => Kind::Docker,
            Node::Local(_) => Kind::Local,
        }
    }

    /// Creates an empty database: `postgres://user:password@host:port/name`.
    pub async fn database(&self) -> Result<String> {
        let name = format!("customer_relay_test_{}", Uuid::now_v7().simple());
        let create = format!("CREATE DATABASE {name} TEMPLATE template0");
        let client = connect(&self.url).await?;
        client.batch_execute(&create).await.with_context(|| format!("cannot create {name}"))?;
        let mut url = self.url.clone();
        url.set_path(&name);
        self.databases.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        Ok(url.into())
    }

    /// Ends the server by SIGKILL; its data stays for `start_again`.
    pub async fn kill(&mut self) -> Result<()> {
        match &mut self.node {
            Node::Given => bail!("the server of TEST_POSTGRES_URL is not ours to kill"),
            Node::Docker(container) => container.kill().await,
            Node::Local(server) => server.kill(),
        }
    }

    /// Starts a killed server on the same port and data; returns when it is ready.
    pub async fn start_again(&mut self) -> Result<()> {
        match &mut self.node {
            Node::Given => bail!("the server of TEST_POSTGRES_URL is not ours to start"),
            Node::Docker(container) => container.start_again().await?,
            Node::Local(server) => server.start_again()?,
        }
        self.wait_until_ready().await
    }

    /// Ends the server and removes its data. A given server runs on, without our databases.
    pub async fn stop(self) -> Result<()> {
        match self.node {
            Node::Docker(container) => container.stop().await,
            Node::Local(server) => Ok(tokio::task::spawn_blocking(|| drop(server)).await?),
            Node::Given => {
                let databases = self.databases.into_inner().unwrap_or_else(PoisonError::into_inner);
                drop_databases(&self.url, &databases).await
            }
        }
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        if let Node::Given = self.node {
            let version = stated_version(&self.url).await;
            self.version = version.context("cannot connect to TEST_POSTGRES_URL")?;
            return Ok(());
        }
        let Err(failure) = self.become_ready().await else { return Ok(()) };
        let log = self.log().await.unwrap_or_default();
        Err(failure.context(format!("PostgreSQL does not start; its log ends:\n{}", tail(&log))))
    }

    async fn become_ready(&mut self) -> Result<()> {
        let end = Instant::now() + START_LIMIT;
        let error = loop {
            match stated_version(&self.url).await {
                Ok(version) => {
                    self.version = version;
                    return Ok(());
                }
                Err(error) if Instant::now() > end => break error,
                Err(error) => ensure!(self.is_running().await?, "it has exited ({error:#})"),
            }
            sleep(POLL).await;
        };
        Err(error.context(format!("not ready within {START_LIMIT:?}")))
    }

    async fn is_running(&mut self) -> Result<bool> {
        match &mut self.node {
            Node::Given => Ok(true),
            Node::Docker(container) => container.is_running().await,
            Node::Local(server) => server.is_running(),
        }
    }

    async fn log(&self) -> Result<String> {
        match &self.node {
            Node::Given => Ok(String::new()),
            Node::Docker(container) => container.stderr().await,
            Node::Local(server) => server.log(),
        }
    }
}

fn image() -> ContainerRequest<GenericImage> {
    let [name, tag] = IMAGE;
    GenericImage::new(name, tag)
        .with_env_var("POSTGRES_USER", USER)
        .with_env_var("POSTGRES_PASSWORD", PASSWORD)
        .with_env_var("POSTGRES_HOST_AUTH_METHOD", AUTH)
        .with_env_var("POSTGRES_INITDB_ARGS", INITDB.join(" "))
        .with_cmd(SETTINGS)
}

fn given_url() -> Result<Url> {
    let url = setting("TEST_POSTGRES_URL").unwrap_or_default();
    url.parse()
        .context("TEST_POSTGRES_URL is no URL such as postgres://user:password@host:5432/name")
}

/// The database `postgres` is there from the beginning.
fn local_url(port: u16) -> Result<Url> {
    Ok(format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres").parse()?)
}

/// A session, which ends when the client is dropped.
async fn connect(url: &Url) -> Result<Client> {
    let connecting = tokio_postgres::connect(url.as_str(), NoTls);
    let (client, connection) = timeout(ANSWER_LIMIT, connecting).await??;
    tokio::spawn(connection);
    Ok(client)
}

/// Debian's packages add their own version, in parentheses.
async fn stated_version(url: &Url) -> Result<String> {
    let client = connect(url).await?;
    let query = client.query_one("SHOW server_version", &[]);
    let row = timeout(ANSWER_LIMIT, query).await??;
    let stated: &str = row.try_get(0)?;
    Ok(stated.split(' ').next().unwrap_or_default().to_owned())
}

async fn drop_databases(url: &Url, names: &[String]) -> Result<()> {
    let client = connect(url).await?;
    for name in names {
        client.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
    }
    Ok(())
}

//! A private `rabbitmq-server` process of the installed package: own ports, data, Erlang cookie and
//! epmd, all inside one temporary folder. It must never touch a broker the machine runs already.

use std::{
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};

/// Where Debian, Ubuntu and the RPM packages keep the scripts themselves; those in `PATH` switch to
/// the user `rabbitmq` first.
const PACKAGE: &str = "/usr/lib/rabbitmq/bin";

/// One node and its port mapper. Dropping it kills both and removes their folder.
pub struct LocalNode {
    programs: PathBuf,
    dir: PathBuf,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
    epmd: Child,
    node: Child,
    reaper: Reaper,
}

impl LocalNode {
    /// The folder with `rabbitmq-server` and `rabbitmqctl`.
    pub fn installed() -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::iter::once(PathBuf::from(PACKAGE))
            .chain(std::env::split_paths(&path))
            .find(|folder| folder.join("rabbitmq-server").is_file())
            .with_context(|| format!("no rabbitmq-server in {PACKAGE} or PATH"))
    }

    /// Spawns a node; whether it is ready yet, only its log and its port tell.
    pub fn start() -> Result<LocalNode> {
        let programs = Self::installed()?;
        let dir = tempfile::Builder::new().prefix("customer-relay-broker-").tempdir()?.keep();
        // The last line told holds the processes alive now. A killed process may finish a write.
        let mut reaper = Reaper::start(
            r#"kill -9 $last; rm -rf "$1" || { sleep 1; rm -rf "$1"; }"#,
            &dir.to_string_lossy(),
        )?;
        fs::write(dir.join("enabled_plugins"), "[].\n")?;
        fs::write(dir.join("rabbitmq.conf"), "log.file = false\nlog.console = true\n")?;
        let [port, dist_port, epmd_port] = free_ports()?;
        let epmd = Command::new("epmd")
            .args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start epmd, Erlang's port mapper")?;
        reaper.tell(&epmd.id().to_string())?;
        let node = spawn_node(&programs, &dir, [port, dist_port, epmd_port])?;
        reaper.tell(&format!("{} {}", epmd.id(), node.id()))?;
        Ok(LocalNode { programs, dir, port, dist_port, epmd_port, epmd, node, reaper })
    }

    /// The AMQP port on 127.0.0.1; the same for the node's whole life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the node as a power cut would; its data stays.
    pub fn kill(&mut self) -> Result<()> {
        self.node.kill()?;
        self.node.wait()?;
        self.reaper.tell(&self.epmd.id().to_string())?;
        Ok(())
    }

    /// Spawns the node on the same ports and data again.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(!self.is_running()?, "the node is running; kill it first");
        let ports = [self.port, self.dist_port, self.epmd_port];
        self.node = spawn_node(&self.programs, &self.dir, ports)?;
        self.reaper.tell(&format!("{} {}", self.epmd.id(), self.node.id()))?;
        Ok(())
    }

    /// Whether the process lives.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.node.try_wait()?.is_none())
    }

    /// Everything the node has written since its first start.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.dir.join("log"))?).into_owned())
    }

    /// A finished `rabbitmqctl` run against this node.
    pub async fn ctl(&self, args: &[&str]) -> Result<Output> {
        let ports = [self.port, self.dist_port, self.epmd_port];
        let mut command = with_node_settings("rabbitmqctl", &self.programs, &self.dir, ports);
        command.args(args).stdin(Stdio::null());
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    }
}

impl Drop for LocalNode {
    fn drop(&mut self) {
        for process in [&mut self.node, &mut self.epmd] {
            process.kill().ok();
            process.wait().ok();
        }
        self.reaper.tell("").ok();
    }
}

fn spawn_node(programs: &Path, dir: &Path, ports: [u16; 3]) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    with_node_settings("rabbitmq-server", programs, dir, ports)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A Ctrl-C at the terminal is for the tests; the reaper ends the node after them.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}/rabbitmq-server", programs.display()))
}

/// A program of the package that knows this node and no other.
fn with_node_settings(program: &str, programs: &Path, dir: &Path, ports: [u16; 3]) -> Command {
    let [port, dist_port, epmd_port] = ports;
    let mut command = Command::new(programs.join(program));
    command
        .current_dir(dir)
        .env("HOME", dir) // the Erlang cookie's place
        .env("LANG", "C.UTF-8")
        .env("RUNNING_UNDER_SYSTEMD", "true") // no shell in between: the child is the node
        .env("ERL_EPMD_PORT", epmd_port.to_string())
        .env("RABBITMQ_NODENAME", format!("relay{port}@localhost"))
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", port.to_string())
        .env("RABBITMQ_DIST_PORT", dist_port.to_string())
        .env("RABBITMQ_MNESIA_BASE", dir.join("data"))
        .env("RABBITMQ_LOG_BASE", dir)
        .env("RABBITMQ_PID_FILE", dir.join("pid"))
        .env("RABBITMQ_GENERATED_CONFIG_DIR", dir.join("generated"))
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("enabled_plugins"));
    command
}

/// Ports free on 127.0.0.1, below those the kernel lends to clients: while a broker is down, no
/// connecting client may be given its port.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let first = 20_000 + u16::try_from(RandomState::new().hash_one(0) % 10_000)?;
    let held: Vec<_> = (first..32_000)
        .filter_map(|port| Some((port, TcpListener::bind(("127.0.0.1", port)).ok()?)))
        .take(N)
        .collect();
    let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
    ports.try_into().ok().context("no free port on 127.0.0.1")
}

/// A shell that cleans up when it is dropped, or when this process is gone, by SIGKILL too: then the
/// pipe it reads from ends.
pub struct Reaper(Child);

impl Reaper {
    /// The script sees the argument as `$1` and the last line told as `$last`.
    pub fn start(script: &str, argument: &str) -> io::Result<Reaper> {
        let script = format!("last=; while read -r line; do last=$line; done; {script}");
        let shell = Command::new("sh")
            .args(["-c", &script, "reaper", argument])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // out of reach of a Ctrl-C
            .spawn()?;
        Ok(Reaper(shell))
    }

    /// Sets `$last`.
    pub fn tell(&mut self, line: &str) -> io::Result<()> {
        self.0.stdin.as_mut().map_or(Ok(()), |pipe| writeln!(pipe, "{line}"))
    }

    /// Cleans up now.
    pub fn finish(&mut self) {
        // `wait` closes the pipe first.
        self.0.wait().ok();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.finish();
    }
}

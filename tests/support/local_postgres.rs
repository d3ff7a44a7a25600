//! A private `postgres` process of the installed package: own port, data and settings, all inside
//! one temporary folder. It must never touch a server the machine runs already.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::local_node::{Reaper, free_ports};
use super::postgres::{AUTH, INITDB, PASSWORD, SETTINGS, USER};

/// Where Debian and Ubuntu keep the programs, one folder a version.
const PACKAGES: &str = "/usr/lib/postgresql";
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A server that ends in order takes its shared memory segment along; `ipcrm` does it for others.
const END: &str = r#"pid_file=$1/data/postmaster.pid
[ -z "$last" ] || kill -QUIT "$last"
tries=200
while [ -n "$last" ] && [ -e "$pid_file" ] && [ $((tries -= 1)) -gt 0 ]; do sleep 0.05; done
if [ -e "$pid_file" ]; then
    [ -z "$last" ] || kill -9 "$last"
    ipcrm -m "$(sed -n '7s/.* //p' "$pid_file")"
fi
rm -rf "$1" || { sleep 1; rm -rf "$1"; }"#;

/// One server. Dropping it ends it and removes its folder.
pub struct LocalPostgres {
    programs: PathBuf,
    dir: PathBuf,
    account: Option<Account>,
    port: u16,
    server: Child,
    reaper: Reaper,
}

/// Whom the server runs as where the tests run as root, which PostgreSQL refuses to.
#[derive(Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl LocalPostgres {
    /// The folder with `initdb` and `postgres`, the newest there is.
    pub fn installed() -> Result<PathBuf> {
        let version =
            |folder: &PathBuf| -> Option<u32> { folder.file_name()?.to_str()?.parse().ok() };
        let entries = fs::read_dir(PACKAGES).into_iter().flatten().flatten();
        let mut packages: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        packages.sort_by_key(version);
        let path = std::env::var_os("PATH").unwrap_or_default();
        packages
            .iter()
            .rev()
            .map(|package| package.join("bin"))
            .chain(std::env::split_paths(&path))
            .find(|folder| ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file()))
            .with_context(|| format!("no initdb and postgres in {PACKAGES}/*/bin or PATH"))
    }

    /// Spawns a server on fresh data; whether it is ready yet, only its port tells.
    pub fn start() -> Result<LocalPostgres> {
        let programs = Self::installed()?;
        let dir = tempfile::Builder::new().prefix("customer-relay-postgres-").tempdir()?.keep();
        // The last line told is the server's process id while it is alive.
        let mut reaper = Reaper::start(END, &dir.to_string_lossy())?;
        let account = Account::needed(&dir)?;
        fs::write(dir.join("password"), PASSWORD)?;
        if let Some(Account { uid, gid }) = account {
            chown(&dir, Some(uid), Some(gid))?;
        }
        initdb(&programs, &dir, account)?;
        let [port] = free_ports()?;
        let server = spawn_server(&programs, &dir, account, port)?;
        reaper.tell(&server.id().to_string())?;
        Ok(LocalPostgres { programs, dir, account, port, server, reaper })
    }

    /// The port on 127.0.0.1; the same for the server's whole life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all the server's processes as a power cut would; its data stays.
    pub fn kill(&mut self) -> Result<()> {
        let children = children_of(self.server.id())?;
        self.server.kill()?;
        kill_all(&children)?;
        self.server.wait()?;
        self.reaper.tell("")?;
        let end = Instant::now() + KILL_LIMIT;
        while children.iter().any(|pid| is_alive(*pid)) {
            ensure!(Instant::now() < end, "a process of the killed server does not end");
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Spawns the server on the same port and data again.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(!self.is_running()?, "the server is running; kill it first");
        self.server = spawn_server(&self.programs, &self.dir, self.account, self.port)?;
        self.reaper.tell(&self.server.id().to_string())?;
        Ok(())
    }

    /// Whether the process lives.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.server.try_wait()?.is_none())
    }

    /// Everything the server has written since its first start.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.dir.join("log"))?).into_owned())
    }
}

impl Drop for LocalPostgres {
    fn drop(&mut self) {
        self.reaper.finish();
        self.server.wait().ok();
    }
}

impl Account {
    fn needed(dir: &Path) -> Result<Option<Account>> {
        if fs::metadata(dir)?.uid() != 0 {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let account = users.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let ["postgres", _, uid, gid, ..] = fields[..] else { return None };
            Some(Account { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        });
        account.map(Some).context(
            "PostgreSQL does not run as root, and there is no user `postgres` to run it as: add \
             one, or run the tests as another user",
        )
    }
}

/// A program of the package, run by whom it may be run by.
fn program(name: &str, programs: &Path, dir: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(programs.join(name));
    command.current_dir(dir).env("LC_ALL", "C").stdin(Stdio::null());
    // A Ctrl-C at the terminal is for the tests; the reaper ends the server after them.
    command.process_group(0);
    if let Some(Account { uid, gid }) = account {
        command.uid(uid).gid(gid);
    }
    command
}

fn initdb(programs: &Path, dir: &Path, account: Option<Account>) -> Result<()> {
    let output = program("initdb", programs, dir, account)
        .args(["--pgdata=data", "--pwfile=password"])
        .args([format!("--auth={AUTH}"), format!("--username={USER}")])
        .args(INITDB)
        .output()
        .with_context(|| format!("cannot start {}/initdb", programs.display()))?;
    let err = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "initdb failed: {}", err.trim());
    Ok(())
}

fn spawn_server(programs: &Path, dir: &Path, account: Option<Account>, port: u16) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    program("postgres", programs, dir, account)
        .args(["-D", "data", "-p", &port.to_string()])
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
        .args(SETTINGS)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}/postgres", programs.display()))
}

/// A process's state and its parent.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect())
}

/// A zombie holds nothing any more.
fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

/// Some may have ended by themselves meanwhile.
fn kill_all(pids: &[u32]) -> Result<()> {
    let pids = pids.iter().map(u32::to_string);
    let mut kill = Command::new("kill");
    kill.arg("-9").args(pids).stderr(Stdio::null()).status().context("cannot run kill")?;
    Ok(())
}

//! A program of ours as a child process: its output kept, its end awaited, never left behind.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::eventually;
use super::local_node::Reaper;

/// What a program wrote so far.
pub type Output = Arc<Mutex<String>>;

/// A running child; killed when dropped.
pub struct Process {
    child: Child,
    pid: u32,
    output: Output,
    /// Those that keep the output.
    readers: TaskTracker,
    /// Whether they read.
    reading: watch::Sender<bool>,
    /// Ends the child however this process ends.
    _reaper: Reaper,
}

/// Only a program of ours: the id may have been given to another one meanwhile.
const KILL: &str = r#"case $(cat "/proc/$1/comm") in
    customer-relay | portal-simulato) kill -9 "$1" ;;
esac"#;

/// The program with these settings and none that the tests themselves were started with.
fn command(program: &str, environment: &[(String, String)]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CUSTOMER_RELAY") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").envs(environment.iter().cloned()).kill_on_drop(true);
    command
}

impl Process {
    /// Starts `program`; both its output streams are kept as lines.
    pub fn start(program: &str, args: &[String], environment: &[(String, String)]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(args)
            .env_remove("RUST_LOG")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at a terminal is for us; what becomes of our children is ours to say.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let (output, readers) = (Output::default(), TaskTracker::new());
        let (reading, read) = watch::channel(true);
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(keep_lines(stdout, Arc::clone(&output), read.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(keep_lines(stderr, Arc::clone(&output), read));
        }
        readers.close();
        let pid = child.id().context("it ended at once")?;
        let reaper = Reaper::start(KILL, &pid.to_string())?;
        Ok(Process { child, pid, output, readers, reading, _reaper: reaper })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops reading what it writes, or goes on.
    pub fn read_output(&self, reads: bool) {
        self.reading.send_replace(reads);
    }

    /// Whether it is gone.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Everything it wrote so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The output, which can still be read when the process is gone.
    pub fn kept_output(&self) -> Output {
        Arc::clone(&self.output)
    }

    /// The first line that holds `text`, once it is written.
    pub async fn line_with(&mut self, text: &str, limit: Duration) -> Result<String> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            if let Some(line) = self.output().lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = self.child.try_wait()? {
                self.readers.wait().await;
                bail!("ended ({status}) before it wrote {text:?}:\n{}", self.output());
            }
            if tokio::time::Instant::now() > end {
                bail!("did not write {text:?} within {limit:?}:\n{}", self.output());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a signal, such as "TERM" or "KILL".
    pub async fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid.to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().await?;
        ensure!(status.success(), "kill -s {name} {pid}: {status}");
        Ok(())
    }

    /// Waits for its end; all that it wrote is in the output then.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = async {
            let status = self.child.wait().await?;
            self.readers.wait().await;
            anyhow::Ok(status)
        };
        match tokio::time::timeout(limit, end).await {
            Ok(status) => status,
            Err(_) => bail!("still runs after {limit:?}:\n{}", self.output()),
        }
    }

    /// `kill -9`, and its end.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// CPU time used so far, user and system.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let after_name = stat.rsplit(')').next().context("no fields")?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |index: usize| -> Result<u64> { Ok(fields[index].parse()?) };
        // Linux reports clock ticks of 10 ms to user space on every architecture.
        Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
    }

    /// Peak resident memory in KiB.
    pub fn peak_memory_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
        Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
    }
}

async fn keep_lines(
    stream: impl AsyncRead + Unpin,
    output: Output,
    mut reading: watch::Receiver<bool>,
) {
    let mut lines = BufReader::new(stream).lines();
    loop {
        // Where the sender is gone, the process is: what is left is read.
        drop(reading.wait_for(|reads| *reads).await);
        let Ok(Some(line)) = lines.next_line().await else { return };
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        output.push_str(&line);
        output.push('\n');
    }
}

/// Runs a program to its end; its exit code, standard output and standard error.
pub async fn run(
    program: &str,
    args: &[&str],
    environment: &[(String, String)],
    input: &[u8],
) -> Result<(i32, String, String)> {
    use tokio::io::AsyncWriteExt;
    let mut child = command(program, environment)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input is free to.
        drop(stdin.write_all(input).await);
    }
    let output = child.wait_with_output();
    let output = tokio::time::timeout(Duration::from_mins(1), output);
    let output = output.await.with_context(|| format!("{args:?} does not end"))??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let code = output.status.code().context("ended by a signal")?;
    Ok((code, text(output.stdout), text(output.stderr)))
}

/// Waits until a process has written a line with each of `texts`.
pub async fn wrote_all(process: &Process, texts: &[&str], limit: Duration) -> Result<()> {
    eventually(&format!("{texts:?} in the output"), limit, || async {
        let output = process.output();
        Ok(texts.iter().all(|text| output.contains(text)).then_some(()))
    })
    .await
}

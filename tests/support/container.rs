//! A container with its data volume, on a port of 127.0.0.1 that a restart keeps; gone when this
//! process ends, however it ends.

use std::time::Duration;

use anyhow::{Context, Result};
use testcontainers::{
    ContainerAsync, ContainerRequest, GenericImage, ImageExt,
    bollard::{Docker, models::PortBinding, query_parameters::KillContainerOptionsBuilder},
    core::{ExecCommand, IntoContainerPort, client::docker_client_instance},
    runners::AsyncRunner,
};
use tokio::time::{sleep, timeout};

use super::eventually;
use super::local_node::{Reaper, free_ports};

const START_LIMIT: Duration = Duration::from_mins(2);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
const MEMORY_BYTES: i64 = 1 << 30;

/// Docker, if it answers.
pub async fn engine() -> Result<Docker> {
    let docker = docker_client_instance().await.context("no engine")?;
    let answer = timeout(ANSWER_LIMIT, docker.ping()).await;
    answer.context("the engine does not answer")?.context("the engine cannot be reached")?;
    Ok(docker)
}

/// One container. Dropping it removes it.
pub struct Container {
    inner: Option<ContainerAsync<GenericImage>>,
    port: u16,
    /// testcontainers removes the container on drop; this does however this process ends.
    /// Dropped last.
    _reaper: Reaper,
}

impl Container {
    /// Starts one; whether the program in it is ready yet, only its log and its port tell.
    pub async fn start(image: ContainerRequest<GenericImage>, inner_port: u16) -> Result<Self> {
        let [port] = free_ports()?;
        let name = format!("customer-relay-{}-{port}", std::process::id());
        let reaper = Reaper::start(r#"docker rm --force --volumes "$1""#, &name)?;
        let label = image.descriptor();
        let inner = image
            .with_container_name(name)
            .with_mapped_port(port, inner_port.tcp())
            .with_host_config_modifier(move |host| {
                host.memory = Some(MEMORY_BYTES);
                let binding = PortBinding {
                    host_ip: Some("127.0.0.1".to_owned()),
                    host_port: Some(port.to_string()),
                };
                let inner_port = format!("{inner_port}/tcp");
                host.port_bindings = Some([(inner_port, Some(vec![binding]))].into());
            })
            .with_startup_timeout(START_LIMIT)
            .start()
            .await
            .with_context(|| format!("cannot start a container of {label}"))?;
        Ok(Container { inner: Some(inner), port, _reaper: reaper })
    }

    /// The port on 127.0.0.1; the same for the container's whole life.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn inner(&self) -> Result<&ContainerAsync<GenericImage>> {
        self.inner.as_ref().context("the container is removed")
    }

    /// Ends all its processes by SIGKILL; its data stays.
    pub async fn kill(&self) -> Result<()> {
        let docker = docker_client_instance().await?;
        let sigkill = KillContainerOptionsBuilder::new().signal("KILL").build();
        docker.kill_container(self.inner()?.id(), Some(sigkill)).await?;
        eventually("the container's end", ANSWER_LIMIT, || async {
            Ok((!self.is_running().await?).then_some(()))
        })
        .await
    }

    /// Starts it on the same port and data again.
    pub async fn start_again(&self) -> Result<()> {
        Ok(self.inner()?.start().await?)
    }

    /// Whether its first process lives.
    pub async fn is_running(&self) -> Result<bool> {
        Ok(self.inner()?.is_running().await?)
    }

    /// What it has written to its standard output since its first start.
    pub async fn stdout(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.inner()?.stdout_to_vec().await?).into_owned())
    }

    /// What it has written to its standard error since its first start.
    pub async fn stderr(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.inner()?.stderr_to_vec().await?).into_owned())
    }

    /// Whether a command in it succeeded, its standard output and its standard error.
    pub async fn run(&self, command: &[&str]) -> Result<(bool, Vec<u8>, Vec<u8>)> {
        let mut run = self.inner()?.exec(ExecCommand::new(command.iter().copied())).await?;
        let (out, err) = (run.stdout_to_vec().await?, run.stderr_to_vec().await?);
        loop {
            if let Some(code) = run.exit_code().await? {
                return Ok((code == 0, out, err));
            }
            sleep(POLL).await;
        }
    }

    /// Removes it and its data.
    pub async fn stop(mut self) -> Result<()> {
        match self.inner.take() {
            Some(container) => Ok(container.rm().await?),
            None => Ok(()),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // testcontainers needs a runtime to remove it, and a test's main function may have none left.
        if tokio::runtime::Handle::try_current().is_err()
            && let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build()
        {
            let _inside = runtime.enter();
            drop(self.inner.take());
        }
    }
}

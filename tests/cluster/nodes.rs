//! Three RabbitMQ nodes in containers. Clients come in by the default network, the nodes reach each
//! other by one of their own: taken off that one, a node still answers its clients.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::docker::docker;
use crate::support::eventually;
use crate::support::local_node::{Reaper, free_ports};

pub(crate) const IMAGE: &str = "rabbitmq:4-management";
pub(crate) const SIZE: usize = 3;
const START_LIMIT: Duration = Duration::from_secs(90);
/// Seconds after which a silent peer is given up; 60 without it.
const PEER_PATIENCE: u32 = 5;

/// What a node is put through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL: connections end at once.
    Kill,
    /// Frozen: connections stay open and silent, new ones are accepted and get no answer.
    Pause,
    /// Away from its peers, and as lively as ever to its clients.
    Cut,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Pause => "pause",
            Fault::Cut => "cut",
        }
    }
}

/// The running nodes. Dropping them, or the end of this process, removes all of it.
pub(crate) struct Cluster {
    name: String,
    ports: [u16; SIZE],
    _reaper: Reaper,
}

/// Again if a container was just being made.
const REMOVE: &str = r#"for pause in 0 1 3; do
    sleep $pause
    docker rm --force --volumes "$1-1" "$1-2" "$1-3"
    docker network rm "$1" && break
done"#;

impl Cluster {
    /// Three nodes that know each other.
    pub(crate) async fn start() -> Result<Cluster> {
        let name = format!("customer-relay-cluster-{}", std::process::id());
        let reaper = Reaper::start(REMOVE, &name)?;
        let cluster = Cluster { name, ports: free_ports()?, _reaper: reaper };
        docker(&["network", "create", "--internal", &cluster.name]).await?;
        for node in 0..SIZE {
            cluster.create(node).await?;
        }
        for node in 0..SIZE {
            docker(&["start", &cluster.container(node)]).await?;
        }
        for node in 0..SIZE {
            cluster.started(node).await?;
        }
        cluster.ctl(0, &["await_online_nodes", "3"]).await?;
        // A store of metadata that heals by itself: the older one stays split after a pause.
        cluster.ctl(0, &["enable_feature_flag", "--experimental", "khepri_db"]).await?;
        Ok(cluster)
    }

    /// What docker calls all parts of it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The nodes' URLs, comma-separated, beginning with this node's.
    pub(crate) fn urls(&self, first: usize) -> Vec<String> {
        let url = |node: usize| format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports[node]);
        (0..SIZE).map(|next| url((first + next) % SIZE)).collect()
    }

    /// Begins a fault.
    pub(crate) async fn strike(&self, fault: Fault, node: usize) -> Result<()> {
        let container = self.container(node);
        match fault {
            Fault::Kill => docker(&["kill", &container]).await,
            Fault::Pause => docker(&["pause", &container]).await,
            Fault::Cut => docker(&["network", "disconnect", &self.name, &container]).await,
        }?;
        Ok(())
    }

    /// Ends a fault.
    pub(crate) async fn heal(&self, fault: Fault, node: usize) -> Result<()> {
        let container = self.container(node);
        match fault {
            Fault::Kill => docker(&["start", &container]).await.map(drop),
            Fault::Pause => docker(&["unpause", &container]).await.map(drop),
            Fault::Cut => self.join(node).await,
        }
    }

    async fn create(&self, node: usize) -> Result<()> {
        let container = self.container(node);
        let published = format!("127.0.0.1:{}:5672", self.ports[node]);
        let cookie = format!("RABBITMQ_ERLANG_COOKIE={}", self.name);
        docker(&[
            "create",
            "--pull=never",
            "--memory=1g",
            &format!("--name={container}"),
            &format!("--hostname={}", host(node)),
            &format!("--publish={published}"),
            &format!("--env={cookie}"),
            IMAGE,
        ])
        .await?;
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("conf.d"))?;
        std::fs::write(folder.path().join("conf.d/cluster.conf"), settings())?;
        let from = format!("{}/conf.d", folder.path().display());
        docker(&["cp", &from, &format!("{container}:/etc/rabbitmq/")]).await?;
        self.join(node).await
    }

    async fn join(&self, node: usize) -> Result<()> {
        let alias = format!("--alias={}", host(node));
        docker(&["network", "connect", &alias, &self.name, &self.container(node)]).await.map(drop)
    }

    async fn started(&self, node: usize) -> Result<()> {
        let container = self.container(node);
        let started = eventually("the start of a node", START_LIMIT, || async {
            let log = docker(&["logs", &container]).await?;
            let state = docker(&["inspect", "--format={{.State.Running}}", &container]).await?;
            ensure!(state.trim() == "true", "{container} has ended; its log:\n{log}");
            Ok(log.contains("Server startup complete").then_some(()))
        });
        started.await
    }

    /// What `rabbitmqctl` prints on a node.
    pub(crate) async fn ctl(&self, node: usize, args: &[&str]) -> Result<String> {
        let container = self.container(node);
        docker(&[&["exec", &container, "rabbitmqctl", "--quiet"], args].concat()).await
    }

    fn container(&self, node: usize) -> String {
        format!("{}-{}", self.name, node + 1)
    }
}

/// What its peers call it.
fn host(node: usize) -> String {
    format!("node{}", node + 1)
}

/// What RabbitMQ calls it.
pub(crate) fn node_name(node: usize) -> String {
    format!("rabbit@{}", host(node))
}

fn settings() -> String {
    let peer = |node| {
        format!("cluster_formation.classic_config.nodes.{} = {}\n", node + 1, node_name(node))
    };
    let peers: String = (0..SIZE).map(peer).collect();
    format!(
        "cluster_formation.peer_discovery_backend = classic_config\n\
         net_ticktime = {PEER_PATIENCE}\n{peers}"
    )
}

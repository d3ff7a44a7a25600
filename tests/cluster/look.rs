//! The queues as a node of the cluster sees them: who leads, who is there, how much waits.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::nodes::{Cluster, SIZE, node_name};
use crate::support::eventually;

/// The metadata store's own time to come back included.
const WHOLE_LIMIT: Duration = Duration::from_mins(1);

impl Cluster {
    /// The node whose replica of a queue leads, as seen from `witness`.
    pub(crate) async fn leader(&self, queue: &str, witness: usize) -> Result<usize> {
        let queues = self.queues(witness).await?;
        let leader = queues.get(queue).and_then(|queue| queue["leader"].as_str());
        let leader = leader.with_context(|| format!("{queue} has no leader"))?;
        (0..SIZE).find(|node| leader == node_name(*node)).context("a leader of another cluster")
    }

    /// Waits until every queue that has replicas has all of them online. The active relay's lock has
    /// none.
    pub(crate) async fn whole(&self, witness: usize) -> Result<()> {
        eventually("a whole cluster", WHOLE_LIMIT, || async {
            // Fails while nodes come and go.
            let Ok(queues) = self.queues(witness).await else { return Ok(None) };
            let online = |queue: &Value| queue["online"].as_array().map(Vec::len);
            let is_whole = queues.values().filter_map(online).all(|count| count == SIZE);
            Ok((is_whole && !queues.is_empty()).then_some(()))
        })
        .await
    }

    /// Waits until the work queue and the retry tiers hold nothing.
    pub(crate) async fn drained(&self, work: &str, retry: &str) -> Result<()> {
        eventually("empty queues", WHOLE_LIMIT, || async {
            let queues = self.queues(0).await?;
            let mut queues =
                queues.iter().filter(|(name, _)| *name == work || name.starts_with(retry));
            Ok(queues.all(|(_, queue)| queue["messages"] == 0).then_some(()))
        })
        .await
    }

    /// What a node says of every queue, as a table.
    pub(crate) async fn account(&self, witness: usize) -> Result<String> {
        let list = ["list_queues", "name", "leader", "messages", "messages_ready", "state"];
        self.ctl(witness, &list).await
    }

    /// How many messages a queue holds.
    pub(crate) async fn depth(&self, queue: &str) -> Result<u64> {
        let queues = self.queues(0).await?;
        let depth = queues.get(queue).and_then(|queue| queue["messages"].as_u64());
        depth.with_context(|| format!("there is no {queue}"))
    }

    async fn queues(&self, witness: usize) -> Result<BTreeMap<String, Value>> {
        let list = ["list_queues", "--formatter=json", "name", "leader", "online", "messages"];
        let queues: Vec<Value> = serde_json::from_str(&self.ctl(witness, &list).await?)?;
        let named = |queue: Value| Some((queue["name"].as_str()?.to_owned(), queue));
        Ok(queues.into_iter().filter_map(named).collect())
    }
}

//! The fuse at work: says when one of our own rules refuses most customers, and pauses if told to.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::Worker;
use crate::amqp::orders::{self, Order};
use crate::clock;
use crate::config::FuseAction;
use crate::domain::field::Field;
use crate::domain::fuse::{Blown, Refusal};
use crate::domain::verdict::Verdict;

impl Worker {
    /// Our rules let a customer's event pass.
    pub(super) fn passed(self: &Arc<Self>, customer: &str) {
        self.note(customer, None);
    }

    /// Our rules refused a customer's event, if they got that far.
    pub(super) fn refused(self: &Arc<Self>, verdict: &Verdict, customer: Option<&str>) {
        if let (Verdict::DeadLetter(dead), Some(customer)) = (verdict, customer) {
            self.note(customer, Some((dead.field, dead.rule)));
        }
    }

    fn note(self: &Arc<Self>, customer: &str, refusal: Option<Refusal>) {
        let now = clock::instant();
        let blown = {
            let mut fuse = self.fuse.lock().unwrap_or_else(PoisonError::into_inner);
            fuse.note(customer, refusal, now)
        };
        if let Some(blown) = blown {
            self.blow(blown);
        }
    }

    fn blow(self: &Arc<Self>, blown: Blown) {
        let Blown { refusal: (field, rule), refused, customers } = blown;
        let pauses = self.config.outage.fuse == FuseAction::Pause;
        let field = field.map(Field::name);
        tracing::error!(
            field,
            rule,
            refused,
            customers,
            pauses,
            "fuse: one of our rules refuses most customers; is the rule wrong, or the CRM?"
        );
        if pauses {
            self.fuse_is_pausing.store(true, Ordering::SeqCst);
            self.gate.learn(|rules| rules.set_paused(true));
            let worker = Arc::clone(self);
            let note = serde_json::json!({"by": "fuse", "field": field, "rule": rule}).to_string();
            self.tasks.spawn(async move { worker.order_pause(&note).await });
        }
    }

    /// The pause is an order like an operator's: it survives restarts, and `resume` ends it.
    async fn order_pause(&self, note: &str) {
        let broker = &self.config.broker;
        let given = async {
            let link = broker.broker.connect("fuse").await?;
            let given = orders::give(&link, &broker.topology, Order::Pause, note, None).await;
            link.close().await;
            given
        };
        if let Err(error) = given.await {
            tracing::error!(%error, "the fuse could not pause the relay");
        }
        self.fuse_orders.fetch_add(1, Ordering::SeqCst);
        self.fuse_is_pausing.store(false, Ordering::SeqCst);
    }
}

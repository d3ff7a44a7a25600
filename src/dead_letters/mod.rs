//! What operators do with dead letters: look, understand, mend, put back, keep away. The command
//! line uses it, and any other front will.
//!
//! Lists come from the ledger's index where it agrees with the queue; bodies, and letters that no
//! relay made, from the queue itself. Looking never changes the queue: [`Scan`](crate::amqp::Scan).

mod advice;
mod edit;
mod inspect;
mod keep;
mod office;
mod plan;
mod replay;
mod run;

pub use advice::{advice, hint};
pub use edit::{Edited, Wish};
pub use inspect::{Inspected, customer_of};
pub use keep::{Place, read_exported};
pub use office::Office;
pub use plan::{InvalidPlan, Plan};
pub use replay::{Limits, Replayed, Stopped};

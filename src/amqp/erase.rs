//! Messages erased from a queue wherever in it they stand. All others go back to their places, in
//! their order; no copy of any is kept meanwhile.

use super::connection::{AmqpError, Link};
use super::delivery::Message;
use super::scan::Scan;

/// What a walk through a queue came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Messages looked at.
    pub seen: u64,
    /// Those that were meant.
    pub meant: u64,
}

/// Erases the messages that are meant, or only counts them; `None` if there is no such queue. Each
/// look counts as a delivery: the queue allows 100,000 of them. Whoever else looks at the queue
/// meanwhile finds less in it.
pub async fn erase(
    link: &Link,
    queue: &str,
    counts_only: bool,
    is_meant: impl Fn(&Message) -> bool,
    progress: impl Fn(Erased),
) -> Result<Option<Erased>, AmqpError> {
    let Some(mut scan) = Scan::begin(link, queue, None).await? else { return Ok(None) };
    let mut erased = Erased::default();
    while let Some(message) = scan.next().await? {
        erased.seen += 1;
        if is_meant(&message) {
            erased.meant += 1;
            if !counts_only {
                scan.erase(message).await?;
            }
        }
        progress(erased);
    }
    scan.end().await?;
    Ok(Some(erased))
}

//! Why a port of ours closes connections, as metrics and log call it.

/// Why a connection was closed before its client wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All connections have a request in work.
    Full,
    /// A newer one took its place.
    Displaced,
    /// Its request's head was not complete in time.
    SlowHead,
    /// Its request's body was not complete in time.
    SlowBody,
    /// Its client did not read the answer.
    SlowReader,
    /// Its request's head or body was too large.
    TooLarge,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Refusal; 6] = [
        Refusal::Full,
        Refusal::Displaced,
        Refusal::SlowHead,
        Refusal::SlowBody,
        Refusal::SlowReader,
        Refusal::TooLarge,
    ];

    /// As metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Full => "full",
            Refusal::Displaced => "displaced",
            Refusal::SlowHead => "slow-head",
            Refusal::SlowBody => "slow-body",
            Refusal::SlowReader => "slow-reader",
            Refusal::TooLarge => "too-large",
        }
    }
}

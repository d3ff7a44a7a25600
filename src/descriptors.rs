//! The process's limit of open files, and what of it the relay keeps for itself: no visitor of a port
//! may take the descriptors that broker, portal and ledger need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{AdminConfig, Config, Mistake, Mistakes};

/// Beside the portal: connections to the broker (a few for each session, and those that are given up),
/// to PostgreSQL, to collectors and resolvers, the ledger's files, event loops, standard streams, and
/// what the process was started with.
const BASE: u64 = 128;
/// A call under way may have a connection, and one more that is still being made for it.
const FOR_A_CALL: u64 = 2;
/// More is not asked for: nothing of ours needs it.
const ENOUGH: u64 = 65_536;
/// The setting that says how many visitors may take.
const KEY: &str = "admin.max_connections";

/// How many files may be open, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Open files of this process.
    pub limit: u64,
    /// Of these for broker, portal and ledger.
    pub reserve: u64,
    /// Of these for visitors of the admin port; 0: there is none.
    pub visitors: u64,
}

/// Raises the limit as far as it may be, and says what it is then.
pub fn raise_limit() -> u64 {
    let allowed = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: Some(wanted(allowed)), maximum: allowed.maximum };
    if allowed != wanted
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// What `run` would raise the limit to, were it started like this process.
pub fn limit_of_run() -> u64 {
    wanted(getrlimit(Resource::Nofile))
}

/// Never less than it is.
fn wanted(allowed: Rlimit) -> u64 {
    let current = allowed.current.unwrap_or(u64::MAX);
    current.max(allowed.maximum.unwrap_or(u64::MAX).min(ENOUGH))
}

impl Budget {
    /// What these settings need of so many.
    pub fn new(config: &Config, limit: u64) -> Budget {
        let AdminConfig { listen, max_connections, .. } = &config.admin;
        let visitors = if listen.is_some() { *max_connections as u64 } else { 0 };
        let reserve = BASE + FOR_A_CALL * config.worker.in_flight as u64;
        Budget { limit, reserve, visitors }
    }

    /// Refuses what lets visitors take what the relay needs.
    pub fn accept(self) -> Result<Budget, Mistakes> {
        self.problem().map_or(Ok(self), |problem| {
            let mistake = Mistake { key: KEY.to_owned(), source: None, problem };
            Err(Mistakes(vec![mistake]))
        })
    }

    /// Why these settings are refused, if they are.
    pub fn problem(self) -> Option<String> {
        let Budget { limit, reserve, visitors } = self;
        if visitors == 0 || reserve.saturating_add(visitors) <= limit {
            return None;
        }
        let way_out = match limit.checked_sub(reserve).filter(|left| *left > 0) {
            Some(left) => format!("set it to {left} at most, or raise the limit"),
            None => "lower worker.in_flight, or raise the limit".to_owned(),
        };
        Some(format!(
            "{visitors} leaves no reserve: this process may open {limit} files, and keeps {reserve} for \
             broker, portal and ledger; {way_out} (ulimit -n, LimitNOFILE, ulimits)"
        ))
    }

    /// For people.
    pub fn to_text(self) -> String {
        let Budget { limit, reserve, visitors } = self;
        format!(
            "open files: at most {limit}; {reserve} are kept for broker, portal and ledger, visitors of \
             the admin port get at most {visitors}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(limit: u64, reserve: u64, visitors: u64) -> Budget {
        Budget { limit, reserve, visitors }
    }

    #[test]
    fn what_leaves_the_reserve_is_accepted() {
        for accepted in [budget(448, 192, 256), budget(u64::MAX, 192, 256), budget(100, 192, 0)] {
            assert_eq!(accepted.accept(), Ok(accepted));
        }
    }

    #[test]
    fn what_leaves_no_reserve_is_refused_with_the_way_out() {
        let refused = |budget: Budget| budget.accept().expect_err("refused").to_string();
        let text = refused(budget(447, 192, 256));
        assert!(
            text.contains("admin.max_connections: 256") && text.contains("to 255 at"),
            "{text}"
        );
        let text = refused(budget(100, 192, 8));
        assert!(text.contains("lower worker.in_flight"), "{text}");
    }

    #[test]
    fn the_limit_is_raised_but_never_lowered() {
        let wanted = |current, maximum| super::wanted(Rlimit { current, maximum });
        assert_eq!(wanted(Some(1024), Some(4096)), 4096);
        assert_eq!(wanted(Some(1024), Some(1_000_000)), ENOUGH);
        assert_eq!(wanted(Some(1024), None), ENOUGH);
        assert_eq!(wanted(Some(100_000), Some(1_000_000)), 100_000);
        assert_eq!(wanted(None, None), u64::MAX);
    }
}

//! How many connections each listener may hold, so that none takes the descriptors of the others.

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandyard_http::Quota;

/// Descriptors for everything that is no client's connection: the engine, the store, files.
const RESERVE: u64 = 256;

/// Connections of one sandbox to the gateway: s3fs opens some dozens at its busiest.
const FROM_ONE_SANDBOX: usize = 128;

/// The fewest connections that a listener gets, however few descriptors there are.
const FEWEST: usize = 16;

/// The shares of the descriptors, as one part in so many. Most connections need a second descriptor, to a sandbox or
/// to the store, so together they stay below the half.
const PROXY: u64 = 6;
const GATEWAY_SANDBOXES: u64 = 8;
const GATEWAY_OWNER: u64 = 16;
const API: u64 = 12;

/// What there is to be shared.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionBudget {
    descriptors: u64,
}

impl ConnectionBudget {
    /// Raises this process's limit of open files as far as the system lets it, and shares that.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn raise() -> anyhow::Result<Self> {
        let limit = getrlimit(Resource::Nofile);
        let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
        setrlimit(Resource::Nofile, wanted).context("cannot raise the limit of open files")?;
        // No number is no limit.
        let descriptors = limit.maximum.unwrap_or(1 << 20);
        Ok(Self { descriptors: descriptors.saturating_sub(RESERVE) })
    }

    fn share(self, part: u64) -> usize {
        usize::try_from(self.descriptors / part).unwrap_or(usize::MAX).max(FEWEST)
    }

    /// For the sandbox proxy. Its clients come from few addresses.
    pub fn proxy(&self) -> Quota {
        Quota::of_all(self.share(PROXY))
    }

    /// For the REST API.
    pub fn api(&self) -> Quota {
        Quota::of_all(self.share(API))
    }

    /// For the gateway's listener that sandboxes reach, each from its own address.
    pub fn gateway_sandboxes(&self) -> Quota {
        let most = self.share(GATEWAY_SANDBOXES);
        Quota::new(most, FROM_ONE_SANDBOX.min(most / 2))
    }

    /// For the gateway's listener beside the server. It takes sandboxes too where there is no other.
    pub fn gateway_owner(&self) -> Quota {
        Quota::new(self.share(GATEWAY_OWNER), FROM_ONE_SANDBOX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_listeners_hold_leaves_the_reserve() {
        for limit in [1024_u64, 4096, 1 << 20] {
            let budget = ConnectionBudget { descriptors: limit - RESERVE };
            let all: usize = [PROXY, GATEWAY_SANDBOXES, GATEWAY_OWNER, API]
                .map(|part| budget.share(part))
                .iter()
                .sum();
            // Two descriptors each.
            assert!(2 * all as u64 + RESERVE <= limit, "{limit}");
        }
    }
}

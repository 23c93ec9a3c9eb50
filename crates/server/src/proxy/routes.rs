//! The proxy's view of the scheduler.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use sandyard_core::{SandboxError, SandboxState, Scheduler};
use sandyard_types::{SandboxId, Secret};
use tracing::warn;

use super::{NotWoken, Route, Routes, Sleeping};
use crate::tokens::Tokens;

/// [`Routes`] from the scheduler and the tokens it does not know.
pub struct SchedulerRoutes {
    scheduler: Scheduler,
    tokens: Arc<dyn Tokens>,
}

impl SchedulerRoutes {
    /// Routes to what this scheduler runs.
    pub fn new(scheduler: Scheduler, tokens: Arc<dyn Tokens>) -> Self {
        Self { scheduler, tokens }
    }
}

#[async_trait]
impl Routes for SchedulerRoutes {
    fn route(&self, id: &SandboxId) -> Option<Route> {
        let sandbox = self.scheduler.route(id)?;
        match sandbox.state {
            SandboxState::Running | SandboxState::Snapshotting => {}
            SandboxState::Creating
            | SandboxState::Pausing
            | SandboxState::Paused
            | SandboxState::Resuming
            | SandboxState::Killing => {
                return None;
            }
        }
        Some(Route {
            address: sandbox.instance.address?,
            control_token: self.tokens.control_token(id),
            access_token: (!sandbox.secure).then(|| self.tokens.envd_access_token(id)),
            traffic_token: (!sandbox.is_public()).then(|| self.tokens.traffic_access_token(id)),
            host_mask: sandbox.network.as_ref().and_then(|n| n.mask_request_host.clone()),
        })
    }

    fn is_sandbox(&self, address: IpAddr) -> bool {
        self.scheduler.is_sandbox(address)
    }

    fn sleeping(&self, id: &SandboxId) -> Option<Sleeping> {
        let sandbox = self.scheduler.route(id).filter(|sandbox| sandbox.wakes_by_traffic())?;
        Some(Sleeping {
            access_token: sandbox.secure.then(|| self.tokens.envd_access_token(id)),
            traffic_token: (!sandbox.is_public()).then(|| self.tokens.traffic_access_token(id)),
        })
    }

    async fn wake(&self, id: &SandboxId) -> Result<(), NotWoken> {
        match self.scheduler.wake(id).await {
            Ok(_) => Ok(()),
            Err(SandboxError::NotFound(_)) => Err(NotWoken::Gone),
            Err(error @ SandboxError::TooMany { .. }) => Err(NotWoken::TooMany(error.to_string())),
            Err(error) => {
                let reason = error.chain();
                warn!(sandbox.id = %id, reason, "cannot wake a sandbox");
                Err(NotWoken::Failed(reason))
            }
        }
    }

    fn secure_sandboxes(&self) -> Vec<(SandboxId, Secret)> {
        let sandboxes = self.scheduler.routes().into_iter().filter(|sandbox| sandbox.secure);
        sandboxes
            .map(|sandbox| (sandbox.id.clone(), self.tokens.envd_access_token(&sandbox.id)))
            .collect()
    }
}

//! The proxy's view of the scheduler.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use sandyard_contract::control::Secret;
use sandyard_core::{Scheduler, State};
use sandyard_types::SandboxId;
use tracing::warn;

use super::{Route, Routes};
use crate::api::Tokens;

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
            State::Running | State::Snapshotting => {}
            State::Pausing | State::Paused | State::Killing => return None,
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

    async fn secure_sandboxes(&self) -> Vec<(SandboxId, Secret)> {
        let teams = match self.scheduler.store().teams().await {
            Ok(teams) => teams,
            Err(error) => {
                warn!(%error, "cannot look for the sandbox of a signed URL");
                return Vec::new();
            }
        };
        let sandboxes = teams
            .iter()
            .flat_map(|team| self.scheduler.list(team.id))
            .filter(|sandbox| sandbox.secure);
        sandboxes
            .map(|sandbox| {
                let token = self.tokens.envd_access_token(&sandbox.id);
                (sandbox.id.clone(), token)
            })
            .collect()
    }
}

//! One sandbox: its life-cycle table, its record, the driver that owns it, and the transitions that the driver
//! runs.

mod driver;
mod request;
mod state;
pub(crate) mod transition;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sandyard_types::{
    Lifecycle, Network, PauseKind, SandboxId, SessionId, TeamId, Template, WorkspaceSpec,
};
use time::OffsetDateTime;

pub(crate) use driver::SandboxDriver;
pub use request::Connected;
pub(crate) use request::{Answer, Bound, Request, RunRequest, SavedImage};
pub use state::{Op, SandboxState, TransitionPlan};

use crate::store::{SandboxRecord, Stage};
use crate::{Instance, TemplateReference};

/// What a create request asks for.
#[derive(Clone, Debug)]
pub struct CreateSandbox {
    /// Which template.
    pub template: TemplateReference,
    /// How long it lives from its start; at most [`crate::Limits::max_length`], not zero.
    pub timeout: Duration,
    /// What the client notes about it.
    pub metadata: BTreeMap<String, String>,
    /// Environment of every process, over the template's and the image's.
    pub env: BTreeMap<String, String>,
    /// Whether the client shows the sandbox's access token for RPC and files. Where not, the proxy shows it.
    pub secure: bool,
    /// What the client said about internet access, if anything.
    pub internet: Option<bool>,
    /// What the client said about other traffic, if anything.
    pub network: Option<Network>,
    /// The session whose workspace is mounted.
    pub session: Option<SessionId>,
    /// What happens when its time is over, and whether traffic wakes it.
    pub lifecycle: Lifecycle,
}

/// What others see of a sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The team that owns it.
    pub team: TeamId,
    /// What it was started from.
    pub template: Arc<Template>,
    /// When its present run began, or the last one while it is paused, to the microsecond.
    pub started_at: OffsetDateTime,
    /// When that run ends if nobody changes it, or when it was paused, to the microsecond.
    pub end_at: OffsetDateTime,
    /// What it is doing.
    pub state: SandboxState,
    /// What the latest pause kept, while it is paused or being resumed.
    pub paused: Option<PauseKind>,
    /// What the client noted about it.
    pub metadata: Arc<BTreeMap<String, String>>,
    /// Whether its client shows its access token for RPC and files. Where not, the proxy shows it.
    pub secure: bool,
    /// What the client said about internet access, if anything.
    pub internet: Option<bool>,
    /// What the client said about other traffic, if anything.
    pub network: Option<Arc<Network>>,
    /// What happens when its time is over, and whether traffic wakes it.
    pub lifecycle: Lifecycle,
    /// Its container.
    pub instance: Instance,
    /// What is mounted in it.
    pub workspace: Option<Arc<WorkspaceSpec>>,
}

impl Sandbox {
    /// Whether its own ports are open to whoever knows their names.
    pub fn is_public(&self) -> bool {
        self.network.as_deref().is_none_or(Network::is_public)
    }

    /// Whether traffic may wake it (control-plane 3.4): it is paused with its memory, or about to be.
    pub fn wakes_by_traffic(&self) -> bool {
        let keeps_memory = match self.state {
            SandboxState::Paused | SandboxState::Resuming => self.paused == Some(PauseKind::Full),
            SandboxState::Pausing => self.paused != Some(PauseKind::Filesystem),
            SandboxState::Creating
            | SandboxState::Running
            | SandboxState::Snapshotting
            | SandboxState::Killing => false,
        };
        self.lifecycle.auto_resume && keeps_memory
    }
}

impl SandboxRecord {
    /// A record as the rest of the world sees it.
    fn view(&self, instance: &Instance) -> Sandbox {
        let paused = match self.stage {
            Stage::Pausing(kind) | Stage::Paused(kind) | Stage::Resuming(kind) => Some(kind),
            Stage::Creating | Stage::Running | Stage::Snapshotting | Stage::Ending => None,
        };
        Sandbox {
            id: self.id.clone(),
            team: self.team,
            template: self.template.clone(),
            started_at: self.started_at,
            end_at: self.end_at,
            state: self.stage.state(),
            paused,
            metadata: self.metadata.clone(),
            secure: self.secure,
            internet: self.internet,
            network: self.network.clone(),
            lifecycle: self.lifecycle,
            instance: instance.clone(),
            workspace: self.workspace.clone(),
        }
    }
}

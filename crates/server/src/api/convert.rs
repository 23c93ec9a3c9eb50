//! Sandboxes of the scheduler in the forms that clients see.

use sandyard_contract::ENVD_VERSION;
use sandyard_contract::rest::{
    CLIENT_ID, LifecycleBody, ListedSandboxBody, PauseMode, SandboxBody, SandboxDetailBody,
    TimeoutAction, VisibleState,
};
use sandyard_core::{Sandbox, SandboxState};
use sandyard_types::PauseKind;

use super::App;

/// State as clients see it (control-plane 3.2); `None` for what they no longer see.
pub(super) fn visible(state: SandboxState) -> Option<VisibleState> {
    match state {
        SandboxState::Running | SandboxState::Snapshotting => Some(VisibleState::Running),
        SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming => {
            Some(VisibleState::Paused)
        }
        SandboxState::Creating | SandboxState::Killing => None,
    }
}

/// The answer to create and connect.
pub(super) fn sandbox_body(app: &App, sandbox: &Sandbox) -> SandboxBody {
    SandboxBody {
        template_id: sandbox.template.id.to_string(),
        sandbox_id: sandbox.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        envd_version: ENVD_VERSION.to_owned(),
        alias: sandbox.template.alias().map(ToString::to_string),
        envd_access_token: sandbox.secure.then(|| app.tokens.envd_access_token(&sandbox.id)),
        traffic_access_token: (!sandbox.is_public())
            .then(|| app.tokens.traffic_access_token(&sandbox.id)),
        domain: Some(app.domain.to_string()),
    }
}

/// An entry of a list; `None` for a sandbox that clients no longer see.
pub(super) fn listed_body(sandbox: &Sandbox) -> Option<ListedSandboxBody> {
    Some(ListedSandboxBody {
        template_id: sandbox.template.id.to_string(),
        sandbox_id: sandbox.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        envd_version: ENVD_VERSION.to_owned(),
        alias: sandbox.template.alias().map(ToString::to_string),
        started_at: sandbox.started_at,
        end_at: sandbox.end_at,
        cpu_count: sandbox.template.cpu_count,
        memory_mb: sandbox.template.memory_mib,
        disk_size_mb: sandbox.template.disk_mib,
        state: visible(sandbox.state)?,
        metadata: (!sandbox.metadata.is_empty()).then(|| (*sandbox.metadata).clone()),
        volume_mounts: Vec::new(),
    })
}

/// All about a sandbox; `None` for one that clients no longer see.
pub(super) fn detail_body(app: &App, sandbox: &Sandbox) -> Option<SandboxDetailBody> {
    Some(SandboxDetailBody {
        listed: listed_body(sandbox)?,
        envd_access_token: sandbox.secure.then(|| app.tokens.envd_access_token(&sandbox.id)),
        allow_internet_access: sandbox.internet,
        domain: Some(app.domain.to_string()),
        network: sandbox.network.as_deref().cloned(),
        lifecycle: LifecycleBody {
            auto_resume: sandbox.lifecycle.auto_resume,
            on_timeout: match sandbox.lifecycle.on_timeout {
                sandyard_types::OnTimeout::Kill => TimeoutAction::Kill,
                sandyard_types::OnTimeout::Pause(_) => TimeoutAction::Pause,
            },
        },
        pause_mode: sandbox.paused.filter(|_| sandbox.state == SandboxState::Paused).map(|kind| {
            match kind {
                PauseKind::Full => PauseMode::Full,
                PauseKind::Filesystem => PauseMode::Filesystem,
            }
        }),
    })
}

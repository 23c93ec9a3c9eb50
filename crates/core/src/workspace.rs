//! What of the object store a sandbox gets (design 6): resolved once, here.

use std::sync::Arc;

use sandyard_types::{SessionId, TeamId, Template, WorkspaceSpec};

use crate::{SandboxError, SchedulerParts};

/// The workspace of a team's session in a sandbox of a template. A session is the team's own: the same name means
/// another one to another team.
pub(crate) async fn resolve(
    parts: &SchedulerParts,
    team: TeamId,
    template: &Template,
    session: &SessionId,
) -> Result<Arc<WorkspaceSpec>, SandboxError> {
    let target = template.workspace_target.for_session(session)?;
    let prefix = parts.store.session_prefix(team, session).await?;
    let bucket = parts.bucket.clone();
    Ok(Arc::new(WorkspaceSpec::for_session(session.clone(), bucket, prefix, target)))
}

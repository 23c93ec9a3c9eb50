//! An image of a running sandbox (design 5.1): halt, freeze, commit, thaw. The workspace is not part of it.
//!
//! A start after a crash lets the sandbox go on, and removes images that nobody has.

use std::sync::Arc;

use sandyard_types::{Template, TemplateKind};
use tracing::warn;

use super::{TransitionOutcome, let_go_on, not_noted, pause};
use crate::sandbox::SavedImage;
use crate::scheduler::SchedulerShared;
use crate::store::{SandboxRecord, Stage};
use crate::{Instance, SandboxError};

pub(crate) async fn run(
    shared: Arc<SchedulerShared>,
    mut record: SandboxRecord,
    instance: Instance,
) -> TransitionOutcome {
    record.stage = Stage::Snapshotting;
    let result = save(&shared, &record, &instance).await;
    let_go_on(&shared, &record, &instance).await;
    record.stage = Stage::Running;
    if let Err(error) = shared.parts.store.update_sandbox(&record).await {
        // A start after a crash would let it go on again.
        warn!(%error, "cannot note that the sandbox runs on");
    }
    TransitionOutcome::Saved { record, result }
}

async fn save(
    shared: &Arc<SchedulerShared>,
    record: &SandboxRecord,
    instance: &Instance,
) -> Result<SavedImage, SandboxError> {
    let parts = &shared.parts;
    parts.store.update_sandbox(record).await.map_err(|source| not_noted(record, source))?;
    pause::drain(shared, record, instance).await?;
    let failed = |source| SandboxError::Runtime { op: "snapshot", id: record.id.clone(), source };
    parts.runtime.freeze(&record.instance).await.map_err(failed)?;
    let name = uuid::Uuid::new_v4().simple().to_string();
    let image = shared.commit(&record.instance, &name).await.map_err(failed)?;
    let template = &record.template;
    let workdir = template.workdir.clone().or_else(|| record.image_workdir.clone());
    let template = Template {
        kind: TemplateKind::Snapshot,
        image,
        workdir,
        pool: 0,
        ..Template::clone(template)
    };
    Ok(SavedImage { template: Arc::new(template), source: record.clone() })
}

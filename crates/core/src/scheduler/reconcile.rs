//! The start: what the store says should run, against what the engine runs.

use std::collections::HashMap;
use std::sync::Arc;

use sandyard_types::InstanceId;
use tracing::{Instrument as _, info, info_span, warn};

use super::task::SandboxTask;
use super::{Entry, SandboxError, Scheduler};
use crate::Instance;
use crate::store::{Record, Stage};

impl Scheduler {
    pub(super) async fn reconcile(&self) -> Result<(), SandboxError> {
        let parts = &self.shared.parts;
        let records = parts.store.all().await?;
        let instances = parts.runtime.list().await.map_err(SandboxError::Engine)?;
        let mut instances: HashMap<InstanceId, Instance> =
            instances.into_iter().map(|instance| (instance.id.clone(), instance)).collect();
        for record in records {
            let span = info_span!("sandbox", sandbox.id = %record.id);
            let instance = instances.remove(&record.instance);
            self.take_over(record, instance).instrument(span).await?;
        }
        for instance in instances.into_values() {
            info!(instance = %instance.id, "removing a container that no record owns");
            self.delete(&instance.id).await?;
        }
        Ok(())
    }

    async fn take_over(
        &self,
        record: Record,
        instance: Option<Instance>,
    ) -> Result<(), SandboxError> {
        let lives = instance.filter(|instance| instance.address.is_some());
        match (record.stage, lives) {
            (Stage::Running | Stage::Killing, Some(instance)) => {
                info!("adopted");
                self.adopt(record, instance);
                Ok(())
            }
            (Stage::Creating, _) => {
                warn!("removing a sandbox whose create never ended");
                self.remove(&record).await
            }
            (Stage::Running | Stage::Killing, None) => {
                warn!("removing a sandbox whose container does not run any more");
                self.remove(&record).await
            }
        }
    }

    fn adopt(&self, record: Record, instance: Instance) {
        let span = info_span!("sandbox", sandbox.id = %record.id);
        let entry = Entry {
            team: record.team,
            instance: instance.id.clone(),
            address: instance.address,
            workspace: record.workspace.clone().map(Arc::new),
            live: None,
        };
        self.shared.entries().insert(record.id.clone(), entry);
        let unfinished = record.stage == Stage::Killing;
        let task = SandboxTask::new(self.shared.clone(), record, instance);
        task.publish();
        let run = async move {
            if unfinished {
                task.run_abandoned().await;
            } else {
                task.run().await;
            }
        };
        self.spawn(run.instrument(span));
    }

    async fn delete(&self, instance: &InstanceId) -> Result<(), SandboxError> {
        self.shared.parts.runtime.delete(instance).await.map_err(SandboxError::Engine)
    }

    async fn remove(&self, record: &Record) -> Result<(), SandboxError> {
        self.delete(&record.instance).await?;
        Ok(self.shared.parts.store.remove(&record.id).await?)
    }
}

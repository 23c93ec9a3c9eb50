//! Snapshots and forks: an image of a sandbox, and what becomes of it (control-plane 3.5).

use std::sync::Arc;
use std::time::Duration;

use sandyard_types::{InstanceId, SandboxId, TeamId, Template};
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::{NewSandbox, Scheduler};
use crate::catalogue::{DeleteRefusal, Snapshot};
use crate::sandbox::{Request, SavedImage};
use crate::store::{SandboxRecord, Stage};
use crate::{Op, SandboxError, TemplateReference, now};

/// Who waits for a result.
struct WaitingClient(oneshot::Sender<()>);

impl WaitingClient {
    fn has_left(&self) -> bool {
        self.0.is_closed()
    }
}

impl Scheduler {
    /// Takes a snapshot of a running sandbox, which runs on. With a name it becomes the newest build of the template
    /// of that name; without one, of a new template.
    ///
    /// # Errors
    /// [`SandboxError::SnapshotName`] for a name that the team cannot give, [`SandboxError::NotFound`],
    /// [`SandboxError::Conflict`]; others if it could not be taken: nothing is left of it then.
    pub async fn snapshot(
        &self,
        team: TeamId,
        id: &SandboxId,
        name: Option<&TemplateReference>,
    ) -> Result<Snapshot, SandboxError> {
        if let Some(name) = name {
            self.catalogue().check_snapshot_name(team, name)?;
        }
        let (scheduler, id, name) = (self.clone(), id.clone(), name.cloned());
        self.to_the_end(move |client| async move {
            let SavedImage { template, .. } = scheduler.save(team, &id, Op::Snapshot).await?;
            let added = if client.has_left() {
                Err(SandboxError::ShuttingDown)
            } else {
                let from = Template::clone(&template);
                let added = scheduler.catalogue().add_snapshot(team, &id, from, name.as_ref());
                added.await.map_err(SandboxError::from)
            };
            scheduler.shared.let_go_of_image(&template).await;
            added
        })
        .await
    }

    /// Does something that a client asks for in a task of its own: were it dropped half-way because the client left,
    /// an image that nobody has would stay.
    async fn to_the_end<T, W>(
        &self,
        work: impl FnOnce(WaitingClient) -> W,
    ) -> Result<T, SandboxError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, SandboxError>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let (here, left) = oneshot::channel();
        let work = work(WaitingClient(here));
        let task = async move {
            let result = work.await;
            // The client may have left.
            let _ = answer.send(result);
        };
        self.spawn(task.in_current_span());
        let result = answered.await.map_err(|_| SandboxError::ShuttingDown);
        drop(left);
        result?
    }

    async fn save(&self, team: TeamId, id: &SandboxId, op: Op) -> Result<SavedImage, SandboxError> {
        self.ask(Some(team), id, |answer| Request::Save { op, answer }).await
    }

    /// Starts `count` copies of a running sandbox, which runs on. Each copy is made or fails for itself. They have its
    /// files, settings and metadata, and new processes.
    ///
    /// # Errors
    /// As [`Self::snapshot`]; [`SandboxError::TooManyForks`] if the team could never have so many.
    pub async fn fork(
        &self,
        team: TeamId,
        id: &SandboxId,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Result<NewSandbox, SandboxError>>, SandboxError> {
        self.check_length(timeout)?;
        let max = self.limits().max_sandboxes;
        if count >= max {
            return Err(SandboxError::TooManyForks { count, max });
        }
        let (scheduler, id) = (self.clone(), id.clone());
        let accepted = self.to_the_end(move |client| async move {
            let SavedImage { template, source } = scheduler.save(team, &id, Op::Fork).await?;
            let record = || SandboxRecord {
                id: SandboxId::random(),
                template: template.clone(),
                instance: InstanceId::random(),
                stage: Stage::Creating,
                started_at: now(),
                end_at: now() + timeout,
                timeout,
                ..source.clone()
            };
            let count = if client.has_left() { 0 } else { count };
            let accepted: Vec<_> = (0..count).map(|_| scheduler.accept(record())).collect();
            // Those that were accepted hold the image from here on.
            scheduler.shared.let_go_of_image(&template).await;
            Ok(accepted)
        });
        let accepted = accepted.await?;
        let made = accepted.into_iter().map(async |accepted| self.made(accepted?).await);
        Ok(futures::future::join_all(made).await)
    }

    /// Deletes a template of the store, with all its builds and images; the reference's tag is ignored.
    ///
    /// # Errors
    /// [`DeleteRefusal`]; [`SandboxError::Store`].
    pub async fn delete_template(
        &self,
        team: TeamId,
        reference: &TemplateReference,
    ) -> Result<(), SandboxError> {
        let (id, images) = self.catalogue().deletable(team, reference)?;
        let users = {
            let entries = self.shared.entries();
            let uses =
                |template: &Arc<Template>| template.id == id || images.contains(&template.image);
            entries.values().filter(|entry| uses(&entry.template)).count()
        };
        if users > 0 {
            return Err(DeleteRefusal::InUse(users).into());
        }
        for image in self.catalogue().remove(&id).await? {
            // A create may have begun meanwhile: its end removes the image then.
            if !self.shared.image_is_used(&image) {
                self.shared.remove_image(&image).await;
            }
        }
        Ok(())
    }
}

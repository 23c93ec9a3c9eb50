//! The one task that writes the index. It applies several changes in one transaction where they
//! arrive together, so that many small writes share one synchronisation.

use std::time::Duration;

use s3s::{S3Error, S3Result, s3_error};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::DropGuard;
use tracing::{debug, error, info, warn};

use super::change::{self, Applied, Change};
use super::content::{Draft, FileId};
use super::index::{failed, now};
use super::leases::Leases;
use super::upload_uses::UploadUses;

/// How many changes, or uploads that expire, share one transaction at most.
const BATCH: usize = 64;

pub(super) struct ChangeMessage {
    pub(super) change: Change,
    pub(super) draft: Option<Draft>,
    pub(super) reply: oneshot::Sender<S3Result<Applied>>,
}

pub(super) struct IndexWriter {
    pub(super) db: SqliteConnection,
    pub(super) leases: Leases,
    pub(super) uploads: UploadUses,
    /// See [`Options::upload_age`](super::EmbeddedOptions::upload_age).
    pub(super) upload_age: Duration,
    /// How often expired uploads are looked for.
    pub(super) expiry_interval: Duration,
}

/// What became of each change, with the files that it left without a use.
type Results = Vec<S3Result<(Applied, Vec<FileId>)>>;

impl IndexWriter {
    /// Applies changes until all senders are gone, and lets expired uploads go in between.
    /// `ended` is dropped with the writer.
    pub(super) async fn run(
        mut self,
        mut changes: mpsc::Receiver<ChangeMessage>,
        ended: DropGuard,
    ) {
        let first = Instant::now() + self.expiry_interval;
        let mut expiry = tokio::time::interval_at(first, self.expiry_interval);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                received = changes.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break;
                    }
                    self.apply(std::mem::take(&mut batch)).await;
                }
                _ = expiry.tick() => {
                    if self.expire_some().await {
                        expiry.reset_immediately();
                    }
                }
            }
        }
        if let Err(error) = self.db.close().await {
            warn!(%error, "cannot close the index of the object store");
        }
        drop(ended);
    }

    async fn apply(&mut self, batch: Vec<ChangeMessage>) {
        let (mut work, mut drafts, mut replies) = (Vec::new(), Vec::new(), Vec::new());
        for message in batch {
            work.push(message.change);
            // Whether the index names the file is open until the transaction is over. If this task
            // ends before, the file stays, and the next open knows.
            drafts.push(message.draft.map(Draft::keep));
            replies.push(message.reply);
        }
        let results = transaction(&mut self.db, work).await.unwrap_or_else(|failure| {
            error!(error = %failure, "the index of the object store failed");
            let failed = |_| Err(s3_error!(InternalError, "the index failed: {failure}"));
            replies.iter().map(failed).collect()
        });
        for ((result, draft), reply) in results.into_iter().zip(drafts).zip(replies) {
            let answer = match result {
                Ok((applied, freed)) => {
                    self.leases.retire(freed);
                    Ok(applied)
                }
                Err(error) => {
                    if let Some(file) = draft {
                        self.leases.discard(file);
                    }
                    Err(error)
                }
            };
            if reply.send(answer).is_err() {
                debug!("a client left before its write was answered");
            }
        }
    }

    /// Removes all uploads that are over the age, for the open.
    pub(super) async fn expire_all(&mut self) {
        while self.expire_some().await {}
    }

    /// Removes uploads that are over the age, and returns whether there may be more.
    async fn expire_some(&mut self) -> bool {
        let age = i64::try_from(self.upload_age.as_millis()).unwrap_or(i64::MAX);
        let idle_since = now().saturating_sub(age);
        let expired = expire(&mut self.db, &self.uploads, idle_since).await;
        self.uploads.expired();
        match expired {
            Ok((0, _)) => false,
            Ok((uploads, freed)) => {
                info!(uploads, "removed unfinished uploads that nobody wrote to for long");
                self.leases.retire(freed);
                uploads == BATCH
            }
            Err(failure) => {
                error!(error = %failure, "cannot remove unfinished uploads");
                false
            }
        }
    }
}

/// Applies `work` in one transaction, each change by itself: one that is refused or fails has
/// changed nothing, and the others stand.
async fn transaction(db: &mut SqliteConnection, work: Vec<Change>) -> sqlx::Result<Results> {
    let mut transaction = db.begin_with("BEGIN IMMEDIATE").await?;
    let mut results = Vec::with_capacity(work.len());
    for change in work {
        let mut step = transaction.begin().await?;
        let mut freed = Vec::new();
        results.push(match change::apply(&mut step, change, &mut freed).await {
            Ok(applied) => {
                step.commit().await?;
                Ok((applied, freed))
            }
            Err(refused) => {
                step.rollback().await?;
                if *refused.code() == s3s::S3ErrorCode::InternalError {
                    error!(error = %refused, "a change of the object store failed");
                }
                Err(refused)
            }
        });
    }
    transaction.commit().await?;
    Ok(results)
}

/// Removes uploads that nobody uses, and nobody wrote to since `idle_since`, with their parts.
async fn expire(
    db: &mut SqliteConnection,
    uploads: &UploadUses,
    idle_since: i64,
) -> Result<(usize, Vec<FileId>), S3Error> {
    let idle = change::idle_uploads(db, idle_since).await?;
    if idle.is_empty() {
        return Ok((0, Vec::new()));
    }
    let mut transaction = db.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let expiring = uploads.expire(idle, BATCH);
    let mut freed = Vec::new();
    for upload in &expiring {
        change::drop_upload(&mut transaction, upload, &[], &mut freed).await?;
    }
    transaction.commit().await.map_err(failed)?;
    Ok((expiring.len(), freed))
}

//! Watching what sandboxes write: each has a limit, and the engine's disk keeps a part of itself free.

use std::sync::atomic::Ordering;
use std::time::Instant;

use sandyard_types::{InstanceId, SandboxId};
use tracing::{info, warn};

use super::task::Request;
use super::{Scheduler, State};
use crate::DiskSpace;

/// The part of the engine's disk that is kept free, as one of so many.
const KEPT_FREE: u64 = 20;

/// A sandbox that wrote less than this is not ended to make room: it would gain nothing.
const WORTH_ENDING: u64 = 64 << 20;

/// What looking costs is bounded to one part of the time in so many.
const SHARE_OF_TIME: u32 = 20;

/// One sandbox and what it has written, in bytes.
struct Writer {
    id: SandboxId,
    limit: u64,
    written: u64,
}

impl Scheduler {
    /// Ends sandboxes that have written more than their template allows, and, while the engine's disk is nearly
    /// full, the one that has written most; then creates are refused too. Runs until dropped.
    pub async fn watch_disk(&self) {
        let mut pause = self.limits().disk_watch;
        loop {
            tokio::time::sleep(pause).await;
            let begun = Instant::now();
            self.look_at_disk().await;
            pause = self.limits().disk_watch.max(begun.elapsed() * SHARE_OF_TIME);
        }
    }

    async fn look_at_disk(&self) {
        let runtime = &self.shared.parts.runtime;
        let space = runtime.disk_space();
        let full = space.is_some_and(|space| is_full(&space));
        if self.shared.disk_is_full.swap(full, Ordering::Relaxed) != full {
            match full {
                true => warn!(?space, "the disk is nearly full: no more sandboxes are made"),
                false => info!(?space, "the disk has room again"),
            }
        }
        if !full && runtime.bounds_disk() {
            return;
        }
        let writers = match runtime.disk_usage().await {
            Ok(usage) => self.writers(&usage),
            Err(error) => return warn!(%error, "cannot see what sandboxes have written"),
        };
        for writer in writers.iter().filter(|writer| writer.written > writer.limit) {
            let (written, limit) = (writer.written >> 20, writer.limit >> 20);
            let what =
                format!("it has written {written} MiB on the disk; its limit is {limit} MiB");
            self.end_exceeding(&writer.id, what).await;
        }
        let within = writers.iter().filter(|writer| writer.written <= writer.limit);
        if let Some(most) = within.max_by_key(|writer| writer.written).filter(|_| full)
            && most.written >= WORTH_ENDING
        {
            let what = format!(
                "the disk is nearly full, and it has written most of all, {} MiB",
                most.written >> 20
            );
            self.end_exceeding(&most.id, what).await;
        }
    }

    fn writers(&self, usage: &[(InstanceId, u64)]) -> Vec<Writer> {
        let entries = self.shared.entries();
        let writer = |(id, entry): (&SandboxId, &super::Entry)| {
            let sandbox = entry.live.as_ref()?.view.borrow().clone();
            let (_, written) = usage.iter().find(|(instance, _)| *instance == entry.instance)?;
            let limit = u64::from(sandbox.template.disk_mib) << 20;
            (sandbox.state != State::Killing).then(|| Writer {
                id: id.clone(),
                limit,
                written: *written,
            })
        };
        entries.iter().filter_map(writer).collect()
    }

    async fn end_exceeding(&self, id: &SandboxId, what: String) {
        if let Some(live) = self.live(id) {
            // A task that has ended has nothing left to end.
            let _ = live.requests.send(Request::Exceeded(what)).await;
        }
    }
}

fn is_full(space: &DiskSpace) -> bool {
    space.free < space.total / KEPT_FREE
}

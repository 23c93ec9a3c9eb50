//! Watching what sandboxes write: each has a limit, and the engine's disk keeps a part of itself free.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sandyard_types::{InstanceId, SandboxId};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::Scheduler;
use crate::SandboxState;
use crate::events::EndReason;
use crate::sandbox::Request;

/// The part of the engine's disk that is kept free, as one of so many.
const KEPT_FREE: u64 = 20;

/// What sandboxes have written is remembered while less than this part of the disk is free, as one of so many: who
/// fills the rest is seen by what it adds.
const FILLING: u64 = 10;

/// A sandbox that has added less than this is not ended to make room: it would gain nothing.
const WORTH_ENDING: u64 = 64 << 20;

/// What looking costs is bounded to one part of the time in so many.
const SHARE_OF_TIME: u32 = 20;

/// One sandbox and what it has written, in bytes.
struct DiskUser {
    id: SandboxId,
    limit: u64,
    written: u64,
    /// Of that, since the disk was last not full.
    added: u64,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct DiskHistory {
    /// What each container had written when the disk was last not full.
    written: HashMap<InstanceId, u64>,
    /// The sandbox that was ended to make room.
    ended: Option<SandboxId>,
}

impl Scheduler {
    /// Ends sandboxes that have written more than their template allows. While the engine's disk is nearly full,
    /// creates are refused, and the sandbox that has added most outside its workspace is ended, one at a time. Runs
    /// until dropped.
    pub async fn watch_disk(&self) {
        let mut seen = DiskHistory::default();
        let mut pause = self.limits().disk_watch;
        loop {
            tokio::time::sleep(pause).await;
            let begun = Instant::now();
            self.look_at_disk(&mut seen).await;
            pause = self.limits().disk_watch.max(begun.elapsed() * SHARE_OF_TIME);
        }
    }

    async fn look_at_disk(&self, seen: &mut DiskHistory) {
        let runtime = &self.shared.parts.runtime;
        let space = runtime.disk_space();
        let has_less_than = |part: u64| space.is_some_and(|s| s.free < s.total / part);
        let full = has_less_than(KEPT_FREE);
        if self.shared.disk_is_full.swap(full, Ordering::Relaxed) != full {
            match full {
                true => warn!(?space, "the disk is nearly full: no more sandboxes are made"),
                false => info!(?space, "the disk has room again"),
            }
        }
        if !has_less_than(FILLING) && runtime.bounds_disk() {
            seen.written.clear();
            return;
        }
        let usage = match runtime.disk_usage().await {
            Ok(usage) => usage,
            Err(error) => return warn!(%error, "cannot see what sandboxes have written"),
        };
        if !full {
            seen.written = usage.iter().cloned().collect();
        }
        let users = self.users(&usage, &seen.written);
        for user in users.iter().filter(|user| user.written > user.limit) {
            let (written, limit) = (user.written >> 20, user.limit >> 20);
            let what =
                format!("it has written {written} MiB on the disk; its limit is {limit} MiB");
            self.end_exceeding(&user.id, what).await;
        }
        // Its room is there only when its container is gone.
        let ending = seen.ended.as_ref().is_some_and(|id| self.is_ending(id));
        if !full || ending {
            return;
        }
        let within = users.iter().filter(|user| user.written <= user.limit);
        if let Some(most) = within.max_by_key(|user| user.added)
            && most.added >= WORTH_ENDING
        {
            let added = most.added >> 20;
            let what =
                format!("the disk is nearly full, and it has added most of all, {added} MiB");
            self.end_exceeding(&most.id, what).await;
            seen.ended = Some(most.id.clone());
        }
    }

    fn users(
        &self,
        usage: &[(InstanceId, u64)],
        before: &HashMap<InstanceId, u64>,
    ) -> Vec<DiskUser> {
        let entries = self.shared.entries();
        let user = |(id, entry): (&SandboxId, &super::SandboxEntry)| {
            let sandbox = entry.view.borrow().clone();
            let instance = &sandbox.instance.id;
            let (_, written) = usage.iter().find(|(used, _)| used == instance)?;
            let limit = u64::from(sandbox.template.disk_mib) << 20;
            sandbox.state.is_visible().then(|| DiskUser {
                id: id.clone(),
                limit,
                written: *written,
                added: written.saturating_sub(before.get(instance).copied().unwrap_or(0)),
            })
        };
        entries.iter().filter_map(user).collect()
    }

    /// Whether a sandbox's end is under way. One whose end failed runs on, and takes no other's turn.
    fn is_ending(&self, id: &SandboxId) -> bool {
        let entries = self.shared.entries();
        entries.get(id).is_some_and(|entry| entry.view.borrow().state == SandboxState::Killing)
    }

    async fn end_exceeding(&self, id: &SandboxId, what: String) {
        let driver = {
            let entries = self.shared.entries();
            entries.get(id).map(|entry| entry.requests.clone())
        };
        if let Some(driver) = driver {
            warn!(sandbox.id = %id, reason = what, "ending the sandbox");
            let (answer, _nobody) = oneshot::channel();
            // A driver that has ended has nothing left to end.
            let _ = driver.send(Request::Kill { reason: EndReason::Exceeded, answer }).await;
        }
    }
}

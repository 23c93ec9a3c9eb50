//! Bounding the memory of frozen sandboxes (design 5.1): beyond the bound the one that has been paused for longest keeps
//! its files only.

use std::sync::Arc;

use sandyard_types::PauseKind;
use tokio::sync::broadcast::error::RecvError;
use tracing::{info, warn};

use super::Scheduler;
use crate::events::SandboxEvent;
use crate::sandbox::{Request, Sandbox};
use crate::{Event, SandboxState};

impl Scheduler {
    /// Keeps the memory of frozen sandboxes within its bound, until dropped. Looks after each pause that keeps memory,
    /// and once at the start.
    pub async fn bound_frozen_memory(&self) {
        let Some(bound) = self.limits().frozen_memory else {
            return std::future::pending().await;
        };
        let mut events = self.events();
        loop {
            self.settle_beyond(bound).await;
            loop {
                match events.recv().await {
                    Ok(Event { what: SandboxEvent::Paused { kind: PauseKind::Full }, .. })
                    // What was missed may have been one.
                    | Err(RecvError::Lagged(_)) => break,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }

    async fn settle_beyond(&self, bound: u64) {
        let mut frozen: Vec<(u64, Arc<Sandbox>)> = Vec::new();
        for sandbox in self.routes() {
            if sandbox.state != SandboxState::Paused || sandbox.paused != Some(PauseKind::Full) {
                continue;
            }
            match self.shared.parts.runtime.memory_usage(&sandbox.instance.id).await {
                Ok(bytes) => frozen.push((bytes, sandbox)),
                Err(error) => {
                    warn!(sandbox.id = %sandbox.id, %error, "cannot see how much memory a paused sandbox keeps");
                }
            }
        }
        // Paused longest ago first.
        frozen.sort_by_key(|(_, sandbox)| sandbox.end_at);
        let mut all: u64 = frozen.iter().map(|(bytes, _)| bytes).sum();
        for (bytes, sandbox) in frozen {
            if all <= bound {
                return;
            }
            let (kept, bound) = (all >> 20, bound >> 20);
            info!(sandbox.id = %sandbox.id, "paused sandboxes keep {kept} MiB of memory, and may keep {bound}: this one keeps its files only");
            let driver = {
                let entries = self.shared.entries();
                entries.get(&sandbox.id).map(|entry| entry.requests.clone())
            };
            if let Some(driver) = driver {
                // A driver that has ended keeps nothing.
                let _ = driver.send(Request::DropMemory).await;
            }
            all = all.saturating_sub(bytes);
        }
    }
}

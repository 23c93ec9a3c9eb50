//! What happens to sandboxes, told to whoever listens: logs, metrics, later an API of its own.

use sandyard_types::{PauseKind, SandboxId, TeamId};
use time::OffsetDateTime;
use tokio::sync::broadcast;

use crate::now;

/// Events that a slow listener may be behind; it then learns how many it missed.
const CAPACITY: usize = 1024;

/// Why a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// A client or the operator killed it.
    Killed,
    /// Its time was over.
    Expired,
    /// Its container ended by itself.
    Died,
    /// It used more than it may, or than there is.
    Exceeded,
    /// Its client left before it was told the id.
    Abandoned,
    /// It could not be made.
    CreateFailed,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxEvent {
    /// It runs.
    Created {
        /// Name of its template.
        template: String,
        /// Whether its container came from the pool.
        from_pool: bool,
    },
    /// It is paused.
    Paused {
        /// What was kept.
        kind: PauseKind,
    },
    /// A pause was tried and failed; it runs on.
    PauseFailed {
        /// Why.
        reason: String,
    },
    /// Its frozen memory is gone, its files are not: it counts as paused with files only from now on.
    MemoryLost,
    /// It runs again.
    Resumed {
        /// What the pause had kept.
        kind: PauseKind,
    },
    /// An image of it was made.
    SnapshotTaken,
    /// It is gone.
    Ended {
        /// Why.
        reason: EndReason,
    },
}

/// An event with when and to what it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: OffsetDateTime,
    /// To which sandbox.
    pub sandbox: SandboxId,
    /// Of which team.
    pub team: TeamId,
    /// What.
    pub what: SandboxEvent,
}

/// The one place that events go through.
pub(crate) struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(CAPACITY))
    }
}

impl Events {
    pub(crate) fn tell(&self, sandbox: &SandboxId, team: TeamId, what: SandboxEvent) {
        let event = Event { at: now(), sandbox: sandbox.clone(), team, what };
        // Without a listener nobody needs it.
        let _ = self.0.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

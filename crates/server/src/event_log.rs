//! The log of what happens to sandboxes.

use sandyard_core::{Event, SandboxEvent};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tracing::{info, warn};

/// Writes a line for every event, until there can be no more.
pub(crate) async fn run(mut events: Receiver<Event>) {
    loop {
        match events.recv().await {
            Ok(event) => write(&event),
            Err(RecvError::Lagged(missed)) => warn!(missed, "events came too fast to be logged"),
            Err(RecvError::Closed) => return,
        }
    }
}

fn write(Event { sandbox: id, what, .. }: &Event) {
    match what {
        SandboxEvent::Created { template, from_pool } => {
            info!(sandbox.id = %id, template, pool = from_pool, "sandbox created");
        }
        SandboxEvent::Paused { kind } => info!(sandbox.id = %id, ?kind, "sandbox paused"),
        SandboxEvent::PauseFailed { reason } => {
            warn!(sandbox.id = %id, reason, "the sandbox could not be paused; it runs on");
        }
        SandboxEvent::MemoryLost => {
            warn!(sandbox.id = %id, "the paused sandbox lost its memory; its files are there");
        }
        SandboxEvent::Resumed { kind } => info!(sandbox.id = %id, ?kind, "sandbox resumed"),
        SandboxEvent::SnapshotTaken => info!(sandbox.id = %id, "an image of the sandbox was made"),
        SandboxEvent::Ended { reason } => info!(sandbox.id = %id, ?reason, "sandbox ended"),
    }
}

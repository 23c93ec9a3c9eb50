//! What a sandbox's driver is asked.

use std::sync::Arc;
use std::time::Duration;

use sandyard_types::{PauseKind, Template};
use tokio::sync::oneshot;

use super::{Op, Sandbox};
use crate::SandboxError;
use crate::events::EndReason;
use crate::store::SandboxRecord;

/// Where the result of a request goes. A caller that has gone away needs none.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, SandboxError>>;

/// A sandbox that runs, and whether the request resumed it.
#[derive(Clone, Debug)]
pub struct Connected {
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// Whether it was paused before.
    pub resumed: bool,
}

/// A request that a sandbox runs.
pub(crate) struct RunRequest {
    /// [`Op::Connect`] or [`Op::Resume`].
    pub(crate) op: Op,
    /// How long it runs from now, at least.
    pub(crate) timeout: Duration,
    /// Whether it is traffic that asks: it wakes only what may be woken, and changes no end time.
    pub(crate) by_traffic: bool,
    /// Whether saved memory is used; without, processes start anew.
    pub(crate) memory: bool,
    /// Replaces what happens at the end of the run: `true` pauses.
    pub(crate) auto_pause: Option<bool>,
    pub(crate) answer: Answer<Connected>,
}

/// An image of a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct SavedImage {
    /// What sandboxes from it are like.
    pub(crate) template: Arc<Template>,
    /// The sandbox as it was.
    pub(crate) source: SandboxRecord,
}

/// How a new end time relates to the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// It is the wanted one.
    Exactly,
    /// It is never earlier than the present one.
    AtLeast,
}

/// What a sandbox's driver is asked.
pub(crate) enum Request {
    Pause {
        kind: PauseKind,
        /// Whether it is refused if the daemon does not answer.
        require_healthy: bool,
        answer: Answer<()>,
    },
    Run(RunRequest),
    /// [`Op::Snapshot`] or [`Op::Fork`]: make an image.
    Save {
        op: Op,
        answer: Answer<SavedImage>,
    },
    SetEnd {
        timeout: Duration,
        bound: Bound,
        answer: Answer<()>,
    },
    Kill {
        reason: EndReason,
        answer: Answer<()>,
    },
    /// The container may have ended: look.
    Look,
    /// A pause that kept memory keeps files only from now on.
    DropMemory,
}

impl Request {
    /// The operation of the life-cycle table; `None` for what every state takes.
    pub(super) fn op(&self) -> Option<Op> {
        match self {
            Self::Pause { .. } => Some(Op::Pause),
            Self::Run(run) => Some(run.op),
            Self::Save { op, .. } => Some(*op),
            Self::SetEnd { .. } => Some(Op::Change),
            Self::Kill { .. } => Some(Op::Kill),
            Self::Look | Self::DropMemory => None,
        }
    }

    /// Answers with an error.
    pub(super) fn refuse(self, error: SandboxError) {
        match self {
            Self::Pause { answer, .. }
            | Self::SetEnd { answer, .. }
            | Self::Kill { answer, .. } => {
                reply(answer, Err(error));
            }
            Self::Run(run) => reply(run.answer, Err(error)),
            Self::Save { answer, .. } => reply(answer, Err(error)),
            Self::Look | Self::DropMemory => {}
        }
    }
}

/// Answers a request. Its caller may have gone away.
pub(super) fn reply<T>(answer: Answer<T>, result: Result<T, SandboxError>) {
    drop(answer.send(result));
}

//! What a client may ask of a sandbox's life (control-plane 3.2, 3.4).

use serde::{Deserialize, Serialize};

/// What a pause keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PauseKind {
    /// Memory, processes and files: the container is frozen. Lasts as long as the engine runs.
    Full,
    /// Files only: the container is stopped, and a resume starts new processes.
    Filesystem,
}

/// What happens when a sandbox's time is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTimeout {
    /// It ends.
    #[default]
    Kill,
    /// It is paused.
    Pause(PauseKind),
}

/// What a client said about the end and the return of a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// What happens when the time is over.
    pub on_timeout: OnTimeout,
    /// Whether traffic wakes the sandbox from a pause that kept its memory.
    pub auto_resume: bool,
}

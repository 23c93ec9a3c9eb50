//! The life cycle of a sandbox: an enum of states and one table (control-plane 3.2).

use std::fmt;

/// What a sandbox is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SandboxState {
    /// Is being made. Nobody knows its id yet but the server.
    Creating,
    /// Runs and takes requests.
    Running,
    /// An image of the running sandbox is being made, for a snapshot or a fork.
    Snapshotting,
    /// Is being paused. Clients see `paused`.
    Pausing,
    /// Stored. Its processes are frozen or gone.
    Paused,
    /// Is being resumed. Clients see `paused` until it runs.
    Resuming,
    /// Is being ended. Clients no longer see it.
    Killing,
}

/// What may be asked of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Stop it and keep its state.
    Pause,
    /// End it.
    Kill,
    /// Make sure it runs, and for how long.
    Connect,
    /// Start it again after a pause.
    Resume,
    /// Change its end time or its network.
    Change,
    /// Save its state while it runs.
    Snapshot,
    /// Start copies of it.
    Fork,
}

/// What the table says about an operation in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransitionPlan {
    /// Do it now.
    Begin,
    /// The same is under way: share its result.
    Join,
    /// Something else is under way: serve the request when that has ended.
    Wait,
    /// Refuse: the state does not allow it.
    Conflict,
    /// Refuse: for this operation the sandbox does not exist.
    NotFound,
}

impl SandboxState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Creating,
        Self::Running,
        Self::Snapshotting,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Killing,
    ];

    /// The table of control-plane 3.2, with the two states that the contract does not name. No `_` arm: a
    /// new state or operation does not compile until someone decides what it means here.
    pub fn plan(self, op: Op) -> TransitionPlan {
        use Op::{Change, Connect, Fork, Kill, Pause, Resume, Snapshot};
        use SandboxState::{Creating, Killing, Paused, Pausing, Resuming, Running, Snapshotting};
        match (self, op) {
            (Running, Pause | Kill | Connect | Change | Snapshot | Fork)
            | (Paused, Kill | Connect | Resume) => TransitionPlan::Begin,
            (Pausing, Pause) | (Resuming, Connect | Resume) | (Killing, Kill) => {
                TransitionPlan::Join
            }
            (Creating, Kill)
            | (Snapshotting, Pause | Kill | Connect)
            | (Pausing, Kill | Connect | Resume)
            | (Resuming, Pause | Kill) => TransitionPlan::Wait,
            (Running | Snapshotting, Resume)
            | (Snapshotting | Pausing | Resuming, Change | Snapshot | Fork)
            | (Paused, Pause | Fork)
            | (Killing, Pause | Connect | Change | Snapshot | Fork) => TransitionPlan::Conflict,
            (Creating, Pause | Connect | Resume | Change | Snapshot | Fork)
            | (Paused, Change | Snapshot)
            | (Killing, Resume) => TransitionPlan::NotFound,
        }
    }

    /// Whether clients see the sandbox at all.
    pub fn is_visible(self) -> bool {
        !matches!(self, Self::Creating | Self::Killing)
    }

    /// Whether the sandbox counts towards its team's running ones.
    pub fn is_active(self) -> bool {
        !matches!(self, Self::Paused)
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "being created",
            Self::Running => "running",
            Self::Snapshotting => "being snapshotted",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
            Self::Resuming => "being resumed",
            Self::Killing => "being killed",
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Kill => "kill",
            Self::Connect => "connect to",
            Self::Resume => "resume",
            Self::Change => "change",
            Self::Snapshot => "snapshot",
            Self::Fork => "fork",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract's table, written down a second time as the client sees it: the status a call gets,
    /// `wait` for one that is answered after another operation.
    const TABLE: [(SandboxState, [&str; 7]); 7] = [
        (SandboxState::Creating, ["404", "wait", "404", "404", "404", "404", "404"]),
        (SandboxState::Running, ["204", "204", "200", "409", "204", "201", "201"]),
        (SandboxState::Snapshotting, ["wait", "wait", "wait", "409", "409", "409", "409"]),
        (SandboxState::Pausing, ["join", "wait", "wait", "wait", "409", "409", "409"]),
        (SandboxState::Paused, ["409", "204", "201", "201", "404", "404", "409"]),
        (SandboxState::Resuming, ["wait", "wait", "join", "join", "409", "409", "409"]),
        (SandboxState::Killing, ["409", "join", "409", "404", "409", "409", "409"]),
    ];

    const OPS: [Op; 7] =
        [Op::Pause, Op::Kill, Op::Connect, Op::Resume, Op::Change, Op::Snapshot, Op::Fork];

    #[test]
    fn the_table_is_the_contracts() {
        assert_eq!(TABLE.map(|(state, _)| state), SandboxState::ALL);
        for (state, row) in TABLE {
            for (op, status) in OPS.into_iter().zip(row) {
                let expected = match status {
                    "join" => TransitionPlan::Join,
                    "wait" => TransitionPlan::Wait,
                    "409" => TransitionPlan::Conflict,
                    "404" => TransitionPlan::NotFound,
                    _ => TransitionPlan::Begin,
                };
                assert_eq!(state.plan(op), expected, "{op} while {state}");
            }
        }
    }
}

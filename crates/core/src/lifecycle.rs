//! The life cycle of a sandbox: an enum of states and one table (control-plane 3.2).

use std::fmt;

/// What a sandbox is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Runs and takes requests.
    Running,
    /// A snapshot of the running sandbox is being taken.
    Snapshotting,
    /// Is being paused; clients already see `paused`.
    Pausing,
    /// Stored, with no live instance.
    Paused,
    /// Is being ended; clients no longer see it.
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
pub enum Plan {
    /// Start it now.
    Begin,
    /// The same operation is under way: share its result.
    Join,
    /// Another operation is under way: look again when it has ended.
    Wait,
    /// Refuse: the state does not allow it.
    Conflict,
    /// Refuse: for this operation the sandbox does not exist.
    NotFound,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Running, Self::Snapshotting, Self::Pausing, Self::Paused, Self::Killing];

    /// The table of control-plane 3.2. No `_` arm: a new state or operation does not compile until
    /// someone decides what it means here.
    pub fn plan(self, op: Op) -> Plan {
        use Op::{Change, Connect, Fork, Kill, Pause, Resume, Snapshot};
        use State::{Killing, Paused, Pausing, Running, Snapshotting};
        match (self, op) {
            (Running, Pause | Kill | Connect | Change | Snapshot | Fork)
            | (Paused, Kill | Connect | Resume) => Plan::Begin,
            (Pausing, Pause) | (Killing, Kill) => Plan::Join,
            (Snapshotting, Pause | Kill | Connect) | (Pausing, Kill | Connect | Resume) => {
                Plan::Wait
            }
            (Running | Snapshotting, Resume)
            | (Snapshotting | Pausing, Change | Snapshot | Fork)
            | (Paused, Pause | Fork)
            | (Killing, Pause | Connect | Change | Snapshot | Fork) => Plan::Conflict,
            (Paused, Change | Snapshot) | (Killing, Resume) => Plan::NotFound,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Snapshotting => "taking a snapshot",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
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
    const TABLE: [(State, [&str; 7]); 5] = [
        (State::Running, ["204", "204", "200", "409", "204", "201", "201"]),
        (State::Snapshotting, ["wait", "wait", "wait", "409", "409", "409", "409"]),
        (State::Pausing, ["join", "wait", "wait", "wait", "409", "409", "409"]),
        (State::Paused, ["409", "204", "201", "201", "404", "404", "409"]),
        (State::Killing, ["409", "join", "409", "404", "409", "409", "409"]),
    ];
    const OPS: [Op; 7] =
        [Op::Pause, Op::Kill, Op::Connect, Op::Resume, Op::Change, Op::Snapshot, Op::Fork];

    #[test]
    fn the_table_is_the_contracts_row_by_row() {
        assert_eq!(TABLE.map(|(state, _)| state), State::ALL);
        for (state, row) in TABLE {
            for (op, expected) in OPS.into_iter().zip(row) {
                let plan = match expected {
                    "wait" => Plan::Wait,
                    "join" => Plan::Join,
                    "409" => Plan::Conflict,
                    "404" => Plan::NotFound,
                    _ => Plan::Begin,
                };
                assert_eq!(state.plan(op), plan, "{op} while {state}");
            }
        }
    }
}

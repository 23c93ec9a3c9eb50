//! Time limits that several processes share. Whoever waits for another process must wait longer than that one
//! may take; the end of this file holds the order, and a wrong number does not compile.

use std::time::Duration;

/// How long the user's processes have between TERM and KILL. The daemon keeps it.
pub const PROCESS_GRACE: Duration = Duration::from_secs(5);

/// What `init` gives the daemon beyond [`PROCESS_GRACE`] before it kills the daemon, and with it the user's side.
pub const DAEMON_MARGIN: Duration = Duration::from_millis(500);

/// The limit for bringing everything into the store where the configuration names none: a kill, a SIGTERM, a
/// user's side that ended by itself.
pub const FLUSH_DEFAULT: Duration = Duration::from_secs(30);

/// What `init` gives its flush worker beyond the limit of the call, for a drain, a sync and a stop.
pub const FLUSH_WORKER_MARGIN: Duration = Duration::from_secs(1);

/// How long `init` waits at its end until its last reply has reached the server.
pub const LAST_REPLY: Duration = Duration::from_millis(250);

/// What the server waits for a drain, a sync or a stop beyond the limit it has named.
pub const FLUSH_CALL_MARGIN: Duration = Duration::from_secs(8);

/// How long a FUSE program may take until its root directory answers (design 6.1 (6)).
pub const PROGRAM_READY: Duration = Duration::from_secs(10);

/// What `init` gives its mount worker beyond [`PROGRAM_READY`].
pub const MOUNT_WORKER_MARGIN: Duration = Duration::from_millis(1500);

/// How long the server waits for mounts.
pub const MOUNT_CALL: Duration = Duration::from_secs(14);

/// How long `init` takes at most to drop what is cached of the store, before the user's side goes on.
pub const REFRESH: Duration = Duration::from_secs(2);

/// What `init` gives its refresh worker beyond [`REFRESH`].
pub const REFRESH_WORKER_MARGIN: Duration = Duration::from_secs(1);

/// How long the server waits for what an executor does at once, a resume included.
pub const ANSWER: Duration = Duration::from_secs(10);

/// How long a started container may take until its executor listens.
pub const BOOT: Duration = Duration::from_secs(10);

/// How long a drained user's side stays halted while its container runs. Then `init` lets it go on, since the
/// server that halted it may have ended. Time in which the container is frozen does not count.
pub const LONGEST_HALT: Duration = Duration::from_secs(60);

/// How long requests may go on in a server that was told to stop.
pub const SERVER_GRACE: Duration = Duration::from_secs(2);

/// `stop_grace_period` of the server in `compose/compose.yaml`.
pub const COMPOSE_STOP: Duration = Duration::from_secs(45);

const fn shorter(parts: &[Duration], whole: Duration) -> bool {
    let mut sum = 0;
    let mut at = 0;
    while at < parts.len() {
        sum += parts[at].as_nanos();
        at += 1;
    }
    sum < whole.as_nanos()
}

/// The server outwaits the end of the user's side and what `init` adds to the limit of a stop.
const _: () = assert!(shorter(
    &[PROCESS_GRACE, DAEMON_MARGIN, FLUSH_WORKER_MARGIN, LAST_REPLY],
    FLUSH_CALL_MARGIN
));
/// The server outwaits the mount worker.
const _: () = assert!(shorter(&[PROGRAM_READY, MOUNT_WORKER_MARGIN], MOUNT_CALL));
/// The server outwaits the refresh of a resume.
const _: () = assert!(shorter(&[REFRESH, REFRESH_WORKER_MARGIN], ANSWER));
/// A server that lives has frozen the container, or has seen the drain fail, before `init` gives up on it.
const _: () = assert!(shorter(&[FLUSH_DEFAULT, FLUSH_CALL_MARGIN], LONGEST_HALT));
/// Compose outwaits a server that stops, which brings all workspaces into the store.
const _: () = assert!(shorter(&[SERVER_GRACE, FLUSH_DEFAULT, FLUSH_CALL_MARGIN], COMPOSE_STOP));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compose_waits_as_long_as_is_said_here() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../compose/compose.yaml");
        let text = std::fs::read_to_string(file).expect("it is in the checkout");
        let line = format!("stop_grace_period: {}s", COMPOSE_STOP.as_secs());
        assert!(text.lines().any(|found| found.trim() == line), "{line}");
    }

    #[test]
    fn a_whole_that_is_no_longer_than_its_parts_is_refused() {
        let second = Duration::from_secs(1);
        assert!(!shorter(&[second, second], 2 * second));
        assert!(shorter(&[second], 2 * second));
    }
}

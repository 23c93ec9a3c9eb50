//! The end of a sandbox (design 6.1 (9)): the user's side first, then the mounts.
//!
//! The daemon ends the user's side: it cuts its clients off, then sends TERM to all processes, gives them
//! their grace and ends, which ends whoever is left. `init` only tells it to and bounds it, since it alone
//! knows the order: a client that still listens would take an end by TERM for the result of its command.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use sandyard_contract::budget::{DAEMON_MARGIN, PROCESS_GRACE};

use super::control::ConnectionId;
use super::log;

/// How far a stop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopPhase {
    /// The daemon has got TERM and ends the user's side.
    Ending { until: Instant },
    /// The daemon has got KILL, and with it everything on the user's side. A process that waits for a
    /// FUSE program goes on waiting.
    Killed,
    /// The mounts are flushed.
    Flushing,
}

/// A stop under way.
pub(super) struct Stopping {
    phase: StopPhase,
    /// First process of the user's side.
    daemon: Pid,
    /// Limit for everything after the user's side.
    pub flush_limit: Duration,
    /// Where that began.
    pub flush_started: Option<Instant>,
    /// Who waits for the end.
    pub waiting: Vec<ConnectionId>,
    /// Whether the user's side ended by itself, which is a fault.
    pub unasked: bool,
}

impl Stopping {
    /// Begins with the user's side.
    pub(super) fn begin(daemon: Pid, flush_limit: Duration) -> Self {
        send(daemon, Signal::TERM);
        let until = Instant::now() + PROCESS_GRACE + DAEMON_MARGIN;
        Self::at(StopPhase::Ending { until }, daemon, flush_limit)
    }

    /// Begins after the user's side has ended by itself.
    pub(super) fn after_end(daemon: Pid, flush_limit: Duration) -> Self {
        Self { unasked: true, ..Self::at(StopPhase::Killed, daemon, flush_limit) }
    }

    fn at(phase: StopPhase, daemon: Pid, flush_limit: Duration) -> Self {
        let (flush_started, waiting, unasked) = (None, Vec::new(), false);
        Self { phase, daemon, flush_limit, flush_started, waiting, unasked }
    }

    /// When to call [`Stopping::advance`] again, if nothing happens before.
    pub(super) fn next_look(&self) -> Option<Instant> {
        match self.phase {
            StopPhase::Ending { until } => Some(until),
            // Half of the limit for processes that wait for a program, half for the program.
            StopPhase::Killed => self.flush_started.map(|started| started + self.flush_limit / 2),
            StopPhase::Flushing => None,
        }
    }

    /// Goes on as far as possible. Returns whether the mounts are to be flushed now.
    pub(super) fn advance(&mut self, user_side_ended: bool) -> bool {
        let now = Instant::now();
        if let StopPhase::Ending { until } = self.phase
            && (user_side_ended || now >= until)
        {
            if !user_side_ended {
                log!("the daemon does not end the user's side; killing it");
                send(self.daemon, Signal::KILL);
            }
            self.phase = StopPhase::Killed;
        }
        if self.phase == StopPhase::Killed {
            let started = *self.flush_started.get_or_insert(now);
            if user_side_ended || now >= started + self.flush_limit / 2 {
                self.phase = StopPhase::Flushing;
                return true;
            }
        }
        false
    }
}

fn send(process: Pid, signal: Signal) {
    match kill_process(process, signal) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => log!("cannot signal process {process}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopping(phase: StopPhase) -> Stopping {
        // A process id that no system has.
        let daemon = Pid::from_raw(i32::MAX).expect("positive");
        Stopping::at(phase, daemon, Duration::from_secs(30))
    }

    #[test]
    fn the_mounts_are_flushed_once_the_users_side_has_ended() {
        let mut stop = stopping(StopPhase::Ending { until: Instant::now() + PROCESS_GRACE });
        assert!(!stop.advance(false));
        assert!(stop.advance(true));
        assert!(!stop.advance(true), "only once");
    }

    #[test]
    fn a_user_side_that_cannot_end_leaves_half_of_the_limit_for_the_mounts() {
        let mut stop = stopping(StopPhase::Killed);
        assert!(!stop.advance(false));
        stop.flush_started = Instant::now().checked_sub(Duration::from_secs(16));
        assert!(stop.advance(false));
    }
}

//! The end of a sandbox (design 6.1 (9)): user processes first, then the mounts.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::control::ConnectionId;
use super::log;

/// How long user processes may take to end after TERM.
const GRACE: Duration = Duration::from_secs(5);

/// How long the daemon may take to end once its processes are gone.
const DAEMON_GRACE: Duration = Duration::from_millis(300);

/// How often the user's side is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// How far a stop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// User processes have got TERM.
    Asking { until: Instant },
    /// The daemon has got TERM.
    Ending { until: Instant },
    /// The daemon has got KILL, and with it everything on the user's side. A process that waits for a
    /// FUSE program goes on waiting.
    Killed,
    /// The mounts are brought to rest.
    Flushing,
}

/// A stop under way.
pub(super) struct Stopping {
    phase: Phase,
    /// First process of the user's side.
    daemon: Pid,
    asked: HashSet<i32>,
    /// Limit for everything after the user's processes.
    pub flush_limit: Duration,
    /// Where that began.
    pub flush_started: Option<Instant>,
    /// Who waits for the end.
    pub waiting: Vec<ConnectionId>,
    /// Whether the user's side ended by itself, which is a fault.
    pub unasked: bool,
}

impl Stopping {
    /// Begins with the user's processes.
    pub(super) fn begin(daemon: Pid, flush_limit: Duration) -> Self {
        Self {
            phase: Phase::Asking { until: Instant::now() + GRACE },
            daemon,
            asked: HashSet::new(),
            flush_limit,
            flush_started: None,
            waiting: Vec::new(),
            unasked: false,
        }
    }

    /// Begins after the user's side has ended by itself.
    pub(super) fn after_end(daemon: Pid, flush_limit: Duration) -> Self {
        let phase = Phase::Killed;
        Self { phase, unasked: true, ..Self::begin(daemon, flush_limit) }
    }

    /// When to call [`Stopping::advance`] again, if nothing happens before.
    pub(super) fn next_look(&self) -> Option<Instant> {
        match self.phase {
            Phase::Asking { .. } => Some(Instant::now() + LOOK),
            Phase::Ending { until } => Some(until),
            // Half of the limit for processes that wait for a program, half for the program.
            Phase::Killed => self.flush_started.map(|started| started + self.flush_limit / 2),
            Phase::Flushing => None,
        }
    }

    /// Goes on as far as possible. Returns whether the mounts are to be brought to rest now.
    pub(super) fn advance(&mut self, user_side_ended: bool) -> bool {
        let now = Instant::now();
        if let Phase::Asking { until } = self.phase {
            let left = self.ask();
            if user_side_ended || left == 0 || now >= until {
                self.flush_started = Some(now);
                self.send(self.daemon, Signal::TERM);
                self.phase = Phase::Ending { until: now + DAEMON_GRACE };
            }
        }
        if let Phase::Ending { until } = self.phase
            && (user_side_ended || now >= until)
        {
            if !user_side_ended {
                self.send(self.daemon, Signal::KILL);
            }
            self.phase = Phase::Killed;
        }
        if self.phase == Phase::Killed {
            let started = *self.flush_started.get_or_insert(now);
            if user_side_ended || now >= started + self.flush_limit / 2 {
                self.phase = Phase::Flushing;
                return true;
            }
        }
        false
    }

    /// Sends TERM once to every user process, and returns how many there are.
    fn ask(&mut self) -> usize {
        let processes = nested_processes().unwrap_or_else(|error| {
            log!("cannot list the user's processes: {error}");
            Vec::new()
        });
        let others = processes.into_iter().filter(|process| *process != self.daemon);
        let others: Vec<Pid> = others.collect();
        for process in &others {
            if self.asked.insert(process.as_raw_nonzero().get()) {
                self.send(*process, Signal::TERM);
            }
        }
        others.len()
    }

    fn send(&self, process: Pid, signal: Signal) {
        match kill_process(process, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => log!("cannot signal process {process}: {error}"),
        }
    }
}

/// Every living process of the user's side: those that have a second id, in the nested namespace.
fn nested_processes() -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let process = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(process) = process else { continue };
        // Gone since the listing.
        let Ok(status) = fs::read_to_string(format!("/proc/{process}/status")) else {
            continue;
        };
        let field = |field: &str| status.lines().find_map(|line| line.strip_prefix(field));
        let nested = field("NSpid:").is_some_and(|ids| ids.split_whitespace().count() > 1);
        let alive =
            field("State:").is_some_and(|state| !state.trim_start().starts_with(['Z', 'X']));
        if nested && alive {
            found.push(process);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopping(phase: Phase) -> Stopping {
        // A process id that no system has.
        let daemon = Pid::from_raw(i32::MAX).expect("positive");
        Stopping { phase, ..Stopping::begin(daemon, Duration::from_secs(30)) }
    }

    #[test]
    fn the_mounts_rest_once_the_users_side_has_ended() {
        let mut stop = stopping(Phase::Ending { until: Instant::now() + DAEMON_GRACE });
        assert!(!stop.advance(false));
        assert!(stop.advance(true));
        assert!(!stop.advance(true), "only once");
    }

    #[test]
    fn a_user_side_that_cannot_end_leaves_half_of_the_limit_for_the_mounts() {
        let mut stop = stopping(Phase::Killed);
        assert!(!stop.advance(false));
        stop.flush_started = Instant::now().checked_sub(Duration::from_secs(16));
        assert!(stop.advance(false));
    }
}

//! The one place that forks and the one that waits, under one lock: an exit cannot come before its
//! child is known, and no signal can hit a number that was reaped and given away again.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

use tokio::sync::oneshot;

use super::super::log;
use super::super::tasks::lock;
use super::status::ExitStatus;

/// Whether there are children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Left {
    /// At least one, possibly an orphan.
    Some,
    /// None; as the first process of a namespace: nobody is left in it.
    None,
}

/// Children that were forked here and not reaped yet.
#[derive(Default)]
pub(in super::super) struct Reaper {
    children: Mutex<Children>,
}

#[derive(Default)]
struct Children {
    /// Who wants to know how each ends.
    waiting: HashMap<u32, oneshot::Sender<ExitStatus>>,
    /// Whether all were told to end; another one would not hear of it.
    ending: bool,
}

impl Reaper {
    /// Runs `fork`, which returns the child's process id, and tells how that child ends.
    pub(super) fn register(
        &self,
        fork: impl FnOnce() -> io::Result<u32>,
    ) -> io::Result<(u32, oneshot::Receiver<ExitStatus>)> {
        let mut children = lock(&self.children);
        if children.ending {
            return Err(io::Error::other("the sandbox is being stopped"));
        }
        let pid = fork()?;
        let (sender, receiver) = oneshot::channel();
        children.waiting.insert(pid, sender);
        Ok((pid, receiver))
    }

    /// Sends a signal to a child that is not reaped; `false` if it was.
    pub(super) fn signal(&self, pid: u32, signal: i32) -> io::Result<bool> {
        let children = lock(&self.children);
        if !children.waiting.contains_key(&pid) {
            return Ok(false);
        }
        send(pid.cast_signed(), signal).map(|()| true)
    }

    /// Takes the status of every child that ended, also of orphans that came to us.
    pub(in super::super) fn reap(&self) -> Left {
        loop {
            let mut children = lock(&self.children);
            let mut status = 0;
            // SAFETY: the pointer is to an integer of this frame.
            #[allow(unsafe_code)]
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            match pid {
                0 => return Left::Some,
                -1 => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => {
                        if error.raw_os_error() != Some(libc::ECHILD) {
                            log!("failed to wait for children: {error}");
                        }
                        return Left::None;
                    }
                },
                pid => {
                    // An orphan has no entry. Whoever started a child may have lost interest.
                    if let Some(waiting) = children.waiting.remove(&pid.cast_unsigned()) {
                        let _ = waiting.send(ExitStatus::from_raw(status));
                    }
                }
            }
        }
    }

    /// Sends TERM to everybody in the namespace if it is ours, else to our own children. Nothing is
    /// forked after it.
    pub(in super::super) fn terminate_all(&self) {
        let mut children = lock(&self.children);
        children.ending = true;
        let targets: Vec<i32> = match std::process::id() {
            1 => vec![-1],
            _ => children.waiting.keys().map(|pid| pid.cast_signed()).collect(),
        };
        for target in targets {
            match send(target, libc::SIGTERM) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    log!("failed to send TERM to {target}: {error}");
                }
                _ => {}
            }
        }
    }
}

fn send(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers.
    #[allow(unsafe_code)]
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

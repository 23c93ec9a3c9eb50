//! Signals: dead children, and being told to end.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use sandyard_contract::budget::PROCESS_GRACE;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::log;
use super::process::{Left, Reaper};

fn handled() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.add(Signal::SIGTERM);
    set
}

/// Blocks what [`Signals`] reads, in this thread and those it starts; children get an empty mask.
pub(super) fn block() -> nix::Result<()> {
    handled().thread_block()
}

/// The blocked signals, read one by one: a handler would not learn who sent them.
pub(super) struct Signals(AsyncFd<SignalDescriptor>);

struct SignalDescriptor(SignalFd);

impl AsRawFd for SignalDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

impl Signals {
    pub(super) fn open() -> io::Result<Self> {
        let fd = SignalFd::with_flags(&handled(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // SAFETY: the descriptor that `as_raw_fd` gives stays open and the same as long as the value
        // that holds it.
        #[allow(unsafe_code)]
        let fd =
            unsafe { AsyncFd::register_with_interest(SignalDescriptor(fd), Interest::READABLE) }?;
        Ok(Self(fd))
    }

    /// Reaps until TERM comes.
    pub(super) async fn until_told_to_end(&mut self, reaper: &Reaper) -> anyhow::Result<()> {
        // Children that were here before this role began.
        reaper.reap();
        loop {
            let signal = self.next().await.context("failed to read signals")?;
            reaper.reap();
            if signal.ssi_signo == Signal::SIGTERM as u32 && means_us(&signal) {
                return Ok(());
            }
        }
    }

    /// Passes TERM on and waits for the processes to end.
    pub(super) async fn end_processes(&mut self, reaper: &Reaper) -> anyhow::Result<()> {
        reaper.terminate_all();
        let deadline = Instant::now() + PROCESS_GRACE;
        while reaper.reap() == Left::Some {
            match tokio::time::timeout_at(deadline, self.next()).await {
                Ok(signal) => drop(signal.context("failed to read signals")?),
                Err(_) => {
                    log!("processes are left after {PROCESS_GRACE:?}; they end with this one");
                    break;
                }
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> io::Result<siginfo> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            match ready.get_inner_mut().0.read_signal()? {
                Some(signal) => return Ok(signal),
                None => ready.clear_ready(),
            }
        }
    }
}

/// As the first process of a PID namespace only what comes from outside it counts, as the kernel does
/// for signals without a handler: user code that is root must not end the sandbox by a stray kill. Nor
/// by a forged one: a queued signal's sender writes the process id itself, but cannot call it a kill.
fn means_us(signal: &siginfo) -> bool {
    let from_outside = signal.ssi_pid == 0 && signal.ssi_code == libc::SI_USER;
    from_outside || std::process::id() != 1
}

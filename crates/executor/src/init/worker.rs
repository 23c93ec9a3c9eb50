//! Workers: forked children for everything that may block. A worker and what it starts are one process
//! group, so that one signal ends an operation that hangs.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, Signal, kill_process_group, setpgid};
use sandyard_contract::control::{ControlFailure, FlushReport};
use serde::{Deserialize, Serialize};

use super::{log, spawn};

/// Most mounts in one call: what one report can carry descriptors for, and more than anyone needs.
pub(super) const MOST_MOUNTS: usize = 16;

/// Holds the longest report: the last lines of every program.
const REPORT_BYTES: usize = 200 << 10;

/// What a worker says to `init`. All but the first two end the worker's work.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum WorkerReport {
    /// The mount of this slot is at its target; the descriptor of that mount comes along.
    Attached(usize),
    /// These processes of the user's side were halted before the worker halted any, and are all that were.
    HaltedByUser(Vec<i32>),
    /// All mounts are there; the descriptors of the programs' output come along, in the same order.
    Mounted(Vec<Started>),
    /// The mounts are not there, and nothing of them is left.
    Failed(ControlFailure),
    /// A sync or the barrier was passed, or its limit is over.
    Flushed(FlushReport),
    /// Work without a result is done.
    Done,
}

/// A program that holds a mount.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Started {
    /// Its process id. Its parent is `init` as soon as the worker has ended.
    pub process: i32,
    /// From its start until the mount was at its target.
    pub micros: u64,
    /// What it has printed so far.
    pub lines: Vec<String>,
}

/// A running worker, seen from `init`.
pub(super) struct Worker {
    process: Pid,
    socket: OwnedFd,
}

/// What `init` receives from a worker next.
pub(super) enum WorkerMessage {
    /// Nothing yet.
    None,
    /// A report with its descriptors.
    Report(WorkerReport, Vec<OwnedFd>),
    /// It ended.
    Ended,
}

/// The worker's end.
pub(super) struct Channel {
    socket: OwnedFd,
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Channel {
    /// Sends a report. If `init` cannot be reached there is nobody left to tell, so that goes to the log.
    pub(super) fn send(&self, report: &WorkerReport, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = self.try_send(report, descriptors) {
            log!("a worker cannot report {report:?}: {error}");
        }
    }

    fn try_send(&self, report: &WorkerReport, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(report)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_MOUNTS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::Error::other("too many descriptors for one report"));
        }
        sendmsg(&self.socket, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl Worker {
    /// Starts a worker that has only the standard descriptors, its channel and those in `keep`.
    pub(super) fn start(keep: &[RawFd], work: impl FnOnce(&Channel)) -> io::Result<Self> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let process = spawn::fork(|| {
            let mut kept = keep.to_vec();
            kept.push(theirs.as_raw_fd());
            let ready = setpgid(None, None).map_err(io::Error::from);
            match ready.and_then(|()| spawn::close_all_but(&kept)) {
                Ok(()) => {
                    work(&Channel { socket: theirs });
                    0
                }
                Err(error) => {
                    log!("a worker cannot start: {error}");
                    1
                }
            }
        })?;
        // Both sides set the group, so that it exists for whoever needs it first. The child has not
        // executed anything, so the only way to fail is that it is gone already.
        if let Err(error) = setpgid(Some(process), Some(process)) {
            log!("worker {process} ended at once: {error}");
        }
        Ok(Self { process, socket })
    }

    /// Takes the next report without waiting.
    pub(super) fn receive(&self) -> io::Result<WorkerMessage> {
        let mut text = vec![0; REPORT_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_MOUNTS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let length =
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags) {
                Ok(message) => message.bytes,
                Err(rustix::io::Errno::AGAIN) => return Ok(WorkerMessage::None),
                Err(error) => return Err(error.into()),
            };
        if length == 0 {
            return Ok(WorkerMessage::Ended);
        }
        let descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = descriptors.flatten().collect();
        Ok(WorkerMessage::Report(serde_json::from_slice(&text[..length])?, descriptors))
    }

    /// Ends the worker and every program it has started.
    pub(super) fn kill(&self) {
        if let Err(error) = kill_process_group(self.process, Signal::KILL) {
            log!("cannot end worker {}: {error}", self.process);
        }
    }
}

impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

//! Pseudo-terminals (executor 4.3).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{Uid, fchown};
use sandyard_contract::rpc::process::Pty;

/// The longest read of a terminal (executor 4.3), which is more than the kernel holds of its output.
pub(super) const READ_BYTES: usize = 16 << 10;

/// Makes a terminal: our side, and the one that becomes a program's. May block, as all opening may.
pub(super) fn open(wanted: &Pty, owner: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    // Never the daemon's own terminal, and never waited for: who is root inside may have put anything
    // in this place.
    let ours = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open("/dev/ptmx")?;
    let locked: libc::c_int = 0;
    // SAFETY: both calls take what their names say: a pointer to an integer that lives on, and flags of
    // open; the descriptor that the second returns is new and belongs to nobody yet.
    #[allow(unsafe_code)]
    let theirs = unsafe {
        if libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) < 0 {
            return Err(io::Error::last_os_error());
        }
        // Not by its path, which belongs to the sandbox.
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        match libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags) {
            peer if peer < 0 => return Err(io::Error::last_os_error()),
            peer => OwnedFd::from_raw_fd(peer),
        }
    };
    // As after a login: programs open the terminal again by its name. Its group comes from the mount.
    fchown(&theirs, Some(Uid::from_raw(owner)), None)?;
    resize(&ours, wanted)?;
    Ok((ours.into(), theirs))
}

/// Sets the size, of which the programs in the foreground are told if it is another. A missing one is
/// 0 × 0, and too large ones keep their lower 16 bits (executor 4.3).
pub(super) fn resize(terminal: impl AsFd, wanted: &Pty) -> io::Result<()> {
    let size = wanted.size.unwrap_or_default();
    let size = libc::winsize {
        ws_row: size.rows as u16,
        ws_col: size.cols as u16,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: the pointer is to a size of this frame, which the kernel copies.
    #[allow(unsafe_code)]
    match unsafe { libc::ioctl(terminal, libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

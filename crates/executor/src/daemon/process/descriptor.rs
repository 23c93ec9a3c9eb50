//! Our ends of pipes and terminals: reading and writing them never makes the daemon wait.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hyper::body::Bytes;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The longest read (executor 4.3).
pub(super) const READ_BYTES: usize = 32 << 10;

thread_local! {
    // One for all descriptors: reads do not wait, so none holds it across another.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// A descriptor of ours that the runtime watches.
pub(super) struct AsyncDescriptor(AsyncFd<OwnedFd>);

impl AsyncDescriptor {
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // SAFETY: an `OwnedFd` is open, and the same, as long as it lives, and it lives in there.
        #[allow(unsafe_code)]
        let watched = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
        Ok(Self(watched))
    }

    /// Waits for bytes and takes up to `most` of them, which is at most [`READ_BYTES`]; none: the end.
    pub(super) async fn read(&self, most: usize) -> io::Result<Bytes> {
        self.0.async_io(Interest::READABLE, |fd| read(fd, most)).await
    }

    /// Takes what is there, or fails with [`io::ErrorKind::WouldBlock`].
    pub(super) fn read_now(&self, most: usize) -> io::Result<Bytes> {
        read(self.0.get_ref(), most)
    }

    /// Writes all of it, as fast as the other side takes it.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
            let written = self.0.async_io(Interest::WRITABLE, write).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

impl AsFd for AsyncDescriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

fn read(fd: &OwnedFd, most: usize) -> io::Result<Bytes> {
    SCRATCH.with_borrow_mut(|scratch| match rustix::io::read(fd, &mut scratch[..most]) {
        Ok(length) => Ok(Bytes::copy_from_slice(&scratch[..length])),
        // Nobody has the terminal's other side open any more.
        Err(Errno::IO) => Ok(Bytes::new()),
        Err(error) => Err(error.into()),
    })
}

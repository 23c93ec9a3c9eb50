//! The memory that this process shares with `init`. It answers when a request to the file system would
//! hang.
//!
//! `init` opens a file for it and gives it to s3fs at [`DESCRIPTOR`]. It holds three numbers of 64 bits in
//! the machine's byte order.

use core::sync::atomic::{AtomicU64, Ordering};

/// The number of the descriptor in s3fs.
pub const DESCRIPTOR: i32 = 4;

/// Length of the file in bytes.
pub const BYTES: usize = 4096;

/// Where the bytes are that programs have written and that are not in the store. A byte that is written
/// twice counts twice.
pub const UNSENT_AT: usize = 0;

/// Where the bytes are that were given up: the last close of a file could not bring them to the store. An
/// empty file counts as one byte.
pub const LOST_AT: usize = 8;

/// Where `init` writes the nanoseconds that s3fs's clock for cached attributes is ahead. Time that passes
/// on this clock makes s3fs ask the store again.
pub const CLOCK_AHEAD_AT: usize = 16;

#[repr(C)]
pub(crate) struct SharedPage {
    unsent: AtomicU64,
    lost: AtomicU64,
    clock_ahead: AtomicU64,
}

const _: () = {
    assert!(core::mem::offset_of!(SharedPage, unsent) == UNSENT_AT);
    assert!(core::mem::offset_of!(SharedPage, lost) == LOST_AT);
    assert!(core::mem::offset_of!(SharedPage, clock_ahead) == CLOCK_AHEAD_AT);
    assert!(core::mem::size_of::<SharedPage>() <= BYTES);
};

impl SharedPage {
    #[cfg(test)]
    pub(crate) const fn new() -> Self {
        Self { unsent: AtomicU64::new(0), lost: AtomicU64::new(0), clock_ahead: AtomicU64::new(0) }
    }

    pub(crate) fn wrote(&self, bytes: u64) {
        self.unsent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.unsent.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The last handle is closed and nothing will try again.
    pub(crate) fn gave_up(&self, bytes: u64) {
        self.lost.fetch_add(bytes.max(1), Ordering::Relaxed);
        self.sent(bytes);
    }

    pub(crate) fn clock_ahead(&self) -> u64 {
        self.clock_ahead.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn set_clock_ahead(&self, nanos: u64) {
        self.clock_ahead.store(nanos, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn unsent(&self) -> u64 {
        self.unsent.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Maps the memory, once. Nothing if the descriptor is not what it should be.
#[allow(unsafe_code)]
pub(crate) fn map() -> Option<&'static SharedPage> {
    use core::ffi::{c_int, c_void};

    // SAFETY: the signature is that of the C library's manual page.
    unsafe extern "C" {
        fn mmap(
            at: *mut c_void,
            length: usize,
            protection: c_int,
            flags: c_int,
            fd: c_int,
            offset: i64,
        ) -> *mut c_void;
    }
    const READ_AND_WRITE: c_int = 3;
    const SHARED: c_int = 1;

    let at = core::ptr::null_mut();
    // SAFETY: the kernel chooses the place, so nothing is mapped over.
    let mapped = unsafe { mmap(at, BYTES, READ_AND_WRITE, SHARED, DESCRIPTOR, 0) };
    if mapped.addr() == usize::MAX {
        return None;
    }
    // SAFETY: a page is aligned for it, is long enough, is never unmapped, and any content is good. `init`
    // never cuts the file, so no access faults.
    Some(unsafe { &*mapped.cast::<SharedPage>() })
}

//! The clock by which s3fs forgets what it has cached.
//!
//! s3fs measures the age of cached attributes by CLOCK_MONOTONIC_COARSE and uses that clock for nothing
//! else. After a pause `init` sets it forward, so that s3fs asks the store again.

use core::ffi::{c_char, c_int, c_void};
use core::mem;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::page::Page;
use crate::{NEXT, abort, dlsym};

const MONOTONIC_COARSE: c_int = 6;

const NANOS: u64 = 1_000_000_000;

/// `struct timespec`.
#[repr(C)]
pub(crate) struct Time {
    seconds: i64,
    nanos: i64,
}

type ClockGetTime = extern "C" fn(c_int, *mut Time) -> c_int;

/// What `init` shares; null until the file system runs.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(core::ptr::null_mut());

/// The C library's own function, once it was looked up.
static REAL: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

/// Follows the number in the page from now on.
pub(crate) fn follow(page: &'static Page) {
    PAGE.store(core::ptr::from_ref(page).cast_mut(), Ordering::Release);
}

/// Stands in for the C library's.
///
/// # Safety
/// As for the C library's: `time` points to a time.
#[allow(unsafe_code)]
// SAFETY: no other definition of the name is in this library; standing in for the C library's is the purpose.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Time) -> c_int {
    let result = real()(clock, time);
    if clock != MONOTONIC_COARSE || result != 0 {
        return result;
    }
    // SAFETY: it is null or a page that is never unmapped.
    if let Some(page) = unsafe { PAGE.load(Ordering::Acquire).as_ref() } {
        // SAFETY: the C library has just written to it.
        let time = unsafe { &mut *time };
        let ahead = page.clock_ahead();
        // Both parts are far below the limits of their types.
        let nanos = time.nanos + (ahead % NANOS) as i64;
        let carry = nanos / NANOS as i64;
        time.nanos = nanos % NANOS as i64;
        time.seconds += (ahead / NANOS) as i64 + carry;
    }
    result
}

#[allow(unsafe_code)]
fn real() -> ClockGetTime {
    let mut found = REAL.load(Ordering::Acquire);
    if found.is_null() {
        let name: *const c_char = c"clock_gettime".as_ptr();
        // SAFETY: the name ends with a zero byte; the handle is one of the constants that dlsym takes.
        found = unsafe { dlsym(NEXT, name) };
        if found.is_null() {
            abort();
        }
        REAL.store(found, Ordering::Release);
    }
    // SAFETY: the C library defines the name as a function of this type.
    unsafe { mem::transmute::<*mut c_void, ClockGetTime>(found) }
}

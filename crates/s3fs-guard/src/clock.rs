//! The clock by which s3fs forgets what it has cached.
//!
//! s3fs measures the age of cached attributes by CLOCK_MONOTONIC_COARSE and uses that clock for nothing
//! else. After a pause `init` sets it forward, so that s3fs asks the store again.

use core::ffi::c_int;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::page::SharedPage;

const MONOTONIC_COARSE: c_int = 6;

const NANOS: i64 = 1_000_000_000;

/// `struct timespec`.
#[repr(C)]
pub(crate) struct Time {
    seconds: i64,
    nanos: i64,
}

/// What `init` shares; null until the file system runs.
static PAGE: AtomicPtr<SharedPage> = AtomicPtr::new(core::ptr::null_mut());

/// Follows the number in the page from now on.
pub(crate) fn follow(page: &'static SharedPage) {
    PAGE.store(core::ptr::from_ref(page).cast_mut(), Ordering::Release);
}

/// The seconds that s3fs's clock shows.
pub(crate) fn seconds() -> u64 {
    let mut time = Time { seconds: 0, nanos: 0 };
    // SAFETY: the time is good for the call. Every system has the clock.
    #[allow(unsafe_code)]
    unsafe {
        #[cfg(feature = "preload")]
        stand_in::clock_gettime(MONOTONIC_COARSE, &raw mut time);
        #[cfg(not(feature = "preload"))]
        clock_gettime(MONOTONIC_COARSE, &raw mut time);
    }
    // It never is before its beginning.
    u64::try_from(time.seconds).unwrap_or(0)
}

#[cfg(not(feature = "preload"))]
#[allow(unsafe_code)]
// SAFETY: the signature is that of the C library's manual page.
unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut Time) -> c_int;
}

/// Sets a time forward as `init` wishes.
#[cfg_attr(not(feature = "preload"), allow(dead_code))]
fn set_forward(time: &mut Time) {
    // SAFETY: it is null or a page that is never unmapped.
    #[allow(unsafe_code)]
    let Some(page) = (unsafe { PAGE.load(Ordering::Acquire).as_ref() }) else { return };
    // Nobody sets it forward by centuries.
    let ahead = i64::try_from(page.clock_ahead()).unwrap_or(0);
    let nanos = time.nanos + ahead % NANOS;
    time.nanos = nanos % NANOS;
    time.seconds += ahead / NANOS + nanos / NANOS;
}

/// What takes the place of the C library's function.
#[cfg(feature = "preload")]
mod stand_in {
    use core::ffi::{c_int, c_void};
    use core::mem;
    use core::sync::atomic::{AtomicPtr, Ordering};

    use super::{MONOTONIC_COARSE, Time};
    use crate::{NEXT, abort, dlsym};

    type ClockGetTime = extern "C" fn(c_int, *mut Time) -> c_int;

    /// The C library's own function, once it was looked up.
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

    /// # Safety
    /// As for the C library's: `time` points to a time.
    #[allow(unsafe_code)]
    // SAFETY: no other definition of the name is in this library; standing in for the C library's is the
    // purpose.
    #[unsafe(no_mangle)]
    pub(crate) unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Time) -> c_int {
        let result = real()(clock, time);
        if clock == MONOTONIC_COARSE && result == 0 {
            // SAFETY: the C library has just written to it.
            super::set_forward(unsafe { &mut *time });
        }
        result
    }

    #[allow(unsafe_code)]
    fn real() -> ClockGetTime {
        let mut found = REAL.load(Ordering::Acquire);
        if found.is_null() {
            // SAFETY: the name ends with a zero byte; the handle is one of the constants that dlsym takes.
            found = unsafe { dlsym(NEXT, c"clock_gettime".as_ptr()) };
            if found.is_null() {
                abort();
            }
            REAL.store(found, Ordering::Release);
        }
        // SAFETY: the C library defines the name as a function of this type.
        unsafe { mem::transmute::<*mut c_void, ClockGetTime>(found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_goes_forward_by_what_the_page_says() {
        let page = Box::leak(Box::new(SharedPage::new()));
        let mut time = Time { seconds: 10, nanos: 600_000_000 };
        set_forward(&mut time);
        assert_eq!((time.seconds, time.nanos), (10, 600_000_000));
        page.set_clock_ahead(6_500_000_000);
        follow(page);
        set_forward(&mut time);
        assert_eq!((time.seconds, time.nanos), (17, 100_000_000));
        assert!(seconds() > 0);
    }
}

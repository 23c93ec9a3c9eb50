//! Makes truncation right in s3fs 1.90: a library to preload into it.
//!
//! s3fs loses data in two ways. A path that is not open and is truncated to a length above zero has zeros
//! in place of its content afterwards, in the store too. And a file with written data that is not in the
//! store yet is not shortened at all: not by path, not by descriptor, not by an open with O_TRUNC. So this
//! stands between s3fs and libfuse 2: it hands on s3fs's table of operations with a `truncate` and an
//! `open` that have the file open and flushed while its length changes, and counts who could have written.
//!
//! It is built as a shared library only for that purpose (see scripts/lib/binaries.sh), without the
//! standard library, and names no library that it needs: whatever C library the bundle has is the one
//! it finds loaded.

#![cfg_attr(not(test), no_std)]

mod operations;

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem;

pub use operations::Operations;

/// `fuse_main_real` of libfuse 2.6 to 2.9.
type Main = extern "C" fn(c_int, *mut *mut c_char, *const Operations, usize, *mut c_void) -> c_int;

#[allow(unsafe_code)]
// SAFETY: the signatures are those of the C library's manual pages.
unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize;
    #[cfg(not(test))]
    safe fn abort() -> !;
}

/// "The next one after this library", for `dlsym`.
const NEXT: *mut c_void = core::ptr::without_provenance_mut(usize::MAX);

/// Runs the file system with a table of operations whose `truncate` is right.
///
/// # Safety
/// As for libfuse's: `operations` points to a table of `size` bytes.
#[allow(unsafe_code)]
// SAFETY: no other definition of the name is in this library; standing in for libfuse's is the purpose.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fuse_main_real(
    count: c_int,
    arguments: *mut *mut c_char,
    operations: *const Operations,
    size: usize,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: the name ends with a zero byte; the handle is one of the constants that dlsym takes.
    let real = unsafe { dlsym(NEXT, c"fuse_main_real".as_ptr()) };
    if real.is_null() {
        return refuse(c"sandyard-s3fs-truncate: libfuse is not loaded\n");
    }
    // SAFETY: libfuse 2 defines the name as a function of this type.
    let real: Main = unsafe { mem::transmute::<*mut c_void, Main>(real) };
    // SAFETY: the caller's promise about `operations` and `size`.
    match unsafe { operations::corrected(operations, size) } {
        Some((table, size)) => real(count, arguments, table, size, user_data),
        None => {
            refuse(c"sandyard-s3fs-truncate: the table of operations is not one of libfuse 2\n")
        }
    }
}

/// Says why the file system does not run; the return value is a failure of `fuse_main_real`.
fn refuse(why: &CStr) -> c_int {
    // SAFETY: the pointer is good for as many bytes. What cannot be written nobody can be told.
    #[allow(unsafe_code)]
    let _ = unsafe { write(2, why.as_ptr().cast(), why.count_bytes()) };
    1
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    abort()
}

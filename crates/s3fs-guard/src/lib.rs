//! Keeps s3fs 1.90 from losing data: a library to preload into it.
//!
//! Left alone, s3fs does this:
//!
//! * A path that is not open and is truncated to a length above zero has zeros in place of its content
//!   afterwards, in the store too.
//! * A file with written data that is not in the store yet is not shortened: not by path, not by
//!   descriptor, not by an open with O_TRUNC.
//! * An open of such a file cuts its data to the length that the store knows. Writes beyond it leave a
//!   hole: two programs that append to one log lose each other's lines.
//! * A new file is not in the store until it is closed or flushed. Another program that opens it gets
//!   "no such file", listings lack it, and a rename of a directory above it loses it.
//! * A listing that overlaps with an upload brings the file's old length back for seconds. An append then
//!   overwrites what was appended before.
//!
//! * A sync of the file system does not reach it: what programs have written to open files stays with s3fs.
//! * After a pause of the sandbox it goes on with attributes that it has cached before.
//!
//! So this stands between s3fs and libfuse 2. It hands on s3fs's table of operations with some of them
//! corrected: each brings what is written to the store before s3fs relies on the store (module `guard`). It
//! shares a page of memory with `init` (module `page`).
//!
//! It is built as a shared library only for that purpose (see scripts/lib/binaries.sh), with the feature
//! `preload`: without the standard library. It takes only functions from the C library that it has had
//! forever: whatever C library the bundle has is the one it finds loaded.

#![cfg_attr(feature = "preload", no_std)]

extern crate alloc;

mod abi;
mod clock;
mod files;
mod guard;
mod listings;
mod operations;
pub mod page;

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem;

pub use abi::Operations;

/// What s3fs is told about the age of cached attributes: when one is older it asks the store again.
pub const ATTRIBUTES_SECS: u64 = 5;

/// `fuse_main_real` of libfuse 2.6 to 2.9.
type Main = extern "C" fn(c_int, *mut *mut c_char, *const Operations, usize, *mut c_void) -> c_int;

#[allow(unsafe_code)]
// SAFETY: the signatures are those of the C library's manual pages.
unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize;
    #[cfg(feature = "preload")]
    safe fn abort() -> !;
}

/// "The next one after this library", for `dlsym`.
const NEXT: *mut c_void = core::ptr::without_provenance_mut(usize::MAX);

/// Runs the file system with a corrected table of operations.
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
        return refuse(c"sandyard-s3fs-guard: libfuse is not loaded\n");
    }
    // SAFETY: libfuse 2 defines the name as a function of this type.
    let real: Main = unsafe { mem::transmute::<*mut c_void, Main>(real) };
    let Some(page) = page::map() else {
        return refuse(c"sandyard-s3fs-guard: the memory shared with init cannot be mapped\n");
    };
    clock::follow(page);
    // SAFETY: the caller's promise about `operations` and `size`.
    match unsafe { operations::corrected(operations, size, page) } {
        Some((table, size)) => real(count, arguments, table, size, user_data),
        None => refuse(c"sandyard-s3fs-guard: the table of operations is not one of s3fs 1.90\n"),
    }
}

/// Says why the file system does not run; the return value is a failure of `fuse_main_real`.
fn refuse(why: &CStr) -> c_int {
    // SAFETY: the pointer is good for as many bytes. What cannot be written nobody can be told.
    #[allow(unsafe_code)]
    let _ = unsafe { write(2, why.as_ptr().cast(), why.count_bytes()) };
    1
}

/// What the standard library would bring along.
#[cfg(feature = "preload")]
mod runtime {
    use core::alloc::{GlobalAlloc, Layout};
    use core::ffi::c_void;
    use core::ptr;

    #[allow(unsafe_code)]
    // SAFETY: the signatures are those of the C library's manual pages.
    unsafe extern "C" {
        fn malloc(size: usize) -> *mut c_void;
        fn free(block: *mut c_void);
    }

    struct Heap;

    /// What `malloc` aligns everything to on 64-bit Linux.
    const ALIGNMENT: usize = 16;

    // SAFETY: malloc's blocks are of the size asked for and aligned to as much as is promised; what asks
    // for more is refused.
    #[allow(unsafe_code)]
    unsafe impl GlobalAlloc for Heap {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if layout.align() > ALIGNMENT {
                return ptr::null_mut();
            }
            // SAFETY: any size is good.
            unsafe { malloc(layout.size()) }.cast()
        }

        unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
            // SAFETY: the caller has it from `alloc`.
            unsafe { free(block.cast()) };
        }
    }

    #[global_allocator]
    static HEAP: Heap = Heap;

    /// The compiled parts of `alloc` name it, for the unwinding of panics. There is none here: the library
    /// is built to abort.
    #[allow(unsafe_code)]
    // SAFETY: only the standard library defines the name, and it is not linked in.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() -> ! {
        super::abort()
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        super::abort()
    }
}

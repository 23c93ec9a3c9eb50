//! The table of operations that libfuse gets.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::mem;
use core::ptr;

use rustix_futex_sync::OnceLock;

use crate::abi::{FileInfo, Filler, Offset, Operations, Path, Stat, Times};
use crate::guard::Guard;
use crate::page::SharedPage;

/// A process has one file system.
static GUARD: OnceLock<Guard> = OnceLock::new();
static CORRECTED: OnceLock<Operations> = OnceLock::new();

/// Copies a table, as much of it as libfuse 2.9 knows, and corrects the copy. Nothing if it is not one of
/// s3fs 1.90, or if a process asks twice.
///
/// # Safety
/// `operations` points to a table of `size` bytes.
#[allow(unsafe_code)]
pub(crate) unsafe fn corrected(
    operations: *const Operations,
    size: usize,
    page: &'static SharedPage,
) -> Option<(*const Operations, usize)> {
    if size < Operations::LEAST {
        return None;
    }
    let size = size.min(mem::size_of::<Operations>());
    let mut table = Operations::EMPTY;
    // SAFETY: the source has `size` bytes, the caller says; the target has at least as many. All bytes
    // come from pointers or nulls.
    unsafe { ptr::copy_nonoverlapping(operations.cast::<u8>(), (&raw mut table).cast(), size) };
    if !table.is_known() || GUARD.set(Guard::new(table, page)).is_err() {
        return None;
    }
    table.getattr = Some(getattr);
    table.rmdir = Some(rmdir);
    table.rename = Some(rename);
    table.truncate = Some(truncate);
    table.open = Some(open);
    table.write = Some(write);
    table.flush = Some(flush);
    table.release = Some(release);
    table.fsync = Some(fsync);
    table.readdir = Some(readdir);
    table.fsyncdir = Some(fsyncdir);
    table.create = Some(create);
    table.fgetattr = Some(fgetattr);
    table.chmod = table.chmod.and(Some(chmod));
    table.chown = table.chown.and(Some(chown));
    table.access = table.access.and(Some(access));
    table.utimens = table.utimens.and(Some(utimens));
    Some((&raw const *CORRECTED.get_or_init(|| table), size))
}

/// # Panics
/// Never: libfuse has the functions below only from a table that was made after this.
fn guard() -> &'static Guard {
    GUARD.get().expect("set before the table was given away")
}

/// A path as libfuse gives it; one that it no longer knows is "-".
fn path<'a>(path: Path) -> &'a CStr {
    if path.is_null() {
        return c"-";
    }
    // SAFETY: libfuse gives C strings that live as long as the call.
    #[allow(unsafe_code)]
    unsafe {
        CStr::from_ptr(path)
    }
}

fn info<'a>(info: *mut FileInfo) -> &'a mut FileInfo {
    // SAFETY: libfuse gives a pointer of its caller's own, good for the call.
    #[allow(unsafe_code)]
    unsafe {
        &mut *info
    }
}

extern "C" fn getattr(at: Path, stat: Stat) -> c_int {
    guard().getattr(path(at), stat)
}

extern "C" fn fgetattr(at: Path, stat: Stat, _: *mut FileInfo) -> c_int {
    guard().fgetattr(path(at), stat)
}

extern "C" fn rmdir(at: Path) -> c_int {
    guard().rmdir(path(at))
}

extern "C" fn rename(from: Path, to: Path) -> c_int {
    guard().rename(path(from), path(to))
}

extern "C" fn truncate(at: Path, size: Offset) -> c_int {
    guard().truncate(path(at), size)
}

extern "C" fn open(at: Path, file: *mut FileInfo) -> c_int {
    guard().open(path(at), info(file))
}

extern "C" fn write(
    at: Path,
    bytes: *const c_char,
    size: usize,
    offset: Offset,
    file: *mut FileInfo,
) -> c_int {
    guard().write(path(at), bytes, size, offset, info(file))
}

extern "C" fn flush(at: Path, file: *mut FileInfo) -> c_int {
    guard().flush(path(at), info(file))
}

extern "C" fn release(at: Path, file: *mut FileInfo) -> c_int {
    guard().release(path(at), info(file))
}

extern "C" fn fsync(at: Path, data_only: c_int, file: *mut FileInfo) -> c_int {
    guard().fsync(path(at), data_only, info(file))
}

extern "C" fn readdir(
    at: Path,
    buffer: *mut c_void,
    filler: Filler,
    offset: Offset,
    file: *mut FileInfo,
) -> c_int {
    guard().readdir(path(at), buffer, filler, offset, file)
}

extern "C" fn fsyncdir(at: Path, _: c_int, _: *mut FileInfo) -> c_int {
    guard().fsyncdir(path(at))
}

extern "C" fn create(at: Path, mode: c_uint, file: *mut FileInfo) -> c_int {
    guard().create(path(at), mode, info(file))
}

extern "C" fn chmod(at: Path, mode: c_uint) -> c_int {
    guard().alone(path(at), |given, at| given.chmod.map(|chmod| chmod(at, mode)))
}

extern "C" fn chown(at: Path, user: c_uint, group: c_uint) -> c_int {
    guard().alone(path(at), |given, at| given.chown.map(|chown| chown(at, user, group)))
}

extern "C" fn access(at: Path, mask: c_int) -> c_int {
    guard().asking(path(at), |given, at| given.access.map(|access| access(at, mask)))
}

extern "C" fn utimens(at: Path, times: Times) -> c_int {
    guard().alone(path(at), |given, at| given.utimens.map(|utimens| utimens(at, times)))
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn plain(_: Path, size: Offset) -> c_int {
        if size == 5 { -5 } else { 0 }
    }

    extern "C" fn plain_open(_: Path, _: *mut FileInfo) -> c_int {
        0
    }

    /// One test: a process corrects one table.
    #[test]
    #[allow(unsafe_code)]
    fn a_table_of_s3fs_is_corrected_once() {
        let given = Operations {
            truncate: Some(plain),
            open: Some(plain_open),
            flush: Some(plain_open),
            release: Some(plain_open),
            ..Operations::EMPTY
        };
        let unknown = [
            Operations { fgetattr: Some(fgetattr), ..given },
            Operations { ftruncate: ptr::dangling(), ..given },
            Operations { write_buf: ptr::dangling(), ..given },
            Operations { fsyncdir: Some(fsync), ..given },
        ];
        let page = Box::leak(Box::new(SharedPage::new()));
        // SAFETY: the sizes are not larger than the table.
        unsafe {
            for table in &unknown {
                assert!(corrected(table, mem::size_of::<Operations>(), page).is_none());
            }
            assert!(corrected(&raw const given, Operations::LEAST - 1, page).is_none());
            let (made, size) = corrected(&raw const given, Operations::LEAST, page).unwrap();
            assert_eq!(size, Operations::LEAST);
            assert_eq!((*made).truncate.unwrap()(c"/a".as_ptr(), 5), -5);
            assert!((*made).chmod.is_none(), "what the file system lacks stays away");
            assert!(corrected(&raw const given, Operations::LEAST, page).is_none());
        }
    }
}

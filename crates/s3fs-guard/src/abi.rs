//! The types of libfuse 2.9 that are used here.

use core::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use core::mem::{self, offset_of};
use core::ptr;

/// libfuse's `off_t`, which it demands to have 64 bits.
pub(crate) type Offset = i64;

/// `struct stat`, which nothing here looks into.
pub(crate) type Stat = *mut c_void;

/// Two of `struct timespec`, which nothing here looks into.
pub(crate) type Times = *const c_void;

/// `fuse_fill_dir_t`, which nothing here calls.
pub(crate) type Filler = *const c_void;

pub(crate) type Path = *const c_char;

pub(crate) type GetAttr = extern "C" fn(Path, Stat) -> c_int;
pub(crate) type FGetAttr = extern "C" fn(Path, Stat, *mut FileInfo) -> c_int;
pub(crate) type OnPath = extern "C" fn(Path) -> c_int;
pub(crate) type Rename = extern "C" fn(Path, Path) -> c_int;
pub(crate) type Truncate = extern "C" fn(Path, Offset) -> c_int;
pub(crate) type OnFile = extern "C" fn(Path, *mut FileInfo) -> c_int;
pub(crate) type Write = extern "C" fn(Path, *const c_char, usize, Offset, *mut FileInfo) -> c_int;
pub(crate) type Sync = extern "C" fn(Path, c_int, *mut FileInfo) -> c_int;
pub(crate) type ReadDir = extern "C" fn(Path, *mut c_void, Filler, Offset, *mut FileInfo) -> c_int;
pub(crate) type ChMod = extern "C" fn(Path, c_uint) -> c_int;
pub(crate) type ChOwn = extern "C" fn(Path, c_uint, c_uint) -> c_int;
pub(crate) type CheckAccess = extern "C" fn(Path, c_int) -> c_int;
pub(crate) type UTimeNs = extern "C" fn(Path, Times) -> c_int;
pub(crate) type Create = extern "C" fn(Path, c_uint, *mut FileInfo) -> c_int;

/// -ENOSYS.
pub(crate) const NOT_IMPLEMENTED: c_int = -38;

pub(crate) const O_ACCMODE: c_int = 3;
pub(crate) const O_RDONLY: c_int = 0;
pub(crate) const O_RDWR: c_int = 2;
pub(crate) const O_TRUNC: c_int = 0o1000;

/// `struct fuse_operations` of libfuse 2.9, with names for what is used here.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Operations {
    pub(crate) getattr: Option<GetAttr>,
    pub(crate) after_getattr: [*const c_void; 5],
    pub(crate) rmdir: Option<OnPath>,
    pub(crate) symlink: *const c_void,
    pub(crate) rename: Option<Rename>,
    pub(crate) link: *const c_void,
    pub(crate) chmod: Option<ChMod>,
    pub(crate) chown: Option<ChOwn>,
    pub(crate) truncate: Option<Truncate>,
    pub(crate) utime: *const c_void,
    pub(crate) open: Option<OnFile>,
    pub(crate) read: *const c_void,
    pub(crate) write: Option<Write>,
    pub(crate) statfs: *const c_void,
    pub(crate) flush: Option<OnFile>,
    pub(crate) release: Option<OnFile>,
    pub(crate) fsync: Option<Sync>,
    pub(crate) after_fsync: [*const c_void; 5],
    pub(crate) readdir: Option<ReadDir>,
    pub(crate) releasedir: *const c_void,
    pub(crate) fsyncdir: Option<Sync>,
    pub(crate) after_fsyncdir: [*const c_void; 2],
    pub(crate) access: Option<CheckAccess>,
    pub(crate) create: Option<Create>,
    pub(crate) ftruncate: *const c_void,
    pub(crate) fgetattr: Option<FGetAttr>,
    pub(crate) lock: *const c_void,
    pub(crate) utimens: Option<UTimeNs>,
    pub(crate) after_utimens: [*const c_void; 4],
    pub(crate) write_buf: *const c_void,
    pub(crate) after_write_buf: [*const c_void; 3],
}

// SAFETY: pointers to functions, and nobody writes to a table that others know.
#[allow(unsafe_code)]
unsafe impl core::marker::Sync for Operations {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Send for Operations {}

impl Operations {
    /// A file system that can do nothing.
    pub(crate) const EMPTY: Self = Self {
        getattr: None,
        after_getattr: [ptr::null(); 5],
        rmdir: None,
        symlink: ptr::null(),
        rename: None,
        link: ptr::null(),
        chmod: None,
        chown: None,
        truncate: None,
        utime: ptr::null(),
        open: None,
        read: ptr::null(),
        write: None,
        statfs: ptr::null(),
        flush: None,
        release: None,
        fsync: None,
        after_fsync: [ptr::null(); 5],
        readdir: None,
        releasedir: ptr::null(),
        fsyncdir: None,
        after_fsyncdir: [ptr::null(); 2],
        access: None,
        create: None,
        ftruncate: ptr::null(),
        fgetattr: None,
        lock: ptr::null(),
        utimens: None,
        after_utimens: [ptr::null(); 4],
        write_buf: ptr::null(),
        after_write_buf: [ptr::null(); 3],
    };

    /// What a table must hold at least.
    pub(crate) const LEAST: usize = offset_of!(Self, after_utimens);

    /// Whether this is the table of a file system that changes files only by what is corrected here.
    pub(crate) fn is_known(&self) -> bool {
        self.ftruncate.is_null()
            && self.fgetattr.is_none()
            && self.write_buf.is_null()
            && self.fsyncdir.is_none()
    }
}

/// `struct fuse_file_info` of libfuse 2.9.
#[repr(C)]
pub(crate) struct FileInfo {
    pub(crate) flags: c_int,
    fh_old: c_ulong,
    writepage: c_int,
    pub(crate) bits: u32,
    pub(crate) fh: u64,
    lock_owner: u64,
}

/// In [`FileInfo::bits`]: a close causes this call.
pub(crate) const FLUSH: u32 = 1 << 2;

impl FileInfo {
    pub(crate) const fn new(flags: c_int, fh: u64) -> Self {
        Self { flags, fh_old: 0, writepage: 0, bits: 0, fh, lock_owner: 0 }
    }

    pub(crate) fn can_write(&self) -> bool {
        self.flags & O_ACCMODE != O_RDONLY
    }
}

const WORD: usize = mem::size_of::<*const c_void>();
const _: () = {
    assert!(offset_of!(Operations, rmdir) == 6 * WORD);
    assert!(offset_of!(Operations, rename) == 8 * WORD);
    assert!(offset_of!(Operations, truncate) == 12 * WORD);
    assert!(offset_of!(Operations, open) == 14 * WORD);
    assert!(offset_of!(Operations, write) == 16 * WORD);
    assert!(offset_of!(Operations, flush) == 18 * WORD);
    assert!(offset_of!(Operations, fsync) == 20 * WORD);
    assert!(offset_of!(Operations, readdir) == 26 * WORD);
    assert!(offset_of!(Operations, fsyncdir) == 28 * WORD);
    assert!(offset_of!(Operations, chmod) == 10 * WORD);
    assert!(offset_of!(Operations, access) == 31 * WORD);
    assert!(offset_of!(Operations, utimens) == 36 * WORD);
    assert!(offset_of!(Operations, create) == 32 * WORD);
    assert!(offset_of!(Operations, fgetattr) == 34 * WORD);
    assert!(offset_of!(Operations, write_buf) == 41 * WORD);
    assert!(mem::size_of::<Operations>() == 45 * WORD);
    assert!(offset_of!(FileInfo, fh) == 24);
    assert!(mem::size_of::<FileInfo>() == 40);
};

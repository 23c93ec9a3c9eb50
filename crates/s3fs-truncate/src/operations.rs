//! The table of operations and the corrected ones among them.

use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use core::mem::{self, offset_of};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// -ENOSYS.
const NOT_IMPLEMENTED: c_int = -38;

/// libfuse's `off_t`, which it demands to have 64 bits.
type Offset = i64;

type Truncate = extern "C" fn(*const c_char, Offset) -> c_int;
type OnFile = extern "C" fn(*const c_char, *mut FileInfo) -> c_int;
type Create = extern "C" fn(*const c_char, c_uint, *mut FileInfo) -> c_int;

const O_ACCMODE: c_int = 3;
const O_RDONLY: c_int = 0;
const O_RDWR: c_int = 2;
const O_TRUNC: c_int = 0o1000;

/// `struct fuse_operations` of libfuse 2.9, with names for what is used here.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Operations {
    before_truncate: [*const c_void; 12],
    truncate: Option<Truncate>,
    utime: *const c_void,
    open: Option<OnFile>,
    read_write_statfs: [*const c_void; 3],
    flush: Option<OnFile>,
    release: Option<OnFile>,
    after_release: [*const c_void; 12],
    create: Option<Create>,
    after_create: [*const c_void; 12],
}

/// What a table must hold at least.
const LEAST: usize = offset_of!(Operations, after_create);

/// `struct fuse_file_info` of libfuse 2.9.
#[repr(C)]
struct FileInfo {
    flags: c_int,
    fh_old: c_ulong,
    writepage: c_int,
    bits: u32,
    fh: u64,
    lock_owner: u64,
}

/// In [`FileInfo::bits`]: a close causes this call.
const FLUSH: u32 = 1 << 2;

impl Operations {
    const EMPTY: Self = Self {
        before_truncate: [ptr::null(); 12],
        truncate: None,
        utime: ptr::null(),
        open: None,
        read_write_statfs: [ptr::null(); 3],
        flush: None,
        release: None,
        after_release: [ptr::null(); 12],
        create: None,
        after_create: [ptr::null(); 12],
    };

    /// Does something to the length of a file, with the file open meanwhile and nothing in it that is not
    /// in the store yet. The kernel lets nobody write to it or change its name until this is done.
    fn at_rest(&self, path: *const c_char, act: impl FnOnce() -> c_int) -> c_int {
        let (Some(open), Some(flush), Some(release)) = (self.open, self.flush, self.release) else {
            return NOT_IMPLEMENTED;
        };
        let mut file =
            FileInfo { flags: O_RDWR, fh_old: 0, writepage: 0, bits: 0, fh: 0, lock_owner: 0 };
        let opened = open(path, &raw mut file);
        if opened != 0 {
            return opened;
        }
        file.bits = FLUSH;
        let flushed = flush(path, &raw mut file);
        file.bits = 0;
        // What is done here comes into the store by itself.
        let result = if flushed == 0 { act() } else { flushed };
        // libfuse has no use for its result either.
        release(path, &raw mut file);
        result
    }

    fn truncate(&self, path: *const c_char, size: Offset, writers: &Writers) -> c_int {
        let Some(truncate) = self.truncate else { return NOT_IMPLEMENTED };
        let act = || truncate(path, size);
        // A closed file's content need not be loaded to be dropped.
        if size == 0 && writers.none() { act() } else { self.at_rest(path, act) }
    }

    /// s3fs has the kernel leave it to an open with O_TRUNC to empty the file.
    fn open(&self, path: *const c_char, file: &mut FileInfo, writers: &Writers) -> c_int {
        let Some(open) = self.open else { return NOT_IMPLEMENTED };
        let at_once = file.flags & O_TRUNC == 0 || writers.none();
        let flags = file.flags;
        let mut act = || open(path, file);
        let result = if at_once { act() } else { self.at_rest(path, act) };
        writers.opened(flags, result);
        result
    }

    fn create(
        &self,
        path: *const c_char,
        mode: c_uint,
        file: &mut FileInfo,
        writers: &Writers,
    ) -> c_int {
        let Some(create) = self.create else { return NOT_IMPLEMENTED };
        let flags = file.flags;
        let result = create(path, mode, file);
        writers.opened(flags, result);
        result
    }

    fn release(&self, path: *const c_char, file: &mut FileInfo, writers: &Writers) -> c_int {
        let Some(release) = self.release else { return NOT_IMPLEMENTED };
        let flags = file.flags;
        let result = release(path, file);
        writers.released(flags);
        result
    }
}

/// How many files are open for writing. While there are none no file has anything that is not in the store,
/// and the usual case, one program that overwrites a file, needs no more than s3fs does by itself.
struct Writers(AtomicUsize);

impl Writers {
    const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    fn none(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    fn opened(&self, flags: c_int, result: c_int) {
        if result == 0 && flags & O_ACCMODE != O_RDONLY {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn released(&self, flags: c_int) {
        if flags & O_ACCMODE != O_RDONLY {
            self.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

static WRITERS: Writers = Writers::new();

/// The file system's own table and the corrected one. A process has one file system.
struct Tables {
    given: UnsafeCell<Operations>,
    corrected: UnsafeCell<Operations>,
    filled: AtomicBool,
}

// SAFETY: only `corrected`, the function, writes, and only the first to set `filled`; what reads comes
// after it: threads that libfuse starts once it has the table.
#[allow(unsafe_code)]
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables {
    given: UnsafeCell::new(Operations::EMPTY),
    corrected: UnsafeCell::new(Operations::EMPTY),
    filled: AtomicBool::new(false),
};

/// Copies a table, as much of it as libfuse 2.9 knows, and corrects the copy. Nothing if it is too short
/// to have what the correction needs, or if a process asks twice.
///
/// # Safety
/// `operations` points to a table of `size` bytes.
#[allow(unsafe_code)]
pub(crate) unsafe fn corrected(
    operations: *const Operations,
    size: usize,
) -> Option<(*const Operations, usize)> {
    if size < LEAST || TABLES.filled.swap(true, Ordering::AcqRel) {
        return None;
    }
    let size = size.min(mem::size_of::<Operations>());
    for table in [&TABLES.given, &TABLES.corrected] {
        // SAFETY: the source has `size` bytes, the caller says; the target has at least as many, and nobody
        // else uses it before this function has returned. All bytes come from pointers or nulls.
        unsafe { ptr::copy_nonoverlapping(operations.cast::<u8>(), table.get().cast(), size) };
    }
    // SAFETY: as above; there is no other reference.
    let table = unsafe { &mut *TABLES.corrected.get() };
    table.truncate = Some(truncate);
    table.open = Some(open);
    table.create = Some(create);
    table.release = Some(release);
    Some((TABLES.corrected.get(), size))
}

/// The file system's own table.
fn given() -> &'static Operations {
    // SAFETY: libfuse has the functions below from the table that was made together with this one, and
    // nobody writes to it any more.
    #[allow(unsafe_code)]
    unsafe {
        &*TABLES.given.get()
    }
}

extern "C" fn truncate(path: *const c_char, size: Offset) -> c_int {
    given().truncate(path, size, &WRITERS)
}

extern "C" fn open(path: *const c_char, file: *mut FileInfo) -> c_int {
    // SAFETY: libfuse gives a pointer of its caller's own.
    #[allow(unsafe_code)]
    let file = unsafe { &mut *file };
    given().open(path, file, &WRITERS)
}

extern "C" fn create(path: *const c_char, mode: c_uint, file: *mut FileInfo) -> c_int {
    // SAFETY: libfuse gives a pointer of its caller's own.
    #[allow(unsafe_code)]
    let file = unsafe { &mut *file };
    given().create(path, mode, file, &WRITERS)
}

extern "C" fn release(path: *const c_char, file: *mut FileInfo) -> c_int {
    // SAFETY: libfuse gives a pointer of its caller's own.
    #[allow(unsafe_code)]
    let file = unsafe { &mut *file };
    given().release(path, file, &WRITERS)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::ffi::CStr;

    use super::*;

    thread_local! {
        static CALLS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    fn note(call: String) {
        CALLS.with_borrow_mut(|calls| calls.push(call));
    }

    fn noted() -> Vec<String> {
        CALLS.take()
    }

    /// What the path says fails with -1, -2 and so on.
    #[allow(unsafe_code)]
    fn result(path: *const c_char, name: &str, code: c_int) -> c_int {
        // SAFETY: all paths here are C strings.
        let path = unsafe { CStr::from_ptr(path) };
        if path.to_str().is_ok_and(|path| path.contains(name)) { code } else { 0 }
    }

    extern "C" fn plain(path: *const c_char, size: Offset) -> c_int {
        note(format!("truncate {size}"));
        result(path, "truncate", -1)
    }

    #[allow(unsafe_code)]
    extern "C" fn plain_open(path: *const c_char, file: *mut FileInfo) -> c_int {
        // SAFETY: the caller gives a good pointer.
        let file = unsafe { &mut *file };
        file.fh = 7;
        note(format!("open {}", file.flags));
        result(path, "open", -2)
    }

    #[allow(unsafe_code)]
    extern "C" fn flush(path: *const c_char, file: *mut FileInfo) -> c_int {
        // SAFETY: the caller gives a good pointer.
        let file = unsafe { &*file };
        note(format!("flush {} {}", file.fh, file.bits));
        result(path, "flush", -3)
    }

    #[allow(unsafe_code)]
    extern "C" fn plain_release(path: *const c_char, file: *mut FileInfo) -> c_int {
        // SAFETY: the caller gives a good pointer.
        let file = unsafe { &*file };
        note(format!("release {} {}", file.fh, file.bits));
        result(path, "release", -4)
    }

    extern "C" fn plain_create(path: *const c_char, _: c_uint, _: *mut FileInfo) -> c_int {
        note("create".to_owned());
        result(path, "create", -5)
    }

    fn file(flags: c_int) -> FileInfo {
        FileInfo { flags, fh_old: 0, writepage: 0, bits: 0, fh: 7, lock_owner: 0 }
    }

    fn one_writer() -> Writers {
        let writers = Writers::new();
        writers.opened(O_RDWR, 0);
        writers
    }

    fn table() -> Operations {
        Operations {
            truncate: Some(plain),
            open: Some(plain_open),
            flush: Some(flush),
            release: Some(plain_release),
            create: Some(plain_create),
            ..Operations::EMPTY
        }
    }

    #[test]
    fn the_layout_is_that_of_libfuse_2_9() {
        let word = mem::size_of::<*const c_void>();
        assert_eq!(offset_of!(Operations, truncate), 12 * word);
        assert_eq!(offset_of!(Operations, open), 14 * word);
        assert_eq!(offset_of!(Operations, flush), 18 * word);
        assert_eq!(offset_of!(Operations, release), 19 * word);
        assert_eq!(offset_of!(Operations, create), 32 * word);
        assert_eq!(mem::size_of::<Operations>(), 45 * word);
        assert_eq!(offset_of!(FileInfo, fh), 24);
        assert_eq!(mem::size_of::<FileInfo>(), 40);
    }

    #[test]
    fn the_file_is_open_and_in_the_store_while_it_is_truncated() {
        for (size, writers) in [(5, Writers::new()), (5, one_writer()), (0, one_writer())] {
            assert_eq!(table().truncate(c"a".as_ptr(), size, &writers), 0);
            assert_eq!(
                noted(),
                ["open 2", "flush 7 4", &format!("truncate {size}"), "release 7 0"]
            );
        }
        assert_eq!(table().truncate(c"a".as_ptr(), 0, &Writers::new()), 0);
        assert_eq!(noted(), ["truncate 0"]);
    }

    #[test]
    fn the_first_error_counts_and_the_file_is_closed() {
        let truncate = |path: &CStr| table().truncate(path.as_ptr(), 5, &Writers::new());
        assert_eq!(truncate(c"open"), -2);
        assert_eq!(noted(), ["open 2"]);
        assert_eq!(truncate(c"flush, release"), -3);
        assert_eq!(noted(), ["open 2", "flush 7 4", "release 7 0"]);
        assert_eq!(truncate(c"truncate, release"), -1);
        assert_eq!(noted().len(), 4);
    }

    #[test]
    fn an_open_that_empties_the_file_is_a_truncation() {
        let open = |flags, writers| {
            assert_eq!(table().open(c"a".as_ptr(), &mut file(flags), &writers), 0);
            noted()
        };
        assert_eq!(open(1, one_writer()), ["open 1"]);
        assert_eq!(open(1 | O_TRUNC, Writers::new()), ["open 513"]);
        let emptied = open(1 | O_TRUNC, one_writer());
        assert_eq!(emptied, ["open 2", "flush 7 4", "open 513", "release 7 0"]);
    }

    #[test]
    fn writers_count_from_open_to_release() {
        let writers = Writers::new();
        let (a, bad) = (c"a".as_ptr(), c"open, create".as_ptr());
        assert_eq!(table().open(a, &mut file(O_RDONLY), &writers), 0);
        assert_eq!(table().open(bad, &mut file(O_RDWR), &writers), -2);
        assert_eq!(table().create(bad, 0, &mut file(O_RDWR), &writers), -5);
        assert!(writers.none());
        assert_eq!(table().open(a, &mut file(O_RDWR), &writers), 0);
        assert_eq!(table().create(a, 0, &mut file(1), &writers), 0);
        assert_eq!(table().release(a, &mut file(O_RDONLY), &writers), 0);
        assert_eq!(table().release(a, &mut file(1), &writers), 0);
        assert!(!writers.none());
        assert_eq!(table().release(a, &mut file(O_RDWR), &writers), 0);
        assert!(writers.none());
        noted();
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_table_is_copied_as_far_as_it_goes_and_once() {
        let given = table();
        // SAFETY: the sizes are not larger than the table.
        unsafe {
            assert!(corrected(&raw const given, LEAST - 1).is_none());
            let (made, size) = corrected(&raw const given, LEAST).unwrap();
            assert_eq!(size, LEAST);
            assert_eq!((*made).truncate.unwrap()(c"a".as_ptr(), 5), 0);
            assert_eq!(noted().len(), 4);
            assert!(corrected(&raw const given, LEAST).is_none());
        }
    }
}

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::ptr;

use super::*;
use crate::abi::Path;

const O_WRONLY: c_int = 1;

thread_local! {
    static CALLS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static NEXT_HANDLE: Cell<u64> = const { Cell::new(1) };
    /// Calls that fail with -5.
    static FAILING: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// Notes a call and says how it ends.
fn call(text: String) -> c_int {
    let failing = FAILING.with_borrow(|failing| failing.contains(&text));
    CALLS.with_borrow_mut(|calls| calls.push(text));
    if failing { -5 } else { 0 }
}

fn noted() -> Vec<String> {
    CALLS.take()
}

fn failing(text: &str, act: impl FnOnce() -> c_int) {
    FAILING.with_borrow_mut(|failing| failing.insert(text.to_owned()));
    assert_eq!(act(), -5);
    FAILING.take();
}

#[allow(unsafe_code)]
fn text(path: Path) -> String {
    // SAFETY: all paths here are C strings.
    unsafe { CStr::from_ptr(path) }.to_str().expect("ASCII").to_owned()
}

#[allow(unsafe_code)]
fn handle(info: *mut FileInfo) -> u64 {
    // SAFETY: the callers here give good pointers.
    unsafe { (*info).fh }
}

#[allow(unsafe_code)]
fn give_handle(info: *mut FileInfo) {
    // SAFETY: the callers here give good pointers.
    unsafe { (*info).fh = NEXT_HANDLE.replace(NEXT_HANDLE.get() + 1) }
}

extern "C" fn getattr(path: Path, _: Stat) -> c_int {
    call(format!("getattr {}", text(path)))
}

extern "C" fn rmdir(path: Path) -> c_int {
    call(format!("rmdir {}", text(path)))
}

extern "C" fn rename(from: Path, to: Path) -> c_int {
    call(format!("rename {} {}", text(from), text(to)))
}

extern "C" fn truncate(path: Path, size: Offset) -> c_int {
    call(format!("truncate {} {size}", text(path)))
}

extern "C" fn open(path: Path, info: *mut FileInfo) -> c_int {
    give_handle(info);
    call(format!("open {}", text(path)))
}

extern "C" fn create(path: Path, _: c_uint, info: *mut FileInfo) -> c_int {
    give_handle(info);
    call(format!("create {}", text(path)))
}

extern "C" fn write(
    _: Path,
    _: *const c_char,
    size: usize,
    _: Offset,
    info: *mut FileInfo,
) -> c_int {
    match call(format!("write {}", handle(info))) {
        0 => c_int::try_from(size).expect("small"),
        error => error,
    }
}

extern "C" fn flush(path: Path, info: *mut FileInfo) -> c_int {
    call(format!("flush {} {}", text(path), handle(info)))
}

extern "C" fn fsync(_: Path, _: c_int, info: *mut FileInfo) -> c_int {
    call(format!("fsync {}", handle(info)))
}

extern "C" fn release(_: Path, info: *mut FileInfo) -> c_int {
    call(format!("release {}", handle(info)))
}

extern "C" fn readdir(path: Path, _: *mut c_void, _: Filler, _: Offset, _: *mut FileInfo) -> c_int {
    call(format!("readdir {}", text(path)))
}

/// A file system that notes what it is asked, and programs that use it. Handles are 1, 2, 3 and so on.
struct GuardedMount(Guard);

impl GuardedMount {
    fn new() -> Self {
        noted();
        NEXT_HANDLE.set(1);
        let operations = Operations {
            getattr: Some(getattr),
            rmdir: Some(rmdir),
            rename: Some(rename),
            truncate: Some(truncate),
            open: Some(open),
            write: Some(write),
            flush: Some(flush),
            release: Some(release),
            fsync: Some(fsync),
            readdir: Some(readdir),
            create: Some(create),
            ..Operations::EMPTY
        };
        Self(Guard::new(operations, Box::leak(Box::new(SharedPage::new()))))
    }

    fn open(&self, path: &CStr, flags: c_int) -> FileInfo {
        let mut info = FileInfo::new(flags, 0);
        assert_eq!(self.0.open(path, &mut info), 0);
        info
    }

    fn create(&self, path: &CStr) -> FileInfo {
        let mut info = FileInfo::new(O_RDWR, 0);
        assert_eq!(self.0.create(path, 0o644, &mut info), 0);
        info
    }

    fn write(&self, path: &CStr, info: &mut FileInfo) {
        assert_eq!(self.0.write(path, c"".as_ptr(), 0, 0, info), 0);
    }

    fn close(&self, path: &CStr, mut info: FileInfo) {
        assert_eq!(self.0.flush(path, &mut info), 0);
        assert_eq!(self.0.release(path, &mut info), 0);
    }

    fn list(&self, path: &CStr) -> c_int {
        self.0.readdir(path, ptr::null_mut(), ptr::null(), 0, ptr::null_mut())
    }
}

#[test]
fn one_program_that_writes_a_file_costs_no_further_calls() {
    let mount = GuardedMount::new();
    let mut file = mount.create(c"/a");
    assert_eq!(mount.0.fgetattr(c"/a", ptr::null_mut()), 0);
    mount.write(c"/a", &mut file);
    mount.close(c"/a", file);
    mount.close(c"/a", mount.open(c"/a", O_RDONLY));
    assert_eq!(
        noted(),
        [
            "create /a",
            "getattr /a",
            "write 1",
            "flush /a 1",
            "release 1",
            "open /a",
            "flush /a 2",
            "release 2"
        ]
    );
    assert!(mount.0.files.is_empty());
}

#[test]
fn what_is_written_is_in_the_store_before_another_open() {
    let mount = GuardedMount::new();
    let mut first = mount.open(c"/a", O_WRONLY);
    let mut second = mount.open(c"/a", O_RDWR);
    assert_eq!(noted(), ["open /a", "open /a"], "nothing is written yet");
    mount.write(c"/a", &mut first);
    mount.write(c"/a", &mut second);
    for flags in [O_RDONLY, O_WRONLY | O_TRUNC] {
        mount.open(c"/a", flags);
    }
    // The emptied file's handle may have to be flushed too.
    mount.open(c"/a", O_RDONLY);
    mount.open(c"/b", O_RDONLY);
    assert_eq!(
        noted(),
        [
            "write 1",
            "write 2",
            "flush /a 1",
            "flush /a 2",
            "open /a",
            "open /a",
            "flush /a 4",
            "open /a",
            "open /b"
        ]
    );
    mount.write(c"/a", &mut first);
    assert_eq!(mount.0.fsync(c"/a", 0, &mut first), 0);
    mount.open(c"/a", O_RDONLY);
    assert_eq!(noted(), ["write 1", "fsync 1", "open /a"]);
}

#[test]
fn a_file_that_cannot_go_to_the_store_is_not_touched() {
    let mount = GuardedMount::new();
    let mut file = mount.create(c"/d/a");
    mount.write(c"/d/a", &mut file);
    noted();
    let refused = "flush /d/a 1";
    failing(refused, || mount.0.open(c"/d/a", &mut FileInfo::new(O_RDONLY, 0)));
    failing(refused, || mount.0.truncate(c"/d/a", 3));
    failing(refused, || mount.0.rename(c"/d", c"/e"));
    failing(refused, || mount.0.getattr(c"/d/a", ptr::null_mut()));
    failing(refused, || mount.list(c"/d"));
    failing(refused, || mount.0.rmdir(c"/d"));
    assert_eq!(noted(), [refused; 6]);
    // The next try is a whole one.
    mount.open(c"/d/a", O_RDONLY);
    assert_eq!(noted(), [refused, "open /d/a"]);
}

#[test]
fn a_new_file_is_in_the_store_before_anybody_looks() {
    type Look = fn(&GuardedMount) -> c_int;
    let looks: [(Look, &str); 4] = [
        (|mount| mount.0.getattr(c"/d/a", ptr::null_mut()), "getattr /d/a"),
        (|mount| mount.list(c"/d"), "readdir /d"),
        (|mount| mount.0.rmdir(c"/d"), "rmdir /d"),
        (|mount| mount.0.rename(c"/d", c"/e"), "rename /d /e"),
    ];
    for (look, asked) in looks {
        let mount = GuardedMount::new();
        mount.create(c"/d/a");
        for other in [c"/", c"/d/sub", c"/d/a/b", c"/d2"] {
            assert_eq!(mount.list(other), 0);
        }
        assert_eq!(noted().len(), 5, "listings of other directories do not matter");
        assert_eq!(look(&mount), 0);
        assert_eq!(noted(), ["flush /d/a 1", asked]);
        assert_eq!(mount.list(c"/d"), 0);
        assert_eq!(noted(), ["readdir /d"], "it is new once");
    }
}

#[test]
fn open_files_follow_a_rename() {
    let mount = GuardedMount::new();
    let mut inner = mount.create(c"/d/e/a");
    let mut file = mount.open(c"/d/b", O_RDWR);
    mount.create(c"/da");
    mount.write(c"/d/b", &mut file);
    noted();
    assert_eq!(mount.0.rename(c"/d", c"/x"), 0);
    assert_eq!(noted(), ["flush /d/b 2", "flush /d/e/a 1", "rename /d /x"]);
    mount.write(c"/x/e/a", &mut inner);
    mount.write(c"/x/b", &mut file);
    noted();
    assert_eq!(mount.0.rename(c"/x/b", c"/c"), 0);
    assert_eq!(noted(), ["flush /x/b 2", "rename /x/b /c"]);
    mount.open(c"/x/e/a", O_RDONLY);
    assert_eq!(noted(), ["flush /x/e/a 1", "open /x/e/a"]);
    failing("rename /c /f", || mount.0.rename(c"/c", c"/f"));
    noted();
    mount.write(c"/c", &mut file);
    mount.open(c"/c", O_RDONLY);
    assert_eq!(
        noted(),
        ["write 2", "flush /c 2", "open /c"],
        "a rename that failed changes nothing"
    );
    mount.close(c"/c", file);
    mount.close(c"-", inner);
    mount.close(c"/da", FileInfo::new(O_RDWR, 3));
    assert!(mount.0.files.is_empty());
}

#[test]
fn a_file_is_open_and_in_the_store_while_it_is_truncated() {
    let mount = GuardedMount::new();
    assert_eq!(mount.0.truncate(c"/a", 5), 0);
    assert_eq!(noted(), ["open /a", "flush /a 1", "truncate /a 5", "release 1"]);
    assert_eq!(mount.0.truncate(c"/a", 0), 0);
    assert_eq!(noted(), ["truncate /a 0"], "a closed file's content need not be loaded");
    let mut file = mount.open(c"/a", O_RDWR);
    mount.write(c"/a", &mut file);
    noted();
    for size in [5, 0] {
        assert_eq!(mount.0.truncate(c"/a", size), 0);
    }
    assert_eq!(noted(), ["flush /a 2", "truncate /a 5", "truncate /a 0"]);
    mount.close(c"/a", file);
    assert!(mount.0.files.is_empty());
}

#[test]
fn the_first_error_of_a_truncation_counts_and_the_file_is_closed() {
    for (failed, calls) in [("open /a", 1), ("flush /a 1", 3), ("truncate /a 5", 4)] {
        let mount = GuardedMount::new();
        failing(failed, || mount.0.truncate(c"/a", 5));
        let calls_made = noted();
        assert_eq!(calls_made.len(), calls, "{calls_made:?}");
        assert!(calls == 1 || calls_made[calls - 1] == "release 1");
    }
}

#[test]
fn what_comes_after_the_last_close_is_in_the_store_before_the_release() {
    let mount = GuardedMount::new();
    let mut file = mount.open(c"/a", O_RDWR);
    assert_eq!(mount.0.flush(c"/a", &mut file), 0);
    mount.write(c"/a", &mut file);
    noted();
    failing("flush /a 1", || mount.0.release(c"/a", &mut file));
    assert_eq!(noted(), ["flush /a 1", "release 1"]);
    assert!(mount.0.files.is_empty());
}

#[test]
fn a_handles_number_can_be_another_files_once_it_is_released() {
    let mount = GuardedMount::new();
    let first = mount.open(c"/a", O_RDWR);
    mount.close(c"/a", first);
    NEXT_HANDLE.set(1);
    let mut second = mount.open(c"/b", O_RDWR);
    mount.write(c"/b", &mut second);
    noted();
    mount.open(c"/b", O_RDONLY);
    assert_eq!(noted(), ["flush /b 1", "open /b"]);
}

#[test]
fn a_length_that_a_listing_may_have_left_is_asked_for_anew() {
    thread_local! {
        static LISTED: RefCell<Option<GuardedMount>> = const { RefCell::new(None) };
    }
    /// Somebody writes the file, while the directory is listed.
    extern "C" fn busy(_: Path, _: *mut c_void, _: Filler, _: Offset, _: *mut FileInfo) -> c_int {
        LISTED.with_borrow(|mount| {
            let mount = mount.as_ref().expect("set");
            let mut file = mount.open(c"/a", O_RDWR);
            mount.write(c"/a", &mut file);
            mount.close(c"/a", file);
        });
        0
    }
    let mut mount = GuardedMount::new();
    mount.0.given.readdir = Some(busy);
    LISTED.set(Some(mount));
    LISTED.with_borrow(|mount| {
        let mount = mount.as_ref().expect("set");
        assert_eq!(mount.list(c"/"), 0);
        assert_eq!(noted(), ["open /a", "write 1", "flush /a 1", "release 1"]);
        assert_eq!(mount.0.getattr(c"/a", ptr::null_mut()), 0);
        assert_eq!(noted(), ["open /a", "getattr /a", "release 2"]);
        assert_eq!(mount.0.getattr(c"/a", ptr::null_mut()), 0);
        assert_eq!(noted(), ["getattr /a"]);
        assert_eq!(mount.list(c"/"), 0);
        mount.open(c"/a", O_RDONLY);
        noted();
        assert_eq!(mount.0.getattr(c"/a", ptr::null_mut()), 0);
        assert_eq!(noted(), ["getattr /a"], "the open has asked");
    });
}

/// The release of one writer makes the length uncertain, while another has something that is not in the store.
#[test]
fn a_question_that_opens_the_file_brings_what_is_written_to_the_store_first() {
    thread_local! {
        static LISTED: RefCell<Option<GuardedMount>> = const { RefCell::new(None) };
    }
    extern "C" fn busy(_: Path, _: *mut c_void, _: Filler, _: Offset, _: *mut FileInfo) -> c_int {
        LISTED.with_borrow(|mount| {
            let mount = mount.as_ref().expect("set");
            mount.0.release(c"/a", &mut FileInfo::new(O_RDWR, 1))
        })
    }
    let mut mount = GuardedMount::new();
    mount.0.given.readdir = Some(busy);
    LISTED.set(Some(mount));
    LISTED.with_borrow(|mount| {
        let mount = mount.as_ref().expect("set");
        let mut first = mount.open(c"/a", O_RDWR);
        mount.write(c"/a", &mut first);
        assert_eq!(mount.0.flush(c"/a", &mut first), 0);
        let mut second = mount.open(c"/a", O_RDWR);
        mount.write(c"/a", &mut second);
        assert_eq!(mount.list(c"/"), 0);
        noted();
        assert_eq!(mount.0.getattr(c"/a", ptr::null_mut()), 0);
        assert_eq!(noted(), ["flush /a 2", "open /a", "getattr /a", "release 3"]);
    });
}

#[test]
fn many_programs_on_few_files_leave_nothing_behind() {
    let mount = GuardedMount::new();
    let number = std::sync::atomic::AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for turn in 0..200 {
                    NEXT_HANDLE.set(number.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
                    let path = CString::new(format!("/{}", turn % 3)).expect("no zero");
                    let mut file = mount.open(&path, O_RDWR);
                    mount.write(&path, &mut file);
                    assert_eq!(mount.0.getattr(&path, ptr::null_mut()), 0);
                    assert_eq!(mount.list(c"/"), 0);
                    mount.close(&path, file);
                }
                noted();
            });
        }
    });
    assert!(mount.0.files.is_empty());
}

#[test]
fn a_sync_of_the_root_brings_everything_written_to_the_store() {
    let mount = GuardedMount::new();
    let mut first = mount.open(c"/a", O_WRONLY);
    let mut second = mount.create(c"/d/b");
    let clean = mount.open(c"/c", O_RDWR);
    mount.write(c"/a", &mut first);
    mount.write(c"/d/b", &mut second);
    noted();
    assert_eq!(mount.0.fsyncdir(c"/d"), 0);
    assert_eq!(noted(), [""; 0], "only the root's reaches files");
    failing("flush /a 1", || mount.0.fsyncdir(c"/"));
    assert_eq!(noted(), ["flush /a 1", "flush /d/b 2"], "one that fails does not keep others");
    assert_eq!(mount.0.fsyncdir(c"/"), 0);
    assert_eq!(mount.0.fsyncdir(c"/"), 0);
    assert_eq!(noted(), ["flush /a 1"]);
    for (path, file) in [(c"/a", first), (c"/d/b", second), (c"/c", clean)] {
        mount.close(path, file);
    }
    assert!(mount.0.files.is_empty());
}

#[test]
fn bytes_that_are_not_in_the_store_are_counted() {
    let mount = GuardedMount::new();
    let write = |file: &mut FileInfo, bytes| mount.0.write(c"/a", c"".as_ptr(), bytes, 0, file);
    let counted = || (mount.0.page.unsent(), mount.0.page.lost());
    let mut first = mount.create(c"/a");
    let mut second = mount.open(c"/a", O_RDWR);
    assert_eq!(counted(), (0, 0));
    assert_eq!(write(&mut first, 10), 10);
    assert_eq!(write(&mut second, 5), 5);
    failing("write 2", || write(&mut second, 7));
    assert_eq!(counted(), (15, 0));
    failing("flush /a 1", || mount.0.fsyncdir(c"/"));
    assert_eq!(
        counted(),
        (15, 0),
        "the first one's flush failed, so the second one's was not tried"
    );
    assert_eq!(mount.0.flush(c"/a", &mut first), 0);
    assert_eq!(counted(), (5, 0));
    failing("flush /a 2", || mount.0.release(c"/a", &mut second));
    assert_eq!(counted(), (0, 5), "nothing tries again after the last close");
    mount.close(c"/a", first);
    let mut empty = mount.create(c"/b");
    failing("flush /b 3", || mount.0.release(c"/b", &mut empty));
    assert_eq!(counted(), (0, 6));
    let mut again = mount.open(c"/a", O_RDWR);
    assert_eq!(write(&mut again, 3), 3);
    assert_eq!(mount.0.fsync(c"/a", 0, &mut again), 0);
    assert_eq!(counted(), (0, 6));
}

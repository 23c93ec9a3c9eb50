//! The corrected operations.
//!
//! libfuse calls one rename of a path alone, without any other operation on it or on what is below it.
//! All other operations may come at once.

use alloc::ffi::CString;
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::abi::{
    FLUSH, FileInfo, Filler, NOT_IMPLEMENTED, O_RDONLY, O_RDWR, O_TRUNC, Offset, Operations, Stat,
};
use crate::clock;
use crate::files::{File, OpenFiles};
use crate::listings::Listings;
use crate::page::SharedPage;

/// A file system's own operations, and the files that are open for writing by them.
pub(crate) struct Guard {
    pub(crate) given: Operations,
    pub(crate) files: OpenFiles,
    listings: Listings,
    page: &'static SharedPage,
}

impl Guard {
    pub(crate) const fn new(given: Operations, page: &'static SharedPage) -> Self {
        Self { given, files: OpenFiles::new(), listings: Listings::new(clock::seconds), page }
    }

    /// Brings what is written to a file to the store: s3fs takes what it finds there for the truth.
    fn settle(&self, path: &CStr, file: &mut File) -> Result<(), c_int> {
        let (sent, result) =
            file.settle(|handle| self.flush_as(path, &mut FileInfo::new(O_RDONLY, handle)));
        self.page.sent(sent);
        result
    }

    fn flush_as(&self, path: &CStr, info: &mut FileInfo) -> c_int {
        let Some(flush) = self.given.flush else { return NOT_IMPLEMENTED };
        info.bits = FLUSH;
        let result = self.listings.change(path.to_bytes(), || flush(path.as_ptr(), info));
        info.bits = 0;
        result
    }

    /// Brings files to the store that are not there yet, or all that have anything that is not.
    fn settle_all(
        &self,
        paths: impl IntoIterator<Item = alloc::vec::Vec<u8>>,
        only_new: bool,
    ) -> Result<(), c_int> {
        for path in paths {
            // A path that came as a C string has no zero byte.
            let Ok(path) = CString::new(path) else { continue };
            self.files.at_path(path.to_bytes(), |file| {
                if only_new && !file.is_new() { Ok(()) } else { self.settle(&path, file) }
            })?;
        }
        Ok(())
    }

    /// Does something to a file's attributes, while nobody changes it. A new file's go to the store with it.
    pub(crate) fn alone(
        &self,
        path: &CStr,
        act: impl FnOnce(&Operations, *const c_char) -> Option<c_int>,
    ) -> c_int {
        let act = || act(&self.given, path.as_ptr()).unwrap_or(NOT_IMPLEMENTED);
        self.files.at_path(path.to_bytes(), |_| act())
    }

    /// Does something that asks the store about a file, while nobody changes it.
    pub(crate) fn asking(
        &self,
        path: &CStr,
        act: impl Fn(&Operations, *const c_char) -> Option<c_int>,
    ) -> c_int {
        let act = || act(&self.given, path.as_ptr()).unwrap_or(NOT_IMPLEMENTED);
        self.files.at_path(path.to_bytes(), |file| {
            // The open below cuts what is written and not in the store, like any other.
            let may_open = self.listings.may_be_wrong(path.to_bytes());
            if (may_open || file.is_new())
                && let Err(error) = self.settle(path, file)
            {
                return error;
            }
            if !self.listings.may_be_wrong(path.to_bytes()) {
                return act();
            }
            let mut result = None;
            // An open asks the store. One that fails says no more than the operation itself will.
            let _: c_int = self.while_open(path, O_RDONLY, || {
                self.listings.is_right(path.to_bytes());
                *result.insert(act())
            });
            result.unwrap_or_else(act)
        })
    }

    pub(crate) fn getattr(&self, path: &CStr, stat: Stat) -> c_int {
        self.asking(path, |given, path| given.getattr.map(|getattr| getattr(path, stat)))
    }

    /// Who has the file open sees what is written; libfuse asks this after each create.
    pub(crate) fn fgetattr(&self, path: &CStr, stat: Stat) -> c_int {
        self.alone(path, |given, path| given.getattr.map(|getattr| getattr(path, stat)))
    }

    /// A listing comes from the store.
    pub(crate) fn readdir(
        &self,
        path: &CStr,
        buffer: *mut c_void,
        filler: Filler,
        offset: Offset,
        info: *mut FileInfo,
    ) -> c_int {
        let Some(readdir) = self.given.readdir else { return NOT_IMPLEMENTED };
        match self.settle_all(self.files.within(path.to_bytes()), true) {
            Ok(()) => self
                .listings
                .list(path.to_bytes(), || readdir(path.as_ptr(), buffer, filler, offset, info)),
            Err(error) => error,
        }
    }

    /// Of the file system's root: brings what all programs have written to the store. `init` asks for it, since
    /// a sync of a file system does not reach its program. Of any other directory: nothing to do.
    pub(crate) fn fsyncdir(&self, path: &CStr) -> c_int {
        if path.to_bytes() != b"/" {
            return 0;
        }
        let mut result = 0;
        // One file that cannot be brought there must not keep the others here.
        for path in self.files.from(b"/") {
            if let Err(error) = self.settle_all([path], false)
                && result == 0
            {
                result = error;
            }
        }
        result
    }

    /// Whether a directory is empty the store says.
    pub(crate) fn rmdir(&self, path: &CStr) -> c_int {
        let Some(rmdir) = self.given.rmdir else { return NOT_IMPLEMENTED };
        match self.settle_all(self.files.within(path.to_bytes()), true) {
            Ok(()) => rmdir(path.as_ptr()),
            Err(error) => error,
        }
    }

    /// A directory's files are renamed one by one, those that the store lists.
    pub(crate) fn rename(&self, from: &CStr, to: &CStr) -> c_int {
        let Some(rename) = self.given.rename else { return NOT_IMPLEMENTED };
        if let Err(error) = self.settle_all(self.files.from(from.to_bytes()), false) {
            return error;
        }
        let rename = || rename(from.as_ptr(), to.as_ptr());
        let result = self.listings.change(to.to_bytes(), rename);
        if result == 0 {
            self.files.renamed(from.to_bytes(), to.to_bytes());
        }
        result
    }

    pub(crate) fn truncate(&self, path: &CStr, size: Offset) -> c_int {
        let Some(truncate) = self.given.truncate else { return NOT_IMPLEMENTED };
        self.files.at_path(path.to_bytes(), |file| {
            if let Err(error) = self.settle(path, file) {
                return error;
            }
            let truncate = || truncate(path.as_ptr(), size);
            let act = || self.listings.change(path.to_bytes(), truncate);
            // A closed file's content need not be loaded to be dropped.
            if size == 0 || file.has_writers() { act() } else { self.while_open(path, O_RDWR, act) }
        })
    }

    /// Does something with a file open meanwhile, one that has no writer.
    fn while_open(&self, path: &CStr, flags: c_int, act: impl FnOnce() -> c_int) -> c_int {
        let (Some(open), Some(release)) = (self.given.open, self.given.release) else {
            return NOT_IMPLEMENTED;
        };
        let mut info = FileInfo::new(flags, 0);
        let opened = open(path.as_ptr(), &raw mut info);
        if opened != 0 {
            return opened;
        }
        let flushed = if info.can_write() { self.flush_as(path, &mut info) } else { 0 };
        // What is done here comes into the store by itself.
        let result = if flushed == 0 { act() } else { flushed };
        // libfuse has no use for its result either.
        release(path.as_ptr(), &raw mut info);
        result
    }

    /// An open cuts or stretches what is cached of the file to the length that the store knows. With O_TRUNC
    /// it also empties the file: s3fs has the kernel leave that to it.
    pub(crate) fn open(&self, path: &CStr, info: &mut FileInfo) -> c_int {
        let Some(open) = self.given.open else { return NOT_IMPLEMENTED };
        self.files.at_path(path.to_bytes(), |file| {
            if let Err(error) = self.settle(path, file) {
                return error;
            }
            let asked_anew = self.listings.may_be_wrong(path.to_bytes());
            let result = if info.flags & O_TRUNC == 0 {
                open(path.as_ptr(), info)
            } else {
                self.listings.change(path.to_bytes(), || open(path.as_ptr(), info))
            };
            if asked_anew && result == 0 && info.flags & O_TRUNC == 0 {
                self.listings.is_right(path.to_bytes());
            }
            if result == 0 && info.can_write() {
                self.files.opened(path.to_bytes(), file, info.fh, false);
                if info.flags & O_TRUNC != 0 {
                    file.will_write(info.fh);
                }
            }
            result
        })
    }

    pub(crate) fn create(&self, path: &CStr, mode: c_uint, info: &mut FileInfo) -> c_int {
        let Some(create) = self.given.create else { return NOT_IMPLEMENTED };
        self.files.at_path(path.to_bytes(), |file| {
            let result = create(path.as_ptr(), mode, info);
            if result == 0 {
                self.files.opened(path.to_bytes(), file, info.fh, true);
            }
            result
        })
    }

    pub(crate) fn write(
        &self,
        path: &CStr,
        bytes: *const c_char,
        size: usize,
        offset: Offset,
        info: &mut FileInfo,
    ) -> c_int {
        let Some(write) = self.given.write else { return NOT_IMPLEMENTED };
        self.files.at_handle(info.fh, |mut file| {
            if let Some(file) = &mut file {
                file.will_write(info.fh);
            }
            let written = write(path.as_ptr(), bytes, size, offset, info);
            if let (Some(file), Ok(bytes)) = (file, u64::try_from(written)) {
                file.wrote(info.fh, bytes);
                self.page.wrote(bytes);
            }
            written
        })
    }

    pub(crate) fn flush(&self, path: &CStr, info: &mut FileInfo) -> c_int {
        let Some(flush) = self.given.flush else { return NOT_IMPLEMENTED };
        self.to_store(path, info, |info| flush(path.as_ptr(), info))
    }

    pub(crate) fn fsync(&self, path: &CStr, data_only: c_int, info: &mut FileInfo) -> c_int {
        let Some(fsync) = self.given.fsync else { return NOT_IMPLEMENTED };
        self.to_store(path, info, |info| fsync(path.as_ptr(), data_only, info))
    }

    fn to_store(
        &self,
        path: &CStr,
        info: &mut FileInfo,
        act: impl FnOnce(&mut FileInfo) -> c_int,
    ) -> c_int {
        self.files.at_handle(info.fh, |file| {
            // Only who can write brings anything to the store.
            let result = match file {
                Some(_) => self.listings.change(path.to_bytes(), || act(info)),
                None => act(info),
            };
            if let Some(file) = file.filter(|_| result == 0) {
                self.page.sent(file.settled(info.fh));
            }
            result
        })
    }

    /// What a program writes through a mapping of the file may come after its last close.
    pub(crate) fn release(&self, path: &CStr, info: &mut FileInfo) -> c_int {
        let Some(release) = self.given.release else { return NOT_IMPLEMENTED };
        self.files.at_handle(info.fh, |file| {
            let mut flushed = 0;
            if let Some(file) = file {
                if file.is_dirty(info.fh) {
                    flushed = self.flush_as(path, info);
                }
                match flushed {
                    0 => self.page.sent(file.unsent(info.fh)),
                    _ => self.page.gave_up(file.unsent(info.fh)),
                }
                // s3fs may give the number to another open before this one's release returns.
                self.files.closing(file, info.fh);
            }
            // It may bring attributes to the store.
            let released = self.listings.change(path.to_bytes(), || release(path.as_ptr(), info));
            if flushed == 0 { released } else { flushed }
        })
    }
}

#[cfg(test)]
mod tests;

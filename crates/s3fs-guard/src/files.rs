//! The files that are open for writing, and who may touch each of them.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ffi::c_int;

use rustix_futex_sync::Mutex;

/// All files that are open for writing or that an operation is at work on.
///
/// Two kinds of locks, taken in this order: a file's, for as long as an operation on it takes, and the
/// index's, for moments.
pub(crate) struct OpenFiles(Mutex<Index>);

struct Index {
    by_path: BTreeMap<Vec<u8>, Arc<Mutex<File>>>,
    /// The path of each file handle that can write, as it is after all renames.
    paths: BTreeMap<u64, Vec<u8>>,
}

/// One file, in the hands of one operation.
#[derive(Default)]
pub(crate) struct File {
    writers: Vec<WriteHandle>,
    /// It is not in the store at all.
    new: bool,
}

/// An open file handle that can write.
struct WriteHandle {
    handle: u64,
    /// It may have written what is not in the store.
    dirty: bool,
    /// Bytes that it has written since its last flush.
    unsent: u64,
}

impl File {
    pub(crate) fn has_writers(&self) -> bool {
        !self.writers.is_empty()
    }

    pub(crate) fn is_new(&self) -> bool {
        self.new
    }

    /// Brings what is written to the store, each writer's part by `flush` with its handle. Returns how many
    /// bytes that were, also if it fails.
    pub(crate) fn settle(
        &mut self,
        mut flush: impl FnMut(u64) -> c_int,
    ) -> (u64, Result<(), c_int>) {
        let mut sent = 0;
        for writer in self.writers.iter_mut().filter(|writer| writer.dirty) {
            match flush(writer.handle) {
                0 => sent += writer.flushed(),
                error => return (sent, Err(error)),
            }
        }
        self.new = false;
        (sent, Ok(()))
    }

    /// Of a handle that is about to write.
    pub(crate) fn will_write(&mut self, handle: u64) {
        for writer in self.writers_at(handle) {
            writer.dirty = true;
        }
    }

    /// Of a handle that has written.
    pub(crate) fn wrote(&mut self, handle: u64, bytes: u64) {
        for writer in self.writers_at(handle) {
            writer.unsent += bytes;
        }
    }

    /// Of a handle that has flushed. Returns how many bytes went to the store by that.
    pub(crate) fn settled(&mut self, handle: u64) -> u64 {
        self.new = false;
        self.writers_at(handle).map(WriteHandle::flushed).sum()
    }

    /// Bytes that a handle has written since its last flush.
    pub(crate) fn unsent(&self, handle: u64) -> u64 {
        self.writers
            .iter()
            .filter(|writer| writer.handle == handle)
            .map(|writer| writer.unsent)
            .sum()
    }

    fn writers_at(&mut self, handle: u64) -> impl Iterator<Item = &mut WriteHandle> {
        self.writers.iter_mut().filter(move |writer| writer.handle == handle)
    }

    pub(crate) fn is_dirty(&self, handle: u64) -> bool {
        self.writers.iter().any(|writer| writer.handle == handle && writer.dirty)
    }
}

impl WriteHandle {
    /// Returns how many bytes its flush has brought to the store.
    fn flushed(&mut self) -> u64 {
        self.dirty = false;
        core::mem::take(&mut self.unsent)
    }
}

impl OpenFiles {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Index { by_path: BTreeMap::new(), paths: BTreeMap::new() }))
    }

    /// Gives an operation a path's file alone.
    pub(crate) fn at_path<T>(&self, path: &[u8], act: impl FnOnce(&mut File) -> T) -> T {
        let file = Arc::clone(self.0.lock().by_path.entry(path.to_vec()).or_default());
        let result = act(&mut file.lock());
        let mut index = self.0.lock();
        drop(file);
        index.forget_unused(path);
        result
    }

    /// Gives an operation the file of a handle alone; nothing if the handle cannot write.
    pub(crate) fn at_handle<T>(&self, handle: u64, act: impl FnOnce(Option<&mut File>) -> T) -> T {
        let found = {
            let index = self.0.lock();
            let path = index.paths.get(&handle);
            path.and_then(|path| Some((path.clone(), Arc::clone(index.by_path.get(path)?))))
        };
        let Some((path, file)) = found else { return act(None) };
        let result = act(Some(&mut file.lock()));
        let mut index = self.0.lock();
        drop(file);
        index.forget_unused(&path);
        result
    }

    /// Adds a writer to the path's file, which the caller has. A new file's is dirty: it is to be made.
    pub(crate) fn opened(&self, path: &[u8], file: &mut File, handle: u64, new: bool) {
        file.writers.push(WriteHandle { handle, dirty: new, unsent: 0 });
        file.new |= new;
        self.0.lock().paths.insert(handle, path.to_vec());
    }

    /// Takes a writer out of its file, which the caller has.
    pub(crate) fn closing(&self, file: &mut File, handle: u64) {
        file.writers.retain(|writer| writer.handle != handle);
        self.0.lock().paths.remove(&handle);
    }

    /// The paths of files that have a writer: `path` itself and what is below it.
    pub(crate) fn from(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let index = self.0.lock();
        let mut found = index.below(path);
        if index.by_path.contains_key(path) {
            found.push(path.to_vec());
        }
        found
    }

    /// The paths of files with a writer whose directory is `path`.
    pub(crate) fn within(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let name_at = with_slash(path).len();
        let mut found = self.0.lock().below(path);
        found.retain(|path| !path[name_at..].contains(&b'/'));
        found
    }

    /// Follows a rename.
    pub(crate) fn renamed(&self, from: &[u8], to: &[u8]) {
        let moved = self.from(from);
        let mut index = self.0.lock();
        for old in moved {
            let new = [to, &old[from.len()..]].concat();
            for path in index.paths.values_mut().filter(|path| **path == old) {
                path.clone_from(&new);
            }
            if let Some(file) = index.by_path.remove(&old) {
                index.by_path.insert(new, file);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let index = self.0.lock();
        index.by_path.is_empty() && index.paths.is_empty()
    }
}

impl Index {
    /// Forgets a file that has no writer and that no operation holds.
    fn forget_unused(&mut self, path: &[u8]) {
        let file = self.by_path.get_mut(path).and_then(Arc::get_mut);
        if file.is_some_and(|file| !file.get_mut().has_writers()) {
            self.by_path.remove(path);
        }
    }

    fn below(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let directory = with_slash(path);
        let following = self.by_path.range(directory.clone()..);
        let inside = following.take_while(|(path, _)| path.starts_with(&directory));
        inside.map(|(path, _)| path.clone()).collect()
    }
}

/// The path of the directory that a path is in.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) | None => b"/",
        Some(slash) => &path[..slash],
    }
}

/// A directory's path with one slash at its end.
pub(crate) fn with_slash(path: &[u8]) -> Vec<u8> {
    let mut path = path.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path
}

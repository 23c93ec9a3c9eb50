//! When a content file that the index no longer names may be removed, and the removal.
//!
//! ```text
//! commit ends the last use of a file ─► retired ─► nobody can have found it any more
//!                                                   ├─ nobody reads it ──────────────► free ─► unlinked
//!                                                   └─ it is read ─► last reader done ─► free ─► unlinked
//! ```
//!
//! A reader has three steps: it announces a [`Lookup`], reads the row of the index, and turns the
//! lookup into a [`Lease`] on the files that the row names. A file that was retired while a lookup
//! was under way may be in the row that it reads, so the file waits for the end of that lookup.
//!
//! The lock here is held for a few steps in memory, never while the disk works. Files are unlinked
//! by one task, [`unlink_free`], which holds no lock. What it has not reached when the server dies is
//! not in the index, and removed at the next open.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::content::{ContentFiles, FileId, Segment};

/// Unlinks one file. Tests have a slow one.
pub(super) type Unlink = Arc<dyn Fn(&Path) -> io::Result<()> + Send + Sync>;

/// Which files are read, and which wait for their removal. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    shared: Arc<SharedLeases>,
}

#[derive(Debug, Default)]
struct SharedLeases {
    state: Mutex<LeaseState>,
    /// There are free files.
    freed: Notify,
}

/// The lists hold names only, and never more of them than there are files in the folder.
#[derive(Debug, Default)]
struct LeaseState {
    /// The number of the next lookup.
    next: u64,
    /// The lookups under way.
    lookups: BTreeSet<u64>,
    /// How many leases each file has.
    leased: HashMap<FileId, usize>,
    /// Files the index does not name, in order, each with the first lookup that cannot find it.
    retired: VecDeque<(u64, FileId)>,
    /// Retired files that are leased.
    awaited: HashSet<FileId>,
    /// Files to unlink.
    free: Vec<FileId>,
}

impl LeaseState {
    /// Moves on what no lookup can find any more.
    fn advance(&mut self) {
        let oldest = self.lookups.first().copied().unwrap_or(self.next);
        while self.retired.front().is_some_and(|(unseen, _)| *unseen <= oldest) {
            let Some((_, file)) = self.retired.pop_front() else { break };
            if self.leased.contains_key(&file) {
                self.awaited.insert(file);
            } else {
                self.free.push(file);
            }
        }
    }
}

impl Leases {
    fn state(&self) -> MutexGuard<'_, LeaseState> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes the task that unlinks if there is something for it.
    fn change<T>(&self, change: impl FnOnce(&mut LeaseState) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        if !state.free.is_empty() {
            self.shared.freed.notify_one();
        }
        result
    }

    /// Announces that a row is about to be read.
    pub(super) fn look_up(&self) -> Lookup {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.lookups.insert(number);
        Lookup { leases: self.clone(), number }
    }

    /// Has files removed that the index no longer names: to be called after the commit.
    pub(super) fn retire(&self, files: Vec<FileId>) {
        self.change(|state| {
            let unseen = state.next;
            state.retired.extend(files.into_iter().map(|file| (unseen, file)));
            state.advance();
        });
    }

    /// Has a file removed that the index never named.
    pub(super) fn discard(&self, file: FileId) {
        self.change(|state| state.free.push(file));
    }

    fn take_free(&self) -> Vec<FileId> {
        std::mem::take(&mut self.state().free)
    }
}

/// A row is being read. What is retired meanwhile stays.
#[derive(Debug)]
pub(super) struct Lookup {
    leases: Leases,
    number: u64,
}

impl Lookup {
    /// Keeps the files of `segments`, which the row names.
    pub(super) fn lease(self, segments: &[Segment]) -> Lease {
        let files: Vec<FileId> = segments.iter().map(|segment| segment.file.clone()).collect();
        let mut state = self.leases.state();
        for file in &files {
            *state.leased.entry(file.clone()).or_default() += 1;
        }
        drop(state);
        Lease { leases: self.leases.clone(), files }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.leases.change(|state| {
            state.lookups.remove(&self.number);
            state.advance();
        });
    }
}

/// Keeps files from being removed while they are read.
#[derive(Debug)]
pub(super) struct Lease {
    leases: Leases,
    files: Vec<FileId>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let files = std::mem::take(&mut self.files);
        self.leases.change(|state| {
            for file in files {
                let Some(readers) = state.leased.get_mut(&file) else { continue };
                *readers -= 1;
                if *readers == 0 {
                    state.leased.remove(&file);
                    if state.awaited.remove(&file) {
                        state.free.push(file);
                    }
                }
            }
        });
    }
}

/// Unlinks free files until `stop`, and then those that are free by then.
pub(super) async fn unlink_free(files: ContentFiles, unlink: Unlink, stop: CancellationToken) {
    loop {
        let stopped = stop.is_cancelled();
        let free = files.leases.take_free();
        if free.is_empty() {
            if stopped {
                return;
            }
            tokio::select! {
                () = files.leases.shared.freed.notified() => {}
                () = stop.cancelled() => {}
            }
            continue;
        }
        let (files, unlink) = (files.clone(), Arc::clone(&unlink));
        let unlinked = spawn_blocking(move || {
            for file in &free {
                match unlink(&files.path(file)) {
                    Ok(()) => {}
                    // It was lost before, which was reported then.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // It is found again at the next open.
                    Err(error) => warn!(%error, %file, "cannot remove a content file"),
                }
            }
        });
        if let Err(error) = unlinked.await {
            warn!(%error, "the removal of content files died");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: usize) -> Vec<FileId> {
        (0..count).map(|_| FileId::random().expect("random numbers")).collect()
    }

    fn segment(file: &FileId) -> Segment {
        Segment { file: file.clone(), offset: 0, length: 1 }
    }

    #[test]
    fn a_file_being_read_is_free_after_its_last_reader() {
        let leases = Leases::default();
        let file = files(1).remove(0);
        let first = leases.look_up().lease(&[segment(&file)]);
        let second = leases.look_up().lease(&[segment(&file)]);
        leases.retire(vec![file.clone()]);
        drop(first);
        assert_eq!(leases.take_free(), []);
        drop(second);
        assert_eq!(leases.take_free(), [file]);
    }

    #[test]
    fn a_file_waits_for_the_lookups_that_may_have_found_it() {
        let leases = Leases::default();
        let [one, two]: [FileId; 2] = files(2).try_into().expect("two");
        let (first, second) = (leases.look_up(), leases.look_up());
        leases.retire(vec![one.clone()]);
        // A lookup that began after the commit cannot find the file.
        let third = leases.look_up();
        leases.retire(vec![two.clone()]);
        drop(first);
        assert_eq!(leases.take_free(), []);
        drop(second);
        assert_eq!(leases.take_free(), [one]);
        drop(third);
        assert_eq!(leases.take_free(), [two]);
    }

    #[test]
    fn a_lookup_that_found_a_retired_file_keeps_it() {
        let leases = Leases::default();
        let file = files(1).remove(0);
        let lookup = leases.look_up();
        leases.retire(vec![file.clone()]);
        let lease = lookup.lease(&[segment(&file)]);
        assert_eq!(leases.take_free(), []);
        drop(lease);
        assert_eq!(leases.take_free(), [file]);
    }

    #[test]
    fn nothing_is_kept_of_what_is_over() {
        let leases = Leases::default();
        let all = files(3);
        let lease = leases.look_up().lease(&all.iter().map(segment).collect::<Vec<_>>());
        leases.retire(all);
        drop(lease);
        assert_eq!(leases.take_free().len(), 3);
        let state = leases.state();
        assert!(state.lookups.is_empty() && state.leased.is_empty());
        assert!(state.retired.is_empty() && state.awaited.is_empty());
    }
}

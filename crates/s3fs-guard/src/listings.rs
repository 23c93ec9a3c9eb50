//! Listings of directories, and the files that change meanwhile.
//!
//! s3fs asks the store for the attributes of what it lists and keeps the answers. An answer from before a
//! file's upload that is kept after it shows the old length for seconds, and an append then begins there.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use rustix_futex_sync::{Condvar, Mutex};

use crate::files::parent;

/// All listings under way, and whom they may have left with a wrong length.
pub(crate) struct Listings {
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    /// The next listing's number.
    next: u64,
    /// Directories by the number of the listing.
    active: BTreeMap<u64, Vec<u8>>,
    /// Paths, each with a number: listings from it on have seen the change.
    suspects: BTreeMap<Vec<u8>, u64>,
}

impl State {
    fn lists(&self, path: &[u8]) -> bool {
        self.active.values().any(|directory| directory == parent(path))
    }
}

impl Listings {
    pub(crate) const fn new() -> Self {
        let state = State { next: 0, active: BTreeMap::new(), suspects: BTreeMap::new() };
        Self { state: Mutex::new(state), ended: Condvar::new() }
    }

    /// Lists a directory.
    pub(crate) fn list<T>(&self, directory: &[u8], act: impl FnOnce() -> T) -> T {
        let number = {
            let mut state = self.state.lock();
            state.next += 1;
            let number = state.next - 1;
            state.active.insert(number, directory.to_vec());
            number
        };
        let result = act();
        self.state.lock().active.remove(&number);
        self.ended.notify_all();
        result
    }

    /// Changes what the store has at a path.
    pub(crate) fn change<T>(&self, path: &[u8], act: impl FnOnce() -> T) -> T {
        let (listed, next) = {
            let state = self.state.lock();
            (state.lists(path), state.next)
        };
        let result = act();
        let mut state = self.state.lock();
        if listed || state.next != next {
            let next = state.next;
            state.suspects.insert(path.to_vec(), next);
        }
        result
    }

    /// Whether s3fs may have a wrong length of a path. Waits for listings that might still leave one.
    pub(crate) fn may_be_wrong(&self, path: &[u8]) -> bool {
        let mut state = self.state.lock();
        loop {
            let Some(known) = state.suspects.get(path) else { return false };
            let mut before = state.active.range(..known);
            if !before.any(|(_, directory)| directory == parent(path)) {
                return true;
            }
            state = self.ended.wait(state);
        }
    }

    /// s3fs has asked the store anew.
    pub(crate) fn is_right(&self, path: &[u8]) {
        self.state.lock().suspects.remove(path);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_changes_during_a_listing_of_its_directory_is_suspect_until_asked_for() {
        let listings = Listings::new();
        listings.change(b"/d/before", || ());
        listings.list(b"/d", || {
            listings.change(b"/d/inside", || ());
            listings.change(b"/e/elsewhere", || ());
        });
        listings.change(b"/d/around", || listings.list(b"/d", || ()));
        listings.change(b"/d/after", || ());
        for (path, suspect) in [
            (&b"/d/before"[..], false),
            (b"/d/inside", true),
            (b"/e/elsewhere", false),
            (b"/d/around", true),
            (b"/d/after", false),
        ] {
            assert_eq!(listings.may_be_wrong(path), suspect, "{}", path.escape_ascii());
            listings.is_right(path);
            assert!(!listings.may_be_wrong(path));
        }
    }

    #[test]
    fn a_question_waits_for_the_listings_from_before_the_change_and_no_others() {
        let listings = Listings::new();
        let (change, changed) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        thread::scope(|scope| {
            let listings = &listings;
            scope.spawn(move || {
                listings.list(b"/", || {
                    listings.change(b"/a", || ());
                    change.send(()).expect("the test waits");
                    ended.recv().expect("the test says when");
                });
            });
            changed.recv().expect("changed");
            // One that began later is still under way when the question is answered.
            listings.list(b"/", || {
                let asked = scope.spawn(|| listings.may_be_wrong(b"/a"));
                assert!(!asked.is_finished());
                end.send(()).expect("the listing waits");
                assert!(asked.join().expect("no panic"));
            });
        });
    }
}

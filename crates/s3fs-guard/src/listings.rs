//! Listings of directories, and the files that change meanwhile.
//!
//! s3fs asks the store for the attributes of what it lists and keeps the answers. An answer from before a
//! file's upload that is kept after it shows the old length for seconds, and an append then begins there.
//!
//! So changed files are noted here until s3fs has asked again. It also does so when its answer is too old: then
//! the note goes, and what is noted is never more than the changes of some seconds.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use rustix_futex_sync::{Condvar, Mutex};

use crate::ATTRIBUTES_SECS;
use crate::files::{parent, with_slash};

/// A note goes when s3fs's answer is older than that. A second more, since the clock is read in whole ones.
const KEPT_SECS: u64 = ATTRIBUTES_SECS + 2;

/// Below so many notes none is looked at.
const LEAST_NOTES: usize = 64;

/// All listings under way, and whom they may have left with a wrong length.
pub(crate) struct Listings {
    state: Mutex<ListingState>,
    ended: Condvar,
    /// Seconds of the clock that s3fs uses.
    clock: fn() -> u64,
}

struct ListingState {
    /// The next listing's number.
    next: u64,
    /// Directories by the number of the listing.
    active: BTreeMap<u64, Vec<u8>>,
    suspects: BTreeMap<Vec<u8>, Suspect>,
    /// Old notes are looked for when there are so many.
    look_at: usize,
}

/// A path of which s3fs may have a wrong length.
struct Suspect {
    /// Listings from this number on have seen the change.
    known: u64,
    /// When a listing may last have left the wrong length, in seconds.
    left_at: u64,
}

impl ListingState {
    fn lists(&self, path: &[u8]) -> bool {
        self.active.values().any(|directory| directory == parent(path))
    }

    /// Whether a listing is under way that may still leave a path's wrong length.
    fn may_leave(active: &BTreeMap<u64, Vec<u8>>, path: &[u8], known: u64) -> bool {
        active.range(..known).any(|(_, directory)| directory == parent(path))
    }

    /// A listing has ended: what it has left is as old as now.
    fn ended(&mut self, number: u64, now: u64) {
        let Some(directory) = self.active.remove(&number) else { return };
        let below = with_slash(&directory);
        let following = self.suspects.range_mut(below.clone()..);
        for (path, suspect) in following.take_while(|(path, _)| path.starts_with(&below)) {
            if suspect.known > number && parent(path) == directory {
                suspect.left_at = now;
            }
        }
    }

    /// Notes a path, and forgets those of which s3fs asks the store again by itself.
    fn suspect(&mut self, path: &[u8], now: u64) {
        let suspect = Suspect { known: self.next, left_at: now };
        self.suspects.insert(path.to_vec(), suspect);
        if self.suspects.len() >= self.look_at {
            let Self { active, suspects, .. } = self;
            suspects.retain(|path, suspect| {
                now.saturating_sub(suspect.left_at) <= KEPT_SECS
                    || Self::may_leave(active, path, suspect.known)
            });
            self.look_at = LEAST_NOTES.max(2 * self.suspects.len());
        }
    }
}

impl Listings {
    pub(crate) const fn new(clock: fn() -> u64) -> Self {
        let state = ListingState {
            next: 0,
            active: BTreeMap::new(),
            suspects: BTreeMap::new(),
            look_at: LEAST_NOTES,
        };
        Self { state: Mutex::new(state), ended: Condvar::new(), clock }
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
        self.state.lock().ended(number, (self.clock)());
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
            state.suspect(path, (self.clock)());
        }
        result
    }

    /// Whether s3fs may have a wrong length of a path. Waits for listings that might still leave one.
    pub(crate) fn may_be_wrong(&self, path: &[u8]) -> bool {
        let mut state = self.state.lock();
        loop {
            let Some(suspect) = state.suspects.get(path) else { return false };
            if !ListingState::may_leave(&state.active, path, suspect.known) {
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
    use std::cell::Cell;
    use std::thread;

    use super::*;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(1000) };
    }

    fn now() -> u64 {
        NOW.get()
    }

    #[test]
    fn what_changes_during_a_listing_of_its_directory_is_suspect_until_asked_for() {
        let listings = Listings::new(now);
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
    fn notes_go_when_s3fs_asks_again_by_itself() {
        let listings = Listings::new(now);
        let notes = || listings.state.lock().suspects.len();
        let change = |number: u64| {
            let path = alloc::format!("/d/{number}");
            listings.change(path.as_bytes(), || listings.list(b"/d", || ()));
        };
        for number in 0..10_000 {
            // A hundred changes a second.
            NOW.set(1000 + number / 100);
            change(number);
            assert!(notes() <= 2000, "{} notes", notes());
        }
        // Of the last seconds none is gone.
        let of_last_seconds = 10_000 - 100 * ATTRIBUTES_SECS..10_000;
        for number in of_last_seconds {
            assert!(listings.may_be_wrong(alloc::format!("/d/{number}").as_bytes()), "{number}");
        }
    }

    #[test]
    fn a_note_stays_while_a_listing_may_still_leave_the_wrong_length() {
        let listings = Listings::new(now);
        NOW.set(1000);
        let many = |directory: &str| {
            for number in 0..200 {
                let path = alloc::format!("{directory}/{number}");
                listings.change(path.as_bytes(), || listings.list(directory.as_bytes(), || ()));
            }
        };
        listings.list(b"/slow", || {
            listings.change(b"/slow/file", || ());
            NOW.set(2000);
            many("/a");
        });
        NOW.set(2000 + KEPT_SECS);
        many("/b");
        assert!(listings.may_be_wrong(b"/slow/file"), "the listing has ended just now");
        NOW.set(2001 + KEPT_SECS);
        many("/c");
        assert!(!listings.may_be_wrong(b"/slow/file"));
    }

    #[test]
    fn a_question_waits_for_the_listings_from_before_the_change_and_no_others() {
        let listings = Listings::new(now);
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

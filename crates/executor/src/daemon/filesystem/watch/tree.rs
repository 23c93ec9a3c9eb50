//! One watched directory, with all below it if it is recursive: what inotify notifies becomes the
//! contract's events (executor 5.4). Nothing is delayed, merged or renamed here.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use sandyard_contract::rpc::filesystem::{EventType, FilesystemEvent};

use super::super::super::access::{self, FileLocation};
use super::super::super::accounts::Names;
use super::super::super::trusted::LastLink;
use super::super::entry;

const WATCHED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// How many bytes of notifications are read at once.
const READ_BYTES: usize = 64 << 10;

/// Watch descriptor, mask, cookie and length of the name: what precedes each name.
const HEAD_BYTES: usize = 16;

/// Why watching is impossible, or over.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error(
        "failed to make a watcher: {0}; each takes one of fs.inotify.max_user_instances, which all \
         sandboxes of the machine share"
    )]
    Instance(#[source] io::Error),
    #[error(
        "failed to watch '{path}': {source}; each directory takes one of \
         fs.inotify.max_user_watches, which all sandboxes of the machine share"
    )]
    Limit { path: String, source: io::Error },
    #[error("failed to watch '{path}': {source}")]
    Directory { path: String, source: io::Error },
    #[error("failed to read events: {0}")]
    Read(#[source] io::Error),
    #[error(
        "events were lost: more happened than fs.inotify.max_queued_events before they were read"
    )]
    Overflow,
}

/// What a watcher is asked for.
#[derive(Clone, Debug)]
pub(super) struct WatchOptions {
    pub recursive: bool,
    pub include_entry: bool,
}

/// The directories that are watched and the descriptor that tells of them.
#[derive(Debug)]
pub(super) struct WatchTree {
    inotify: Arc<OwnedFd>,
    root: String,
    /// Holds a root that the user cannot reach by its path.
    held: Option<File>,
    root_watch: i32,
    options: WatchOptions,
    /// Where each watched directory lies below the root, which itself is the empty path.
    directories: HashMap<i32, PathBuf>,
}

impl WatchTree {
    /// Watches a directory. Whatever happens in it from here on is notified.
    pub(super) fn watch(root: String, options: WatchOptions) -> Result<Self, WatchError> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(|error| WatchError::Instance(error.into()))?;
        let begin = |place: FileLocation<'_>| {
            let held = match place {
                FileLocation::Path(..) => None,
                FileLocation::Held(_) => Some(place.open(OFlags::PATH | OFlags::DIRECTORY, 0)?),
            };
            let path = held.as_ref().map_or_else(|| root.clone(), access::held_path);
            let watch = inotify::add_watch(&inotify, &path, WATCHED)?;
            let children = match options.recursive {
                true => children(Path::new(&path), Path::new(""))?,
                false => Vec::new(),
            };
            Ok((held, watch, children))
        };
        let (held, root_watch, children) = access::reading(&root, LastLink::Follow, begin)
            .map_err(|error| refused(root.clone(), error))?;
        let mut tree = Self {
            inotify: Arc::new(inotify),
            root,
            held,
            root_watch,
            options,
            directories: HashMap::from([(root_watch, PathBuf::new())]),
        };
        for (path, is_directory) in children {
            if is_directory {
                tree.watch_below(path, |_| {})?;
            }
        }
        Ok(tree)
    }

    /// A path to what is below the root, for the user's own rights: what they do not reach is left out.
    fn reach(&self, below: &Path) -> PathBuf {
        match &self.held {
            Some(held) => Path::new(&access::held_path(held)).join(below),
            None => Path::new(&self.root).join(below),
        }
    }

    /// What becomes readable when something happened.
    pub(super) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.inotify)
    }

    /// Appends what happened until now.
    pub(super) fn drain(&mut self, events: &mut Vec<FilesystemEvent>) -> Result<(), WatchError> {
        let mut bytes = Vec::new();
        self.read(&mut bytes)?;
        if self.options.recursive && arrivals(&bytes).any(|(_, paired)| !paired) {
            // The other half of a move is notified by the same system call, a moment later.
            self.read(&mut bytes)?;
        }
        let mut happened = Vec::new();
        let handled = self.handle(&bytes, &mut happened);
        let mut names = None;
        events.extend(happened.into_iter().map(|(path, kind)| self.event(&path, kind, &mut names)));
        handled
    }

    /// Reads what is there now; what comes meanwhile can wait, or this might never end.
    fn read(&self, bytes: &mut Vec<u8>) -> Result<(), WatchError> {
        let failed = |error: Errno| WatchError::Read(error.into());
        let mut left = rustix::io::ioctl_fionread(&self.inotify).map_err(failed)?;
        while left > 0 {
            bytes.reserve(READ_BYTES);
            match rustix::io::read(&self.inotify, spare_capacity(bytes)) {
                Ok(length) => left = left.saturating_sub(length as u64),
                Err(Errno::WOULDBLOCK) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn handle(
        &mut self,
        bytes: &[u8],
        happened: &mut Vec<(PathBuf, EventType)>,
    ) -> Result<(), WatchError> {
        let paired: HashSet<u32> =
            arrivals(bytes).filter(|(_, paired)| *paired).map(|(cookie, _)| cookie).collect();
        let mut moved = HashMap::new();
        for Notification { watch, mask, cookie, name } in notifications(bytes) {
            if mask.contains(ReadFlags::QUEUE_OVERFLOW) {
                return Err(WatchError::Overflow);
            }
            if mask.contains(ReadFlags::IGNORED) {
                self.directories.remove(&watch);
                continue;
            }
            // Late news of a directory that is watched no more.
            let Some(directory) = self.directories.get(&watch) else {
                continue;
            };
            let is_root = watch == self.root_watch;
            if name.is_empty() && !is_root {
                // The directory above says the same, by name.
                continue;
            }
            let path = if name.is_empty() { PathBuf::new() } else { directory.join(name) };
            happened.extend(kinds(mask).map(|kind| (path.clone(), kind)));
            if mask.contains(ReadFlags::MOVE_SELF) {
                // It is elsewhere now, and no path of what happens there is known any more.
                self.forget(Path::new(""));
            }
            if !self.options.recursive || !mask.contains(ReadFlags::ISDIR) || name.is_empty() {
                continue;
            }
            if mask.contains(ReadFlags::MOVED_FROM) {
                if paired.contains(&cookie) {
                    moved.insert(cookie, path);
                } else {
                    self.forget(&path);
                }
            } else if mask.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
                if let Some(before) = moved.remove(&cookie) {
                    self.rename(&before, &path);
                }
                self.watch_below(path, |found| happened.push((found, EventType::Create)))?;
            }
        }
        Ok(())
    }

    /// Watches a directory below the root and all in it. Each is watched before it is searched, so
    /// that nothing is missed; what is found in one that was not watched before is announced. One that
    /// is gone or cannot be read is left out.
    fn watch_below(
        &mut self,
        path: PathBuf,
        mut announce: impl FnMut(PathBuf),
    ) -> Result<(), WatchError> {
        // What is still to be visited, the next last: path, whether to announce it, whether to enter it.
        let mut pending = vec![(path, false, true)];
        while let Some((path, is_news, is_directory)) = pending.pop() {
            if is_news {
                announce(path.clone());
            }
            if !is_directory {
                continue;
            }
            let full = self.reach(&path);
            let flags = WATCHED | WatchFlags::DONT_FOLLOW;
            let watch = match inotify::add_watch(&self.inotify, &full, flags) {
                Ok(watch) => watch,
                Err(error @ (Errno::NOSPC | Errno::NOMEM)) => {
                    let shown = Path::new(&self.root).join(&path);
                    return Err(refused(shown.to_string_lossy().into_owned(), error.into()));
                }
                Err(_) => continue,
            };
            let was_watched = self.directories.insert(watch, path.clone()).is_some();
            let below = children(&full, &path).unwrap_or_default();
            let below = below.into_iter().rev().map(|(path, enter)| (path, !was_watched, enter));
            pending.extend(below);
        }
        Ok(())
    }

    /// A directory and what is below it lies elsewhere below the root.
    fn rename(&mut self, before: &Path, now: &Path) {
        for path in self.directories.values_mut() {
            if path == before {
                *path = now.to_owned();
            } else if let Ok(rest) = path.strip_prefix(before) {
                *path = now.join(rest);
            }
        }
    }

    /// Watches a directory and what is below it no more.
    fn forget(&mut self, path: &Path) {
        let inotify = &self.inotify;
        self.directories.retain(|watch, directory| {
            let kept = !directory.starts_with(path);
            if !kept {
                // An error says that the directory is gone, and its watch with it.
                let _ = inotify::remove_watch(inotify, *watch);
            }
            kept
        });
    }

    fn event(&self, path: &Path, kind: EventType, names: &mut Option<Names>) -> FilesystemEvent {
        let is_root = path.as_os_str().is_empty();
        let name = if is_root { ".".into() } else { path.to_string_lossy() };
        let described = matches!(kind, EventType::Create | EventType::Write | EventType::Chmod);
        let mut event =
            FilesystemEvent { name: name.into_owned(), r#type: kind as i32, entry: None };
        if described && self.options.include_entry {
            let path = match self.root.trim_end_matches('/') {
                root if is_root && !root.is_empty() => root.to_owned(),
                root => format!("{root}/{}", event.name),
            };
            // What is gone again, or cannot be read, has no entry.
            if names.is_none() {
                *names = Names::load().ok();
            }
            event.entry = names.as_ref().and_then(|names| entry::describe(&path, names).ok());
        }
        event
    }
}

fn refused(path: String, source: io::Error) -> WatchError {
    match source.raw_os_error() {
        Some(libc::ENOSPC) => WatchError::Limit { path, source },
        _ => WatchError::Directory { path, source },
    }
}

/// What is in a directory, by name: paths below the root, and whether they are directories themselves.
fn children(full: &Path, below: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    let mut children: Vec<(OsString, bool)> = Vec::new();
    for entry in fs::read_dir(full)? {
        let entry = entry?;
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        children.push((entry.file_name(), is_directory));
    }
    children.sort_unstable();
    Ok(children.into_iter().map(|(name, directory)| (below.join(name), directory)).collect())
}

/// What a mask means, in the contract's order; a notification may carry several kinds.
fn kinds(mask: ReadFlags) -> impl Iterator<Item = EventType> {
    let kinds = [
        (ReadFlags::CREATE.union(ReadFlags::MOVED_TO), EventType::Create),
        (ReadFlags::MOVED_FROM.union(ReadFlags::MOVE_SELF), EventType::Rename),
        (ReadFlags::ATTRIB, EventType::Chmod),
        (ReadFlags::MODIFY, EventType::Write),
        (ReadFlags::DELETE.union(ReadFlags::DELETE_SELF), EventType::Remove),
    ];
    kinds.into_iter().filter(move |(flags, _)| mask.intersects(*flags)).map(|(_, kind)| kind)
}

/// One notification; without a name it is about the watched directory itself.
#[derive(Debug, PartialEq, Eq)]
struct Notification<'a> {
    watch: i32,
    mask: ReadFlags,
    cookie: u32,
    name: &'a OsStr,
}

/// Takes apart what the kernel wrote; it writes whole notifications only.
fn notifications(mut bytes: &[u8]) -> impl Iterator<Item = Notification<'_>> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name, rest) = rest.split_at_checked(word(12) as usize)?;
        bytes = rest;
        // Filled up with zeros.
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Some(Notification {
            watch: word(0).cast_signed(),
            mask: ReadFlags::from_bits_retain(word(4)),
            cookie: word(8),
            name: OsStr::from_bytes(&name[..end]),
        })
    })
}

/// The cookies of directories that were moved from a watched place, and whether they arrived at one.
fn arrivals(bytes: &[u8]) -> impl Iterator<Item = (u32, bool)> {
    let moves = |flag: ReadFlags| {
        notifications(bytes)
            .filter(move |n| n.mask.contains(flag | ReadFlags::ISDIR))
            .map(|n| n.cookie)
    };
    let arrived: HashSet<u32> = moves(ReadFlags::MOVED_TO).collect();
    moves(ReadFlags::MOVED_FROM).map(move |cookie| (cookie, arrived.contains(&cookie)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn several_kinds_come_in_the_contracts_order() {
        // executor 5.4: CREATE, RENAME, CHMOD, WRITE, REMOVE
        let all: Vec<EventType> = kinds(ReadFlags::all()).collect();
        assert_eq!(
            all,
            [
                EventType::Create,
                EventType::Rename,
                EventType::Chmod,
                EventType::Write,
                EventType::Remove
            ]
        );
        assert_eq!(kinds(ReadFlags::OPEN | ReadFlags::ACCESS | ReadFlags::CLOSE_WRITE).count(), 0);
    }

    #[test]
    fn a_lost_notification_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_str().unwrap().to_owned();
        let options = WatchOptions { recursive: false, include_entry: false };
        let mut tree = WatchTree::watch(root, options).unwrap();
        let mut lost = [0; HEAD_BYTES];
        lost[..4].copy_from_slice(&(-1i32).to_ne_bytes());
        lost[4..8].copy_from_slice(&ReadFlags::QUEUE_OVERFLOW.bits().to_ne_bytes());
        assert!(matches!(tree.handle(&lost, &mut Vec::new()), Err(WatchError::Overflow)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_notifications_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let names: usize = notifications(&bytes).map(|n| HEAD_BYTES + n.name.len()).sum();
            prop_assert!(names <= bytes.len());
        }

        #[test]
        fn a_notification_is_read_as_the_kernel_writes_it(
            watch: i32,
            mask: u32,
            cookie: u32,
            name in "[^\0]{0,40}",
            padding in 0usize..16,
        ) {
            let mut bytes = Vec::new();
            let length = (name.len() + padding) as u32;
            for word in [watch.cast_unsigned(), mask, cookie, length] {
                bytes.extend_from_slice(&word.to_ne_bytes());
            }
            bytes.extend_from_slice(name.as_bytes());
            bytes.resize(bytes.len() + padding, 0);
            let read: Vec<_> = notifications(&bytes).collect();
            let mask = ReadFlags::from_bits_retain(mask);
            prop_assert_eq!(read, [Notification { watch, mask, cookie, name: OsStr::new(&name) }]);
        }
    }
}

//! One step of file work: with the rights that the thread has, else past them.
//!
//! Where users can become root anyway (sudo), what the kernel refuses a user is done once more past the
//! permissions, as E2B's daemon does everything (executor 3.1). Then the path is found by names that
//! nobody but root controls, and the step works on a name in a directory that is held open.

use std::borrow::Cow;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat, openat2, unlinkat,
};
use rustix::io::Errno;

use super::rights::{is_overriding, is_user, overriding, users_can_become_root};
use super::trusted::{LastLink, Located, is_roots, locate};

/// Where a step works.
#[derive(Clone, Copy, Debug)]
pub(super) enum FileLocation<'a> {
    /// A path, with the rights of the thread.
    Path(&'a str, LastLink),
    /// A name in a directory, past permissions. Links at the name are never followed.
    Held(&'a Located),
}

impl FileLocation<'_> {
    fn directory(&self) -> BorrowedFd<'_> {
        match self {
            Self::Path(..) => CWD,
            Self::Held(located) => located.directory.as_fd(),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Path(path, _) => path,
            Self::Held(located) => &located.name,
        }
    }

    /// True if a link at the end is followed.
    pub(super) fn follows(&self) -> bool {
        matches!(self, Self::Path(_, LastLink::Follow))
    }

    /// A path for calls that take no directory.
    pub(super) fn path(&self) -> Cow<'_, str> {
        match self {
            Self::Path(path, _) => Cow::Borrowed(path),
            Self::Held(located) => {
                Cow::Owned(format!("{}/{}", held_path(&located.directory), located.name))
            }
        }
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        match self {
            Self::Path(path, LastLink::Follow) => fs::metadata(path),
            Self::Path(path, LastLink::Keep) => fs::symlink_metadata(path),
            Self::Held(_) => self.open(OFlags::PATH, 0)?.metadata(),
        }
    }

    /// Opens it; what is made has this mode, less the mask.
    pub(super) fn open(&self, flags: OFlags, mode: u32) -> io::Result<File> {
        let link = if self.follows() { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = flags | link | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        if is_user() {
            // The daemon's own /proc/self/fd leads a thread with any rights to what others have open.
            let resolve = ResolveFlags::NO_MAGICLINKS;
            match openat2(self.directory(), self.name(), flags, mode, resolve) {
                Err(Errno::NOSYS) => {}
                opened => return Ok(opened?.into()),
            }
        }
        Ok(openat(self.directory(), self.name(), flags, mode)?.into())
    }

    fn make_directory(&self, mode: u32) -> io::Result<()> {
        Ok(mkdirat(self.directory(), self.name(), Mode::from_raw_mode(mode))?)
    }

    fn chown(&self, uid: u32, gid: u32) -> io::Result<()> {
        let flags = if self.follows() { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(chownat(self.directory(), self.name(), uid, gid, flags)?)
    }
}

/// A path to what a descriptor holds, for as long as it does.
pub(super) fn held_path(held: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", held.as_fd().as_raw_fd())
}

/// Does a step that changes nothing.
pub(super) fn reading<T>(
    path: &str,
    last: LastLink,
    step: impl Fn(FileLocation<'_>) -> io::Result<T>,
) -> io::Result<T> {
    once_more(step(FileLocation::Path(path, last)), || {
        step(FileLocation::Held(&locate(path, last)?))
    })
}

/// Does a step that makes, writes or removes what a path names.
pub(super) fn changing<T>(
    path: &str,
    last: LastLink,
    step: impl Fn(FileLocation<'_>) -> io::Result<T>,
) -> io::Result<T> {
    once_more(step(FileLocation::Path(path, last)), || {
        step(FileLocation::Held(&locate_to_change(path, last)?))
    })
}

/// Does a step that changes no names, with what is held open.
pub(super) fn reading_below<T>(step: impl Fn() -> io::Result<T>) -> io::Result<T> {
    once_more(step(), &step)
}

/// Does a step that makes, writes or removes a name in a directory that was found by [`locate_past`],
/// or below one.
pub(super) fn changing_below<T>(
    directory: impl AsFd,
    step: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    once_more(step(), || match is_roots(&directory)? {
        true => step(),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    })
}

/// Does a step past permissions if it was refused to a user who can become root. What is refused then
/// too is the refusal of before.
fn once_more<T>(done: io::Result<T>, again: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    assert!(!is_overriding(), "a step is done with plain rights first");
    match done {
        Err(refusal) if may_go_past(&refusal) => match overriding(again).and_then(|done| done) {
            Err(error) if is_refusal(&error) => Err(refusal),
            done => done,
        },
        done => done,
    }
}

/// True if something was refused to a user who can become root.
pub(super) fn may_go_past(error: &io::Error) -> bool {
    is_refusal(error) && is_user() && users_can_become_root()
}

/// Finds a path past permissions, for [`changing_below`].
pub(super) fn locate_past(path: &str, last: LastLink) -> io::Result<Located> {
    overriding(|| locate(path, last))?
}

fn locate_to_change(path: &str, last: LastLink) -> io::Result<Located> {
    let located = locate(path, last)?;
    match is_roots(&located.directory)? {
        true => Ok(located),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// True for what the kernel says to users who may not do something.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// What a path leads to.
pub(super) fn metadata(path: &str) -> io::Result<Metadata> {
    reading(path, LastLink::Follow, |place| place.metadata())
}

/// Where a path really leads: absolute, without links.
pub(super) fn real_path(path: &str) -> io::Result<String> {
    reading(path, LastLink::Follow, |place| {
        let real = match place {
            FileLocation::Path(path, _) => fs::canonicalize(path)?,
            FileLocation::Held(_) => {
                let held = place.open(OFlags::PATH, 0)?;
                fs::read_link(held_path(&held))?
            }
        };
        Ok(real.to_string_lossy().into_owned())
    })
}

/// Makes a directory, mode 0755. It belongs to the user from its first moment, and to root's calls
/// by a change of owner.
pub(super) fn make_directory(path: &str, uid: u32, gid: u32) -> io::Result<()> {
    changing(path, LastLink::Keep, |place| {
        place.make_directory(0o755)?;
        settle_owner(place.chown(uid, gid))
    })
}

/// Gives an existing file to a user, where that can be: root's calls give away any, a user keeps its own.
pub(super) fn take_file(path: &str, found: &Metadata, uid: u32, gid: u32) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    match is_user() && found.uid() != uid {
        true => Ok(()),
        false => settle_owner(FileLocation::Path(path, LastLink::Follow).chown(uid, gid)),
    }
}

/// Gives a file that was just made to the user, which for a user changes nothing but is an event to
/// watchers (executor 5.4).
pub(super) fn take_new_file(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    settle_owner(std::os::unix::fs::fchown(file, Some(uid), Some(gid)))
}

/// A file system that refuses a user to own what it owns already takes nothing away.
fn settle_owner(owned: io::Result<()>) -> io::Result<()> {
    match owned {
        Err(error) if is_user() && is_refusal(&error) => Ok(()),
        owned => owned,
    }
}

/// Removes a file's name.
pub(super) fn remove_file(path: &str) -> io::Result<()> {
    changing(path, LastLink::Keep, |place| {
        Ok(unlinkat(place.directory(), place.name(), AtFlags::empty())?)
    })
}

/// Gives what a path names another name.
pub(super) fn rename(from: &str, to: &str) -> io::Result<()> {
    once_more(fs::rename(from, to), || {
        let from = locate_to_change(from, LastLink::Keep)?;
        let to = locate_to_change(to, LastLink::Keep)?;
        Ok(rustix::fs::renameat(&from.directory, &from.name, &to.directory, &to.name)?)
    })
}

/// Holds a directory open, to work with names in it.
pub(super) fn hold_directory(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    reading(path, LastLink::Follow, |place| Ok(place.open(flags, 0)?.into()))
}

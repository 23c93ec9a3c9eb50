//! Removing trees (executor 5.3). Without recursion, so that a deep tree does not end the daemon, and
//! by descriptors, so that a directory that is replaced by a link meanwhile is not followed.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, open, openat, unlinkat};

use super::super::access;
use super::super::trusted::LastLink;

/// A directory that is being emptied.
struct Level {
    directory: OwnedFd,
    /// Its name in the level above.
    name: CString,
    /// What it held when it was opened and has not been removed yet.
    left: Vec<CString>,
}

/// Removes whatever is at a path, links themselves; nothing there is success.
pub(super) fn remove_all(path: &str) -> io::Result<()> {
    let trimmed = path.trim_end_matches('/');
    let removed = match remove_plainly(trimmed) {
        Err(refusal) if access::may_go_past(&refusal) => {
            let again =
                access::locate_past(if trimmed.is_empty() { "/" } else { trimmed }, LastLink::Keep)
                    .and_then(|found| {
                        Removal { goes_past: true }.tree(&found.directory, &found.name)
                    });
            match again {
                Err(error) if access::is_refusal(&error) => Err(refusal),
                again => again,
            }
        }
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// With the rights that the thread has.
fn remove_plainly(path: &str) -> io::Result<()> {
    let (parent, name) = match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some(split) => split,
        None if path.is_empty() => ("/", "."),
        None => (".", path),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = open(parent, flags, Mode::empty())?;
    Removal { goes_past: false }.tree(&parent, name)
}

/// How a tree is removed.
struct Removal {
    /// Past permissions, where nobody but root controls names. The tree was found by such names.
    goes_past: bool,
}

impl Removal {
    fn tree(&self, parent: &OwnedFd, name: &str) -> io::Result<()> {
        let name = CString::new(name)?;
        if !self.is_directory_left(parent, &name)? {
            return Ok(());
        }
        let mut levels = Vec::from_iter(self.enter(parent, name)?);
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.left.pop() {
                if self.is_directory_left(&level.directory, &name)? {
                    let below = self.enter(&level.directory, name)?;
                    levels.extend(below);
                }
                continue;
            }
            let Some(Level { name, .. }) = levels.pop() else {
                break;
            };
            let above = levels.last().map_or(parent, |above| &above.directory);
            match self.unlink(above, &name, AtFlags::REMOVEDIR) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what is no directory; tells whether one is there.
    fn is_directory_left(&self, parent: &OwnedFd, name: &CString) -> io::Result<bool> {
        match self.unlink(parent, name, AtFlags::empty()) {
            Ok(()) => Ok(false),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => Ok(false),
                io::ErrorKind::IsADirectory => Ok(true),
                _ => Err(error),
            },
        }
    }

    fn unlink(&self, parent: &OwnedFd, name: &CString, flags: AtFlags) -> io::Result<()> {
        let unlink = || Ok(unlinkat(parent, name, flags)?);
        if self.goes_past { access::changing_below(parent, unlink) } else { unlink() }
    }

    /// Opens a directory, unless it is gone.
    fn enter(&self, parent: &OwnedFd, name: CString) -> io::Result<Option<Level>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || Ok(openat(parent, &name, flags, Mode::empty())?);
        let opened = if self.goes_past { access::reading_below(open) } else { open() };
        let directory = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut left = Vec::new();
        // Not opened once more, which might be refused now.
        for entry in Dir::new(directory.try_clone()?)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                left.push(entry.file_name().to_owned());
            }
        }
        Ok(Some(Level { directory, name, left }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn trees_go_and_what_links_lead_to_stays() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_str().unwrap();
        fs::create_dir_all(format!("{root}/tree/a/b/c")).unwrap();
        fs::create_dir(format!("{root}/other")).unwrap();
        fs::write(format!("{root}/other/kept"), "").unwrap();
        fs::write(format!("{root}/tree/a/file"), "").unwrap();
        std::os::unix::fs::symlink("../../other", format!("{root}/tree/a/link")).unwrap();
        std::os::unix::fs::symlink("other", format!("{root}/link")).unwrap();
        remove_all(&format!("{root}/tree/")).unwrap();
        remove_all(&format!("{root}/link")).unwrap();
        remove_all(&format!("{root}/missing")).unwrap();
        let left: Vec<_> =
            fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["other"]);
        assert!(fs::exists(format!("{root}/other/kept")).unwrap());
        let below_a_file = remove_all(&format!("{root}/other/kept/x")).unwrap_err();
        assert_eq!(below_a_file.raw_os_error(), Some(libc::ENOTDIR));
    }
}

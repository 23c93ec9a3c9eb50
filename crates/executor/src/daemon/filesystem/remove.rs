//! Removing trees (executor 5.3). Without recursion, so that a deep tree does not end the daemon, and
//! by descriptors, so that a directory that is replaced by a link meanwhile is not followed.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

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
    let path = CString::new(if trimmed.is_empty() { "/" } else { trimmed })?;
    if !is_directory_left(CWD, &path)? {
        return Ok(());
    }
    let mut levels = vec![enter(CWD, path)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.left.pop() {
            if is_directory_left(&level.directory, &name)? {
                let below = enter(&level.directory, name)?;
                levels.push(below);
            }
            continue;
        }
        let Some(Level { name, .. }) = levels.pop() else {
            break;
        };
        let removed = match levels.last() {
            Some(above) => unlinkat(&above.directory, &name, AtFlags::REMOVEDIR),
            None => unlinkat(CWD, &name, AtFlags::REMOVEDIR),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes what is no directory; tells whether one is there.
fn is_directory_left(parent: impl std::os::fd::AsFd, name: &CString) -> io::Result<bool> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::ISDIR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn enter(parent: impl std::os::fd::AsFd, name: CString) -> io::Result<Level> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, &name, flags, Mode::empty())?;
    let mut left = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            left.push(entry.file_name().to_owned());
        }
    }
    Ok(Level { directory, name, left })
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

//! Finding a path by names that nobody but root controls.
//!
//! Goes from `/` one component at a time, by descriptor. A symbolic link is followed only if it is
//! root's own, in a directory where only root can put it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    FileType, Mode, OFlags, PROC_SUPER_MAGIC, fstat, fstatfs, open, openat, readlinkat,
};
use rustix::io::Errno;

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;

const HELD: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastLink {
    Follow,
    Keep,
}

/// A name in a directory that is held open. `.` if the path ends in the directory itself.
#[derive(Debug)]
pub(super) struct Located {
    pub directory: OwnedFd,
    pub name: String,
}

/// Whether nobody but root can make, remove or exchange names in a directory.
pub(super) fn is_roots(directory: impl AsFd) -> io::Result<bool> {
    let found = fstat(directory)?;
    Ok(found.st_uid == 0 && found.st_mode & 0o022 == 0)
}

/// Finds a path; its last component may be missing. What it gives was no link when it was looked at,
/// unless links at the end are kept.
///
/// # Errors
/// EACCES at a link that is not root's own; the kernel's errors.
pub(super) fn locate(path: &str, last: LastLink) -> io::Result<Located> {
    if !path.starts_with('/') {
        return Err(Errno::ACCESS.into());
    }
    let root = || open("/", HELD | OFlags::DIRECTORY, Mode::empty());
    let mut directory = root()?;
    // What is left of the path, the next component last.
    let mut left = Vec::new();
    push(&mut left, path);
    let mut links = 0;
    while let Some(Component { name, is_directory }) = left.pop() {
        if name == ".." {
            directory = openat(&directory, "..", HELD | OFlags::DIRECTORY, Mode::empty())?;
            continue;
        }
        let is_last = left.is_empty();
        if is_last && last == LastLink::Keep && !is_directory {
            return Ok(Located { directory, name });
        }
        let object = match openat(&directory, &name, HELD, Mode::empty()) {
            Err(Errno::NOENT) if is_last && !is_directory => {
                return Ok(Located { directory, name });
            }
            opened => opened?,
        };
        let found = fstat(&object)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => {
                let is_trusted = found.st_uid == 0 && is_roots(&directory)?;
                // Links there say what they like, and lead where they do not say.
                if !is_trusted || fstatfs(&object)?.f_type == PROC_SUPER_MAGIC {
                    return Err(Errno::ACCESS.into());
                }
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&object, "", Vec::new())?;
                let target = target.into_string().map_err(|_| Errno::ILSEQ)?;
                if target.starts_with('/') {
                    directory = root()?;
                }
                let first = left.len();
                push(&mut left, &target);
                if let Some(end) = left.get_mut(first) {
                    end.is_directory |= is_directory;
                }
            }
            FileType::Directory if !is_last => directory = object,
            FileType::Directory => return Ok(Located { directory, name }),
            _ if is_directory => return Err(Errno::NOTDIR.into()),
            _ => return Ok(Located { directory, name }),
        }
    }
    Ok(Located { directory, name: ".".to_owned() })
}

struct Component {
    name: String,
    /// A slash follows: it must be a directory, and a link is followed.
    is_directory: bool,
}

/// Puts a path in front of what is left.
fn push(left: &mut Vec<Component>, path: &str) {
    let trimmed = path.trim_end_matches('/');
    let mut is_directory = trimmed.len() < path.len();
    for name in trimmed.rsplit('/') {
        // A dot at the end demands a directory like a slash.
        match name {
            "" => {}
            "." => is_directory = true,
            name => {
                left.push(Component { name: name.to_owned(), is_directory });
                is_directory = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};

    use super::*;

    /// A directory of root's, in `/tmp`.
    fn directory() -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = fs::canonicalize(directory.path()).unwrap().to_str().unwrap().to_owned();
        (directory, path)
    }

    /// Where a path was found: directory and name.
    fn found(path: &str, last: LastLink) -> Result<String, Option<i32>> {
        let located = locate(path, last).map_err(|error| error.raw_os_error())?;
        let directory = super::super::access::held_path(&located.directory);
        let directory = fs::read_link(directory).unwrap();
        Ok(format!("{} {}", directory.display(), located.name))
    }

    #[test]
    fn paths_end_in_a_name_or_in_a_directory() {
        let (_kept, root) = directory();
        fs::create_dir_all(format!("{root}/a/b")).unwrap();
        fs::write(format!("{root}/a/file"), "").unwrap();
        let follow = |path: &str| found(&format!("{root}{path}"), LastLink::Follow);
        assert_eq!(follow("/a/b"), Ok(format!("{root}/a b")));
        assert_eq!(follow("//a/./b/"), Ok(format!("{root}/a b")));
        assert_eq!(follow("/a/b/.."), Ok(format!("{root}/a .")));
        assert_eq!(follow("/a/b/../file"), Ok(format!("{root}/a file")));
        assert_eq!(follow("/a/new"), Ok(format!("{root}/a new")));
        assert_eq!(follow("/a/new/"), Err(Some(libc::ENOENT)));
        assert_eq!(follow("/a/new/x"), Err(Some(libc::ENOENT)));
        for path in ["/a/file/", "/a/file/.", "/a/file/x", "/a/file/.."] {
            assert_eq!(follow(path), Err(Some(libc::ENOTDIR)), "{path}");
        }
        assert_eq!(found("/", LastLink::Keep), Ok("/ .".to_owned()));
        assert_eq!(found("a", LastLink::Keep), Err(Some(libc::EACCES)));
    }

    #[test]
    fn links_of_root_are_followed_and_no_others() {
        let (_kept, root) = directory();
        let at = |name: &str| format!("{root}/{name}");
        fs::create_dir_all(at("a/b")).unwrap();
        symlink("a/b", at("relative")).unwrap();
        symlink(at("a"), at("absolute")).unwrap();
        symlink("absolute/b/", at("twice")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("missing", at("broken")).unwrap();
        symlink("/", at("root")).unwrap();
        let follow = |name: &str| found(&at(name), LastLink::Follow);
        for name in ["relative", "absolute/b", "twice", "twice/."] {
            assert_eq!(follow(name), Ok(format!("{root}/a b")), "{name}");
        }
        assert_eq!(follow("relative/x"), Ok(format!("{root}/a/b x")));
        assert_eq!(follow("relative/.."), Ok(format!("{root}/a .")));
        assert_eq!(follow("root"), Ok("/ .".to_owned()));
        assert_eq!(follow("broken"), Ok(format!("{root} missing")));
        assert_eq!(follow("loop"), Err(Some(libc::ELOOP)));
        assert_eq!(found(&at("twice"), LastLink::Keep), Ok(format!("{root} twice")));
        assert_eq!(found(&at("twice/"), LastLink::Keep), Ok(format!("{root}/a b")));
        // Of a user.
        symlink("a", at("planted")).unwrap();
        lchown(at("planted"), Some(1234), Some(1234)).unwrap();
        let refused = Err(Some(libc::EACCES));
        assert_eq!(follow("planted"), refused);
        assert_eq!(follow("planted/b"), refused);
        assert_eq!(found(&at("planted"), LastLink::Keep), Ok(format!("{root} planted")));
        // Where a user can put it, by a hard link or another name.
        symlink("b", at("a/link")).unwrap();
        assert_eq!(follow("a/link"), Ok(format!("{root}/a b")));
        chown(at("a"), Some(1234), Some(1234)).unwrap();
        assert_eq!(follow("a/link"), refused);
        chown(at("a"), Some(0), Some(0)).unwrap();
        fs::set_permissions(at("a"), fs::Permissions::from_mode(0o775)).unwrap();
        assert_eq!(follow("a/link"), refused);
        // Not what leads elsewhere than it says.
        for path in ["/proc/self/cwd/x", "/proc/self/fd/0", "/proc/self/root/x"] {
            assert_eq!(found(path, LastLink::Follow), refused, "{path}");
        }
    }
}

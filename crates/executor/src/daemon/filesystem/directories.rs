//! Directories that come into being for a request's user (executor 5.3).

use std::io;
use std::path::Path;

use super::super::access;
use super::super::accounts::User;

/// Makes a directory and what is missing above it, mode 0755, owned by the user; tells whether anything
/// was missing. What others make at the same time is left as it is, and no error.
pub(in super::super) fn make(path: &str, user: &User) -> io::Result<bool> {
    let mut missing = Vec::new();
    let path = match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed,
    };
    for ancestor in Path::new(path).ancestors().filter_map(Path::to_str) {
        match access::metadata(ancestor) {
            Ok(found) if found.is_dir() => break,
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            Err(error) => return Err(error),
        }
    }
    let any_missing = !missing.is_empty();
    for directory in missing.into_iter().rev() {
        match access::make_directory(directory, user.uid, user.gid) {
            Ok(()) => {}
            // Also said of a link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !access::metadata(directory).is_ok_and(|found| found.is_dir()) {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(any_missing)
}

/// Makes what is missing above a path; tells whether anything was.
pub(in super::super) fn make_parents(path: &str, user: &User) -> io::Result<bool> {
    match Path::new(path).parent().and_then(Path::to_str) {
        Some(parent) => make(parent, user),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_tree_can_be_made_many_times_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/c/d").to_str().unwrap().to_owned();
        let user = User { name: "x".into(), uid: 0, gid: 0, home: "/".into() };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| make(&path, &user).unwrap());
            }
        });
        assert!(Path::new(&path).is_dir());
        fs::write(format!("{path}/file"), "").unwrap();
        let below_a_file = make(&format!("{path}/file/x"), &user).unwrap_err();
        assert_eq!(below_a_file.raw_os_error(), Some(libc::ENOTDIR));
    }
}

//! Metadata of files: extended attributes named `user.e2b.<key>` (executor 5.2, 6.5).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

pub(in super::super) const PREFIX: &str = "user.e2b.";

/// More than the kernel allows for one name list or one value.
const LIMIT: usize = 64 << 10;

/// What a path carries, itself and not what it links to; nothing if it cannot be read, or cannot be
/// text.
pub(super) fn of_path(path: &str) -> BTreeMap<String, String> {
    read(
        rustix::fs::llistxattr_query(path),
        |buffer| rustix::fs::llistxattr(path, buffer),
        |name, buffer| rustix::fs::lgetxattr(path, name, buffer),
    )
}

/// What an open file carries.
pub(in super::super) fn of_file(file: &File) -> BTreeMap<String, String> {
    read(
        rustix::fs::flistxattr_query(file),
        |buffer| rustix::fs::flistxattr(file, buffer),
        |name, buffer| rustix::fs::fgetxattr(file, name, buffer),
    )
}

fn read(
    size: Result<usize, Errno>,
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    value: impl Fn(&str, &mut [u8]) -> Result<usize, Errno>,
) -> BTreeMap<String, String> {
    // Nearly no file has any, and then nothing is allocated.
    if size.unwrap_or(0) == 0 {
        return BTreeMap::new();
    }
    let mut names = vec![0; LIMIT];
    let Ok(size) = list(&mut names) else {
        return BTreeMap::new();
    };
    let mut buffer = vec![0; LIMIT];
    let mut metadata = BTreeMap::new();
    for name in names[..size].split(|byte| *byte == 0) {
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        let Some(key) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let Ok(length) = value(name, &mut buffer) else {
            continue;
        };
        let Ok(text) = std::str::from_utf8(&buffer[..length]) else {
            continue;
        };
        metadata.insert(key.to_owned(), text.to_owned());
    }
    metadata
}

/// Replaces everything a file carries. Where the file system has no attributes nothing is stored, and
/// that is no error.
pub(in super::super) fn replace(
    file: &File,
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    for key in of_file(file).keys().filter(|key| !metadata.contains_key(*key)) {
        match rustix::fs::fremovexattr(file, format!("{PREFIX}{key}")) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (key, value) in metadata {
        let name = format!("{PREFIX}{key}");
        match rustix::fs::fsetxattr(file, name, value.as_bytes(), XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::PERM) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_back_and_replaced() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stored = |pairs: &[(&str, &str)]| {
            let given = pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            replace(file.as_file(), &given).unwrap();
            assert_eq!(of_file(file.as_file()), given);
            assert_eq!(of_path(file.path().to_str().unwrap()), given);
        };
        stored(&[("author", "me"), ("empty", "")]);
        stored(&[("author", "you"), ("b", "2")]);
        stored(&[]);
    }
}

//! Listings (executor 5.3): depth-first, each directory sorted by name, a directory before its content.

use std::io;

use rustix::fs::{Dir, OFlags};
use sandyard_contract::rpc::filesystem::EntryInfo;

use super::super::access;
use super::super::accounts::Names;
use super::super::trusted::LastLink;
use super::entry;

/// Lists `depth` levels below a directory, which may be reached through links; links below it are
/// reported and not followed.
pub(super) fn list(root: &str, depth: u32, names: &Names) -> io::Result<Vec<EntryInfo>> {
    let mut entries = Vec::new();
    // What is still to be visited, the next one last.
    let mut pending: Vec<(String, u32)> = children(root, LastLink::Follow, 1)?;
    while let Some((path, level)) = pending.pop() {
        let described = match entry::describe(&path, names) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            described => described?,
        };
        let descend = level < depth && described.permissions.starts_with('d');
        entries.push(described);
        if descend {
            match children(&path, LastLink::Keep, level + 1) {
                Ok(below) => pending.extend(below),
                // It went away after it was described.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(entries)
}

/// The entries of a directory, the first by name last.
fn children(directory: &str, last: LastLink, level: u32) -> io::Result<Vec<(String, u32)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let opened = access::reading(directory, last, |place| place.open(flags, 0))?;
    let mut names = Vec::new();
    for entry in Dir::new(opened)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    let separator = if directory.ends_with('/') { "" } else { "/" };
    Ok(names
        .into_iter()
        .map(|name| (format!("{directory}{separator}{}", name.to_string_lossy()), level))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn listing(root: &str, depth: u32) -> Vec<String> {
        let entries = list(root, depth, &Names::load().unwrap()).unwrap();
        let relative = |entry: &EntryInfo| entry.path.strip_prefix(root).unwrap().to_owned();
        entries.iter().map(relative).collect()
    }

    #[test]
    fn the_order_is_the_contracts() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_str().unwrap();
        fs::create_dir_all(format!("{root}/subdir1/subdir1_1/deep")).unwrap();
        fs::create_dir_all(format!("{root}/subdir2")).unwrap();
        fs::write(format!("{root}/file1.txt"), "").unwrap();
        fs::write(format!("{root}/subdir1/file.txt"), "").unwrap();
        std::os::unix::fs::symlink("subdir1", format!("{root}/zlink")).unwrap();
        assert_eq!(listing(root, 1), ["/file1.txt", "/subdir1", "/subdir2", "/zlink"]);
        let two = [
            "/file1.txt",
            "/subdir1",
            "/subdir1/file.txt",
            "/subdir1/subdir1_1",
            "/subdir2",
            "/zlink",
        ];
        assert_eq!(listing(root, 2), two);
        let through = format!("{root}/zlink");
        assert_eq!(listing(&through, 1), ["/file.txt", "/subdir1_1"]);
    }
}

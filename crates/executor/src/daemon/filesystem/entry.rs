//! What a path is, in the words of the contract (executor 5.2).

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::FileType as Kind;
use sandyard_contract::rpc::Timestamp;
use sandyard_contract::rpc::filesystem::{EntryInfo, FileType};

use super::super::access;
use super::super::accounts::Names;
use super::super::paths;
use super::super::trusted::LastLink;
use super::metadata;

/// Describes the entry at `path` itself: a link as a link, apart from type and mode.
pub(in super::super) fn describe(path: &str, names: &Names) -> io::Result<EntryInfo> {
    let (own, metadata) = access::reading(path, LastLink::Keep, |place| {
        Ok((place.metadata()?, metadata::of_path(&place.path())))
    })?;
    let is_link = own.is_symlink();
    // A link that leads nowhere, or where the user may not look, has neither type nor mode.
    let target = if is_link { access::metadata(path).ok() } else { Some(own.clone()) };
    let symlink_target =
        is_link.then(|| access::real_path(path).unwrap_or_else(|_| path.to_owned()));
    Ok(EntryInfo {
        name: paths::base_name(path).to_owned(),
        r#type: target.as_ref().map_or(FileType::Unspecified, file_type) as i32,
        path: path.to_owned(),
        size: own.size().cast_signed(),
        mode: target.map_or(0, |target| target.mode() & 0o777),
        permissions: permissions(own.mode()),
        owner: names.user(own.uid()),
        group: names.group(own.gid()),
        modified_time: modified(&own),
        symlink_target,
        metadata,
    })
}

fn file_type(found: &Metadata) -> FileType {
    if found.is_file() {
        FileType::File
    } else if found.is_dir() {
        FileType::Directory
    } else {
        FileType::Unspecified
    }
}

/// Absent at exactly the epoch.
fn modified(found: &Metadata) -> Option<Timestamp> {
    // Nanoseconds of a second fit 31 bits.
    let time = Timestamp { seconds: found.mtime(), nanos: found.mtime_nsec() as i32 };
    (time != Timestamp::default()).then_some(time)
}

/// Go's text for a mode: letters of what it is, then nine of what is allowed.
fn permissions(mode: u32) -> String {
    let kind = Kind::from_raw_mode(mode);
    let letters = [
        ('d', kind == Kind::Directory),
        ('L', kind == Kind::Symlink),
        ('D', matches!(kind, Kind::BlockDevice | Kind::CharacterDevice)),
        ('p', kind == Kind::Fifo),
        ('S', kind == Kind::Socket),
        ('u', mode & libc::S_ISUID != 0),
        ('g', mode & libc::S_ISGID != 0),
        ('c', kind == Kind::CharacterDevice),
        ('t', mode & libc::S_ISVTX != 0),
        ('?', kind == Kind::Unknown),
    ];
    let mut text: String =
        letters.iter().filter(|(_, applies)| *applies).map(|(letter, _)| letter).collect();
    if text.is_empty() {
        text.push('-');
    }
    for (place, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode & (0o400 >> place) != 0 { letter } else { '-' });
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn permissions_are_gos() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "Lrwxrwxrwx"),
            (0o041_777, "dtrwxrwxrwx"),
            (0o010_644, "prw-r--r--"),
            (0o104_755, "urwxr-xr-x"),
            (0o102_755, "grwxr-xr-x"),
            (0o020_666, "Dcrw-rw-rw-"),
            (0o060_660, "Drw-rw----"),
            (0o140_755, "Srwxr-xr-x"),
            (0o100_000, "----------"),
        ] {
            assert_eq!(permissions(mode), text, "{mode:o}");
        }
    }

    #[test]
    fn links_are_described_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("file"), "12345").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("broken")).unwrap();
        let names = Names::load().unwrap();
        let link = describe(&at("link"), &names).unwrap();
        let target = fs::canonicalize(at("file")).unwrap().to_str().unwrap().to_owned();
        assert_eq!(link.symlink_target, Some(target));
        assert_eq!((link.r#type, link.size), (FileType::File as i32, 4));
        assert_eq!(link.permissions, "Lrwxrwxrwx");
        let broken = describe(&at("broken"), &names).unwrap();
        assert_eq!((broken.r#type, broken.mode), (0, 0));
        assert_eq!(broken.symlink_target, Some(at("broken")));
        let missing = describe(&at("missing"), &names).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}

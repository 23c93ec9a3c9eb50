//! Contents of objects: small ones as bytes in the index, others as segments of files that never
//! change once written.
//!
//! A file is written under its final, random name and synchronised before the index names it; the
//! commit in the index is what makes it exist. A file that no commit names is an orphan and removed
//! at the next open. That is one directory operation less than a rename, with the same guarantee.

use std::collections::HashSet;
use std::fs::{self, DirEntry, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use s3s::{S3Error, S3ErrorCode};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::leases::Leases;

/// The part of the disk that writers leave free, as one of so many. Less than what keeps sandboxes from being made
/// and layers from growing: what is in the store already is to stay usable, and the index able to grow.
const KEPT_FREE: u64 = 50;

/// The name of a content file: 32 hexadecimal digits. What else an index says is no name of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct FileId(String);

#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not the name of a content file")]
pub(super) struct InvalidFileId(String);

impl TryFrom<String> for FileId {
    type Error = InvalidFileId;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let digits = name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if name.len() == 32 && digits { Ok(Self(name)) } else { Err(InvalidFileId(name)) }
    }
}

impl From<FileId> for String {
    fn from(id: FileId) -> Self {
        id.0
    }
}

impl std::fmt::Display for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl FileId {
    pub(super) fn random() -> io::Result<Self> {
        let mut id = [0u8; 16];
        getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self(hex::encode(id)))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    pub(super) file: FileId,
    pub(super) offset: u64,
    pub(super) length: u64,
}

#[derive(Clone, Debug)]
pub(super) enum ObjectContent {
    Inline(Bytes),
    Segments(Vec<Segment>),
}

impl ObjectContent {
    /// The number of bytes; `None` if it is more than a number can say.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Inline(bytes) => Some(bytes.len() as u64),
            Self::Segments(segments) => {
                segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.length))
            }
        }
    }

    pub(super) fn segments(&self) -> &[Segment] {
        match self {
            Self::Inline(_) => &[],
            Self::Segments(segments) => segments,
        }
    }
}

/// The folder of content files.
#[derive(Clone, Debug)]
pub(super) struct ContentFiles {
    root: Arc<PathBuf>,
    pub(super) leases: Leases,
}

impl ContentFiles {
    /// Opens the folder, making what is missing.
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        for byte in 0..=u8::MAX {
            let folder = root.join(hex::encode([byte]));
            if !folder.is_dir() {
                fs::create_dir(folder)?;
            }
        }
        File::open(&root)?.sync_all()?;
        Ok(Self { root: Arc::new(root), leases: Leases::default() })
    }

    pub(super) fn path(&self, file: &FileId) -> PathBuf {
        self.root.join(&file.0[..2]).join(&file.0)
    }

    /// Removes files that are not in `named`, and says how many. The named files that are there are
    /// taken out of `named`. What cannot be read or removed is logged and passed over.
    pub(super) fn remove_orphans(&self, named: &mut HashSet<FileId>) -> usize {
        let mut removed = 0;
        for entry in self.entries() {
            let name = entry.file_name().into_string().ok();
            let id = name.and_then(|name| FileId::try_from(name).ok());
            if id.is_some_and(|id| named.remove(&id)) {
                continue;
            }
            match fs::remove_file(entry.path()) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let path = entry.path();
                    warn!(%error, path = %path.display(), "cannot remove what no object has");
                }
            }
        }
        removed
    }

    fn entries(&self) -> impl Iterator<Item = DirEntry> {
        let folders = (0..=u8::MAX).map(|byte| self.root.join(hex::encode([byte])));
        folders.flat_map(|folder| {
            let listed = fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            listed.unwrap_or_else(|error| {
                error!(%error, folder = %folder.display(), "cannot list content files");
                Vec::new()
            })
        })
    }

    /// Refuses to take in more while the disk is nearly full.
    pub(super) fn ensure_room(&self) -> io::Result<()> {
        let disk = rustix::fs::statvfs(&*self.root)?;
        if disk.f_bavail < disk.f_blocks / KEPT_FREE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    pub(super) fn create(&self) -> io::Result<(File, Draft)> {
        let id = FileId::random()?;
        let path = self.path(&id);
        let file = File::create_new(&path).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            // The folder was lost with the files in it.
            self.restore_folder(&id)?;
            File::create_new(&path)
        })?;
        Ok((file, Draft { id, leases: self.leases.clone(), kept: false }))
    }

    fn restore_folder(&self, id: &FileId) -> io::Result<()> {
        let folder = self.root.join(&id.0[..2]);
        error!(folder = %folder.display(), "a folder of content files is lost, and made anew");
        fs::create_dir_all(folder)?;
        File::open(&*self.root)?.sync_all()
    }
}

pub(super) fn disk(error: io::Error) -> S3Error {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let mut full =
            S3Error::with_source(S3ErrorCode::Custom("StorageFull".into()), error.into());
        full.set_message("the disk of the object store is full");
        // Of 500 and 503 clients believe that they pass, and try again for minutes.
        full.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
        return full;
    }
    S3Error::internal_error(error)
}

/// A file that the index does not name yet; removed unless [`Draft::keep`] is called.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) id: FileId,
    leases: Leases,
    kept: bool,
}

impl Draft {
    /// Leaves the file where it is. Who calls this has it removed, or the next open does.
    pub(super) fn keep(mut self) -> FileId {
        self.kept = true;
        self.id.clone()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            self.leases.discard(self.id.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_are_file_ids() {
        let id = FileId::random().expect("random numbers");
        let json = serde_json::to_string(&id).expect("writes");
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<FileId>(&json).expect("reads"), id);
        for bad in ["", "a", "é", "../../lock", "0123456789ABCDEF0123456789ABCDEF"] {
            assert!(FileId::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}

//! Writing one file, in the order that watchers see (executor 6.5).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, chown, fchown};
use std::sync::Arc;

use hyper::body::Bytes;
use serde::Serialize;

use super::super::filesystem::metadata;
use super::super::{paths, pool};
use super::{CHUNK_BYTES, Owner, Refusal};

/// What the answer tells of a written file.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Written {
    path: String,
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl Written {
    pub(super) fn new(path: String, metadata: BTreeMap<String, String>) -> Self {
        let name = paths::base_name(&path).to_owned();
        Self { path, name, kind: "file", metadata }
    }
}

/// A file that is being written. Bytes are gathered, so that a small file is one write and its
/// watchers hear of one.
pub(super) struct Writer {
    path: String,
    file: Arc<File>,
    gathered: Vec<Bytes>,
    length: usize,
    /// A write under way, while more is gathered.
    writing: Option<pool::Running<io::Result<()>>>,
}

impl Writer {
    /// Makes the file or empties it; either way it belongs to the owner afterwards.
    pub(super) async fn open(path: String, owner: &Owner) -> Result<Self, Refusal> {
        let owner = owner.clone();
        pool::run(move || {
            let file = open(&path, &owner)?;
            Ok(Self { path, file: Arc::new(file), gathered: Vec::new(), length: 0, writing: None })
        })
        .await
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        self.length += bytes.len();
        self.gathered.push(bytes);
        if self.length >= CHUNK_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Waits for the write before, then begins the next.
    async fn flush(&mut self) -> Result<(), Refusal> {
        self.settle().await?;
        let (file, gathered) = (Arc::clone(&self.file), std::mem::take(&mut self.gathered));
        self.length = 0;
        self.writing = Some(pool::run(move || write_all(&file, &gathered)));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), Refusal> {
        let Some(writing) = self.writing.take() else {
            return Ok(());
        };
        writing.await.map_err(|error| Refusal::system("write", &self.path, &error))
    }

    /// Writes what is left and sets the metadata.
    pub(super) async fn finish(
        mut self,
        metadata: Arc<BTreeMap<String, String>>,
    ) -> Result<Written, Refusal> {
        if self.length > 0 {
            self.flush().await?;
        }
        self.settle().await?;
        pool::run(move || {
            metadata::replace(&self.file, &metadata).map_err(|error| {
                match error.raw_os_error() {
                    // The kernel's words for "does not fit".
                    Some(libc::E2BIG | libc::ERANGE) => Refusal::new(
                        hyper::StatusCode::INSUFFICIENT_STORAGE,
                        format!("the metadata of '{}' does not fit: {error}", self.path),
                    ),
                    _ => Refusal::system("set the metadata of", &self.path, &error),
                }
            })?;
            let stored = metadata::of_file(&self.file);
            Ok(Written::new(self.path, stored))
        })
        .await
    }
}

fn open(path: &str, owner: &Owner) -> Result<File, Refusal> {
    let (uid, gid) = (Some(owner.user.uid), Some(owner.user.gid));
    owner.make_parents(path)?;
    let is_new = match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(Refusal::invalid(format!("path '{path}' is a directory")));
        }
        Ok(_) => {
            chown(path, uid, gid).map_err(|error| Refusal::system("own", path, &error))?;
            false
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(Refusal::system("look for", path, &error)),
    };
    // Not blocking: a pipe without a reader is an error instead of a wait.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o666).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| Refusal::system("open", path, &error))?;
    if is_new {
        fchown(&file, uid, gid).map_err(|error| Refusal::system("own", path, &error))?;
    } else {
        // That it was emptied and that it is written are two events of the same kind.
        owner.show_to_watchers(path);
    }
    Ok(file)
}

fn write_all(mut file: &File, gathered: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = gathered.iter().map(|bytes| IoSlice::new(bytes)).collect();
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => IoSlice::advance_slices(&mut left, length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

//! Writing one file, in the order that watchers see (executor 6.5).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, chown, fchown};
use std::sync::Arc;

use hyper::body::Bytes;
use serde::Serialize;

use super::super::filesystem::metadata;
use super::super::{paths, pool};
use super::handle::Handle;
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
/// watchers hear of one. They are copied for it: the connection can then use its own memory again,
/// which costs less than new memory for every read.
pub(super) struct Writer {
    path: String,
    file: Arc<Handle>,
    gathered: Vec<u8>,
    /// A write under way, while more is gathered; it gives its memory back.
    writing: Option<pool::Running<io::Result<Vec<u8>>>>,
}

impl Writer {
    /// Makes the file or empties it; either way it belongs to the owner afterwards.
    pub(super) async fn open(path: String, owner: &Owner) -> Result<Self, Refusal> {
        let owner = owner.clone();
        pool::run(move || {
            let file = open(&path, &owner)?;
            Ok(Self {
                path,
                file: Arc::new(Handle::new(file)),
                gathered: Vec::new(),
                writing: None,
            })
        })
        .await
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        self.gathered.extend_from_slice(&bytes);
        if self.gathered.len() >= CHUNK_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Waits for the write before, then begins the next.
    async fn flush(&mut self) -> Result<(), Refusal> {
        let spare = self.settle().await?;
        let (file, mut gathered) =
            (Arc::clone(&self.file), std::mem::replace(&mut self.gathered, spare));
        self.writing = Some(pool::run(move || {
            (&**file).write_all(&gathered)?;
            gathered.clear();
            Ok(gathered)
        }));
        Ok(())
    }

    /// Waits for the write under way; its memory.
    async fn settle(&mut self) -> Result<Vec<u8>, Refusal> {
        let Some(writing) = self.writing.take() else {
            return Ok(Vec::new());
        };
        writing.await.map_err(|error| Refusal::system("write", &self.path, &error))
    }

    /// Writes what is left and sets the metadata.
    pub(super) async fn finish(
        mut self,
        metadata: Arc<BTreeMap<String, String>>,
    ) -> Result<Written, Refusal> {
        self.settle().await?;
        pool::run(move || {
            let file = self.file;
            (&**file)
                .write_all(&self.gathered)
                .map_err(|error| Refusal::system("write", &self.path, &error))?;
            metadata::replace(&file, &metadata).map_err(|error| {
                match error.raw_os_error() {
                    // The kernel's words for "does not fit".
                    Some(libc::E2BIG | libc::ERANGE) => Refusal::new(
                        hyper::StatusCode::INSUFFICIENT_STORAGE,
                        format!("the metadata of '{}' does not fit: {error}", self.path),
                    ),
                    _ => Refusal::system("set the metadata of", &self.path, &error),
                }
            })?;
            let stored = metadata::of_file(&file);
            // Before the answer: a file system may store a file when it is closed.
            if let Some(file) = Arc::into_inner(file) {
                file.close();
            }
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

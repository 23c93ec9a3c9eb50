//! Writing one file, in the order that watchers see (executor 6.5).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, OnceLock};

use hyper::body::Bytes;
use rustix::fs::OFlags;
use serde::Serialize;

use super::super::filesystem::metadata;
use super::super::tasks::lock;
use super::super::trusted::LastLink;
use super::super::{access, paths, pool};
use super::handle::Handle;
use super::{CHUNK_BYTES, FileRefusal, Owner, OwnerName};

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

/// Where the files of one request go.
pub(super) struct WriteTarget {
    name: OwnerName,
    owner: OnceLock<Owner>,
    paths: Mutex<BTreeSet<String>>,
}

/// A file that is being written. Bytes are gathered, so that a small file is one write and its
/// watchers hear of one, and all that may block for it is one job of the pool. They are copied for it:
/// the connection can then use its own memory again, which costs less than new memory for every read.
pub(super) struct FileWriter {
    target: Arc<WriteTarget>,
    name: String,
    gathered: Vec<u8>,
    file: Option<Opened>,
    /// A write under way, while more is gathered.
    writing: Option<Writing>,
}

/// A write; it gives file and memory back.
type Writing = pool::RunningJob<Result<(Opened, Vec<u8>), FileRefusal>>;

/// A file that was made or emptied, and belongs to its owner.
struct Opened {
    path: String,
    file: Handle,
}

impl WriteTarget {
    pub(super) fn new(name: OwnerName) -> Self {
        Self { name, owner: OnceLock::new(), paths: Mutex::default() }
    }

    /// Blocks.
    pub(super) fn owner(&self) -> Result<&Owner, FileRefusal> {
        match self.owner.get() {
            Some(owner) => Ok(owner),
            None => {
                let owner = self.name.find()?;
                Ok(self.owner.get_or_init(|| owner))
            }
        }
    }

    /// Makes the file or empties it; either way it belongs to the owner afterwards. Blocks.
    fn open(&self, name: &str) -> Result<Opened, FileRefusal> {
        let owner = self.owner()?;
        let path = owner.resolve(name)?;
        if !lock(&self.paths).insert(path.clone()) {
            return Err(FileRefusal::invalid(format!("two parts of the upload are for '{path}'")));
        }
        let file = Handle::new(owner.act(|| open(&path, owner))?);
        Ok(Opened { path, file })
    }
}

impl FileWriter {
    /// One for the file with this name, which is looked at once 256 KiB are gathered or at the end.
    pub(super) fn new(target: &Arc<WriteTarget>, name: &str) -> Self {
        let (target, name) = (Arc::clone(target), name.to_owned());
        Self { target, name, gathered: Vec::new(), file: None, writing: None }
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), FileRefusal> {
        self.gathered.extend_from_slice(&bytes);
        if self.gathered.len() >= CHUNK_BYTES {
            let spare = self.settle().await?;
            let bytes = std::mem::replace(&mut self.gathered, spare);
            self.writing = Some(self.begin(bytes));
        }
        Ok(())
    }

    /// Waits for the write under way; its memory.
    async fn settle(&mut self) -> Result<Vec<u8>, FileRefusal> {
        let Some(writing) = self.writing.take() else {
            return Ok(Vec::new());
        };
        let (file, spare) = writing.await?;
        self.file = Some(file);
        Ok(spare)
    }

    fn begin(&mut self, mut bytes: Vec<u8>) -> Writing {
        let (target, name, file) = (Arc::clone(&self.target), self.name.clone(), self.file.take());
        pool::run(move || {
            let file = file.map_or_else(|| target.open(&name), Ok)?;
            file.write(&bytes)?;
            bytes.clear();
            Ok((file, bytes))
        })
    }

    /// Writes what is left and sets the metadata, if everything was `gathered`. Also if not, it waits for what
    /// was begun: nothing is done to a file after its request was refused.
    pub(super) async fn finish(
        mut self,
        gathered: Result<(), FileRefusal>,
        metadata: Arc<BTreeMap<String, String>>,
    ) -> Result<Written, FileRefusal> {
        let settled = self.settle().await;
        // The first failure is the one to tell.
        gathered?;
        settled?;
        pool::run(move || {
            let owner = self.target.owner()?;
            // Rights are taken once for all of it.
            owner.act(|| {
                let file = self.file.map_or_else(|| self.target.open(&self.name), Ok)?;
                file.write(&self.gathered)?;
                file.finish(owner, &metadata)
            })
        })
        .await
    }
}

impl Opened {
    fn write(&self, bytes: &[u8]) -> Result<(), FileRefusal> {
        (&*self.file)
            .write_all(bytes)
            .map_err(|error| FileRefusal::system("write", &self.path, &error))
    }

    /// Sets the metadata and closes the file.
    fn finish(
        self,
        owner: &Owner,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Written, FileRefusal> {
        let stored = owner.act(|| {
            // The file is the one that was opened, whoever may change its name.
            let replaced = access::reading_below(|| metadata::replace(&self.file, metadata));
            replaced.map_err(|error| match error.raw_os_error() {
                // The kernel's words for "does not fit".
                Some(libc::E2BIG | libc::ERANGE) => FileRefusal::new(
                    hyper::StatusCode::INSUFFICIENT_STORAGE,
                    format!("the metadata of '{}' does not fit: {error}", self.path),
                ),
                _ => owner.refused("set the metadata of", &self.path, &error),
            })?;
            Ok(metadata::of_file(&self.file))
        })?;
        // Before the answer: a file system may store a file when it is closed.
        self.file.close();
        Ok(Written::new(self.path, stored))
    }
}

/// Makes a file or empties it, with the rights that the thread has.
fn open(path: &str, owner: &Owner) -> Result<File, FileRefusal> {
    let (uid, gid) = (owner.user.uid, owner.user.gid);
    owner.make_parents(path)?;
    let is_new = match access::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(FileRefusal::invalid(format!("path '{path}' is a directory")));
        }
        Ok(found) => {
            access::take_file(path, &found, uid, gid)
                .map_err(|error| owner.refused("own", path, &error))?;
            false
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(owner.refused("look for", path, &error)),
    };
    // Not blocking: a pipe without a reader is an error instead of a wait.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NONBLOCK;
    let file = access::changing(path, LastLink::Follow, |place| place.open(flags, 0o666))
        .map_err(|error| owner.refused("write", path, &error))?;
    if is_new {
        access::take_new_file(&file, uid, gid)
            .map_err(|error| owner.refused("own", path, &error))?;
    } else {
        // That it was emptied and that it is written are two events of the same kind.
        owner.show_to_watchers(path);
    }
    Ok(file)
}

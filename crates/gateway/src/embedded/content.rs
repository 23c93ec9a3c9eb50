//! Contents of objects: small ones as bytes in the index, others as segments of files that never
//! change once written.
//!
//! A file is written under its final, random name and synchronised before the index names it; the
//! commit in the index is what makes it exist. A file that no commit names is an orphan and removed
//! at the next open. That is one directory operation less than a rename, with the same guarantee.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::StatusCode;
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::warn;

use crate::checksum::Expected;

/// Contents up to this size are kept in the index: one synchronisation instead of three.
const INLINE_LIMIT: usize = 16 * 1024;
/// A body is handed to the disk in pieces of about this size.
const WRITE_SIZE: usize = 1024 * 1024;
/// The part of the disk that writers leave free, as one of so many. Less than what keeps sandboxes from being made
/// and layers from growing: what is in the store already is to stay usable, and the index able to grow.
const KEPT_FREE: u64 = 50;
/// And read from it in pieces of this size.
const READ_SIZE: u64 = 256 * 1024;

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    pub(super) file: String,
    pub(super) offset: u64,
    pub(super) length: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Inline(Bytes),
    Segments(Vec<Segment>),
}

/// The segments that hold `range` of a content made of `segments`.
pub(super) fn slice(segments: &[Segment], range: &std::ops::Range<u64>) -> Vec<Segment> {
    let mut start = 0;
    let mut found = Vec::new();
    for segment in segments {
        let end = start + segment.length;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            let offset = segment.offset + (from - start);
            found.push(Segment { file: segment.file.clone(), offset, length: to - from });
        }
        start = end;
    }
    found
}

/// The folder of content files.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: Arc<PathBuf>,
    leases: Arc<Mutex<Leases>>,
}

/// Files being read, and those of them to remove when their last reader is done.
#[derive(Debug, Default)]
struct Leases {
    readers: HashMap<String, usize>,
    doomed: HashSet<String>,
}

impl Files {
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
        Ok(Self { root: Arc::new(root), leases: Arc::default() })
    }

    /// Removes files that the index does not name; says how many, and which named ones are missing.
    pub(super) fn reconcile(&self, mut named: HashSet<String>) -> io::Result<(usize, Vec<String>)> {
        let mut removed = 0;
        for folder in fs::read_dir(&*self.root)? {
            for entry in fs::read_dir(folder?.path())? {
                let entry = entry?;
                if !entry.file_name().to_str().is_some_and(|name| named.remove(name)) {
                    fs::remove_file(entry.path())?;
                    removed += 1;
                }
            }
        }
        Ok((removed, named.into_iter().collect()))
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.join(&file[..2]).join(file)
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the files of `segments` from being removed while the lease lives.
    pub(super) fn lease(&self, segments: &[Segment]) -> Lease {
        let mut leases = self.leases();
        let names: Vec<String> = segments.iter().map(|segment| segment.file.clone()).collect();
        for name in &names {
            *leases.readers.entry(name.clone()).or_default() += 1;
        }
        Lease { files: self.clone(), names }
    }

    /// Removes files that the index no longer names, each when nobody reads it any more.
    pub(super) fn remove(&self, names: Vec<String>) {
        let mut free = Vec::new();
        {
            let mut leases = self.leases();
            for name in names {
                if leases.readers.contains_key(&name) {
                    leases.doomed.insert(name);
                } else {
                    free.push(name);
                }
            }
        }
        for name in free {
            remove_file(&self.path(&name));
        }
    }

    /// Refuses to take in more while the disk is nearly full.
    fn ensure_room(&self) -> io::Result<()> {
        let disk = rustix::fs::statvfs(&*self.root)?;
        if disk.f_bavail < disk.f_blocks / KEPT_FREE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn create(&self) -> io::Result<(File, Draft)> {
        let mut id = [0u8; 16];
        getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
        let name = hex::encode(id);
        let path = self.path(&name);
        let file = File::create_new(&path)?;
        Ok((file, Draft { name, path, kept: false }))
    }

    /// Takes in a body: hashes it, checks it against what was declared, and writes it to a
    /// synchronised file unless it is small and may stay in memory.
    pub(super) async fn receive(
        &self,
        body: Option<StreamingBlob>,
        length: Option<i64>,
        mut expected: Expected,
        inline: bool,
    ) -> S3Result<Received> {
        self.ensure_room().map_err(disk)?;
        let mut sink = Sink { files: self.clone(), state: SinkState::Memory };
        let mut piece = Vec::new();
        let (mut gathered, mut size) = (0, 0u64);
        let mut md5 = Md5::new();
        if let Some(mut body) = body {
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(broken_body)?;
                expected.update(&chunk);
                size += chunk.len() as u64;
                gathered += chunk.len();
                piece.push(chunk);
                if gathered >= WRITE_SIZE {
                    self.ensure_room().map_err(disk)?;
                    md5 = sink.write(std::mem::take(&mut piece), md5).await?;
                    gathered = 0;
                }
            }
        }
        if let Some(length) = length
            && u64::try_from(length) != Ok(size)
        {
            return Err(s3_error!(IncompleteBody));
        }
        let small = matches!(sink.state, SinkState::Memory) && gathered <= INLINE_LIMIT && inline;
        let (content, draft, digest) = if small {
            let bytes = join(piece);
            md5.update(&bytes);
            (Content::Inline(bytes), None, md5.finalize())
        } else {
            let md5 = sink.write(piece, md5).await?;
            let (draft, digest) = sink.finish(md5).await?;
            let segment = Segment { file: draft.name.clone(), offset: 0, length: size };
            (Content::Segments(vec![segment]), Some(draft), digest)
        };
        expected.finish(Some(&digest))?;
        Ok(Received { content, draft, size, md5: digest })
    }

    /// Streams `segments`, which must be leased.
    pub(super) fn read(
        &self,
        segments: Vec<Segment>,
        lease: Lease,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let reader = Reader {
            files: self.clone(),
            segments: segments.into_iter(),
            current: None,
            _lease: lease,
        };
        // The next piece is read while the one before is sent.
        let first = spawn_blocking(move || reader.next_piece());
        futures::stream::try_unfold(Some(first), |ahead| async move {
            let Some(ahead) = ahead else { return Ok(None) };
            let Some((piece, reader)) = ahead.await.map_err(io::Error::other)?? else {
                return Ok(None);
            };
            let next = (!reader.is_done()).then(|| spawn_blocking(move || reader.next_piece()));
            Ok(Some((piece, next)))
        })
    }
}

/// An error while a client's body is read: its checksum was wrong, or the client is gone.
fn broken_body(error: s3s::StdError) -> S3Error {
    let mut broken = s3_error!(IncompleteBody, "the body could not be read: {error}");
    broken.set_source(error);
    broken
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

fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in pieces {
        all.extend_from_slice(&piece);
    }
    all.freeze()
}

/// A body that is complete, checked and safe on disk, but not yet in the index.
pub(super) struct Received {
    pub(super) content: Content,
    pub(super) draft: Option<Draft>,
    pub(super) size: u64,
    pub(super) md5: [u8; 16],
}

/// A file that the index does not name yet; removed unless [`Draft::keep`] is called.
#[derive(Debug)]
pub(super) struct Draft {
    name: String,
    path: PathBuf,
    kept: bool,
}

impl Draft {
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            remove_file(&self.path);
        }
    }
}

fn remove_file(path: &Path) {
    // A file that stays behind is found again at the next open.
    if let Err(error) = fs::remove_file(path) {
        warn!(%error, path = %path.display(), "cannot remove a content file");
    }
}

/// Writes a body behind the network: one piece goes to the disk while the next one arrives.
struct Sink {
    files: Files,
    state: SinkState,
}

enum SinkState {
    /// Nothing was written yet.
    Memory,
    Writing(JoinHandle<io::Result<(File, Draft)>>),
    Failed,
}

impl Sink {
    /// Waits for the write before, hashes `piece` and starts its write.
    async fn write(&mut self, piece: Vec<Bytes>, mut md5: Md5) -> S3Result<Md5> {
        let open = self.settle().await?;
        let files = self.files.clone();
        let for_hash = piece.clone();
        self.state = SinkState::Writing(spawn_blocking(move || {
            let (mut file, draft) = match open {
                Some(open) => open,
                None => files.create()?,
            };
            for chunk in &piece {
                file.write_all(chunk)?;
            }
            Ok((file, draft))
        }));
        let hashed = spawn_blocking(move || {
            for chunk in &for_hash {
                md5.update(chunk);
            }
            md5
        });
        hashed.await.map_err(S3Error::internal_error)
    }

    async fn settle(&mut self) -> S3Result<Option<(File, Draft)>> {
        match std::mem::replace(&mut self.state, SinkState::Failed) {
            SinkState::Memory => Ok(None),
            SinkState::Writing(write) => {
                Ok(Some(write.await.map_err(S3Error::internal_error)?.map_err(disk)?))
            }
            SinkState::Failed => Err(s3_error!(InternalError, "an earlier write failed")),
        }
    }

    async fn finish(mut self, md5: Md5) -> S3Result<(Draft, [u8; 16])> {
        let Some((file, draft)) = self.settle().await? else {
            return Err(s3_error!(InternalError, "nothing was written"));
        };
        let synced = spawn_blocking(move || {
            file.sync_all()?;
            let folder = draft.path.parent().ok_or(io::ErrorKind::NotFound)?;
            File::open(folder)?.sync_all()?;
            Ok(draft)
        });
        let draft = synced.await.map_err(S3Error::internal_error)?.map_err(disk)?;
        Ok((draft, md5.finalize()))
    }
}

/// Keeps files from being removed while they are read.
#[derive(Debug)]
pub(super) struct Lease {
    files: Files,
    names: Vec<String>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut free = Vec::new();
        {
            let mut leases = self.files.leases();
            for name in self.names.drain(..) {
                let Some(readers) = leases.readers.get_mut(&name) else {
                    continue;
                };
                *readers -= 1;
                if *readers == 0 {
                    leases.readers.remove(&name);
                    if leases.doomed.remove(&name) {
                        free.push(name);
                    }
                }
            }
        }
        for name in free {
            remove_file(&self.files.path(&name));
        }
    }
}

struct Reader {
    files: Files,
    segments: std::vec::IntoIter<Segment>,
    current: Option<(File, Segment)>,
    _lease: Lease,
}

impl Reader {
    fn is_done(&self) -> bool {
        self.current.is_none() && self.segments.as_slice().is_empty()
    }

    fn next_piece(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let (file, mut segment) = match self.current.take() {
            Some(current) => current,
            None => match self.segments.next() {
                Some(segment) => (File::open(self.files.path(&segment.file))?, segment),
                None => return Ok(None),
            },
        };
        let length = segment.length.min(READ_SIZE);
        let mut piece = Vec::with_capacity(length as usize);
        (&file).seek(SeekFrom::Start(segment.offset))?;
        if (&file).take(length).read_to_end(&mut piece)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        segment.offset += length;
        segment.length -= length;
        if segment.length > 0 {
            self.current = Some((file, segment));
        }
        Ok(Some((piece.into(), self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(file: &str, offset: u64, length: u64) -> Segment {
        Segment { file: file.to_owned(), offset, length }
    }

    #[test]
    fn a_range_is_cut_out_of_its_segments() {
        let whole = [segment("a", 0, 10), segment("b", 5, 10)];
        assert_eq!(slice(&whole, &(0..20)), whole);
        assert_eq!(slice(&whole, &(8..12)), [segment("a", 8, 2), segment("b", 5, 2)]);
        assert_eq!(slice(&whole, &(10..11)), [segment("b", 5, 1)]);
        assert_eq!(slice(&whole, &(3..3)), []);
    }

    #[test]
    fn a_file_being_read_is_removed_after_its_last_reader() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files::open(folder.path().join("objects")).expect("opens");
        let (_, draft) = files.create().expect("creates");
        let (name, path) = (draft.name.clone(), draft.path.clone());
        draft.keep();
        let (first, second) =
            (files.lease(&[segment(&name, 0, 1)]), files.lease(&[segment(&name, 0, 1)]));
        files.remove(vec![name]);
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}

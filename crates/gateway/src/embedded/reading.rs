//! Reading contents, and what is said of one that is lost.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use s3s::{S3Error, s3_error};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tracing::error;

use super::content::{ContentFiles, FileId, Segment};
use super::leases::Lease;

/// Files are read in pieces of this size.
const READ_SIZE: u64 = 256 * 1024;

/// Why a content cannot be read. It concerns the objects that have this content and no other.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContentError {
    #[error("content file {file} is missing")]
    Missing { file: FileId },
    #[error("content file {file} ends after {length} bytes, and {needed} are needed")]
    Short { file: FileId, length: u64, needed: u64 },
    #[error("content file {file} cannot be read: {source}")]
    Unreadable { file: FileId, source: io::Error },
    #[error("the task that reads died: {0}")]
    Died(#[from] JoinError),
}

impl ContentError {
    fn of(file: &FileId, source: io::Error) -> Self {
        let file = file.clone();
        if source.kind() == io::ErrorKind::NotFound {
            Self::Missing { file }
        } else {
            Self::Unreadable { file, source }
        }
    }

    pub(super) fn file(&self) -> Option<&FileId> {
        match self {
            Self::Missing { file } | Self::Short { file, .. } | Self::Unreadable { file, .. } => {
                Some(file)
            }
            Self::Died(_) => None,
        }
    }

    /// Logs what happened to an object, and makes the answer of it: 500, for the key is there and
    /// the fault is the server's.
    pub(super) fn report(&self, bucket: &str, key: &str) -> S3Error {
        error!(bucket, key, error = %self, "the content of an object cannot be read");
        match self {
            Self::Missing { .. } | Self::Short { .. } => s3_error!(
                InternalError,
                "the content of '{key}' is lost: {self}; the key can be deleted or written anew"
            ),
            Self::Unreadable { .. } | Self::Died(_) => {
                s3_error!(InternalError, "the content of '{key}' cannot be read: {self}")
            }
        }
    }
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

type Piece = Result<Option<(Bytes, ContentReader)>, ContentError>;

impl ContentFiles {
    /// Streams `segments`, which are leased. Returns when all their files are known to be there and
    /// long enough and the first piece is read: a loss is told before an answer begins.
    pub(super) async fn read(
        &self,
        segments: Vec<Segment>,
        lease: Lease,
    ) -> Result<impl Stream<Item = Result<Bytes, ContentError>> + Send + 'static, ContentError>
    {
        let files = self.clone();
        let first = spawn_blocking(move || {
            files.check_now(&segments)?;
            let segments = segments.into_iter();
            ContentReader { files, segments, current: None, _lease: lease }.next_piece()
        });
        let (first, ahead) = match first.await?? {
            Some((piece, reader)) => (Some(Ok(piece)), reader.ahead()),
            None => (None, None),
        };
        // The next piece is read while the one before is sent.
        let others = futures::stream::try_unfold(ahead, |ahead| async move {
            let Some(ahead) = ahead else { return Ok(None) };
            let Some((piece, reader)) = ahead.await?? else { return Ok(None) };
            Ok(Some((piece, reader.ahead())))
        });
        Ok(futures::stream::iter(first).chain(others))
    }

    /// Whether the files of `segments`, which `lease` keeps, are there and long enough.
    pub(super) async fn check(
        &self,
        segments: Vec<Segment>,
        lease: Lease,
    ) -> Result<(), ContentError> {
        let files = self.clone();
        spawn_blocking(move || {
            let _kept = lease;
            files.check_now(&segments)
        })
        .await?
    }

    fn check_now(&self, segments: &[Segment]) -> Result<(), ContentError> {
        for segment in segments {
            let file = &segment.file;
            let found = fs::metadata(self.path(file));
            let length = found.map_err(|error| ContentError::of(file, error))?.len();
            let needed = segment.offset.saturating_add(segment.length);
            if length < needed {
                return Err(ContentError::Short { file: file.clone(), length, needed });
            }
        }
        Ok(())
    }
}

struct ContentReader {
    files: ContentFiles,
    segments: std::vec::IntoIter<Segment>,
    current: Option<(File, Segment)>,
    _lease: Lease,
}

impl ContentReader {
    /// Starts to read the next piece, if there is one.
    fn ahead(self) -> Option<JoinHandle<Piece>> {
        let done = self.current.is_none() && self.segments.as_slice().is_empty();
        (!done).then(|| spawn_blocking(move || self.next_piece()))
    }

    fn next_piece(mut self) -> Piece {
        let (file, mut segment) = match self.current.take() {
            Some(current) => current,
            None => match self.segments.next() {
                Some(segment) => {
                    let file = File::open(self.files.path(&segment.file));
                    (file.map_err(|error| ContentError::of(&segment.file, error))?, segment)
                }
                None => return Ok(None),
            },
        };
        let piece =
            read_piece(&file, &segment).map_err(|error| ContentError::of(&segment.file, error))?;
        let length = piece.len() as u64;
        if length < segment.length.min(READ_SIZE) {
            let (length, needed) = (segment.offset + length, segment.offset + segment.length);
            return Err(ContentError::Short { file: segment.file, length, needed });
        }
        segment.offset += length;
        segment.length -= length;
        if segment.length > 0 {
            self.current = Some((file, segment));
        }
        Ok(Some((piece, self)))
    }
}

fn read_piece(mut file: &File, segment: &Segment) -> io::Result<Bytes> {
    let length = segment.length.min(READ_SIZE);
    let mut piece = Vec::with_capacity(length as usize);
    file.seek(SeekFrom::Start(segment.offset))?;
    file.take(length).read_to_end(&mut piece)?;
    Ok(piece.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_out_of_its_segments() {
        let id = || FileId::random().expect("random numbers");
        let (a, b) = (id(), id());
        let segment =
            |file: &FileId, offset, length| Segment { file: file.clone(), offset, length };
        let whole = [segment(&a, 0, 10), segment(&b, 5, 10)];
        assert_eq!(slice(&whole, &(0..20)), whole);
        assert_eq!(slice(&whole, &(8..12)), [segment(&a, 8, 2), segment(&b, 5, 2)]);
        assert_eq!(slice(&whole, &(10..11)), [segment(&b, 5, 1)]);
        assert_eq!(slice(&whole, &(3..3)), []);
    }
}

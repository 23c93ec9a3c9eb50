//! Taking in bodies: hashed, checked, and safe on the disk before the index hears of them.

use std::fs::File;
use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3Result, s3_error};
use tokio::task::{JoinHandle, spawn_blocking};

use super::content::{ContentFiles, Draft, ObjectContent, Segment, disk};
use crate::checksum::Expected;

/// Contents up to this size are kept in the index: one synchronisation instead of three.
const INLINE_LIMIT: usize = 16 * 1024;
/// A body is handed to the disk in pieces of about this size.
const WRITE_SIZE: usize = 1024 * 1024;

impl ContentFiles {
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
        let mut sink = DiskSink { files: self.clone(), state: SinkState::Memory };
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
            (ObjectContent::Inline(bytes), None, md5.finalize())
        } else {
            let md5 = sink.write(piece, md5).await?;
            let (draft, digest) = sink.finish(md5).await?;
            let segment = Segment { file: draft.id.clone(), offset: 0, length: size };
            (ObjectContent::Segments(vec![segment]), Some(draft), digest)
        };
        expected.finish(Some(&digest))?;
        Ok(Received { content, draft, size, md5: digest })
    }
}

/// An error while a client's body is read: its checksum was wrong, or the client is gone.
fn broken_body(error: s3s::StdError) -> S3Error {
    let mut broken = s3_error!(IncompleteBody, "the body could not be read: {error}");
    broken.set_source(error);
    broken
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
    pub(super) content: ObjectContent,
    pub(super) draft: Option<Draft>,
    pub(super) size: u64,
    pub(super) md5: [u8; 16],
}

/// Writes a body behind the network: one piece goes to the disk while the next one arrives.
struct DiskSink {
    files: ContentFiles,
    state: SinkState,
}

enum SinkState {
    /// Nothing was written yet.
    Memory,
    Writing(JoinHandle<io::Result<(File, Draft)>>),
    Failed,
}

impl DiskSink {
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
        let path = self.files.path(&draft.id);
        let synced = spawn_blocking(move || {
            file.sync_all()?;
            let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
            File::open(folder)?.sync_all()?;
            Ok(draft)
        });
        let draft = synced.await.map_err(S3Error::internal_error)?.map_err(disk)?;
        Ok((draft, md5.finalize()))
    }
}

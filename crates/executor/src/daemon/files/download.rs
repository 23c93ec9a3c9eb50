//! `GET /files` (executor 6.4).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED, RANGE, VARY,
};
use hyper::{Request, Response, StatusCode};
use rustix::fs::OFlags;
use sandyard_http::Inbound;

use super::super::auth::Operation;
use super::super::body::{Chunks, DaemonBody};
use super::super::trusted::LastLink;
use super::super::{Daemon, access, paths, plain, pool};
use super::buffers::Buffers;
use super::encoding::{self, Encoding};
use super::gzip::{self, Encoder, Gzip};
use super::handle::Handle;
use super::preconditions::{self, PreconditionOutcome};
use super::ranges::{self, ByteRange};
use super::{CHUNK_BYTES, FileQuery, FileRefusal, Owner, content};

/// Up to here a file is read when it is opened.
const SMALL_BYTES: u64 = 64 << 10;

/// Answers a download.
pub(in super::super) async fn download(
    daemon: &Arc<Daemon>,
    request: &Request<Inbound>,
) -> Response<DaemonBody> {
    let found = find(daemon, request).await;
    found.unwrap_or_else(FileRefusal::response)
}

/// What a compressed chunk gave, and with what and where to go on, unless the file has ended.
type Compressed = (Bytes, Option<(Encoder, u64)>);

/// An open file and what is known of it.
struct DownloadSource {
    content: FileContent,
    name: String,
    /// `None` for one that does not tell: the kernel makes its content as it is read, as of `/proc/meminfo`.
    size: Option<u64>,
    modified_seconds: i64,
    /// All of a small file.
    start: Bytes,
    gzip: Gzip,
}

impl DownloadSource {
    /// The content type of its bytes as they are.
    fn kind(&self) -> &'static str {
        content::by_extension(&self.name).unwrap_or_else(|| content::sniff(&self.start))
    }
}

async fn find(
    daemon: &Arc<Daemon>,
    request: &Request<Inbound>,
) -> Result<Response<DaemonBody>, FileRefusal> {
    let headers = request.headers();
    let query = FileQuery::parse(request.uri())?;
    query.check(Operation::Read, daemon, headers)?;
    let owner = Owner::find(daemon, query.username.as_deref()).await?;
    let path = owner.resolve(query.path.as_deref().unwrap_or(""))?;
    let encoding = encoding::choose(headers);
    let wants_gzip = matches!(encoding, Ok(Encoding::Gzip { .. }));
    let source = pool::run(move || {
        owner.act(|| {
            check_is_file(&owner, &path)?;
            // After the file's own checks (executor 6.4).
            if let Err(error) = &encoding {
                return Err(FileRefusal::new(StatusCode::NOT_ACCEPTABLE, error.to_string()));
            }
            open(&path, wants_gzip).map_err(|error| owner.refused("read", &path, &error))
        })
    });
    let mut source = source.await?;
    let mut response = match encoding {
        Ok(Encoding::Gzip { identity }) if !identity || !matches!(source.gzip, Gzip::NotWorth) => {
            compressed(&mut source)
        }
        _ => match source.size {
            Some(size) => plain_bytes(&source, size, headers),
            None => until_its_end(&source),
        },
    };
    let headers = response.headers_mut();
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    set(headers, CONTENT_DISPOSITION, &content::disposition(&source.name));
    Ok(response)
}

fn check_is_file(owner: &Owner, path: &str) -> Result<(), FileRefusal> {
    match access::metadata(path) {
        Ok(found) if found.is_dir() => {
            Err(FileRefusal::invalid(format!("path '{path}' is a directory")))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(FileRefusal::new(StatusCode::NOT_FOUND, format!("path '{path}' does not exist")))
        }
        Err(error) => Err(owner.refused("look for", path, &error)),
    }
}

/// Blocks, but not on a pipe that nobody writes to.
fn open(path: &str, wants_gzip: bool) -> io::Result<DownloadSource> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = access::reading(path, LastLink::Follow, |place| place.open(flags, 0))?;
    let found = file.metadata()?;
    if !found.is_file() {
        let message = "it is neither a file nor a directory, so it has no content to send";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let told = found.size();
    let is_small = told <= SMALL_BYTES;
    let length = match told {
        // Empty, or it does not tell.
        0 => SMALL_BYTES as usize + 1,
        _ if is_small => told as usize,
        _ => content::SNIFF_BYTES,
    };
    let mut start = vec![0; length];
    let length = read_full(&file, &mut start, 0)?;
    start.truncate(length);
    let size = match is_small {
        // It may have become shorter meanwhile.
        true => Some(length as u64).filter(|length| *length <= SMALL_BYTES),
        false => Some(told),
    };
    let gzip = match (wants_gzip, size) {
        (false, _) => Gzip::NotWorth,
        (true, Some(_)) if is_small => Gzip::of_all(&start)?,
        (true, Some(size)) => {
            Gzip::of_samples(size, |buffer, offset| read_full(&file, buffer, offset))?
        }
        // Such are texts.
        (true, None) => Gzip::Worth,
    };
    Ok(DownloadSource {
        content: FileContent { file: Arc::new(Handle::new(file)), buffers: Arc::default() },
        name: paths::base_name(path).to_owned(),
        size,
        modified_seconds: found.mtime(),
        start: start.into(),
        gzip,
    })
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(length) => done += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // All values made here are printable ASCII.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The file, or parts of it, as it is.
fn plain_bytes(source: &DownloadSource, size: u64, asked: &HeaderMap) -> Response<DaemonBody> {
    let modified = preconditions::last_modified(source.modified_seconds);
    let outcome = preconditions::check(asked, modified);
    let range = asked.get(RANGE).and_then(|value| value.to_str().ok());
    let kind = source.kind();
    let mut response = match (outcome, range) {
        (PreconditionOutcome::NotModified, _) => plain::status(StatusCode::NOT_MODIFIED),
        (PreconditionOutcome::Failed, _) => plain::status(StatusCode::PRECONDITION_FAILED),
        (PreconditionOutcome::Send { ranges: true }, Some(range)) => {
            match ranges::parse(range, size) {
                Ok(parts) => answer_parts(source, size, &parts, kind),
                Err(error) => {
                    let mut response =
                        plain::text(StatusCode::RANGE_NOT_SATISFIABLE, format!("{error}\n"));
                    set(response.headers_mut(), CONTENT_RANGE, &format!("bytes */{size}"));
                    response
                }
            }
        }
        (PreconditionOutcome::Send { .. }, _) => answer_parts(source, size, &[], kind),
    };
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(modified) = modified {
        set(headers, LAST_MODIFIED, &httpdate::fmt_http_date(modified));
    }
    response
}

/// No part: the whole file. Several: a body of parts, each with its own headers.
fn answer_parts(
    source: &DownloadSource,
    size: u64,
    parts: &[ByteRange],
    kind: &'static str,
) -> Response<DaemonBody> {
    let whole = ByteRange { start: 0, length: size };
    let content = source.content.clone();
    match *parts {
        [] | [_] => {
            let part = parts.first().copied().unwrap_or(whole);
            let body = if source.start.len() as u64 == size {
                // Parts lie in the file, and its size is that of memory here.
                let (start, end) = (part.start as usize, (part.start + part.length) as usize);
                DaemonBody::full(source.start.slice(start..end))
            } else {
                DaemonBody::made(|chunks| async move { content.send(part, &chunks).await })
            };
            let mut response = Response::new(body);
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            headers.insert(CONTENT_LENGTH, part.length.into());
            if !parts.is_empty() {
                set(headers, CONTENT_RANGE, &part.content_range(size));
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            }
            response
        }
        _ => {
            let boundary = format!("sandyard-{:x}-{size:x}", source.modified_seconds);
            let head = |part: &ByteRange| {
                let range = part.content_range(size);
                format!("--{boundary}\r\nContent-Range: {range}\r\nContent-Type: {kind}\r\n\r\n")
            };
            let heads: Vec<(String, ByteRange)> =
                parts.iter().map(|part| (head(part), *part)).collect();
            let end = format!("--{boundary}--\r\n");
            let length: u64 =
                heads.iter().map(|(head, part)| head.len() as u64 + part.length + 2).sum::<u64>()
                    + end.len() as u64;
            let mut response = Response::new(DaemonBody::made(|chunks| async move {
                for (head, part) in heads {
                    chunks.send(head.into()).await?;
                    content.send(part, &chunks).await?;
                    chunks.send(Bytes::from_static(b"\r\n")).await?;
                }
                chunks.send(end.into()).await
            }));
            let headers = response.headers_mut();
            let kind = format!("multipart/byteranges; boundary={boundary}");
            set(headers, CONTENT_TYPE, &kind);
            headers.insert(CONTENT_LENGTH, length.into());
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response
        }
    }
}

/// The whole of a file that does not tell its size. It has no parts that anybody could ask for.
fn until_its_end(source: &DownloadSource) -> Response<DaemonBody> {
    let content = source.content.clone();
    let body = DaemonBody::made(|chunks| async move {
        let mut offset = 0;
        loop {
            let chunk = content.read(offset, u64::MAX).await?;
            if chunk.is_empty() {
                return Ok(());
            }
            offset += chunk.len() as u64;
            chunks.send(chunk).await?;
        }
    });
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(source.kind()));
    response
}

/// What is in a file, and the memory it is read into.
#[derive(Clone)]
struct FileContent {
    file: Arc<Handle>,
    buffers: Arc<Buffers>,
}

impl FileContent {
    /// Sends a part, reading ahead by one chunk.
    async fn send(&self, part: ByteRange, chunks: &Chunks) -> io::Result<()> {
        let end = part.start + part.length;
        let mut offset = part.start;
        let mut next = self.read(offset, end);
        while offset < end {
            let chunk = next.await?;
            if chunk.is_empty() {
                let message = "the file became shorter while it was sent";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            }
            offset += chunk.len() as u64;
            next = self.read(offset, end);
            chunks.send(chunk).await?;
        }
        Ok(())
    }

    /// Begins to read a chunk; nothing at the end.
    fn read(&self, offset: u64, end: u64) -> pool::RunningJob<io::Result<Bytes>> {
        // Never longer than a chunk.
        let length = end.saturating_sub(offset).min(CHUNK_BYTES as u64) as usize;
        let Self { file, buffers } = self.clone();
        pool::run(move || buffers.fill(length, |buffer| read_full(&file, buffer, offset)))
    }

    /// Begins to read and compress a chunk.
    fn compress(
        &self,
        mut encoder: Encoder,
        offset: u64,
    ) -> pool::RunningJob<io::Result<Compressed>> {
        let Self { file, buffers } = self.clone();
        pool::run(move || {
            let chunk = buffers.fill(CHUNK_BYTES, |buffer| read_full(&file, buffer, offset))?;
            if chunk.is_empty() {
                return Ok((encoder.finish()?.into(), None));
            }
            encoder.write_all(&chunk)?;
            let ready = std::mem::take(encoder.get_mut());
            Ok((ready.into(), Some((encoder, offset + chunk.len() as u64))))
        })
    }

    /// Sends all of it, compressing one chunk while the one before is sent.
    async fn send_compressed(&self, chunks: &Chunks) -> io::Result<()> {
        let mut step = self.compress(gzip::encoder(), 0);
        loop {
            let (ready, rest) = step.await?;
            let Some((encoder, offset)) = rest else {
                return chunks.send(ready).await;
            };
            step = self.compress(encoder, offset);
            if !ready.is_empty() {
                chunks.send(ready).await?;
            }
        }
    }
}

/// The whole file, gzipped.
fn compressed(source: &mut DownloadSource) -> Response<DaemonBody> {
    let body = match std::mem::replace(&mut source.gzip, Gzip::NotWorth) {
        Gzip::Done(packed) => DaemonBody::full(packed),
        Gzip::Worth | Gzip::NotWorth => {
            let content = source.content.clone();
            DaemonBody::made(|chunks| async move { content.send_compressed(&chunks).await })
        }
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let kind = content::without_sniffing(&source.name);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

//! `POST /files` (executor 6.5).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use flate2::write::MultiGzDecoder;
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use hyper::{Request, Response, StatusCode};
use sandyard_contract::upload::{boundary, path_of_part};
use sandyard_http::Inbound;
use tokio::sync::Mutex;

use super::super::auth::Operation;
use super::super::body::DaemonBody;
use super::super::{Daemon, plain, pool};
use super::metadata;
use super::write::{FileWriter, WriteTarget, Written};
use super::{FileQuery, FileRefusal, OwnerName};

/// How long the bytes after an upload's last part may take, which nobody needs.
const EPILOGUE: Duration = Duration::from_secs(10);

/// Answers an upload.
pub(in super::super) async fn upload(
    daemon: &Arc<Daemon>,
    request: Request<Inbound>,
) -> Response<DaemonBody> {
    let (head, body) = request.into_parts();
    // Shared, since the reader of parts keeps what it reads from and goes no further than the last part.
    let body = Arc::new(Mutex::new(body));
    let result = async {
        let query = FileQuery::parse(&head.uri)?;
        receive(daemon, query, &head.headers, &body).await
    };
    match result.await {
        Ok(written) => {
            let rest = async { while let Some(Ok(_)) = body.lock().await.frame().await {} };
            // The connection ends with the answer of one that takes longer.
            drop(tokio::time::timeout(EPILOGUE, rest).await);
            plain::json(StatusCode::OK, &written)
        }
        Err(refusal) => refusal.response(),
    }
}

async fn receive(
    daemon: &Arc<Daemon>,
    query: FileQuery,
    headers: &HeaderMap,
    body: &Arc<Mutex<Inbound>>,
) -> Result<Vec<Written>, FileRefusal> {
    query.check(Operation::Write, daemon, headers)?;
    let source = UploadSource {
        body: Arc::clone(body),
        decoder: is_gzip(headers)?.then(|| MultiGzDecoder::new(Vec::new())),
        ended: false,
    };
    let owner = OwnerName::new(daemon, query.username.as_deref());
    let target = Arc::new(WriteTarget::new(owner));
    match files(source, &target, query.path, headers).await {
        Ok(written) if !written.is_empty() => Ok(written),
        // That there is no such user comes before what else is wrong with an upload, or missing.
        other => pool::run(move || target.owner().map(drop)).await.and(other),
    }
}

async fn files(
    source: UploadSource,
    target: &Arc<WriteTarget>,
    query_path: Option<String>,
    headers: &HeaderMap,
) -> Result<Vec<Written>, FileRefusal> {
    let metadata = Arc::new(metadata::read(headers)?);
    let upload = Upload { target: Arc::clone(target), query_path, metadata };
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media_type = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if media_type == "application/octet-stream" {
        return upload.whole(source).await;
    }
    if media_type.starts_with("multipart/") {
        let boundary = boundary(kind)
            .ok_or_else(|| FileRefusal::invalid(format!("'{kind}' names no boundary")))?;
        return upload.parts(source, boundary).await;
    }
    Err(FileRefusal::invalid(format!(
        "content type '{kind}' cannot be uploaded: send application/octet-stream or multipart"
    )))
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, FileRefusal> {
    let Some(value) = headers.get(CONTENT_ENCODING) else {
        return Ok(false);
    };
    match value.to_str().map(|text| text.trim().to_ascii_lowercase()).as_deref() {
        Ok("" | "identity") => Ok(false),
        Ok("gzip") => Ok(true),
        _ => Err(FileRefusal::invalid("unsupported Content-Encoding: send gzip or identity")),
    }
}

/// An upload's bytes, decompressed.
struct UploadSource {
    body: Arc<Mutex<Inbound>>,
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
    ended: bool,
}

impl UploadSource {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, FileRefusal> {
        let broken =
            |error: &dyn std::fmt::Display| FileRefusal::invalid(format!("broken upload: {error}"));
        while !self.ended {
            let frame = self.body.lock().await.frame().await;
            let data = match frame {
                None => Bytes::new(),
                Some(frame) => match frame.map_err(|error| broken(&error))?.into_data() {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => data,
                    Err(_trailers) => continue,
                },
            };
            self.ended = data.is_empty();
            let Some(mut decoder) = self.decoder.take() else {
                return Ok((!self.ended).then_some(data));
            };
            let (decoder, plain) = pool::run(move || {
                if data.is_empty() {
                    decoder.try_finish()?;
                } else {
                    decoder.write_all(&data)?;
                }
                let plain = std::mem::take(decoder.get_mut());
                Ok::<_, std::io::Error>((decoder, plain))
            })
            .await
            .map_err(|error| broken(&error))?;
            self.decoder = Some(decoder);
            if !plain.is_empty() {
                return Ok(Some(plain.into()));
            }
        }
        Ok(None)
    }
}

/// The files of one request.
struct Upload {
    target: Arc<WriteTarget>,
    query_path: Option<String>,
    metadata: Arc<BTreeMap<String, String>>,
}

impl Upload {
    /// The whole body is one file.
    async fn whole(self, mut source: UploadSource) -> Result<Vec<Written>, FileRefusal> {
        let path = self.query_path.as_deref().filter(|path| !path.is_empty());
        let path =
            path.ok_or_else(|| FileRefusal::invalid("the query parameter 'path' is missing"))?;
        let mut writer = FileWriter::new(&self.target, path);
        let gathered = async {
            while let Some(bytes) = source.next().await? {
                writer.write(bytes).await?;
            }
            Ok(())
        };
        let gathered = gathered.await;
        Ok(vec![writer.finish(gathered, self.metadata).await?])
    }

    /// Every part named `file` is one file.
    async fn parts(
        self,
        source: UploadSource,
        boundary: &str,
    ) -> Result<Vec<Written>, FileRefusal> {
        let broken = |error: multer::Error| FileRefusal::invalid(format!("broken upload: {error}"));
        let mut parts = multer::Multipart::new(stream(source), boundary);
        let mut written = Vec::new();
        let query_path = self.query_path.as_deref();
        while let Some(mut part) = parts.next_field().await.map_err(broken)? {
            let name = path_of_part(query_path, part.name(), part.file_name()).map_err(|_| {
                FileRefusal::invalid("a part 'file' has no filename and the query has no 'path'")
            })?;
            let Some(name) = name else {
                continue;
            };
            let mut writer = FileWriter::new(&self.target, name);
            let gathered = async {
                while let Some(bytes) = part.chunk().await.map_err(broken)? {
                    writer.write(bytes).await?;
                }
                Ok(())
            };
            let gathered = gathered.await;
            written.push(writer.finish(gathered, Arc::clone(&self.metadata)).await?);
        }
        Ok(written)
    }
}

/// The bytes as the stream that the multipart reader wants.
fn stream(
    source: UploadSource,
) -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    futures_util::stream::try_unfold(source, |mut source| async move {
        match source.next().await {
            Ok(bytes) => Ok(bytes.map(|bytes| (bytes, source))),
            Err(refusal) => Err(std::io::Error::other(refusal.message)),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Clients write a quotation mark as `%22`, and a backslash is theirs to avoid (executor 6.5).
        #[test]
        fn the_file_name_of_a_part_is_the_clients(name in "[^\\pC\"\\\\]{1,40}") {
            let disposition = format!("form-data; name=\"file\"; filename=\"{name}\"");
            let body = format!("--X\r\nContent-Disposition: {disposition}\r\n\r\nx\r\n--X--\r\n");
            let body = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(body))]);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let part = runtime.block_on(multer::Multipart::new(body, "X").next_field()).unwrap().unwrap();
            prop_assert_eq!(path_of_part(None, part.name(), part.file_name()), Ok(Some(&*name)));
        }
    }
}

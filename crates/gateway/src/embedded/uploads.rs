//! Multipart uploads. Parts are files; completing an upload moves no byte.

use std::collections::{BTreeMap, HashSet};

use futures::StreamExt;
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CompletedPart, CopyPartResult, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, ETag, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    ListPartsInput, ListPartsOutput, MultipartUpload, Part, Range, StreamingBlob,
    UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3Error, S3Request, S3Result, s3_error};
use sqlx::Row;

use super::Embedded;
use super::change::{Change, Condition, ObjectTarget};
use super::content::{ObjectContent, Segment};
use super::index::{self, Attributes, failed, need_bucket, timestamp};
use super::objects::{ReadIf, seconds, sorted, source_of, without_chunked};
use super::reading::{ContentError, slice};
use super::upload_uses::UploadUse;
use crate::checksum::Expected;
use crate::listing::MAX_KEYS;

const LARGEST_PART_NUMBER: i32 = 10_000;

impl Embedded {
    pub(super) async fn create_upload(
        &self,
        input: CreateMultipartUploadInput,
    ) -> S3Result<CreateMultipartUploadOutput> {
        let mut id = [0u8; 16];
        getrandom::fill(&mut id)
            .map_err(|error| s3_error!(InternalError, "no random numbers: {error}"))?;
        let id = hex::encode(id);
        let attributes = Attributes {
            content_type: input.content_type,
            cache_control: input.cache_control,
            content_disposition: input.content_disposition,
            content_encoding: input.content_encoding.and_then(without_chunked),
            content_language: input.content_language,
            expires: input.expires.map(seconds),
            metadata: sorted(input.metadata),
        };
        let target = ObjectTarget { bucket: input.bucket, key: input.key };
        let change = Change::CreateUpload { id: id.clone(), target: target.clone(), attributes };
        self.apply(change, None).await?;
        Ok(CreateMultipartUploadOutput {
            bucket: Some(target.bucket),
            key: Some(target.key),
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        })
    }

    pub(super) async fn put_part(
        &self,
        req: S3Request<UploadPartInput>,
    ) -> S3Result<UploadPartOutput> {
        let expected = Expected::of(&req.headers, req.trailing_headers)?;
        let input = req.input;
        check_number(input.part_number)?;
        let target = ObjectTarget { bucket: input.bucket, key: input.key };
        let upload = self.use_upload(&input.upload_id, &target).await?;
        let length = input.content_length;
        let received = self.inner.files.receive(input.body, length, expected, false).await?;
        let ObjectContent::Segments(segments) = received.content else {
            return Err(s3_error!(InternalError, "a part was not written to a file"));
        };
        let change = Change::PutPart {
            upload,
            target,
            number: input.part_number,
            size: received.size,
            etag: hex::encode(received.md5),
            segments,
            shared: false,
        };
        let applied = self.apply(change, received.draft).await?;
        Ok(UploadPartOutput {
            e_tag: Some(ETag::Strong(applied.etag)),
            checksum_crc32: input.checksum_crc32,
            checksum_crc32c: input.checksum_crc32c,
            checksum_crc64nvme: input.checksum_crc64nvme,
            checksum_sha1: input.checksum_sha1,
            checksum_sha256: input.checksum_sha256,
            ..UploadPartOutput::default()
        })
    }

    pub(super) async fn copy_part(
        &self,
        input: UploadPartCopyInput,
    ) -> S3Result<UploadPartCopyOutput> {
        check_number(input.part_number)?;
        let target = ObjectTarget { bucket: input.bucket, key: input.key };
        let upload = self.use_upload(&input.upload_id, &target).await?;
        let source = source_of(&input.copy_source)?;
        let (record, lease) = self.find(&source.bucket, &source.key).await?;
        let conditions = ReadIf {
            matches: input.copy_source_if_match.as_ref(),
            none_match: input.copy_source_if_none_match.as_ref(),
            modified_since: input.copy_source_if_modified_since.as_ref(),
            unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
        };
        conditions.check(&record, s3s::S3ErrorCode::PreconditionFailed)?;
        let range = source_range(input.copy_source_range.as_deref(), record.size)?;
        let size = range.end - range.start;
        let (segments, etag, draft) = match record.content {
            ObjectContent::Segments(all) => {
                let segments = slice(&all, &range);
                let mut md5 = Md5::new();
                let lost = |error: ContentError| error.report(&source.bucket, &source.key);
                let bytes = self.inner.files.read(segments.clone(), lease).await.map_err(lost)?;
                let mut bytes = Box::pin(bytes);
                while let Some(piece) = bytes.next().await {
                    let piece = piece.map_err(lost)?;
                    let hashed = tokio::task::spawn_blocking(move || {
                        md5.update(&piece);
                        md5
                    });
                    md5 = hashed.await.map_err(S3Error::internal_error)?;
                }
                (segments, hex::encode(md5.finalize()), None)
            }
            ObjectContent::Inline(bytes) => {
                let bytes = bytes.slice(range.start as usize..range.end as usize);
                let body = StreamingBlob::from(Body::from(bytes));
                let expected = Expected::of(&http::HeaderMap::new(), None)?;
                let received = self.inner.files.receive(Some(body), None, expected, false).await?;
                let ObjectContent::Segments(segments) = received.content else {
                    return Err(s3_error!(InternalError, "a part was not written to a file"));
                };
                (segments, hex::encode(received.md5), received.draft)
            }
        };
        let change = Change::PutPart {
            upload,
            target,
            number: input.part_number,
            size,
            etag,
            segments,
            shared: draft.is_none(),
        };
        let applied = self.apply(change, draft).await?;
        Ok(UploadPartCopyOutput {
            copy_part_result: Some(CopyPartResult {
                e_tag: Some(ETag::Strong(applied.etag)),
                last_modified: Some(timestamp(applied.modified)),
                ..CopyPartResult::default()
            }),
            ..UploadPartCopyOutput::default()
        })
    }

    pub(super) async fn complete_upload(
        &self,
        input: CompleteMultipartUploadInput,
    ) -> S3Result<CompleteMultipartUploadOutput> {
        let target = ObjectTarget { bucket: input.bucket, key: input.key };
        let upload = self.use_upload(&input.upload_id, &target).await?;
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        self.check_parts(&upload, &target, &parts).await?;
        let change = Change::Complete {
            upload,
            target: target.clone(),
            parts,
            condition: Condition { if_match: input.if_match, if_none_match: input.if_none_match },
        };
        let applied = self.apply(change, None).await?;
        Ok(CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", target.bucket, target.key)),
            bucket: Some(target.bucket),
            key: Some(target.key),
            e_tag: Some(ETag::Strong(applied.etag)),
            ..CompleteMultipartUploadOutput::default()
        })
    }

    pub(super) async fn abort_upload(
        &self,
        input: AbortMultipartUploadInput,
    ) -> S3Result<AbortMultipartUploadOutput> {
        let target = ObjectTarget { bucket: input.bucket, key: input.key };
        self.apply(Change::Abort { upload: input.upload_id, target }, None).await?;
        Ok(AbortMultipartUploadOutput::default())
    }

    /// Finds the upload, and keeps it from expiring.
    async fn use_upload(&self, upload: &str, target: &ObjectTarget) -> S3Result<UploadUse> {
        let begun = self.inner.uploads.begin(upload);
        let begun = begun.ok_or_else(|| s3_error!(NoSuchUpload, "the upload has expired"))?;
        self.need_upload(upload, target).await?;
        Ok(begun)
    }

    /// Whether the files of the parts that are to become an object are there. `InvalidPart` is what
    /// makes a client upload a part again; an object with a hole would be found by its reader only.
    async fn check_parts(
        &self,
        upload: &UploadUse,
        target: &ObjectTarget,
        wanted: &[CompletedPart],
    ) -> S3Result<()> {
        let wanted: HashSet<i32> = wanted.iter().filter_map(|part| part.part_number).collect();
        let mut db = self.db().await?;
        let lookup = self.inner.files.leases.look_up();
        let rows = sqlx::query("SELECT number, segments FROM parts WHERE upload = ?")
            .bind(upload.upload_id())
            .fetch_all(&mut *db)
            .await
            .map_err(failed)?;
        drop(db);
        let mut parts = BTreeMap::new();
        for row in &rows {
            // What cannot be read the change refuses.
            if let (Ok(number), Ok(segments)) = (row.try_get("number"), index::segments(row)) {
                parts.insert(number, segments);
            }
        }
        parts.retain(|number, _| wanted.contains(number));
        let all: Vec<Segment> = parts.values().flatten().cloned().collect();
        let lease = lookup.lease(&all);
        let Err(error) = self.inner.files.check(all, lease).await else { return Ok(()) };
        let failure = error.report(&target.bucket, &target.key);
        let has_file = |segments: &Vec<Segment>| {
            error.file().is_some_and(|file| segments.iter().any(|segment| segment.file == *file))
        };
        match parts.iter().find(|(_, segments)| has_file(segments)) {
            Some((number, _)) => Err(s3_error!(
                InvalidPart,
                "part {number} cannot be used: {error}; it can be uploaded again"
            )),
            None => Err(failure),
        }
    }

    /// Checked before a body is read, so that a client learns early; the change checks again.
    async fn need_upload(&self, upload: &str, target: &ObjectTarget) -> S3Result<()> {
        let mut db = self.db().await?;
        let row = sqlx::query("SELECT 1 FROM uploads WHERE id = ? AND bucket = ? AND key = ?")
            .bind(upload)
            .bind(&target.bucket)
            .bind(target.key.as_bytes())
            .fetch_optional(&mut *db)
            .await
            .map_err(failed)?;
        match row {
            Some(_) => Ok(()),
            None => Err(s3_error!(NoSuchUpload, "there is no such upload of this key")),
        }
    }

    pub(super) async fn parts(&self, input: ListPartsInput) -> S3Result<ListPartsOutput> {
        let target = ObjectTarget { bucket: input.bucket, key: input.key };
        self.need_upload(&input.upload_id, &target).await?;
        let limit = count(input.max_parts)?;
        let mut db = self.db().await?;
        let mut rows = sqlx::query(
            "SELECT number, size, etag, modified FROM parts \
             WHERE upload = ? AND number > ? ORDER BY number LIMIT ?",
        )
        .bind(&input.upload_id)
        .bind(input.part_number_marker.unwrap_or_default())
        .bind(limit as i64 + 1)
        .fetch_all(&mut *db)
        .await
        .map_err(failed)?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let part = |row: &sqlx::sqlite::SqliteRow| -> Result<Part, sqlx::Error> {
            Ok(Part {
                part_number: Some(row.try_get("number")?),
                size: Some(row.try_get("size")?),
                e_tag: Some(ETag::Strong(row.try_get("etag")?)),
                last_modified: Some(timestamp(row.try_get("modified")?)),
                ..Part::default()
            })
        };
        // A part that cannot be read cannot be completed with either.
        let parts: Vec<Part> = rows.iter().filter_map(|row| part(row).ok()).collect();
        Ok(ListPartsOutput {
            bucket: Some(target.bucket),
            key: Some(target.key),
            upload_id: Some(input.upload_id),
            max_parts: Some(limit as i32),
            part_number_marker: input.part_number_marker,
            next_part_number_marker: parts.last().filter(|_| more).and_then(|p| p.part_number),
            is_truncated: Some(more),
            parts: Some(parts),
            ..ListPartsOutput::default()
        })
    }

    /// Uploads in key order. A delimiter is not honoured, so it is refused.
    pub(super) async fn uploads(
        &self,
        input: ListMultipartUploadsInput,
    ) -> S3Result<ListMultipartUploadsOutput> {
        if input.delimiter.as_deref().is_some_and(|d| !d.is_empty()) {
            return Err(s3_error!(NotImplemented, "a list of uploads takes no delimiter"));
        }
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let key_marker = input.key_marker.as_deref().unwrap_or_default();
        let upload_marker = input.upload_id_marker.as_deref().unwrap_or_default();
        let limit = count(input.max_uploads)?;
        let mut db = self.db().await?;
        need_bucket(&mut db, &input.bucket).await?;
        // Without an upload id the marker stands behind all uploads of its key.
        let rows = sqlx::query(
            "SELECT id, key, initiated FROM uploads \
             WHERE bucket = ?1 AND substr(key, 1, ?2) = ?3 \
             AND (?4 = X'' OR key > ?4 OR (key = ?4 AND ?5 <> '' AND id > ?5)) \
             ORDER BY key, id LIMIT ?6",
        )
        .bind(&input.bucket)
        .bind(prefix.len() as i64)
        .bind(prefix.as_bytes())
        .bind(key_marker.as_bytes())
        .bind(upload_marker)
        .bind(limit as i64 + 1)
        .fetch_all(&mut *db)
        .await
        .map_err(failed)?;
        let more = rows.len() > limit;
        let mut uploads = Vec::new();
        for row in rows.iter().take(limit) {
            let key: Vec<u8> = row.try_get("key").map_err(failed)?;
            let Ok(key) = String::from_utf8(key) else { continue };
            uploads.push(MultipartUpload {
                key: Some(key),
                upload_id: Some(row.try_get("id").map_err(failed)?),
                initiated: Some(timestamp(row.try_get("initiated").unwrap_or_default())),
                ..MultipartUpload::default()
            });
        }
        let last = uploads.last().filter(|_| more);
        Ok(ListMultipartUploadsOutput {
            next_key_marker: last.and_then(|upload| upload.key.clone()),
            next_upload_id_marker: last.and_then(|upload| upload.upload_id.clone()),
            bucket: Some(input.bucket),
            prefix: input.prefix,
            key_marker: input.key_marker,
            upload_id_marker: input.upload_id_marker,
            max_uploads: Some(limit as i32),
            is_truncated: Some(more),
            uploads: Some(uploads),
            ..ListMultipartUploadsOutput::default()
        })
    }
}

fn check_number(number: i32) -> S3Result<()> {
    if (1..=LARGEST_PART_NUMBER).contains(&number) {
        Ok(())
    } else {
        Err(s3_error!(InvalidArgument, "part numbers are 1 to 10000"))
    }
}

fn count(asked: Option<i32>) -> S3Result<usize> {
    match asked.map(usize::try_from) {
        None => Ok(MAX_KEYS),
        Some(Ok(number)) => Ok(number.min(MAX_KEYS)),
        Some(Err(_)) => Err(s3_error!(InvalidArgument, "a limit must not be negative")),
    }
}

/// The part of the source to copy; unlike a read's, this range must lie inside.
fn source_range(range: Option<&str>, size: u64) -> S3Result<std::ops::Range<u64>> {
    let Some(text) = range else {
        return Ok(0..size);
    };
    match Range::parse(text) {
        Ok(Range::Int { first, last: Some(last) }) if first <= last && last < size => {
            Ok(first..last + 1)
        }
        _ => Err(s3_error!(InvalidRange, "the copy source has no range '{text}'")),
    }
}

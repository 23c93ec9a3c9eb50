//! Operations on whole objects.

use std::collections::BTreeMap;

use futures::StreamExt;
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag,
    ETagCondition, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput,
    MetadataDirective, PutObjectInput, PutObjectOutput, Range, StreamingBlob, Timestamp,
};
use s3s::{Body, S3Request, S3Result, s3_error};
use sandyard_types::BucketName;

use super::change::{Change, Condition, ObjectTarget};
use super::content::ObjectContent;
use super::index::{self, Attributes, ObjectRecord, need_bucket, now, signed, timestamp};
use super::leases::Lease;
use super::reading::slice;
use super::{Embedded, change};
use crate::backend::DirectoryMarker;
use crate::checksum::Expected;

/// The conditions of a read.
#[derive(Default)]
pub(super) struct ReadIf<'a> {
    pub(super) matches: Option<&'a ETagCondition>,
    pub(super) none_match: Option<&'a ETagCondition>,
    pub(super) modified_since: Option<&'a Timestamp>,
    pub(super) unmodified_since: Option<&'a Timestamp>,
}

impl ReadIf<'_> {
    /// In the order of RFC 9110: a tag decides before a date does. `refused` is the answer of
    /// `If-None-Match` and `If-Modified-Since`.
    pub(super) fn check(&self, record: &ObjectRecord, refused: s3s::S3ErrorCode) -> S3Result<()> {
        let is = |condition: &ETagCondition| {
            condition.as_etag().is_none_or(|tag| tag.value() == record.etag)
        };
        // Dates in headers have whole seconds.
        let modified = record.modified.div_euclid(1000);
        let seconds = |date: &Timestamp| time::OffsetDateTime::from(date.clone()).unix_timestamp();
        let holds = match (self.matches, self.unmodified_since) {
            (Some(condition), _) => is(condition),
            (None, Some(date)) => modified <= seconds(date),
            (None, None) => true,
        };
        if !holds {
            return Err(s3_error!(PreconditionFailed, "a precondition does not hold"));
        }
        let unchanged = match (self.none_match, self.modified_since) {
            (Some(condition), _) => is(condition),
            (None, Some(date)) => modified <= seconds(date),
            (None, None) => false,
        };
        if unchanged { Err(refused.into()) } else { Ok(()) }
    }
}

impl Embedded {
    /// The object, with its files kept from being removed.
    pub(super) async fn find(&self, bucket: &str, key: &str) -> S3Result<(ObjectRecord, Lease)> {
        let mut db = self.db().await?;
        let lookup = self.inner.files.leases.look_up();
        let Some(record) = index::object(&mut db, bucket, key).await? else {
            need_bucket(&mut db, bucket).await?;
            return Err(s3_error!(NoSuchKey, "the key does not exist"));
        };
        let lease = lookup.lease(record.content.segments());
        Ok((record, lease))
    }

    pub(super) async fn put(&self, req: S3Request<PutObjectInput>) -> S3Result<PutObjectOutput> {
        let expected = Expected::of(&req.headers, req.trailing_headers)?;
        let input = req.input;
        let attributes = Attributes {
            content_type: input.content_type,
            cache_control: input.cache_control,
            content_disposition: input.content_disposition,
            content_encoding: input.content_encoding.and_then(without_chunked),
            content_language: input.content_language,
            expires: input.expires.map(seconds),
            metadata: sorted(input.metadata),
        };
        let length = input.content_length;
        let received = self.inner.files.receive(input.body, length, expected, true).await?;
        let record = ObjectRecord {
            size: received.size,
            etag: hex::encode(received.md5),
            modified: now(),
            attributes,
            content: received.content,
        };
        let condition = Condition { if_match: input.if_match, if_none_match: input.if_none_match };
        let target = ObjectTarget { bucket: input.bucket, key: input.key };
        let change = Change::Put { target, record, condition };
        let applied = self.apply(change, received.draft).await?;
        Ok(PutObjectOutput {
            e_tag: Some(ETag::Strong(applied.etag)),
            checksum_crc32: input.checksum_crc32,
            checksum_crc32c: input.checksum_crc32c,
            checksum_crc64nvme: input.checksum_crc64nvme,
            checksum_sha1: input.checksum_sha1,
            checksum_sha256: input.checksum_sha256,
            ..PutObjectOutput::default()
        })
    }

    pub(super) async fn store_marker(
        &self,
        bucket: &BucketName,
        key: &str,
        marker: &DirectoryMarker,
    ) -> S3Result<()> {
        let metadata = marker.metadata.iter();
        let record = ObjectRecord {
            size: 0,
            etag: hex::encode(Md5::new().finalize()),
            modified: now(),
            attributes: Attributes {
                content_type: Some(DirectoryMarker::CONTENT_TYPE.to_owned()),
                metadata: metadata.map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
                ..Attributes::default()
            },
            content: ObjectContent::Inline(bytes::Bytes::new()),
        };
        let target = ObjectTarget { bucket: bucket.to_string(), key: key.to_owned() };
        let condition = Condition { if_match: None, if_none_match: Some(ETagCondition::Any) };
        match self.apply(Change::Put { target, record, condition }, None).await {
            Err(error) if *error.code() != s3s::S3ErrorCode::PreconditionFailed => Err(error),
            Ok(change::Applied { .. }) | Err(_) => Ok(()),
        }
    }

    pub(super) async fn get(&self, input: GetObjectInput) -> S3Result<GetObjectOutput> {
        let (record, lease) = self.find(&input.bucket, &input.key).await?;
        let conditions = ReadIf {
            matches: input.if_match.as_ref(),
            none_match: input.if_none_match.as_ref(),
            modified_since: input.if_modified_since.as_ref(),
            unmodified_since: input.if_unmodified_since.as_ref(),
        };
        conditions.check(&record, s3s::S3ErrorCode::NotModified)?;
        let (range, content_range) = requested(input.range, input.part_number, record.size)?;
        let body = match &record.content {
            ObjectContent::Inline(bytes) => {
                Body::from(bytes.slice(range.start as usize..range.end as usize))
            }
            ObjectContent::Segments(segments) => {
                let (bucket, key) = (input.bucket, input.key);
                let stream = self.inner.files.read(slice(segments, &range), lease).await;
                let stream = stream.map_err(|error| error.report(&bucket, &key))?;
                // From here on an error can only break the answer off.
                let frames = stream.map(move |piece| {
                    piece.map(http_body::Frame::data).inspect_err(|error| {
                        error.report(&bucket, &key);
                    })
                });
                Body::http_body_unsync(http_body_util::StreamBody::new(frames))
            }
        };
        let attributes = record.attributes;
        Ok(GetObjectOutput {
            body: Some(StreamingBlob::from(body)),
            content_length: Some(signed(range.end - range.start)?),
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(ETag::Strong(record.etag)),
            last_modified: Some(timestamp(record.modified)),
            content_type: Some(content_type(attributes.content_type)),
            cache_control: attributes.cache_control,
            content_disposition: attributes.content_disposition,
            content_encoding: attributes.content_encoding,
            content_language: attributes.content_language,
            expires: attributes.expires.map(|s| timestamp(s.saturating_mul(1000))),
            metadata: Some(attributes.metadata.into_iter().collect()),
            ..GetObjectOutput::default()
        })
    }

    pub(super) async fn head(&self, input: HeadObjectInput) -> S3Result<HeadObjectOutput> {
        let (record, _lease) = self.find(&input.bucket, &input.key).await?;
        let conditions = ReadIf {
            matches: input.if_match.as_ref(),
            none_match: input.if_none_match.as_ref(),
            modified_since: input.if_modified_since.as_ref(),
            unmodified_since: input.if_unmodified_since.as_ref(),
        };
        conditions.check(&record, s3s::S3ErrorCode::NotModified)?;
        let (range, content_range) = requested(input.range, input.part_number, record.size)?;
        let attributes = record.attributes;
        Ok(HeadObjectOutput {
            content_length: Some(signed(range.end - range.start)?),
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(ETag::Strong(record.etag)),
            last_modified: Some(timestamp(record.modified)),
            content_type: Some(content_type(attributes.content_type)),
            cache_control: attributes.cache_control,
            content_disposition: attributes.content_disposition,
            content_encoding: attributes.content_encoding,
            content_language: attributes.content_language,
            expires: attributes.expires.map(|s| timestamp(s.saturating_mul(1000))),
            metadata: Some(attributes.metadata.into_iter().collect()),
            ..HeadObjectOutput::default()
        })
    }

    /// Copies within the index: the contents are shared, so that renaming a large file costs nothing.
    pub(super) async fn copy(&self, input: CopyObjectInput) -> S3Result<CopyObjectOutput> {
        let source = source_of(&input.copy_source)?;
        let (record, lease) = self.find(&source.bucket, &source.key).await?;
        let conditions = ReadIf {
            matches: input.copy_source_if_match.as_ref(),
            none_match: input.copy_source_if_none_match.as_ref(),
            modified_since: input.copy_source_if_modified_since.as_ref(),
            unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
        };
        conditions.check(&record, s3s::S3ErrorCode::PreconditionFailed)?;
        let replace = input
            .metadata_directive
            .as_ref()
            .is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
        let attributes = replace.then(|| Attributes {
            content_type: input.content_type,
            cache_control: input.cache_control,
            content_disposition: input.content_disposition,
            content_encoding: input.content_encoding.and_then(without_chunked),
            content_language: input.content_language,
            expires: input.expires.map(seconds),
            metadata: sorted(input.metadata),
        });
        let target = ObjectTarget { bucket: input.bucket, key: input.key };
        if attributes.is_none() && target.bucket == source.bucket && target.key == source.key {
            return Err(s3_error!(
                InvalidRequest,
                "a copy of an object to itself must change its metadata"
            ));
        }
        // A copy is a read: of a content that is lost there is none.
        let checked = self.inner.files.check(record.content.segments().to_vec(), lease).await;
        checked.map_err(|error| error.report(&source.bucket, &source.key))?;
        let source_etag = record.etag;
        let change = Change::Copy { source, target, attributes, source_etag };
        let applied = self.apply(change, None).await?;
        Ok(CopyObjectOutput {
            copy_object_result: Some(CopyObjectResult {
                e_tag: Some(ETag::Strong(applied.etag)),
                last_modified: Some(timestamp(applied.modified)),
                ..CopyObjectResult::default()
            }),
            ..CopyObjectOutput::default()
        })
    }

    pub(super) async fn delete(&self, input: DeleteObjectInput) -> S3Result<DeleteObjectOutput> {
        let target = ObjectTarget { bucket: input.bucket, key: input.key };
        self.apply(Change::Delete { target, if_match: input.if_match }, None).await?;
        Ok(DeleteObjectOutput::default())
    }

    pub(super) async fn delete_many(
        &self,
        input: DeleteObjectsInput,
    ) -> S3Result<DeleteObjectsOutput> {
        let quiet = input.delete.quiet.unwrap_or_default();
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        let removals = input.delete.objects.into_iter().map(|object| {
            let target = ObjectTarget { bucket: input.bucket.clone(), key: object.key.clone() };
            let if_match = object.e_tag.map(ETagCondition::ETag);
            async move { (object.key, self.apply(Change::Delete { target, if_match }, None).await) }
        });
        for (key, result) in futures::future::join_all(removals).await {
            match result {
                Ok(_) => deleted.push(DeletedObject { key: Some(key), ..DeletedObject::default() }),
                Err(error) => errors.push(s3s::dto::Error {
                    key: Some(key),
                    code: Some(error.code().as_str().to_owned()),
                    message: error.message().map(str::to_owned),
                    ..s3s::dto::Error::default()
                }),
            }
        }
        Ok(DeleteObjectsOutput {
            deleted: Some(if quiet { Vec::new() } else { deleted }),
            errors: Some(errors),
            ..DeleteObjectsOutput::default()
        })
    }
}

pub(super) fn source_of(source: &CopySource) -> S3Result<ObjectTarget> {
    match source {
        CopySource::Bucket { bucket, key, .. } => {
            Ok(ObjectTarget { bucket: bucket.to_string(), key: key.to_string() })
        }
        CopySource::AccessPoint { .. } | CopySource::Outpost { .. } => {
            Err(s3_error!(NotImplemented, "the copy source must be '<bucket>/<key>'"))
        }
    }
}

/// The bytes asked for, and the `Content-Range` of the answer if it is not all of them.
fn requested(
    range: Option<Range>,
    part: Option<i32>,
    size: u64,
) -> S3Result<(std::ops::Range<u64>, Option<String>)> {
    if part.is_some_and(|part| part != 1) {
        return Err(s3_error!(InvalidRequest, "objects are not kept in parts"));
    }
    let Some(range) = range else {
        return Ok((0..size, None));
    };
    let bytes = range.check(size).map_err(|error| s3_error!(error, InvalidRange))?;
    let header = format!("bytes {}-{}/{size}", bytes.start, bytes.end.saturating_sub(1));
    Ok((bytes, Some(header)))
}

fn content_type(stored: Option<String>) -> String {
    stored.unwrap_or_else(|| "binary/octet-stream".to_owned())
}

pub(super) fn seconds(date: Timestamp) -> i64 {
    time::OffsetDateTime::from(date).unix_timestamp()
}

/// `aws-chunked` describes the transfer; it is no property of the object.
pub(super) fn without_chunked(encoding: String) -> Option<String> {
    let kept: Vec<&str> =
        encoding.split(',').map(str::trim).filter(|e| !matches!(*e, "" | "aws-chunked")).collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

pub(super) fn sorted(
    metadata: Option<std::collections::HashMap<String, String>>,
) -> BTreeMap<String, String> {
    metadata.unwrap_or_default().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transfer_encoding_is_not_kept() {
        assert_eq!(without_chunked("aws-chunked".to_owned()), None);
        assert_eq!(without_chunked("gzip, aws-chunked".to_owned()).as_deref(), Some("gzip"));
    }

    #[test]
    fn ranges_are_cut_to_the_object() {
        let int = |first, last| Some(Range::Int { first, last });
        let (bytes, header) = requested(int(2, Some(100)), None, 10).expect("valid");
        assert_eq!((bytes, header.as_deref()), (2..10, Some("bytes 2-9/10")));
        assert_eq!(requested(None, Some(1), 10).expect("valid"), (0..10, None));
        assert!(requested(int(10, None), None, 10).is_err());
        assert!(requested(int(0, None), None, 0).is_err());
    }
}

//! The allow-list of operations, each held against the caller's grant. An operation that is not here
//! answers `NotImplemented`, which is `s3s`'s default for every method of its trait.

mod parts;

use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderMap;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CopySource,
    CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput,
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
    GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput,
    ListBucketsOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsInput,
    ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput,
    PutObjectInput, PutObjectOutput, Timestamp, UploadPartCopyInput, UploadPartCopyOutput,
    UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use sandyard_types::Access;

use crate::backend::ObjectStore;
use crate::grant::{Grant, GrantRefusal, ListView};
use crate::listing::{ListQuery, v1_output, v2_output};

/// Lets through what the grant allows.
pub(crate) struct GrantGuard {
    pub(crate) store: Arc<dyn ObjectStore>,
}

impl From<GrantRefusal> for S3Error {
    fn from(refusal: GrantRefusal) -> Self {
        s3_error!(AccessDenied, "{refusal}")
    }
}

/// The grant that the signature check found for this request.
fn grant_of<T>(request: &S3Request<T>) -> S3Result<Arc<Grant>> {
    let grant = request.extensions.get::<Arc<Grant>>().cloned();
    grant.ok_or_else(|| s3_error!(AccessDenied, "requests must be signed"))
}

fn check<T>(request: &S3Request<T>, bucket: &str, key: &str, need: Access) -> S3Result<()> {
    Ok(grant_of(request)?.check_key(bucket, key, need)?)
}

fn check_source(grant: &Grant, source: &CopySource) -> S3Result<()> {
    match source {
        CopySource::Bucket { bucket, key, version_id } => {
            grant.check_key(bucket, key, Access::ReadOnly)?;
            refuse_version(version_id.as_deref())
        }
        CopySource::AccessPoint { .. } | CopySource::Outpost { .. } => {
            Err(s3_error!(NotImplemented, "the copy source must be '<bucket>/<key>'"))
        }
    }
}

fn refuse_version(version_id: Option<&str>) -> S3Result<()> {
    match version_id {
        None | Some("null") => Ok(()),
        Some(_) => Err(s3_error!(NotImplemented, "object versions are not supported")),
    }
}

/// Refuses headers that ask for something the gateway does not do, rather than dropping them.
fn refuse_extras(headers: &HeaderMap) -> S3Result<()> {
    for (name, value) in headers {
        let refused = match name.as_str() {
            "x-amz-acl" => !matches!(value.as_bytes(), b"private" | b"bucket-owner-full-control"),
            "x-amz-tagging" | "x-amz-website-redirect-location" | "x-amz-write-offset-bytes" => {
                true
            }
            name => {
                name.starts_with("x-amz-grant-")
                    || name.starts_with("x-amz-object-lock-")
                    || name.starts_with("x-amz-server-side-encryption")
                    || name.starts_with("x-amz-copy-source-server-side-encryption")
            }
        };
        if refused {
            return Err(s3_error!(NotImplemented, "the header '{name}' is not supported"));
        }
    }
    Ok(())
}

#[async_trait]
impl S3 for GrantGuard {
    async fn list_buckets(
        &self,
        req: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        let grant = grant_of(&req)?;
        let bucket = |name: &sandyard_types::BucketName| Bucket {
            name: Some(name.to_string()),
            creation_date: Some(Timestamp::default()),
            ..Bucket::default()
        };
        let buckets = grant.buckets().into_iter().map(bucket).collect();
        let output = ListBucketsOutput { buckets: Some(buckets), ..ListBucketsOutput::default() };
        Ok(S3Response::new(output))
    }

    async fn head_bucket(
        &self,
        req: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        grant_of(&req)?.check_bucket(&req.input.bucket)?;
        self.store.head_bucket(req).await
    }

    /// Any region is accepted in a signature, so the location is always the default one.
    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        grant_of(&req)?.check_bucket(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    /// Clients that make sure of their bucket (rclone) take this answer for success.
    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        grant_of(&req)?.check_bucket(&req.input.bucket)?;
        Err(s3_error!(BucketAlreadyOwnedByYou, "the bucket exists"))
    }

    async fn list_objects(
        &self,
        req: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let prefix = req.input.prefix.as_deref().unwrap_or_default();
        match grant_of(&req)?.list_view(&req.input.bucket, prefix)? {
            ListView::Inside => self.store.list_objects(req).await,
            ListView::Parts(parts) => {
                let query = ListQuery::v1(&req.input)?;
                let page = parts::page(&*self.store, &req.input.bucket, &query, &parts).await?;
                Ok(S3Response::new(v1_output(req.input, page)))
            }
        }
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let prefix = req.input.prefix.as_deref().unwrap_or_default();
        match grant_of(&req)?.list_view(&req.input.bucket, prefix)? {
            ListView::Inside => self.store.list_objects_v2(req).await,
            ListView::Parts(parts) => {
                let query = ListQuery::v2(&req.input)?;
                let page = parts::page(&*self.store, &req.input.bucket, &query, &parts).await?;
                Ok(S3Response::new(v2_output(req.input, page)))
            }
        }
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadOnly)?;
        refuse_version(req.input.version_id.as_deref())?;
        self.store.get_object(req).await
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadOnly)?;
        refuse_version(req.input.version_id.as_deref())?;
        self.store.head_object(req).await
    }

    async fn put_object(
        &self,
        req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadWrite)?;
        refuse_extras(&req.headers)?;
        self.store.put_object(req).await
    }

    async fn copy_object(
        &self,
        req: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadWrite)?;
        check_source(&*grant_of(&req)?, &req.input.copy_source)?;
        refuse_extras(&req.headers)?;
        self.store.copy_object(req).await
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadWrite)?;
        refuse_version(req.input.version_id.as_deref())?;
        self.store.delete_object(req).await
    }

    /// All keys or nothing: one key outside refuses the request before anything is deleted.
    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let grant = grant_of(&req)?;
        let objects = &req.input.delete.objects;
        if objects.is_empty() || objects.len() > 1000 {
            return Err(s3_error!(MalformedXML, "a multi-delete names 1 to 1000 keys"));
        }
        for object in objects {
            grant.check_key(&req.input.bucket, &object.key, Access::ReadWrite)?;
            refuse_version(object.version_id.as_deref())?;
        }
        self.store.delete_objects(req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadWrite)?;
        refuse_extras(&req.headers)?;
        self.store.create_multipart_upload(req).await
    }

    async fn upload_part(
        &self,
        req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadWrite)?;
        refuse_extras(&req.headers)?;
        self.store.upload_part(req).await
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadWrite)?;
        check_source(&*grant_of(&req)?, &req.input.copy_source)?;
        refuse_extras(&req.headers)?;
        self.store.upload_part_copy(req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadWrite)?;
        self.store.complete_multipart_upload(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadWrite)?;
        self.store.abort_multipart_upload(req).await
    }

    async fn list_parts(
        &self,
        req: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        check(&req, &req.input.bucket, &req.input.key, Access::ReadOnly)?;
        self.store.list_parts(req).await
    }

    /// A list above the grant is moved to the grant's one part; a key with several parts must name
    /// one.
    async fn list_multipart_uploads(
        &self,
        mut req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let prefix = req.input.prefix.as_deref().unwrap_or_default();
        match grant_of(&req)?.list_view(&req.input.bucket, prefix)? {
            ListView::Inside => {}
            ListView::Parts(parts) => match parts.as_slice() {
                [one] => req.input.prefix = Some(one.to_string()),
                _ => {
                    return Err(s3_error!(AccessDenied, "the list of uploads needs a prefix"));
                }
            },
        }
        self.store.list_multipart_uploads(req).await
    }
}

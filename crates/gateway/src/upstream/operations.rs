//! S3's operations on the upstream. Bucket, key, prefix, copy source and upload id are those the
//! guard has checked; only parameters that decide nothing are taken from the raw query.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CompletedMultipartUpload, CompletedPart, CopyObjectInput,
    CopyObjectOutput, CopySource, CreateMultipartUploadInput, CreateMultipartUploadOutput,
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, GetObjectInput,
    GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsInput, ListObjectsOutput,
    ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput, PutObjectInput,
    PutObjectOutput, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::xml::{Serialize, Serializer};
use s3s::{Body, S3, S3Error, S3Request, S3Response, S3Result};

use super::Upstream;
use super::forward::{UpstreamCall, parameters};

const READ: [&str; 7] = [
    "partNumber",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
];
const LIST_V1: [&str; 4] = ["delimiter", "encoding-type", "marker", "max-keys"];
const LIST_V2: [&str; 6] =
    ["continuation-token", "delimiter", "encoding-type", "fetch-owner", "max-keys", "start-after"];
const LIST_PARTS: [&str; 3] = ["encoding-type", "max-parts", "part-number-marker"];
const LIST_UPLOADS: [&str; 5] =
    ["delimiter", "encoding-type", "key-marker", "max-uploads", "upload-id-marker"];

#[async_trait]
impl S3 for Upstream {
    async fn head_bucket(
        &self,
        req: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.relay(UpstreamCall::new(req.method, &req.input.bucket)).await
    }

    async fn list_objects(
        &self,
        req: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let mut query = parameters(&req.uri, &LIST_V1);
        query.push(("prefix", req.input.prefix.unwrap_or_default()));
        self.relay(UpstreamCall { query, ..UpstreamCall::new(req.method, &req.input.bucket) }).await
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let mut query = parameters(&req.uri, &LIST_V2);
        query.push(("list-type", "2".to_owned()));
        query.push(("prefix", req.input.prefix.unwrap_or_default()));
        self.relay(UpstreamCall { query, ..UpstreamCall::new(req.method, &req.input.bucket) }).await
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let query = parameters(&req.uri, &READ);
        let call = UpstreamCall::object(&req, &req.input.bucket, &req.input.key);
        self.relay(UpstreamCall { query, ..call }).await
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let query = parameters(&req.uri, &READ);
        let call = UpstreamCall::object(&req, &req.input.bucket, &req.input.key);
        self.relay(UpstreamCall { query, ..call }).await
    }

    async fn put_object(
        &self,
        mut req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let (body, trailers) = (req.input.body.take(), req.trailing_headers.take());
        let call = UpstreamCall::object(&req, &req.input.bucket, &req.input.key);
        let length = req.input.content_length;
        self.relay(call.with_upload(body, length, &req.headers, trailers)?).await
    }

    async fn copy_object(
        &self,
        req: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let mut call = UpstreamCall::object(&req, &req.input.bucket, &req.input.key);
        add_source(&mut call.headers, &req.input.copy_source)?;
        self.relay(UpstreamCall { length: Some(0), ..call }).await
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.relay(UpstreamCall::object(&req, &req.input.bucket, &req.input.key)).await
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let query = vec![("delete", String::new())];
        let call = UpstreamCall { query, ..UpstreamCall::new(req.method, &req.input.bucket) };
        self.relay(with_document(call, &req.input.delete)?).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let query = vec![("uploads", String::new())];
        let call = UpstreamCall::object(&req, &req.input.bucket, &req.input.key).part_of_upload();
        self.relay(UpstreamCall { query, length: Some(0), ..call }).await
    }

    async fn upload_part(
        &self,
        mut req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let (body, trailers) = (req.input.body.take(), req.trailing_headers.take());
        let query = part(req.input.part_number, &req.input.upload_id);
        let call =
            UpstreamCall { query, ..UpstreamCall::object(&req, &req.input.bucket, &req.input.key) };
        let length = req.input.content_length;
        let call = call.with_upload(body, length, &req.headers, trailers)?;
        self.relay(call.part_of_upload()).await
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let query = part(req.input.part_number, &req.input.upload_id);
        let mut call = UpstreamCall::object(&req, &req.input.bucket, &req.input.key);
        add_source(&mut call.headers, &req.input.copy_source)?;
        self.relay(UpstreamCall { query, length: Some(0), ..call }).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let query = vec![("uploadId", req.input.upload_id.clone())];
        let call = UpstreamCall::object(&req, &req.input.bucket, &req.input.key).part_of_upload();
        let call = UpstreamCall { query, ..call };
        let parts = without_checksums(req.input.multipart_upload.clone().unwrap_or_default());
        self.relay(with_document(call, &parts)?).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let query = vec![("uploadId", req.input.upload_id.clone())];
        self.relay(UpstreamCall {
            query,
            ..UpstreamCall::object(&req, &req.input.bucket, &req.input.key)
        })
        .await
    }

    async fn list_parts(
        &self,
        req: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        let mut query = parameters(&req.uri, &LIST_PARTS);
        query.push(("uploadId", req.input.upload_id.clone()));
        self.relay(UpstreamCall {
            query,
            ..UpstreamCall::object(&req, &req.input.bucket, &req.input.key)
        })
        .await
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let mut query = parameters(&req.uri, &LIST_UPLOADS);
        query.push(("uploads", String::new()));
        query.push(("prefix", req.input.prefix.unwrap_or_default()));
        self.relay(UpstreamCall { query, ..UpstreamCall::new(req.method, &req.input.bucket) }).await
    }
}

fn part(number: i32, upload: &str) -> Vec<(&'static str, String)> {
    vec![("partNumber", number.to_string()), ("uploadId", upload.to_owned())]
}

/// Writes the copy source from what was parsed, so that the upstream can read nothing else in it.
fn add_source(headers: &mut HeaderMap, source: &CopySource) -> S3Result<()> {
    let value =
        HeaderValue::try_from(source.format_to_string()).map_err(S3Error::internal_error)?;
    headers.insert("x-amz-copy-source", value);
    Ok(())
}

/// The document that `s3s` has parsed, written again.
fn with_document<'a, T: Serialize>(
    mut call: UpstreamCall<'a>,
    document: &T,
) -> S3Result<UpstreamCall<'a>> {
    let mut text = Vec::new();
    let mut xml = Serializer::new(&mut text);
    xml.decl().map_err(S3Error::internal_error)?;
    document.serialize(&mut xml).map_err(S3Error::internal_error)?;
    let mut md5 = Md5::new();
    md5.update(&text);
    let digest = HeaderValue::try_from(BASE64.encode(md5.finalize()));
    call.headers.insert("content-md5", digest.map_err(S3Error::internal_error)?);
    call.length = Some(text.len() as u64);
    call.body = Body::from(Bytes::from(text));
    Ok(call)
}

/// The parts without their checksums, which the upload does not have at the upstream; see
/// [`UpstreamCall::part_of_upload`].
fn without_checksums(parts: CompletedMultipartUpload) -> CompletedMultipartUpload {
    let plain = |part: CompletedPart| CompletedPart {
        e_tag: part.e_tag,
        part_number: part.part_number,
        ..CompletedPart::default()
    };
    let parts = parts.parts.map(|parts| parts.into_iter().map(plain).collect());
    CompletedMultipartUpload { parts }
}

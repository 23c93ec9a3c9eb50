//! What the gateway needs from a store, beyond S3's own operations.

use std::sync::Arc;

use async_trait::async_trait;
use s3s::{S3, S3Result};
use sandyard_types::{BucketName, InvalidWorkspace};
use time::OffsetDateTime;

use crate::embedded::{Embedded, EmbeddedError};
use crate::listing::{ListingPage, PageRequest};
use crate::upstream::Upstream;

/// Where objects are kept.
pub enum Backend {
    /// In a data folder of this server.
    Embedded(Embedded),
    /// In another S3 service.
    Upstream(Upstream),
}

impl Backend {
    pub(crate) fn into_store(self) -> Arc<dyn ObjectStore> {
        match self {
            Self::Embedded(store) => Arc::new(store),
            Self::Upstream(store) => Arc::new(store),
        }
    }
}

/// Why the store cannot be used by the server itself.
#[derive(Debug, thiserror::Error)]
pub enum ObjectStoreError {
    /// Nothing answers at the endpoint.
    #[error("object store {endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// The configured endpoint.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// The store does not know the configured keys or their secret is wrong.
    #[error("object store {endpoint} refuses the configured access key: {code}: {message}")]
    WrongKeys {
        /// The configured endpoint.
        endpoint: String,
        /// The store's error code.
        code: String,
        /// The store's explanation.
        message: String,
    },
    /// The keys are right but not allowed to do this.
    #[error(
        "object store {endpoint} does not allow the configured access key to {call}: {message}"
    )]
    NotAllowed {
        /// The configured endpoint.
        endpoint: String,
        /// What was tried.
        call: &'static str,
        /// The store's explanation.
        message: String,
    },
    /// There is no such bucket.
    #[error("bucket '{bucket}' does not exist in object store {endpoint}")]
    NoBucket {
        /// The endpoint, or the data folder.
        endpoint: String,
        /// The bucket.
        bucket: BucketName,
    },
    /// Any other answer.
    #[error("object store {endpoint} failed to {call}: {status} {code}: {message}")]
    Refused {
        /// The configured endpoint.
        endpoint: String,
        /// What was tried.
        call: &'static str,
        /// The HTTP status.
        status: u16,
        /// The store's error code, empty if it gave none.
        code: String,
        /// The store's explanation.
        message: String,
    },
    /// A directory name that is no path below the prefix.
    #[error(transparent)]
    Directory(#[from] InvalidWorkspace),
    /// The data folder failed.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// A task of the gateway died.
    #[error("a task of the gateway died")]
    Panicked(#[source] tokio::task::JoinError),
}

/// A back end: S3's operations, called only for what the guard has accepted, and what the server
/// itself needs.
#[async_trait]
pub(crate) trait ObjectStore: S3 {
    /// One page of a list, in key order.
    async fn page(&self, request: &PageRequest<'_>) -> S3Result<ListingPage>;
    async fn check(&self, bucket: &BucketName) -> Result<(), ObjectStoreError>;
    async fn ensure_bucket(&self, bucket: &BucketName) -> Result<(), ObjectStoreError>;
    /// Puts a directory marker where no object is.
    async fn put_marker(
        &self,
        bucket: &BucketName,
        key: &str,
        marker: &DirectoryMarker,
    ) -> Result<(), ObjectStoreError>;
}

/// What s3fs takes for a directory: an empty object with this content type and metadata.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryMarker {
    pub(crate) metadata: Vec<(&'static str, String)>,
}

impl DirectoryMarker {
    pub(crate) const CONTENT_TYPE: &'static str = "application/x-directory";
    /// `S_IFDIR | 0755`
    const MODE: u32 = 0o040_755;

    pub(crate) fn new(uid: u32, gid: u32) -> Self {
        let now = OffsetDateTime::now_utc().unix_timestamp().to_string();
        let metadata = vec![
            ("uid", uid.to_string()),
            ("gid", gid.to_string()),
            ("mode", Self::MODE.to_string()),
            ("atime", now.clone()),
            ("ctime", now.clone()),
            ("mtime", now),
        ];
        Self { metadata }
    }
}

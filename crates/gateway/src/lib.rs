//! S3 in front of the object store (design 6.2).
//!
//! FUSE programs in sandboxes talk S3 to the gateway with an access key made for that one sandbox.
//! A request passes, in this order:
//!
//! 1. `service`: what is refused before any signature is looked at (SigV2, presigned URLs,
//!    unsigned `x-amz-*` headers), the traffic counters, the access log.
//! 2. `s3s`: Signature Version 4, `aws-chunked` decoding, parsing into typed operations. The secret
//!    comes from the [`GrantSource`], asked on every request, so that revocation is immediate.
//! 3. The guard: an allow-list of operations, each checked against the [`Grant`].
//! 4. The [`Backend`]: [`Embedded`] (a data folder) or [`Upstream`] (MinIO, AWS, R2, any S3). The
//!    upstream gets a request made anew from what was checked, signed with the server's own key.
//!
//! Only the `Authorization` header with Signature Version 4 is accepted: no SigV2, no presigned
//! URLs, no browser form uploads, no anonymous requests. Object versions are not offered.
//!
//! `s3s` logs every refused operation at level error; set the target `s3s` to `off` in the log
//! filter, the gateway logs its own requests at level debug.

mod auth;
mod backend;
mod checksum;
mod embedded;
mod gateway;
mod grant;
mod guard;
mod keys;
mod listing;
mod service;
mod traffic;
mod upstream;

pub use backend::{Backend, ObjectStoreError};
pub use embedded::{Embedded, EmbeddedError};
pub use gateway::Gateway;
pub use grant::{Grant, GrantOwner, GrantScope, GrantSource};
pub use keys::{AccessKey, GatewayKeys, InvalidAccessKeyId, KeyName};
pub use s3s::auth::SecretKey;
pub use traffic::{ResponseBody, Traffic};
pub use upstream::{InvalidUpstream, Upstream, UpstreamConfig};

//! The gateway as the server sees it.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::service::{S3Service, S3ServiceBuilder};
use sandyard_http::{
    Accepted, Admission, HeadLimited, HeadLimits, Quota, Requests, StrangerLimits, Strangers,
    accept,
};
use sandyard_types::{BucketName, InvalidWorkspace, KeyPrefix, SandboxId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, warn};

use crate::auth::{GrantAccess, GrantAuth};
use crate::backend::{Backend, DirectoryMarker, ObjectStore, ObjectStoreError};
use crate::grant::GrantSource;
use crate::guard::GrantGuard;
use crate::service::ConnectionService;
use crate::traffic::{Ledger, Traffic};

/// How long a client may be silent between two requests.
const IDLE: Duration = Duration::from_secs(75);

/// How long a connection may be open before a request on it has proven whose it is.
const UNPROVEN: Duration = Duration::from_secs(10);

/// Connections of which nothing is proven: from one address, more than s3fs opens at once, and the share of all that
/// they may have, as one part in so many. User code in a sandbox cannot prove anything.
const UNPROVEN_FROM_ONE: usize = 32;
const UNPROVEN_SHARE: usize = 4;

/// What a client may send before its signature is checked: S3's own limit for a head is 8 KiB, and s3fs's heads have
/// less than 2.
const HEADS: HeadLimits = HeadLimits { bytes: 16 << 10, time: Duration::from_secs(10) };

/// S3 for sandboxes, in front of one back end. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    s3: S3Service,
    store: Arc<dyn ObjectStore>,
    ledger: Arc<Ledger>,
}

impl Gateway {
    /// A gateway that asks `grants` who may do what.
    pub fn new(backend: Backend, grants: Arc<dyn GrantSource>) -> Self {
        let store = backend.into_store();
        let ledger = Arc::new(Ledger::default());
        let mut builder = S3ServiceBuilder::new(GrantGuard { store: store.clone() });
        builder.set_auth(GrantAuth { grants: grants.clone() });
        builder.set_access(GrantAccess { grants, ledger: ledger.clone() });
        Self { s3: builder.build(), store, ledger }
    }

    /// Serves HTTP/1.1 on `listener` until `stop`, then lets requests in flight finish; the caller
    /// sets the limit and drops the future when it is over. May run on several listeners at once.
    pub async fn serve(&self, listener: TcpListener, quota: Quota, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        // Each connection proves itself: user code and the mount of a sandbox have the same address.
        let all = (quota.most() / UNPROVEN_SHARE).max(1);
        let limits = StrangerLimits { from_one: UNPROVEN_FROM_ONE.min(all), all };
        let strangers = Arc::new(Strangers::new(limits, 0));
        let report = |error: &_| warn!(%error, "the S3 gateway cannot accept a connection");
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&listener, &quota, report) => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let span = tracing::debug_span!("s3 connection", source = ?accepted.source);
            let connection =
                connection(accepted, self.s3.clone(), Arc::clone(&strangers), stop.clone());
            connections.spawn(connection.instrument(span));
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    /// Whether the store answers, takes the server's keys and has the bucket. Answers within a few
    /// seconds.
    ///
    /// # Errors
    /// One variant of [`ObjectStoreError`] per cause.
    pub async fn check(&self, bucket: &BucketName) -> Result<(), ObjectStoreError> {
        self.store.check(bucket).await
    }

    /// Makes the bucket unless it is there.
    ///
    /// # Errors
    /// [`ObjectStoreError`] if the store does not answer or does not allow it.
    pub async fn ensure_bucket(&self, bucket: &BucketName) -> Result<(), ObjectStoreError> {
        self.store.ensure_bucket(bucket).await
    }

    /// Makes the marker objects that s3fs takes for directories: `prefix` itself and `directories`
    /// below it (`uploads`, `a/b`; parents included), owned by `uid` and `gid`, mode 0755. What is
    /// there already is left as it is.
    ///
    /// # Errors
    /// [`ObjectStoreError::Directory`] for a name that is no path below the prefix, else as
    /// [`Self::check`].
    pub async fn ensure_directories(
        &self,
        bucket: &BucketName,
        prefix: &KeyPrefix,
        directories: &[String],
        uid: u32,
        gid: u32,
    ) -> Result<(), ObjectStoreError> {
        let marker = DirectoryMarker::new(uid, gid);
        let mut made = JoinSet::new();
        for key in marker_keys(prefix, directories)? {
            let (store, bucket, marker) = (self.store.clone(), bucket.clone(), marker.clone());
            made.spawn(async move { store.put_marker(&bucket, &key, &marker).await });
        }
        while let Some(result) = made.join_next().await {
            result.map_err(ObjectStoreError::Panicked)??;
        }
        Ok(())
    }

    /// What a sandbox moved so far; zeros for one that never sent a request.
    pub fn traffic(&self, sandbox: &SandboxId) -> Traffic {
        self.ledger.snapshot(sandbox)
    }

    /// Drops the counters of a sandbox that is gone.
    pub fn forget(&self, sandbox: &SandboxId) {
        self.ledger.forget(sandbox);
    }
}

/// The keys of the markers, parents first, each once.
fn marker_keys(
    prefix: &KeyPrefix,
    directories: &[String],
) -> Result<Vec<String>, InvalidWorkspace> {
    let mut keys = vec![prefix.to_string()];
    for directory in directories {
        let full: KeyPrefix = format!("{prefix}{}/", directory.trim_end_matches('/')).parse()?;
        let below = &full.as_str()[prefix.as_str().len()..];
        for (end, _) in below.match_indices('/') {
            let key = format!("{prefix}{}", &below[..=end]);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    Ok(keys)
}

async fn connection(
    accepted: Accepted<TcpStream>,
    s3: S3Service,
    strangers: Arc<Strangers>,
    stop: CancellationToken,
) {
    let Accepted { stream, source, slot: _slot } = accepted;
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot switch off Nagle's algorithm");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE);
    let requests = Requests::default();
    let stream = HeadLimited::new(stream, HEADS, requests.clone());
    let proven = Arc::new(Notify::new());
    let service = ConnectionService { s3, requests, source, proven: Arc::clone(&proven) };
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = unproven(source, &strangers, &proven) => {
            return debug!("an S3 connection was given up: nothing was proven on it");
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an S3 connection broke");
    }
}

/// Returns if the connection has to go because nothing was proven on it: in time, or while others want its place.
async fn unproven(source: Option<IpAddr>, strangers: &Strangers, proven: &Notify) {
    let Some(source) = source else { return std::future::pending().await };
    let held = Held { strangers, admission: strangers.admit(source) };
    tokio::select! {
        biased;
        () = proven.notified() => {}
        () = held.admission.revoked() => return,
        () = tokio::time::sleep(UNPROVEN) => return,
    }
    drop(held);
    std::future::pending().await
}

/// A stranger's place, free again when this is dropped.
struct Held<'a> {
    strangers: &'a Strangers,
    admission: Admission,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.strangers.forget(&self.admission);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_cover_the_prefix_the_directories_and_their_parents_once() {
        let prefix: KeyPrefix = "sessions/s/".parse().expect("valid");
        let directories = ["uploads".to_owned(), "a/b/".to_owned(), "a/c".to_owned()];
        let keys = marker_keys(&prefix, &directories).expect("valid");
        let below: Vec<_> = keys.iter().map(|key| &key["sessions/s/".len()..]).collect();
        assert_eq!(below, ["", "uploads/", "a/", "a/b/", "a/c/"]);
        for bad in ["..", "a/../b", "/a", "", "a//b"] {
            assert!(marker_keys(&prefix, &[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}

//! What each sandbox moved through the gateway.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use s3s::StdError;
use sandyard_http::UnderWay;
use sandyard_types::SandboxId;
use tokio::sync::Notify;

use crate::grant::GrantOwner;

/// Counters of one sandbox since it first used the gateway, as they stand now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests whose signature was right.
    pub requests: u64,
    /// Those of them answered with a 4xx other than 404 and 412 (which drivers cause in normal
    /// work), or with a 5xx.
    pub errors: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of response bodies.
    pub bytes_out: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
}

/// The counters of all sandboxes.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    sandboxes: Mutex<HashMap<SandboxId, Arc<Counters>>>,
}

impl Ledger {
    pub(crate) fn counters(&self, sandbox: &SandboxId) -> Arc<Counters> {
        let mut all = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = all.get(sandbox) {
            return counters.clone();
        }
        all.entry(sandbox.clone()).or_default().clone()
    }

    pub(crate) fn snapshot(&self, sandbox: &SandboxId) -> Traffic {
        let all = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(counters) = all.get(sandbox) else {
            return Traffic::default();
        };
        Traffic {
            requests: counters.requests.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
            bytes_in: counters.bytes_in.load(Ordering::Relaxed),
            bytes_out: counters.bytes_out.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn forget(&self, sandbox: &SandboxId) {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox);
    }
}

/// Goes with one request: where it came from, who sent it, once that is proven, and how many bytes it moved.
#[derive(Debug)]
pub(crate) struct RequestContext {
    source: Option<IpAddr>,
    proven: Arc<Notify>,
    caller: OnceLock<S3Caller>,
    received: AtomicU64,
}

/// Who sent a request: the owner of its key, and the counters of a sandbox.
#[derive(Debug)]
pub(crate) struct S3Caller {
    pub(crate) owner: GrantOwner,
    pub(crate) counters: Option<Arc<Counters>>,
}

impl RequestContext {
    /// For a request from `source`; `proven` is told as soon as it is known whose it is.
    pub(crate) fn new(source: Option<IpAddr>, proven: Arc<Notify>) -> Self {
        Self { source, proven, caller: OnceLock::new(), received: AtomicU64::new(0) }
    }

    /// The address that the request came from, where that is known.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// Records who sent the request. The signature is checked once per request, so a second call
    /// changes nothing.
    pub(crate) fn identify(&self, caller: S3Caller) {
        self.caller.get_or_init(|| caller);
        self.proven.notify_one();
    }

    pub(crate) fn caller(&self) -> Option<&S3Caller> {
        self.caller.get()
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// A request body that counts what is read of it.
pub(crate) struct CountedRequest<B> {
    pub(crate) inner: B,
    pub(crate) context: Arc<RequestContext>,
    pub(crate) _under_way: UnderWay,
}

impl<B: Body<Data = Bytes> + Unpin> Body for CountedRequest<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        self.context.received.fetch_add(data_length(&polled), Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of a response; counts what is sent of it.
#[derive(Debug)]
pub struct ResponseBody {
    pub(crate) inner: s3s::Body,
    pub(crate) counters: Option<Arc<Counters>>,
    pub(crate) _under_way: UnderWay,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Some(counters) = &self.counters {
            counters.bytes_out.fetch_add(data_length(&polled), Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn data_length<E>(polled: &Poll<Option<Result<Frame<Bytes>, E>>>) -> u64 {
    match polled {
        Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, |data| data.len() as u64),
        _ => 0,
    }
}

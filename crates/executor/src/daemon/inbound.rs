//! Bodies of requests, and what becomes of those that are not read to their end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::timeout;

use super::Daemon;

/// For how long a request that was answered is still read. A client that sends for longer is cut off, and so
/// is one that pauses.
const DISCARD: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(3);

/// A request's body. If it is dropped before its end, the rest is read and thrown away: a connection that is
/// closed with unread bytes is reset, and then its client may lose the answer.
pub(super) struct Inbound {
    /// `None` at its end.
    body: Option<Incoming>,
    unread: Unread,
    daemon: Arc<Daemon>,
}

/// Whether a body was given up before its end.
#[derive(Clone, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Inbound {
    pub(super) fn new(daemon: &Arc<Daemon>, body: Incoming) -> Self {
        Self { body: Some(body), unread: Unread::default(), daemon: Arc::clone(daemon) }
    }

    /// Tells also after the body is gone.
    pub(super) fn unread(&self) -> Unread {
        self.unread.clone()
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        if let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) {
            self.unread.0.store(true, Ordering::Relaxed);
            self.daemon.connections.spawn(async move {
                let reading =
                    async { while let Ok(Some(Ok(_))) = timeout(PAUSE, body.frame()).await {} };
                drop(timeout(DISCARD, reading).await);
            });
        }
    }
}

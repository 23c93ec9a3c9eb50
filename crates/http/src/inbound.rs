//! Bodies of requests, and what becomes of those that are not read to their end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// For how long a request that was answered is still read. A client that sends for longer is cut off, and so
/// is one that pauses.
const DISCARD: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(3);

/// Owner of the tasks that read what nobody wants.
pub trait Discard: Send + Sync {
    /// Runs a background task of the connection, which ends with the connection at the latest.
    fn run(&self, reading: Pin<Box<dyn Future<Output = ()> + Send>>);
}

/// A request's body. If it is dropped before its end, the rest is read and thrown away: a connection that is
/// closed with unread bytes is reset, and then its client may lose the answer.
pub struct Inbound {
    /// `None` at its end.
    body: Option<Incoming>,
    unread: Unread,
    discard: Option<Arc<dyn Discard>>,
}

/// Whether a body was given up before its end, so that the connection has to end with the answer.
#[derive(Clone, Debug, Default)]
pub struct Unread(Arc<AtomicBool>);

impl Unread {
    /// True from the moment on when it was given up.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Inbound {
    /// A body of an HTTP/1.1 request, whose rest is read by a task of `discard`.
    pub fn new(body: Incoming, discard: Arc<dyn Discard>) -> Self {
        Self { body: Some(body), unread: Unread::default(), discard: Some(discard) }
    }

    /// A body of an HTTP/2 request: its stream ends alone.
    pub fn of_stream(body: Incoming) -> Self {
        Self { body: Some(body), unread: Unread::default(), discard: None }
    }

    /// Tells also after the body is gone.
    pub fn unread(&self) -> Unread {
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
        let left = self.body.take().filter(|body| !body.is_end_stream());
        if let (Some(mut body), Some(discard)) = (left, &self.discard) {
            self.unread.0.store(true, Ordering::Relaxed);
            discard.run(Box::pin(async move {
                let reading =
                    async { while let Ok(Some(Ok(_))) = timeout(PAUSE, body.frame()).await {} };
                // Whether it came to its end or to the limit, it is over.
                let _: Result<(), _> = timeout(DISCARD, reading).await;
            }));
        }
    }
}

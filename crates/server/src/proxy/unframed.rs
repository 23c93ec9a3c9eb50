//! Bodies that only the end of the connection ends (HTTP/1.0). That a service has ended one and that its
//! sandbox has died look the same on the wire; a client must not take the second for a whole body.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Response, Version};
use hyper::body::{Body, Frame, Incoming};

use super::Routes;
use super::connect::daemon_answers;
use super::target::ProxyTarget;

/// Whether the answer's body ends where the connection does. HTTP/2 marks the ends of all.
pub(super) fn is_unframed(response: &Response<Incoming>) -> bool {
    let says_its_end = |headers: &HeaderMap| {
        headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
    };
    response.version() != Version::HTTP_2
        && !says_its_end(response.headers())
        && !response.body().is_end_stream()
}

/// A body whose end counts only if the sandbox is still there.
pub(super) struct Unframed {
    body: Incoming,
    routes: Arc<dyn Routes>,
    target: ProxyTarget,
    /// At the end: whether the sandbox lives.
    lives: Option<BoxFuture<'static, bool>>,
}

impl Unframed {
    pub(super) fn new(body: Incoming, routes: Arc<dyn Routes>, target: ProxyTarget) -> Self {
        Self { body, routes, target, lives: None }
    }
}

impl Body for Unframed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.lives.is_none() {
            if let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                return Poll::Ready(Some(frame.map_err(Into::into)));
            }
            let (routes, target) = (self.routes.clone(), self.target.clone());
            let lives = async move { daemon_answers(routes.as_ref(), &target).await };
            self.lives = Some(Box::pin(lives));
        }
        let Some(lives) = &mut self.lives else {
            return Poll::Ready(None);
        };
        if ready!(lives.as_mut().poll(cx)) {
            Poll::Ready(None)
        } else {
            let died = io::Error::new(io::ErrorKind::ConnectionReset, "the sandbox died");
            Poll::Ready(Some(Err(died.into())))
        }
    }
}

//! Bodies of answers: bytes that are there, or bytes that a future makes while they are sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

type Producer = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// An answer's body. Dropped, and the future in it with it, when nothing can be sent any more; one that follows
/// events at its client's FIN already.
pub(super) enum DaemonBody {
    /// All of it; `None` once it was taken.
    Full(Option<Bytes>),
    /// What `producer` sends; an error of it cuts the connection, so that no client takes half for all.
    Made { chunks: mpsc::Receiver<Bytes>, producer: Option<Producer>, follows_events: bool },
}

/// Where the future of a [`DaemonBody::Made`] sends its bytes; each is flushed at once.
pub(super) struct Chunks(mpsc::Sender<Bytes>);

impl Chunks {
    /// Sends a chunk as soon as the one before is on its way.
    ///
    /// # Errors
    /// If the body is gone, which a future inside that body never sees.
    pub(super) async fn send(&self, chunk: Bytes) -> io::Result<()> {
        self.0.send(chunk).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl DaemonBody {
    pub(super) fn empty() -> Self {
        Self::Full(None)
    }

    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()).filter(|bytes| !bytes.is_empty()))
    }

    /// A body that `make` writes while it is sent.
    pub(super) fn made<F>(make: impl FnOnce(Chunks) -> F) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self::new(false, make)
    }

    /// A body of which `make` writes a part whenever something happens, for as long as somebody listens.
    pub(super) fn events<F>(make: impl FnOnce(Chunks) -> F) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self::new(true, make)
    }

    fn new<F>(follows_events: bool, make: impl FnOnce(Chunks) -> F) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let (sender, chunks) = mpsc::channel(1);
        Self::Made { chunks, producer: Some(Box::pin(make(Chunks(sender)))), follows_events }
    }

    /// Whether it may be silent for long, and means nothing without a listener.
    pub(super) fn follows_events(&self) -> bool {
        matches!(self, Self::Made { follows_events: true, .. })
    }
}

impl hyper::body::Body for DaemonBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let (chunks, producer) = match self.get_mut() {
            Self::Full(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Made { chunks, producer, .. } => (chunks, producer),
        };
        loop {
            if let Poll::Ready(chunk) = chunks.poll_recv(context) {
                return Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))));
            }
            // The channel is empty and open, so the future that holds its other end is still there.
            let Some(running) = producer else {
                return Poll::Ready(None);
            };
            match running.as_mut().poll(context) {
                Poll::Ready(result) => {
                    *producer = None;
                    if let Err(error) = result {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Poll::Pending => {
                    return chunks.poll_recv(context).map(|c| c.map(|c| Ok(Frame::data(c))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Made { .. } => SizeHint::default(),
        }
    }
}

//! A bound on the heads of requests, in bytes and in time, for servers whose clients prove who they are in the
//! head: before it is whole, nobody knows whom its memory is spent on. The HTTP library has one bound for heads and
//! for the memory that bodies are read through; with this one, heads can be small and bodies fast.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The bound of one connection.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of a head, and of what comes behind it before it is taken up.
    pub bytes: usize,
    /// From a head's first byte until it is whole.
    pub time: Duration,
}

/// Counts the requests of a connection that are under way.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<AtomicUsize>);

impl Requests {
    /// A request has been read to the end of its head. Until the result and its clones are dropped, what is read is
    /// no head.
    pub fn begin(&self) -> UnderWay {
        self.0.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.0.clone())
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct UnderWay(Arc<AtomicUsize>);

impl Clone for UnderWay {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection whose heads are bounded.
pub struct HeadLimited<S> {
    stream: S,
    limits: HeadLimits,
    requests: Requests,
    /// Bytes of the present head.
    read: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> HeadLimited<S> {
    /// Bounds the heads that come in on `stream`; whoever serves it counts `requests`.
    pub fn new(stream: S, limits: HeadLimits, requests: Requests) -> Self {
        Self { stream, limits, requests, read: 0, deadline: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadLimited<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.requests.0.load(Ordering::Relaxed) > 0 {
            this.read = 0;
            this.deadline = None;
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let left = this.limits.bytes - this.read;
        if left == 0 {
            let message = format!("a head of more than {} bytes", this.limits.bytes);
            return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, message)));
        }
        let mut part = buffer.take(left);
        let polled = Pin::new(&mut this.stream).poll_read(context, &mut part);
        let length = part.filled().len();
        if matches!(polled, Poll::Ready(Ok(()))) && length > 0 {
            // SAFETY: `part` is the unfilled beginning of `buffer`, and the stream has filled this much of it.
            #[allow(unsafe_code)]
            unsafe {
                buffer.assume_init(length);
            }
            buffer.advance(length);
            this.read += length;
            let time = this.limits.time;
            this.deadline.get_or_insert_with(|| Box::pin(sleep(time)));
            return polled;
        }
        if polled.is_pending()
            && let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            let message = format!("a head that took more than {:?}", this.limits.time);
            return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, message)));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadLimited<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 100, time: Duration::from_secs(10) };

    #[tokio::test]
    async fn a_head_is_bounded_and_a_body_is_not() -> io::Result<()> {
        let (mut client, server) = duplex(1 << 20);
        let requests = Requests::default();
        let mut server = HeadLimited::new(server, LIMITS, requests.clone());
        client.write_all(&[b'x'; 300]).await?;
        let mut head = [0; 100];
        server.read_exact(&mut head).await?;
        assert_eq!(
            server.read(&mut head).await.expect_err("too long").kind(),
            ErrorKind::InvalidData
        );
        let under_way = requests.begin();
        let mut body = [0; 200];
        server.read_exact(&mut body).await?;
        // The next head has the whole bound again.
        drop((under_way.clone(), under_way));
        client.write_all(&[b'x'; 100]).await?;
        server.read_exact(&mut head).await?;
        assert!(server.read(&mut head).await.is_err());
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_stalls_is_given_up_and_an_idle_connection_is_not() -> io::Result<()> {
        let (mut client, server) = duplex(1 << 20);
        let mut server = HeadLimited::new(server, LIMITS, Requests::default());
        let mut byte = [0];
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, server.read(&mut byte)).await.is_err(), "idle");
        client.write_all(b"x").await?;
        server.read_exact(&mut byte).await?;
        let begun = tokio::time::Instant::now();
        let stalled = server.read(&mut byte).await.expect_err("stalled");
        assert_eq!(stalled.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() >= LIMITS.time);
        Ok(())
    }
}

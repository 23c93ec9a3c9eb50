//! The connection to a client, and what is known of its end.
//!
//! A client that closes its connection and one that closes only its own side (`shutdown`) send the same:
//! FIN. The first shows itself only when it is sent something, which its system answers with RST; or when its
//! system has forgotten the connection (60 s on Linux) and is asked by a keepalive probe.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Silence after which the client's system is asked whether the connection still exists.
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// Between two questions that nobody answers, and how many there are: a minute without a network is no end.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// One client. All clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Client(Arc<TcpStream>);

impl Client {
    /// # Errors
    /// If the connection has ended already.
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        // Answers are small and waited for.
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(PROBE_AFTER)
            .with_interval(PROBE_INTERVAL)
            .with_retries(PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self(Arc::new(stream)))
    }

    /// The connection's bytes.
    pub(super) fn stream(&self) -> ClientStream {
        ClientStream(self.0.clone())
    }

    /// The first byte that the client sends, which stays to be read; `None` if it closes instead.
    pub(super) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let length = self.0.peek(&mut byte).await?;
        Ok((length > 0).then_some(byte[0]))
    }

    /// Returns when the client is known to be gone: its system has reset the connection, or does not answer.
    pub(crate) async fn gone(&self) {
        self.wait_for(Interest::ERROR).await;
    }

    /// Returns when the client will send nothing more: it has closed its side, or everything.
    pub(crate) async fn closed_its_side(&self) {
        // Of this kind of readiness only "the reading side is closed" can occur here: nobody asked the
        // system for urgent data. `READABLE` would also report a request that is yet to be read.
        self.wait_for(Interest::PRIORITY).await;
    }

    async fn wait_for(&self, interest: Interest) {
        // Fails only while the runtime shuts down, when nobody waits any more.
        if self.0.ready(interest).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads from a [`Client`] and writes to it.
pub(crate) struct ClientStream(Arc<TcpStream>);

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl ClientStream {
    fn poll_try(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The system sends what was written.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
    }
}

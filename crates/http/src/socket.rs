//! A TCP connection that is read and written by one owner while others watch for its end.
//!
//! A peer that closes its connection and one that closes only its own side (`shutdown`) send the same:
//! FIN. The first shows itself only when it is sent something, which its system answers with RST; or when its
//! system has forgotten the connection (60 s on Linux) and is asked by a keepalive probe.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// One connection. All clones are the same; it closes with the last of them and of its streams.
#[derive(Clone, Debug)]
pub struct Socket(Arc<TcpStream>);

impl Socket {
    /// Takes a connection over.
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// The connection's bytes. Several streams of one connection would take them from each other.
    pub fn stream(&self) -> SocketStream {
        SocketStream(Arc::clone(&self.0))
    }

    /// The first byte that the peer sends, which stays to be read; `None` if it closes instead.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let length = self.0.peek(&mut byte).await?;
        Ok((length > 0).then_some(byte[0]))
    }

    /// Returns when the peer is known to be gone: its system has reset the connection, or does not answer.
    pub async fn gone(&self) {
        self.wait_for(Interest::ERROR).await;
    }

    /// Returns when the peer will send nothing more: it has closed its side, or everything. What it sent
    /// before may still be unread.
    pub async fn closed_its_side(&self) {
        // Of this kind of readiness only "the reading side is closed" can occur here: nobody asked the
        // system for urgent data. `READABLE` would also report what is yet to be read.
        self.wait_for(Interest::PRIORITY).await;
    }

    /// Returns when the peer has closed its side and `means_nothing` is true: for answers that mean nothing to anybody
    /// but a peer that listens.
    pub async fn unheard(&self, mut means_nothing: watch::Receiver<bool>) {
        self.closed_its_side().await;
        if means_nothing.wait_for(|nothing| *nothing).await.is_err() {
            // The sender is gone: it will not become true any more.
            std::future::pending::<()>().await;
        }
    }

    async fn wait_for(&self, interest: Interest) {
        // Fails only while the runtime shuts down, when nobody waits any more.
        if self.0.ready(interest).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads from a [`Socket`] and writes to it.
#[derive(Debug)]
pub struct SocketStream(Arc<TcpStream>);

impl AsyncRead for SocketStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            // Into memory as it is: clearing it first would cost as much as the copy.
            match self.0.try_read_buf(buffer) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl SocketStream {
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

impl AsyncWrite for SocketStream {
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
        Poll::Ready(Ok(rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write)?))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> io::Result<(TcpStream, Socket)> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let peer = TcpStream::connect(listener.local_addr()?).await?;
        Ok((peer, Socket::new(listener.accept().await?.0)))
    }

    #[tokio::test]
    async fn a_peer_that_closes_its_side_is_noticed_before_its_bytes_are_read() -> io::Result<()> {
        let (mut peer, socket) = pair().await?;
        peer.write_all(b"hello").await?;
        assert_eq!(socket.first_byte().await?, Some(b'h'));
        peer.shutdown().await?;
        socket.closed_its_side().await;
        let mut stream = socket.stream();
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        assert_eq!(text, "hello");
        // It still listens.
        stream.write_all(b"answer").await?;
        stream.shutdown().await?;
        text.clear();
        peer.read_to_string(&mut text).await?;
        assert_eq!(text, "answer");
        Ok(())
    }

    #[tokio::test]
    async fn a_peer_that_resets_is_gone_and_its_bytes_stay_to_be_read() -> io::Result<()> {
        let (mut peer, socket) = pair().await?;
        peer.write_all(b"hello").await?;
        SockRef::from(&peer).set_linger(Some(Duration::ZERO))?;
        drop(peer);
        socket.gone().await;
        socket.closed_its_side().await;
        let mut bytes = [0; 5];
        socket.stream().read_exact(&mut bytes).await?;
        assert_eq!(&bytes, b"hello");
        Ok(())
    }
}

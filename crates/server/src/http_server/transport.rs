//! What carries a client's HTTP: its bytes as they are, or TLS. Both share a port, and the first byte tells
//! which it is.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use sandyard_http::SocketStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::client::Client;

/// How long a new connection may say nothing: browsers open some ahead of need.
const FIRST_BYTE: Duration = Duration::from_secs(60);
/// How long shaking hands may take, from the first byte on.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Type of the TLS record that a handshake begins with. No method of HTTP begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// The bytes of one client's HTTP.
pub(crate) enum ClientTransport {
    Plain(SocketStream),
    Tls(Box<TlsStream<SocketStream>>),
}

impl ClientTransport {
    /// HTTP without TLS.
    pub(crate) fn plain(client: &Client) -> Self {
        Self::Plain(client.stream())
    }

    /// Either, as the client likes. `None` if it left without a word.
    ///
    /// # Errors
    /// If the client takes too long, leaves, or begins something like TLS that is none.
    pub(crate) async fn either(client: &Client, tls: &TlsAcceptor) -> io::Result<Option<Self>> {
        let Some(first) = limited(FIRST_BYTE, client.first_byte()).await? else {
            return Ok(None);
        };
        if first != TLS_HANDSHAKE {
            return Ok(Some(Self::plain(client)));
        }
        let stream = limited(HANDSHAKE, tls.accept(client.stream())).await?;
        Ok(Some(Self::Tls(Box::new(stream))))
    }
}

async fn limited<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

impl AsyncRead for ClientTransport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => match Pin::new(stream).poll_read(cx, buffer) {
                // Closed without a word in TLS, as many clients do it. Bodies have an end of their own, so
                // nothing that was cut off is taken for whole.
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                other => other,
            },
        }
    }
}

impl AsyncWrite for ClientTransport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::data_dir::DataDir;
    use crate::tls::Tls;

    /// Time jumps to the limit, because nothing else is there to be waited for.
    #[tokio::test(start_paused = true)]
    async fn clients_that_stall_are_given_up() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let data = DataDir::open(folder.path())?;
        let tls = Tls::open(&data, &"sbx.localhost".parse()?, None)?.acceptor();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        for said in [&b""[..], &[TLS_HANDSHAKE], &[TLS_HANDSHAKE, 3, 1, 2, 0]] {
            let mut stalled = TcpStream::connect(listener.local_addr()?).await?;
            stalled.write_all(said).await?;
            let client = Client::new(listener.accept().await?.0, None)?;
            let failure = ClientTransport::either(&client, &tls).await.err().map(|e| e.kind());
            assert_eq!(failure, Some(ErrorKind::TimedOut), "{said:?}");
        }
        Ok(())
    }
}

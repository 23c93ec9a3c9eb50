//! One connection.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::frames::{self, GREETING_LENGTH};
use super::{MAX_MESSAGE, ZmtpError};

/// Free memory that a read gets at least.
const READ_BUFFER: usize = 16 << 10;

/// Where a kernel listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "ipc://{}", path.display()),
        }
    }
}

/// What this side is to the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketType {
    /// Sends requests and gets answers.
    Dealer,
    /// Gets everything that is published.
    Subscriber,
}

trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A connection on which the handshake is done.
pub(crate) struct ZmtpConnection {
    endpoint: Endpoint,
    stream: Box<dyn ByteStream>,
    /// What was read and belongs to no whole message yet.
    unread: BytesMut,
    /// The parts of a message whose last part is still to come.
    parts: Vec<Bytes>,
    /// The bytes of these.
    held: usize,
}

impl ZmtpConnection {
    /// Connects and shakes hands; a subscriber asks for everything.
    ///
    /// # Errors
    /// [`ZmtpError`]; one of the kind [`ErrorKind::NotFound`] or [`ErrorKind::ConnectionRefused`] if nobody listens.
    pub(crate) async fn open(
        endpoint: Endpoint,
        socket_type: SocketType,
        identity: &str,
    ) -> Result<Self, ZmtpError> {
        let connected: io::Result<Box<dyn ByteStream>> = match &endpoint {
            Endpoint::Tcp(address) => match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true).map(|()| Box::new(stream) as Box<dyn ByteStream>)
                }
                Err(error) => Err(error),
            },
            Endpoint::Unix(path) => UnixStream::connect(path).await.map(|s| Box::new(s) as _),
        };
        let stream = match connected {
            Ok(stream) => stream,
            Err(source) => return Err(ZmtpError::Io { doing: "connect to", endpoint, source }),
        };
        let (unread, parts) = (BytesMut::new(), Vec::new());
        let mut connection = Self { endpoint, stream, unread, parts, held: 0 };
        connection.shake_hands(socket_type, identity).await?;
        Ok(connection)
    }

    async fn shake_hands(&mut self, own: SocketType, identity: &str) -> Result<(), ZmtpError> {
        self.write(&frames::greeting()).await?;
        while self.unread.len() < GREETING_LENGTH {
            self.fill().await?;
        }
        if !frames::greeting_fits(&self.unread.split_to(GREETING_LENGTH)) {
            return Err(self.broken("it does not greet as ZMTP 3 without security does"));
        }
        let name = match own {
            SocketType::Dealer => "DEALER",
            SocketType::Subscriber => "SUB",
        };
        self.write(&frames::ready(name, identity.as_bytes())).await?;
        let frame = self.frame().await?;
        if !frame.command || !frame.body.starts_with(b"\x05READY") {
            return Err(self.broken("it is not ready"));
        }
        if own == SocketType::Subscriber {
            // "Subscribe to what begins with nothing", in the form of version 3.0.
            self.write(&frames::message([&b"\x01"[..]].into_iter())).await?;
        }
        Ok(())
    }

    /// The next message, in parts. May be dropped at any time; then the next call goes on.
    ///
    /// # Errors
    /// [`ZmtpError`]; nothing comes any more after one.
    pub(crate) async fn receive(&mut self) -> Result<Vec<Bytes>, ZmtpError> {
        loop {
            let frame = self.frame().await?;
            if frame.command {
                // Only a later version's, which nobody agreed on.
                continue;
            }
            self.held += frame.body.len();
            if self.held > MAX_MESSAGE {
                return Err(self.broken("a message beyond all bounds"));
            }
            self.parts.push(frame.body);
            if !frame.more {
                self.held = 0;
                return Ok(std::mem::take(&mut self.parts));
            }
        }
    }

    /// Sends a message. If this is dropped before it ends the connection is good for nothing.
    ///
    /// # Errors
    /// [`ZmtpError`] if the other side is gone.
    pub(crate) async fn send(&mut self, parts: &[&[u8]]) -> Result<(), ZmtpError> {
        let message = frames::message(parts.iter().copied());
        self.write(&message).await
    }

    async fn frame(&mut self) -> Result<frames::Frame, ZmtpError> {
        loop {
            match frames::take(&mut self.unread) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => self.fill().await?,
                Err(what) => return Err(self.broken(what)),
            }
        }
    }

    async fn fill(&mut self) -> Result<(), ZmtpError> {
        self.unread.reserve(READ_BUFFER);
        let read = self.stream.read_buf(&mut self.unread).await;
        match read.and_then(|n| if n == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
        {
            Ok(()) => Ok(()),
            Err(source) => Err(self.io("read from", source)),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ZmtpError> {
        match self.stream.write_all(bytes).await {
            Ok(()) => Ok(()),
            Err(source) => Err(self.io("write to", source)),
        }
    }

    fn io(&self, doing: &'static str, source: io::Error) -> ZmtpError {
        ZmtpError::Io { doing, endpoint: self.endpoint.clone(), source }
    }

    fn broken(&self, what: &'static str) -> ZmtpError {
        ZmtpError::Protocol { endpoint: self.endpoint.clone(), what }
    }
}

//! The connection to a client: how it is set up, and what is known of its end.

use std::io;
use std::net::IpAddr;
use std::ops::Deref;
use std::time::Duration;

use sandyard_http::Socket;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence after which the client's system is asked whether the connection still exists.
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// Between two questions that nobody answers, and how many there are: a minute without a network is no end.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// One client. All clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: Socket,
    source: Option<IpAddr>,
}

impl Client {
    /// # Errors
    /// If the connection has ended already.
    pub(super) fn new(stream: TcpStream, source: Option<IpAddr>) -> io::Result<Self> {
        // Answers are small and waited for.
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(PROBE_AFTER)
            .with_interval(PROBE_INTERVAL)
            .with_retries(PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self { socket: Socket::new(stream), source })
    }

    /// Where it connects from; none where that means nothing.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.source
    }
}

impl Deref for Client {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

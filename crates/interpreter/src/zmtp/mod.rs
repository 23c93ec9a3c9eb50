//! The side of a client of ZMTP 3.0, ZeroMQ's protocol on the wire (rfc.zeromq.org, 23): as much of it as a Jupyter
//! client needs. No security mechanism, no heartbeats, no reconnecting: the end of a connection is a fact about the
//! kernel that its owner has to hear.

mod connection;
mod frames;

pub use connection::Endpoint;
pub(crate) use connection::{SocketType, ZmtpConnection};

/// The longest message that is taken, in bytes. A longer one is not a kernel's.
const MAX_MESSAGE: usize = 512 << 20;

/// What goes wrong on a connection.
#[derive(Debug, thiserror::Error)]
pub enum ZmtpError {
    /// The system says no, or the other side has closed.
    #[error("failed to {doing} {endpoint}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With whom.
        endpoint: Endpoint,
        /// Why not.
        source: std::io::Error,
    },
    /// The other side does not speak ZMTP 3, or not as it should.
    #[error("{endpoint} breaks the protocol: {what}")]
    Protocol {
        /// Who.
        endpoint: Endpoint,
        /// What it did.
        what: &'static str,
    },
}

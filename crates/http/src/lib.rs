//! What the server's and the executor's HTTP share: connections whose end can be watched, and bodies of requests
//! that nobody reads to their end.

mod inbound;
mod socket;

pub use inbound::{Discard, Inbound, Unread};
pub use socket::{Socket, SocketStream};

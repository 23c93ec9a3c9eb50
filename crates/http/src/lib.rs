//! What the server's, the gateway's and the executor's HTTP share: taking connections within bounds, heads of bounded
//! size, connections whose end can be watched, and bodies of requests that nobody reads to their end.

mod accept;
mod heads;
mod inbound;
mod socket;
mod strangers;

pub use accept::{Accepted, Listener, Quota, QuotaSlot, accept};
pub use heads::{HeadLimited, HeadLimits, Requests, UnderWay};
pub use inbound::{Discard, Inbound, Unread};
pub use socket::{Socket, SocketStream};
pub use strangers::{Admission, StrangerLimits, Strangers, TrustedAddresses};

/// Headers of one message: of a client, a service, or on the way between. The metadata of an upload comes in
/// headers, up to 4096 bytes of it, as some 400 of them (executor 6.5).
pub const MAX_HEADERS: usize = 512;

//! The server: REST API, sandbox proxy, and what wires them to the scheduler.

pub mod api;
pub mod proxy;

//! The HTTP API on port 49999 (code-interpreter 3).

mod body;
mod routes;
mod server;

pub use server::{listen, serve};

//! Wire forms: what goes between clients, server and executor, and nothing that acts on it.
//!
//! - [`boundary`] is what user code may not do, for the two parts that see to it.
//! - [`budget`] is the time limits that several processes share.
//! - [`control`] is ours: the server's signed calls to `init` (design 6.1 (8)).
//! - [`daemon`] is the part of the in-sandbox API that only the server uses.
//! - [`rest`] is the REST API's bodies.
//! - [`sandbox_host`] is the form of names under which ports of sandboxes are reached.
//! - [`upload`] is which files an upload in parts is for.
//! - `rpc`, `connect` and `envelope` (feature `rpc`) are the in-sandbox API that clients use: messages and protocol.
#![deny(missing_docs)]

pub mod boundary;
pub mod budget;
#[cfg(feature = "rpc")]
pub mod connect;
pub mod control;
pub mod daemon;
#[cfg(feature = "rpc")]
pub mod envelope;
pub mod rest;
#[cfg(feature = "rpc")]
pub mod rpc;
pub mod sandbox_host;
pub mod upload;

/// The executor version reported everywhere (control-plane 4.5): the behaviour we implement.
pub const ENVD_VERSION: &str = "0.6.13";

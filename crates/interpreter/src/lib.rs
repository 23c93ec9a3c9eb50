//! The code interpreter of a sandbox: kernels that keep their state, behind the HTTP API on port 49999 that the
//! code-interpreter packages talk to (contract/code-interpreter.md).
//!
//! It speaks the Jupyter kernel protocol to the kernels itself; there is no Jupyter server. One thread runs everything.

mod claim;
mod context;
mod http;
mod kernel;
mod language;
mod result;
mod tasks;
mod time_text;
mod workspace;
mod zmtp;

pub use claim::{DaemonClaim, read as read_claims};
pub use context::{ContextError, ContextInfo, ContextSettings, Contexts};
pub use http::{listen, serve};
pub use kernel::{
    InterruptMode, KernelEnd, KernelError, KernelSettings, KernelSpec, KernelSpecs,
    KernelTransport, SpecError, SpecMetadata,
};
pub use zmtp::{Endpoint, ZmtpError};

/// Writes one line about something that went on to the sandbox's log.
macro_rules! log {
    ($($part:tt)*) => { eprintln!("sandyard-interpreter: {}", format_args!($($part)*)) };
}
use log;

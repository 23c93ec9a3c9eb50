//! Contexts: kernels with an identity that outlives them (code-interpreter 3, 5).

mod driver;
mod execution;
mod output;
mod table;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

pub use table::{ContextSettings, Contexts};

use crate::kernel::{KernelError, SpecError};

/// Requests that wait in one context before those after them wait for a place.
const QUEUE: usize = 64;

/// What goes wrong with contexts.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// There is none of this id.
    #[error("Context {0} not found")]
    NotFound(String),
    /// There was one until the interpreter ended.
    #[error(
        "Context {0} not found: the interpreter was restarted, and its contexts with all variables are lost"
    )]
    Lost(String),
    /// Its language cannot be had.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its kernel cannot be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Its working directory is none.
    #[error("failed to enter the working directory '{0}': it is no directory")]
    Directory(String),
    /// There are too many.
    #[error(
        "there are {0} contexts, which is the limit; remove one, or set SANDYARD_MAX_CONTEXTS in the template's environment"
    )]
    TooMany(usize),
    /// It was removed meanwhile.
    #[error("Context {0} not found: it was removed meanwhile")]
    Removed(String),
}

/// A context as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContextInfo {
    /// Names it for good.
    pub id: String,
    /// Its language, normalised.
    pub language: String,
    /// The working directory that it began with.
    pub cwd: String,
}

/// A request to execute code.
#[derive(Debug)]
pub(crate) struct ExecuteRequest {
    pub(crate) code: String,
    /// Variables for this execution only.
    pub(crate) env: BTreeMap<String, String>,
    /// Where the lines go. The client has left when its other end is dropped.
    pub(crate) lines: mpsc::Sender<Bytes>,
}

/// A command to a context.
#[derive(Debug)]
pub(crate) enum ContextCommand {
    /// Begin anew with a new kernel.
    Restart(oneshot::Sender<Result<(), KernelError>>),
    /// End.
    Remove(oneshot::Sender<Result<(), KernelError>>),
}

/// One context, as the table holds it. Its kernel belongs to its task.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) id: String,
    pub(crate) language: String,
    /// Given at creation; a default context has none of its own.
    pub(crate) cwd: Option<String>,
    pub(crate) requests: mpsc::Sender<ExecuteRequest>,
    commands: mpsc::Sender<ContextCommand>,
}

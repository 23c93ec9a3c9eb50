//! What is written to a process: its standard input, or the keyboard of its terminal (executor 4.8).

use std::io;
use std::sync::{Arc, Mutex};

use sandyard_contract::rpc::process::Pty;
use sandyard_contract::rpc::process::process_input::Input as Data;
use tokio::sync::watch;

use super::super::tasks::lock;
use super::descriptor::AsyncDescriptor;
use super::terminal;

/// Writes to one process, in the order they were asked for.
pub(super) struct InputWriter {
    target: Mutex<InputTarget>,
    turn: tokio::sync::Mutex<()>,
    closed: watch::Sender<bool>,
}

/// Where input goes.
pub(super) enum InputTarget {
    /// It was never there, or is closed.
    Nowhere,
    Pipe(Arc<AsyncDescriptor>),
    Terminal(Arc<AsyncDescriptor>),
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    #[error("stdin is not open: the process was started without it, or it was closed")]
    NotOpen,
    #[error("the process has a terminal: send 'pty' instead of 'stdin'")]
    IsTerminal,
    #[error("the process has no terminal")]
    NoTerminal,
    #[error("failed to write to the process: {0}")]
    Write(#[source] io::Error),
    #[error("failed to resize the terminal: {0}")]
    Resize(#[source] io::Error),
}

impl InputWriter {
    pub(super) fn new(target: InputTarget) -> Self {
        Self {
            target: Mutex::new(target),
            turn: tokio::sync::Mutex::default(),
            closed: watch::Sender::new(false),
        }
    }

    /// Writes all of it, as fast as the process reads.
    pub(super) async fn write(&self, data: &Data) -> Result<(), InputError> {
        let (descriptor, bytes) = match (&*lock(&self.target), data) {
            (InputTarget::Pipe(pipe), Data::Stdin(bytes)) => (Arc::clone(pipe), bytes),
            (InputTarget::Terminal(terminal), Data::Pty(bytes)) => (Arc::clone(terminal), bytes),
            (InputTarget::Terminal(_), Data::Stdin(_)) => return Err(InputError::IsTerminal),
            (InputTarget::Nowhere, Data::Stdin(_)) => return Err(InputError::NotOpen),
            (InputTarget::Nowhere | InputTarget::Pipe(_), Data::Pty(_)) => {
                return Err(InputError::NoTerminal);
            }
        };
        let mut closed = self.closed.subscribe();
        let _turn = self.turn.lock().await;
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(InputError::NotOpen),
            written = descriptor.write_all(bytes) => written.map_err(InputError::Write),
        }
    }

    /// Closes standard input; a write that waits for the process ends. Again, or without a pipe: nothing
    /// happens. A terminal has no end to close.
    pub(super) fn close_stdin(&self) -> Result<(), InputError> {
        if matches!(*lock(&self.target), InputTarget::Terminal(_)) {
            return Err(InputError::IsTerminal);
        }
        self.close();
        Ok(())
    }

    /// Closes whatever there is, since the process is over.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
        *lock(&self.target) = InputTarget::Nowhere;
    }

    /// Sets the size of the process's terminal.
    pub(super) fn resize(&self, wanted: &Pty) -> Result<(), InputError> {
        match &*lock(&self.target) {
            InputTarget::Terminal(terminal) => {
                terminal::resize(terminal, wanted).map_err(InputError::Resize)
            }
            InputTarget::Nowhere | InputTarget::Pipe(_) => Err(InputError::NoTerminal),
        }
    }
}

//! A process's standard input (executor 4.8).

use std::io;

use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, watch};

/// Writes to one process, in the order they were asked for.
pub(super) struct Input {
    /// `None` if it was never a pipe, or is closed.
    pipe: Mutex<Option<pipe::Sender>>,
    closed: watch::Sender<bool>,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    #[error("stdin is not open: the process was started without it, or it was closed")]
    NotOpen,
    #[error("failed to write to stdin: {0}")]
    Write(#[from] io::Error),
}

impl Input {
    pub(super) fn new(pipe: Option<pipe::Sender>) -> Self {
        Self { pipe: Mutex::new(pipe), closed: watch::Sender::new(false) }
    }

    /// Writes all of it, as fast as the process reads.
    pub(super) async fn write(&self, bytes: &[u8]) -> Result<(), InputError> {
        let mut closed = self.closed.subscribe();
        let mut pipe = self.pipe.lock().await;
        let pipe = pipe.as_mut().ok_or(InputError::NotOpen)?;
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(InputError::NotOpen),
            written = pipe.write_all(bytes) => Ok(written?),
        }
    }

    /// Closes it; a write that waits for the process ends. Again, or without a pipe: nothing happens.
    pub(super) async fn close(&self) {
        self.closed.send_replace(true);
        drop(self.pipe.lock().await.take());
    }
}

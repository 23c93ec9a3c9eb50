//! The lines of one execution (code-interpreter 4), on their way to the client.

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::sync::mpsc;

/// What may wait for a client that does not read, in bytes. Beyond that the execution is given up: a kernel throws
/// away what is not taken from it, the news of its end included.
pub(super) const WAITING_LIMIT: usize = 64 << 20;

/// A line of the stream but for results, which are written as they come.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Line<'a> {
    NumberOfExecutions { execution_count: i64 },
    Stdout { text: &'a str, timestamp: &'a str },
    Stderr { text: &'a str, timestamp: &'a str },
    Error { name: &'a str, value: &'a str, traceback: &'a str },
    Keepalive,
    EndOfExecution,
}

/// Where lines go.
pub(super) struct Output {
    client: mpsc::Sender<Bytes>,
    /// A place for what is left at the end, so that nobody waits there for a client that does not read.
    last: Option<mpsc::OwnedPermit<Bytes>>,
    waiting: BytesMut,
}

impl Output {
    /// Lines for the other end of `client`, which has at least two places.
    pub(super) fn new(client: mpsc::Sender<Bytes>) -> Self {
        let last = client.clone().try_reserve_owned().ok();
        Self { client, last, waiting: BytesMut::new() }
    }

    /// Adds the last line and hands on all that waits.
    pub(super) fn end(mut self) {
        self.put(&Line::EndOfExecution);
        // Without a place the client has left.
        if let Some(place) = self.last {
            place.send(self.waiting.freeze());
        }
    }

    /// Adds a line.
    pub(super) fn put(&mut self, line: &Line<'_>) {
        match serde_json::to_vec(line) {
            Ok(json) => {
                self.waiting.extend_from_slice(&json);
                self.waiting.extend_from_slice(b"\n");
            }
            // Texts and numbers can always be written.
            Err(error) => crate::log!("failed to write a line: {error}"),
        }
    }

    /// Adds a line that is written already.
    pub(super) fn put_written(&mut self, line: &[u8]) {
        self.waiting.extend_from_slice(line);
    }

    /// Bytes that the client has not taken.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Forgets what waits.
    pub(super) fn discard(&mut self) {
        self.waiting = BytesMut::new();
    }

    /// Whether the client has left.
    pub(super) fn is_abandoned(&self) -> bool {
        self.client.is_closed()
    }

    /// Hands on what waits as soon as the client has room. Returns then, or when the client has left. May be dropped at
    /// any time.
    pub(super) async fn client(&mut self) -> Client {
        if self.waiting.is_empty() {
            self.client.closed().await;
            return Client::Left;
        }
        match self.client.reserve().await {
            Ok(place) => {
                place.send(self.waiting.split().freeze());
                Client::Took
            }
            Err(_) => Client::Left,
        }
    }
}

/// What the client did.
pub(super) enum Client {
    Took,
    Left,
}

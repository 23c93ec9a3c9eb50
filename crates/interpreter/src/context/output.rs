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
pub(super) struct LineOutput {
    client: mpsc::Sender<Bytes>,
    /// A place for what is left at the end, so that nobody waits there for a client that does not read.
    last: Option<mpsc::OwnedPermit<Bytes>>,
    waiting: BytesMut,
}

impl LineOutput {
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
                self.put_written(&json);
                self.waiting.extend_from_slice(b"\n");
            }
            // Texts and numbers can always be written.
            Err(error) => crate::log!("failed to write a line: {error}"),
        }
    }

    /// Adds what is written already.
    ///
    /// The Python client takes some characters beyond ASCII for ends of lines too. In JSON they are only in texts, where
    /// they can be escaped.
    pub(super) fn put_written(&mut self, json: &[u8]) {
        let mut rest = json;
        while let Some(at) = memchr::memchr2(0xc2, 0xe2, rest) {
            let (before, from) = rest.split_at(at);
            self.waiting.extend_from_slice(before);
            let (length, text): (usize, &[u8]) = match from {
                [0xc2, 0x85, ..] => (2, b"\\u0085"),
                [0xe2, 0x80, 0xa8, ..] => (3, b"\\u2028"),
                [0xe2, 0x80, 0xa9, ..] => (3, b"\\u2029"),
                _ => (1, &from[..1]),
            };
            self.waiting.extend_from_slice(text);
            rest = &from[length..];
        }
        self.waiting.extend_from_slice(rest);
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
    pub(super) async fn client(&mut self) -> SendOutcome {
        if self.waiting.is_empty() {
            self.client.closed().await;
            return SendOutcome::ClientLeft;
        }
        match self.client.reserve().await {
            Ok(place) => {
                place.send(self.waiting.split().freeze());
                SendOutcome::Taken
            }
            Err(_) => SendOutcome::ClientLeft,
        }
    }
}

/// What became of the lines that were handed to the client.
pub(super) enum SendOutcome {
    /// The client has taken what waited.
    Taken,
    ClientLeft,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_sees_the_end_of_a_line_where_there_is_none() {
        let (client, _) = mpsc::channel(2);
        let mut output = LineOutput::new(client);
        let text = "a\u{2028}b\u{2029}c\u{85}d\n\r\u{b}\u{c}\u{1c}\u{1e}é…✓";
        output.put(&Line::Stdout { text, timestamp: "" });
        let line = String::from_utf8(output.waiting.to_vec()).expect("UTF-8");
        assert_eq!(
            line.find(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')),
            Some(line.len() - 1)
        );
        let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(read["text"], text);
    }
}

//! The last lines a program printed.

use std::collections::VecDeque;

/// Lines kept.
const LINES: usize = 20;

/// Bytes kept of a line.
const LINE_BYTES: usize = 400;

/// Collects output and keeps its end. A line with the secret in it is never kept.
#[derive(Debug)]
pub(super) struct Tail {
    lines: VecDeque<String>,
    open: Vec<u8>,
    secret: String,
}

impl Tail {
    pub(super) fn new(secret: &str) -> Self {
        Self { lines: VecDeque::new(), open: Vec::new(), secret: secret.to_owned() }
    }

    /// Takes output as it comes.
    pub(super) fn feed(&mut self, output: &[u8]) {
        for byte in output {
            if *byte == b'\n' {
                self.close_line();
            } else if self.open.len() < LINE_BYTES + self.secret.len() {
                // Room for a secret that begins at the last kept byte, or it would go unnoticed.
                self.open.push(*byte);
            }
        }
    }

    fn close_line(&mut self) {
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.open)).into_owned();
        self.push(&text);
    }

    /// Takes a whole line.
    pub(super) fn push(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        let kept = if !self.secret.is_empty() && line.contains(&self.secret) {
            "(a line with the secret was left out)".to_owned()
        } else {
            line.chars().take(LINE_BYTES).collect()
        };
        self.lines.push_back(kept);
    }

    /// The lines so far, oldest first, with an unfinished one at the end.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut all = Self {
            lines: self.lines.clone(),
            open: self.open.clone(),
            secret: self.secret.clone(),
        };
        all.close_line();
        all.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_stay() {
        let mut tail = Tail::new("hush");
        for number in 0..30 {
            tail.feed(format!("line {number}\n\n").as_bytes());
        }
        tail.feed(b"unfinished");
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[0], "line 11");
        assert_eq!(lines[LINES - 1], "unfinished");
    }

    #[test]
    fn a_line_with_the_secret_is_left_out() {
        let mut tail = Tail::new("hush");
        tail.feed(b"key hu");
        tail.feed(b"sh!\n");
        tail.feed(format!("{}hush\n", "x".repeat(LINE_BYTES)).as_bytes());
        assert!(tail.lines().iter().all(|line| !line.contains("hush") && line.len() < LINE_BYTES));
    }
}

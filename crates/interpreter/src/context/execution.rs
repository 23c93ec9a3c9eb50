//! One execution: from a request to its last line (code-interpreter 4, 5).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use super::driver::{ContextDriver, next_event};
use super::output::{Line, LineOutput, SendOutcome, WAITING_LIMIT};
use super::{ContextCommand, ExecuteRequest};
use crate::kernel::{KernelEvent, KernelMessage};
use crate::language::Dialect;
use sandyard_types::error_chain;

/// A client hears something at least so often.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// A kernel that goes on after an interrupt is interrupted again after the first of these; the time doubles up to the
/// second. It may have been asked before it began, when it does not listen to interrupts.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(100);
const INTERRUPT_AGAIN_MOST: Duration = Duration::from_secs(1);
/// For how long cancelled work may keep others waiting before its kernel is given up.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// The answer to a request to execute.
#[derive(Debug, Deserialize)]
pub(super) struct ExecuteReply {
    pub(super) status: String,
    #[serde(default)]
    pub(super) ename: String,
    #[serde(default)]
    pub(super) evalue: String,
    #[serde(default)]
    traceback: Vec<String>,
}

impl ExecuteReply {
    /// Reads an answer; none if it is not one to a request to execute.
    pub(super) fn of(message: &KernelMessage) -> Option<Self> {
        if message.kind != "execute_reply" {
            return None;
        }
        readable(message, message.content())
    }
}

/// Whether the kernel is done with the request that the message belongs to.
pub(super) fn is_idle(message: &KernelMessage) -> bool {
    #[derive(Deserialize)]
    struct Status {
        execution_state: String,
    }
    message.kind == "status"
        && readable(message, message.content::<Status>())
            .is_some_and(|s| s.execution_state == "idle")
}

fn readable<T, E: std::fmt::Display>(message: &KernelMessage, read: Result<T, E>) -> Option<T> {
    read.inspect_err(|error| crate::log!("a '{}' of a kernel: {error}", message.kind)).ok()
}

/// How an execution ended.
enum Ending {
    /// By itself.
    Done,
    /// Its kernel has ended, or has to be given up.
    KernelGone,
    /// By something that the context was told.
    Told(ContextCommand),
}

/// How far it is.
#[derive(Default)]
struct Progress {
    accepted: bool,
    idle: bool,
    reply: Option<ExecuteReply>,
    /// Whether an error was told.
    failed: bool,
    /// What the kernel has counted and users have not.
    uncounted: i64,
    /// Whether the ends of lines are told by themselves, as the original's kernel for Java does (code-interpreter 6).
    splits_lines: bool,
}

/// An execution that is to end early.
struct Cancelled {
    since: Instant,
    again: Instant,
    pause: Duration,
}

impl ContextDriver {
    /// Executes a request; returns what the context was told meanwhile and has to do now.
    pub(super) async fn execute(&mut self, request: ExecuteRequest) -> Option<ContextCommand> {
        let ExecuteRequest { code, env, lines } = request;
        let mut output = LineOutput::new(lines);
        if output.is_abandoned() {
            // It waited for its turn, and its client did not.
            return None;
        }
        let ending = match self.begin(&code, &env).await {
            Ok(id) => self.follow(&id, &mut output).await,
            Err(error) => {
                put_error(&mut output, "ContextRestarting", &error);
                Ending::KernelGone
            }
        };
        output.end();
        match ending {
            Ending::Told(command) => return Some(command),
            Ending::KernelGone => {
                if let Err(error) = self.restart().await {
                    crate::log!("context {}: {error}", self.id);
                }
            }
            // The client reads the end while the variables go.
            Ending::Done => {
                if let Err(error) = self.undo(&env).await {
                    crate::log!("context {}: failed to undo variables: {error}", self.id);
                }
            }
        }
        None
    }

    /// Sends a request to the kernel; returns its id.
    async fn begin(
        &mut self,
        code: &str,
        env: &BTreeMap<String, String>,
    ) -> Result<String, String> {
        if let Some(reason) = self.unreported.take() {
            return Err(reason);
        }
        if self.kernel.is_none() {
            self.restart().await.map_err(|error| error_chain(&error))?;
        }
        self.prepare(env).await.map_err(|error| error_chain(&error))?;
        let Some(kernel) = self.kernel.as_mut() else {
            return Err("there is no kernel".to_owned());
        };
        let request = kernel.execute_request(code, false).map_err(|error| error_chain(&error))?;
        kernel.send(&request).await.map_err(|error| error_chain(&error))?;
        Ok(request.id)
    }

    /// Turns what the kernel says into lines until it is done.
    async fn follow(&mut self, id: &str, output: &mut LineOutput) -> Ending {
        let splits_lines = self.dialect == Some(Dialect::Java);
        let mut progress =
            Progress { uncounted: self.uncounted, splits_lines, ..Progress::default() };
        let mut cancelled: Option<Cancelled> = None;
        let mut overflow = false;
        let mut keepalive = Instant::now() + KEEPALIVE;
        loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => {
                    let Some(command) = command else { return Ending::Done };
                    let what = match command {
                        ContextCommand::Restart(_) => "the context was restarted",
                        ContextCommand::Remove(_) => "the context was removed",
                    };
                    put_error(output, "UnexpectedEndOfExecution", what);
                    return Ending::Told(command);
                }
                sent = output.client(), if cancelled.is_none() => {
                    if let SendOutcome::ClientLeft = sent {
                        output.discard();
                        cancelled = Some(self.cancel().await);
                    }
                }
                event = next_event(self.kernel.as_mut()) => {
                    match event {
                        KernelEvent::Published(message) if message.parent.as_deref() == Some(id) => {
                            let before = output.waiting();
                            progress.published(&message, output);
                            if output.waiting() != before {
                                keepalive = Instant::now() + KEEPALIVE;
                            }
                        }
                        KernelEvent::Replied(message) if message.parent.as_deref() == Some(id) => {
                            progress.reply = ExecuteReply::of(&message);
                        }
                        // Of something before, or of nobody: a thread of the user's.
                        KernelEvent::Published(_) | KernelEvent::Replied(_) => {}
                        KernelEvent::Ended(end) => {
                            let value = format!(
                                "the kernel has ended ({end}) and is restarted; all variables are lost");
                            put_error(output, "ContextRestarting", &value);
                            return Ending::KernelGone;
                        }
                        KernelEvent::Lost(error) => {
                            put_error(output, "WebSocketError", &error_chain(&error));
                            return Ending::KernelGone;
                        }
                    }
                    if cancelled.is_some() {
                        output.discard();
                    } else if output.waiting() > WAITING_LIMIT && !overflow {
                        overflow = true;
                        cancelled = Some(self.cancel().await);
                    }
                    if progress.is_done() {
                        if overflow {
                            let value = format!(
                                "the client has not read {} MiB of output; the execution was interrupted",
                                WAITING_LIMIT >> 20);
                            put_error(output, "OutputLimitExceeded", &value);
                        } else {
                            progress.finish(output);
                        }
                        return Ending::Done;
                    }
                }
                () = sleep_until(keepalive), if cancelled.is_none() => {
                    output.put(&Line::Keepalive);
                    keepalive = Instant::now() + KEEPALIVE;
                }
                () = interrupt_again(cancelled.as_ref()) => {
                    let Some(cancel) = &mut cancelled else { continue };
                    if cancel.since.elapsed() > CANCEL_LIMIT && !self.requests.is_empty() {
                        let reason = format!(
                            "work whose client had left did not stop within {CANCEL_LIMIT:?}; the context was \
                             restarted, and all variables are lost");
                        crate::log!("context {}: {reason}", self.id);
                        self.unreported = Some(reason);
                        return Ending::KernelGone;
                    }
                    cancel.pause = (cancel.pause * 2).min(INTERRUPT_AGAIN_MOST);
                    cancel.again = Instant::now() + cancel.pause;
                    self.interrupt().await;
                }
            }
        }
    }

    async fn cancel(&mut self) -> Cancelled {
        let since = Instant::now();
        self.interrupt().await;
        Cancelled { since, again: since + INTERRUPT_AGAIN, pause: INTERRUPT_AGAIN }
    }

    async fn interrupt(&mut self) {
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.interrupt().await
        {
            crate::log!("context {}: {error}", self.id);
        }
    }
}

/// Returns when cancelled work has to be interrupted once more.
async fn interrupt_again(cancelled: Option<&Cancelled>) {
    match cancelled {
        Some(cancelled) => sleep_until(cancelled.again).await,
        None => std::future::pending().await,
    }
}

impl Progress {
    /// Turns a message into its line.
    fn published(&mut self, message: &KernelMessage, output: &mut LineOutput) {
        match message.kind.as_str() {
            "execute_input" => {
                #[derive(Deserialize)]
                struct ExecuteInput {
                    execution_count: i64,
                }
                if let Some(input) = readable(message, message.content::<ExecuteInput>())
                    && !std::mem::replace(&mut self.accepted, true)
                {
                    output.put(&Line::NumberOfExecutions {
                        execution_count: input.execution_count - self.uncounted,
                    });
                }
            }
            "stream" => put_stream(message, self.splits_lines, output),
            "execute_result" => put_result(message, true, output),
            "display_data" => put_result(message, false, output),
            "error" => {
                #[derive(Deserialize)]
                struct ErrorContent {
                    ename: String,
                    evalue: String,
                    traceback: Vec<String>,
                }
                if let Some(failure) = readable(message, message.content::<ErrorContent>())
                    && !std::mem::replace(&mut self.failed, true)
                {
                    output.put(&Line::Error {
                        name: &failure.ename,
                        value: &failure.evalue,
                        traceback: &failure.traceback.concat(),
                    });
                }
            }
            // Changed displays, widgets, cleared output: nothing that the stream has a line for.
            _ => self.idle |= is_idle(message),
        }
    }

    /// Done is idle after the input was accepted; what was not accepted has an answer that says why.
    fn is_done(&self) -> bool {
        self.idle && (self.accepted || self.reply.is_some())
    }

    /// What is left to be told at the end.
    fn finish(&self, output: &mut LineOutput) {
        let Some(reply) = self.reply.as_ref().filter(|_| !self.failed) else { return };
        match reply.status.as_str() {
            "error" => output.put(&Line::Error {
                name: &reply.ename,
                value: &reply.evalue,
                traceback: &reply.traceback.concat(),
            }),
            "abort" | "aborted" => {
                put_error(output, "ExecutionAborted", "the kernel did not execute the code");
            }
            _ => {}
        }
    }
}

fn put_stream(message: &KernelMessage, splits_lines: bool, output: &mut LineOutput) {
    #[derive(Deserialize)]
    struct StreamContent {
        name: String,
        text: String,
    }
    let Some(stream) = readable(message, message.content::<StreamContent>()) else { return };
    let now;
    let timestamp = match &message.date {
        Some(date) => date,
        None => {
            now = crate::time_text::now();
            &now
        }
    };
    let mut put = |text: &str| {
        output.put(&match stream.name.as_str() {
            "stderr" => Line::Stderr { text, timestamp },
            _ => Line::Stdout { text, timestamp },
        });
    };
    if !splits_lines {
        return put(&stream.text);
    }
    for line in stream.text.split_inclusive('\n') {
        let text = line.strip_suffix('\n').unwrap_or(line);
        for part in [text, &line[text.len()..]] {
            if !part.is_empty() {
                put(part);
            }
        }
    }
}

fn put_result(message: &KernelMessage, is_main: bool, output: &mut LineOutput) {
    let Some(data) = readable(message, message.data()) else { return };
    let mut line = Vec::new();
    crate::result::write_line(&mut line, &data, is_main);
    output.put_written(&line);
}

fn put_error(output: &mut LineOutput, name: &str, value: &str) {
    output.put(&Line::Error { name, value, traceback: "" });
}

//! One execution: from a request to its last line (code-interpreter 4, 5).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use super::driver::{ContextDriver, next_event};
use super::output::{Line, LineOutput, SendOutcome, WAITING_LIMIT};
use super::{ContextCommand, ExecuteRequest};
use crate::kernel::{KernelError, KernelEvent, KernelMessage};
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
/// A kernel that is done with code sends its answer just before it says so, over another connection. One that does not
/// send it within this time has failed in a way that it does not tell.
const REPLY_LIMIT: Duration = Duration::from_secs(1);
/// What bash's kernel shows last when its shell has ended and it has started another.
const SHELL_RESTARTED: &str = "Restarting Bash";

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
    /// What standard output ended with.
    last_output: String,
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
        if let Some(reason) = self.unreported.take() {
            put_error(&mut output, "ContextRestarting", &reason);
            output.end();
            return None;
        }
        let ending = match self.begin(&code, &env).await {
            Ok(id) => self.follow(&id, &mut output).await,
            // The kernel refused it and goes on.
            Err(error @ KernelError::SetUp(_)) => {
                put_error(&mut output, "EnvironmentError", &error_chain(&error));
                Ending::Done
            }
            Err(error) => {
                put_error(&mut output, "ContextRestarting", &error_chain(&error));
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
    ) -> Result<String, KernelError> {
        if self.kernel.is_none() {
            self.restart().await?;
        }
        self.prepare(env).await?;
        // It was there, or was just started.
        let kernel = self.kernel.as_mut().ok_or(KernelError::Silent)?;
        let request = kernel.execute_request(code, false)?;
        kernel.send(&request).await?;
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
        let mut reply_by: Option<Instant> = None;
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
                sent = output.client(), if cancelled.is_none() || overflow => {
                    if let SendOutcome::ClientLeft = sent {
                        output.discard();
                        overflow = false;
                        if cancelled.is_none() {
                            cancelled = Some(self.cancel().await);
                        }
                    }
                }
                event = next_event(self.kernel.as_mut()) => {
                    let before = output.waiting();
                    match event {
                        KernelEvent::Published(message) if message.parent.as_deref() == Some(id) => {
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
                    } else if before > WAITING_LIMIT {
                        // One message may be larger than the limit.
                        overflow = true;
                        cancelled = Some(self.cancel().await);
                    }
                    // Of what was cancelled nobody waits for the answer.
                    let cancelled_ended = cancelled.is_some() && progress.idle && progress.accepted;
                    if progress.is_done() || cancelled_ended {
                        self.notice_restarted_shell(&progress);
                        if overflow {
                            put_overflow(output);
                        } else {
                            progress.finish(output);
                        }
                        return Ending::Done;
                    }
                    if progress.idle && reply_by.is_none() {
                        reply_by = Some(Instant::now() + REPLY_LIMIT);
                    }
                }
                () = sleep_until_some(reply_by) => {
                    let value = "the kernel gave no answer to this code; it may be unfinished, such as an open quote";
                    put_error(output, "NoReply", value);
                    return Ending::Done;
                }
                () = sleep_until(keepalive), if cancelled.is_none() || overflow => {
                    output.put(&Line::Keepalive);
                    keepalive = Instant::now() + KEEPALIVE;
                }
                () = sleep_until_some(cancelled.as_ref().map(|cancelled| cancelled.again)) => {
                    let Some(cancel) = &mut cancelled else { continue };
                    if cancel.since.elapsed() > CANCEL_LIMIT && !self.requests.is_empty() {
                        let reason = format!(
                            "work that was cancelled did not stop within {CANCEL_LIMIT:?}; the context was restarted, \
                             and all variables are lost");
                        crate::log!("context {}: {reason}", self.id);
                        if overflow {
                            put_overflow(output);
                        }
                        self.unreported = Some(reason);
                        return Ending::KernelGone;
                    }
                    cancel.pause = (cancel.pause * 2).min(INTERRUPT_AGAIN_MOST);
                    cancel.again = Instant::now() + cancel.pause;
                    // Bash's kernel waits for its shell's prompt after the first; a second one would end that wait, and
                    // every later cell would get the output of the one before.
                    if self.dialect != Some(Dialect::Bash) || !progress.accepted {
                        self.interrupt().await;
                    }
                }
            }
        }
    }

    /// A shell that was started anew has neither the variables nor the directory of the one before.
    fn notice_restarted_shell(&mut self, progress: &Progress) {
        if self.dialect == Some(Dialect::Bash)
            && progress.last_output.trim_end().ends_with(SHELL_RESTARTED)
        {
            self.globals = None;
            self.entered.clear();
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

/// Returns at an instant, and never without one.
async fn sleep_until_some(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
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
            "stream" => {
                if let Some(text) = put_stream(message, self.splits_lines, output) {
                    self.last_output = text;
                }
            }
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

    /// Done is idle after an answer, or after an error, which is as good as one.
    fn is_done(&self) -> bool {
        self.idle && (self.failed || self.reply.is_some())
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

/// Returns what was written.
fn put_stream(
    message: &KernelMessage,
    splits_lines: bool,
    output: &mut LineOutput,
) -> Option<String> {
    #[derive(Deserialize)]
    struct StreamContent {
        name: String,
        text: String,
    }
    let stream = readable(message, message.content::<StreamContent>())?;
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
        put(&stream.text);
        return Some(stream.text);
    }
    for line in stream.text.split_inclusive('\n') {
        let text = line.strip_suffix('\n').unwrap_or(line);
        for part in [text, &line[text.len()..]] {
            if !part.is_empty() {
                put(part);
            }
        }
    }
    Some(stream.text)
}

fn put_result(message: &KernelMessage, is_main: bool, output: &mut LineOutput) {
    let Some(data) = readable(message, message.data()) else { return };
    let mut line = Vec::new();
    crate::result::write_line(&mut line, &data, is_main);
    output.put_written(&line);
}

fn put_overflow(output: &mut LineOutput) {
    let limit = WAITING_LIMIT >> 20;
    let value =
        format!("the client has not read {limit} MiB of output; the execution was interrupted");
    put_error(output, "OutputLimitExceeded", &value);
}

pub(super) fn put_error(output: &mut LineOutput, name: &str, value: &str) {
    output.put(&Line::Error { name, value, traceback: "" });
}

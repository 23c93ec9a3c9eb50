//! A context's task: it owns the kernel and does one thing after the other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::execution::put_error;
use super::output::LineOutput;
use super::table::SharedContexts;
use super::{ContextCommand, ExecuteRequest};
use crate::kernel::{Kernel, KernelError, KernelEvent, KernelSpec};
use crate::language::{Dialect, EnvironmentChange};

/// For how long code of our own may run in a kernel.
const SILENT_LIMIT: Duration = Duration::from_secs(10);

/// Owner of a context's kernel.
pub(super) struct ContextDriver {
    pub(super) shared: Arc<SharedContexts>,
    pub(super) id: String,
    pub(super) spec: KernelSpec,
    pub(super) dialect: Option<Dialect>,
    /// `None` in a default context, which follows the workspace.
    pub(super) cwd: Option<PathBuf>,
    /// `None` after one that ended and could not be replaced.
    pub(super) kernel: Option<Kernel>,
    /// The directory that a default context's kernel was last put into.
    pub(super) entered: PathBuf,
    /// Global variables that were set in the present kernel.
    pub(super) globals: Option<BTreeMap<String, String>>,
    /// How many of our own executions the present kernel has counted: some count silent ones too.
    pub(super) uncounted: i64,
    /// Why the kernel ended or was given up though nobody asked for it, until a client has been told.
    pub(super) unreported: Option<String>,
    pub(super) requests: mpsc::Receiver<ExecuteRequest>,
    pub(super) commands: mpsc::Receiver<ContextCommand>,
}

impl ContextDriver {
    /// Works until it is told to end.
    pub(super) async fn run(mut self) {
        loop {
            let command = tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => Some(command),
                    // The table is gone, and everything with it.
                    None => return,
                },
                event = next_event(self.kernel.as_mut()) => {
                    self.while_idle(event).await;
                    None
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.execute(request).await,
                    None => return,
                },
            };
            match command {
                None => {}
                Some(ContextCommand::Restart(answer)) => {
                    let restarted = self.restart().await;
                    tell(answer, restarted);
                }
                Some(ContextCommand::Remove(answer)) => {
                    let killed = self.kill().await;
                    self.refuse_waiting();
                    return tell(answer, killed);
                }
            }
        }
    }

    /// Answers the requests that wait for their turn in a context that was removed.
    fn refuse_waiting(&mut self) {
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            let mut output = LineOutput::new(request.lines);
            put_error(&mut output, "UnexpectedEndOfExecution", "the context was removed");
            output.end();
        }
    }

    /// Something happened that nobody waits for: late output, or the kernel's end.
    async fn while_idle(&mut self, event: KernelEvent) {
        let reason = match event {
            KernelEvent::Published(_) | KernelEvent::Replied(_) => return,
            KernelEvent::Ended(end) => format!("the kernel has ended: {end}"),
            KernelEvent::Lost(error) => format!("the connection to the kernel is lost: {error}"),
        };
        crate::log!("context {}: {reason}; starting another one", self.id);
        self.unreported = Some(format!("{reason}; it was restarted, and all variables are lost"));
        if let Err(error) = self.restart().await {
            crate::log!("context {}: {error}", self.id);
        }
    }

    /// Kills the kernel, if there is one.
    async fn kill(&mut self) -> Result<(), KernelError> {
        self.globals = None;
        self.uncounted = 0;
        match self.kernel.take() {
            Some(kernel) => kernel.kill().await,
            None => Ok(()),
        }
    }

    /// A new kernel instead of the present one.
    pub(super) async fn restart(&mut self) -> Result<(), KernelError> {
        self.kill().await?;
        let cwd = self.cwd.clone().unwrap_or_else(|| self.shared.default_cwd());
        let kernel = Kernel::start(&self.spec, &self.shared.kernels, &cwd).await?;
        self.kernel = Some(kernel);
        self.entered = cwd;
        Ok(())
    }

    /// Brings the kernel into the state in which code is executed: the working directory of a default context, the
    /// global variables, those of the request (code-interpreter 5). Most often there is nothing to do.
    pub(super) async fn prepare(
        &mut self,
        env: &BTreeMap<String, String>,
    ) -> Result<(), KernelError> {
        let Some(dialect) = self.dialect else { return Ok(()) };
        let mut code = String::new();
        let cwd = self.shared.default_cwd();
        if self.cwd.is_none() && self.entered != cwd {
            code = dialect.change_directory(&cwd.to_string_lossy()) + "\n";
            self.entered = cwd;
        }
        let mut change = EnvironmentChange::new();
        // Cached for the context's life.
        let unset = if self.globals.is_none() { self.shared.globals() } else { None };
        if let Some(globals) = &unset {
            change
                .extend(globals.iter().map(|(name, value)| (name.as_str(), Some(value.as_str()))));
        }
        change.extend(env.iter().map(|(name, value)| (name.as_str(), Some(value.as_str()))));
        code.push_str(&dialect.change_environment(&change));
        self.silently(&code).await?;
        if unset.is_some() {
            self.globals = unset;
        }
        Ok(())
    }

    /// Undoes what [`ContextDriver::prepare`] did for one request.
    pub(super) async fn undo(&mut self, env: &BTreeMap<String, String>) -> Result<(), KernelError> {
        let Some(dialect) = self.dialect else { return Ok(()) };
        let globals = self.globals.as_ref();
        let change = env.keys().map(|name| {
            let global = globals.and_then(|globals| globals.get(name));
            (name.as_str(), global.map(String::as_str))
        });
        let code = dialect.change_environment(&change.collect());
        self.silently(&code).await
    }

    /// Executes code of our own, which is not counted and shows nothing.
    async fn silently(&mut self, code: &str) -> Result<(), KernelError> {
        let Some(kernel) = self.kernel.as_mut().filter(|_| !code.is_empty()) else { return Ok(()) };
        match timeout(SILENT_LIMIT, run_silently(kernel, code)).await {
            Ok(result) => {
                self.uncounted += i64::from(result?);
                Ok(())
            }
            Err(_) => {
                kernel.interrupt().await?;
                Err(KernelError::SetUpTimeout(SILENT_LIMIT))
            }
        }
    }
}

/// Returns whether the kernel has counted it.
async fn run_silently(kernel: &mut Kernel, code: &str) -> Result<bool, KernelError> {
    let request = kernel.execute_request(code, true)?;
    kernel.send(&request).await?;
    let (mut idle, mut counted) = (false, false);
    let mut result: Option<Result<(), KernelError>> = None;
    loop {
        if idle && let Some(result) = result.take() {
            return result.map(|()| counted);
        }
        match kernel.event().await {
            KernelEvent::Published(m) if m.parent.as_ref() == Some(&request.id) => {
                counted |= m.kind == "execute_input";
                idle |= super::execution::is_idle(&m);
            }
            KernelEvent::Replied(m) if m.parent.as_ref() == Some(&request.id) => {
                result = Some(match super::execution::ExecuteReply::of(&m) {
                    Some(reply) if reply.status == "ok" => Ok(()),
                    Some(reply) => {
                        Err(KernelError::SetUp(format!("{}: {}", reply.ename, reply.evalue)))
                    }
                    None => {
                        Err(KernelError::SetUp("the kernel's answer cannot be read".to_owned()))
                    }
                });
            }
            KernelEvent::Published(_) | KernelEvent::Replied(_) => {}
            KernelEvent::Ended(end) => return Err(KernelError::Ended(end)),
            KernelEvent::Lost(error) => return Err(error.into()),
        }
    }
}

/// The next thing that the kernel says; never, if there is none.
pub(super) async fn next_event(kernel: Option<&mut Kernel>) -> KernelEvent {
    match kernel {
        Some(kernel) => kernel.event().await,
        None => std::future::pending().await,
    }
}

fn tell(answer: oneshot::Sender<Result<(), KernelError>>, result: Result<(), KernelError>) {
    if let Err(Err(error)) = answer.send(result) {
        // Its client has left.
        crate::log!("{error}");
    }
}

//! A running kernel: its process and the three connections to it.

mod fork;
mod message;
mod process;
mod repair;
mod spec;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use message::{MessageError, Outgoing, Session};
use process::{Endpoints, KernelProcess};

pub(crate) use message::KernelMessage;
pub use spec::{InterruptMode, KernelSpec, KernelSpecs, KernelTransport, SpecError, SpecMetadata};

use crate::zmtp::{Endpoint, SocketType, ZmtpConnection, ZmtpError};

/// For how long a kernel may start. R and Java take seconds on a slow machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether a kernel listens already.
const LISTEN_PAUSE: Duration = Duration::from_millis(5);
/// After so long without an answer a kernel is asked once more: one that has not seen yet that somebody listens to
/// what it publishes says nothing to it.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What goes wrong with a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be started.
    #[error("failed to start the kernel '{program}'")]
    Start {
        /// Its program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// It has ended.
    #[error("the kernel has ended: {0}")]
    Ended(KernelEnd),
    /// It does not say anything.
    #[error("the kernel did not become ready within {START_LIMIT:?}")]
    Silent,
    /// It cannot be talked to.
    #[error("the connection to the kernel is lost")]
    Connection(#[from] ZmtpError),
    /// It cannot be told something.
    #[error("failed to write a request to the kernel")]
    Request(#[from] serde_json::Error),
    /// The system does not let it be waited for or signalled.
    #[error("failed to {doing} the kernel")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No key for its messages could be made.
    #[error("failed to make a key for the kernel's messages")]
    Key,
    /// What was to be set up in it failed there.
    #[error("failed to set the directory or the variables: {0}")]
    SetUp(String),
    /// What was to be set up in it did not end.
    #[error("the kernel did not set its directory and variables within {0:?}")]
    SetUpTimeout(Duration),
}

/// How a kernel's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelEnd {
    /// As the system tells it.
    pub status: ExitStatus,
    /// Whether the system killed something here meanwhile because memory ran out.
    pub out_of_memory: bool,
}

impl std::fmt::Display for KernelEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.status)?;
        if self.out_of_memory {
            f.write_str(", because the sandbox's memory ran out")?;
        }
        Ok(())
    }
}

/// Something a kernel says.
#[derive(Debug)]
pub(crate) enum KernelEvent {
    /// Published to everybody.
    Published(KernelMessage),
    /// The answer to a request.
    Replied(KernelMessage),
    /// Its process has ended.
    Ended(KernelEnd),
    /// Nothing comes from it any more, though it may still run.
    Lost(ZmtpError),
}

/// Where kernels are started.
#[derive(Clone, Debug)]
pub struct KernelSettings {
    /// Kernels keep their sockets in folders below it.
    pub run_folder: PathBuf,
    /// Whether what they print outside of executions is thrown away. What forked ones print there goes to the log.
    pub quiet: bool,
}

/// A kernel that answers.
pub(crate) struct Kernel {
    process: KernelProcess,
    session: Session,
    shell: ZmtpConnection,
    control: ZmtpConnection,
    iopub: ZmtpConnection,
    interrupt_mode: InterruptMode,
    oom_kills: Option<u64>,
}

impl Kernel {
    /// Starts a kernel; returns when it answers and is heard. If this is dropped the kernel is killed.
    ///
    /// # Errors
    /// [`KernelError`]
    pub(crate) async fn start(
        spec: &KernelSpec,
        settings: &KernelSettings,
        cwd: &Path,
    ) -> Result<Self, KernelError> {
        let (session, key) = match spec.metadata.sandyard_transport {
            KernelTransport::Tcp => Session::signed().map_err(|_| KernelError::Key)?,
            KernelTransport::Ipc => (Session::unsigned(), String::new()),
        };
        let oom_kills = oom_kills();
        let folder = settings.run_folder.join(&session.id()[..16]);
        let (mut process, endpoints) = KernelProcess::start(spec, &key, folder, cwd, settings)
            .await
            .map_err(|source| KernelError::Start {
                program: spec.argv.first().cloned().unwrap_or_default(),
                source,
            })?;
        let limit = Instant::now() + START_LIMIT;
        let Endpoints { shell, control, iopub } = endpoints;
        let opened = async {
            let id = session.id();
            let iopub = open(iopub, SocketType::Subscriber, id).await?;
            let shell = open(shell, SocketType::Dealer, id).await?;
            let control = open(control, SocketType::Dealer, id).await?;
            Ok::<_, ZmtpError>((iopub, shell, control))
        };
        let opened = tokio::select! {
            opened = timeout_at(limit, opened) => opened,
            ended = process.ended() => return Err(end_of(ended, oom_kills)),
        };
        let (iopub, shell, control) = opened.map_err(|_| KernelError::Silent)??;
        process.listens();
        let interrupt_mode = spec.interrupt_mode;
        let mut kernel =
            Self { process, session, shell, control, iopub, interrupt_mode, oom_kills };
        timeout_at(limit, kernel.greet()).await.map_err(|_| KernelError::Silent)??;
        Ok(kernel)
    }

    /// Asks who it is until its answer came and what it publishes is heard.
    async fn greet(&mut self) -> Result<(), KernelError> {
        let (mut answered, mut heard) = (false, false);
        while !(answered && heard) {
            let request = self.session.request("kernel_info_request", &json!({}))?;
            self.shell.send(&request.parts()).await?;
            let again = Instant::now() + ASK_AGAIN;
            while let Ok(event) = timeout_at(again, self.event()).await {
                match event {
                    KernelEvent::Published(message) => heard |= message.kind == "status",
                    KernelEvent::Replied(_) => answered = true,
                    KernelEvent::Ended(end) => return Err(KernelError::Ended(end)),
                    KernelEvent::Lost(error) => return Err(error.into()),
                }
                if answered && heard {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The next thing it says. What was published before its end comes before that. May be dropped at any time.
    pub(crate) async fn event(&mut self) -> KernelEvent {
        loop {
            let (received, published) = tokio::select! {
                biased;
                received = self.iopub.receive() => (received, true),
                received = self.shell.receive() => (received, false),
                received = self.control.receive() => match received {
                    // Answers to interrupts, which show in what the kernel does.
                    Ok(_) => continue,
                    Err(error) => (Err(error), false),
                },
                ended = self.process.ended() => return end_event(ended, self.oom_kills),
            };
            let parts = match received {
                Ok(parts) => parts,
                Err(error) => return self.lost(error).await,
            };
            match self.session.read(parts) {
                Ok(message) if published => return KernelEvent::Published(message),
                Ok(message) => return KernelEvent::Replied(message),
                Err(MessageError::Missing(_)) if published => {
                    // ipykernel greets subscribers with an empty topic.
                }
                Err(error) => crate::log!("a kernel sends {error}"),
            }
        }
    }

    /// Mostly a connection breaks because the process ends, which says more.
    async fn lost(&mut self, error: ZmtpError) -> KernelEvent {
        match tokio::time::timeout(Duration::from_secs(1), self.process.ended()).await {
            Ok(ended) => end_event(ended, self.oom_kills),
            Err(_) => KernelEvent::Lost(error),
        }
    }

    /// A request to execute code (code-interpreter 5).
    ///
    /// A kernel may cut off what came after a request that failed; here nothing comes before the request before is
    /// done, so it is told not to.
    ///
    /// # Errors
    /// [`KernelError::Request`]
    pub(crate) fn execute_request(
        &self,
        code: &str,
        silent: bool,
    ) -> Result<Outgoing, KernelError> {
        Ok(self.session.request(
            "execute_request",
            &json!({
                "code": code, "silent": silent, "store_history": !silent,
                "user_expressions": {}, "allow_stdin": false, "stop_on_error": false,
            }),
        )?)
    }

    /// Sends a request. If this is dropped before it ends the kernel has to be given up.
    ///
    /// # Errors
    /// [`KernelError::Connection`]
    pub(crate) async fn send(&mut self, request: &Outgoing) -> Result<(), KernelError> {
        Ok(self.shell.send(&request.parts()).await?)
    }

    /// Asks it to give up what it does.
    ///
    /// # Errors
    /// [`KernelError`] if it cannot be asked.
    pub(crate) async fn interrupt(&mut self) -> Result<(), KernelError> {
        match self.interrupt_mode {
            InterruptMode::Signal => self
                .process
                .interrupt()
                .map_err(|source| KernelError::System { doing: "interrupt", source }),
            InterruptMode::Message => {
                let request = self.session.request("interrupt_request", &json!({}))?;
                Ok(self.control.send(&request.parts()).await?)
            }
        }
    }

    /// Kills it with what it started, and waits for its end.
    ///
    /// # Errors
    /// [`KernelError::System`]
    pub(crate) async fn kill(mut self) -> Result<(), KernelError> {
        self.process.kill().await.map_err(|source| KernelError::System { doing: "kill", source })
    }
}

/// Connects as soon as somebody listens.
async fn open(
    endpoint: Endpoint,
    socket_type: SocketType,
    identity: &str,
) -> Result<ZmtpConnection, ZmtpError> {
    loop {
        match ZmtpConnection::open(endpoint.clone(), socket_type, identity).await {
            Err(ZmtpError::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                sleep(LISTEN_PAUSE).await;
            }
            opened => return opened,
        }
    }
}

fn end_event(ended: io::Result<ExitStatus>, before: Option<u64>) -> KernelEvent {
    match end_of(ended, before) {
        KernelError::Ended(end) => KernelEvent::Ended(end),
        error => {
            crate::log!("{error}");
            KernelEvent::Ended(KernelEnd { status: ExitStatus::default(), out_of_memory: false })
        }
    }
}

fn end_of(ended: io::Result<ExitStatus>, before: Option<u64>) -> KernelError {
    use std::os::unix::process::ExitStatusExt as _;
    match ended {
        Ok(status) => {
            let killed = status.signal() == Some(libc::SIGKILL);
            let out_of_memory = killed && oom_kills() > before;
            KernelError::Ended(KernelEnd { status, out_of_memory })
        }
        Err(source) => KernelError::System { doing: "wait for", source },
    }
}

/// How often the system has killed something in this container because memory ran out, if it tells.
fn oom_kills() -> Option<u64> {
    ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .find_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        })
}

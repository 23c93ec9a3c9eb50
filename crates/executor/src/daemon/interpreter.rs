//! The code interpreter (code-interpreter 9): started with the sandbox, started again whenever it ends, and told who the
//! sandbox is.
//!
//! It runs from the executor's volume, never from the image, and as root, as its kernels do. The claim goes to it
//! through its standard input, which nobody else can write to: user code cannot set the variables or learn the token.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::process::{Command, DEFAULT_PATH, ExitStatus, ProcessIdentity, Streams};
use super::tasks::lock;
use super::{Daemon, log, pool};

/// The program, in the executor's volume.
const PROGRAM: &str = "/.sandyard/interpreter";

/// It finds its claims on its standard input. The other arguments are what clients of the original look for in the
/// list of processes (code-interpreter 10).
const ARGUMENTS: [&str; 3] = ["--claims", "jupyter server", "uvicorn main:app"];

/// One that ends within it is not started again before it is over.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// For how long a claim waits for the first kernels. On a slow machine they take seconds.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// What is known of it.
pub(super) struct Interpreter {
    ready: watch::Sender<bool>,
}

/// What it is told (crate `interpreter`, `claim`).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InterpreterClaim {
    variables: BTreeMap<String, String>,
    access_token: String,
    /// Whether code is run only for those who show it.
    token_demanded: bool,
}

/// One that runs.
struct RunningInterpreter {
    ended: oneshot::Receiver<ExitStatus>,
    input: pipe::Sender,
    output: pipe::Receiver,
}

impl Interpreter {
    pub(super) fn new() -> Self {
        Self { ready: watch::Sender::new(false) }
    }

    /// Returns when it takes requests.
    ///
    /// # Errors
    /// If it does not for too long.
    pub(super) async fn ready(&self) -> Result<(), String> {
        let mut ready = self.ready.subscribe();
        match timeout(READY_LIMIT, ready.wait_for(|ready| *ready)).await {
            // The sender is this one.
            Ok(_) => Ok(()),
            Err(_) => Err(format!("the code interpreter is not ready after {READY_LIMIT:?}")),
        }
    }
}

/// Keeps it running until the sandbox is stopped.
pub(super) async fn supervise(daemon: Arc<Daemon>) {
    let Some(interpreter) = &daemon.interpreter else { return };
    loop {
        let begun = Instant::now();
        match start(&daemon).await {
            Ok(running) => {
                let status = follow(&daemon, interpreter, running).await;
                interpreter.ready.send_replace(false);
                log!("the code interpreter has ended ({status}); starting it again");
            }
            Err(error) => log!("failed to start the code interpreter: {error}"),
        }
        sleep(SHORTEST_LIFE.saturating_sub(begun.elapsed())).await;
    }
}

async fn start(daemon: &Arc<Daemon>) -> anyhow::Result<RunningInterpreter> {
    let (their_input, our_input) = pipe_with(PipeFlags::CLOEXEC)?;
    let (our_output, their_output) = pipe_with(PipeFlags::CLOEXEC)?;
    let input = pipe::Sender::from_owned_fd(our_input)?;
    let output = pipe::Receiver::from_owned_fd(our_output)?;
    // Its log is ours: the container's.
    let log: OwnedFd = io::stderr().as_fd().try_clone_to_owned()?;
    let environment =
        [("PATH", DEFAULT_PATH), ("HOME", "/root"), ("USER", "root"), ("LANG", "C.UTF-8")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let command = Command::new(
        PROGRAM,
        &ARGUMENTS.map(str::to_owned),
        &environment.into(),
        "/",
        ProcessIdentity { uid: 0, gid: 0, groups: vec![0] },
    )?;
    let owner = Arc::clone(daemon);
    let streams = Streams::Pipes([their_input, their_output, log]);
    let (_, ended) = pool::run(move || command.spawn(streams, owner.processes.reaper())).await?;
    Ok(RunningInterpreter { ended, input, output })
}

/// Tells one that runs what it has to know, and hears what it says, until it ends.
async fn follow(daemon: &Daemon, interpreter: &Interpreter, running: RunningInterpreter) -> String {
    let RunningInterpreter { mut ended, mut input, output } = running;
    let told = async {
        let mut claimed = daemon.claimed.subscribe();
        // An error is the sender gone, which the daemon holds.
        drop(claimed.wait_for(|claimed| *claimed).await);
        if let Err(error) = tell(daemon, &mut input).await {
            log!("failed to tell the code interpreter who the sandbox is: {error}");
        }
        // Its end would be the daemon's for the interpreter.
        std::future::pending::<()>().await;
    };
    let heard = async {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == "ready" {
                interpreter.ready.send_replace(true);
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        status = &mut ended => match status {
            Ok(status) => status.end_event().status,
            Err(_) => "nobody knows how".to_owned(),
        },
        () = told => String::new(),
        () = heard => String::new(),
    }
}

async fn tell(daemon: &Daemon, input: &mut pipe::Sender) -> anyhow::Result<()> {
    let claim = {
        let settings = lock(&daemon.settings);
        let Some(token) = &settings.access_token else { return Ok(()) };
        InterpreterClaim {
            variables: settings.variables(),
            access_token: token.reveal().to_owned(),
            token_demanded: settings.secured,
        }
    };
    let mut line = serde_json::to_vec(&claim)?;
    line.push(b'\n');
    Ok(input.write_all(&line).await?)
}

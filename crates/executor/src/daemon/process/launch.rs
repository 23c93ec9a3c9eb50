//! From a request to a running process, and from there to its end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};
use sandyard_contract::connect::{Code, ConnectError};
use sandyard_contract::rpc::process::StartRequest;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::super::accounts::User;
use super::super::tasks::lock;
use super::super::{Daemon, log, paths, pool};
use super::input::Input;
use super::output::{Channel, Chunk, Output};
use super::spawn::{Command, DEFAULT_PATH, Identity, SpawnError, Streams};
use super::status::ExitStatus;
use super::{Process, RETENTION};

/// Our ends of a process's streams.
struct Pipes {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Everything the daemon knows that a new process depends on, taken at one moment.
struct Surroundings {
    user: User,
    workdir: Option<String>,
    variables: BTreeMap<String, String>,
}

/// Starts a process and everything that follows it, and subscribes before it writes anything.
pub(super) async fn launch(
    daemon: &Arc<Daemon>,
    user: User,
    request: StartRequest,
    deadline: Option<Instant>,
) -> Result<(Arc<Process>, mpsc::Receiver<Chunk>), ConnectError> {
    let config = request.process.unwrap_or_default();
    let surroundings = {
        let settings = lock(&daemon.settings);
        Surroundings {
            user,
            workdir: settings.default_workdir.clone(),
            variables: settings.variables(),
        }
    };
    let with_stdin = request.stdin.unwrap_or(true);
    let spawned = {
        let (daemon, config) = (Arc::clone(daemon), config.clone());
        pool::run(move || {
            let command = prepare(surroundings, &config)?;
            let (streams, pipes) = streams(with_stdin).map_err(internal)?;
            let directory = &config.cwd;
            let (pid, exit) = command
                .spawn(streams, daemon.processes.reaper())
                .map_err(|error| refused(&error, directory.as_deref()))?;
            Ok::<_, ConnectError>((pid, exit, pipes))
        })
    };
    let (pid, exit, pipes) = spawned.await?;
    let stdin = pipes.stdin.map(pipe::Sender::from_owned_fd).transpose().map_err(internal)?;
    let stdout = pipe::Receiver::from_owned_fd(pipes.stdout).map_err(internal)?;
    let stderr = pipe::Receiver::from_owned_fd(pipes.stderr).map_err(internal)?;
    let process = Arc::new(Process {
        pid,
        tag: request.tag,
        config,
        output: Output::default(),
        input: Input::new(stdin),
        killed: watch::Sender::new(false),
    });
    let subscription = process.output.subscribe();
    daemon.processes.add(&process);
    daemon.tasks.spawn({
        let (daemon, process) = (Arc::clone(daemon), Arc::clone(&process));
        async move {
            let running = follow(&process, exit, stdout, stderr);
            let status = match deadline {
                Some(deadline) => kill_at(deadline, &daemon, &process, running).await,
                None => running.await,
            };
            // Out of the list before anybody hears of the end.
            daemon.processes.retire(&process);
            process.output.finish(status.end_event());
            process.input.close().await;
            tokio::time::sleep(RETENTION).await;
            daemon.processes.forget(&process);
        }
    });
    Ok((process, subscription))
}

fn internal(error: io::Error) -> ConnectError {
    ConnectError::new(Code::Internal, format!("failed to start the process: {error}"))
}

fn invalid(message: impl Into<String>) -> ConnectError {
    ConnectError::new(Code::InvalidArgument, message)
}

fn refused(error: &SpawnError, directory: Option<&str>) -> ConnectError {
    match error {
        SpawnError::Directory(_) => {
            let directory = directory.unwrap_or("");
            invalid(format!("failed to start in cwd '{directory}': {error}"))
        }
        SpawnError::Prepare(_) | SpawnError::Identity(_) => {
            ConnectError::new(Code::Internal, error.to_string())
        }
    }
}

/// Environment, directory and identity (executor 4.1, 4.2). Blocks.
fn prepare(
    surroundings: Surroundings,
    config: &sandyard_contract::rpc::process::ProcessConfig,
) -> Result<Command, ConnectError> {
    let Surroundings { user, workdir, variables } = surroundings;
    let cwd = config.cwd.as_deref().unwrap_or("");
    let directory = paths::resolve(cwd, &user.home, workdir.as_deref())
        .map_err(|error| invalid(error.to_string()))?;
    match fs::metadata(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(invalid(format!("cwd '{directory}' does not exist")));
        }
        // The child finds out and says more, with the user's own rights.
        Ok(_) | Err(_) => {}
    }
    let groups = user.groups().map_err(internal)?;
    let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), path),
        ("HOME".to_owned(), user.home.clone()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
    ]);
    environment.extend(variables);
    environment.extend(config.envs.clone());
    if let Some(name) = environment.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(invalid(format!("'{name}' cannot be the name of a variable")));
    }
    let identity = Identity { uid: user.uid, gid: user.gid, groups };
    Command::new(&config.cmd, &config.args, &environment, &directory, identity)
        .map_err(|_| invalid("command, arguments and variables must not hold a NUL character"))
}

fn streams(with_stdin: bool) -> io::Result<(Streams, Pipes)> {
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (child_stdin, stdin) = match with_stdin {
        true => {
            let (child, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            (child, Some(ours))
        }
        false => (File::open("/dev/null")?.into(), None),
    };
    let streams = Streams { stdin: child_stdin, stdout: child_stdout, stderr: child_stderr };
    Ok((streams, Pipes { stdin, stdout, stderr }))
}

/// Publishes the output until its end and the process's, or until the end of a killed process
/// (executor 4.4).
async fn follow(
    process: &Process,
    mut exit: oneshot::Receiver<ExitStatus>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
) -> ExitStatus {
    let (cut, cuts) = watch::channel(false);
    let mut killed = process.killed.subscribe();
    let pumps = async {
        tokio::join!(
            process.output.pump(stdout, Channel::Stdout, cuts.clone()),
            process.output.pump(stderr, Channel::Stderr, cuts.clone()),
        )
    };
    tokio::pin!(pumps);
    let mut flowing = true;
    let status = loop {
        tokio::select! {
            status = &mut exit => break status.unwrap_or_else(|_| lost(process.pid)),
            _ = &mut pumps, if flowing => flowing = false,
        }
    };
    if flowing {
        // An error is the process gone, which this holds.
        let killed = async { drop(killed.wait_for(|killed| *killed).await) };
        tokio::select! {
            _ = &mut pumps => {}
            () = killed => {
                cut.send_replace(true);
                pumps.await;
            }
        }
    }
    status
}

/// The reaper keeps every child until it has its status; this is for a fault of ours.
fn lost(pid: u32) -> ExitStatus {
    log!("the status of process {pid} was lost");
    ExitStatus::from_raw(libc::SIGKILL)
}

/// Kills the process when its time is over, whoever still listens (executor 4.7).
async fn kill_at(
    deadline: Instant,
    daemon: &Daemon,
    process: &Process,
    running: impl Future<Output = ExitStatus>,
) -> ExitStatus {
    tokio::pin!(running);
    tokio::select! {
        status = &mut running => return status,
        () = tokio::time::sleep_until(deadline) => {}
    }
    if let Err(error) = process.signal(daemon.processes.reaper(), libc::SIGKILL) {
        log!("failed to kill process {} at its deadline: {error}", process.pid);
    }
    running.await
}

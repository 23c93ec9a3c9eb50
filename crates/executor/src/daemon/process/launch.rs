//! From a request to a running process, and from there to its end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use sandyard_contract::connect::{Code, ConnectError};
use sandyard_contract::rpc::process::{ProcessConfig, StartRequest};
use tokio::io::Interest;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::super::accounts::User;
use super::super::connect::RpcCall;
use super::super::rights::{Rights, as_user};
use super::super::tasks::lock;
use super::super::{Daemon, log, paths, pool};
use super::descriptor::AsyncDescriptor;
use super::input::{InputTarget, InputWriter};
use super::output::{OutputSource, ProcessOutput, Subscription};
use super::spawn::{Command, DEFAULT_PATH, ProcessIdentity, SpawnError, Streams};
use super::status::ExitStatus;
use super::{Process, retire, terminal};

/// Our ends of a process's streams.
enum Ends {
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    Terminal(OwnedFd),
}

/// What comes from a process; with a terminal there is one stream.
struct Outlets {
    first: (OutputSource, Arc<AsyncDescriptor>),
    second: Option<(OutputSource, Arc<AsyncDescriptor>)>,
}

/// Starts a process and everything that follows it, and subscribes before it writes anything.
pub(super) async fn launch(
    call: RpcCall,
    request: StartRequest,
) -> Result<(u32, Subscription), ConnectError> {
    let (deadline, daemon) = (call.deadline, Arc::clone(&call.daemon));
    let (request, pid, exit, ends) = pool::run(move || {
        let user = call.user()?;
        let (streams, ends) = streams(&request, &user).map_err(internal)?;
        let config = request.process.clone().unwrap_or_default();
        let command = prepare(&call.daemon, user, &config)?;
        let (pid, exit) = command
            .spawn(streams, call.daemon.processes.reaper())
            .map_err(|error| refused(&error, config.cwd.as_deref()))?;
        Ok::<_, ConnectError>((request, pid, exit, ends))
    })
    .await?;
    let (target, outlets) = ends.watch().map_err(|error| {
        // Nobody would ever read what it writes.
        if let Err(error) = daemon.processes.reaper().signal(pid, libc::SIGKILL) {
            log!("failed to kill process {pid}, which cannot be followed: {error}");
        }
        internal(error)
    })?;
    let process = Arc::new(Process {
        pid,
        tag: request.tag,
        config: request.process.unwrap_or_default(),
        output: Arc::new(ProcessOutput::default()),
        input: InputWriter::new(target),
        killed: watch::Sender::new(false),
    });
    let subscription = process.output.subscribe(deadline);
    daemon.processes.add(&process);
    let owner = Arc::clone(&daemon);
    owner.tasks.spawn(async move {
        let running = follow(&process, exit, outlets);
        let status = match deadline {
            Some(deadline) => kill_at(deadline, &daemon, &process, running).await,
            None => running.await,
        };
        // Out of the list before anybody hears of the end.
        retire(&daemon, &process, status);
        process.input.close();
        process.output.finish(status);
    });
    Ok((pid, subscription))
}

impl Ends {
    /// Gives them to the runtime.
    fn watch(self) -> io::Result<(InputTarget, Outlets)> {
        let watched =
            |fd, interest| Ok::<_, io::Error>(Arc::new(AsyncDescriptor::new(fd, interest)?));
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                let target = match stdin {
                    Some(stdin) => InputTarget::Pipe(watched(stdin, Interest::WRITABLE)?),
                    None => InputTarget::Nowhere,
                };
                let first = (OutputSource::Stdout, watched(stdout, Interest::READABLE)?);
                let second = Some((OutputSource::Stderr, watched(stderr, Interest::READABLE)?));
                Ok((target, Outlets { first, second }))
            }
            Self::Terminal(terminal) => {
                let terminal = watched(terminal, Interest::READABLE | Interest::WRITABLE)?;
                let first = (OutputSource::Terminal, Arc::clone(&terminal));
                Ok((InputTarget::Terminal(terminal), Outlets { first, second: None }))
            }
        }
    }
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
fn prepare(daemon: &Daemon, user: User, config: &ProcessConfig) -> Result<Command, ConnectError> {
    let (workdir, variables) = {
        let settings = lock(&daemon.settings);
        (settings.default_workdir.clone(), settings.variables())
    };
    let cwd = config.cwd.as_deref().unwrap_or("");
    let directory = paths::resolve(cwd, &user.home, workdir.as_deref())
        .map_err(|error| invalid(error.to_string()))?;
    let groups = user.groups().map_err(internal)?;
    // With the user's rights: what is where the user may not look is nobody's to tell.
    let rights = Rights::new(&user, &groups);
    match as_user(&rights, || fs::metadata(&directory)).map_err(internal)? {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(invalid(format!("cwd '{directory}' does not exist")));
        }
        // The child finds out and says more.
        Ok(_) | Err(_) => {}
    }
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
    let identity = ProcessIdentity { uid: user.uid, gid: user.gid, groups };
    Command::new(&config.cmd, &config.args, &environment, &directory, identity)
        .map_err(|_| invalid("command, arguments and variables must not hold a NUL character"))
}

/// Both sides of a process's streams (executor 4.3). Blocks.
fn streams(request: &StartRequest, user: &User) -> io::Result<(Streams, Ends)> {
    if let Some(wanted) = &request.pty {
        let (ours, theirs) = terminal::open(wanted, user.uid)?;
        return Ok((Streams::Terminal(theirs), Ends::Terminal(ours)));
    }
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (child_stdin, stdin) = match request.stdin.unwrap_or(true) {
        true => {
            let (child, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            (child, Some(ours))
        }
        false => (rustix::fs::open("/dev/null", OFlags::CLOEXEC, Mode::empty())?, None),
    };
    let streams = Streams::Pipes([child_stdin, child_stdout, child_stderr]);
    Ok((streams, Ends::Pipes { stdin, stdout, stderr }))
}

/// Publishes the output until its end and the process's, or until the end of a killed process
/// (executor 4.4).
async fn follow(
    process: &Process,
    mut exit: oneshot::Receiver<ExitStatus>,
    outlets: Outlets,
) -> ExitStatus {
    let (cut, cuts) = watch::channel(false);
    let mut killed = process.killed.subscribe();
    let pump = |(source, descriptor): (OutputSource, Arc<AsyncDescriptor>)| {
        let cuts = cuts.clone();
        async move { process.output.pump(source, &descriptor, cuts).await }
    };
    let pumps = async {
        let second = async {
            if let Some(second) = outlets.second {
                pump(second).await;
            }
        };
        tokio::join!(pump(outlets.first), second)
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

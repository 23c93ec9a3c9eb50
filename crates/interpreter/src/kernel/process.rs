//! A kernel's process: its connection file, its start, signals to it and its end.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use super::KernelSettings;
use super::fork::{ForkRequest, ForkedKernel};
use super::spec::{KernelSpec, KernelTransport};
use crate::zmtp::Endpoint;

/// Channels of a kernel, in the order of their numbers.
const CHANNELS: [&str; 5] = ["shell", "iopub", "stdin", "control", "hb"];

/// What the kernel is likelier to be ended by than all else in the sandbox, if memory runs out: it holds the user's
/// data, and its end is told to the user.
const OOM_SCORE: &str = "500";

/// Where a kernel listens.
#[derive(Debug)]
pub(crate) struct Endpoints {
    pub(crate) shell: Endpoint,
    pub(crate) control: Endpoint,
    pub(crate) iopub: Endpoint,
}

/// A process that runs, and what it has on disk. Killed with its group when this is dropped.
#[derive(Debug)]
pub(crate) struct KernelProcess {
    running: RunningKernel,
    /// Its process group, as long as it has not been waited for.
    group: Option<Pid>,
    /// What is removed with it.
    folder: PathBuf,
    ports: Vec<u16>,
}

#[derive(Debug)]
enum RunningKernel {
    Child(Child),
    Forked(ForkedKernel),
}

/// Ports that kernels were told to take and may not have taken yet.
static PORTS: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

impl KernelProcess {
    /// Starts a kernel that keeps its sockets and its file in `folder`, which is made for it.
    ///
    /// # Errors
    /// If the system says no.
    pub(crate) async fn start(
        spec: &KernelSpec,
        key: &str,
        folder: PathBuf,
        cwd: &Path,
        settings: &KernelSettings,
    ) -> io::Result<(Self, Endpoints)> {
        DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
        let (ports, at) = match spec.metadata.sandyard_transport {
            KernelTransport::Tcp => (free_ports()?, None),
            KernelTransport::Ipc => ((1..=CHANNELS.len() as u16).collect(), Some(folder.join("s"))),
        };
        let file = folder.join("connection.json");
        let made = match write_connection_file(&file, key, &ports, at.as_deref()) {
            Ok(()) => run(spec, &file, cwd, settings).await,
            Err(error) => Err(error),
        };
        let taken = if at.is_some() { Vec::new() } else { ports.clone() };
        let (running, group) = match made {
            Ok(made) => made,
            Err(error) => {
                release(&taken);
                // What cannot be removed is empty of secrets once the kernel is not there.
                drop(fs::remove_dir_all(&folder));
                return Err(error);
            }
        };
        let endpoint = |channel: usize| match &at {
            None => Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, ports[channel]))),
            Some(at) => {
                Endpoint::Unix(PathBuf::from(format!("{}-{}", at.display(), ports[channel])))
            }
        };
        let endpoints = Endpoints { shell: endpoint(0), iopub: endpoint(1), control: endpoint(3) };
        Ok((Self { running, group, folder, ports: taken }, endpoints))
    }

    /// The kernel listens where it was told to.
    pub(crate) fn listens(&mut self) {
        release(&std::mem::take(&mut self.ports));
    }

    /// Returns when the process has ended. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        let status = match &mut self.running {
            RunningKernel::Child(child) => child.wait().await?,
            RunningKernel::Forked(kernel) => kernel.ended().await?,
        };
        // What it has started goes with it; a forked one too, whose server may have gone before it.
        self.signal(Signal::KILL)?;
        // From here on the number may be another group's.
        self.group = None;
        Ok(status)
    }

    /// Sends SIGINT to the kernel and what it started in its group, as a terminal does (code-interpreter 5).
    ///
    /// # Errors
    /// If the system says no; a group that is gone is none.
    pub(crate) fn interrupt(&self) -> io::Result<()> {
        self.signal(Signal::INT)
    }

    /// Kills the kernel and what it started in its group. Returns when the kernel itself is gone.
    pub(crate) async fn kill(&mut self) -> io::Result<()> {
        self.signal(Signal::KILL)?;
        self.ended().await.map(drop)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.group.map(|group| kill_process_group(group, signal)) {
            None | Some(Ok(()) | Err(Errno::SRCH)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }
}

impl Drop for KernelProcess {
    fn drop(&mut self) {
        release(&self.ports);
        if let Err(error) = self.signal(Signal::KILL) {
            crate::log!("failed to kill a kernel: {error}");
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            crate::log!("failed to remove {}: {error}", self.folder.display());
        }
    }
}

/// Has the kernel forked if there is a server for that, else starts its program.
async fn run(
    spec: &KernelSpec,
    file: &Path,
    cwd: &Path,
    settings: &KernelSettings,
) -> io::Result<(RunningKernel, Option<Pid>)> {
    if !spec.metadata.sandyard_fork_server.is_empty() {
        let mut env: BTreeMap<String, String> = std::env::vars().collect();
        env.extend(spec.env.clone());
        let request = ForkRequest {
            server: &spec.metadata.sandyard_fork_server,
            socket: &settings.run_folder.with_extension("fork"),
            argv: arguments(spec, file).skip(1).collect(),
            cwd: if cwd.is_dir() { cwd } else { Path::new("/") },
            env,
        };
        match ForkedKernel::start(&request).await {
            Ok(kernel) => {
                let group = Some(kernel.pid);
                return Ok((RunningKernel::Forked(kernel), group));
            }
            // It is slower without.
            Err(error) => crate::log!("a kernel is not forked: {error}"),
        }
    }
    let child = spawn(spec, file, cwd, settings.quiet)?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    Ok((RunningKernel::Child(child), group))
}

fn arguments(spec: &KernelSpec, file: &Path) -> impl Iterator<Item = String> {
    spec.argv.iter().map(|argument| {
        argument
            .replace("{connection_file}", &file.to_string_lossy())
            .replace("{resource_dir}", &spec.folder.to_string_lossy())
    })
}

fn spawn(spec: &KernelSpec, file: &Path, cwd: &Path, quiet: bool) -> io::Result<Child> {
    let mut argv = arguments(spec, file);
    let program =
        argv.next().ok_or_else(|| io::Error::other("a specification without a program"))?;
    let mut command = Command::new(program);
    command.args(argv).envs(&spec.env).stdin(Stdio::null()).stdout(Stdio::null());
    if quiet {
        command.stderr(Stdio::null());
    }
    if cwd.is_dir() {
        command.current_dir(cwd);
    }
    // SAFETY: between fork and exec nothing is called but functions that POSIX allows there: setsid, prctl, open,
    // write and close, by way of rustix and the standard library, which allocate nothing for these calls.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(before_exec);
    }
    command.kill_on_drop(true).spawn()
}

fn before_exec() -> io::Result<()> {
    rustix::process::setsid()?;
    // With the interpreter its kernels go: nobody else could reach them.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let score = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        rustix::fs::OFlags::WRONLY,
        rustix::fs::Mode::empty(),
    )?;
    rustix::io::write(&score, OOM_SCORE.as_bytes())?;
    Ok(())
}

fn write_connection_file(
    file: &Path,
    key: &str,
    ports: &[u16],
    at: Option<&Path>,
) -> io::Result<()> {
    let mut connection = serde_json::json!({
        "transport": if at.is_some() { "ipc" } else { "tcp" },
        "ip": at.map_or_else(|| "127.0.0.1".to_owned(), |at| at.to_string_lossy().into_owned()),
        "signature_scheme": "hmac-sha256",
        "key": key,
        "kernel_name": "",
    });
    for (channel, port) in CHANNELS.iter().zip(ports) {
        connection[format!("{channel}_port")] = (*port).into();
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(connection.to_string().as_bytes())
}

/// Ports of the loopback address that nobody has, nor was told to take.
fn free_ports() -> io::Result<Vec<u16>> {
    let mut guard = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    let promised = guard.get_or_insert_default();
    // All are held until all are found, so that none is found twice.
    let (mut held, mut ports) = (Vec::new(), Vec::new());
    while ports.len() < CHANNELS.len() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        held.push(listener);
        if !promised.contains(&port) {
            ports.push(port);
        }
    }
    promised.extend(&ports);
    Ok(ports)
}

fn release(ports: &[u16]) {
    let mut guard = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    let promised = guard.get_or_insert_default();
    for port in ports {
        promised.remove(port);
    }
}

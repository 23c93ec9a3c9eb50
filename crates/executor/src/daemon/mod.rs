//! `daemon`: the in-sandbox API on port 49983 (contract/executor.md).
//!
//! One thread runs everything that waits; what may block in the kernel (files, forks) goes to a small
//! pool, since a path of the sandbox may lie on a FUSE mount whose program no longer answers. It may be
//! the first process of its PID namespace and then reaps orphans too.

mod access;
mod accounts;
mod args;
mod auth;
mod body;
mod connect;
mod cors;
mod files;
mod filesystem;
mod handshake;
mod interpreter;
mod metrics;
mod paths;
mod plain;
mod pool;
mod process;
mod rights;
mod router;
mod server;
mod settings;
mod signals;
mod tasks;
mod trusted;
mod tunnel;

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use rustix::process::DumpableBehavior;
use sandyard_contract::budget::PROCESS_GRACE;
use sandyard_http::Strangers;
use tokio::sync::watch;

use args::{ContainerIdentity, DaemonArgs};
use filesystem::Watchers;
use interpreter::Interpreter;
use metrics::CpuMeter;
use process::ProcessTable;
use settings::Settings;
use tasks::DaemonTasks;

/// Writes one line about something that went on to the container's log.
macro_rules! log {
    ($($part:tt)*) => { eprintln!("sandyard-daemon: {}", format_args!($($part)*)) };
}
use log;

/// What all requests share.
struct Daemon {
    identity: ContainerIdentity,
    /// Filled by the claim. Until then nothing but the claim is served.
    settings: Mutex<Settings>,
    /// Turns true with the claim.
    claimed: watch::Sender<bool>,
    /// Held while a call to `/init` is looked at: one at a time.
    claiming: AtomicBool,
    strangers: Strangers,
    processes: ProcessTable,
    watchers: Watchers,
    /// In sandboxes of templates that ask for one.
    interpreter: Option<Interpreter>,
    cpu: Mutex<CpuMeter>,
    /// Connections and tunnels.
    connections: DaemonTasks,
    /// What follows processes and watchers, whoever listens to them.
    tasks: DaemonTasks,
}

/// Runs the role `daemon` with the arguments after its name; returns when it was told to end.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    match DaemonArgs::parse(arguments).and_then(start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: DaemonArgs) -> anyhow::Result<()> {
    keep_tracers_away()?;
    keep_memory_small();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Before there are threads: they inherit the mask.
    signals::block().context("failed to block signals")?;
    pool::start().context("failed to start a thread")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: DaemonArgs) -> anyhow::Result<()> {
    let mut signals = signals::Signals::open().context("failed to listen for signals")?;
    let listener = server::listen(args.listen)?;
    let daemon = Arc::new(Daemon {
        identity: args.identity,
        settings: Mutex::default(),
        claimed: watch::Sender::new(false),
        claiming: AtomicBool::new(false),
        strangers: Strangers::new(server::STRANGERS, server::TRUSTED_ADDRESSES),
        processes: ProcessTable::default(),
        watchers: Watchers::default(),
        interpreter: args.interpreter.then(Interpreter::new),
        cpu: Mutex::new(CpuMeter::start()),
        connections: DaemonTasks::default(),
        tasks: DaemonTasks::default(),
    });
    log!("listening on {}", listener.local_addr().context("failed to read the own address")?);
    if daemon.interpreter.is_some() {
        daemon.tasks.spawn(interpreter::supervise(Arc::clone(&daemon)));
    }
    let reaper = daemon.processes.reaper();
    tokio::select! {
        never = server::accept(&listener, &daemon) => match never {},
        told = signals.until_told_to_end(reaper) => told?,
    }
    log!("told to end; processes have {PROCESS_GRACE:?}");
    // Clients first: how a process ends from here on is the sandbox's end and no result of it, so that
    // no client may hear of it (executor 10). The listener itself stays, with its port.
    if let Err(error) = server::refuse(&listener) {
        log!("failed to close the port: {error}");
    }
    daemon.connections.cut_off().await;
    signals.end_processes(reaper).await
}

/// Makes root inside a stranger to this process, which is root too: without SYS_PTRACE, which user code
/// does not have, nobody traces it, reads its memory or takes its descriptors. What it executes can be
/// traced again by its own user.
fn keep_tracers_away() -> anyhow::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("failed to keep tracers away")
}

/// The C library keeps one arena a thread and frees of any size by default; a daemon that idles in
/// every sandbox gives memory back instead.
fn keep_memory_small() {
    // SAFETY: mallopt only sets numbers of the allocator; no other thread runs yet.
    #[allow(unsafe_code)]
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// Gives free memory in the middle of the heap back to the system too. Called once after much work, since it
/// looks through the whole heap.
fn trim_memory() {
    // SAFETY: malloc_trim takes a number and the allocator's own lock.
    #[allow(unsafe_code)]
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

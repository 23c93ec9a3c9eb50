//! The program `sandyard-interpreter`. The daemon of a sandbox starts it and starts it again whenever it ends.
//!
//! Its standard input is where the daemon tells who the sandbox is (see [`sandyard_interpreter::DaemonClaim`]); on its
//! standard output it writes one line, `ready`, once it takes requests.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rustix::process::DumpableBehavior;
use sandyard_contract::daemon::INTERPRETER_PORT;
use sandyard_interpreter::{
    ContextSettings, Contexts, DaemonClaim, KernelSettings, KernelSpecs, listen, read_claims, serve,
};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

struct InterpreterArgs {
    /// Where to listen.
    listen: SocketAddr,
    settings: ContextSettings,
    /// Whether somebody tells who the sandbox is; else there are no global variables.
    claims: bool,
}

/// What is on the command line only to be found there. Clients of the original end its two programs by these names, to
/// see that they come back (code-interpreter 10).
const OTHER_NAMES: [&str; 2] = ["jupyter server", "uvicorn main:app"];

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandyard-interpreter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<InterpreterArgs> {
    let mut listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, INTERPRETER_PORT));
    let mut run_folder = PathBuf::from("/run/sandyard-interpreter");
    let mut cwd = PathBuf::from("/home/user");
    let (mut kernels, mut claims, mut quiet) = (None, false, true);
    while let Some(name) = arguments.next() {
        if OTHER_NAMES.contains(&name.as_str()) {
            continue;
        }
        let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "--claims" => claims = true,
            "--kernel-output" => quiet = false,
            "--listen" => listen = value()?.parse().context("--listen is no address:port")?,
            "--run" => run_folder = value()?.into(),
            "--cwd" => cwd = value()?.into(),
            "--kernels" => kernels = Some(value()?.into()),
            _ => bail!("unknown argument {name}"),
        }
    }
    let kernels_settings = KernelSettings { run_folder, quiet };
    let specs = KernelSpecs::new(kernels);
    Ok(InterpreterArgs {
        listen,
        settings: ContextSettings { kernels: kernels_settings, specs, cwd },
        claims,
    })
}

fn run(args: InterpreterArgs) -> anyhow::Result<()> {
    // It holds the sandbox's access token: root inside, without SYS_PTRACE, must not read its memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("failed to keep tracers away")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    keep_memory_small();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(work(args))
}

async fn work(args: InterpreterArgs) -> anyhow::Result<()> {
    let mut told_to_end =
        signal(SignalKind::terminate()).context("failed to listen for signals")?;
    let (sender, claim) = watch::channel((!args.claims).then(DaemonClaim::open));
    let claims = async {
        if !args.claims {
            std::future::pending::<()>().await;
        }
        let input = std::io::stdin().as_fd().try_clone_to_owned()?;
        let input = pipe::Receiver::from_owned_fd(input).context("standard input is no pipe")?;
        read_claims(input, &sender).await.context("failed to read what the daemon tells")
    };
    let served = async {
        let contexts = Arc::new(Contexts::new(args.settings, claim.clone())?);
        contexts.start().await.context("failed to make the default contexts")?;
        // Nobody can connect before (code-interpreter 3).
        let listener =
            listen(args.listen).with_context(|| format!("failed to listen on {}", args.listen))?;
        eprintln!("sandyard-interpreter: listening on {}", listener.local_addr()?);
        let mut output = std::io::stdout();
        writeln!(output, "ready").and_then(|()| output.flush()).context("failed to say so")?;
        match serve(&listener, &contexts, &claim).await {}
    };
    tokio::select! {
        served = served => served,
        // The daemon has gone, and with it the sandbox.
        ended = claims => ended,
        _ = told_to_end.recv() => Ok(()),
    }
}

/// The C library keeps one arena a thread and frees of any size by default; a program that idles in every sandbox gives
/// memory back instead.
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

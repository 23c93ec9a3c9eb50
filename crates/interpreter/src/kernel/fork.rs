//! Kernels that are forked by a server which has imported already what they all import
//! (`executor-image/interpreter/python-kernel/fork_server.py`, which has the other side).
//!
//! The server outlives the interpreter, so that one that was killed is back at once; its kernels do not.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::BytesMut;
use rustix::process::Pid;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

/// For how long a server may start, which is most of what a kernel would take.
const START_LIMIT: Duration = Duration::from_secs(60);
const LISTEN_PAUSE: Duration = Duration::from_millis(5);
/// For how long a fork may take.
const FORK_LIMIT: Duration = Duration::from_secs(10);

/// One start of a server at a time.
static STARTING: Mutex<()> = Mutex::const_new(());

/// A kernel that a server has forked.
#[derive(Debug)]
pub(super) struct ForkedKernel {
    /// Of the kernel, and of its process group.
    pub(super) pid: Pid,
    server: UnixStream,
    unread: BytesMut,
}

/// What a kernel is started with.
pub(super) struct ForkRequest<'a> {
    /// The server's program and arguments.
    pub(super) server: &'a [String],
    /// Its socket.
    pub(super) socket: &'a Path,
    /// The kernel's arguments, after the program.
    pub(super) argv: Vec<String>,
    pub(super) cwd: &'a Path,
    pub(super) env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct News {
    pid: Option<i32>,
    status: Option<i32>,
}

impl ForkedKernel {
    /// Has a kernel forked, by a server that is started if none is there.
    ///
    /// # Errors
    /// If there is no server, or it does not do so.
    pub(super) async fn start(request: &ForkRequest<'_>) -> io::Result<Self> {
        let mut server = connect(request).await?;
        let ForkRequest { argv, cwd, env, .. } = request;
        let line = json!({ "argv": argv, "cwd": cwd, "env": env });
        server.write_all(format!("{line}\n").as_bytes()).await?;
        let unread = BytesMut::new();
        let mut kernel = Self { pid: Pid::INIT, server, unread };
        let news = timeout(FORK_LIMIT, kernel.news()).await.map_err(|_| ErrorKind::TimedOut)??;
        let pid = news.and_then(|news| Pid::from_raw(news.pid?));
        kernel.pid = pid.ok_or_else(|| io::Error::other("the fork server does not fork"))?;
        Ok(kernel)
    }

    /// Returns when it has ended. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        match self.news().await? {
            Some(news) => Ok(ExitStatus::from_raw(news.status.unwrap_or_default())),
            // The server has gone, and nobody knows how the kernel ends: it is ended.
            None => Ok(ExitStatus::from_raw(libc::SIGKILL)),
        }
    }

    /// The next thing that the server says; none if it has gone.
    async fn news(&mut self) -> io::Result<Option<News>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(serde_json::from_slice(&self.unread.split_to(end + 1))?));
            }
            match self.server.read_buf(&mut self.unread).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

async fn connect(request: &ForkRequest<'_>) -> io::Result<UnixStream> {
    if let Ok(server) = UnixStream::connect(request.socket).await {
        return Ok(server);
    }
    let _starting = STARTING.lock().await;
    // Perhaps somebody else has started it meanwhile.
    if let Ok(server) = UnixStream::connect(request.socket).await {
        return Ok(server);
    }
    let absent = |error: &io::Error| {
        matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
    };
    for left in [request.socket.to_owned(), new_name(request.socket)] {
        match std::fs::remove_file(left) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    let (program, arguments) =
        request.server.split_first().ok_or_else(|| io::Error::other("no fork server"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .arg(request.socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()?;
    let listening = async {
        loop {
            match UnixStream::connect(request.socket).await {
                Err(error) if absent(&error) => sleep(LISTEN_PAUSE).await,
                connected => return connected,
            }
        }
    };
    tokio::select! {
        connected = timeout(START_LIMIT, listening) => connected.map_err(|_| ErrorKind::TimedOut)?,
        status = child.wait() => {
            Err(io::Error::other(format!("the fork server has ended: {}", status?)))
        }
    }
}

/// Where the server's socket is before it listens.
fn new_name(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

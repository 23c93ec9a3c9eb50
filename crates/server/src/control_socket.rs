//! The socket in the data folder by which the commands beside a server speak to it. Only the folder's owner gets
//! there. One line is asked, and lines are answered.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use anyhow::Context as _;
use sandyard_core::Scheduler;
use sandyard_http::{Accepted, Quota, accept};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::data_dir::DataDir;

/// Asks the server to end everything. It answers with a line for each step, the last one [`DONE`].
pub const DOWN: &str = "down";

/// The last line of the answer when everything has ended.
pub const DONE: &str = "down";

/// Asks which container is which sandbox. It answers with a line for each: both ids, with a space between.
pub const INSTANCES: &str = "instances";

/// Asks what is in the pool. It answers with a line for each kind of container: template, `plain` or `workspace`, how
/// many wait, how many should, with a space between.
pub const POOL: &str = "pool";

/// How long whoever connects may take to ask.
const LIMIT: Duration = Duration::from_secs(2);

/// How long the server's end waits for whoever asked for it.
const CLOSING: Duration = Duration::from_secs(5);

/// The longest question, in bytes.
const LONGEST: u64 = 64;

/// Connections at once. Each is there for moments only.
const MOST: usize = 16;

/// Whoever asked for the end, and is told how it goes.
pub struct Asker(std::os::unix::net::UnixStream);

impl Asker {
    fn new(stream: UnixStream) -> std::io::Result<Self> {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        Ok(Self(stream))
    }

    /// Tells it a line. It may have gone.
    pub fn tell(&mut self, line: &str) {
        if let Err(error) = writeln!(self.0, "{line}") {
            debug!(%error, "whoever asked for it has gone");
        }
    }

    /// Ends the answer, and waits until whoever asked closes its side too, which `sandyard down` does by ending. Where
    /// the server is a container's first process, its own end would kill that command before its exit code is known.
    pub fn finish(mut self) {
        let closed = self.0.shutdown(Shutdown::Write).and_then(|()| {
            self.0.set_read_timeout(Some(CLOSING))?;
            self.0.read(&mut [0])
        });
        if let Err(error) = closed {
            debug!(%error, "whoever asked for it has gone, or does not close");
        }
    }
}

/// Listens in the data folder. A socket that a killed server left is replaced: the lock says that no other server is
/// there.
///
/// # Errors
/// The system's refusal.
pub fn listen(data: &DataDir) -> anyhow::Result<UnixListener> {
    data.remove_running()?;
    let path = data.control_socket();
    UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))
}

/// Answers for ever, and hands on who asks for the end.
pub async fn serve(listener: UnixListener, scheduler: Scheduler, downs: mpsc::Sender<Asker>) {
    let quota = Quota::of_all(MOST);
    let report = |error: &_| warn!(%error, "cannot accept a connection to the control socket");
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Accepted { stream, slot, .. } = accept(&listener, &quota, report) => {
                let (scheduler, downs) = (scheduler.clone(), downs.clone());
                connections.spawn(async move {
                    // Whoever only looks whether we are here closes at once; who says nothing is not waited for.
                    if let Err(error) = answer(stream, &scheduler, &downs).await {
                        debug!(%error, "a connection to the control socket that asked for nothing");
                    }
                    drop(slot);
                });
            }
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    warn!(%error, "a connection to the control socket panicked");
                }
            }
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    scheduler: &Scheduler,
    downs: &mpsc::Sender<Asker>,
) -> anyhow::Result<()> {
    let mut question = String::new();
    {
        let mut reader = BufReader::new((&mut stream).take(LONGEST));
        timeout(LIMIT, reader.read_line(&mut question)).await.context("it says nothing")??;
    }
    match question.trim_end() {
        DOWN => downs.send(Asker::new(stream)?).await.context("nobody takes the call to go down"),
        INSTANCES => {
            let lines: String = scheduler
                .instances()
                .into_iter()
                .map(|(sandbox, instance)| format!("{sandbox} {instance}\n"))
                .collect();
            timeout(LIMIT, stream.write_all(lines.as_bytes()))
                .await
                .context("it does not read")??;
            Ok(())
        }
        POOL => {
            let lines: String = scheduler
                .pool()
                .into_iter()
                .map(|kind| {
                    let profile = if kind.workspace { "workspace" } else { "plain" };
                    format!("{} {profile} {} {}\n", kind.template, kind.ready, kind.target)
                })
                .collect();
            timeout(LIMIT, stream.write_all(lines.as_bytes()))
                .await
                .context("it does not read")??;
            Ok(())
        }
        other => anyhow::bail!("unknown question {other:?}"),
    }
}

/// Asks the server that runs on a data folder, and returns the lines of its answer as they come.
///
/// # Errors
/// If none answers.
pub async fn ask(
    data: &DataDir,
    question: &str,
) -> std::io::Result<tokio::io::Lines<BufReader<UnixStream>>> {
    let mut server = UnixStream::connect(data.control_socket()).await?;
    server.write_all(format!("{question}\n").as_bytes()).await?;
    Ok(BufReader::new(server).lines())
}

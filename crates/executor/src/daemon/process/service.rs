//! The methods of `process.Process` (executor 1.1, 4).

use std::sync::Arc;

use sandyard_contract::connect::{Code, ConnectError};
use sandyard_contract::rpc::process::process_event::data_event::Output as Data;
use sandyard_contract::rpc::process::process_event::{DataEvent, Event, KeepAlive, StartEvent};
use sandyard_contract::rpc::process::process_input::Input as InputData;
use sandyard_contract::rpc::process::process_selector::Selector;
use sandyard_contract::rpc::process::{
    CloseStdinRequest, CloseStdinResponse, ConnectRequest, ListRequest, ListResponse, ProcessEvent,
    ProcessInfo, ProcessSelector, SendInputRequest, SendInputResponse, SendSignalRequest,
    SendSignalResponse, Signal, StartRequest, StartResponse,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::super::connect::{Call, Sink};
use super::super::pool;
use super::Process;
use super::launch::launch;
use super::output::{Channel, Chunk};

/// A subscription that was made, and what it is for.
pub(in super::super) struct Events {
    process: Arc<Process>,
    chunks: mpsc::Receiver<Chunk>,
}

pub(in super::super) async fn list(
    call: Call,
    _: ListRequest,
) -> Result<ListResponse, ConnectError> {
    let info = |process: &Arc<Process>| ProcessInfo {
        config: Some(process.config.clone()),
        pid: process.pid,
        tag: process.tag.clone(),
    };
    Ok(ListResponse { processes: call.daemon.processes.live().iter().map(info).collect() })
}

/// Starts a process. It starts, and stays, also if the caller leaves meanwhile (executor 2.7).
pub(in super::super) async fn start(
    call: &Call,
    request: StartRequest,
) -> Result<Events, ConnectError> {
    if request.pty.is_some() {
        return Err(ConnectError::new(
            Code::Unimplemented,
            "terminals are not supported yet: start the process without 'pty'",
        ));
    }
    let user = {
        let call = call.clone();
        pool::run(move || call.user()).await?
    };
    let (sender, receiver) = oneshot::channel();
    let (daemon, deadline) = (Arc::clone(&call.daemon), call.deadline);
    call.daemon.tasks.spawn(async move {
        let launched = launch(&daemon, user, request, deadline).await;
        // Without a receiver the caller left; the process goes on.
        drop(sender.send(launched));
    });
    let (process, chunks) = receiver.await.map_err(|_| {
        ConnectError::new(Code::Internal, "the process's start was given up; see the log")
    })??;
    Ok(Events { process, chunks })
}

/// Subscribes to a process that runs or just ended (executor 4.6).
pub(in super::super) async fn connect(
    call: &Call,
    request: ConnectRequest,
) -> Result<Events, ConnectError> {
    let selector = selector(request.process)?;
    let process = call.daemon.processes.find(&selector).ok_or_else(|| not_found(&selector))?;
    let chunks = process.output.subscribe();
    Ok(Events { process, chunks })
}

impl Events {
    /// Sends start, output and end, with keepalives in between (executor 2.6, 4.4).
    pub(in super::super) async fn send(mut self, sink: Sink) -> Result<(), ConnectError> {
        let start = StartEvent { pid: self.process.pid };
        sink.send(&event(Event::Start(start))).await?;
        loop {
            let next = Instant::now() + sink.keepalive;
            match tokio::time::timeout_at(next, self.chunks.recv()).await {
                Ok(Some(chunk)) => sink.send(&event(Event::Data(data(chunk)))).await?,
                Ok(None) => break,
                Err(_) => sink.send(&event(Event::Keepalive(KeepAlive {}))).await?,
            }
        }
        let end = self.process.output.end().ok_or_else(|| {
            ConnectError::new(Code::Internal, "the process's output ended without the process")
        })?;
        sink.send(&event(Event::End(end))).await
    }
}

/// `ConnectResponse` has the same members, in both encodings.
fn event(event: Event) -> StartResponse {
    StartResponse { event: Some(ProcessEvent { event: Some(event) }) }
}

fn data(chunk: Chunk) -> DataEvent {
    let output = match chunk.channel {
        Channel::Stdout => Data::Stdout(chunk.bytes),
        Channel::Stderr => Data::Stderr(chunk.bytes),
    };
    DataEvent { output: Some(output) }
}

pub(in super::super) async fn send_input(
    call: Call,
    request: SendInputRequest,
) -> Result<SendInputResponse, ConnectError> {
    let process = find_live(&call, request.process)?;
    match request.input.and_then(|input| input.input) {
        Some(InputData::Stdin(bytes)) => {
            let written = process.input.write(&bytes).await;
            written.map_err(|error| ConnectError::new(Code::Internal, error.to_string()))?;
            Ok(SendInputResponse {})
        }
        Some(InputData::Pty(_)) => {
            Err(ConnectError::new(Code::Internal, "the process has no terminal"))
        }
        None => Err(ConnectError::new(Code::Unimplemented, "the request has no input")),
    }
}

pub(in super::super) async fn close_stdin(
    call: Call,
    request: CloseStdinRequest,
) -> Result<CloseStdinResponse, ConnectError> {
    find_live(&call, request.process)?.input.close().await;
    Ok(CloseStdinResponse {})
}

pub(in super::super) async fn send_signal(
    call: Call,
    request: SendSignalRequest,
) -> Result<SendSignalResponse, ConnectError> {
    let process = find_live(&call, request.process)?;
    let signal = match Signal::try_from(request.signal) {
        Ok(Signal::Sigkill) => libc::SIGKILL,
        Ok(Signal::Sigterm) => libc::SIGTERM,
        Ok(Signal::Unspecified) | Err(_) => {
            return Err(ConnectError::new(
                Code::Unimplemented,
                "only SIGNAL_SIGTERM and SIGNAL_SIGKILL can be sent",
            ));
        }
    };
    process.signal(call.daemon.processes.reaper(), signal).map_err(|error| {
        let message = format!("failed to signal process {}: {error}", process.pid);
        ConnectError::new(Code::Internal, message)
    })?;
    Ok(SendSignalResponse {})
}

fn find_live(call: &Call, process: Option<ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
    let selector = selector(process)?;
    call.daemon.processes.find_live(&selector).ok_or_else(|| not_found(&selector))
}

fn selector(process: Option<ProcessSelector>) -> Result<Selector, ConnectError> {
    process.and_then(|process| process.selector).ok_or_else(|| {
        ConnectError::new(Code::Unimplemented, "the request selects no process: give pid or tag")
    })
}

fn not_found(selector: &Selector) -> ConnectError {
    let message = match selector {
        Selector::Pid(pid) => format!("process with pid {pid} not found"),
        Selector::Tag(tag) => format!("process with tag {tag} not found"),
    };
    ConnectError::new(Code::NotFound, message)
}

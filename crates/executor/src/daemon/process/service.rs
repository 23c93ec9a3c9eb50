//! The methods of `process.Process` (executor 1.1, 4).

use std::sync::Arc;

use sandyard_contract::connect::{Code, ConnectError};
use sandyard_contract::rpc::process::process_event::{Event, KeepAlive, StartEvent};
use sandyard_contract::rpc::process::process_selector::Selector;
use sandyard_contract::rpc::process::stream_input_request::Event as InputEvent;
use sandyard_contract::rpc::process::{
    CloseStdinRequest, CloseStdinResponse, ConnectRequest, ListRequest, ListResponse, ProcessEvent,
    ProcessInfo, ProcessInput, ProcessSelector, SendInputRequest, SendInputResponse,
    SendSignalRequest, SendSignalResponse, Signal, StartRequest, StartResponse, StreamInputRequest,
    StreamInputResponse, UpdateRequest, UpdateResponse,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::connect::{MessageSink, Messages, RpcCall};
use super::input::InputError;
use super::launch::launch;
use super::output::{OutputItem, Subscription};
use super::status::ExitStatus;
use super::{FoundProcess, Process};

/// What a stream has to tell of one process.
pub(in super::super) struct ProcessEvents {
    pid: u32,
    what: Telling,
}

enum Telling {
    Live(Subscription),
    Ended(ExitStatus),
}

pub(in super::super) async fn list(
    call: RpcCall,
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
    call: &RpcCall,
    request: StartRequest,
) -> Result<ProcessEvents, ConnectError> {
    let (sender, receiver) = oneshot::channel();
    let owned = call.clone();
    call.daemon.tasks.spawn(async move {
        let launched = launch(owned, request).await;
        // Without a receiver the caller left; the process goes on.
        drop(sender.send(launched));
    });
    let (pid, subscription) = receiver.await.map_err(|_| {
        ConnectError::new(Code::Internal, "the process's start was given up; see the log")
    })??;
    Ok(ProcessEvents { pid, what: Telling::Live(subscription) })
}

/// Subscribes to a process that runs or just ended (executor 4.6).
pub(in super::super) fn connect(
    call: &RpcCall,
    request: ConnectRequest,
) -> Result<ProcessEvents, ConnectError> {
    let selector = selector(request.process)?;
    match call.daemon.processes.find(&selector).ok_or_else(|| not_found(&selector))? {
        FoundProcess::Live(process) => {
            let what = Telling::Live(process.output.subscribe(call.deadline));
            Ok(ProcessEvents { pid: process.pid, what })
        }
        FoundProcess::Ended(pid, status) => Ok(ProcessEvents { pid, what: Telling::Ended(status) }),
    }
}

impl ProcessEvents {
    /// Sends start, output and end, with keepalives in between (executor 2.6, 4.4).
    pub(in super::super) async fn send(self, sink: MessageSink) -> Result<(), ConnectError> {
        sink.send(&event(Event::Start(StartEvent { pid: self.pid }))).await?;
        let status = match self.what {
            Telling::Live(subscription) => send_output(subscription, &sink).await?,
            Telling::Ended(status) => status,
        };
        sink.send(&event(Event::End(status.end_event()))).await
    }
}

async fn send_output(
    mut subscription: Subscription,
    sink: &MessageSink,
) -> Result<ExitStatus, ConnectError> {
    loop {
        let next = Instant::now() + sink.keepalive;
        match tokio::time::timeout_at(next, subscription.next()).await {
            Ok(OutputItem::Chunk(chunk)) => sink.send_output(chunk).await?,
            Ok(OutputItem::End(status)) => return Ok(status),
            Err(_) => sink.send(&event(Event::Keepalive(KeepAlive {}))).await?,
        }
    }
}

/// `ConnectResponse` has the same members, in both encodings.
fn event(event: Event) -> StartResponse {
    StartResponse { event: Some(ProcessEvent { event: Some(event) }) }
}

pub(in super::super) async fn send_input(
    call: RpcCall,
    request: SendInputRequest,
) -> Result<SendInputResponse, ConnectError> {
    let process = find_live(&call, request.process)?;
    write(&process, request.input).await?;
    Ok(SendInputResponse {})
}

/// Writes each message as it comes; the first says to which process (executor 4.8).
pub(in super::super) async fn stream_input(
    call: RpcCall,
    mut messages: Messages,
) -> Result<StreamInputResponse, ConnectError> {
    let mut selected = None;
    while let Some(request) = messages.next::<StreamInputRequest>().await? {
        match (request.event, &selected) {
            (Some(InputEvent::Start(start)), None) => {
                selected = Some(find_live(&call, start.process)?);
            }
            (Some(InputEvent::Data(data)), Some(process)) => write(process, data.input).await?,
            (Some(InputEvent::Keepalive(_)), _) => {}
            (Some(InputEvent::Start(_)), Some(_))
            | (Some(InputEvent::Data(_)), None)
            | (None, _) => {
                let message = "a stream of input is one 'start', then 'data' and 'keepalive'";
                return Err(ConnectError::new(Code::Unimplemented, message));
            }
        }
    }
    Ok(StreamInputResponse {})
}

async fn write(process: &Process, input: Option<ProcessInput>) -> Result<(), ConnectError> {
    let data = input.and_then(|input| input.input).ok_or_else(|| {
        ConnectError::new(Code::Unimplemented, "there is no input: give stdin or pty")
    })?;
    process.input.write(&data).await.map_err(|error| internal(&error))
}

fn internal(error: &InputError) -> ConnectError {
    ConnectError::new(Code::Internal, error.to_string())
}

pub(in super::super) async fn close_stdin(
    call: RpcCall,
    request: CloseStdinRequest,
) -> Result<CloseStdinResponse, ConnectError> {
    let process = find_live(&call, request.process)?;
    process.input.close_stdin().map_err(|_| {
        let message = "a terminal's input is not closed: send the byte 0x04 as 'pty' instead";
        ConnectError::new(Code::Unknown, message)
    })?;
    Ok(CloseStdinResponse {})
}

/// Sets the size of a process's terminal.
pub(in super::super) async fn update(
    call: RpcCall,
    request: UpdateRequest,
) -> Result<UpdateResponse, ConnectError> {
    let process = find_live(&call, request.process)?;
    if let Some(wanted) = &request.pty {
        process.input.resize(wanted).map_err(|error| internal(&error))?;
    }
    Ok(UpdateResponse {})
}

pub(in super::super) async fn send_signal(
    call: RpcCall,
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

fn find_live(
    call: &RpcCall,
    process: Option<ProcessSelector>,
) -> Result<Arc<Process>, ConnectError> {
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

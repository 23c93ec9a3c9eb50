//! The Connect protocol, server side (executor 2.2 to 2.6): which procedure, which form and codec, how
//! long, and the answer around what the procedure says.

mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{
    ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use prost::Message;
use sandyard_contract::connect::{Code, Codec, ConnectError, EndStream, FLAG_END_STREAM, Form};
use sandyard_contract::rpc::process::process_event::data_event::Output;
use sandyard_http::Inbound;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::accounts::User;
use super::body::{Chunks, DaemonBody};
use super::tasks::lock;
use super::{Daemon, filesystem, process};

pub(super) use wire::Messages;

const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const STREAM_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("connect-accept-encoding");
const KEEPALIVE: HeaderName = HeaderName::from_static("keepalive-ping-interval");
const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");

/// How the Python SDKs call themselves whose generated code refuses unknown members (executor 8).
const LEGACY_AGENT: &str = "connect-python";
/// The service whose answers are others for them, as paths begin with it.
const FILESYSTEM: &str = "/filesystem.";
const LEGACY_SDK: HeaderName = HeaderName::from_static("x-e2b-legacy-sdk");

/// Seconds between keepalives for clients that ask for none (executor 2.6).
const DEFAULT_KEEPALIVE: u64 = 90;

/// The procedures that there are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Procedure {
    ProcessList,
    ProcessConnect,
    ProcessStart,
    ProcessUpdate,
    ProcessStreamInput,
    ProcessSendInput,
    ProcessSendSignal,
    ProcessCloseStdin,
    FilesystemStat,
    FilesystemMakeDir,
    FilesystemMove,
    FilesystemListDir,
    FilesystemRemove,
    FilesystemWatchDir,
    FilesystemCreateWatcher,
    FilesystemGetWatcherEvents,
    FilesystemRemoveWatcher,
}

impl Procedure {
    pub(super) fn from_path(path: &str) -> Option<Self> {
        Some(match path {
            "/process.Process/List" => Self::ProcessList,
            "/process.Process/Connect" => Self::ProcessConnect,
            "/process.Process/Start" => Self::ProcessStart,
            "/process.Process/Update" => Self::ProcessUpdate,
            "/process.Process/StreamInput" => Self::ProcessStreamInput,
            "/process.Process/SendInput" => Self::ProcessSendInput,
            "/process.Process/SendSignal" => Self::ProcessSendSignal,
            "/process.Process/CloseStdin" => Self::ProcessCloseStdin,
            "/filesystem.Filesystem/Stat" => Self::FilesystemStat,
            "/filesystem.Filesystem/MakeDir" => Self::FilesystemMakeDir,
            "/filesystem.Filesystem/Move" => Self::FilesystemMove,
            "/filesystem.Filesystem/ListDir" => Self::FilesystemListDir,
            "/filesystem.Filesystem/Remove" => Self::FilesystemRemove,
            "/filesystem.Filesystem/WatchDir" => Self::FilesystemWatchDir,
            "/filesystem.Filesystem/CreateWatcher" => Self::FilesystemCreateWatcher,
            "/filesystem.Filesystem/GetWatcherEvents" => Self::FilesystemGetWatcherEvents,
            "/filesystem.Filesystem/RemoveWatcher" => Self::FilesystemRemoveWatcher,
            _ => return None,
        })
    }

    fn form(self) -> Form {
        match self {
            Self::ProcessConnect
            | Self::ProcessStart
            | Self::ProcessStreamInput
            | Self::FilesystemWatchDir => Form::Stream,
            _ => Form::Unary,
        }
    }
}

/// The context of a call: what a procedure knows in addition to its request.
#[derive(Clone)]
pub(super) struct RpcCall {
    pub daemon: Arc<Daemon>,
    /// The user the request names.
    pub named_user: Option<User>,
    /// When the call, and a process it starts, are over.
    pub deadline: Option<Instant>,
    /// Whether the client knows an entry's name, type and path only (executor 8).
    pub is_legacy: bool,
    keepalive: Duration,
}

impl RpcCall {
    /// The user this call acts for: the named one, else the default (executor 3.1). Blocks.
    pub(super) fn user(&self) -> Result<User, ConnectError> {
        if let Some(user) = &self.named_user {
            return Ok(user.clone());
        }
        let name = lock(&self.daemon.settings).default_user.clone();
        match User::find(&name) {
            Ok(Some(user)) => Ok(user),
            Ok(None) => Err(unauthenticated(&name)),
            Err(error) => {
                let message = format!("failed to look up the default user '{name}': {error}");
                Err(ConnectError::new(Code::Internal, message))
            }
        }
    }
}

/// The answer to a user that the image does not have.
pub(super) fn unauthenticated(name: &str) -> ConnectError {
    ConnectError::new(Code::Unauthenticated, format!("invalid username: '{name}'"))
}

/// Where a stream's messages go.
pub(super) struct MessageSink {
    codec: Codec,
    chunks: Arc<Chunks>,
    /// The longest silence this client wants.
    pub keepalive: Duration,
}

impl MessageSink {
    /// Sends one message, flushed at once.
    pub(super) async fn send<M: Message + Serialize>(
        &self,
        message: &M,
    ) -> Result<(), ConnectError> {
        self.send_envelope(wire::message_envelope(self.codec, message)?).await
    }

    /// Sends one `data` event of a process.
    pub(super) async fn send_output(&self, output: Output) -> Result<(), ConnectError> {
        self.send_envelope(wire::output_envelope(self.codec, output)?).await
    }

    async fn send_envelope(&self, envelope: Bytes) -> Result<(), ConnectError> {
        let sent = self.chunks.send(envelope).await;
        sent.map_err(|_| ConnectError::new(Code::Canceled, "the client closed the stream"))
    }
}

/// Answers a request for a procedure.
pub(super) async fn answer(
    procedure: Procedure,
    daemon: &Arc<Daemon>,
    named_user: Option<User>,
    request: Request<Inbound>,
) -> Response<DaemonBody> {
    let form = procedure.form();
    if request.method() != Method::POST {
        return bare(StatusCode::METHOD_NOT_ALLOWED, ALLOW, "POST");
    }
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let codec = match content_type.and_then(Codec::from_content_type) {
        Some((asked, codec)) if asked == form => codec,
        _ => {
            let accepted = match form {
                Form::Unary => "application/json, application/proto",
                Form::Stream => "application/connect+json, application/connect+proto",
            };
            return bare(StatusCode::UNSUPPORTED_MEDIA_TYPE, ACCEPT_POST, accepted);
        }
    };
    let is_legacy = request.uri().path().starts_with(FILESYSTEM)
        && request.headers().get(USER_AGENT).is_some_and(|agent| agent == LEGACY_AGENT);
    let result = async {
        let deadline = read_deadline(request.headers())?;
        let keepalive = read_keepalive(request.headers());
        let call =
            RpcCall { daemon: Arc::clone(daemon), named_user, deadline, is_legacy, keepalive };
        within(deadline, serve(procedure, codec, call, request)).await
    };
    let mut response = result.await.unwrap_or_else(|error| refuse(form, codec, error));
    if is_legacy {
        response.headers_mut().insert(LEGACY_SDK, HeaderValue::from_static("true"));
    }
    response
}

fn bare(status: StatusCode, name: HeaderName, value: &'static str) -> Response<DaemonBody> {
    let mut response = Response::new(DaemonBody::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

async fn serve(
    procedure: Procedure,
    codec: Codec,
    call: RpcCall,
    request: Request<Inbound>,
) -> Result<Response<DaemonBody>, ConnectError> {
    use Procedure::*;
    match procedure {
        ProcessList => unary(codec, call, request, process::list).await,
        ProcessUpdate => unary(codec, call, request, process::update).await,
        ProcessSendInput => unary(codec, call, request, process::send_input).await,
        ProcessSendSignal => unary(codec, call, request, process::send_signal).await,
        ProcessCloseStdin => unary(codec, call, request, process::close_stdin).await,
        ProcessStreamInput => {
            let answer = process::stream_input(call, Messages::read(codec, request)?).await?;
            let message = wire::message_envelope(codec, &answer)?;
            let end = end_envelope(None).map_err(unwritable)?;
            Ok(respond(Form::Stream, codec, DaemonBody::full([message, end].concat())))
        }
        ProcessStart => {
            let events =
                process::start(&call, Messages::read(codec, request)?.only().await?).await?;
            Ok(stream(codec, &call, |sink| events.send(sink)))
        }
        ProcessConnect => {
            let events = process::connect(&call, Messages::read(codec, request)?.only().await?)?;
            Ok(stream(codec, &call, |sink| events.send(sink)))
        }
        FilesystemStat => unary(codec, call, request, filesystem::stat).await,
        FilesystemMakeDir => unary(codec, call, request, filesystem::make_dir).await,
        FilesystemMove => unary(codec, call, request, filesystem::rename).await,
        FilesystemListDir => unary(codec, call, request, filesystem::list_dir).await,
        FilesystemRemove => unary(codec, call, request, filesystem::remove).await,
        FilesystemCreateWatcher => unary(codec, call, request, filesystem::create_watcher).await,
        FilesystemGetWatcherEvents => unary(codec, call, request, filesystem::watcher_events).await,
        FilesystemRemoveWatcher => unary(codec, call, request, filesystem::remove_watcher).await,
        FilesystemWatchDir => {
            let message = Messages::read(codec, request)?.only().await?;
            let events = filesystem::watch_dir(&call, message).await?;
            Ok(stream(codec, &call, |sink| events.send(sink)))
        }
    }
}

async fn unary<Req, Res, F>(
    codec: Codec,
    call: RpcCall,
    request: Request<Inbound>,
    method: impl FnOnce(RpcCall, Req) -> F,
) -> Result<Response<DaemonBody>, ConnectError>
where
    Req: Message + Default + DeserializeOwned,
    Res: Message + Serialize,
    F: Future<Output = Result<Res, ConnectError>>,
{
    let message = wire::unary_message(request).await?;
    let answer = method(call, wire::decode(codec, &message)?).await?;
    Ok(respond(Form::Unary, codec, DaemonBody::full(wire::encode(codec, &answer)?)))
}

/// A stream's answer: what `make` sends, then how it ended.
fn stream<F>(
    codec: Codec,
    call: &RpcCall,
    make: impl FnOnce(MessageSink) -> F,
) -> Response<DaemonBody>
where
    F: Future<Output = Result<(), ConnectError>> + Send + 'static,
{
    let (deadline, keepalive) = (call.deadline, call.keepalive);
    let body = DaemonBody::events(|chunks| {
        let chunks = Arc::new(chunks);
        let sink = MessageSink { codec, chunks: Arc::clone(&chunks), keepalive };
        let sending = make(sink);
        async move {
            let error = within(deadline, sending).await.err();
            chunks.send(end_envelope(error)?).await
        }
    });
    respond(Form::Stream, codec, body)
}

fn end_envelope(error: Option<ConnectError>) -> io::Result<Bytes> {
    let payload = serde_json::to_vec(&EndStream { error })?;
    Ok(wire::envelope(FLAG_END_STREAM, &payload))
}

fn unwritable(error: io::Error) -> ConnectError {
    ConnectError::new(Code::Internal, format!("failed to write the answer: {error}"))
}

fn respond(form: Form, codec: Codec, body: DaemonBody) -> Response<DaemonBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(codec.content_type(form)));
    let accepts = match form {
        Form::Unary => ACCEPT_ENCODING,
        Form::Stream => STREAM_ACCEPT_ENCODING,
    };
    headers.insert(accepts, HeaderValue::from_static("gzip"));
    response
}

/// An error in the form of the call: a status and JSON, or the end of a stream without messages.
fn refuse(form: Form, codec: Codec, error: ConnectError) -> Response<DaemonBody> {
    match form {
        Form::Unary => refuse_unary(&error),
        Form::Stream => match end_envelope(Some(error)) {
            Ok(envelope) => respond(form, codec, DaemonBody::full(envelope)),
            Err(error) => refuse_unary(&unwritable(error)),
        },
    }
}

fn refuse_unary(error: &ConnectError) -> Response<DaemonBody> {
    // Two strings always serialize.
    let body = serde_json::to_vec(error).unwrap_or_default();
    let mut response = respond(Form::Unary, Codec::Json, DaemonBody::full(body));
    *response.status_mut() =
        StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// An error before any procedure was looked for, in the form of the content type (executor 3.1).
pub(super) fn refuse_by_content_type(
    headers: &HeaderMap,
    error: ConnectError,
) -> Response<DaemonBody> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    match content_type.and_then(Codec::from_content_type) {
        Some((Form::Stream, codec)) => refuse(Form::Stream, codec, error),
        _ => refuse_unary(&error),
    }
}

/// Reads the deadline (executor 2.5): up to ten digits of milliseconds.
fn read_deadline(headers: &HeaderMap) -> Result<Option<Instant>, ConnectError> {
    let Some(value) = headers.get(TIMEOUT) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("");
    let digits = !text.is_empty() && text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(0) if digits => Err(deadline_exceeded()),
        Ok(millis) if digits => Ok(Some(Instant::now() + Duration::from_millis(millis))),
        _ => Err(ConnectError::new(
            Code::InvalidArgument,
            format!("connect-timeout-ms '{text}' is not a number of up to 10 digits"),
        )),
    }
}

fn read_keepalive(headers: &HeaderMap) -> Duration {
    let text = headers.get(KEEPALIVE).and_then(|value| value.to_str().ok());
    let seconds = text.and_then(|text| text.parse::<u32>().ok()).filter(|seconds| *seconds > 0);
    Duration::from_secs(seconds.map_or(DEFAULT_KEEPALIVE, u64::from))
}

fn deadline_exceeded() -> ConnectError {
    ConnectError::new(Code::DeadlineExceeded, "the call's time is over")
}

/// Runs until the deadline, which wins when both are there: a process killed by it ends at that moment
/// too, and its caller must hear of the deadline (executor 4.7).
async fn within<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let Some(deadline) = deadline else {
        return work.await;
    };
    tokio::select! {
        biased;
        () = tokio::time::sleep_until(deadline) => Err(deadline_exceeded()),
        result = work => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn deadlines_are_up_to_ten_digits() {
        let code = |value| read_deadline(&headers(TIMEOUT, value)).map_err(|error| error.code);
        assert!(matches!(code("9999999999"), Ok(Some(_))));
        for bad in ["", "12345678901", "1.5", "-1", "+1", "x"] {
            assert_eq!(code(bad), Err(Code::InvalidArgument), "{bad:?}");
        }
        assert_eq!(code("0"), Err(Code::DeadlineExceeded));
        assert!(matches!(read_deadline(&HeaderMap::new()), Ok(None)));
    }

    #[test]
    fn a_keepalive_that_cannot_be_read_is_the_default() {
        let seconds = |value| read_keepalive(&headers(KEEPALIVE, value)).as_secs();
        assert_eq!(seconds("50"), 50);
        for bad in ["0", "x", "-1", ""] {
            assert_eq!(seconds(bad), 90, "{bad:?}");
        }
    }
}

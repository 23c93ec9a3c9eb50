//! Sections 2.2 and 4.8: streamed input.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::{DaemonAnswer, TOKEN_LINE, TestDaemon, envelope, shell};

const START: &str = "/process.Process/Start";
const STREAM: &str = "/process.Process/StreamInput";
const JSON: &str = "application/connect+json";

/// A call under way, in chunks as clients send it.
struct Streaming(TcpStream);

impl Streaming {
    fn begin(daemon: &TestDaemon, content_type: &str) -> Self {
        let mut socket = daemon.connect();
        let head = format!(
            "POST {STREAM} HTTP/1.1\r\nHost: x\r\n{TOKEN_LINE}Connection: close\r\n\
             Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).expect("it is sent");
        Self(socket)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.0.write_all(&chunk).expect("it is sent");
    }

    fn send(&mut self, message: &Value) {
        self.bytes(&envelope(message.to_string().as_bytes()));
    }

    fn answer(mut self) -> DaemonAnswer {
        self.0.write_all(b"0\r\n\r\n").expect("it is sent");
        self.early_answer()
    }

    /// The answer to a call that is not over on this side.
    fn early_answer(mut self) -> DaemonAnswer {
        DaemonAnswer::read_whole(&mut self.0)
    }
}

fn start(pid: u64) -> Value {
    json!({"start": {"process": {"pid": pid}}})
}

fn data(text: &str) -> Value {
    json!({"data": {"input": {"stdin": STANDARD.encode(text)}}})
}

/// The error of a stream without messages.
fn error(answer: &DaemonAnswer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert_eq!(answer.header("content-type").as_deref(), Some(JSON));
    assert_eq!(answer.body[0], 2, "{:?}", String::from_utf8_lossy(&answer.body));
    let end: Value = serde_json::from_slice(&answer.body[5..]).expect("JSON");
    end["error"].clone()
}

// executor 2.2: each envelope is processed as it arrives; the answer is `{}` and the end of a stream.
#[test]
fn each_message_is_written_as_it_comes() {
    let daemon = TestDaemon::start();
    let mut cat = daemon.stream(START, &shell("cat"), &[]);
    let pid = cat.pid();
    let mut streaming = Streaming::begin(&daemon, JSON);
    streaming.send(&start(pid));
    streaming.send(&data("first"));
    cat.until("first");
    streaming.send(&json!({"keepalive": {}}));
    // Two messages in one piece, and one in two pieces.
    let two = ["second ", "third"].map(|text| envelope(data(text).to_string().as_bytes()));
    streaming.bytes(&two.concat());
    cat.until("second third");
    let whole = envelope(data("fourth").to_string().as_bytes());
    let (begin, rest) = whole.split_at(3);
    streaming.bytes(begin);
    streaming.bytes(rest);
    cat.until("fourth");
    let answer = streaming.answer();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"\0\0\0\0\x02{}\x02\0\0\0\x02{}"[..]));
    assert_eq!(answer.header("content-type").as_deref(), Some(JSON));
    // The process is none the wiser: its input stays open.
    let close = json!({"process": {"pid": pid}});
    assert_eq!(daemon.unary("/process.Process/CloseStdin", &close).text(), "{}");
    assert_eq!(cat.remaining().2["status"], "exit status 0");
}

// executor 4.8: the first message selects, by pid or tag; terminals take `pty`.
#[test]
fn a_terminal_is_typed_into_by_its_tag() {
    let daemon = TestDaemon::start();
    let mut request = shell("read line; test \"$line\" = typed");
    request["pty"] = json!({});
    request["tag"] = json!("typist");
    let mut stream = daemon.stream(START, &request, &[]);
    stream.pid();
    let mut streaming = Streaming::begin(&daemon, JSON);
    streaming.send(&json!({"start": {"process": {"tag": "typist"}}}));
    for part in ["ty", "ped\n"] {
        streaming.send(&json!({"data": {"input": {"pty": STANDARD.encode(part)}}}));
    }
    assert_eq!(streaming.answer().body, b"\0\0\0\0\x02{}\x02\0\0\0\x02{}");
    assert_eq!(stream.remaining().2["status"], "exit status 0");
}

#[test]
fn the_binary_codec_streams_input_too() {
    use prost::Message as _;
    use sandyard_contract::rpc::process::process_input::Input;
    use sandyard_contract::rpc::process::process_selector::Selector;
    use sandyard_contract::rpc::process::stream_input_request::{DataEvent, Event, StartEvent};
    use sandyard_contract::rpc::process::{ProcessInput, ProcessSelector, StreamInputRequest};
    let daemon = TestDaemon::start();
    let mut cat = daemon.stream(START, &shell("cat"), &[]);
    let selector = Selector::Pid(u32::try_from(cat.pid()).unwrap());
    let process = Some(ProcessSelector { selector: Some(selector) });
    let input = ProcessInput { input: Some(Input::Stdin("hello".into())) };
    let mut streaming = Streaming::begin(&daemon, "application/connect+proto");
    for event in
        [Event::Start(StartEvent { process }), Event::Data(DataEvent { input: Some(input) })]
    {
        let message = StreamInputRequest { event: Some(event) };
        streaming.bytes(&envelope(&message.encode_to_vec()));
    }
    cat.until("hello");
    let answer = streaming.answer();
    assert_eq!(answer.body, b"\0\0\0\0\0\x02\0\0\0\x02{}");
    assert_eq!(answer.header("content-type").as_deref(), Some("application/connect+proto"));
}

// executor 4.6 and 4.8: what is not to be, in the form of a stream's end and before the client is done.
#[test]
fn streams_that_make_no_sense_are_refused_at_once() {
    let daemon = TestDaemon::start();
    let mut cat = daemon.stream(START, &shell("cat"), &[]);
    let pid = cat.pid();
    let mut plain = daemon.start_command("sleep 30");
    let without_stdin = plain.pid();
    let no_input = json!({"data": {}});
    let terminal = json!({"data": {"input": {"pty": ""}}});
    for (messages, code) in [
        (vec![start(999_999_999)], "not_found"),
        (vec![json!({"start": {}})], "unimplemented"),
        (vec![data("too early")], "unimplemented"),
        (vec![json!({})], "unimplemented"),
        (vec![start(pid), json!({})], "unimplemented"),
        (vec![start(pid), start(pid)], "unimplemented"),
        (vec![start(pid), no_input], "unimplemented"),
        (vec![start(pid), terminal], "internal"),
        (vec![start(without_stdin), data("x")], "internal"),
        (vec![json!([])], "invalid_argument"),
    ] {
        let mut streaming = Streaming::begin(&daemon, JSON);
        messages.iter().for_each(|message| streaming.send(message));
        assert_eq!(error(&streaming.early_answer())["code"], code, "{messages:?}");
    }
    let mut cut = Streaming::begin(&daemon, JSON);
    cut.bytes(&envelope(b"{}")[..6]);
    assert_eq!(error(&cut.answer())["code"], "invalid_argument");
    let mut huge = Streaming::begin(&daemon, JSON);
    huge.send(&start(pid));
    huge.bytes(b"\0\xff\xff\xff\xff{}");
    assert_eq!(error(&huge.answer())["code"], "invalid_argument");
    let nothing = Streaming::begin(&daemon, JSON).answer();
    assert_eq!(nothing.body, b"\0\0\0\0\x02{}\x02\0\0\0\x02{}");
    assert_eq!(Streaming::begin(&daemon, "application/json").answer().status, 415);
    // Nothing of all that reached the process.
    let end = json!({"process": {"pid": pid}, "signal": 15});
    assert_eq!(daemon.unary("/process.Process/SendSignal", &end).status, 200);
    assert_eq!(cat.remaining().0, "");
    let end = json!({"process": {"pid": without_stdin}, "signal": 9});
    assert_eq!(daemon.unary("/process.Process/SendSignal", &end).status, 200);
}

// executor 4.8: writes to one process keep their order, and one that waits ends with the process.
#[test]
fn a_write_that_waits_holds_the_next_and_ends_with_the_process() {
    let daemon = TestDaemon::start();
    let script = "head -c 1 >/dev/null; echo begun; exec sleep 30";
    let mut stream = daemon.stream(START, &shell(script), &[]);
    let pid = stream.pid();
    let mut first = Streaming::begin(&daemon, JSON);
    first.send(&start(pid));
    // More than a pipe holds.
    first.send(&data(&"x".repeat(1 << 20)));
    stream.until("begun");
    let input = json!({"process": {"pid": pid}, "input": {"stdin": STANDARD.encode("y")}});
    let second = daemon.send(
        "POST",
        "/process.Process/SendInput",
        &[("Content-Type", "application/json")],
        input.to_string().as_bytes(),
    );
    let end = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
    assert_eq!(daemon.unary("/process.Process/SendSignal", &end).status, 200);
    assert_eq!(stream.remaining().2["status"], "signal: killed");
    assert_eq!(error(&first.early_answer())["code"], "internal");
    let mut second = second;
    let second = DaemonAnswer::read(&mut second);
    // It may have come after the process's end.
    assert!(matches!(second.status, 500 | 404), "{}", second.text());
}

// executor 4.8: the daemon itself lives on; it is written to a pipe that nobody will ever read.
#[test]
fn a_process_that_closed_its_input_is_an_error() {
    let daemon = TestDaemon::start();
    let mut stream = daemon.stream(START, &shell("exec 0<&-; echo closed; exec sleep 30"), &[]);
    let pid = stream.pid();
    stream.until("closed");
    let input = json!({"process": {"pid": pid}, "input": {"stdin": STANDARD.encode("x")}});
    let refused = daemon.unary("/process.Process/SendInput", &input);
    assert_eq!((refused.status, &refused.json()["code"]), (500, &json!("internal")));
    assert_eq!(daemon.get("/health").status, 204);
}

// executor 2.5: a deadline ends calls of every form.
#[test]
fn a_write_that_waits_ends_at_its_calls_deadline() {
    let daemon = TestDaemon::start();
    let mut stream = daemon.stream(START, &shell("exec sleep 30"), &[]);
    let pid = stream.pid();
    let much = "x".repeat(1 << 20);
    let input = json!({"process": {"pid": pid}, "input": {"stdin": STANDARD.encode(&much)}});
    let over =
        daemon.unary_with("/process.Process/SendInput", &input, &[("Connect-Timeout-Ms", "300")]);
    assert_eq!((over.status, &over.json()["code"]), (504, &json!("deadline_exceeded")));
    let body: Vec<u8> = [start(pid), data(&much)]
        .iter()
        .flat_map(|message| envelope(message.to_string().as_bytes()))
        .collect();
    let headers = [("Content-Type", JSON), ("Connect-Timeout-Ms", "300")];
    let over = daemon.call("POST", STREAM, &headers, &body);
    assert_eq!(error(&over)["code"], "deadline_exceeded");
}

// executor 2.7: a client that vanishes in the middle leaves the process as it is.
#[test]
fn a_client_that_vanishes_ends_its_stream_alone() {
    let daemon = TestDaemon::start();
    let mut cat = daemon.stream(START, &shell("cat"), &[]);
    let pid = cat.pid();
    let mut streaming = Streaming::begin(&daemon, JSON);
    streaming.send(&start(pid));
    streaming.send(&data("begun "));
    cat.until("begun ");
    streaming.0.shutdown(Shutdown::Both).expect("it is open");
    let mut next = Streaming::begin(&daemon, JSON);
    next.send(&start(pid));
    next.send(&data("ended"));
    cat.until("ended");
    assert_eq!(next.answer().status, 200);
}

// executor 4.8: a client that is still sending gets the error, and no reset connection in its place.
#[test]
fn an_error_arrives_while_its_client_still_sends() {
    let daemon = TestDaemon::start();
    for _ in 0..20 {
        let mut streaming = Streaming::begin(&daemon, JSON);
        streaming.send(&start(999_999));
        for _ in 0..10 {
            streaming.send(&data(&"x".repeat(20_000)));
        }
        assert_eq!(error(&streaming.answer())["code"], "not_found");
    }
}

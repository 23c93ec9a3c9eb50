//! A daemon for one test, and a client that hides nothing of HTTP.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use sandyard_contract::daemon::{INIT_BODY_HASH_HEADER, INIT_SIGNATURE_HEADER, init_signing_input};
use sandyard_types::InstanceId;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// No answer of these tests takes longer, apart from a fault.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_sandyard-executor");

/// The access token of every claimed daemon here.
pub(crate) const TOKEN: &str = "tok";

/// Its header, for requests that a test writes by itself.
pub(crate) const TOKEN_LINE: &str = "X-Access-Token: tok\r\n";

/// When every claim here was made.
pub(crate) const CLAIMED_AT: &str = "2026-01-01T00:00:00Z";

/// A running daemon, ended on drop, with a directory of its own.
pub(crate) struct TestDaemon {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) instance: InstanceId,
    pub(crate) key: SigningKey,
    directory: tempfile::TempDir,
    /// Whether requests show the access token.
    shows_token: AtomicBool,
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct DaemonAnswer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl TestDaemon {
    /// Starts one and claims it.
    pub(crate) fn start() -> Self {
        Self::start_with(json!({}))
    }

    /// Starts one and claims it with more settings.
    pub(crate) fn start_with(settings: Value) -> Self {
        Self::start_unclaimed().claimed_with(settings)
    }

    /// Starts one that nobody has claimed; it listens when this returns.
    pub(crate) fn start_unclaimed() -> Self {
        Self::start_by(&mut Command::new(PROGRAM))
    }

    /// Starts one in namespaces of its own, where a script may set limits and mount first, and claims it.
    pub(crate) fn start_within(script: &str) -> Self {
        Self::start_unclaimed_within(script).claimed_with(json!({}))
    }

    /// The same without the claim.
    pub(crate) fn start_unclaimed_within(script: &str) -> Self {
        let script = format!("{script}; exec \"$0\" \"$@\"");
        let arguments = ["--user", "--map-root-user", "--mount", "sh", "-ec", &script, PROGRAM];
        Self::start_by(Command::new("unshare").args(arguments))
    }

    /// Starts one through a command, which executes the program.
    pub(crate) fn start_by(command: &mut Command) -> Self {
        let key = SigningKey::from_bytes(&[7; 32]);
        let instance = InstanceId::random();
        let mut child = command
            .args(["daemon", "--listen", "127.0.0.1:0", "--instance", instance.as_str()])
            .args(["--control-key", &hex::encode(key.verifying_key().as_bytes())])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let mut line = String::new();
        let mut log = BufReader::new(child.stderr.take().expect("it was piped"));
        log.read_line(&mut line).expect("the daemon says where it listens");
        let address = line.trim().rsplit(' ').next().and_then(|text| text.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}"));
        // What it says later goes to the test's output, and never fills the pipe.
        std::thread::spawn(move || {
            log.lines().map_while(Result::ok).for_each(|l| eprintln!("{l}"))
        });
        let directory = tempfile::tempdir().expect("a directory");
        Self { child, address, instance, key, directory, shows_token: AtomicBool::new(true) }
    }

    /// Claims it.
    pub(crate) fn claimed_with(self, settings: Value) -> Self {
        let mut body = json!({"accessToken": TOKEN, "timestamp": CLAIMED_AT});
        for (name, value) in settings.as_object().expect("settings are members") {
            body[name] = value.clone();
        }
        let answer = self.init(&body);
        assert_eq!(answer.status, 204, "{}", answer.text());
        self
    }

    /// A path in this test's own directory, which every user may enter.
    pub(crate) fn path(&self, name: &str) -> String {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.directory.path(), mode).expect("it is ours");
        self.directory.path().join(name).to_str().expect("plain names").to_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to end, by somebody who is not its child.
    pub(crate) fn terminate(&self) {
        let told = Command::new("kill").arg(self.pid().to_string()).status().expect("kill runs");
        assert!(told.success());
    }

    /// Sends it a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let arguments = [format!("-{name}"), self.pid().to_string()];
        assert!(Command::new("kill").args(arguments).status().expect("kill runs").success());
    }

    /// How many of its open files have a path that begins so.
    pub(crate) fn open_files(&self, path: &str) -> usize {
        let listed = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        listed
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with(path))
            .count()
    }

    /// How many TCP sockets it has, its listener included.
    pub(crate) fn tcp_sockets(&self) -> usize {
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.pid()));
        let table = table.expect("it runs");
        let inodes = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(9));
        inodes.map(|inode| self.open_files(&format!("socket:[{inode}]"))).sum()
    }

    /// Its resident memory.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has");
        line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number")
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("it is ours")
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket has timeouts");
        stream
    }

    /// One request on a connection of its own.
    pub(crate) fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> DaemonAnswer {
        DaemonAnswer::read(&mut self.send(method, target, headers, body))
    }

    /// Sends one request; the answer is still to be read.
    pub(crate) fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> TcpStream {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        if self.shows_token.load(Ordering::Relaxed)
            && headers.iter().all(|(name, _)| *name != "X-Access-Token")
        {
            head.push_str(TOKEN_LINE);
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if method != "GET" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut stream = self.connect();
        stream.write_all(&[head.as_bytes(), body].concat()).expect("the request is sent");
        stream
    }

    pub(crate) fn get(&self, target: &str) -> DaemonAnswer {
        self.call("GET", target, &[], b"")
    }

    /// A unary procedure in JSON.
    pub(crate) fn unary(&self, procedure: &str, message: &Value) -> DaemonAnswer {
        self.unary_with(procedure, message, &[])
    }

    pub(crate) fn unary_with(
        &self,
        procedure: &str,
        message: &Value,
        headers: &[(&str, &str)],
    ) -> DaemonAnswer {
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        self.call("POST", procedure, &headers, message.to_string().as_bytes())
    }

    /// A streaming procedure in JSON, not yet read.
    pub(crate) fn stream(
        &self,
        procedure: &str,
        message: &Value,
        headers: &[(&str, &str)],
    ) -> RpcStream {
        let headers = [&[("Content-Type", "application/connect+json")], headers].concat();
        let body = envelope(message.to_string().as_bytes());
        let socket = self.send("POST", procedure, &headers, &body);
        RpcStream::open(socket)
    }

    /// Starts a shell command as root, without stdin.
    pub(crate) fn start_command(&self, script: &str) -> RpcStream {
        let mut message = shell(script);
        message["stdin"] = json!(false);
        self.stream("/process.Process/Start", &message, &[])
    }

    /// Runs a shell command to its end: stdout, stderr, the end event.
    pub(crate) fn run(&self, script: &str) -> (String, String, Value) {
        self.start_command(script).finish()
    }

    /// A signed call to `/init`.
    pub(crate) fn init(&self, body: &Value) -> DaemonAnswer {
        let body = body.to_string();
        let headers = self.signed(body.as_bytes());
        let headers = headers.each_ref().map(|(name, value)| (*name, &**value));
        self.call("POST", "/init", &headers, body.as_bytes())
    }

    /// The headers that sign a call to `/init` with this body.
    pub(crate) fn signed(&self, body: &[u8]) -> [(&'static str, String); 2] {
        let hash = hex::encode(Sha256::digest(body));
        let input = init_signing_input(&self.instance, body.len() as u64, &hash);
        let signature = hex::encode(self.key.sign(&input).to_bytes());
        [(INIT_SIGNATURE_HEADER, signature), (INIT_BODY_HASH_HEADER, hash)]
    }

    /// From now on requests show the access token only where a test says so.
    pub(crate) fn show_no_token(&self) {
        self.shows_token.store(false, Ordering::Relaxed);
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }
}

impl DaemonAnswer {
    pub(crate) fn read(stream: &mut TcpStream) -> Self {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("the answer comes in time");
        let end = find(&all, b"\r\n\r\n").expect("an answer has a head");
        let head = String::from_utf8(all[..end].to_vec()).expect("heads are ASCII");
        let mut answer = Self { status: status(&head), head, body: all[end + 4..].to_vec() };
        if answer.header("transfer-encoding").as_deref() == Some("chunked") {
            answer.body = unchunk(&answer.body);
        }
        answer
    }

    /// Reads no further than the head: the connection may stay open.
    pub(crate) fn read_head(stream: &mut TcpStream) -> Self {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("the head comes in time");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("heads are ASCII");
        Self { status: status(&head), head, body: Vec::new() }
    }

    /// Reads as much as the head announces: the connection may stay open.
    pub(crate) fn read_whole(stream: &mut TcpStream) -> Self {
        let mut answer = Self::read_head(stream);
        let length = answer.header("content-length").and_then(|text| text.parse().ok());
        answer.body = vec![0; length.expect("the answer tells its length")];
        stream.read_exact(&mut answer.body).expect("the answer comes in time");
        answer
    }

    /// All values of a header, joined by a comma.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }
}

/// A stream of envelopes, read one by one.
pub(crate) struct RpcStream {
    pub(crate) head: String,
    reader: BufReader<TcpStream>,
    buffered: Vec<u8>,
}

impl RpcStream {
    fn open(socket: TcpStream) -> Self {
        let mut reader = BufReader::new(socket);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).expect("a head in time"), 0, "{head}");
        }
        Self { head, reader, buffered: Vec::new() }
    }

    pub(crate) fn status(&self) -> u16 {
        status(&self.head)
    }

    /// Reads until at least so many bytes are there.
    fn fill(&mut self, length: usize) {
        let chunked = header(&self.head, "transfer-encoding").is_some();
        while self.buffered.len() < length {
            let mut size = length - self.buffered.len();
            if chunked {
                let mut line = String::new();
                self.reader.read_line(&mut line).expect("a chunk in time");
                size = usize::from_str_radix(line.trim(), 16).expect("a chunk's size");
                assert_ne!(size, 0, "the stream ended without an end");
            }
            let mut chunk = vec![0; size + if chunked { 2 } else { 0 }];
            self.reader.read_exact(&mut chunk).expect("a chunk in time");
            self.buffered.extend_from_slice(&chunk[..size]);
        }
    }

    /// The next envelope as it is: flags and payload.
    pub(crate) fn envelope(&mut self) -> (u8, Vec<u8>) {
        self.fill(5);
        let length = u32::from_be_bytes(self.buffered[1..5].try_into().expect("four")) as usize;
        self.fill(5 + length);
        let payload = self.buffered[5..5 + length].to_vec();
        let flags = self.buffered[0];
        self.buffered.drain(..5 + length);
        (flags, payload)
    }

    /// The next message; the end of the stream has flag 2.
    pub(crate) fn next(&mut self) -> (u8, Value) {
        let (flags, payload) = self.envelope();
        (flags, serde_json::from_slice(&payload).expect("JSON"))
    }

    /// The pid of the start event, which comes first.
    pub(crate) fn pid(&mut self) -> u64 {
        let (flags, message) = self.next();
        assert_eq!(flags, 0, "{message}");
        message["event"]["start"]["pid"].as_u64().unwrap_or_else(|| panic!("{message}"))
    }

    /// The error of a stream without messages.
    pub(crate) fn error(mut self) -> Value {
        assert_eq!(self.status(), 200);
        let (flags, message) = self.next();
        assert_eq!(flags, 2, "{message}");
        message["error"].clone()
    }

    /// Reads events until output holds a text.
    pub(crate) fn until(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            let (_, message) = self.next();
            let data = &message["event"]["data"];
            assert!(data.is_object(), "{text:?} did not come: {message}");
            seen.push_str(&output(data, "stdout"));
        }
    }

    /// Waits until the connection is cut off, without another byte: no event, no end of the stream, and
    /// no last chunk, which would be an end in HTTP's eyes.
    pub(crate) fn until_cut(mut self) {
        assert_eq!(header(&self.head, "transfer-encoding").as_deref(), Some("chunked"));
        let mut rest = std::mem::take(&mut self.buffered);
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("it is not cut off in time: {error}"),
        }
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }

    /// Reads start and everything after it.
    pub(crate) fn finish(mut self) -> (String, String, Value) {
        self.pid();
        self.remaining()
    }

    /// Reads data, the one end, and the end of the stream.
    pub(crate) fn remaining(mut self) -> (String, String, Value) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        loop {
            let (flags, message) = self.next();
            assert_eq!(flags, 0, "the stream ended without an end event: {message}");
            let event = &message["event"];
            if event["end"].is_object() {
                assert_eq!(self.next(), (2, json!({})));
                return (stdout, stderr, event["end"].clone());
            }
            stdout.push_str(&output(&event["data"], "stdout"));
            stderr.push_str(&output(&event["data"], "stderr"));
        }
    }
}

fn output(data: &Value, name: &str) -> String {
    let bytes = STANDARD.decode(data[name].as_str().unwrap_or("")).expect("base64");
    String::from_utf8(bytes).expect("a text")
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `StartRequest` of a shell command.
pub(crate) fn shell(script: &str) -> Value {
    json!({ "process": { "cmd": "/bin/bash", "args": ["-c", script] } })
}

/// What names a user, as clients send it.
pub(crate) fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:")))
}

pub(crate) fn envelope(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    [&[0], &length.to_be_bytes()[..], payload].concat()
}

pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status")
}

fn header(head: &str, name: &str) -> Option<String> {
    let values: Vec<&str> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect();
    (!values.is_empty()).then(|| values.join(", "))
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = find(body, b"\r\n").expect("a chunk's size");
        let size = std::str::from_utf8(&body[..end]).expect("ASCII");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return whole;
        }
        body = &body[end + 2..];
        whole.extend_from_slice(&body[..size]);
        body = &body[size + 2..];
    }
}

//! Sections 4.3 and 4.8: processes with a terminal.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::{DaemonAnswer, RpcStream, TestDaemon, basic, shell};

const START: &str = "/process.Process/Start";
const CONNECT: &str = "/process.Process/Connect";
const INPUT: &str = "/process.Process/SendInput";
const UPDATE: &str = "/process.Process/Update";

/// An interactive shell, and what its terminal has shown since the last look.
struct Terminal<'a> {
    daemon: &'a TestDaemon,
    stream: RpcStream,
    pid: u64,
    shown: String,
}

/// A request for a shell that reads no files of its user and asks for nothing but `$`.
fn bash(pty: &Value) -> Value {
    let envs = json!({"PS1": "$ ", "TERM": "xterm-256color", "HISTFILE": ""});
    let args = ["--norc", "--noprofile", "--noediting", "-i"];
    json!({"process": {"cmd": "/bin/bash", "args": args, "envs": envs, "cwd": "/"}, "pty": pty})
}

fn size(cols: u32, rows: u32) -> Value {
    json!({"size": {"cols": cols, "rows": rows}})
}

impl<'a> Terminal<'a> {
    fn open(daemon: &'a TestDaemon, pty: &Value) -> Self {
        Self::open_as(daemon, pty, &[])
    }

    fn open_as(daemon: &'a TestDaemon, pty: &Value, headers: &[(&str, &str)]) -> Self {
        let stream = daemon.stream(START, &bash(pty), headers);
        let mut terminal = Self { daemon, stream, pid: 0, shown: String::new() };
        terminal.pid = terminal.stream.pid();
        terminal.until("$ ");
        terminal
    }

    fn input(&self, kind: &str, bytes: &[u8]) -> DaemonAnswer {
        let input = json!({kind: STANDARD.encode(bytes)});
        self.daemon.unary(INPUT, &json!({"process": {"pid": self.pid}, "input": input}))
    }

    fn press(&self, keys: &str) {
        assert_eq!(self.input("pty", keys.as_bytes()).text(), "{}");
    }

    fn update(&self, pty: &Value) -> DaemonAnswer {
        self.daemon.unary(UPDATE, &json!({"process": {"pid": self.pid}, "pty": pty}))
    }

    /// Waits until the terminal shows a text, and returns all up to it.
    fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(found) = self.shown.find(text) {
                return self.shown.drain(..found + text.len()).collect();
            }
            let (_, message) = self.stream.next();
            let data = &message["event"]["data"];
            assert_eq!(data.as_object().map(|data| data.len()), Some(1), "{text:?}: {message}");
            let bytes = STANDARD.decode(data["pty"].as_str().expect("pty")).expect("base64");
            assert!(bytes.len() <= 16 << 10, "{} bytes in one chunk", bytes.len());
            self.shown.push_str(std::str::from_utf8(&bytes).expect("ASCII"));
        }
    }

    /// Runs a command; what it prints, without the echo of the command.
    fn run(&mut self, command: &str) -> String {
        self.press(&format!("{command}; echo \"=$?=\"\n"));
        self.until("=$?=\"\r\n");
        let mut printed = self.until("=");
        printed.pop();
        let code = self.until("=\r\n$ ");
        assert_eq!(code, "0=\r\n$ ", "{command} printed {printed:?}");
        printed.replace("\r\n", "\n")
    }

    /// Runs `cat`, which is in the foreground when it answers.
    fn cat(&mut self) {
        self.press("cat\n");
        self.until("cat\r\n");
        self.press("line\n");
        self.until("line\r\nline\r\n");
    }

    /// Reads to the end event.
    fn end(mut self) -> Value {
        loop {
            let (flags, message) = self.stream.next();
            assert_eq!(flags, 0, "{message}");
            if message["event"]["end"].is_object() {
                assert_eq!(self.stream.next(), (2, json!({})));
                return message["event"]["end"].clone();
            }
        }
    }
}

// executor 4.3: a session of its own with the terminal in control, everything merged into `pty`.
#[test]
fn a_shell_has_a_terminal_that_controls_its_session() {
    let daemon = TestDaemon::start();
    let mut terminal = Terminal::open(&daemon, &size(100, 30));
    let device = terminal.run("tty");
    assert!(device.starts_with("/dev/pts/"), "{device}");
    assert_eq!(terminal.run("stty size"), "30 100\n");
    assert_eq!(terminal.run("tput cols; echo $TERM"), "100\nxterm-256color\n");
    // Session and foreground group are its own: fields 6 and 8 after the name.
    let own = format!("{0} {0}\n", terminal.pid);
    assert_eq!(terminal.run("cut -d' ' -f6,8 /proc/$$/stat | sed \"s/ .*/ $$/\""), own);
    assert_eq!(terminal.run("echo out; echo err >&2"), "out\nerr\n");
    assert_eq!(terminal.run("echo again >/dev/tty; cat /proc/self/oom_score_adj"), "again\n100\n");
    terminal.press("exit 5\n");
    let end = terminal.end();
    assert_eq!(end["exitCode"], 5, "{end}");
}

// executor 4.3: a missing size is 0 × 0, and values keep their lower 16 bits. 4.8: `Update`.
#[test]
fn sizes_are_set_truncated_and_told() {
    let daemon = TestDaemon::start();
    let mut terminal = Terminal::open(&daemon, &json!({}));
    assert_eq!(terminal.run("stty size"), "0 0\n");
    assert_eq!(terminal.update(&size(0x1_0000 + 80, 24)).text(), "{}");
    assert_eq!(terminal.run("stty size"), "24 80\n");
    terminal.run("trap 'echo window $(stty size) changed' WINCH");
    assert_eq!(terminal.update(&size(132, 43)).status, 200);
    // The shell's trap runs once it has something to do.
    terminal.press("\n");
    terminal.until("window 43 132 changed");
    terminal.until("$ ");
    let nothing = daemon.unary(UPDATE, &json!({"process": {"pid": terminal.pid}}));
    assert_eq!((nothing.status, nothing.text()), (200, "{}"));
    let mut pipes = daemon.stream(START, &shell("cat"), &[]);
    let process = json!({"pid": pipes.pid()});
    let none = daemon.unary(UPDATE, &json!({"process": process, "pty": size(1, 1)}));
    assert_eq!((none.status, &none.json()["code"]), (500, &json!("internal")));
    let nothing = daemon.unary(UPDATE, &json!({"process": process}));
    assert_eq!((nothing.status, nothing.text()), (200, "{}"));
    let unknown = daemon.unary(UPDATE, &json!({"process": {"pid": 999_999_999}, "pty": {}}));
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &json!("not_found")));
}

// executor 4.8: the table of inputs.
#[test]
fn input_goes_where_it_belongs() {
    let daemon = TestDaemon::start();
    let mut terminal = Terminal::open(&daemon, &size(80, 24));
    let code = |answer: DaemonAnswer| (answer.status, answer.json()["code"].clone());
    assert_eq!(code(terminal.input("stdin", b"x")), (500, json!("internal")));
    assert_eq!(terminal.input("pty", b"").text(), "{}");
    let process = json!({"process": {"pid": terminal.pid}});
    let closed = daemon.unary("/process.Process/CloseStdin", &process);
    assert_eq!(code(closed), (500, json!("unknown")));
    // What ends a program's input instead.
    terminal.cat();
    terminal.press("\x04");
    terminal.until("$ ");
    let mut pipes = daemon.stream(START, &shell("cat"), &[]);
    let other = json!({"process": {"pid": pipes.pid()}, "input": {"pty": ""}});
    assert_eq!(code(daemon.unary(INPUT, &other)), (500, json!("internal")));
    terminal.press("\x04");
    let pid = terminal.pid;
    assert_eq!(terminal.end()["status"], "exit status 0");
    let late = json!({"process": {"pid": pid}, "input": {"pty": ""}});
    assert_eq!(code(daemon.unary(INPUT, &late)), (404, json!("not_found")));
}

// executor 4.3: the controlling terminal is what makes job control work.
#[test]
fn jobs_are_interrupted_stopped_and_brought_back() {
    let daemon = TestDaemon::start();
    let mut terminal = Terminal::open(&daemon, &size(80, 24));
    terminal.cat();
    terminal.press("\x03");
    terminal.until("^C");
    terminal.until("$ ");
    terminal.press("echo $?\n");
    terminal.until("\r\n130\r\n$ ");
    terminal.cat();
    terminal.press("\x1a");
    terminal.until("Stopped");
    terminal.until("$ ");
    terminal.press("fg\n");
    terminal.until("fg\r\ncat\r\n");
    terminal.press("back\n");
    terminal.until("back\r\nback\r\n");
    terminal.press("\x03");
    terminal.until("$ ");
    assert_eq!(terminal.run("jobs"), "");
}

// executor 11 (14): disconnect, connect and more input continue the same shell; 2.7.
#[test]
fn a_shell_goes_on_without_its_client_and_with_the_next() {
    let daemon = TestDaemon::start();
    let mut terminal = Terminal::open(&daemon, &size(80, 24));
    terminal.run("kept=value");
    let pid = terminal.pid;
    drop(terminal);
    let mut stream = daemon.stream(CONNECT, &json!({"process": {"pid": pid}}), &[]);
    assert_eq!(stream.pid(), pid);
    let mut again = Terminal { daemon: &daemon, stream, pid, shown: String::new() };
    assert_eq!(again.run("echo $kept"), "value\n");
    again.press("exit\n");
    assert_eq!(again.end(), json!({"exited": true, "status": "exit status 0"}));
}

// executor 4.4 and 11 (2): a killed shell is over and reaped at once, whoever else has its terminal.
#[test]
fn a_killed_shell_is_gone_at_once() {
    let daemon = TestDaemon::start();
    let mut terminal = Terminal::open(&daemon, &size(80, 24));
    let left = terminal.run("(trap '' HUP; exec sleep 30) & echo $!");
    let left = left.lines().last().expect("its number").to_owned();
    let pid = terminal.pid;
    let kill = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
    assert_eq!(daemon.unary("/process.Process/SendSignal", &kill).text(), "{}");
    assert_eq!(terminal.end()["status"], "signal: killed");
    assert_eq!(daemon.unary("/process.Process/List", &json!({})).text(), "{}");
    assert_eq!(daemon.run(&format!("kill -0 {pid}")).2["exitCode"], 1);
    assert_eq!(daemon.run(&format!("kill -9 {left}")).2["status"], "exit status 0");
}

// executor 4.2 and 4.3: the terminal is the user's, as after a login, so that programs can open it by
// its name.
#[test]
fn the_terminal_belongs_to_its_user() {
    let daemon = TestDaemon::start();
    let nobody = basic("nobody");
    let headers = [("Authorization", nobody.as_str())];
    let mut terminal = Terminal::open_as(&daemon, &size(80, 24), &headers);
    assert_eq!(terminal.run("id -un; stat -c %U $(tty)"), "nobody\nnobody\n");
    assert_eq!(terminal.run("echo by name >$(tty)"), "by name\n");
    // No descriptor of the daemon's, and not the terminal's other side; `ls` has one of its own.
    assert_eq!(terminal.run("ls /proc/self/fd | wc -l"), "4\n");
}

// executor 4.5: nothing is lost on the way through a terminal either.
#[test]
fn long_output_arrives_whole_and_in_order() {
    let daemon = TestDaemon::start();
    let mut terminal = Terminal::open(&daemon, &size(80, 24));
    let expected: String = (1..=60_000).map(|n| format!("{n}\n")).collect();
    assert!(terminal.run("seq 60000") == expected, "the output arrived changed");
}

// executor 2.2: the binary codec carries terminals as the other does.
#[test]
fn terminals_in_the_binary_codec() {
    use prost::Message as _;
    use sandyard_contract::rpc::process::process_event::data_event::Output;
    use sandyard_contract::rpc::process::process_event::{DataEvent, Event};
    use sandyard_contract::rpc::process::{ProcessConfig, Pty, StartRequest, StartResponse, pty};

    use super::support::envelope;
    let daemon = TestDaemon::start();
    let config = ProcessConfig {
        cmd: "/bin/sh".into(),
        args: vec!["-c".into(), "stty size; tty >/dev/null".into()],
        ..ProcessConfig::default()
    };
    let terminal = Pty { size: Some(pty::Size { cols: 7, rows: 5 }) };
    let request =
        StartRequest { process: Some(config), pty: Some(terminal), ..StartRequest::default() };
    let kind = ("Content-Type", "application/connect+proto");
    let answer = daemon.call("POST", START, &[kind], &envelope(&request.encode_to_vec()));
    let mut rest = &answer.body[..];
    let mut shown = Vec::new();
    let mut status = None;
    while rest[0] == 0 {
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        let message = StartResponse::decode(&rest[5..5 + length]).unwrap();
        match message.event.unwrap().event.unwrap() {
            Event::Data(DataEvent { output: Some(Output::Pty(bytes)) }) => shown.extend(bytes),
            Event::End(end) => status = Some(end.status),
            Event::Start(_) | Event::Keepalive(_) => {}
            Event::Data(other) => panic!("{other:?}"),
        }
        rest = &rest[5 + length..];
    }
    assert_eq!(shown, b"5 7\r\n");
    assert_eq!(status.as_deref(), Some("exit status 0"));
}

//! Section 4: processes.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::{TestDaemon, basic, shell};

const START: &str = "/process.Process/Start";
const CONNECT: &str = "/process.Process/Connect";
const SIGNAL: &str = "/process.Process/SendSignal";

fn kill(pid: u64) -> Value {
    json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
}

#[test]
fn output_and_end_come_in_order() {
    let daemon = TestDaemon::start();
    let (stdout, stderr, end) = daemon.run("echo out; echo err >&2; exit 3");
    assert_eq!((&*stdout, &*stderr), ("out\n", "err\n"));
    let expected =
        json!({"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"});
    assert_eq!(end, expected);
    let (_, _, end) = daemon.run("true");
    assert_eq!(end, json!({"exited": true, "status": "exit status 0"}));
    let (stdout, _, _) = daemon.run("head -c 3000000 /dev/zero | tr '\\0' a");
    assert_eq!(stdout.len(), 3_000_000);
}

#[test]
fn a_stream_ends_with_the_last_holder_of_the_pipe() {
    let daemon = TestDaemon::start();
    let begun = Instant::now();
    let (stdout, _, _) = daemon.run("sleep 2 & echo hi");
    assert_eq!(stdout, "hi\n");
    assert!(begun.elapsed() >= Duration::from_millis(1900), "{:?}", begun.elapsed());
}

#[test]
fn a_killed_process_waits_for_no_grandchild_and_is_gone() {
    let daemon = TestDaemon::start();
    let left = daemon.path("left");
    let script = format!("sleep 30 & echo $! > {left}; echo begun; wait; echo done");
    let mut stream = daemon.start_command(&script);
    let pid = stream.pid();
    stream.until("begun");
    let begun = Instant::now();
    assert_eq!(daemon.unary(SIGNAL, &kill(pid)).text(), "{}");
    let (_, _, end) = stream.remaining();
    assert!(begun.elapsed() < Duration::from_secs(10));
    let expected = json!({"exitCode": -1, "status": "signal: killed", "error": "signal: killed"});
    assert_eq!(end, expected);
    assert_eq!(daemon.unary("/process.Process/List", &json!({})).text(), "{}");
    let (_, _, end) = daemon.run(&format!("kill -0 {pid}"));
    assert_eq!(end["exitCode"], 1);
    let again = daemon.unary(SIGNAL, &kill(pid));
    assert_eq!((again.status, &again.json()["code"]), (404, &json!("not_found")));
    // What is left of it is no business of the daemon's; it is the test's.
    assert_eq!(daemon.run(&format!("kill $(cat {left})")).2["status"], "exit status 0");
}

#[test]
fn a_connect_sees_live_and_ended_processes() {
    let daemon = TestDaemon::start();
    let mut request = shell("read line; echo got $line");
    request["tag"] = json!("reader");
    let mut first = daemon.stream(START, &request, &[]);
    let pid = first.pid();
    let by_tag = json!({"process": {"tag": "reader"}});
    let mut second = daemon.stream(CONNECT, &by_tag, &[]);
    assert_eq!(second.pid(), pid);
    let list = daemon.unary("/process.Process/List", &json!({})).json();
    let expected = json!({"processes": [
        {"pid": pid, "tag": "reader", "config": request["process"]},
    ]});
    assert_eq!(list, expected);
    let input = json!({"process": {"pid": pid}, "input": {"stdin": STANDARD.encode("x\n")}});
    assert_eq!(daemon.unary("/process.Process/SendInput", &input).text(), "{}");
    assert_eq!(first.remaining().0, "got x\n");
    assert_eq!(second.remaining().0, "got x\n");
    for selector in [json!({"pid": pid}), json!({"tag": "reader"})] {
        let late = daemon.stream(CONNECT, &json!({"process": selector}), &[]);
        let (stdout, _, end) = late.finish();
        assert_eq!((&*stdout, &end["status"]), ("", &json!("exit status 0")));
    }
    let input = daemon.unary("/process.Process/SendInput", &input);
    assert_eq!(input.status, 404);
    let unknown = daemon.stream(CONNECT, &json!({"process": {"pid": 999_999_999}}), &[]).error();
    assert_eq!(unknown["code"], "not_found");
    assert_eq!(unknown["message"], "process with pid 999999999 not found");
    let empty = daemon.stream(CONNECT, &json!({}), &[]).error();
    assert_eq!(empty["code"], "unimplemented");
}

#[test]
fn stdin_is_a_pipe_until_it_is_closed() {
    let daemon = TestDaemon::start();
    let mut cat = daemon.stream(START, &shell("cat"), &[]);
    let process = json!({"pid": cat.pid()});
    let send = |text: &str| {
        let input = json!({"process": process, "input": {"stdin": STANDARD.encode(text)}});
        daemon.unary("/process.Process/SendInput", &input)
    };
    assert_eq!(send("hello").status, 200);
    cat.until("hello");
    assert_eq!(send("").status, 200);
    let close = json!({"process": process});
    for _ in 0..2 {
        let closed = daemon.unary("/process.Process/CloseStdin", &close);
        // The second time the process may have ended.
        assert!(matches!(closed.status, 200 | 404), "{}", closed.text());
    }
    assert_eq!(cat.remaining().2["status"], "exit status 0");
    // Without stdin it is /dev/null.
    let (_, _, end) = daemon.run("read -p x line");
    assert_eq!(end["exitCode"], 1);
    let mut closed = daemon.start_command("sleep 20");
    let pid = closed.pid();
    let input = json!({"process": {"pid": pid}, "input": {"stdin": ""}});
    let refused = daemon.unary("/process.Process/SendInput", &input);
    assert_eq!((refused.status, &refused.json()["code"]), (500, &json!("internal")));
    let nothing = daemon.unary("/process.Process/SendInput", &json!({"process": {"pid": pid}}));
    assert_eq!(nothing.json()["code"], "unimplemented");
    let other = json!({"process": {"pid": pid}, "signal": "SIGNAL_UNSPECIFIED"});
    assert_eq!(daemon.unary(SIGNAL, &other).json()["code"], "unimplemented");
    assert_eq!(daemon.unary(SIGNAL, &kill(pid)).status, 200);
}

#[test]
fn what_cannot_be_executed_says_so_on_stderr() {
    let daemon = TestDaemon::start();
    let run = |cmd: &str| {
        let request = json!({"process": {"cmd": cmd}, "stdin": false});
        daemon.stream(START, &request, &[]).finish()
    };
    let (_, stderr, end) = run("no-such-command");
    assert_eq!(end["exitCode"], 127);
    assert!(stderr.contains("no-such-command"), "{stderr}");
    assert_eq!(run("/etc/passwd").2["exitCode"], 126);
    // Found in the PATH of its own environment, and run by a shell if it is a script without a name.
    let directory = daemon.path("bin");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(format!("{directory}/tool"), "echo \"tool $1\"\n").unwrap();
    let request = json!({
        "process": {"cmd": "tool", "args": ["x"], "envs": {"PATH": format!("/bin:{directory}")}},
    });
    let (_, _, end) = daemon.stream(START, &request, &[]).finish();
    assert_eq!(end["exitCode"], 126);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(format!("{directory}/tool"), mode).unwrap();
    assert_eq!(daemon.stream(START, &request, &[]).finish().0, "tool x\n");
}

#[test]
fn the_environment_is_the_contracts_and_nothing_more() {
    let daemon = TestDaemon::start_with(json!({"envVars": {"GLOBAL": "g", "BOTH": "global"}}));
    let request = json!({
        "process": {"cmd": "env", "envs": {"OWN": "o", "BOTH": "own"}}, "stdin": false,
    });
    let (stdout, _, _) = daemon.stream(START, &request, &[]).finish();
    let mut names: Vec<&str> =
        stdout.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(names, ["BOTH", "GLOBAL", "HOME", "LOGNAME", "OWN", "PATH", "USER"]);
    assert!(stdout.contains("BOTH=own\n"), "{stdout}");
    let hidden = daemon.run("echo \"$OWN\"");
    assert_eq!(hidden.0, "\n");
}

#[test]
fn processes_really_are_the_user() {
    let daemon = TestDaemon::start();
    let nobody = basic("nobody");
    let mut request = shell("id -un; id -G; echo $HOME $USER; cat /proc/self/oom_score_adj");
    request["process"]["cwd"] = json!("/");
    let (stdout, _, _) =
        daemon.stream(START, &request, &[("Authorization", nobody.as_str())]).finish();
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], "nobody");
    assert!(!lines[1].split(' ').any(|group| group == "0"), "{stdout}");
    assert!(lines[2].ends_with(" nobody"), "{stdout}");
    assert_eq!(lines[3], "100");
    // No descriptor, no ignored or blocked signal of the daemon.
    let script = "ls /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status";
    let (stdout, _, _) = daemon.run(script);
    // 0, 1, 2 and the one that `ls` has open.
    assert_eq!(stdout, "4\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[test]
fn a_directory_that_cannot_be_entered_comes_before_any_start() {
    let daemon = TestDaemon::start();
    let locked = daemon.path("locked");
    std::fs::create_dir(&locked).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&locked, mode).unwrap();
    let nobody = basic("nobody");
    let start = |cwd: &str, headers: &[(&str, &str)]| {
        let mut request = shell("pwd");
        request["process"]["cwd"] = json!(cwd);
        daemon.stream(START, &request, headers)
    };
    assert_eq!(start(&locked, &[]).finish().0, format!("{locked}\n"));
    let error = start("/no/such/place", &[]).error();
    assert_eq!(error["code"], "invalid_argument");
    assert_eq!(error["message"], "cwd '/no/such/place' does not exist");
    for error in [
        start(&locked, &[("Authorization", nobody.as_str())]).error(),
        start("/etc/passwd", &[]).error(),
        start("~bob", &[]).error(),
    ] {
        assert_eq!(error["code"], "invalid_argument", "{error}");
    }
}

#[test]
fn a_deadline_ends_the_call_and_the_process() {
    let daemon = TestDaemon::start();
    let headers = [("Connect-Timeout-Ms", "500")];
    let mut first = daemon.stream(START, &shell("echo begun; exec sleep 30"), &headers);
    let pid = first.pid();
    first.until("begun");
    let other = daemon.stream(CONNECT, &json!({"process": {"pid": pid}}), &[]);
    let (flags, last) = first.next();
    assert_eq!((flags, &last["error"]["code"]), (2, &json!("deadline_exceeded")));
    assert_eq!(other.finish().2["status"], "signal: killed");
}

// executor 2.7, 4.4, 4.7: the deadline stays though the caller left, is for one process, and waits for no pipe.
#[test]
fn a_deadline_stays_without_its_caller() {
    let daemon = TestDaemon::start();
    let headers = [("Connect-Timeout-Ms", "700")];
    let left = daemon.path("left");
    let script = format!("sleep 30 & echo $! > {left}; echo begun; wait");
    let mut first = daemon.stream(START, &shell(&script), &headers);
    let pid = first.pid();
    first.until("begun");
    let second = daemon.stream(CONNECT, &json!({"process": {"pid": pid}}), &[]);
    drop(first);
    assert_eq!(second.finish().2["status"], "signal: killed");
    let grandchild = std::fs::read_to_string(left).unwrap();
    assert_eq!(daemon.run(&format!("kill {grandchild}")).2["status"], "exit status 0");
}

// executor 2.6: each message begins the silence anew, on both kinds of streams.
#[test]
fn a_keepalive_comes_only_after_silence() {
    let daemon = TestDaemon::start();
    let interval = [("Keepalive-Ping-Interval", "2")];
    let script = "for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 0.4; done; exec sleep 30";
    let mut started = daemon.stream(START, &shell(script), &interval);
    let pid = started.pid();
    let request = json!({"process": {"pid": pid}});
    let mut connected = daemon.stream(CONNECT, &request, &interval);
    connected.pid();
    for stream in [&mut started, &mut connected] {
        let mut lines = 0;
        let last = loop {
            let (_, message) = stream.next();
            if message["event"]["data"].is_null() {
                break message;
            }
            lines += 1;
        };
        assert!(lines >= 6, "{lines} pieces of output before the first keepalive");
        assert_eq!(last, json!({"event": {"keepalive": {}}}));
    }
}

// executor 4.1, 5.1: a command's own path counts from its directory; the default directory is for no path at all.
#[test]
fn relative_paths_begin_where_they_should() {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = TestDaemon::start_unclaimed();
    let tool = daemon.path("tool");
    std::fs::write(&tool, "#!/bin/sh\npwd\n").unwrap();
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let directory = daemon.path("");
    let directory = directory.trim_end_matches('/');
    let daemon = daemon.claimed_with(json!({"defaultWorkdir": directory}));
    let request = json!({"process": {"cmd": "./tool", "cwd": directory}, "stdin": false});
    assert_eq!(daemon.stream(START, &request, &[]).finish().0, format!("{directory}\n"));
    assert_eq!(daemon.run("pwd").0, format!("{directory}\n"));
    let stat =
        |path: &str| daemon.unary("/filesystem.Filesystem/Stat", &json!({"path": path})).json();
    assert_eq!(stat("")["entry"]["path"], directory);
    assert_eq!(stat("no-such-file")["message"], "path '/root/no-such-file' does not exist");
}

#[test]
fn a_process_outlives_its_caller() {
    let daemon = TestDaemon::start();
    let mut stream = daemon.start_command("exec sleep 30");
    let pid = stream.pid();
    drop(stream);
    let late = daemon.stream(CONNECT, &json!({"process": {"pid": pid}}), &[]);
    assert_eq!(daemon.unary(SIGNAL, &kill(pid)).status, 200);
    assert_eq!(late.finish().2["status"], "signal: killed");
}

#[test]
fn a_caller_that_leaves_an_endless_process_blocks_nobody() {
    let daemon = TestDaemon::start();
    let mut stream = daemon.start_command("exec yes");
    let pid = stream.pid();
    stream.next();
    let mut other = daemon.stream(CONNECT, &json!({"process": {"pid": pid}}), &[]);
    assert_eq!(other.pid(), pid);
    // One does not read and goes; the other then reads on.
    drop(stream);
    for _ in 0..200 {
        other.next();
    }
    assert_eq!(daemon.unary(SIGNAL, &kill(pid)).status, 200);
    assert_eq!(other.remaining().2["status"], "signal: killed");
}

#[test]
fn keepalives_fill_the_silence() {
    let daemon = TestDaemon::start();
    let mut request = shell("read line");
    request["stdin"] = json!(true);
    let mut stream = daemon.stream(START, &request, &[("Keepalive-Ping-Interval", "1")]);
    let pid = stream.pid();
    assert_eq!(stream.next(), (0, json!({"event": {"keepalive": {}}})));
    assert_eq!(daemon.unary(SIGNAL, &kill(pid)).status, 200);
}

#[test]
fn no_client_hears_how_a_process_ends_by_the_daemons_end() {
    let mut daemon = TestDaemon::start();
    let (asked, go) = (daemon.path("asked"), daemon.path("go"));
    let script = format!(
        "trap 'touch {asked}; until [ -e {go} ]; do sleep 0.02; done; exit 0' TERM; \
         echo begun; while :; do sleep 0.02; done"
    );
    let mut first = daemon.start_command(&script);
    let pid = first.pid();
    first.until("begun");
    let mut second = daemon.stream(CONNECT, &json!({"process": {"pid": pid}}), &[]);
    assert_eq!(second.pid(), pid);
    let idle = daemon.connect();
    daemon.terminate();
    until_exists(&asked);
    // Everything was over for clients before the process was asked to end, and stays so.
    first.until_cut();
    second.until_cut();
    let mut nothing = [0; 1];
    assert_eq!((&idle).read(&mut nothing).unwrap_or(0), 0);
    let refused = TcpStream::connect(daemon.address).map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
    std::fs::write(&go, "").unwrap();
    assert!(daemon.wait().success());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn what_the_daemon_starts_can_be_looked_at_by_its_user() {
    let daemon = TestDaemon::start();
    // It keeps tracers away from itself, and its children begin as copies of it.
    let nobody = basic("nobody");
    let script = "stat -c %U /proc/self/environ && ls -l /proc/self/fd >/dev/null && echo seen";
    let mut request = shell(script);
    request["process"]["cwd"] = json!("/");
    let stream = daemon.stream(START, &request, &[("Authorization", nobody.as_str())]);
    let (stdout, stderr, end) = stream.finish();
    assert_eq!((stdout.as_str(), stderr.as_str()), ("nobody\nseen\n", ""), "{end}");
}

fn until_exists(path: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    while !Path::new(path).exists() {
        assert!(Instant::now() < end, "{path} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

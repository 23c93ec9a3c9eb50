//! Sections 4.4 to 4.7: who hears what of a process.

use std::fs;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::{RpcStream, TestDaemon, shell};

const START: &str = "/process.Process/Start";
const CONNECT: &str = "/process.Process/Connect";
const SIGNAL: &str = "/process.Process/SendSignal";
const LIST: &str = "/process.Process/List";

fn selected(pid: u64) -> Value {
    json!({"process": {"pid": pid}})
}

fn kill(pid: u64) -> Value {
    json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
}

fn type_line(daemon: &TestDaemon, pid: u64) {
    let input = json!({"process": {"pid": pid}, "input": {"stdin": STANDARD.encode("\n")}});
    assert_eq!(daemon.unary("/process.Process/SendInput", &input).text(), "{}");
}

fn tagged(script: &str, tag: &str) -> Value {
    let mut request = shell(script);
    request["tag"] = json!(tag);
    request
}

/// Waits for a condition; the failure names it.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// KiB that the daemon has in memory.
fn resident(daemon: &TestDaemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.expect("VmRSS").trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Bytes a process has written so far.
fn written(pid: u64) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("it runs");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    // Before it was executed it wrote "100", its score.
    line.expect("wchar").parse::<u64>().expect("a number") - 3
}

/// Waits until a process writes nothing any more, because somebody does not read.
fn until_held_back(pid: u64) -> u64 {
    let (mut before, mut same) = (written(pid), 0);
    wait_for("the process is held back", || {
        let now = written(pid);
        same = if now == before { same + 1 } else { 0 };
        before = now;
        now > 0 && same == 20
    });
    before
}

// executor 4.5: each subscriber gets everything from its own beginning, also one that is slow.
#[test]
fn several_subscribers_lose_nothing() {
    let daemon = TestDaemon::start();
    let mut first = daemon.stream(START, &shell("read x; echo begin >&2; exec seq 2000000"), &[]);
    let pid = first.pid();
    let mut others: Vec<RpcStream> =
        (0..3).map(|_| daemon.stream(CONNECT, &selected(pid), &[])).collect();
    others.iter_mut().for_each(|other| assert_eq!(other.pid(), pid));
    let expected: String = (1..=2_000_000).map(|n| format!("{n}\n")).collect();
    type_line(&daemon, pid);
    let slow = others.remove(0);
    others.push(first);
    let reading: Vec<_> =
        others.into_iter().map(|stream| std::thread::spawn(move || stream.remaining())).collect();
    // It begins only once the others cannot go on without it.
    until_held_back(pid);
    for (stdout, stderr, end) in [slow.remaining()]
        .into_iter()
        .chain(reading.into_iter().map(|thread| thread.join().unwrap()))
    {
        assert!(stdout == expected, "the output arrived changed");
        assert_eq!((&*stderr, &end["status"]), ("begin\n", &json!("exit status 0")));
    }
}

// executor 4.5: whoever does not read holds the process back, costs little memory, and once it leaves
// the others go on at once.
#[test]
fn a_subscriber_that_reads_nothing_costs_little_and_is_forgotten_when_it_leaves() {
    let daemon = TestDaemon::start();
    let mut streams: Vec<RpcStream> = (0..8).map(|_| daemon.start_command("exec yes")).collect();
    let pids: Vec<u64> = streams.iter_mut().map(RpcStream::pid).collect();
    for pid in &pids {
        until_held_back(*pid);
    }
    let before = resident(&daemon);
    // Whoever comes to a process that is held back does not change that.
    let mut second = daemon.stream(CONNECT, &selected(pids[0]), &[]);
    assert_eq!(second.pid(), pids[0]);
    until_held_back(pids[0]);
    assert!(resident(&daemon) < before + 1024, "{} KiB, then {}", before, resident(&daemon));
    assert!(before < 12 << 10, "{before} KiB for 8 clients that read nothing");
    streams.remove(0);
    for _ in 0..100 {
        assert_eq!(second.next().0, 0);
    }
    drop((streams, second));
    // Nobody is left, so all is read and thrown away.
    for pid in pids {
        let then = written(pid);
        wait_for("the process goes on", || written(pid) > then + (1 << 20));
        assert_eq!(daemon.unary(SIGNAL, &kill(pid)).status, 200);
    }
    wait_for("all are gone", || daemon.unary(LIST, &json!({})).text() == "{}");
}

// executor 2.5 and 4.5: a call that is over holds nobody back, also if its client still does not read.
#[test]
fn a_subscriber_that_reads_nothing_counts_until_its_deadline() {
    let daemon = TestDaemon::start();
    let mut reads = daemon.start_command("exec yes");
    let pid = reads.pid();
    let mut stuck = daemon.stream(CONNECT, &selected(pid), &[("Connect-Timeout-Ms", "1500")]);
    assert_eq!(stuck.pid(), pid);
    let end = Instant::now() + Duration::from_secs(3);
    let mut events = 0;
    while Instant::now() < end {
        assert_eq!(reads.next().0, 0);
        events += 1;
    }
    // Far more than all buffers on the way to the other hold.
    assert!(events > 2000, "{events} events");
    assert_eq!(daemon.unary(SIGNAL, &kill(pid)).status, 200);
    assert_eq!(reads.remaining().2["status"], "signal: killed");
}

// executor 4.4 and 11 (11): the end of a killed process waits for nobody, and it is off the list before.
#[test]
fn a_killed_process_ends_for_all_though_one_does_not_read() {
    let daemon = TestDaemon::start();
    let mut stuck = daemon.start_command("exec yes");
    let pid = stuck.pid();
    let held = until_held_back(pid);
    let mut late = daemon.stream(CONNECT, &selected(pid), &[]);
    assert_eq!(late.pid(), pid);
    assert_eq!(daemon.unary(SIGNAL, &kill(pid)).status, 200);
    assert_eq!(late.remaining().2["status"], "signal: killed");
    assert_eq!(daemon.unary(LIST, &json!({})).text(), "{}");
    // Whoever comes to read after all has lost nothing of what was written.
    let (stdout, _, end) = stuck.remaining();
    assert_eq!(end["status"], "signal: killed");
    assert!(stdout.len() as u64 >= held, "{} of {held} bytes", stdout.len());
    assert!(stdout.as_bytes().chunks_exact(2).all(|line| line == b"y\n"));
}

// executor 4.6: the newest of those with a tag; a new process with the tag takes the place of an end.
#[test]
fn tags_name_the_newest() {
    let daemon = TestDaemon::start();
    let by_tag = json!({"process": {"tag": "twin"}});
    let mut old = daemon.stream(START, &tagged("read x; exit 1", "twin"), &[]);
    let mut new = daemon.stream(START, &tagged("read x; exit 2", "twin"), &[]);
    let (old_pid, new_pid) = (old.pid(), new.pid());
    assert_eq!(daemon.stream(CONNECT, &by_tag, &[]).pid(), new_pid);
    type_line(&daemon, new_pid);
    assert_eq!(new.remaining().2["exitCode"], 2);
    // One that runs goes before one that is over.
    assert_eq!(daemon.stream(CONNECT, &by_tag, &[]).pid(), old_pid);
    type_line(&daemon, old_pid);
    assert_eq!(old.remaining().2["exitCode"], 1);
    assert_eq!(daemon.stream(CONNECT, &by_tag, &[]).finish().2["exitCode"], 1);
    let mut next = daemon.stream(START, &tagged("read x; exit 3", "twin"), &[]);
    let next_pid = next.pid();
    type_line(&daemon, next_pid);
    assert_eq!(next.remaining().2["exitCode"], 3);
    assert_eq!(daemon.stream(CONNECT, &by_tag, &[]).finish().2["exitCode"], 3);
    let evicted = daemon.stream(CONNECT, &selected(old_pid), &[]).error();
    assert_eq!(evicted["message"], format!("process with pid {old_pid} not found"));
    // An untagged process evicts nobody, and no tag is not the empty one.
    daemon.run("true");
    assert_eq!(daemon.stream(CONNECT, &by_tag, &[]).finish().2["exitCode"], 3);
    let empty = daemon.stream(CONNECT, &json!({"process": {"tag": ""}}), &[]).error();
    assert_eq!(empty["message"], "process with tag  not found");
}

// executor 4.6: no replay.
#[test]
fn who_comes_later_hears_what_comes_later() {
    let daemon = TestDaemon::start();
    let mut first = daemon.stream(START, &shell("echo early; read x; echo late"), &[]);
    let pid = first.pid();
    first.until("early\n");
    let mut second = daemon.stream(CONNECT, &selected(pid), &[]);
    assert_eq!(second.pid(), pid);
    type_line(&daemon, pid);
    assert_eq!(second.remaining().0, "late\n");
    assert_eq!(first.remaining().0, "late\n");
}

// executor 4.6: the end of a process is there at every moment: while it runs, as it ends, and after.
#[test]
fn no_connect_misses_an_end() {
    let daemon = TestDaemon::start();
    for n in 0..40 {
        let mut request = shell(&format!("exit {n}"));
        request["stdin"] = json!(false);
        let mut stream = daemon.stream(START, &request, &[]);
        let pid = stream.pid();
        let late = daemon.stream(CONNECT, &selected(pid), &[]);
        for end in [late.finish().2, stream.remaining().2] {
            assert_eq!(end["status"], format!("exit status {n}"));
        }
    }
}

// executor 11 (15): the grandchild of a killed shell lives on and holds nothing up; 4.7: TERM as well.
#[test]
fn a_signal_goes_to_one_process() {
    let daemon = TestDaemon::start();
    for (signal, words) in
        [("SIGNAL_SIGKILL", "signal: killed"), ("SIGNAL_SIGTERM", "signal: terminated")]
    {
        let mut stream = daemon.start_command("sleep 30 & echo $!; wait; echo done");
        let pid = stream.pid();
        let (_, message) = stream.next();
        let grandchild = STANDARD.decode(message["event"]["data"]["stdout"].as_str().unwrap());
        let grandchild = String::from_utf8(grandchild.unwrap()).unwrap();
        let request = json!({"process": {"pid": pid}, "signal": signal});
        assert_eq!(daemon.unary(SIGNAL, &request).text(), "{}");
        let (stdout, _, end) = stream.remaining();
        assert_eq!((&*stdout, &end["status"]), ("", &json!(words)));
        let lives = daemon.run(&format!("kill {}", grandchild.trim()));
        assert_eq!(lives.2["status"], "exit status 0");
    }
}

// executor 4.4: the words of signals, as they happen.
#[test]
fn a_process_that_signals_itself_says_so() {
    let daemon = TestDaemon::start();
    for (signal, words) in [
        ("INT", "signal: interrupt"),
        ("SEGV", "signal: segmentation fault"),
        ("ALRM", "signal: alarm clock"),
        ("PIPE", "signal: broken pipe"),
    ] {
        let (_, _, end) = daemon.run(&format!("ulimit -c 0; kill -{signal} $$"));
        let expected = json!({"exitCode": -1, "status": words, "error": words});
        assert_eq!(end, expected);
    }
}

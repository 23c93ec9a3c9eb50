//! Halting a sandbox for a freeze by the engine, and letting it go on (design 5.1).

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sandyard_contract::control::{ControlCall, ControlReply};

use super::docker::{docker, halt, wait_for};
use super::rpc::TestUser;
use super::s3::Minio;
use super::sandbox::TestSandbox;

const LIMIT_MS: u64 = 30_000;

/// Writes without an end, each in a way of its own. Those that write a file again use two in turns, since an open
/// empties it. What each has written, and under which process id, is in
/// `/tmp/written-NAME` after each write.
const WRITERS: &str = r#"
cat > /tmp/writer.py <<'EOF'
import os, subprocess, sys

way, number = sys.argv[1], 0
kept = open(f"/workspace/{way}", "w", buffering=1) if way == "kept" else None

def write(number):
    line = f"{way} {number}\n"
    if way == "kept":
        kept.write(line)
    elif way == "appended":
        with open("/workspace/appended", "a") as file:
            file.write(line)
    elif way == "single":
        with open(f"/workspace/single/{number}", "w") as file:
            file.write(line)
    elif way == "large":
        with open(f"/workspace/large-{number % 2}", "wb") as file:
            file.write(number.to_bytes(8, "little") * 500_000)
    elif way == "forked":
        # By vfork: this process waits in the kernel for its child to execute.
        subprocess.run(["sh", "-c", f"echo forked {number} > /workspace/forked-{number % 2}"], check=True)

while True:
    number += 1
    write(number)
    with open(f"/tmp/new-{way}", "w") as file:
        file.write(f"{os.getpid()} {number}")
    os.rename(f"/tmp/new-{way}", f"/tmp/written-{way}")
EOF
mkdir /workspace/single
for way in kept appended single large forked; do python3 /tmp/writer.py $way & done
sleep 1000 &
echo $! > /tmp/halted
kill -STOP $!
# A shell that takes a halt of its child for a stopped job would go on.
bash -mc 'sleep 1000; echo > /tmp/noticed' &
echo ready
wait
"#;

const WAYS: [&str; 5] = ["kept", "appended", "single", "large", "forked"];

/// Process id and last number of a writer.
fn written(sandbox: &TestSandbox, way: &str) -> anyhow::Result<(i32, u64)> {
    let text =
        std::fs::read_to_string(sandbox.container.root().join(format!("tmp/written-{way}")))?;
    let (process, number) = text.split_once(' ').context("two numbers")?;
    Ok((process.parse()?, number.parse()?))
}

/// What must be in the store of a writer that has written up to `number`; it may have more.
fn check_store(sandbox: &TestSandbox, way: &str, number: u64) -> anyhow::Result<()> {
    let get = |file: &str| {
        let object = sandbox.store.get(&sandbox.key(file))?;
        object.with_context(|| format!("{file} is not in the store"))
    };
    let lines = || (1..=number).map(|number| format!("{way} {number}\n")).collect::<String>();
    match way {
        "kept" | "appended" => {
            let object = get(way)?;
            ensure!(object.starts_with(lines().as_bytes()), "{way}: {} bytes", object.len());
        }
        "single" => {
            let object = get(&format!("single/{number}"))?;
            assert_eq!(object, format!("single {number}\n").as_bytes());
        }
        "large" => {
            let object = get(&format!("large-{}", number % 2))?;
            ensure!(object == number.to_le_bytes().repeat(500_000), "{} bytes", object.len());
        }
        _ => {
            let object = get(&format!("forked-{}", number % 2))?;
            assert_eq!(object, format!("forked {number}\n").as_bytes());
        }
    }
    Ok(())
}

/// State of a process, by its id inside.
fn state(sandbox: &TestSandbox, process: i32) -> anyhow::Result<String> {
    let status = sandbox.run(TestUser::Root, &format!("grep ^State: /proc/{process}/status"))?;
    Ok(status.success()?.stdout)
}

#[test]
#[ignore = "needs docker and minio"]
fn ten_freezes_lose_nothing_and_end_nothing() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    let mut writers = sandbox.start_command(TestUser::User, WRITERS)?;
    writers.until("ready")?;
    let root = sandbox.container.root();
    let goes_on = |after: [u64; 5]| {
        wait_for("all writers", Duration::from_secs(60), || {
            let is_further = |(way, number): (&&str, u64)| {
                written(&sandbox, way).is_ok_and(|(_, now)| now > number)
            };
            Ok(WAYS.iter().zip(after).all(is_further))
        })
    };
    goes_on([0; 5])?;
    let halted: i32 = std::fs::read_to_string(root.join("tmp/halted"))?.trim().parse()?;
    let mut processes = None;
    for turn in 1..=10 {
        let flush = sandbox.drain(LIMIT_MS)?;
        ensure!(flush.complete && flush.bytes_left == Some(0), "{flush:?}");
        let mut numbers = [0; 5];
        let mut ids = [0; 5];
        for (at, way) in WAYS.iter().enumerate() {
            (ids[at], numbers[at]) = written(&sandbox, way)?;
            check_store(&sandbox, way, numbers[at]).with_context(|| format!("turn {turn}"))?;
        }
        assert_eq!(*processes.get_or_insert(ids), ids, "turn {turn}");
        let started = Instant::now();
        docker(["pause", &sandbox.container.name])?;
        let paused = started.elapsed();
        docker(["unpause", &sandbox.container.name])?;
        let started = Instant::now();
        for (way, number) in WAYS.iter().zip(numbers) {
            assert_eq!(written(&sandbox, way)?.1, number, "turn {turn}: {way} went on by itself");
        }
        sandbox.resume()?;
        eprintln!(
            "{turn}: {flush:?}, pause {paused:?}, resume {:?}, {numbers:?}",
            started.elapsed()
        );
        goes_on(numbers)?;
        let state = state(&sandbox, halted)?;
        ensure!(state.contains("T (stopped)"), "turn {turn}: {state}");
    }
    ensure!(!root.join("tmp/noticed").exists(), "a shell has noticed that its child was halted");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn changes_in_the_store_show_at_once_after_a_resume() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    // A listing first would have s3fs ask the store for all that it lists.
    let look = "cd /workspace; stat -c '%n %s' kept a gone; cat kept a gone; ls";
    sandbox
        .run(TestUser::User, "cd /workspace; echo 1 > a; echo 2 > gone; echo 3 > kept")?
        .success()?;
    for turn in 0..3 {
        let before = sandbox.run(TestUser::User, look)?.stdout;
        ensure!(before.contains("gone"), "{before}");
        ensure!(sandbox.drain(LIMIT_MS)?.complete, "complete");
        docker(["pause", &sandbox.container.name])?;
        let (text, new) = (format!("longer by {turn}\n"), format!("new-{turn}"));
        sandbox.store.put(&sandbox.key("a"), text.as_bytes())?;
        sandbox.store.put(&sandbox.key(&new), b"new\n")?;
        sandbox.store.delete(&sandbox.key("gone"))?;
        docker(["unpause", &sandbox.container.name])?;
        sandbox.resume()?;
        let after = sandbox.run(TestUser::User, look)?;
        let expected = format!("kept 2\na {}\n3\n{text}", text.len());
        ensure!(after.stdout.starts_with(&expected), "turn {turn}: {after:?}");
        ensure!(after.stdout.lines().any(|line| line == new), "turn {turn}: {after:?}");
        assert_eq!(after.stderr.matches("No such file").count(), 2, "turn {turn}: {after:?}");
        sandbox.store.put(&sandbox.key("gone"), b"2\n")?;
        sandbox.run(TestUser::User, "until cat /workspace/gone; do sleep 0.1; done")?.success()?;
    }
    Ok(())
}

/// Writes 100,000 bytes to a file that stays open. A shell would have the file flushed with each command.
const WRITES_AND_HOLDS: &str = r#"exec python3 -c '
import signal
file = open("/workspace/open", "wb", buffering=0)
file.write(bytes(100_000))
print("ready", flush=True)
signal.pause()'"#;

/// Counts in `/tmp/count` without an end.
const COUNTS: &str = "n=0; while :; do n=$((n + 1)); echo $n > /tmp/count; [ $n != 1 ] || echo ready; sleep 0.01; done";

fn count(sandbox: &TestSandbox) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(sandbox.container.root().join("tmp/count"))?)
}

/// Waits until the process of [`COUNTS`] goes on.
fn counts(sandbox: &TestSandbox) -> anyhow::Result<()> {
    let before = count(sandbox)?;
    wait_for("the processes to go on", Duration::from_secs(5), || {
        let now = count(sandbox)?;
        Ok(!now.is_empty() && now != before)
    })?;
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_drain_without_a_store_ends_in_time_and_processes_go_on() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted_from(Minio::start()?)?;
    sandbox.start_command(TestUser::User, COUNTS)?.until("ready")?;
    sandbox.start_command(TestUser::User, WRITES_AND_HOLDS)?.until("ready")?;
    halt(sandbox.store.process())?;
    let started = Instant::now();
    let flush = sandbox.drain(1500)?;
    let took = started.elapsed();
    eprintln!("drained after {took:?}: {flush:?}");
    ensure!(!flush.complete && flush.bytes_left == Some(100_000), "{flush:?}");
    ensure!(took < Duration::from_millis(3000), "took {took:?}");
    counts(&sandbox)?;
    // One that waits for the store keeps the others from nothing either.
    let _stuck = sandbox.start_command(TestUser::User, "echo x > /workspace/closed; echo done")?;
    let flush = sandbox.drain(500)?;
    ensure!(!flush.complete, "{flush:?}");
    counts(&sandbox)?;
    sandbox.container.signal(sandbox.store.process(), "CONT")?;
    wait_for("a complete drain", Duration::from_secs(30), || Ok(sandbox.drain(5000)?.complete))?;
    let open = sandbox.store.get(&sandbox.key("open"))?;
    assert_eq!(open.map(|object| object.len()), Some(100_000));
    sandbox.resume()?;
    counts(&sandbox)
}

#[test]
#[ignore = "needs docker and minio"]
fn drains_and_resumes_come_in_any_order() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.start_command(TestUser::User, COUNTS)?.until("ready")?;
    sandbox.resume()?;
    counts(&sandbox)?;
    for _ in 0..2 {
        let flush = sandbox.drain(LIMIT_MS)?;
        ensure!(flush.complete, "{flush:?}");
    }
    let reply = sandbox.call(&ControlCall::Mount { mounts: vec![sandbox.workspace()] })?;
    ensure!(matches!(reply, ControlReply::Failed(_)), "{reply:?}");
    ensure!(
        matches!(sandbox.call(&ControlCall::Sync { limit_ms: 5000 })?, ControlReply::Synced { .. }),
        "sync"
    );
    assert_eq!(sandbox.status()?.len(), 1);
    let at_rest = count(&sandbox)?;
    // The daemon is halted too, and does not answer before the resume.
    let listing = std::thread::scope(|scope| {
        let command = scope.spawn(|| sandbox.run(TestUser::User, "ls /workspace"));
        docker(["pause", &sandbox.container.name])?;
        docker(["unpause", &sandbox.container.name])?;
        assert_eq!(count(&sandbox)?, at_rest);
        ensure!(!command.is_finished(), "a command ran in a halted sandbox");
        for _ in 0..2 {
            sandbox.resume()?;
        }
        command.join().expect("no panic")
    })?;
    listing.success()?;
    counts(&sandbox)
}

#[test]
#[ignore = "needs docker and minio"]
fn a_program_that_dies_while_drained_is_replaced_after_the_resume() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::User, "echo x > /workspace/x")?.success()?;
    ensure!(sandbox.drain(LIMIT_MS)?.complete, "complete");
    sandbox.container.signal(sandbox.program()?, "KILL")?;
    wait_for("its end", Duration::from_secs(5), || Ok(!sandbox.status()?[0].running))?;
    let flush = sandbox.drain(LIMIT_MS)?;
    ensure!(!flush.complete && flush.bytes_left.is_none(), "{flush:?}");
    wait_for("the mount's return", Duration::from_secs(5), || Ok(sandbox.status()?[0].running))?;
    assert_eq!(sandbox.run(TestUser::User, "cat /workspace/x")?.success()?.stdout, "x\n");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_drained_sandbox_can_be_stopped() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    let writer =
        "trap 'echo last > /workspace/last; exit' TERM; echo ready; while :; do sleep 0.1; done";
    sandbox.start_command(TestUser::User, writer)?.until("ready")?;
    ensure!(sandbox.drain(LIMIT_MS)?.complete, "complete");
    let started = Instant::now();
    let flush = sandbox.stop(30_000)?;
    ensure!(flush.complete, "{flush:?}");
    ensure!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
    assert_eq!(sandbox.wait_for_end(Duration::from_secs(2))?, 0);
    assert_eq!(sandbox.store.get(&sandbox.key("last"))?.as_deref(), Some(&b"last\n"[..]));
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_drained_sandbox_can_be_removed_and_can_die() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    ensure!(sandbox.drain(LIMIT_MS)?.complete, "complete");
    docker(["pause", &sandbox.container.name])?;
    let started = Instant::now();
    docker(["rm", "-fv", &sandbox.container.name])?;
    ensure!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());

    let sandbox = TestSandbox::mounted()?;
    ensure!(sandbox.drain(LIMIT_MS)?.complete, "complete");
    sandbox.container.signal(sandbox.daemon()?, "KILL")?;
    assert_eq!(sandbox.wait_for_end(Duration::from_secs(5))?, 1);
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_sync_brings_open_files_to_the_store() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.start_command(TestUser::User, WRITES_AND_HOLDS)?.until("ready")?;
    let ControlReply::Synced { flush } = sandbox.call(&ControlCall::Sync { limit_ms: 5000 })?
    else {
        anyhow::bail!("no sync")
    };
    ensure!(flush.complete && flush.bytes_left == Some(0), "{flush:?}");
    let open = sandbox.store.get(&sandbox.key("open"))?;
    assert_eq!(open.map(|object| object.len()), Some(100_000));
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_stop_without_a_store_says_what_is_left() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted_from(Minio::start()?)?;
    sandbox.start_command(TestUser::User, WRITES_AND_HOLDS)?.until("ready")?;
    halt(sandbox.store.process())?;
    let flush = sandbox.stop(3000)?;
    ensure!(!flush.complete && flush.bytes_left == Some(100_000), "{flush:?}");
    Ok(())
}

//! Every probe of the sandbox boundary's list, as user and as root inside.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use serde::Deserialize;

use super::docker::{image, run, wait_for};
use super::rpc::TestUser;
use super::s3::SECRET_KEY;
use super::sandbox::TestSandbox;

const PROGRAM: &str = include_str!("probes.py");

/// What each probe may come to as user 1000 and as root, and why where that is not plain. Without which measure it
/// would succeed is said where the measure is.
const EXPECTED: &str = include_str!("probes.json");

#[derive(Deserialize)]
struct Expectations {
    /// Sets of outcomes by name.
    outcomes: BTreeMap<String, Vec<String>>,
    probes: Vec<Expectation>,
}

#[derive(Deserialize)]
struct Expectation {
    probe: String,
    user: String,
    root: String,
}

fn backwards() -> String {
    SECRET_KEY.chars().rev().collect()
}

fn results(text: &str) -> BTreeMap<String, String> {
    let split = |line: &str| line.split_once('\t').map(|(n, r)| (n.to_owned(), r.to_owned()));
    text.lines().filter_map(split).collect()
}

/// Files of /proc that a plain container of the engine can open for writing: the control. Those are
/// the engine's business, and the boundary must not add to them.
fn writable_in_a_plain_container(user: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut plain = Command::new("docker");
    plain.args(["run", "--rm", "--user", user, "--entrypoint", "python3", &image(), "-c", PROGRAM]);
    let printed = run(plain.arg(backwards()))?;
    Ok(paths(&results(&printed)["writable-proc"]))
}

fn paths(listed: &str) -> BTreeSet<String> {
    listed.split(',').map(str::to_owned).collect()
}

fn probe_as(user: TestUser, id: &str) -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    let command = format!("python3 - {} <<'END'\n{PROGRAM}\nEND", backwards());
    let finished = sandbox.run(user, &command)?;
    let got = results(&finished.stdout);
    let mut wrong = Vec::new();
    let expected: Expectations = serde_json::from_str(EXPECTED)?;
    for expectation in &expected.probes {
        let name = &expectation.probe;
        let outcomes = if user == TestUser::Root { &expectation.root } else { &expectation.user };
        let allowed = &expected.outcomes[outcomes];
        match got.get(name) {
            Some(result) if allowed.contains(result) => {}
            result => wrong.push(format!("{name}: {result:?}, not one of {allowed:?}")),
        }
    }
    ensure!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), finished.stderr);
    let unknown = got.keys().filter(|name| {
        *name != "writable-proc" && !expected.probes.iter().any(|e| e.probe == **name)
    });
    assert_eq!(unknown.count(), 0, "every probe has an expectation");
    let inside = paths(&got["writable-proc"]);
    let plain = writable_in_a_plain_container(id)?;
    // A hidden file is /dev/null, which anybody may write to.
    let masks: BTreeSet<String> = hidden_files(&sandbox)?;
    let more: Vec<_> =
        inside.iter().filter(|p| !plain.contains(*p) && !masks.contains(*p)).collect();
    ensure!(more.is_empty(), "writable here and not in a plain container: {more:?}");
    // Nothing of all that has hurt the sandbox.
    sandbox.run(TestUser::User, "echo still > /workspace/still")?.success()?;
    ensure!(sandbox.status()?[0].restarts == 0, "the FUSE program was hit");
    Ok(())
}

/// Files of /proc that are /dev/null here.
fn hidden_files(sandbox: &TestSandbox) -> anyhow::Result<BTreeSet<String>> {
    let script = "awk '$5 ~ \"^/proc/\" && $4 == \"/null\" { print $5 }' /proc/self/mountinfo";
    let listed = sandbox.run(TestUser::Root, script)?.stdout;
    Ok(listed.lines().map(str::to_owned).collect())
}

#[test]
#[ignore = "needs docker and minio"]
fn the_boundary_holds_against_a_user() -> anyhow::Result<()> {
    probe_as(TestUser::User, "1000:1000")
}

#[test]
#[ignore = "needs docker and minio"]
fn the_boundary_holds_against_root() -> anyhow::Result<()> {
    probe_as(TestUser::Root, "0:0")
}

#[test]
#[ignore = "needs docker and minio"]
fn no_file_holds_a_key() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    let script = format!(
        "grep -rlaF -D skip --exclude-dir=proc --exclude-dir=sys -e \"$(rev <<< {})\" / \
         2>/dev/null; true",
        backwards()
    );
    let found = sandbox.run(TestUser::Root, &script)?.stdout;
    ensure!(found.is_empty(), "{found}");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn ordinary_work_goes_on() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    for (user, script) in [
        (
            TestUser::User,
            "ls -l /proc/self/fd >/dev/null && cat /proc/self/environ | grep -q HOME=",
        ),
        (
            TestUser::Root,
            "ls -l /proc/self/fd >/dev/null && cat /proc/self/environ | grep -q HOME=",
        ),
        (TestUser::User, "sudo -n true"),
        (TestUser::User, "test \"$(sudo -n id -u)\" = 0"),
        (TestUser::User, "echo x > /workspace/x && test \"$(cat /workspace/x)\" = x"),
        (TestUser::Root, "su user -c 'touch /workspace/by-su'"),
        (
            TestUser::User,
            "python3 -c 'import multiprocessing as m; print(m.Pool(2).map(abs, [-1]))'",
        ),
        (TestUser::User, "python3 -c 'import socket; socket.create_server((\"\", 8080)).close()'"),
        (TestUser::Root, "python3 -c 'import socket; socket.create_server((\"\", 80)).close()'"),
        (TestUser::Root, "chown user /tmp && chmod 1777 /tmp && chown root /tmp"),
    ] {
        let finished = sandbox.run(user, script)?;
        ensure!(finished.exit_code == 0, "{script}: {finished:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn nothing_is_executed_from_the_image() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    let trap = "for p in /usr/bin/s3fs /bin/s3fs /usr/local/bin/s3fs; do rm -f $p; \
                printf '#!/bin/sh\\ntouch /tmp/owned\\n' > $p; chmod 755 $p; done; \
                echo /tmp/evil.so > /etc/ld.so.preload; cp /lib/x86_64-linux-gnu/libm.so.6 /tmp/evil.so";
    sandbox.run(TestUser::Root, trap)?;
    sandbox.container.signal(sandbox.program()?, "KILL")?;
    wait_for("the mount's return", Duration::from_secs(2), || {
        Ok(sandbox.status()?[0].restarts == 1 && sandbox.status()?[0].running)
    })?;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", sandbox.program()?))?;
    ensure!(!maps.contains("evil.so"), "the image's preload was loaded");
    ensure!(!sandbox.container.root().join("tmp/owned").exists(), "the image's program ran");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn orphans_are_reaped_on_both_sides() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::User, "for i in $(seq 50); do (setsid true &) ; done; sleep 0.5")?;
    let left = sandbox.run(TestUser::User, "ps -eo stat= | grep -c Z; true")?.stdout;
    assert_eq!(left.trim(), "0");
    Ok(())
}

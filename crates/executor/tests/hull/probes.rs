//! Every probe of the hull's list, as user and as root inside.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;

use super::docker::{image, run, wait_for};
use super::rpc::User;
use super::s3::SECRET_KEY;
use super::sandbox::Sandbox;

const PROGRAM: &str = include_str!("probes.py");

/// What a probe may come to.
type Outcomes = &'static [&'static str];

const DENIED: Outcomes = &["EPERM", "EACCES", "EROFS", "refused"];
const NO_CALL: Outcomes = &["ENOSYS"];
const GONE: Outcomes = &["ENOENT", "EACCES", "EPERM", "EROFS"];
const BUSY: Outcomes = &["EPERM", "EACCES", "EROFS", "EBUSY", "ETXTBSY"];
const ABSENT: Outcomes = &["absent"];
const EMPTY: Outcomes = &["empty"];
const FINE: Outcomes = &["ok"];
const HIDDEN: Outcomes = &["EACCES", "EPERM", "ENOENT", "EIO", "empty"];

/// Probe, what it may come to as user 1000, and as root. Without which measure it would succeed is said
/// where the measure is.
const EXPECTED: &[(&str, Outcomes, Outcomes)] = &[
    ("mount", DENIED, DENIED),
    ("remount", DENIED, DENIED),
    ("umount", DENIED, DENIED),
    ("umount-lazy", DENIED, DENIED),
    ("fusermount", DENIED, DENIED),
    ("fsopen", DENIED, DENIED),
    ("open_tree", DENIED, DENIED),
    ("open_tree-clone", DENIED, DENIED),
    ("move_mount", DENIED, DENIED),
    ("mount_setattr", DENIED, DENIED),
    ("pivot_root", DENIED, DENIED),
    ("setns-file", DENIED, DENIED),
    ("setns-pidfd", DENIED, DENIED),
    ("unshare-mnt", DENIED, DENIED),
    ("unshare-user", DENIED, DENIED),
    ("unshare-time", DENIED, DENIED),
    ("unshare-cgroup", DENIED, DENIED),
    ("unshare-net", DENIED, DENIED),
    ("unshare-uts", DENIED, DENIED),
    ("unshare-ipc", DENIED, DENIED),
    ("unshare-pid", DENIED, DENIED),
    ("unshare-Urm", DENIED, DENIED),
    ("clone-user", DENIED, DENIED),
    ("clone-mnt", DENIED, DENIED),
    ("clone3", NO_CALL, NO_CALL),
    ("x32", NO_CALL, NO_CALL),
    ("int80-mount", NO_CALL, NO_CALL),
    ("int80-unshare", NO_CALL, NO_CALL),
    ("bpf", DENIED, DENIED),
    ("perf_event_open", DENIED, DENIED),
    ("fanotify_init", DENIED, DENIED),
    ("keyctl", DENIED, DENIED),
    ("add_key", DENIED, DENIED),
    ("request_key", DENIED, DENIED),
    ("io_uring", NO_CALL, NO_CALL),
    ("userfaultfd", DENIED, DENIED),
    ("syslog", DENIED, DENIED),
    ("quotactl", DENIED, DENIED),
    ("sethostname", DENIED, DENIED),
    ("setdomainname", DENIED, DENIED),
    ("name_to_handle_at", DENIED, DENIED),
    ("open_by_handle_at", DENIED, DENIED),
    ("swapon", DENIED, DENIED),
    ("reboot", DENIED, DENIED),
    ("init_module", DENIED, DENIED),
    ("kexec_load", DENIED, DENIED),
    ("acct", DENIED, DENIED),
    // Root is the daemon's own user, but no tracer: the daemon is not dumpable and SYS_PTRACE is gone.
    ("pid1-root", DENIED, DENIED),
    ("pid1-seize", DENIED, DENIED),
    ("pid1-attach", DENIED, DENIED),
    ("pid1-mem", DENIED, DENIED),
    ("pid1-vm-write", DENIED, DENIED),
    ("pid1-environ", DENIED, DENIED),
    ("pid1-fd", DENIED, DENIED),
    ("pid1-pidfd_getfd", DENIED, DENIED),
    ("own-child-seize", FINE, FINE),
    // The kernel takes no signal from inside for the first process; root's kill says yes all the same.
    ("kill-KILL-1", DENIED, FINE),
    ("kill-TERM-1", DENIED, FINE),
    // Looks like init's: a queued signal's sender may write any sender into it.
    ("forge-TERM-1", DENIED, FINE),
    ("pid1-lives", FINE, FINE),
    ("other-side-visible", ABSENT, ABSENT),
    ("secret-in-proc", ABSENT, ABSENT),
    ("private-tree", EMPTY, EMPTY),
    ("cache-tree", EMPTY, EMPTY),
    ("secret-in-memory", &["absent", "EACCES"], &["absent", "EACCES"]),
    ("rmdir-run", BUSY, BUSY),
    ("rename-run", BUSY, BUSY),
    ("rename-sandyard", BUSY, BUSY),
    ("write-sandyard", DENIED, DENIED),
    ("write-fuse-tree", BUSY, BUSY),
    ("write-executor", BUSY, BUSY),
    ("write-proc-1-exe", BUSY, BUSY),
    ("core_pattern", DENIED, DENIED),
    ("overcommit", DENIED, DENIED),
    ("irq-affinity", GONE, GONE),
    ("sysrq", GONE, GONE),
    ("read-kcore", HIDDEN, HIDDEN),
    ("read-keys", HIDDEN, HIDDEN),
    ("read-key-users", HIDDEN, HIDDEN),
    ("read-kallsyms", HIDDEN, HIDDEN),
    ("read-timer_list", HIDDEN, HIDDEN),
    ("read-kmsg", HIDDEN, HIDDEN),
    ("read-vmallocinfo", HIDDEN, HIDDEN),
    ("read-slabinfo", HIDDEN, HIDDEN),
    ("read-interrupts", HIDDEN, HIDDEN),
    ("writable-sys", ABSENT, ABSENT),
    ("cgroup-memory", GONE, GONE),
    ("cgroup-pids", GONE, GONE),
    ("cgroup-procs", GONE, GONE),
    ("cgroup-release-agent", GONE, GONE),
    ("cgroup-mkdir", GONE, GONE),
    ("mount-cgroup", DENIED, DENIED),
    ("mknod-disk", DENIED, DENIED),
    ("mknod-fuse", DENIED, DENIED),
    ("mknod-mem", DENIED, DENIED),
    ("mknod-kmsg", DENIED, DENIED),
    ("dev-fuse", GONE, GONE),
    ("af_packet", DENIED, DENIED),
    ("raw-socket", DENIED, DENIED),
    ("oom-score", DENIED, DENIED),
    ("nice", DENIED, DENIED),
    ("clock", DENIED, DENIED),
    ("docker-socket", GONE, GONE),
    ("chroot-escape", DENIED, DENIED),
];

fn backwards() -> String {
    SECRET_KEY.chars().rev().collect()
}

fn results(text: &str) -> BTreeMap<String, String> {
    let split = |line: &str| line.split_once('\t').map(|(n, r)| (n.to_owned(), r.to_owned()));
    text.lines().filter_map(split).collect()
}

/// Files of /proc that a plain container of the engine can open for writing: the control. Those are
/// the engine's business, and the hull must not add to them.
fn writable_in_a_plain_container(user: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut plain = Command::new("docker");
    plain.args(["run", "--rm", "--user", user, "--entrypoint", "python3", &image(), "-c", PROGRAM]);
    let printed = run(plain.arg(backwards()))?;
    Ok(paths(&results(&printed)["writable-proc"]))
}

fn paths(listed: &str) -> BTreeSet<String> {
    listed.split(',').map(str::to_owned).collect()
}

fn probe_as(user: User, id: &str) -> anyhow::Result<()> {
    let sandbox = Sandbox::mounted()?;
    let command = format!("python3 - {} <<'END'\n{PROGRAM}\nEND", backwards());
    let finished = sandbox.run(user, &command)?;
    let got = results(&finished.stdout);
    let mut wrong = Vec::new();
    for (name, as_user, as_root) in EXPECTED {
        let allowed = if user == User::Root { as_root } else { as_user };
        match got.get(*name) {
            Some(result) if allowed.contains(&result.as_str()) => {}
            result => wrong.push(format!("{name}: {result:?}, not one of {allowed:?}")),
        }
    }
    ensure!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), finished.stderr);
    let unknown = got.keys().filter(|name| {
        *name != "writable-proc" && !EXPECTED.iter().any(|(expected, ..)| expected == name)
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
    sandbox.run(User::User, "echo still > /workspace/still")?.success()?;
    ensure!(sandbox.status()?[0].restarts == 0, "the FUSE program was hit");
    Ok(())
}

/// Files of /proc that are /dev/null here.
fn hidden_files(sandbox: &Sandbox) -> anyhow::Result<BTreeSet<String>> {
    let script = "awk '$5 ~ \"^/proc/\" && $4 == \"/null\" { print $5 }' /proc/self/mountinfo";
    let listed = sandbox.run(User::Root, script)?.stdout;
    Ok(listed.lines().map(str::to_owned).collect())
}

#[test]
#[ignore = "needs docker and minio"]
fn the_hull_holds_against_a_user() -> anyhow::Result<()> {
    probe_as(User::User, "1000:1000")
}

#[test]
#[ignore = "needs docker and minio"]
fn the_hull_holds_against_root() -> anyhow::Result<()> {
    probe_as(User::Root, "0:0")
}

#[test]
#[ignore = "needs docker and minio"]
fn no_file_holds_a_key() -> anyhow::Result<()> {
    let sandbox = Sandbox::mounted()?;
    let script = format!(
        "grep -rlaF -D skip --exclude-dir=proc --exclude-dir=sys -e \"$(rev <<< {})\" / \
         2>/dev/null; true",
        backwards()
    );
    let found = sandbox.run(User::Root, &script)?.stdout;
    ensure!(found.is_empty(), "{found}");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn ordinary_work_goes_on() -> anyhow::Result<()> {
    let sandbox = Sandbox::mounted()?;
    for (user, script) in [
        (User::User, "ls -l /proc/self/fd >/dev/null && cat /proc/self/environ | grep -q HOME="),
        (User::Root, "ls -l /proc/self/fd >/dev/null && cat /proc/self/environ | grep -q HOME="),
        (User::User, "sudo -n true"),
        (User::User, "test \"$(sudo -n id -u)\" = 0"),
        (User::User, "echo x > /workspace/x && test \"$(cat /workspace/x)\" = x"),
        (User::Root, "su user -c 'touch /workspace/by-su'"),
        (User::User, "python3 -c 'import multiprocessing as m; print(m.Pool(2).map(abs, [-1]))'"),
        (User::User, "python3 -c 'import socket; socket.create_server((\"\", 8080)).close()'"),
        (User::Root, "python3 -c 'import socket; socket.create_server((\"\", 80)).close()'"),
        (User::Root, "chown user /tmp && chmod 1777 /tmp && chown root /tmp"),
    ] {
        let finished = sandbox.run(user, script)?;
        ensure!(finished.exit_code == 0, "{script}: {finished:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn nothing_is_executed_from_the_image() -> anyhow::Result<()> {
    let sandbox = Sandbox::mounted()?;
    let trap = "for p in /usr/bin/s3fs /bin/s3fs /usr/local/bin/s3fs; do rm -f $p; \
                printf '#!/bin/sh\\ntouch /tmp/owned\\n' > $p; chmod 755 $p; done; \
                echo /tmp/evil.so > /etc/ld.so.preload; cp /lib/x86_64-linux-gnu/libm.so.6 /tmp/evil.so";
    sandbox.run(User::Root, trap)?;
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
    let sandbox = Sandbox::mounted()?;
    sandbox.run(User::User, "for i in $(seq 50); do (setsid true &) ; done; sleep 0.5")?;
    let left = sandbox.run(User::User, "ps -eo stat= | grep -c Z; true")?.stdout;
    assert_eq!(left.trim(), "0");
    Ok(())
}

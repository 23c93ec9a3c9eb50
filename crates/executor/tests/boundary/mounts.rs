//! Mounts: made, seen, refused, repaired.

use std::time::{Duration, Instant};

use anyhow::ensure;
use sandyard_contract::control::{ControlCall, ControlReply, FailureKind};
use sandyard_types::{Access, Cache, Secret};
use sha2::Digest as _;

use super::docker::wait_for;
use super::rpc::TestUser;
use super::sandbox::TestSandbox;

#[test]
#[ignore = "needs docker and minio"]
fn a_workspace_is_a_prefix_of_the_bucket() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    sandbox.store.put(&sandbox.key("from-store.txt"), b"from the store")?;
    let mounted = sandbox.mount(vec![sandbox.workspace()])?;
    eprintln!("usable inside after {} us", mounted[0].micros);
    let read = sandbox.run(TestUser::User, "cat /workspace/from-store.txt")?;
    assert_eq!(read.stdout, "from the store");
    sandbox.run(TestUser::User, "echo -n from inside > /workspace/a.txt")?.success()?;
    let object = sandbox.store.get(&sandbox.key("a.txt"))?;
    assert_eq!(object.as_deref(), Some(&b"from inside"[..]));
    let table = sandbox.run(TestUser::User, "grep ' /workspace ' /proc/mounts")?.stdout;
    let source = format!("boundary:/{} /workspace fuse.s3fs rw,nosuid,nodev", sandbox.prefix);
    ensure!(table.starts_with(&source), "{table}");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn wrong_keys_fail_in_time_and_say_so() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    let mut call = sandbox.workspace();
    call.secret_access_key = Secret::new("not-the-secret");
    let started = Instant::now();
    let reply = sandbox.call(&ControlCall::Mount { mounts: vec![call] })?;
    let ControlReply::Failed(failure) = reply else { anyhow::bail!("{reply:?}") };
    ensure!(started.elapsed() < Duration::from_secs(12), "took {:?}", started.elapsed());
    eprintln!("{failure:?}");
    assert_eq!(failure.kind, FailureKind::Program);
    ensure!(failure.message.contains("refused the key"), "{}", failure.message);
    ensure!(!failure.program_output.is_empty(), "no output");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_dead_program_is_replaced_within_two_seconds() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.store.put(&sandbox.key("a.txt"), b"1")?;
    let program = sandbox.program()?;
    sandbox.container.signal(program, "KILL")?;
    let took = wait_for("the mount's return", Duration::from_secs(2), || {
        let status = sandbox.status()?;
        Ok(status[0].restarts == 1 && status[0].running)
    })?;
    eprintln!("mounted again after {took:?}");
    assert_eq!(sandbox.run(TestUser::User, "cat /workspace/a.txt")?.stdout, "1");
    Ok(())
}

/// Since Linux 6.5. With an older kernel there is a moment between the two mounts.
fn can_mount_beneath() -> anyhow::Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        anyhow::bail!("no release: {release}");
    };
    Ok((major?, minor?) >= (6, 5))
}

/// Watches the workspace for two seconds: prints how often it answered and how often it was the image's own
/// directory.
const WATCH: &str = r#"
import os, time
print("watching", flush=True)
end, root, answers, bare = time.time() + 2, os.stat("/").st_dev, 0, 0
while time.time() < end:
    try: answers, bare = answers + 1, bare + (os.stat("/workspace").st_dev == root)
    except OSError: pass
print(answers > 0, bare)
"#;

#[test]
#[ignore = "needs docker and minio"]
fn the_directory_below_is_not_seen_while_a_program_is_replaced() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    for restarts in 1..=5 {
        let watch = format!("python3 - <<'END'{WATCH}END");
        let mut watcher = sandbox.start_command(TestUser::User, &watch)?;
        watcher.until("watching")?;
        sandbox.container.signal(sandbox.program()?, "KILL")?;
        let seen = watcher.finish()?.stdout;
        let expected = if can_mount_beneath()? { "True 0\n" } else { "True " };
        ensure!(seen.starts_with(expected), "{seen}");
        let status = sandbox.status()?;
        ensure!(status[0].restarts == restarts && status[0].running, "{status:?}");
        let mounts = sandbox.run(TestUser::User, "grep -c ' /workspace ' /proc/mounts")?.stdout;
        assert_eq!(mounts, "1\n");
    }
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_target_behind_a_link_is_refused_and_nothing_is_left() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    sandbox.run(TestUser::Root, "ln -s /etc /home/user/link")?.success()?;
    for target in ["/home/user/link", "/home/user/link/below"] {
        let mut call = sandbox.workspace();
        call.target = target.parse()?;
        let reply =
            sandbox.call(&ControlCall::Mount { mounts: vec![sandbox.workspace(), call] })?;
        let ControlReply::Failed(failure) = reply else { anyhow::bail!("{reply:?}") };
        assert_eq!(failure.kind, FailureKind::Attach, "{failure:?}");
        ensure!(failure.message.contains("symbolic link"), "{}", failure.message);
    }
    ensure!(sandbox.container.processes("s3fs")?.is_empty(), "a program is left");
    let table = sandbox.run(TestUser::User, "cat /proc/mounts")?.stdout;
    ensure!(!table.contains("fuse"), "{table}");
    ensure!(sandbox.status()?.is_empty(), "a mount is left");
    sandbox.mount(vec![sandbox.workspace()])?;
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn many_mounts_come_at_once_and_inside_each_other() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    let mut calls = vec![sandbox.workspace()];
    for (name, target) in [("ro", "/workspace/skills"), ("other", "/mnt/r2/threads/t,1")] {
        let prefix = sandbox.key(name);
        sandbox.store.put(&format!("{prefix}/"), b"")?;
        sandbox.store.put(&format!("{prefix}/who"), name.as_bytes())?;
        let mut call = sandbox.workspace();
        call.prefix = format!("{prefix}/").parse()?;
        call.target = target.parse()?;
        if name == "ro" {
            call.access = Access::ReadOnly;
        }
        // The inner one first: order is not the caller's business.
        calls.insert(0, call);
    }
    let mounted = sandbox.mount(calls)?;
    assert_eq!(mounted.len(), 3);
    assert_eq!(mounted[2].target.as_str(), "/workspace");
    let check = |sandbox: &TestSandbox| -> anyhow::Result<()> {
        let read = "cat /workspace/skills/who '/mnt/r2/threads/t,1/who'";
        assert_eq!(sandbox.run(TestUser::User, read)?.stdout, "roother");
        let write = sandbox.run(TestUser::User, "echo x > /workspace/skills/x")?;
        ensure!(write.exit_code != 0, "the read-only mount takes writes");
        sandbox.run(TestUser::User, "touch /workspace/x '/mnt/r2/threads/t,1/x'")?.success()?;
        Ok(())
    };
    check(&sandbox)?;
    for (killed, program) in (1..).zip(sandbox.container.processes("s3fs")?) {
        sandbox.container.signal(program, "KILL")?;
        wait_for("the repair", Duration::from_secs(2), || {
            let status = sandbox.status()?;
            let restarts: u32 = status.iter().map(|mount| mount.restarts).sum();
            Ok(restarts == killed && status.iter().all(|mount| mount.running))
        })?;
        check(&sandbox)?;
    }
    ensure!(sandbox.stop(10_000)?.complete, "stopped");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_mount_goes_along_when_its_parent_is_renamed() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    let mut call = sandbox.workspace();
    call.target = "/home/user/a/b".parse()?;
    sandbox.mount(vec![call])?;
    let owner = sandbox.run(TestUser::User, "stat -c %u:%g /home/user/a")?.stdout;
    assert_eq!(owner.trim(), "1000:1000");
    sandbox
        .run(TestUser::User, "mv /home/user/a /home/user/z && echo x > /home/user/z/b/x")?
        .success()?;
    ensure!(sandbox.stop(10_000)?.complete, "stopped");
    assert_eq!(sandbox.store.get(&sandbox.key("x"))?.as_deref(), Some(&b"x\n"[..]));
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn large_files_fit_through_both_caches() -> anyhow::Result<()> {
    let caches = [Cache::Disk { limit_mib: 1024 }, Cache::Tmpfs { size_mib: 300 }];
    for cache in caches {
        let sandbox = TestSandbox::start(&["--memory", "1g"])?;
        let mut call = sandbox.workspace();
        call.cache = cache;
        sandbox.mount(vec![call])?;
        let write = "head -c 200000000 /dev/urandom > /workspace/big && sha256sum < /workspace/big";
        let wrote = sandbox.run(TestUser::User, write)?.success()?;
        let object = sandbox.store.get(&sandbox.key("big"))?.expect("the object is there");
        let sum = hex::encode(sha2::Sha256::digest(&object));
        ensure!(wrote.stdout.starts_with(&sum), "{cache:?}: the object differs");
        ensure!(sandbox.stop(10_000)?.complete, "stopped");
    }
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_disk_cache_stays_near_its_limit() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    let mut call = sandbox.workspace();
    call.cache = Cache::Disk { limit_mib: 20 };
    sandbox.mount(vec![call])?;
    let write = "for i in $(seq 10); do head -c 5000000 /dev/urandom > /workspace/$i; done; \
                 cat /workspace/* | sha256sum";
    let first = sandbox.run(TestUser::User, write)?.success()?.stdout;
    let cache = sandbox.container.root().join(".sandyard/run/root/tmp");
    let used = || -> anyhow::Result<u64> {
        let listed = super::docker::run(std::process::Command::new("du").arg("-sm").arg(&cache))?;
        Ok(listed.split_whitespace().next().unwrap_or_default().parse()?)
    };
    ensure!(used()? > 20, "nothing to trim: {} MiB", used()?);
    wait_for("the trim", Duration::from_secs(15), || Ok(used()? <= 20))?;
    let again = sandbox.run(TestUser::User, "cat /workspace/* | sha256sum")?.stdout;
    assert_eq!(first, again);
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn an_overwrite_in_the_store_is_seen_soon() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::User, "echo -n old > /workspace/a; cat /workspace/a")?.success()?;
    sandbox.store.put(&sandbox.key("a"), b"newer")?;
    // A read meanwhile may see the old content or the new one, but nothing in between.
    let mut seen = String::new();
    let took = wait_for("the new content", Duration::from_secs(6), || {
        seen = sandbox.run(TestUser::User, "cat /workspace/a")?.stdout;
        ensure!(seen == "old" || seen == "newer", "read {seen:?}");
        Ok(seen == "newer")
    })?;
    eprintln!("seen after {took:?}");
    sandbox.run(TestUser::User, "echo -n , appended >> /workspace/a")?.success()?;
    let object = sandbox.store.get(&sandbox.key("a"))?;
    assert_eq!(object.as_deref(), Some(&b"newer, appended"[..]));
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_container_without_the_device_says_so() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start_without_device(&[])?;
    let reply = sandbox.call(&ControlCall::Mount { mounts: vec![sandbox.workspace()] })?;
    let ControlReply::Failed(failure) = reply else { anyhow::bail!("{reply:?}") };
    assert_eq!(failure.kind, FailureKind::NoFuse, "{failure:?}");
    ensure!(failure.message.contains("/dev/fuse"), "{}", failure.message);
    Ok(())
}

/// What programs do to files, each checked by reading again and in the store. The cache keeps nothing
/// over a close, so each of these begins with a load.
const FILE_WORK: &str = r#"
import os
os.chdir("/workspace")
def write(path, data, mode="wb"):
    with open(path, mode) as file: file.write(data)
def read(path):
    with open(path, "rb") as file: return file.read()
big = os.urandom(3_000_000)
write("plain", b"0123456789"); assert read("plain") == b"0123456789"
with open("plain", "r+b") as file: file.truncate(4)
assert read("plain") == b"0123"
with open("plain", "r+b") as file: file.truncate(6)
assert read("plain") == b"0123\0\0"
write("plain", b"end", "ab"); assert read("plain") == b"0123\0\0end"
with open("plain", "r+b") as file: file.seek(1); file.write(b"XX")
assert read("plain") == b"0XX3\0\0end"
write("big", big); assert read("big") == big
with open("big", "r+b") as file: file.seek(1_500_000); file.write(b"middle")
big = big[:1_500_000] + b"middle" + big[1_500_006:]
assert read("big") == big
os.rename("big", "moved"); assert read("moved") == big and not os.path.exists("big")
held = open("moved", "r+b"); os.rename("moved", "again"); held.write(b"held"); held.close()
assert read("again") == b"held" + big[4:]
os.mkdir("d"); os.rename("plain", "d/plain"); assert os.listdir("d") == ["plain"]
write("d/gone", b"x"); os.unlink("d/gone"); assert os.listdir("d") == ["plain"]
os.symlink("d/plain", "link"); assert read("link") == b"0XX3\0\0end"
"#;

#[test]
#[ignore = "needs docker and minio"]
fn files_behave_as_files() -> anyhow::Result<()> {
    for cache in [Cache::Disk { limit_mib: 1024 }, Cache::Tmpfs { size_mib: 100 }] {
        let sandbox = TestSandbox::start(&[])?;
        let mut call = sandbox.workspace();
        call.cache = cache;
        sandbox.mount(vec![call])?;
        sandbox.run(TestUser::User, &format!("python3 - <<'END'{FILE_WORK}END"))?.success()?;
        let plain = sandbox.store.get(&sandbox.key("d/plain"))?;
        assert_eq!(plain.as_deref(), Some(&b"0XX3\0\0end"[..]));
        let again = sandbox.store.get(&sandbox.key("again"))?.expect("the object is there");
        ensure!(again.starts_with(b"held") && again.len() == 3_000_000, "{}", again.len());
    }
    Ok(())
}

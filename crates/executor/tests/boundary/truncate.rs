//! Truncation on a workspace. s3fs 1.90 left alone puts zeros in place of a closed file's content, and does
//! not shorten a file with unflushed data at all.

use std::time::Duration;

use anyhow::ensure;
use sandyard_contract::control::{ControlCall, ControlReply};
use sandyard_types::{Access, Cache};
use sha2::{Digest as _, Sha256};

use super::docker::{changed_bundle, wait_for};
use super::rpc::TestUser;
use super::sandbox::TestSandbox;

/// Files that nobody has open, and files that somebody writes. The cache keeps nothing over a close, so
/// every truncation of a closed file begins with a load.
const WORK: &str = r#"
import errno, os, subprocess, sys
os.chdir("/workspace")
def write(path, data):
    with open(path, "wb") as file: file.write(data)
def read(path):
    with open(path, "rb") as file: return file.read()
def same(seen, data): assert seen == data, (len(seen), len(data), seen[:20], data[:20])
def check(path, data): same(read(path), data); same(bytes(os.stat(path).st_size), bytes(len(data)))
def check_open(file, data): same(os.pread(file.fileno(), len(data) + 10, 0), data)

write("shrunk", b"0123456789"); os.truncate("shrunk", 4); check("shrunk", b"0123")
write("extended", b"0123"); os.truncate("extended", 8); check("extended", b"0123\0\0\0\0")
write("same", b"0123456789"); os.truncate("same", 10); check("same", b"0123456789")
write("emptied", b"0123"); os.truncate("emptied", 0); check("emptied", b"")
write("grown", b""); os.truncate("grown", 3); check("grown", b"\0\0\0")
write("often", b"0123456789")
for size in (7, 9, 2, 2, 5): os.truncate("often", size)
check("often", b"01\0\0\0")
subprocess.run(["truncate", "-s", "5", "shrunk"], check=True); check("shrunk", b"0123\0")

# Open elsewhere, with data that has not reached the store.
held = open("held", "w+b", buffering=0); held.write(b"0123456789"); os.truncate("held", 6)
check_open(held, b"012345")
held.seek(0, os.SEEK_END); held.write(b"more"); held.close(); check("held", b"012345more")
held = open("held", "r+b", buffering=0); held.seek(2); held.write(b"XX"); os.truncate("held", 12)
check_open(held, b"01XX45more\0\0")
held.close(); check("held", b"01XX45more\0\0")
reader = open("held", "rb", buffering=0); os.truncate("held", 3)
check_open(reader, b"01X"); reader.close(); check("held", b"01X")
held = open("dirty", "w+b", buffering=0); held.write(b"0123456789"); os.ftruncate(held.fileno(), 6)
check_open(held, b"012345"); held.write(b"more"); os.truncate("dirty", 0); check_open(held, b"")
held.seek(0); held.write(b"last"); write("dirty", b"new"); check_open(held, b"new")
held.close(); check("dirty", b"new")
held = open("gone", "w+b", buffering=0); held.write(b"0123456789"); os.ftruncate(held.fileno(), 5)
os.rename("gone", "moved"); os.truncate("moved", 4); held.close(); check("moved", b"0123")

# Larger than one part of an upload, and than what s3fs loads at once.
big = os.urandom(40_000_000)
write("big", big); os.truncate("big", 39_999_999); check("big", big[:-1])
os.truncate("big", 40_000_100); check("big", big[:-1] + bytes(101))
write("cut", big); os.truncate("cut", 1_000_001); check("cut", big[:1_000_001])

for path, expected in (("missing", errno.ENOENT), ("none/missing", errno.ENOENT), (".", errno.EISDIR)):
    try: os.truncate(path, 5)
    except OSError as error: assert error.errno == expected, (path, error)
    else: raise AssertionError(path)
assert not os.path.exists("missing")
os.symlink("same", "link"); os.truncate("link", 9); check("same", b"012345678")

# Two processes at once, on one file and on neighbours.
write("both", bytes(range(256)) * 4000)
child = """
import os, sys
for turn in range(40): os.truncate("both", 1_000_000 + int(sys.argv[1]) * 40 + turn)
own = "own" + sys.argv[1]
for turn in range(10):
    data = os.urandom(3000)
    with open(own, "wb") as file: file.write(data)
    os.truncate(own, 2000 - turn)
    with open(own, "rb") as file: assert file.read() == data[:2000 - turn]
"""
children = [subprocess.Popen([sys.executable, "-c", child, str(n)]) for n in range(2)]
assert [child.wait() for child in children] == [0, 0]
both = read("both")
assert 1_000_000 <= len(both) <= 1_000_080 and both[:1_000_000] == (bytes(range(256)) * 4000)[:1_000_000]
os.truncate("both", 500_000)
"#;

#[test]
#[ignore = "needs docker and minio"]
fn a_path_can_be_truncated_to_any_length() -> anyhow::Result<()> {
    for cache in [Cache::Disk { limit_mib: 1024 }, Cache::Tmpfs { size_mib: 300 }] {
        let sandbox = TestSandbox::start(&[])?;
        let mut call = sandbox.workspace();
        call.cache = cache;
        sandbox.mount(vec![call])?;
        sandbox.run(TestUser::User, &format!("python3 - <<'END'{WORK}END"))?.success()?;
        for (file, expected) in [
            ("shrunk", &b"0123\0"[..]),
            ("extended", b"0123\0\0\0\0"),
            ("same", b"012345678"),
            ("emptied", b""),
            ("grown", b"\0\0\0"),
            ("often", b"01\0\0\0"),
            ("held", b"01X"),
            ("dirty", b"new"),
            ("moved", b"0123"),
        ] {
            let object = sandbox.store.get(&sandbox.key(file))?;
            assert_eq!(object.as_deref(), Some(expected), "{file}");
        }
        // What the test has read inside is what the store has.
        for (file, length) in [("big", 40_000_100), ("cut", 1_000_001), ("both", 500_000)] {
            let object = sandbox.store.get(&sandbox.key(file))?.expect("the object is there");
            assert_eq!(object.len(), length, "{file}");
            let sum =
                sandbox.run(TestUser::User, &format!("sha256sum < /workspace/{file}"))?.stdout;
            assert_eq!(sum.split(' ').next(), Some(&*hex::encode(Sha256::digest(&object))));
        }
        let pattern: Vec<u8> = (0..=255).cycle().take(500_000).collect();
        ensure!(
            sandbox.store.get(&sandbox.key("both"))? == Some(pattern),
            "both has other content"
        );
        assert_eq!(sandbox.store.get(&sandbox.key("missing"))?, None);
    }
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn what_the_store_wrote_is_not_truncated_unseen() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.store.put(&sandbox.key("a"), b"from the store")?;
    sandbox.run(TestUser::User, "truncate -s 8 /workspace/a")?.success()?;
    assert_eq!(sandbox.store.get(&sandbox.key("a"))?.as_deref(), Some(&b"from the"[..]));
    // Overwritten in the store after it was loaded: the new content shows, and it is what is cut.
    sandbox.run(TestUser::User, "cat /workspace/a")?.success()?;
    sandbox.store.put(&sandbox.key("a"), b"overwritten")?;
    wait_for("the new content", Duration::from_secs(6), || {
        Ok(sandbox.run(TestUser::User, "cat /workspace/a")?.stdout == "overwritten")
    })?;
    sandbox.run(TestUser::User, "truncate -s 4 /workspace/a")?.success()?;
    assert_eq!(sandbox.store.get(&sandbox.key("a"))?.as_deref(), Some(&b"over"[..]));
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_read_only_mount_takes_no_truncation() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    sandbox.store.put(&sandbox.key("a"), b"content")?;
    let mut call = sandbox.workspace();
    call.access = Access::ReadOnly;
    sandbox.mount(vec![call])?;
    let cut = sandbox.run(TestUser::Root, "truncate -s 3 /workspace/a")?;
    ensure!(cut.exit_code != 0 && cut.stderr.contains("Read-only"), "{cut:?}");
    assert_eq!(sandbox.run(TestUser::User, "cat /workspace/a")?.stdout, "content");
    assert_eq!(sandbox.store.get(&sandbox.key("a"))?.as_deref(), Some(&b"content"[..]));
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn no_mount_without_the_library() -> anyhow::Result<()> {
    let library = "fuse/lib/sandyard-s3fs-guard.so";
    for (change, why) in [
        (format!("rm {library}"), "bundle lacks"),
        (format!("echo no library > {library}"), "did not load"),
    ] {
        let sandbox = TestSandbox::start_from_bundle(changed_bundle(&change)?)?;
        let reply = sandbox.call(&ControlCall::Mount { mounts: vec![sandbox.workspace()] })?;
        let ControlReply::Failed(failure) = reply else { anyhow::bail!("{reply:?}") };
        ensure!(failure.message.contains(why), "{failure:?}");
        ensure!(failure.message.contains("damage files"), "{failure:?}");
        ensure!(sandbox.container.processes("s3fs")?.is_empty(), "s3fs runs");
    }
    Ok(())
}

//! The executor in an image that holds nothing but a static busybox.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::control::ControlAuthority;
use super::docker::{Container, bundle, docker, name, run, wait_for};

/// An image, removed on drop.
struct BusyboxImage(String);

impl Drop for BusyboxImage {
    fn drop(&mut self) {
        if let Err(error) = docker(["rmi", "-f", &self.0]) {
            eprintln!("{error:#}");
        }
    }
}

fn image() -> anyhow::Result<BusyboxImage> {
    let busybox = std::fs::read("/bin/busybox").context("install Debian's busybox-static")?;
    let files = tempfile::tempdir()?;
    let root = files.path().join("root");
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        std::fs::create_dir_all(root.join(directory))?;
    }
    std::fs::write(root.join("bin/busybox"), busybox)?;
    run(Command::new("chmod").arg("755").arg(root.join("bin/busybox")))?;
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\n")?;
    for link in ["sh", "nice", "ionice"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(link))?;
    }
    let archive = Command::new("tar").arg("-C").arg(&root).args(["-c", "."]).output()?;
    let image = BusyboxImage(name("busybox"));
    let mut import = Command::new("docker")
        .args(["import", "-", &image.0])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    import.stdin.take().context("a pipe")?.write_all(&archive.stdout)?;
    ensure!(import.wait()?.success(), "docker import failed");
    Ok(image)
}

#[test]
#[ignore = "needs docker and /bin/busybox (busybox-static)"]
fn the_executor_needs_nothing_of_the_image() -> anyhow::Result<()> {
    let image = image()?;
    let bundle = bundle()?;
    let volume = format!("{}:/.sandyard:ro", bundle.0);
    let authority = ControlAuthority::new();
    let key = hex::encode(authority.key.verifying_key().as_bytes());
    let instance = authority.instance.to_string();
    let command = ["init", "--instance", &instance, "--control-key", &key];
    let options = ["-v", &volume, "--entrypoint", "/.sandyard/executor"];
    let container = Container::start(&options, &image.0, &command)?;
    let health = format!("http://{}:49983/health", container.address);
    wait_for("the daemon's health", Duration::from_secs(10), || {
        Ok(run(Command::new("curl").args(["-sf", "-o", "/dev/null", &health])).is_ok())
    })?;
    super::rpc::claim(container.address, &authority)?;
    let request = json!({"process": {"cmd": "/bin/busybox", "args": ["true"]}});
    let finished = super::rpc::start(container.address, "root:", &request)?.finish()?;
    assert_eq!(finished.exit_code, 0);
    // The first process has given up what user code must not have.
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.init))?;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    assert_eq!(bounding.map(str::trim), Some("00000000a00405fb"));
    Ok(())
}

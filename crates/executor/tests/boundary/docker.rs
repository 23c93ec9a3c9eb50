//! Containers and volumes, through the command line client. All are removed on drop.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// Runs a command to its end and returns what it printed.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", text(&output));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn text(output: &Output) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{} {}{}", output.status, part(&output.stdout), part(&output.stderr))
}

/// Runs `docker` with arguments.
pub(super) fn docker<const N: usize>(arguments: [&str; N]) -> anyhow::Result<String> {
    run(Command::new("docker").args(arguments))
}

/// A name that no other test run uses.
pub(super) fn name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("boundary-{what}-{}-{number}", std::process::id())
}

/// Polls until `check` says yes.
pub(super) fn wait_for(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    while !check()? {
        ensure!(started.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(started.elapsed())
}

/// Root of the checkout.
pub(super) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A path from the environment, or its default in the checkout.
pub(super) fn artefact(variable: &str, default: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| checkout().join(default), PathBuf::from);
    ensure!(path.exists(), "{} is missing: make it, or set {variable}", path.display());
    Ok(path)
}

/// The template image.
pub(super) fn image() -> String {
    std::env::var("SANDYARD_TEST_IMAGE").unwrap_or_else(|_| "sandyard/base:latest".to_owned())
}

/// A volume, removed on drop.
pub(super) struct Volume(pub(super) String);

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = docker(["volume", "rm", "-f", &self.0]) {
            eprintln!("{error:#}");
        }
    }
}

/// The volume for `/.sandyard`, filled once for all tests that run at the same time.
pub(super) fn bundle() -> anyhow::Result<Arc<Volume>> {
    static SHARED: Mutex<Weak<Volume>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().expect("no test panics while it fills the volume");
    if let Some(volume) = shared.upgrade() {
        return Ok(volume);
    }
    let volume = Arc::new(fill()?);
    *shared = Arc::downgrade(&volume);
    Ok(volume)
}

/// A volume of the test's own for `/.sandyard`, after a shell command in it.
pub(super) fn changed_bundle(change: &str) -> anyhow::Result<Volume> {
    let volume = fill()?;
    let mount = format!("{}:/bundle", volume.0);
    let shell = ["run", "--rm", "-u", "0:0", "-v", &mount, "-w", "/bundle", "--entrypoint", "sh"];
    run(Command::new("docker").args(shell).args([&image(), "-c", change]))?;
    Ok(volume)
}

fn fill() -> anyhow::Result<Volume> {
    let bundle = artefact("SANDYARD_TEST_BUNDLE", ".sandyard/bin/sandyard-bundle.tar")?;
    let executor = artefact(
        "SANDYARD_TEST_EXECUTOR",
        "target/x86_64-unknown-linux-gnu/executor/sandyard-executor",
    )?;
    let volume = Volume(docker(["volume", "create", &name("bundle")])?);
    let mount = format!("{}:/bundle", volume.0);
    let container = docker(["create", "--name", &name("fill"), "-v", &mount, &image(), "true"])?;
    let filled = std::fs::File::open(&bundle).context("open the bundle").and_then(|tar| {
        let mut copy = Command::new("docker");
        copy.args(["cp", "-", &format!("{container}:/bundle")]).stdin(tar);
        let output = copy.output()?;
        ensure!(output.status.success(), "{copy:?}: {}", text(&output));
        // The executor under test, not the one that was there when the bundle was made.
        let target = format!("{container}:/bundle/executor");
        run(Command::new("docker").arg("cp").arg(&executor).arg(target))
    });
    docker(["rm", "-f", &container])?;
    filled.map(|_| volume)
}

/// A container, removed with its anonymous volumes on drop.
pub(super) struct Container {
    /// Its name.
    pub(super) name: String,
    /// Its address on the engine's bridge.
    pub(super) address: Ipv4Addr,
    /// Process id of its first process on the host.
    pub(super) init: i32,
}

impl Container {
    /// Starts a container with arguments of `docker run` before the image and after it.
    pub(super) fn start(options: &[&str], image: &str, command: &[&str]) -> anyhow::Result<Self> {
        let name = name("box");
        let mut run_it = Command::new("docker");
        run_it.args(["run", "-d", "--name", &name]).args(options).arg(image).args(command);
        if let Err(error) = run(&mut run_it) {
            docker(["rm", "-fv", &name])?;
            return Err(error);
        }
        let mut container = Self { name, address: Ipv4Addr::UNSPECIFIED, init: 0 };
        container.look()?;
        Ok(container)
    }

    /// Starts it again after its end.
    pub(super) fn start_again(&mut self) -> anyhow::Result<()> {
        docker(["start", &self.name])?;
        self.look()
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let format = "{{.State.Pid}}|{{.NetworkSettings.IPAddress}}";
        let seen = docker(["inspect", "--format", format, &self.name])?;
        let (init, address) = seen.split_once('|').context("two fields")?;
        if address.is_empty() {
            bail!("the container ended at once: {}", self.logs()?);
        }
        self.init = init.parse()?;
        self.address = address.parse()?;
        Ok(())
    }

    /// What it has written to its log.
    pub(super) fn logs(&self) -> anyhow::Result<String> {
        let output = Command::new("docker").args(["logs", &self.name]).output()?;
        Ok(text(&output))
    }

    /// Whether it runs.
    pub(super) fn running(&self) -> anyhow::Result<bool> {
        Ok(docker(["inspect", "--format", "{{.State.Running}}", &self.name])? == "true")
    }

    /// The code it has exited with.
    pub(super) fn exit_code(&self) -> anyhow::Result<i32> {
        Ok(docker(["inspect", "--format", "{{.State.ExitCode}}", &self.name])?.parse()?)
    }

    /// Processes of the container whose name is `comm`, as ids on the host.
    pub(super) fn processes(&self, comm: &str) -> anyhow::Result<Vec<i32>> {
        let listing = docker(["top", &self.name, "-eo", "pid,comm"])?;
        let id = |line: &str| {
            let mut words = line.split_whitespace();
            let id = words.next()?.parse().ok()?;
            (words.next()? == comm).then_some(id)
        };
        Ok(listing.lines().filter_map(id).collect())
    }

    /// Its root directory, as its first process sees it.
    pub(super) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.init).into()
    }

    /// Sends a signal to a process by its id on the host.
    pub(super) fn signal(&self, process: i32, signal: &str) -> anyhow::Result<()> {
        run(Command::new("kill").args([&format!("-{signal}"), &process.to_string()]))?;
        Ok(())
    }
}

/// Stops a process by its id on the host, and waits until none of its threads runs any more.
pub(super) fn halt(process: i32) -> anyhow::Result<()> {
    run(Command::new("kill").args(["-STOP", &process.to_string()]))?;
    wait_for("all threads to stand still", Duration::from_secs(5), || {
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
            if !std::fs::read_to_string(thread?.path().join("stat"))?.contains(") T ") {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    Ok(())
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of {}: {}", self.name, self.logs().unwrap_or_default());
        }
        if let Err(error) = docker(["rm", "-fv", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

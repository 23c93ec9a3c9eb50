//! Making mounts, in a worker: all programs start at once, and either all mounts are at their targets
//! in the end or nothing of them is left (design 6.1 (6)).

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, waitpid,
};
use sandyard_contract::budget::PROGRAM_READY;
use sandyard_contract::control::{ControlFailure, FailureKind, MountCall};
use sandyard_mount::{
    Credentials, LISTING_LIMIT, Mount, MountErrorKind, MountPaths, MountPlan, plan,
};

use super::boot::{OwnRoot, ROOT};
use super::cgroup::CgroupLimits;
use super::mount_run::MountRun;
use super::program::{Program, read_output};
use super::tail::Tail;
use super::worker::{Channel, Started, WorkerReport};
use super::{attach, cache, log, spawn};

/// How long a program whose mount failed may take to say why and end, before it is killed.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How `statfs` names FUSE.
const FUSE_MAGIC: i64 = 0x6573_5546;

/// What a worker has to mount.
pub(super) struct MountWork<'a> {
    /// Where.
    pub own_root: &'a OwnRoot,
    /// The user's side's limits.
    pub cgroup_limits: &'a CgroupLimits,
    /// Memory of all tmpfs caches, these included, in bytes.
    pub cache_memory: u64,
    /// The mounts to make.
    pub orders: Vec<MountOrder<'a>>,
    /// Mounts that run and lie below one that is made again: they go with it and come back with it.
    pub below: Vec<Below<'a>>,
}

/// One mount to make.
pub(super) struct MountOrder<'a> {
    /// The run that begins.
    pub run: MountRun,
    /// What to mount where.
    pub call: &'a MountCall,
    /// The attached mount of a program that died.
    pub previous: Option<BorrowedFd<'a>>,
}

/// A running mount below another's target.
pub(super) struct Below<'a> {
    /// The run of its program.
    pub run: MountRun,
    /// What it is.
    pub call: &'a MountCall,
    /// The mount that goes with the outer one.
    pub attached: BorrowedFd<'a>,
}

impl MountWork<'_> {
    /// Descriptors that the worker needs.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        let root = [self.own_root.image.as_fd(), self.own_root.programs.as_fd()];
        let previous = self.orders.iter().filter_map(|order| order.previous);
        let below = self.below.iter().map(|mount| mount.attached);
        root.into_iter().chain(previous).chain(below).map(|fd| fd.as_raw_fd()).collect()
    }

    /// Does it and reports.
    pub(super) fn run(&self, channel: &Channel) {
        let mut attempts = Vec::new();
        match self.make(channel, &mut attempts) {
            Ok(()) => {
                let started = |attempt: &Attempt<'_>| Started {
                    process: attempt.program.process.as_raw_nonzero().get(),
                    micros: attempt.micros,
                    lines: attempt.tail.lines(),
                };
                let outputs: Vec<_> = attempts.iter().map(|a| a.program.output.as_fd()).collect();
                let report = WorkerReport::Mounted(attempts.iter().map(started).collect());
                channel.send(&report, &outputs);
                self.forget_earlier_runs();
            }
            Err(failed) => {
                let mut failure = failed.failure;
                for (index, attempt) in attempts.iter_mut().enumerate() {
                    attempt.abandon();
                    if failed.attempt == Some(index) {
                        attempt.complete(&mut failure);
                    }
                }
                channel.send(&WorkerReport::Failed(failure), &[]);
            }
        }
    }

    /// Removes what earlier runs have left, in a process of its own: this one has to end, so that
    /// `init` becomes the programs' parent.
    fn forget_earlier_runs(&self) {
        let earlier: Vec<MountRun> = self.orders.iter().filter_map(|o| o.run.before()).collect();
        if earlier.is_empty() {
            return;
        }
        let forked = spawn::fork(|| {
            earlier.into_iter().for_each(clean_up);
            0
        });
        if let Err(error) = forked {
            log!("cannot clean up after a program that died: {error}");
        }
    }

    fn make<'a>(
        &'a self,
        channel: &Channel,
        attempts: &mut Vec<Attempt<'a>>,
    ) -> Result<(), Failed> {
        require_device()?;
        if let Err(error) = self.cgroup_limits.reserve(self.cache_memory) {
            log!("the caches' memory cannot be taken out of user code's limit: {error}");
        }
        for order in &self.orders {
            attempts.push(Attempt::start(order, self.own_root)?);
        }
        wait_until_ready(attempts)?;
        // Outer directories first, or they would cover the inner ones.
        let mut outer_first: Vec<usize> = (0..attempts.len()).collect();
        outer_first.sort_by_key(|index| self.orders[*index].call.target.as_str().len());
        for index in outer_first {
            let attempt = &mut attempts[index];
            attempt.attach(self.own_root, channel).map_err(|source| Failed {
                attempt: Some(index),
                failure: failure(
                    FailureKind::Attach,
                    format!("cannot mount on {}: {source}", attempt.order.call.target),
                ),
            })?;
        }
        for mount in &self.below {
            let again = attach::unmount(mount.attached).and_then(|()| {
                let mount_point = mount.run.mount_point();
                attach::attach(self.own_root.image.as_fd(), mount.call, &mount_point)
            });
            match again {
                Ok(tree) => channel.send(&WorkerReport::Attached(mount.run.slot), &[tree.as_fd()]),
                Err(error) => log!("cannot mount on {} again: {error}", mount.call.target),
            }
        }
        Ok(())
    }
}

/// A failure and the attempt whose program may have said why.
struct Failed {
    attempt: Option<usize>,
    failure: ControlFailure,
}

impl From<ControlFailure> for Failed {
    fn from(failure: ControlFailure) -> Self {
        Self { attempt: None, failure }
    }
}

fn failure(kind: FailureKind, message: String) -> ControlFailure {
    ControlFailure { kind, message, program_output: Vec::new() }
}

/// A container that was made without the device or without the right to open it.
fn require_device() -> Result<(), ControlFailure> {
    let path = format!("{ROOT}/dev/fuse");
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            let message =
                format!("cannot open /dev/fuse: {error}; {}", MountErrorKind::Device.advice());
            Err(failure(FailureKind::NoFuse, message))
        }
    }
}

/// A bundle from before there was the library that the program needs.
fn require_preload(plan: &MountPlan) -> Result<(), ControlFailure> {
    match fs::metadata(format!("{ROOT}{}", plan.preload)) {
        Ok(_) => Ok(()),
        Err(error) => {
            let message = format!(
                "the executor's bundle lacks {}, without which {} would damage files: {error}; build \
                 the bundle again",
                plan.preload, plan.program
            );
            Err(failure(FailureKind::Program, message))
        }
    }
}

/// One program on its way to being a mount.
struct Attempt<'a> {
    order: &'a MountOrder<'a>,
    plan: MountPlan,
    program: Program,
    ended: OwnedFd,
    /// Whether it was reaped here.
    reaped: bool,
    tail: Tail,
    output_open: bool,
    waiter: Pid,
    signs: io::PipeReader,
    started: Instant,
    micros: u64,
    /// When its root directory answered.
    opened: Option<Instant>,
    /// Whether its root directory was listed.
    listed: bool,
    attached: Option<OwnedFd>,
}

/// A call as a driver understands it.
fn of_call(call: &MountCall) -> (Mount<'_>, Credentials<'_>) {
    let mount = Mount {
        bucket: &call.bucket,
        prefix: &call.prefix,
        access: call.access,
        driver: call.driver,
        uid: call.uid,
        gid: call.gid,
        cache: call.cache,
    };
    let credentials = Credentials {
        endpoint: &call.endpoint,
        access_key_id: &call.access_key_id,
        secret_access_key: &call.secret_access_key,
    };
    (mount, credentials)
}

impl<'a> Attempt<'a> {
    fn start(order: &'a MountOrder<'a>, own_root: &OwnRoot) -> Result<Self, ControlFailure> {
        let run = order.run;
        let mount_point = run.mount_point();
        let (inner, cache) = (run.inner_mount_point(), run.inner_cache());
        let (mount, credentials) = of_call(order.call);
        let plan = plan(&mount, &credentials, MountPaths { mount_point: &inner, cache: &cache });
        require_preload(&plan)?;
        let prepared = cache::prepare(order.call.cache, run, own_root.disk_cache);
        prepared.map_err(|error| {
            failure(FailureKind::BadCall, format!("cannot make the cache: {error}"))
        })?;
        let started = Instant::now();
        let start = || -> io::Result<_> {
            cache::seal(run, &plan.sealed)?;
            fs::create_dir(&mount_point)?;
            let (signs, theirs) = io::pipe()?;
            let waiter = spawn::fork(|| watch(&mount_point, theirs))?;
            let program = Program::start(&plan, own_root.programs.as_fd())?;
            let ended = pidfd_open(program.process, PidfdFlags::empty())?;
            Ok((signs, waiter, program, ended))
        };
        let (signs, waiter, program, ended) = start().map_err(|error| {
            let message = format!("cannot start {} for {}: {error}", plan.program, plan.source);
            failure(FailureKind::Program, message)
        })?;
        Ok(Self {
            order,
            plan,
            program,
            ended,
            reaped: false,
            tail: Tail::new(order.call.secret_access_key.reveal()),
            output_open: true,
            waiter,
            signs,
            started,
            micros: 0,
            opened: None,
            listed: false,
            attached: None,
        })
    }

    /// When this attempt needs no more waiting, if it is that far.
    fn ready_at(&self) -> Option<Instant> {
        if self.listed { Some(self.started) } else { self.opened.map(|at| at + LISTING_LIMIT) }
    }

    fn read_output(&mut self) {
        match read_output(&self.program.output, &mut self.tail) {
            Ok(more) => self.output_open = more,
            Err(error) => {
                log!("cannot read what {} prints: {error}", self.plan.program);
                self.output_open = false;
            }
        }
    }

    /// Takes what the watcher has seen; an error is the end of the attempt.
    fn read_signs(&mut self) -> Result<(), String> {
        let mut sign = [0];
        match self.signs.read(&mut sign) {
            Ok(1) if sign[0] == OPENED => self.opened = Some(Instant::now()),
            Ok(1) if sign[0] == LISTED => self.listed = true,
            Ok(_) => {
                let mut text = String::new();
                let read = self.signs.read_to_string(&mut text);
                return Err(match read {
                    Ok(_) if !text.is_empty() => format!("its directory does not answer: {text}"),
                    _ => "its directory does not answer".to_owned(),
                });
            }
            Err(error) => return Err(format!("its directory cannot be watched: {error}")),
        }
        Ok(())
    }

    fn attach(&mut self, own_root: &OwnRoot, channel: &Channel) -> io::Result<()> {
        self.program.require_loaded(self.plan.preload)?;
        self.program.empty_key()?;
        let mount_point = self.order.run.mount_point();
        let (image, call) = (own_root.image.as_fd(), self.order.call);
        let tree = match self.order.previous {
            Some(previous) => attach::replace(image, call, &mount_point, previous)?,
            None => attach::attach(image, call, &mount_point)?,
        };
        self.micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        channel.send(&WorkerReport::Attached(self.order.run.slot), &[tree.as_fd()]);
        self.attached = Some(tree);
        Ok(())
    }

    /// Takes everything back. Killing the program ends its connection, which wakes whoever waits for
    /// an answer from it, the watcher included.
    fn abandon(&mut self) {
        let program = Some(self.program.process).filter(|_| !self.reaped);
        for process in program.into_iter().chain([self.waiter]) {
            let killed = kill_process(process, Signal::KILL);
            if let Err(error) = killed.and_then(|()| waitpid(Some(process), WaitOptions::empty())) {
                log!("cannot end process {process}: {error}");
            }
        }
        self.read_output();
        let unmounted = self.attached.take().map_or(Ok(()), attach::unmount);
        if let Err(error) = unmounted {
            log!("cannot unmount a mount that failed: {error}");
        }
        clean_up(self.order.run);
    }

    /// Adds to a failure what the program said.
    fn complete(&self, failure: &mut ControlFailure) {
        failure.program_output = self.tail.lines();
        if let Some(kind) = MountErrorKind::recognise(&failure.program_output) {
            failure.message = format!("{}; {}", failure.message, kind.advice());
        }
    }

    fn failed(&self, index: usize, what: &str) -> Failed {
        let call = self.order.call;
        let (driver, source, target) = (call.driver, &self.plan.source, &call.target);
        let message = format!("{driver} failed to mount {source} on {target}: {what}");
        Failed { attempt: Some(index), failure: failure(FailureKind::Program, message) }
    }

    /// How the program ended, if it did.
    fn exit(&mut self) -> Option<String> {
        let status = waitpid(Some(self.program.process), WaitOptions::NOHANG);
        match status {
            Ok(Some((_, status))) => {
                self.reaped = true;
                Some(describe(status))
            }
            Ok(None) => None,
            Err(error) => Some(format!("the program cannot be waited for: {error}")),
        }
    }
}

/// Takes away the mount point and the cache of a run that is over.
pub(super) fn clean_up(run: MountRun) {
    for result in [attach::unmount_all(&run.mount_point()), cache::remove(run)] {
        if let Err(error) = result {
            log!("cannot clean up after mount {run}: {error}");
        }
    }
}

/// How a program ended, in words.
pub(super) fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("the program ended with exit code {code}"),
        (None, Some(signal)) => format!("the program was killed by signal {signal}"),
        (None, None) => "the program ended".to_owned(),
    }
}

fn wait_until_ready(attempts: &mut [Attempt<'_>]) -> Result<(), Failed> {
    let deadline = Instant::now() + PROGRAM_READY;
    loop {
        let now = Instant::now();
        let unready = |a: &&Attempt<'_>| a.ready_at().is_none_or(|at| at > now);
        let Some(next) = attempts
            .iter()
            .filter(unready)
            .map(|attempt| attempt.ready_at().unwrap_or(deadline))
            .min()
        else {
            return Ok(());
        };
        if now >= deadline {
            let late = attempts.iter().enumerate().find(|(_, a)| unready(a));
            return late.map_or(Ok(()), |(index, attempt)| {
                Err(attempt.failed(index, &format!("not ready within {PROGRAM_READY:?}")))
            });
        }
        wait_for_event(attempts, next.min(deadline) - now)?;
    }
}

/// Waits until a program or its watcher has something to say, and takes it.
fn wait_for_event(attempts: &mut [Attempt<'_>], limit: Duration) -> Result<(), Failed> {
    let mut fds = Vec::with_capacity(3 * attempts.len());
    for attempt in attempts.iter() {
        let flags = |wanted| {
            if wanted { PollFlags::IN } else { PollFlags::empty() }
        };
        fds.push(PollFd::new(&attempt.ended, PollFlags::IN));
        fds.push(PollFd::new(&attempt.program.output, flags(attempt.output_open)));
        fds.push(PollFd::new(&attempt.signs, flags(!attempt.listed)));
    }
    // One millisecond more: the wait must not end just before the moment it is for.
    let limit = limit + Duration::from_millis(1);
    let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    if let Err(error) = poll(&mut fds, Some(&limit)) {
        let message = format!("cannot wait for the programs: {error}");
        return Err(failure(FailureKind::Program, message).into());
    }
    let events: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    for (index, attempt) in attempts.iter_mut().enumerate() {
        let [ended, output, signs] = [0, 1, 2].map(|part| events[3 * index + part]);
        if output && attempt.output_open {
            attempt.read_output();
        }
        if ended {
            let what = attempt.exit().unwrap_or_else(|| "the program ended".to_owned());
            return Err(attempt.failed(index, &what));
        }
        if signs
            && !attempt.listed
            && let Err(what) = attempt.read_signs()
        {
            // The program mounts first and checks the bucket then: it is about to say why.
            let mut ended = [PollFd::new(&attempt.ended, PollFlags::IN)];
            let limit = Timespec::try_from(LAST_WORDS).ok();
            let what = match poll(&mut ended, limit.as_ref()) {
                Ok(1) => attempt.exit().unwrap_or(what),
                _ => what,
            };
            return Err(attempt.failed(index, &what));
        }
    }
    Ok(())
}

/// Sign of the watcher: the root directory answered.
const OPENED: u8 = b'o';
/// Sign of the watcher: the root directory was listed.
const LISTED: u8 = b'l';
/// Sign of the watcher: an error, whose text follows.
const FAILED: u8 = b'e';

/// The watcher's process: waits for the mount and touches it, which nobody else here may.
fn watch(mount_point: &str, mut signs: io::PipeWriter) -> i32 {
    let mut look = || -> io::Result<()> {
        let started = Instant::now();
        while rustix::fs::statfs(mount_point)?.f_type != FUSE_MAGIC {
            let pause = if started.elapsed() < Duration::from_millis(100) { 500 } else { 5000 };
            sleep(Duration::from_micros(pause));
        }
        fs::metadata(mount_point)?;
        let mut entries = fs::read_dir(mount_point)?;
        signs.write_all(&[OPENED])?;
        entries.next().transpose()?;
        signs.write_all(&[LISTED])
    };
    match look() {
        Ok(()) => 0,
        Err(error) => {
            let told = signs
                .write_all(&[FAILED])
                .and_then(|()| signs.write_all(error.to_string().as_bytes()));
            // Nobody reads any more once the program has ended by itself.
            i32::from(told.is_err())
        }
    }
}

//! Halting the user's side before its container is frozen, and letting it go on (design 5.1).
//!
//! A freeze fails while a process waits for a FUSE program. So first everything of the user halts, which is
//! complete when nothing waits for a program any more.
//!
//! cgroup v2 has a freezer for that, whose processes can still be killed. In the one of cgroup v1 they cannot:
//! a container that is removed meanwhile never ends (measured with Docker). There, SIGSTOP does it. A
//! process's parent halts before it, and goes on after it, so that no shell takes it for a stopped job.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::cgroup::Freezer;
use super::log;

/// Between two looks at processes that are about to halt.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// How long processes may take to halt before their children are asked to.
const GENERATION_LIMIT: Duration = Duration::from_millis(20);

/// How long a process may wait in the kernel before its children get another moment. Whoever has called
/// vfork waits for its child to execute.
const CHILD_LIMIT: Duration = Duration::from_millis(50);

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// It may run.
    Running,
    /// It waits in the kernel where no signal reaches it, for a FUSE program perhaps.
    Waiting,
    /// It is halted, by whomever.
    Halted,
    /// It has ended.
    Ended,
}

/// A process of the user's side.
#[derive(Clone, Copy, Debug)]
struct UserSideProcess {
    id: i32,
    parent: i32,
    /// How many of its ancestors are on the user's side.
    depth: usize,
}

/// Halts everything on the user's side and waits until all of it is halted. Returns whether it was before the
/// deadline. Processes that user code had halted itself are given to `note_halted`, all of them each time that it
/// is called; they are not to be let go. Blocks.
pub(super) fn halt(
    freezer: Option<&Freezer>,
    deadline: Instant,
    note_halted: impl FnMut(&HashSet<i32>),
) -> io::Result<bool> {
    match freezer {
        Some(freezer) => freezer.freeze(deadline),
        None => stop_all(deadline, note_halted),
    }
}

/// Lets everything on the user's side go on but the processes that user code had halted itself.
pub(super) fn release(freezer: Option<&Freezer>, halted_by_user: &HashSet<i32>) -> io::Result<()> {
    if let Some(freezer) = freezer {
        return freezer.thaw();
    }
    let mut processes = processes()?;
    processes.sort_by_key(|process| std::cmp::Reverse(process.depth));
    for process in processes.iter().filter(|process| !halted_by_user.contains(&process.id)) {
        send(process.id, Signal::CONT)?;
    }
    Ok(())
}

/// Lets all processes go on, those too that user code had halted itself.
pub(super) fn release_all() {
    let all = nix::unistd::Pid::from_raw(-1);
    if let Err(error) = nix::sys::signal::kill(all, nix::sys::signal::Signal::SIGCONT) {
        log!("cannot let any process go on: {error}");
    }
}

fn stop_all(deadline: Instant, mut note_halted: impl FnMut(&HashSet<i32>)) -> io::Result<bool> {
    let mut by_user = HashSet::new();
    let mut by_us = HashSet::new();
    let mut waiting_since = HashMap::new();
    loop {
        let processes = processes()?;
        if note_halted_by_user(&processes, &mut by_user, &by_us)? {
            note_halted(&by_user);
        }
        let news = stop_generations(&processes, &by_user, &mut by_us, deadline)?;
        let mut all_halted = true;
        for process in &processes {
            all_halted &= matches!(activity(process.id)?, Activity::Halted | Activity::Ended);
        }
        // What was forked before its parent halted is in the next list.
        if all_halted && !news {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        let_children_execute(&processes, &mut by_us, &mut waiting_since)?;
        sleep(LOOK_EVERY);
    }
}

/// Notes the processes that are halted and were not by us. Returns whether that has changed.
fn note_halted_by_user(
    processes: &[UserSideProcess],
    by_user: &mut HashSet<i32>,
    by_us: &HashSet<i32>,
) -> io::Result<bool> {
    let mut changed = false;
    for process in processes.iter().filter(|process| !by_us.contains(&process.id)) {
        changed |= match activity(process.id)? {
            Activity::Halted => by_user.insert(process.id),
            // Somebody who was not halted yet has let it go on.
            _ => by_user.remove(&process.id),
        };
    }
    Ok(changed)
}

/// Stops processes, parents before their children. Returns whether there was any to stop.
fn stop_generations(
    processes: &[UserSideProcess],
    by_user: &HashSet<i32>,
    by_us: &mut HashSet<i32>,
    deadline: Instant,
) -> io::Result<bool> {
    let mut any = false;
    let deepest = processes.iter().map(|process| process.depth).max().unwrap_or(0);
    for depth in 0..=deepest {
        let mut stopped = Vec::new();
        for process in processes.iter().filter(|process| process.depth == depth) {
            if by_user.contains(&process.id) {
                continue;
            }
            let is_new = by_us.insert(process.id);
            // Somebody who was not halted yet may have let one go on.
            if is_new || activity(process.id)? == Activity::Running {
                send(process.id, Signal::STOP)?;
                stopped.push(process.id);
            }
            any |= is_new;
        }
        let limit = deadline.min(Instant::now() + GENERATION_LIMIT);
        while are_running(&stopped)? && Instant::now() < limit {
            sleep(LOOK_EVERY);
        }
    }
    Ok(any)
}

fn are_running(processes: &[i32]) -> io::Result<bool> {
    for process in processes {
        if activity(*process)? == Activity::Running {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lets the children of processes that wait for long in the kernel go on; the next turn stops them again.
fn let_children_execute(
    processes: &[UserSideProcess],
    by_us: &mut HashSet<i32>,
    waiting_since: &mut HashMap<i32, Instant>,
) -> io::Result<()> {
    let now = Instant::now();
    for parent in processes {
        if activity(parent.id)? != Activity::Waiting {
            waiting_since.remove(&parent.id);
            continue;
        }
        if now < *waiting_since.entry(parent.id).or_insert(now) + CHILD_LIMIT {
            continue;
        }
        waiting_since.insert(parent.id, now);
        for child in processes.iter().filter(|process| process.parent == parent.id) {
            if by_us.remove(&child.id) {
                send(child.id, Signal::CONT)?;
            }
        }
    }
    Ok(())
}

/// All processes of the user's side: those in a PID namespace below this one.
fn processes() -> io::Result<Vec<UserSideProcess>> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some(status) = read(&entry.path().join("status"))?
            && let Some(parent) = parent_of_nested(&status)
        {
            parents.insert(id, parent);
        }
    }
    let depth = |id: i32| {
        let ancestors = std::iter::successors(parents.get(&id), |parent| parents.get(parent));
        // Processes come and go during the look, and their ids could make a ring.
        ancestors.take(parents.len()).count() - 1
    };
    Ok(parents
        .iter()
        .map(|(id, parent)| UserSideProcess { id: *id, parent: *parent, depth: depth(*id) })
        .collect())
}

/// The parent's id of a process in a nested PID namespace, from the text of its `status`.
fn parent_of_nested(status: &str) -> Option<i32> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let levels = field("NSpid:")?.split_whitespace().count();
    let parent = field("PPid:")?.trim().parse().ok()?;
    (levels > 1).then_some(parent)
}

/// What a process does: the liveliest of its threads counts.
fn activity(process: i32) -> io::Result<Activity> {
    let threads = match fs::read_dir(format!("/proc/{process}/task")) {
        Ok(threads) => threads,
        Err(error) if is_gone(&error) => return Ok(Activity::Ended),
        Err(error) => return Err(error),
    };
    let mut found = Activity::Ended;
    for thread in threads {
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) if is_gone(&error) => break,
            Err(error) => return Err(error),
        };
        let Some(stat) = read(&thread.path().join("stat"))? else { continue };
        found = match (found, thread_activity(&stat)) {
            (Activity::Running, _) | (_, Activity::Running) => return Ok(Activity::Running),
            (Activity::Waiting, _) | (_, Activity::Waiting) => Activity::Waiting,
            (Activity::Halted, _) | (_, Activity::Halted) => Activity::Halted,
            (Activity::Ended, Activity::Ended) => Activity::Ended,
        };
    }
    Ok(found)
}

fn thread_activity(stat: &str) -> Activity {
    // The state follows the name, which may itself hold spaces and brackets.
    match stat.rsplit(") ").next().and_then(|rest| rest.chars().next()) {
        Some('T' | 't') => Activity::Halted,
        Some('D') => Activity::Waiting,
        Some('Z' | 'X') => Activity::Ended,
        _ => Activity::Running,
    }
}

/// A file of `/proc`; nothing if its process has ended.
fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn send(process: i32, signal: Signal) -> io::Result<()> {
    let Some(process) = Pid::from_raw(process) else { return Ok(()) };
    match kill_process(process, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => {
            log!("cannot signal process {process}: {error}");
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_the_users_if_its_namespace_is_nested() {
        let status = |ids: &str| format!("Name:\tx\nPPid:\t7\nNSpid:\t{ids}\nUid:\t0\n");
        assert_eq!(parent_of_nested(&status("12\t1")), Some(7));
        assert_eq!(parent_of_nested(&status("12")), None);
        assert_eq!(parent_of_nested("Name:\tx\n"), None);
    }

    #[test]
    fn a_name_is_no_state() {
        assert_eq!(thread_activity("5 (a) T b) R 1 5"), Activity::Running);
        assert_eq!(thread_activity("5 (x) T 1 5"), Activity::Halted);
        assert_eq!(thread_activity("5 (x) D 1 5"), Activity::Waiting);
        assert_eq!(thread_activity("5 (x) Z 1 5"), Activity::Ended);
    }

    #[test]
    fn this_process_runs() {
        let own = i32::try_from(std::process::id()).expect("small");
        assert_eq!(activity(own).expect("readable"), Activity::Running);
        assert_eq!(activity(i32::MAX).expect("no error"), Activity::Ended);
    }
}

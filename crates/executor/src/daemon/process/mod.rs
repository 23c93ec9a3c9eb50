//! Processes of `process.Process` (executor 4): the table of those that run and of those that just
//! ended, and the life of each.

mod descriptor;
mod input;
mod launch;
mod output;
mod reaper;
mod service;
mod spawn;
mod status;
mod terminal;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandyard_contract::rpc::process::ProcessConfig;
use sandyard_contract::rpc::process::process_selector::Selector;
use tokio::sync::watch;
use tokio::time::Instant;

use super::tasks::lock;
use super::{Daemon, trim_memory};
use input::InputWriter;
use output::ProcessOutput;

pub(super) use reaper::{Left, Reaper};
pub(super) use service::{
    close_stdin, connect, list, send_input, send_signal, start, stream_input, update,
};
pub(super) use spawn::{Command, DEFAULT_PATH, ProcessIdentity, Streams};
pub(super) use status::ExitStatus;

/// How long the end of a process can be asked for after it (executor 4.6).
const RETENTION: Duration = Duration::from_secs(30);

/// One started process.
struct Process {
    pid: u32,
    tag: Option<String>,
    /// As it came in the request.
    config: ProcessConfig,
    output: Arc<ProcessOutput>,
    input: InputWriter,
    /// True once it was sent TERM or KILL: then nobody waits for its pipes to close (executor 4.4).
    killed: watch::Sender<bool>,
}

impl Process {
    /// Sends TERM or KILL to this process alone.
    fn signal(&self, reaper: &Reaper, signal: i32) -> io::Result<()> {
        self.killed.send_replace(true);
        // Reaped, with its pipes held open by others: now nobody waits for those any more.
        reaper.signal(self.pid, signal).map(drop)
    }
}

/// What is left of a process that is over: of a thousand commands a second little must stay.
struct EndedProcess {
    pid: u32,
    tag: Option<String>,
    status: ExitStatus,
    until: Instant,
}

/// What a selector means.
enum FoundProcess {
    Live(Arc<Process>),
    Ended(u32, ExitStatus),
}

fn matches(selector: &Selector, pid: u32, tag: Option<&String>) -> bool {
    match selector {
        Selector::Pid(wanted) => *wanted == pid,
        Selector::Tag(wanted) => Some(wanted) == tag,
    }
}

/// All processes of this daemon.
#[derive(Default)]
pub(super) struct ProcessTable {
    reaper: Reaper,
    lists: Mutex<Lists>,
}

/// In the order they came, so that the newest match is the last.
#[derive(Default)]
struct Lists {
    live: Vec<Arc<Process>>,
    ended: VecDeque<EndedProcess>,
    /// Whether a task forgets those whose time is over.
    forgetting: bool,
}

impl ProcessTable {
    pub(super) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    fn add(&self, process: &Arc<Process>) {
        let mut lists = lock(&self.lists);
        let same_tag = |old: &EndedProcess| old.tag.is_some() && old.tag == process.tag;
        lists.ended.retain(|old| old.pid != process.pid && !same_tag(old));
        lists.live.push(Arc::clone(process));
    }

    fn live(&self) -> Vec<Arc<Process>> {
        lock(&self.lists).live.clone()
    }

    fn find_live(&self, selector: &Selector) -> Option<Arc<Process>> {
        let lists = lock(&self.lists);
        let matches = |p: &&Arc<Process>| matches(selector, p.pid, p.tag.as_ref());
        lists.live.iter().rev().find(matches).cloned()
    }

    fn find(&self, selector: &Selector) -> Option<FoundProcess> {
        if let Some(process) = self.find_live(selector) {
            return Some(FoundProcess::Live(process));
        }
        let lists = lock(&self.lists);
        let ended = lists.ended.iter().rev().find(|e| matches(selector, e.pid, e.tag.as_ref()))?;
        Some(FoundProcess::Ended(ended.pid, ended.status))
    }

    /// Forgets ends whose time is over. When the next one is, or `None` if none is left.
    fn forget(&self) -> Option<Instant> {
        let mut lists = lock(&self.lists);
        let now = Instant::now();
        while lists.ended.front().is_some_and(|ended| ended.until <= now) {
            lists.ended.pop_front();
        }
        let next = lists.ended.front().map(|ended| ended.until);
        if next.is_none() {
            lists.ended = VecDeque::new();
            lists.forgetting = false;
        }
        next
    }
}

/// Moves a process that is over to those whose end is still told, for as long as it is.
fn retire(daemon: &Arc<Daemon>, process: &Arc<Process>, status: ExitStatus) {
    let begin = {
        let mut lists = lock(&daemon.processes.lists);
        lists.live.retain(|other| !Arc::ptr_eq(other, process));
        let (pid, tag) = (process.pid, process.tag.clone());
        lists.ended.push_back(EndedProcess { pid, tag, status, until: Instant::now() + RETENTION });
        !std::mem::replace(&mut lists.forgetting, true)
    };
    if begin {
        let owner = Arc::clone(daemon);
        daemon.tasks.spawn(async move {
            while let Some(next) = owner.processes.forget() {
                tokio::time::sleep_until(next).await;
            }
            // Nothing has ended for a while.
            trim_memory();
        });
    }
}

//! Processes of `process.Process` (executor 4): the table of those that run and of those that just
//! ended, and the life of each.

mod input;
mod launch;
mod output;
mod reaper;
mod service;
mod spawn;
mod status;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandyard_contract::rpc::process::ProcessConfig;
use sandyard_contract::rpc::process::process_selector::Selector;
use tokio::sync::watch;

use super::tasks::lock;
use input::Input;
use output::Output;

pub(super) use reaper::{Left, Reaper};
pub(super) use service::{close_stdin, connect, list, send_input, send_signal, start};

/// How long the end of a process can be asked for after it (executor 4.6).
const RETENTION: Duration = Duration::from_secs(30);

/// One started process.
struct Process {
    pid: u32,
    tag: Option<String>,
    /// As it came in the request.
    config: ProcessConfig,
    output: Output,
    input: Input,
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

    fn matches(&self, selector: &Selector) -> bool {
        match selector {
            Selector::Pid(pid) => self.pid == *pid,
            Selector::Tag(tag) => self.tag.as_ref() == Some(tag),
        }
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
    ended: Vec<Arc<Process>>,
}

impl ProcessTable {
    pub(super) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    fn add(&self, process: &Arc<Process>) {
        let mut lists = lock(&self.lists);
        let same_tag = |old: &Process| old.tag.is_some() && old.tag == process.tag;
        lists.ended.retain(|old| old.pid != process.pid && !same_tag(old));
        lists.live.push(Arc::clone(process));
    }

    /// Moves a process that is over to those whose end is still told.
    fn retire(&self, process: &Arc<Process>) {
        let mut lists = lock(&self.lists);
        lists.live.retain(|other| !Arc::ptr_eq(other, process));
        lists.ended.push(Arc::clone(process));
    }

    fn forget(&self, process: &Arc<Process>) {
        lock(&self.lists).ended.retain(|other| !Arc::ptr_eq(other, process));
    }

    fn live(&self) -> Vec<Arc<Process>> {
        lock(&self.lists).live.clone()
    }

    fn find_live(&self, selector: &Selector) -> Option<Arc<Process>> {
        let lists = lock(&self.lists);
        lists.live.iter().rev().find(|process| process.matches(selector)).cloned()
    }

    fn find(&self, selector: &Selector) -> Option<Arc<Process>> {
        let lists = lock(&self.lists);
        let newest_first = lists.live.iter().rev().chain(lists.ended.iter().rev());
        newest_first.into_iter().find(|process| process.matches(selector)).cloned()
    }
}

//! Threads for what may block in the kernel.
//!
//! Not the runtime's own: that one panics if it can start no thread, and whether it can is up to the
//! sandbox's processes, which share our limit. One thread here is started with the daemon and stays.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use tokio::sync::oneshot;

use super::tasks::lock;
use super::{log, rights};

/// Each may sit in a call on a dead mount; more work than this waits.
const MOST_THREADS: usize = 64;

/// How long a thread beyond the first waits for work.
const IDLE: Duration = Duration::from_secs(2);

const STACK_BYTES: usize = 512 << 10;

type BlockingJob = Box<dyn FnOnce() + Send>;

static POOL: ThreadPool =
    ThreadPool { state: Mutex::new(ThreadPoolState::new()), more: Condvar::new() };

struct ThreadPool {
    state: Mutex<ThreadPoolState>,
    more: Condvar,
}

struct ThreadPoolState {
    queue: VecDeque<BlockingJob>,
    threads: usize,
    idle: usize,
}

impl ThreadPoolState {
    const fn new() -> Self {
        Self { queue: VecDeque::new(), threads: 0, idle: 0 }
    }
}

/// Starts the thread that stays.
pub(super) fn start() -> io::Result<()> {
    lock(&POOL.state).threads += 1;
    spawn(true)
}

/// Begins work on the pool at once; the future tells its result, and may be dropped.
pub(super) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> RunningJob<T> {
    let (sender, receiver) = oneshot::channel();
    submit(Box::new(move || {
        // Nobody waits for it any more if this fails.
        let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
    }));
    RunningJob(receiver)
}

/// Work that was begun.
pub(super) struct RunningJob<T>(oneshot::Receiver<std::thread::Result<T>>);

impl<T> Future for RunningJob<T> {
    type Output = T;
    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<T> {
        std::pin::Pin::new(&mut self.0).poll(context).map(|result| match result {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => unreachable!("a job sends before it ends"),
        })
    }
}

fn submit(job: BlockingJob) {
    let mut state = lock(&POOL.state);
    state.queue.push_back(job);
    if state.idle >= state.queue.len() || state.threads >= MOST_THREADS {
        drop(state);
        POOL.more.notify_one();
        return;
    }
    state.threads += 1;
    drop(state);
    // A thread begins with the rights of the one that starts it.
    if let Err(error) = rights::as_root(|| spawn(false)).and_then(|started| started) {
        log!("failed to start a thread, so work waits for the others: {error}");
        lock(&POOL.state).threads -= 1;
        POOL.more.notify_one();
    }
}

fn spawn(stays: bool) -> io::Result<()> {
    let thread = Builder::new().name("blocking".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || work(stays)).map(drop)
}

fn work(stays: bool) {
    let mut state = lock(&POOL.state);
    loop {
        if let Some(job) = state.queue.pop_front() {
            drop(state);
            job();
            state = lock(&POOL.state);
            continue;
        }
        state.idle += 1;
        let (woken, over) = wait(state, stays);
        state = woken;
        state.idle -= 1;
        if over && state.queue.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}

/// Waits for work; true: for long enough to go, which the thread that stays never does.
fn wait(
    state: MutexGuard<'static, ThreadPoolState>,
    stays: bool,
) -> (MutexGuard<'static, ThreadPoolState>, bool) {
    if stays {
        return (POOL.more.wait(state).unwrap_or_else(PoisonError::into_inner), false);
    }
    let waited = POOL.more.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
    (waited.0, waited.1.timed_out())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn work_runs_side_by_side_and_more_of_it_waits() {
        start().unwrap();
        let together = std::sync::Arc::new(Barrier::new(4));
        let meeting: Vec<_> = (0..4)
            .map(|_| {
                let together = std::sync::Arc::clone(&together);
                run(move || together.wait().is_leader())
            })
            .collect();
        let mut leaders = 0;
        for met in meeting {
            leaders += usize::from(met.await);
        }
        assert_eq!(leaders, 1);
        let many: Vec<_> = (0..1000).map(|n| run(move || n * 2)).collect();
        for (n, double) in many.into_iter().enumerate() {
            assert_eq!(double.await, n * 2);
        }
    }
}

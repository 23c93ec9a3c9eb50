//! What a process writes, and who reads it (executor 4.5): lossless for every subscriber, held back by
//! the slowest, thrown away while there is none.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use hyper::body::Bytes;
use sandyard_contract::rpc::process::process_event::data_event::Output as Chunk;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::super::log;
use super::super::tasks::lock;
use super::descriptor::{self, AsyncDescriptor};
use super::status::ExitStatus;
use super::terminal;

/// What waits for the slowest subscriber before the process has to: so much, in so many reads.
const QUEUE_BYTES: usize = 128 << 10;
const QUEUE_CHUNKS: usize = 64;

/// Where output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputSource {
    Stdout,
    Stderr,
    Terminal,
}

impl OutputSource {
    fn chunk(self, bytes: Bytes) -> Chunk {
        match self {
            Self::Stdout => Chunk::Stdout(bytes),
            Self::Stderr => Chunk::Stderr(bytes),
            Self::Terminal => Chunk::Pty(bytes),
        }
    }

    fn most(self) -> usize {
        match self {
            Self::Stdout | Self::Stderr => descriptor::READ_BYTES,
            Self::Terminal => terminal::READ_BYTES,
        }
    }

    /// How much there may be to read now.
    fn readable(self, descriptor: &AsyncDescriptor) -> io::Result<u64> {
        match self {
            Self::Stdout | Self::Stderr => Ok(rustix::io::ioctl_fionread(descriptor)?),
            // The kernel counts only a part of it.
            Self::Terminal => Ok(terminal::READ_BYTES as u64),
        }
    }
}

/// The output of one process that not all subscribers have taken yet and, once it is over, how the
/// process ended.
#[derive(Default)]
pub(super) struct ProcessOutput {
    state: Mutex<OutputState>,
    grown: Notify,
    shrunk: Notify,
}

#[derive(Default)]
struct OutputState {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// Number of the first chunk here, counted from the first ever.
    first: u64,
    readers: Vec<OutputReader>,
    /// Number of the next subscription.
    next: u64,
    end: Option<ExitStatus>,
}

struct OutputReader {
    subscription: u64,
    /// Number of the chunk to take next.
    at: u64,
    /// When its call is over, whether it still reads or not.
    until: Option<Instant>,
}

/// Somebody who reads all output from one moment on; dropping it ends that.
pub(super) struct Subscription {
    output: Arc<ProcessOutput>,
    number: u64,
}

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum OutputItem {
    Chunk(Chunk),
    /// The last one.
    End(ExitStatus),
}

impl OutputState {
    /// Drops what all have taken; true if that was something.
    fn release(&mut self) -> bool {
        let end = self.first + self.chunks.len() as u64;
        let slowest = self.readers.iter().map(|reader| reader.at).min().unwrap_or(end);
        let begun = self.first;
        while self.first < slowest
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.first += 1;
            self.bytes -= length(&chunk);
        }
        self.first > begun
    }

    fn take(&mut self, subscription: u64) -> Option<OutputItem> {
        let end = self.end;
        let reader = self.readers.iter_mut().find(|r| r.subscription == subscription)?;
        let index = usize::try_from(reader.at - self.first).ok()?;
        match self.chunks.get(index) {
            Some(chunk) => {
                reader.at += 1;
                Some(OutputItem::Chunk(chunk.clone()))
            }
            None => end.map(OutputItem::End),
        }
    }
}

fn length(chunk: &Chunk) -> usize {
    match chunk {
        Chunk::Stdout(bytes) | Chunk::Stderr(bytes) | Chunk::Pty(bytes) => bytes.len(),
    }
}

impl ProcessOutput {
    /// From now on everything the process writes, and its end. At `until` the subscriber's call is over:
    /// from then on nobody waits for it.
    pub(super) fn subscribe(self: &Arc<Self>, until: Option<Instant>) -> Subscription {
        let mut state = lock(&self.state);
        let (number, at) = (state.next, state.first + state.chunks.len() as u64);
        state.next += 1;
        state.readers.push(OutputReader { subscription: number, at, until });
        Subscription { output: Arc::clone(self), number }
    }

    /// Sets the end, after all output was published.
    pub(super) fn finish(&self, status: ExitStatus) {
        lock(&self.state).end = Some(status);
        self.grown.notify_waiters();
    }

    fn publish(&self, chunk: Chunk) {
        let mut state = lock(&self.state);
        if state.readers.is_empty() {
            return;
        }
        state.bytes += length(&chunk);
        state.chunks.push_back(chunk);
        drop(state);
        self.grown.notify_waiters();
    }

    /// Waits until the slowest subscriber has made room, or its call is over.
    async fn room(&self) {
        loop {
            let shrunk = self.shrunk.notified();
            let until = {
                let mut state = lock(&self.state);
                if state.bytes < QUEUE_BYTES && state.chunks.len() < QUEUE_CHUNKS {
                    return;
                }
                let now = Instant::now();
                let before = state.readers.len();
                state.readers.retain(|reader| reader.until.is_none_or(|until| until > now));
                if state.readers.len() < before && state.release() {
                    continue;
                }
                state.readers.iter().filter_map(|reader| reader.until).min()
            };
            match until {
                // Either way there is something to look at again.
                Some(until) => drop(tokio::time::timeout_at(until, shrunk).await),
                None => shrunk.await,
            }
        }
    }

    /// Publishes what comes out of a descriptor until its end, or, once `cut` is true, until what was in
    /// it at that moment is out.
    pub(super) async fn pump(
        &self,
        source: OutputSource,
        descriptor: &AsyncDescriptor,
        mut cut: watch::Receiver<bool>,
    ) {
        loop {
            let next = async {
                self.room().await;
                descriptor.read(source.most()).await
            };
            let result = tokio::select! {
                biased;
                // An error is the process's supervisor gone, and this with it.
                _ = cut.wait_for(|cut| *cut) => break,
                result = next => result,
            };
            match result {
                Ok(bytes) if bytes.is_empty() => return,
                Ok(bytes) => self.publish(source.chunk(bytes)),
                Err(error) => return log!("failed to read a process's output: {error}"),
            }
        }
        if let Err(error) = self.drain(source, descriptor) {
            log!("failed to read a process's last output: {error}");
        }
    }

    /// Publishes what is there now, and waits for no room: it is little, and the end must not wait for
    /// whoever does not read. Processes that outlived the killed one may go on writing.
    fn drain(&self, source: OutputSource, descriptor: &AsyncDescriptor) -> io::Result<()> {
        let mut left = source.readable(descriptor)?;
        while left > 0 {
            match descriptor.read_now(source.most()) {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => {
                    left = left.saturating_sub(bytes.len() as u64);
                    self.publish(source.chunk(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Subscription {
    /// The next chunk, or the end after all of them.
    pub(super) async fn next(&mut self) -> OutputItem {
        loop {
            let grown = self.output.grown.notified();
            let (item, released) = {
                let mut state = lock(&self.output.state);
                (state.take(self.number), state.release())
            };
            if released {
                self.output.shrunk.notify_waiters();
            }
            match item {
                Some(item) => return item,
                None => grown.await,
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = lock(&self.output.state);
        state.readers.retain(|reader| reader.subscription != self.number);
        let released = state.release();
        drop(state);
        if released {
            self.output.shrunk.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use tokio::io::Interest;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn piped() -> (std::io::PipeWriter, AsyncDescriptor) {
        let (reader, writer) = std::io::pipe().unwrap();
        (writer, AsyncDescriptor::new(reader.into(), Interest::READABLE).unwrap())
    }

    fn stdout(item: OutputItem) -> Bytes {
        match item {
            OutputItem::Chunk(Chunk::Stdout(bytes)) => bytes,
            other => panic!("{other:?}"),
        }
    }

    async fn within<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(LIMIT, work).await.expect("it comes in time")
    }

    #[tokio::test]
    async fn every_subscriber_gets_everything_and_one_that_leaves_stops_nobody() {
        let output = Arc::new(ProcessOutput::default());
        let (mut first, left) = (output.subscribe(None), output.subscribe(None));
        let (mut writer, reader) = piped();
        let (_never, cut) = watch::channel(false);
        let text: Vec<u8> = (0..4_000_000u32).map(|n| n as u8).collect();
        let expected = text.clone();
        let writing = std::thread::spawn(move || writer.write_all(&text).unwrap());
        let pumping = output.pump(OutputSource::Stdout, &reader, cut);
        let reading = async {
            let mut left = Some(left);
            let mut all = Vec::new();
            while all.len() < expected.len() {
                all.extend_from_slice(&stdout(first.next().await));
                if all.len() > 100_000 {
                    left.take();
                }
            }
            all
        };
        let ((), all) = within(async { tokio::join!(pumping, reading) }).await;
        writing.join().unwrap();
        assert!(all == expected, "the output arrived changed");
    }

    #[tokio::test]
    async fn output_that_nobody_wants_is_read_and_dropped() {
        let output = Arc::new(ProcessOutput::default());
        let (mut writer, reader) = piped();
        let (_never, cut) = watch::channel(false);
        let writing = std::thread::spawn(move || writer.write_all(&[0; 1 << 20]).unwrap());
        within(output.pump(OutputSource::Stdout, &reader, cut)).await;
        writing.join().unwrap();
        let status = ExitStatus::from_raw(0);
        output.finish(status);
        assert_eq!(within(output.subscribe(None).next()).await, OutputItem::End(status));
    }

    #[tokio::test]
    async fn whoever_does_not_read_holds_a_bounded_amount_and_only_until_its_call_is_over() {
        let output = Arc::new(ProcessOutput::default());
        let over = Instant::now() + Duration::from_millis(200);
        let (_stuck, mut reads) = (output.subscribe(Some(over)), output.subscribe(None));
        let (mut writer, reader) = piped();
        let (_never, cut) = watch::channel(false);
        let writing = std::thread::spawn(move || writer.write_all(&[1; 2 << 20]).unwrap());
        let reading = async {
            let mut most = 0;
            let mut all = 0;
            while all < 2 << 20 {
                all += stdout(reads.next().await).len();
                most = most.max(lock(&output.state).bytes);
            }
            most
        };
        let ((), most) = within(async {
            tokio::join!(output.pump(OutputSource::Stdout, &reader, cut), reading)
        })
        .await;
        writing.join().unwrap();
        assert!(Instant::now() >= over, "the subscriber that does not read was overtaken");
        assert!(most <= QUEUE_BYTES + descriptor::READ_BYTES, "{most} bytes waited");
    }

    #[tokio::test]
    async fn a_cut_delivers_what_is_there_and_waits_for_neither_an_end_nor_a_reader() {
        let output = Arc::new(ProcessOutput::default());
        let mut subscriber = output.subscribe(None);
        let (mut writer, reader) = piped();
        writer.write_all(b"last words").unwrap();
        let (_now, cut) = watch::channel(true);
        while lock(&output.state).bytes < QUEUE_BYTES {
            output.publish(Chunk::Stdout(Bytes::from_static(&[0; 1024])));
        }
        within(output.pump(OutputSource::Stderr, &reader, cut)).await;
        output.finish(ExitStatus::from_raw(9));
        let mut last = None;
        loop {
            match within(subscriber.next()).await {
                OutputItem::Chunk(chunk) => last = Some(chunk),
                OutputItem::End(status) => break assert_eq!(status, ExitStatus::from_raw(9)),
            }
        }
        assert_eq!(last, Some(Chunk::Stderr(Bytes::from_static(b"last words"))));
        drop(writer);
    }

    #[tokio::test]
    async fn a_terminal_without_programs_is_at_its_end() {
        let size = sandyard_contract::rpc::process::Pty::default();
        let (ours, theirs) = terminal::open(&size, rustix::process::getuid().as_raw()).unwrap();
        let ours = AsyncDescriptor::new(ours, Interest::READABLE).unwrap();
        std::fs::File::from(theirs).write_all(b"bye").unwrap();
        let output = Arc::new(ProcessOutput::default());
        let mut subscriber = output.subscribe(None);
        let (_never, cut) = watch::channel(false);
        within(output.pump(OutputSource::Terminal, &ours, cut)).await;
        let chunk = OutputItem::Chunk(Chunk::Pty(Bytes::from_static(b"bye")));
        assert_eq!(within(subscriber.next()).await, chunk);
    }
}

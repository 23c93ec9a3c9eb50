//! What a process writes, and who reads it (executor 4.5): lossless for every subscriber, held back by
//! the slowest, thrown away while there is none.

use std::io;
use std::sync::Mutex;

use hyper::body::Bytes;
use sandyard_contract::rpc::process::process_event::EndEvent;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::super::log;
use super::super::tasks::lock;

/// The longest chunk of one read (executor 4.3).
const CHUNK_BYTES: usize = 32 << 10;

/// Chunks that wait for one subscriber before the process has to.
const QUEUE: usize = 16;

thread_local! {
    // One for all processes: reads do not wait, so none holds it across another.
    static SCRATCH: std::cell::RefCell<Box<[u8]>> =
        std::cell::RefCell::new(vec![0; CHUNK_BYTES].into());
}

/// The stream a chunk came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout,
    Stderr,
}

/// What one read gave.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub channel: Channel,
    pub bytes: Bytes,
}

/// The subscribers of one process and, once it is over, how it ended.
#[derive(Default)]
pub(super) struct Output(Mutex<State>);

#[derive(Default)]
struct State {
    subscribers: Vec<mpsc::Sender<Chunk>>,
    end: Option<EndEvent>,
}

impl Output {
    /// From now on everything the process writes. The channel closes when [`Output::end`] is known; it
    /// is closed from the start if the process is over. Dropping it ends the subscription.
    pub(super) fn subscribe(&self) -> mpsc::Receiver<Chunk> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut state = lock(&self.0);
        if state.end.is_none() {
            state.subscribers.push(sender);
        }
        receiver
    }

    /// How the process ended; `None` while it runs.
    pub(super) fn end(&self) -> Option<EndEvent> {
        lock(&self.0).end.clone()
    }

    /// Sets the end, after all output was published.
    pub(super) fn finish(&self, end: EndEvent) {
        let mut state = lock(&self.0);
        state.end = Some(end);
        state.subscribers.clear();
    }

    async fn publish(&self, chunk: Chunk) {
        let subscribers = {
            let mut state = lock(&self.0);
            state.subscribers.retain(|subscriber| !subscriber.is_closed());
            state.subscribers.clone()
        };
        for subscriber in subscribers {
            // One that left while we waited for it is removed with the next chunk.
            drop(subscriber.send(chunk.clone()).await);
        }
    }

    /// Publishes what comes out of a pipe until its end, or, once `cut` is true, until what was in it
    /// at that moment is out.
    pub(super) async fn pump(
        &self,
        mut pipe: pipe::Receiver,
        channel: Channel,
        mut cut: watch::Receiver<bool>,
    ) {
        loop {
            let result = tokio::select! {
                ready = pipe.readable() => ready.and_then(|()| read(&pipe)),
                // An error is the process's supervisor gone, and this with it.
                _ = cut.wait_for(|cut| *cut) => break,
            };
            match result {
                Ok(bytes) if bytes.is_empty() => return,
                Ok(bytes) => self.publish(Chunk { channel, bytes }).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return log!("failed to read a process's output: {error}"),
            }
        }
        if let Err(error) = self.drain(&mut pipe, channel).await {
            log!("failed to read a process's last output: {error}");
        }
    }

    /// Publishes what is in the pipe now; processes that outlived the killed one may go on writing.
    async fn drain(&self, pipe: &mut pipe::Receiver, channel: Channel) -> io::Result<()> {
        let mut left = rustix::io::ioctl_fionread(&*pipe)?;
        while left > 0 {
            pipe.readable().await?;
            match read(pipe) {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => {
                    left = left.saturating_sub(bytes.len() as u64);
                    self.publish(Chunk { channel, bytes }).await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn read(pipe: &pipe::Receiver) -> io::Result<Bytes> {
    SCRATCH.with_borrow_mut(|scratch| {
        let length = pipe.try_read(scratch)?;
        Ok(Bytes::copy_from_slice(&scratch[..length]))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Arc;

    use super::*;

    fn piped() -> (std::io::PipeWriter, pipe::Receiver) {
        let (reader, writer) = std::io::pipe().unwrap();
        (writer, pipe::Receiver::from_owned_fd(reader.into()).unwrap())
    }

    #[tokio::test]
    async fn every_subscriber_gets_everything_and_one_that_leaves_stops_nobody() {
        let output = Arc::new(Output::default());
        let (mut first, left) = (output.subscribe(), output.subscribe());
        let (mut writer, reader) = piped();
        let (_never, cut) = watch::channel(false);
        let text: Vec<u8> = (0..4_000_000u32).map(|n| n as u8).collect();
        let expected = text.clone();
        let writing = std::thread::spawn(move || writer.write_all(&text).unwrap());
        let pumping = output.pump(reader, Channel::Stdout, cut);
        let reading = async {
            let mut left = Some(left);
            let mut all = Vec::new();
            while let Some(chunk) = first.recv().await {
                all.extend_from_slice(&chunk.bytes);
                if all.len() > 100_000 {
                    left.take();
                }
                if all.len() == expected.len() {
                    break;
                }
            }
            all
        };
        let ((), all) = tokio::join!(pumping, reading);
        writing.join().unwrap();
        assert!(all == expected, "the output arrived changed");
    }

    #[tokio::test]
    async fn output_that_nobody_wants_is_read_and_dropped() {
        let output = Output::default();
        let (mut writer, reader) = piped();
        let (_never, cut) = watch::channel(false);
        let writing = std::thread::spawn(move || writer.write_all(&[0; 1 << 20]).unwrap());
        output.pump(reader, Channel::Stdout, cut).await;
        writing.join().unwrap();
        let end = EndEvent { status: "exit status 0".into(), ..EndEvent::default() };
        output.finish(end.clone());
        assert!(output.subscribe().recv().await.is_none());
        assert_eq!(output.end(), Some(end));
    }

    #[tokio::test]
    async fn a_cut_delivers_what_is_there_and_waits_for_no_end() {
        let output = Output::default();
        let mut subscriber = output.subscribe();
        let (mut writer, reader) = piped();
        writer.write_all(b"last words").unwrap();
        let (_now, cut) = watch::channel(true);
        output.pump(reader, Channel::Stderr, cut).await;
        let chunk = subscriber.recv().await.unwrap();
        assert_eq!((chunk.channel, &chunk.bytes[..]), (Channel::Stderr, &b"last words"[..]));
        drop(writer);
    }
}

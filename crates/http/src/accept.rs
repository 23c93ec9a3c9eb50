//! One way to take connections for everything that listens: bounded, and not ended by an error.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How long to wait after an error. All errors of `accept` pass: the connection was gone already, or descriptors
/// or memory ran out, and what is there meanwhile goes on.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections without a place are reported once in so long: each report is a line in a log, and they cost their
/// sender nothing.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// What connections are taken from.
pub trait Listener: Send + Sync {
    /// A connection.
    type Stream: Send;

    /// The next connection and its source; none where that means nothing.
    fn accept_one(&self)
    -> impl Future<Output = io::Result<(Self::Stream, Option<IpAddr>)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept_one(&self) -> io::Result<(TcpStream, Option<IpAddr>)> {
        let (stream, source) = self.accept().await?;
        // One that listens for both versions tells the older one's addresses in the newer one's form.
        Ok((stream, Some(source.ip().to_canonical())))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept_one(&self) -> io::Result<(UnixStream, Option<IpAddr>)> {
        Ok((self.accept().await?.0, None))
    }
}

/// How many connections may be open at once: all together, and from one address.
#[derive(Clone, Debug)]
pub struct Quota {
    most: usize,
    most_from_one: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
    reported: Option<Instant>,
}

impl Quota {
    /// A bound on all connections together and on those from one address.
    pub fn new(most: usize, most_from_one: usize) -> Self {
        Self { most, most_from_one, open: Arc::default() }
    }

    /// A bound on all connections together only: for listeners whose clients come through one proxy.
    pub fn of_all(most: usize) -> Self {
        Self::new(most, usize::MAX)
    }

    /// The bound on all connections together.
    pub fn most(&self) -> usize {
        self.most
    }

    /// A place for a connection from `source`; none if there are too many.
    fn admit(&self, source: Option<IpAddr>) -> Option<QuotaSlot> {
        let mut open = lock(&self.open);
        if open.all >= self.most {
            return None;
        }
        if let Some(source) = source {
            let count = open.by_source.entry(source).or_default();
            if *count >= self.most_from_one {
                return None;
            }
            *count += 1;
        }
        open.all += 1;
        Some(QuotaSlot { source, open: Arc::clone(&self.open) })
    }

    /// What to report of a connection that got no place, if it is time for that.
    fn refusal(&self, source: Option<IpAddr>) -> Option<io::Error> {
        let mut open = lock(&self.open);
        let now = Instant::now();
        if open.reported.is_some_and(|reported| now < reported + REPORT_EVERY) {
            return None;
        }
        open.reported = Some(now);
        let source = source.map_or_else(|| "a client".to_owned(), |source| source.to_string());
        let message = format!(
            "one from {source} is too many: there are {} of at most {}, and at most {} from one address",
            open.all, self.most, self.most_from_one
        );
        Some(io::Error::new(io::ErrorKind::QuotaExceeded, message))
    }
}

/// A connection's place in its quota, free again when this is dropped.
#[derive(Debug)]
pub struct QuotaSlot {
    source: Option<IpAddr>,
    open: Arc<Mutex<Open>>,
}

impl Drop for QuotaSlot {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.all -= 1;
        let Some(source) = self.source else { return };
        if let Some(count) = open.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                open.by_source.remove(&source);
            }
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    // Both counts are changed together, by code that cannot panic between them.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that was taken.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The connection.
    pub stream: S,
    /// Where it comes from; none where that means nothing.
    pub source: Option<IpAddr>,
    /// To be kept for as long as the connection is open.
    pub slot: QuotaSlot,
}

/// The next connection that has a place; one that has none is closed at once. Waits out every error, and tells
/// `report` of it. May be dropped at any time without losing a connection that was taken.
pub async fn accept<L: Listener>(
    listener: &L,
    quota: &Quota,
    report: impl Fn(&io::Error),
) -> Accepted<L::Stream> {
    loop {
        match listener.accept_one().await {
            Ok((stream, source)) => {
                if let Some(slot) = quota.admit(source) {
                    return Accepted { stream, source, slot };
                }
                if let Some(refusal) = quota.refusal(source) {
                    report(&refusal);
                }
            }
            Err(error) => {
                report(&error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::AsyncReadExt as _;

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn one_address_has_its_share_and_all_have_theirs() {
        let quota = Quota::new(3, 2);
        let first = quota.admit(Some(ONE)).expect("free");
        let _second = quota.admit(Some(ONE)).expect("free");
        assert!(quota.admit(Some(ONE)).is_none(), "its share");
        let _third = quota.admit(Some(TWO)).expect("free");
        assert!(quota.admit(Some(TWO)).is_none(), "all");
        drop(first);
        let _again = quota.admit(Some(ONE)).expect("free again");
        assert!(quota.admit(None).is_none());
        assert_eq!(lock(&quota.open).by_source.len(), 2);
    }

    /// Fails twice, then has a connection.
    struct Failing {
        tries: AtomicUsize,
        real: TcpListener,
    }

    impl Listener for Failing {
        type Stream = TcpStream;

        async fn accept_one(&self) -> io::Result<(TcpStream, Option<IpAddr>)> {
            match self.tries.fetch_add(1, Ordering::Relaxed) {
                0 => Err(io::Error::from_raw_os_error(24)),
                1 => Err(io::ErrorKind::InvalidInput.into()),
                _ => self.real.accept_one().await,
            }
        }
    }

    #[tokio::test]
    async fn errors_are_waited_out() -> io::Result<()> {
        let real = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = real.local_addr()?;
        let listener = Failing { tries: AtomicUsize::new(0), real };
        let _client = TcpStream::connect(address).await?;
        let reported = AtomicUsize::new(0);
        let taken = accept(&listener, &Quota::of_all(1), |_| {
            reported.fetch_add(1, Ordering::Relaxed);
        })
        .await;
        assert_eq!(taken.source, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(reported.load(Ordering::Relaxed), 2);
        Ok(())
    }

    #[tokio::test]
    async fn a_connection_without_a_place_is_closed() -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let quota = Quota::of_all(1);
        let _first = TcpStream::connect(address).await?;
        let held = accept(&listener, &quota, |_| {}).await;
        let mut refused = TcpStream::connect(address).await?;
        let mut byte = [0];
        let reported = AtomicUsize::new(0);
        for _ in 0..3 {
            tokio::select! {
                _ = accept(&listener, &quota, |error| {
                    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
                    reported.fetch_add(1, Ordering::Relaxed);
                }) => panic!("there is no place"),
                read = refused.read(&mut byte) => assert_eq!(read?, 0),
            }
            refused = TcpStream::connect(address).await?;
        }
        assert_eq!(reported.load(Ordering::Relaxed), 1, "not for each");
        drop(refused);
        drop(held);
        let _second = TcpStream::connect(address).await?;
        accept(&listener, &quota, |_| {}).await;
        Ok(())
    }
}

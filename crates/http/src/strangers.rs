//! Connections of which nothing is proven yet: whoever reaches a port can open them as they like.
//!
//! A connection is a stranger's until a request on it proves something. Strangers are few, from one address and all
//! together. If there are too many, the oldest from the address that has most is closed: who opens many connections
//! closes its own. An address from which a proof came can be trusted from then on.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// How many connections strangers may have.
#[derive(Clone, Copy, Debug)]
pub struct StrangerLimits {
    /// From one address.
    pub from_one: usize,
    /// All together.
    pub all: usize,
}

impl StrangerLimits {
    /// Whoever has to go for one more connection from `source`, as an index into the sources of those that are
    /// there, oldest first.
    pub fn surplus(&self, held: &[IpAddr], source: IpAddr) -> Option<usize> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for address in held {
            *counts.entry(*address).or_default() += 1;
        }
        if counts.get(&source).is_some_and(|count| *count >= self.from_one) {
            return held.iter().position(|address| *address == source);
        }
        if held.len() < self.all {
            return None;
        }
        let most = counts.values().copied().max();
        held.iter().position(|address| counts.get(address).copied() == most)
    }
}

/// Addresses from which a proof came; the oldest is forgotten first.
#[derive(Debug)]
pub struct TrustedAddresses {
    remembered: usize,
    addresses: Vec<IpAddr>,
}

impl TrustedAddresses {
    /// Remembers so many. With none, no address is ever trusted.
    pub fn new(remembered: usize) -> Self {
        Self { remembered, addresses: Vec::new() }
    }

    /// Whether a proof came from it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// A proof came from it.
    pub fn insert(&mut self, address: IpAddr) {
        if self.remembered == 0 || self.contains(address) {
            return;
        }
        if self.addresses.len() >= self.remembered {
            self.addresses.remove(0);
        }
        self.addresses.push(address);
    }
}

/// All connections of strangers to one port.
#[derive(Debug)]
pub struct Strangers {
    limits: StrangerLimits,
    table: Mutex<StrangerTable>,
}

#[derive(Debug)]
struct StrangerTable {
    issued: u64,
    /// Oldest first.
    held: Vec<Stranger>,
    trusted: TrustedAddresses,
}

#[derive(Debug)]
struct Stranger {
    number: u64,
    source: IpAddr,
    /// Told when the connection has to go.
    close: Arc<Notify>,
}

/// One connection, until it is known whose it is.
#[derive(Debug)]
pub struct Admission {
    number: u64,
    source: IpAddr,
    close: Arc<Notify>,
    trusted: bool,
}

impl Admission {
    /// Whether the connection came from an address that was trusted already.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Returns when the connection has to go.
    pub async fn revoked(&self) {
        self.close.notified().await;
    }
}

impl Strangers {
    /// None yet; so many addresses from which a proof came are trusted.
    pub fn new(limits: StrangerLimits, trusted_addresses: usize) -> Self {
        let trusted = TrustedAddresses::new(trusted_addresses);
        Self { limits, table: Mutex::new(StrangerTable { issued: 0, held: Vec::new(), trusted }) }
    }

    /// Takes a connection on, and gives up another one if there are too many.
    pub fn admit(&self, source: IpAddr) -> Admission {
        let mut table = self.lock();
        table.issued += 1;
        let (number, close) = (table.issued, Arc::new(Notify::new()));
        let trusted = table.trusted.contains(source);
        if !trusted {
            let sources: Vec<IpAddr> = table.held.iter().map(|held| held.source).collect();
            if let Some(index) = self.limits.surplus(&sources, source) {
                table.held.remove(index).close.notify_one();
            }
            table.held.push(Stranger { number, source, close: Arc::clone(&close) });
        }
        Admission { number, source, close, trusted }
    }

    /// Something was proven on the connection: it is no stranger's any more. If its address is trusted by that, so
    /// are the others that it has here.
    pub fn trust(&self, admission: &Admission) {
        let mut table = self.lock();
        table.trusted.insert(admission.source);
        let trusted = table.trusted.contains(admission.source);
        table.held.retain(|stranger| {
            stranger.number != admission.number && !(trusted && stranger.source == admission.source)
        });
    }

    /// The connection has ended.
    pub fn forget(&self, admission: &Admission) {
        self.lock().held.retain(|stranger| stranger.number != admission.number);
    }

    fn lock(&self) -> MutexGuard<'_, StrangerTable> {
        // Nothing that holds it can panic between two changes that belong together.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LIMITS: StrangerLimits = StrangerLimits { from_one: 8, all: 64 };
    const MOST_TRUSTED: usize = 16;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(172, 20, 0, last).into()
    }

    fn is_revoked(admission: &Admission) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(admission.revoked()).poll(&mut context).is_ready()
    }

    #[test]
    fn an_address_with_its_share_gives_up_its_own_oldest() {
        let strangers = Strangers::new(LIMITS, MOST_TRUSTED);
        let server = strangers.admit(address(1));
        let flood: Vec<_> = (0..1000).map(|_| strangers.admit(address(2))).collect();
        assert!(!is_revoked(&server));
        let alive = flood.iter().filter(|admission| !is_revoked(admission)).count();
        assert_eq!(alive, LIMITS.from_one);
        assert!(!is_revoked(&flood[999]));
    }

    #[test]
    fn many_addresses_do_not_push_one_out() {
        let strangers = Strangers::new(LIMITS, MOST_TRUSTED);
        let server = strangers.admit(address(1));
        let flood: Vec<_> = (0..50)
            .flat_map(|n| (0..8).map(move |_| n))
            .map(|n| strangers.admit(address(n + 2)))
            .collect();
        assert!(!is_revoked(&server));
        let alive = flood.iter().filter(|admission| !is_revoked(admission)).count();
        assert_eq!(alive, LIMITS.all - 1);
    }

    #[test]
    fn a_trusted_address_has_as_many_as_it_likes() {
        let strangers = Strangers::new(LIMITS, MOST_TRUSTED);
        let first = strangers.admit(address(1));
        assert!(!first.is_trusted());
        strangers.trust(&first);
        let more: Vec<_> = (0..1000).map(|_| strangers.admit(address(1))).collect();
        assert!(more.iter().all(Admission::is_trusted));
        let early: Vec<_> = (0..LIMITS.from_one).map(|_| strangers.admit(address(200))).collect();
        strangers.trust(&early[0]);
        let _others: Vec<_> = (0..200).map(|n| strangers.admit(address(n))).collect();
        assert!(early.iter().all(|admission| !is_revoked(admission)), "so have those before it");
        for n in 0..=MOST_TRUSTED {
            let other = strangers.admit(address(u8::try_from(n + 2).expect("small")));
            strangers.trust(&other);
        }
        assert!(!strangers.admit(address(1)).is_trusted(), "the oldest is forgotten");
    }

    #[test]
    fn who_has_left_makes_room() {
        let strangers = Strangers::new(LIMITS, MOST_TRUSTED);
        let first = strangers.admit(address(2));
        let rest: Vec<_> = (1..LIMITS.from_one).map(|_| strangers.admit(address(2))).collect();
        strangers.forget(&rest[0]);
        strangers.admit(address(2));
        assert!(!is_revoked(&first));
        strangers.admit(address(2));
        assert!(is_revoked(&first));
    }

    #[test]
    fn where_no_address_is_trusted_each_connection_proves_itself() {
        let strangers = Strangers::new(LIMITS, 0);
        let proven = strangers.admit(address(1));
        strangers.trust(&proven);
        let more: Vec<_> = (0..=LIMITS.from_one).map(|_| strangers.admit(address(1))).collect();
        assert!(!more[0].is_trusted());
        assert!(is_revoked(&more[0]));
        assert!(!is_revoked(&proven));
    }
}

//! Connections of which nothing is proven yet: neighbours, and programs inside, can open them as they like.
//!
//! A connection is a stranger's until a request on it shows one of this sandbox's tokens, or makes the claim.
//! Strangers are few, from one address and all together. If there are too many, one from the address that has
//! most is closed, so no stranger takes the place of another address. An address from which a token came is
//! trusted from then on: it is the server's, through whose proxy all clients come.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::tasks::lock;

/// Strangers' connections from one address, and all together.
const MOST_FROM_ONE: usize = 8;
const MOST: usize = 64;

/// Addresses that are remembered as trusted; the oldest is forgotten first. A server has one at a time.
const MOST_TRUSTED: usize = 16;

/// All connections of strangers.
#[derive(Default)]
pub(super) struct Strangers(Mutex<State>);

#[derive(Default)]
struct State {
    issued: u64,
    /// Oldest first.
    held: Vec<Stranger>,
    trusted: Vec<IpAddr>,
}

struct Stranger {
    number: u64,
    source: IpAddr,
    /// Told when the connection has to go.
    close: Arc<Notify>,
}

impl State {
    /// Whoever has to go for one more connection from `source`.
    fn surplus(&self, source: IpAddr) -> Option<usize> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for stranger in &self.held {
            *counts.entry(stranger.source).or_default() += 1;
        }
        if counts.get(&source).is_some_and(|count| *count >= MOST_FROM_ONE) {
            return self.held.iter().position(|stranger| stranger.source == source);
        }
        if self.held.len() < MOST {
            return None;
        }
        let most = counts.values().copied().max();
        self.held.iter().position(|stranger| counts.get(&stranger.source).copied() == most)
    }
}

/// One connection, until it is known whose it is.
pub(super) struct Admission {
    number: u64,
    source: IpAddr,
    close: Arc<Notify>,
    trusted: bool,
}

impl Admission {
    /// Whether the connection came from an address that was trusted already.
    pub(super) fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Returns when the connection has to go.
    pub(super) async fn revoked(&self) {
        self.close.notified().await;
    }
}

impl Strangers {
    /// Takes a connection on, and gives up another one if there are too many.
    pub(super) fn admit(&self, source: IpAddr) -> Admission {
        let mut state = lock(&self.0);
        state.issued += 1;
        let (number, close) = (state.issued, Arc::new(Notify::new()));
        let trusted = state.trusted.contains(&source);
        if !trusted {
            if let Some(index) = state.surplus(source) {
                state.held.remove(index).close.notify_one();
            }
            state.held.push(Stranger { number, source, close: Arc::clone(&close) });
        }
        Admission { number, source, close, trusted }
    }

    /// Something was proven on the connection: it stays, and so do others from its address.
    pub(super) fn trust(&self, admission: &Admission) {
        let mut state = lock(&self.0);
        state.held.retain(|stranger| stranger.number != admission.number);
        if !state.trusted.contains(&admission.source) {
            if state.trusted.len() >= MOST_TRUSTED {
                state.trusted.remove(0);
            }
            state.trusted.push(admission.source);
        }
    }

    /// The connection has ended.
    pub(super) fn forget(&self, admission: &Admission) {
        lock(&self.0).held.retain(|stranger| stranger.number != admission.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(172, 20, 0, last).into()
    }

    fn is_revoked(admission: &Admission) -> bool {
        admission.revoked().now_or_never().is_some()
    }

    #[test]
    fn an_address_with_its_share_gives_up_its_own_oldest() {
        let strangers = Strangers::default();
        let server = strangers.admit(address(1));
        let flood: Vec<_> = (0..1000).map(|_| strangers.admit(address(2))).collect();
        assert!(!is_revoked(&server));
        let alive = flood.iter().filter(|admission| !is_revoked(admission)).count();
        assert_eq!(alive, MOST_FROM_ONE);
        assert!(!is_revoked(&flood[999]));
    }

    #[test]
    fn many_addresses_do_not_push_one_out() {
        let strangers = Strangers::default();
        let server = strangers.admit(address(1));
        let flood: Vec<_> = (0..50)
            .flat_map(|n| (0..8).map(move |_| n))
            .map(|n| strangers.admit(address(n + 2)))
            .collect();
        assert!(!is_revoked(&server));
        let alive = flood.iter().filter(|admission| !is_revoked(admission)).count();
        assert_eq!(alive, MOST - 1);
    }

    #[test]
    fn a_trusted_address_has_as_many_as_it_likes() {
        let strangers = Strangers::default();
        let first = strangers.admit(address(1));
        assert!(!first.is_trusted());
        strangers.trust(&first);
        let more: Vec<_> = (0..1000).map(|_| strangers.admit(address(1))).collect();
        assert!(more.iter().all(Admission::is_trusted));
        for n in 0..=MOST_TRUSTED {
            let other = strangers.admit(address(u8::try_from(n + 2).expect("small")));
            strangers.trust(&other);
        }
        assert!(!strangers.admit(address(1)).is_trusted(), "the oldest is forgotten");
    }

    #[test]
    fn who_has_left_makes_room() {
        let strangers = Strangers::default();
        let first = strangers.admit(address(2));
        let rest: Vec<_> = (1..MOST_FROM_ONE).map(|_| strangers.admit(address(2))).collect();
        strangers.forget(&rest[0]);
        strangers.admit(address(2));
        assert!(!is_revoked(&first));
        strangers.admit(address(2));
        assert!(is_revoked(&first));
    }
}

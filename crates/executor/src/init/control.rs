//! The control port: connections, nonces, signatures (design 6.1 (8)). It never waits for a peer, and
//! holds a bounded amount for each. Whoever has not shown a valid call is a stranger: a stranger gets a
//! second and few connections. The address of a valid call is trusted from then on: it is the server's,
//! and no stranger takes the place of its connections.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ed25519_dalek::{Signature, VerifyingKey};
use rustix::event::PollFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use sandyard_contract::control::{
    CONTROL_PORT, CONTROL_VERSION, ControlCall, ControlFailure, ControlReply, FailureKind, Hello,
    MAX_CALL_BYTES, MAX_LINE_BYTES, SIGNED_CALL_LIMIT, SignedCall, signing_input,
};
use sandyard_http::{StrangerLimits, TrustedAddresses};
use sandyard_types::InstanceId;
use serde::Serialize;

use super::args::InitArgs;
use super::log;

/// Connections held at a time on which no valid call came: from addresses that are not trusted, and from those
/// that are. With [`MAX_CALL_BYTES`] they bound the memory of `init`, whose margin is small.
const STRANGERS: StrangerLimits = StrangerLimits { from_one: 4, all: 32 };
const TRUSTED: StrangerLimits = StrangerLimits { from_one: 16, all: 32 };

/// A server has one address at a time.
const TRUSTED_ADDRESSES: usize = 4;

/// Connections that wait to be taken; more than a flood brings between two turns of the loop.
const BACKLOG: i32 = 4096;

/// Names a connection; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionId(u64);

/// The listener and its connections, oldest first.
pub(super) struct Control {
    listener: TcpListener,
    connections: Vec<ControlConnection>,
    issued: u64,
    trusted: TrustedAddresses,
    instance: InstanceId,
    key: VerifyingKey,
}

struct ControlConnection {
    id: ConnectionId,
    stream: TcpStream,
    source: IpAddr,
    opened: Instant,
    input: Vec<u8>,
    output: Vec<u8>,
    nonce: String,
    /// Whether it has made a valid call.
    authenticated: bool,
    /// Whether a call of it is being worked on; nothing is read meanwhile.
    busy: bool,
}

impl Control {
    /// Binds the port on all addresses.
    pub(super) fn bind(args: &InitArgs) -> anyhow::Result<Self> {
        let address = (Ipv4Addr::UNSPECIFIED, CONTROL_PORT);
        let listener = TcpListener::bind(address)
            .and_then(|listener| {
                listener.set_nonblocking(true)?;
                rustix::net::listen(&listener, BACKLOG)?;
                Ok(listener)
            })
            .with_context(|| format!("failed to listen on port {CONTROL_PORT}"))?;
        Ok(Self {
            listener,
            connections: Vec::new(),
            issued: 0,
            trusted: TrustedAddresses::new(TRUSTED_ADDRESSES),
            instance: args.instance.clone(),
            key: args.control_key,
        })
    }

    /// The listener, readable when someone connects.
    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Every connection with what to wait for on it.
    pub(super) fn waits(&self) -> Vec<(ConnectionId, BorrowedFd<'_>, PollFlags)> {
        let wait = |connection: &ControlConnection| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !connection.busy);
            flags.set(PollFlags::OUT, !connection.output.is_empty());
            flags
        };
        self.connections.iter().map(|c| (c.id, c.stream.as_fd(), wait(c))).collect()
    }

    /// Takes all waiting connections and greets them.
    pub(super) fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return log!("cannot accept a connection: {error}"),
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        // Who comes from this container's own address is user code: no call of it can be valid, and
        // it must not take the place of one that is.
        let own = stream.local_addr().is_ok_and(|local| local.ip() == peer.ip());
        if own || peer.ip().is_loopback() || stream.set_nonblocking(true).is_err() {
            return;
        }
        self.make_room(peer.ip());
        self.issued += 1;
        let id = ConnectionId(self.issued);
        self.connections.push(ControlConnection {
            id,
            stream,
            source: peer.ip(),
            opened: Instant::now(),
            input: Vec::new(),
            output: Vec::new(),
            nonce: String::new(),
            authenticated: false,
            busy: false,
        });
        self.greet(id);
    }

    /// Lets a connection without a valid call go if there are too many, of a trusted address only for another of
    /// such an address.
    fn make_room(&mut self, source: IpAddr) {
        let trusted = self.trusted.contains(source);
        let limits = if trusted { TRUSTED } else { STRANGERS };
        // They are in the order in which they came.
        let rivals: Vec<(ConnectionId, IpAddr)> = self
            .connections
            .iter()
            .filter(|c| !c.authenticated && self.trusted.contains(c.source) == trusted)
            .map(|c| (c.id, c.source))
            .collect();
        let sources: Vec<IpAddr> = rivals.iter().map(|(_, source)| *source).collect();
        if let Some(index) = limits.surplus(&sources, source) {
            self.close(rivals[index].0);
        }
    }

    /// Closes the connections of strangers that have had their time.
    pub(super) fn close_overdue(&mut self, now: Instant) {
        self.connections.retain(|c| c.authenticated || now < c.opened + SIGNED_CALL_LIMIT);
    }

    /// When to call [`Control::close_overdue`] again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let strangers = self.connections.iter().filter(|c| !c.authenticated);
        strangers.map(|c| c.opened + SIGNED_CALL_LIMIT).min()
    }

    /// Acts on what happened to a connection; a complete and valid call is returned, and its
    /// connection waits for [`Control::reply`].
    pub(super) fn handle(&mut self, id: ConnectionId, events: PollFlags) -> Option<ControlCall> {
        if events.contains(PollFlags::OUT) {
            self.flush(id);
        }
        let connection = self.connections.iter_mut().find(|c| c.id == id)?;
        let gone = events.intersects(PollFlags::HUP | PollFlags::ERR);
        if connection.busy || !events.intersects(PollFlags::IN) {
            if gone {
                self.close(id);
            }
            return None;
        }
        if !connection.fill() {
            self.close(id);
            return None;
        }
        self.next_call(id)
    }

    fn next_call(&mut self, id: ConnectionId) -> Option<ControlCall> {
        let connection = self.connections.iter_mut().find(|c| c.id == id)?;
        let end = connection.input.iter().position(|byte| *byte == b'\n')?;
        let mut line: Vec<u8> = connection.input.drain(..=end).collect();
        line.pop();
        // One nonce, one try: whatever the line says, the nonce is spent.
        let nonce = std::mem::take(&mut connection.nonce);
        connection.busy = true;
        match verify(&self.key, &self.instance, &nonce, &line) {
            Ok(call) => {
                connection.authenticated = true;
                self.trusted.insert(connection.source);
                Some(call)
            }
            Err(failure) => {
                self.reply(id, &ControlReply::Failed(failure));
                None
            }
        }
    }

    /// Answers the call of a connection and gives it the next nonce. The caller may be gone.
    pub(super) fn reply(&mut self, id: ConnectionId, reply: &ControlReply) {
        self.send(id, reply);
        self.greet(id);
    }

    /// Says the last word to a connection and closes it in order, waiting at most `limit`.
    pub(super) fn reply_and_close(
        &mut self,
        id: ConnectionId,
        reply: &ControlReply,
        limit: Duration,
    ) {
        self.send(id, reply);
        let Some(connection) = self.connections.iter().find(|c| c.id == id) else {
            return;
        };
        let closed = connection.stream.shutdown(Shutdown::Write).and_then(|()| {
            let wait = rustix::event::Timespec::try_from(limit).map_err(io::Error::other)?;
            // The peer closes once it has read the reply; the container's network lasts until then.
            let mut fds = [rustix::event::PollFd::new(&connection.stream, PollFlags::IN)];
            Ok(rustix::event::poll(&mut fds, Some(&wait))?)
        });
        if let Err(error) = closed {
            log!("cannot close a control connection in order: {error}");
        }
        self.close(id);
    }

    fn greet(&mut self, id: ConnectionId) {
        let mut bytes = [0; 32];
        if let Err(error) = getrandom(&mut bytes, GetRandomFlags::empty()) {
            log!("no random numbers for a nonce: {error}");
            return self.close(id);
        }
        let nonce = hex::encode(bytes);
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            connection.nonce.clone_from(&nonce);
            connection.busy = false;
        }
        self.send(id, &Hello { nonce, version: CONTROL_VERSION });
    }

    fn send(&mut self, id: ConnectionId, message: &impl Serialize) {
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) else {
            return;
        };
        match serde_json::to_writer(&mut connection.output, message) {
            Ok(()) => connection.output.push(b'\n'),
            Err(error) => {
                log!("cannot write a reply: {error}");
                return self.close(id);
            }
        }
        self.flush(id);
    }

    fn flush(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) else {
            return;
        };
        while !connection.output.is_empty() {
            match connection.stream.write(&connection.output) {
                Ok(length) => drop(connection.output.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A peer that asks without reading the answers is not served further.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && connection.output.len() < MAX_LINE_BYTES =>
                {
                    return;
                }
                Err(_) => return self.close(id),
            }
        }
    }

    fn close(&mut self, id: ConnectionId) {
        self.connections.retain(|connection| connection.id != id);
    }
}

impl ControlConnection {
    /// Reads up to the end of a line. Returns whether the connection can go on.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        while !self.input.contains(&b'\n') {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) if self.input.len() + length > MAX_CALL_BYTES => return false,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// Reads a line as a call that the installation's server has signed for this container and `nonce`.
fn verify(
    key: &VerifyingKey,
    instance: &InstanceId,
    nonce: &str,
    line: &[u8],
) -> Result<ControlCall, ControlFailure> {
    let failure =
        |kind, message: String| ControlFailure { kind, message, program_output: Vec::new() };
    let signed: SignedCall = serde_json::from_slice(line)
        .map_err(|error| failure(FailureKind::BadCall, format!("not a signed call: {error}")))?;
    let mut signature = [0; 64];
    let valid = hex::decode_to_slice(&signed.signature, &mut signature).is_ok()
        && key
            .verify_strict(
                &signing_input(instance, nonce, &signed.body),
                &Signature::from_bytes(&signature),
            )
            .is_ok();
    if !valid {
        let message = "the signature does not fit the nonce, the instance and the key";
        return Err(failure(FailureKind::Unauthorized, message.to_owned()));
    }
    serde_json::from_str(&signed.body)
        .map_err(|error| failure(FailureKind::BadCall, format!("not a call: {error}")))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    const INSTANCE: &str = "00112233445566778899aabbccddeeff";
    const OTHER: &str = "ffeeddccbbaa99887766554433221100";

    fn signed(key: &SigningKey, instance: &str, nonce: &str, body: &str) -> Vec<u8> {
        let input = signing_input(&instance.parse().expect("valid"), nonce, body);
        let call = SignedCall {
            signature: hex::encode(key.sign(&input).to_bytes()),
            body: body.to_owned(),
        };
        serde_json::to_vec(&call).expect("serializes")
    }

    #[test]
    fn only_a_call_for_this_nonce_instance_and_key_is_obeyed() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let instance: InstanceId = INSTANCE.parse().expect("valid");
        let body = r#"{"call":"status"}"#;
        let judge = |line: &[u8]| {
            verify(&key.verifying_key(), &instance, "n1", line).map_err(|failure| failure.kind)
        };
        assert_eq!(judge(&signed(&key, INSTANCE, "n1", body)), Ok(ControlCall::Status));
        let other_key = SigningKey::from_bytes(&[8; 32]);
        for line in [
            signed(&key, INSTANCE, "n2", body),
            signed(&key, OTHER, "n1", body),
            signed(&other_key, INSTANCE, "n1", body),
            format!(r#"{{"signature":"","body":{body:?}}}"#).into_bytes(),
        ] {
            assert_eq!(judge(&line), Err(FailureKind::Unauthorized));
        }
        assert_eq!(judge(&signed(&key, INSTANCE, "n1", "{}")), Err(FailureKind::BadCall));
        assert_eq!(judge(b"hello"), Err(FailureKind::BadCall));
    }
}

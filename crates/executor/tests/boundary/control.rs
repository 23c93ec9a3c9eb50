//! The server's side of the control port.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ed25519_dalek::{Signer as _, SigningKey};
use sandyard_contract::control::{
    CONTROL_PORT, ControlCall, ControlReply, Hello, SignedCall, signing_input,
};
use sandyard_types::InstanceId;

/// Who may give orders to one container.
#[derive(Clone)]
pub(super) struct ControlAuthority {
    pub(super) key: SigningKey,
    pub(super) instance: InstanceId,
}

impl ControlAuthority {
    pub(super) fn new() -> Self {
        // Nothing is protected by this key.
        Self { key: SigningKey::from_bytes(&[42; 32]), instance: InstanceId::random() }
    }

    /// The call as a line without its end.
    pub(super) fn sign(&self, nonce: &str, call: &ControlCall) -> anyhow::Result<String> {
        let body = serde_json::to_string(call)?;
        let signature = self.key.sign(&signing_input(&self.instance, nonce, &body));
        let signature = hex::encode(signature.to_bytes());
        Ok(serde_json::to_string(&SignedCall { signature, body })?)
    }
}

/// One connection.
pub(super) struct ControlClient {
    stream: BufReader<TcpStream>,
}

impl ControlClient {
    pub(super) fn open(address: Ipv4Addr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((address, CONTROL_PORT)).context("connect to init")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line)?;
        ensure!(length > 0, "init closed the connection");
        Ok(line)
    }

    pub(super) fn nonce(&mut self) -> anyhow::Result<String> {
        let hello: Hello = serde_json::from_str(&self.line()?)?;
        Ok(hello.nonce)
    }

    pub(super) fn send(&mut self, line: &str) -> anyhow::Result<()> {
        Ok(self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?)
    }

    pub(super) fn reply(&mut self) -> anyhow::Result<ControlReply> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// Signs and makes a call, and waits for its reply.
    pub(super) fn call(
        &mut self,
        authority: &ControlAuthority,
        call: &ControlCall,
    ) -> anyhow::Result<ControlReply> {
        let nonce = self.nonce()?;
        self.send(&authority.sign(&nonce, call)?)?;
        self.reply()
    }
}

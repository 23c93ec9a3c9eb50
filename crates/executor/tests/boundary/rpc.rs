//! Commands inside a sandbox, through the daemon.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use sandyard_contract::daemon::{
    DAEMON_PORT, INIT_BODY_HASH_HEADER, INIT_PATH, INIT_SIGNATURE_HEADER, init_signing_input,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::control::ControlAuthority;
use super::docker::wait_for;
use super::sandbox::TestSandbox;

/// Whom a command runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestUser {
    User,
    Root,
}

/// What a command did.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) exit_code: i64,
}

impl Finished {
    pub(super) fn success(self) -> anyhow::Result<Self> {
        ensure!(self.exit_code == 0, "{self:?}");
        Ok(self)
    }
}

impl TestSandbox {
    /// Runs a shell command to its end.
    pub(super) fn run(&self, user: TestUser, script: &str) -> anyhow::Result<Finished> {
        self.start_command(user, script)?.finish()
    }

    /// Starts a shell command; it goes on when the result is dropped.
    pub(super) fn start_command(
        &self,
        user: TestUser,
        script: &str,
    ) -> anyhow::Result<RunningCommand> {
        let process = json!({"cmd": "/bin/bash", "args": ["-c", script]});
        let login = match user {
            TestUser::User => "user:",
            TestUser::Root => "root:",
        };
        start(self.container.address, login, &json!({ "process": process }))
    }
}

/// A command under way.
pub(super) struct RunningCommand {
    stream: BufReader<Box<dyn std::io::Read>>,
}

/// The access token of every claimed daemon here.
const TOKEN: &str = "tok";

/// Connects to a daemon that may still be on its way up.
pub(super) fn connect(address: Ipv4Addr) -> anyhow::Result<TcpStream> {
    let mut stream = None;
    wait_for("the daemon", Duration::from_secs(10), || {
        stream = TcpStream::connect((address, DAEMON_PORT)).ok();
        Ok(stream.is_some())
    })?;
    let stream = stream.context("connected")?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    Ok(stream)
}

/// Makes the claim of the daemon at `address`.
pub(super) fn claim(address: Ipv4Addr, authority: &ControlAuthority) -> anyhow::Result<()> {
    let body = json!({
        "accessToken": TOKEN, "timestamp": "2026-01-01T00:00:00Z", "sandboxID": "sandbox",
    });
    let body = body.to_string();
    let hash = hex::encode(Sha256::digest(&body));
    let input = init_signing_input(&authority.instance, body.len() as u64, &hash);
    let signature = hex::encode(authority.key.sign(&input).to_bytes());
    let mut stream = connect(address)?;
    write!(
        stream,
        "POST {INIT_PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         {INIT_SIGNATURE_HEADER}: {signature}\r\n{INIT_BODY_HASH_HEADER}: {hash}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    Ok(())
}

/// Calls `Process.Start` of the daemon at `address`, which has been claimed.
pub(super) fn start(
    address: Ipv4Addr,
    login: &str,
    request: &Value,
) -> anyhow::Result<RunningCommand> {
    let mut stream = connect(address)?;
    let message = request.to_string();
    let length = u32::try_from(message.len())?;
    write!(
        stream,
        "POST /process.Process/Start HTTP/1.1\r\nHost: {address}:{DAEMON_PORT}\r\n\
         Content-Type: application/connect+json\r\nConnect-Protocol-Version: 1\r\n\
         X-Access-Token: {TOKEN}\r\nAuthorization: Basic {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        STANDARD.encode(login),
        message.len() + 5
    )?;
    stream.write_all(&[0])?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(message.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut chunked = false;
    let mut first = String::new();
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "no answer: {first}");
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
        if line == "\r\n" {
            break;
        }
    }
    ensure!(first.contains(" 200 "), "{first}");
    let body: Box<dyn std::io::Read> =
        if chunked { Box::new(Chunked { inner: reader, left: 0 }) } else { Box::new(reader) };
    Ok(RunningCommand { stream: BufReader::new(body) })
}

impl RunningCommand {
    /// The next event, or none at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Value>> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).context("an envelope")?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut text = vec![0; usize::try_from(length)?];
        self.stream.read_exact(&mut text)?;
        let value: Value = serde_json::from_slice(&text)?;
        if head[0] & 2 == 0 {
            return Ok(Some(value["event"].clone()));
        }
        ensure!(value.get("error").is_none(), "{value}");
        Ok(None)
    }

    /// Reads standard output until it holds a text.
    pub(super) fn until(&mut self, text: &str) -> anyhow::Result<()> {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let event = self.next()?.with_context(|| format!("it ended without '{text}'"))?;
            if let Some(data) = event["data"]["stdout"].as_str() {
                seen.extend(STANDARD.decode(data)?);
            }
        }
        Ok(())
    }

    /// Waits until the connection is cut off. Fails if anything comes before that: an event, the end of
    /// the stream, or the body's last chunk, which would be an end in HTTP's eyes.
    pub(super) fn until_cut(mut self) -> anyhow::Result<()> {
        let Err(error) = self.next() else { bail!("it is not cut off") };
        let kind = error.root_cause().downcast_ref().map(std::io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionReset), "{error:#}");
        Ok(())
    }

    /// Takes all output until the end.
    pub(super) fn finish(mut self) -> anyhow::Result<Finished> {
        let (mut stdout, mut stderr, mut exit_code) = (Vec::new(), Vec::new(), None);
        while let Some(event) = self.next()? {
            for (name, buffer) in [("stdout", &mut stdout), ("stderr", &mut stderr)] {
                if let Some(data) = event["data"][name].as_str() {
                    buffer.extend(STANDARD.decode(data)?);
                }
            }
            if let Some(end) = event.get("end") {
                // A code of zero is left out on the wire.
                exit_code = Some(end["exitCode"].as_i64().unwrap_or(0));
            }
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Finished {
            stdout: text(stdout),
            stderr: text(stderr),
            exit_code: exit_code.context("an end")?,
        })
    }
}

/// A chunked body.
struct Chunked {
    inner: BufReader<TcpStream>,
    left: usize,
}

impl std::io::Read for Chunked {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.left == 0 {
            let mut line = String::new();
            if self.inner.read_line(&mut line)? == 0 {
                // Closed where a chunk has to come: not the end of the body, whatever its reader thinks.
                return Err(ErrorKind::ConnectionReset.into());
            }
            match line.trim() {
                // The line end of the chunk before.
                "" => {}
                size => {
                    let size = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
                    if size == 0 {
                        return Ok(0);
                    }
                    self.left = size;
                }
            }
        }
        let most = buffer.len().min(self.left);
        let length = self.inner.read(&mut buffer[..most])?;
        self.left -= length;
        Ok(length)
    }
}

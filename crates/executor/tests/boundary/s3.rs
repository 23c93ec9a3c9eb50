//! A MinIO of the tests' own on the engine's bridge, and as much of an S3 client as they need.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::docker::{checkout, docker, wait_for};

/// Access key of the tests' server.
pub(super) const ACCESS_KEY: &str = "boundarytest";
/// Its secret: what no probe may find.
pub(super) const SECRET_KEY: &str = "Wq7-boundary-secret-Zr3";
/// The bucket of all tests; each has a prefix of its own.
pub(super) const BUCKET: &str = "boundary";

/// A running server; killed on drop.
pub(super) struct Minio {
    process: Child,
    _data: tempfile::TempDir,
    address: SocketAddr,
}

impl Minio {
    /// The server that all tests of this run share.
    pub(super) fn shared() -> anyhow::Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Minio>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().expect("no test panics while it starts the server");
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// A server of its own.
    pub(super) fn start() -> anyhow::Result<Self> {
        // Some engines name only the subnet: the bridge then has its first address.
        let format = "{{with index .IPAM.Config 0}}{{or .Gateway .Subnet}}{{end}}";
        let gateway = docker(["network", "inspect", "--format", format, "bridge"])?;
        let gateway: Ipv4Addr = match gateway.split_once('/') {
            None => gateway.parse()?,
            Some((subnet, _)) => (u32::from(subnet.parse::<Ipv4Addr>()?) + 1).into(),
        };
        // Free a moment ago; nobody else here binds ports of the bridge's address.
        let address = TcpListener::bind((gateway, 0))?.local_addr()?;
        let data = tempfile::tempdir()?;
        let own = checkout().join(".sandyard/bin/minio");
        let program = if own.exists() { own } else { "minio".into() };
        let process = Command::new(program)
            .args(["server", "--quiet", "--address", &address.to_string()])
            .arg(data.path())
            .env("MINIO_ROOT_USER", ACCESS_KEY)
            .env("MINIO_ROOT_PASSWORD", SECRET_KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start minio")?;
        let server = Self { process, _data: data, address };
        wait_for("minio", Duration::from_secs(30), || {
            Ok(server.request("GET", "/minio/health/live", b"").is_ok_and(|(code, _)| code == 200))
        })?;
        wait_for("the bucket", Duration::from_secs(10), || {
            Ok(server.request("PUT", &format!("/{BUCKET}"), b"")?.0 == 200)
        })?;
        Ok(server)
    }

    /// Its process.
    pub(super) fn process(&self) -> i32 {
        self.process.id().cast_signed()
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL for sandboxes.
    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// An object's content.
    pub(super) fn get(&self, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        match self.request("GET", &format!("/{BUCKET}/{key}"), b"")? {
            (200, body) => Ok(Some(body)),
            (404, _) => Ok(None),
            (code, body) => anyhow::bail!("get {key}: {code} {}", String::from_utf8_lossy(&body)),
        }
    }

    /// Writes an object.
    pub(super) fn put(&self, key: &str, body: &[u8]) -> anyhow::Result<()> {
        let (code, answer) = self.request("PUT", &format!("/{BUCKET}/{key}"), body)?;
        ensure!(code == 200, "put {key}: {code} {}", String::from_utf8_lossy(&answer));
        Ok(())
    }

    /// Removes an object.
    pub(super) fn delete(&self, key: &str) -> anyhow::Result<()> {
        let (code, answer) = self.request("DELETE", &format!("/{BUCKET}/{key}"), b"")?;
        ensure!(code == 204, "delete {key}: {code} {}", String::from_utf8_lossy(&answer));
        Ok(())
    }

    /// One signed request (AWS signature version 4); `path` needs no escaping.
    fn request(&self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        let hash = hex::encode(Sha256::digest(body));
        let host = self.address.to_string();
        let time = amz_time()?;
        let date = &time[..8];
        let headers = format!("host:{host}\nx-amz-content-sha256:{hash}\nx-amz-date:{time}\n");
        let names = "host;x-amz-content-sha256;x-amz-date";
        let canonical = format!("{method}\n{path}\n\n{headers}\n{names}\n{hash}");
        let scope = format!("{date}/us-east-1/s3/aws4_request");
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
            hex::encode(Sha256::digest(canonical.as_bytes()))
        );
        let mut key = format!("AWS4{SECRET_KEY}").into_bytes();
        for part in [date, "us-east-1", "s3", "aws4_request"] {
            key = sign(&key, part)?;
        }
        let signature = hex::encode(sign(&key, &to_sign)?);
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n\
             X-Amz-Content-Sha256: {hash}\r\nX-Amz-Date: {time}\r\nAuthorization: \
             AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, \
             Signature={signature}\r\n\r\n",
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("an HTTP answer")?;
        let code = std::str::from_utf8(&answer[9..12])?.parse()?;
        Ok((code, answer.split_off(end + 4)))
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            eprintln!("minio: {error}");
        }
    }
}

fn sign(key: &[u8], text: &str) -> anyhow::Result<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)?;
    mac.update(text.as_bytes());
    Ok(mac.finalize().into_bytes().to_vec())
}

fn amz_time() -> anyhow::Result<String> {
    let now = time::OffsetDateTime::from(SystemTime::now());
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    Ok(now.format(format)?)
}

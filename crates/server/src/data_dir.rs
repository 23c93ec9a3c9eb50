//! The data folder: what an installation is, on disk.
//!
//! | file | what |
//! |---|---|
//! | `installation` | the id that its containers carry |
//! | `master.key` | the secret all others follow from, 0600 |
//! | `credentials` | the first API key, 0600 |
//! | `store.db` | teams, keys, sessions, sandboxes |
//! | `objects/` | the embedded object store |
//! | `tls/` | the certificate authority with its key, 0600, and what clients need to trust it |
//! | `gateway.port` | where mounts of living sandboxes look for the gateway |
//! | `server.json` | process and addresses of the server that runs |
//! | `lock`, `control.sock` | held by the server that runs; where `down` speaks to it |

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sandyard_types::InstallationId;
use serde::{Deserialize, Serialize};

use crate::secrets::{Secrets, fill_random, fresh_api_key};

/// A data folder. Its files are readable by their owner only.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
}

/// Where a running server is reached; the content of `server.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunningServer {
    /// The server's process.
    pub pid: u32,
    /// Base URL of the REST API beside the server, for the other commands.
    pub api_url: String,
    /// Where clients reach it: what `env` prints.
    pub public: PublicUrls,
    /// The bucket of the workspaces.
    pub bucket: String,
    /// The domain that running sandboxes report.
    pub domain: String,
    /// Whether the proxy shows a certificate of the user's own, not one that is made here.
    pub own_certificate: bool,
}

/// Base URLs as clients use them, which may differ from the listeners' addresses: ports of a container
/// are published under others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicUrls {
    /// The REST API.
    pub api: String,
    /// The sandbox proxy.
    pub sandbox: String,
    /// The S3 gateway, for the owner.
    pub s3: String,
}

impl DataDir {
    /// Opens the folder, making it where it is missing.
    ///
    /// # Errors
    /// The file system's refusal.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("cannot make the data folder {}", path.display()))?;
        let path = path.canonicalize()?;
        Ok(Self { path })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The data base's file.
    pub fn store_file(&self) -> PathBuf {
        self.path.join("store.db")
    }

    /// The embedded object store's folder.
    pub fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// The socket `down` speaks to.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// Takes the folder for this process. Held until the result is dropped, or the process ends in
    /// whatever way.
    ///
    /// # Errors
    /// If another process has it.
    pub fn lock(&self) -> anyhow::Result<File> {
        let path = self.path.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => bail!(
                "another sandyard server uses the data folder {}: stop it with 'sandyard down', \
                 or name another folder with --data-dir",
                self.path.display()
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    /// Whether a server has used the folder.
    pub fn is_installed(&self) -> bool {
        self.path.join("installation").exists()
    }

    /// The installation's id, made at the first call.
    ///
    /// # Errors
    /// If the file cannot be read, written or understood.
    pub fn installation(&self) -> anyhow::Result<InstallationId> {
        let text =
            self.read_or_make("installation", || Ok(InstallationId::random().to_string()))?;
        Ok(text.parse()?)
    }

    /// The installation's secrets, made at the first call.
    ///
    /// # Errors
    /// If the file cannot be read, written or understood.
    pub fn secrets(&self) -> anyhow::Result<Secrets> {
        let text = self.read_or_make("master.key", || {
            let mut master = [0; 32];
            fill_random(&mut master)?;
            Ok(hex::encode(master))
        })?;
        let mut master = [0; 32];
        hex::decode_to_slice(&text, &mut master).with_context(|| {
            format!("{} does not hold 64 hex digits", self.path.join("master.key").display())
        })?;
        Ok(Secrets::new(master))
    }

    /// The first API key, made at the first call.
    ///
    /// # Errors
    /// If the file cannot be read, written or understood.
    pub fn first_api_key(&self) -> anyhow::Result<String> {
        let text =
            self.read_or_make("credentials", || Ok(format!("E2B_API_KEY={}", fresh_api_key()?)))?;
        let key = text.lines().find_map(|line| line.strip_prefix("E2B_API_KEY="));
        let file = self.path.join("credentials");
        let key = key.with_context(|| format!("{} holds no E2B_API_KEY", file.display()))?;
        Ok(key.to_owned())
    }

    /// The port the gateway had when it last ran; `None` at the first start.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn gateway_port(&self) -> anyhow::Result<Option<u16>> {
        const FILE: &str = "gateway.port";
        let about = || format!("{} holds no port", self.path.join(FILE).display());
        self.read(FILE)?.map(|text| text.parse().with_context(about)).transpose()
    }

    /// Notes the gateway's port for the next start.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_gateway_port(&self, port: u16) -> anyhow::Result<()> {
        self.write("gateway.port", &port.to_string())
    }

    /// Says where the server is reached.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_running(&self, running: &RunningServer) -> anyhow::Result<()> {
        self.write("server.json", &serde_json::to_string_pretty(running)?)
    }

    /// Where the server is reached that runs on this folder; `None` if none does.
    ///
    /// # Errors
    /// If the file is there but cannot be read.
    pub fn running(&self) -> anyhow::Result<Option<RunningServer>> {
        // A file alone may be left by a server that was killed; a socket that is answered is not.
        if UnixStream::connect(self.control_socket()).is_err() {
            return Ok(None);
        }
        let path = self.path.join("server.json");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let running = serde_json::from_str(&text);
                Ok(Some(running.with_context(|| format!("cannot read {}", path.display()))?))
            }
            // It is about to say so.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Takes back what [`Self::write_running`] said.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove_running(&self) -> anyhow::Result<()> {
        for name in ["server.json", "control.sock"] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The content of one of the folder's files, without white space around it; `None` if it is not there.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self, name: &str) -> anyhow::Result<Option<String>> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn read_or_make(
        &self,
        name: &str,
        make: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<String> {
        if let Some(text) = self.read(name)? {
            return Ok(text);
        }
        let text = make()?;
        self.write(name, &text)?;
        Ok(text)
    }

    /// Writes one of the folder's files so that it is there whole or not at all, whenever the machine stops.
    /// Only its owner can read it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        // Commands beside a server may write the same file at the same time.
        let partial = self.path.join(format!("{name}.{}.partial", std::process::id()));
        let folder = path.parent().unwrap_or(&self.path);
        let written = || -> std::io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let mut options = OpenOptions::new();
            let mut file =
                options.create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(folder)?.sync_all()
        };
        written().with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_is_made_once_stays_and_is_private() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let data = DataDir::open(&folder.path().join("a/b"))?;
        assert_eq!(data.installation()?, data.installation()?);
        assert_eq!(data.first_api_key()?, data.first_api_key()?);
        assert_eq!(data.secrets()?.control_public(), data.secrets()?.control_public());
        for name in ["master.key", "credentials"] {
            let mode = fs::metadata(data.path().join(name))?.permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::metadata(data.path())?.permissions().mode() & 0o777, 0o700);
        Ok(())
    }

    #[test]
    fn a_second_server_on_the_folder_is_told_what_to_do() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let data = DataDir::open(folder.path())?;
        let held = data.lock()?;
        let error = data.lock().expect_err("locked").to_string();
        assert!(error.contains("sandyard down"), "{error}");
        drop(held);
        data.lock()?;
        Ok(())
    }

    #[test]
    fn a_server_that_was_killed_does_not_count_as_running() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let data = DataDir::open(folder.path())?;
        let url = String::from("http://127.0.0.1:1");
        let running = RunningServer {
            pid: 1,
            api_url: url.clone(),
            public: PublicUrls { api: url.clone(), sandbox: url.clone(), s3: url.clone() },
            bucket: "sandyard".to_owned(),
            domain: "d".to_owned(),
            own_certificate: false,
        };
        data.write_running(&running)?;
        assert!(data.running()?.is_none());
        let listener = UnixListener::bind(data.control_socket())?;
        assert_eq!(data.running()?.map(|r| r.api_url), Some(url));
        drop(listener);
        assert!(data.running()?.is_none(), "the socket's file is still there");
        Ok(())
    }

    #[test]
    fn a_damaged_key_is_an_error_that_names_the_file() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let data = DataDir::open(folder.path())?;
        fs::write(data.path().join("master.key"), "short")?;
        let error = format!("{:#}", data.secrets().expect_err("damaged"));
        assert!(error.contains("master.key"), "{error}");
        Ok(())
    }
}

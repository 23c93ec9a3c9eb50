//! How the executor gets into every container: a volume, filled once (design 3).
//!
//! Servers of one version share the volume. Each holds it by a container that is never started, so that no
//! clean-up by another server or by a person takes it away while it is needed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bollard::body_try_stream;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, VolumeCreateRequest};
use bollard::query_parameters::{
    ContainerArchiveInfoOptionsBuilder, CreateContainerOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveVolumeOptions, UploadToContainerOptionsBuilder,
};
use futures::TryStreamExt as _;
use sandyard_core::RuntimeError;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;
use tracing::info;

use crate::engine::{DockerRuntime, LABEL_ROLE};
use crate::error::{DockerError, failed, is_conflict, is_not_found};

/// Where the volume appears in a container. Directly under `/`: a deeper path could be renamed away by
/// root inside (design 6.1 (1)).
pub(crate) const MOUNT_POINT: &str = "/.sandyard";

/// Written last, so that a volume whose filling was cut short is not taken for a whole one.
const COMPLETE: &str = ".complete";

/// The executor and the FUSE programs as a tar file.
#[derive(Clone, Debug)]
pub struct Bundle {
    path: PathBuf,
    /// SHA-256 of the file, hex.
    hash: String,
}

impl Bundle {
    /// Reads the file once for its hash, which names the volume.
    ///
    /// # Errors
    /// [`DockerError::Bundle`] if it cannot be read.
    pub async fn open(path: &Path) -> Result<Self, DockerError> {
        let cannot = |source| DockerError::Bundle { path: path.to_owned(), source };
        let mut file = tokio::fs::File::open(path).await.map_err(cannot)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = file.read(&mut buffer).await.map_err(cannot)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        let hash = hasher.finalize().iter().fold(String::new(), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Ok(Self { path: path.to_owned(), hash })
    }

    /// The volume's name: by architecture and content, so that servers of one version share it.
    pub(crate) fn volume(&self) -> String {
        format!("sandyard-executor-{}-{}", std::env::consts::ARCH, &self.hash[..16])
    }
}

/// What the executor's volumes are found by.
pub(crate) fn volume_labels() -> HashMap<String, String> {
    [(LABEL_ROLE.to_owned(), "executor".to_owned())].into()
}

impl DockerRuntime {
    /// Makes sure the volume is there and whole. `image` is any image the engine has: a container of
    /// it, never started, is the engine's way to reach a volume.
    pub(crate) async fn ensure_volume(&self, image: &str) -> Result<(), RuntimeError> {
        let mut ready = self.volume_ready.lock().await;
        if *ready {
            return Ok(());
        }
        let volume = self.bundle.volume();
        let request = VolumeCreateRequest {
            name: Some(volume.clone()),
            labels: Some(volume_labels()),
            ..VolumeCreateRequest::default()
        };
        let fail = |call| move |error| failed(&self.endpoint, call, error);
        self.docker.create_volume(request).await.map_err(fail("create the executor's volume"))?;
        // One from an earlier start may hold another version's, or an image that is to go.
        self.release_volume().await?;
        self.hold_volume(image, &volume).await?;
        self.fill_if_incomplete(&self.holder(), &volume).await?;
        *ready = true;
        Ok(())
    }

    /// Makes the volume again. The engine has made an empty one by itself.
    pub(crate) async fn renew_volume(&self, image: &str) -> Result<(), RuntimeError> {
        {
            let mut ready = self.volume_ready.lock().await;
            *ready = false;
            self.release_volume().await?;
            let options = None::<RemoveVolumeOptions>;
            match self.docker.remove_volume(&self.bundle.volume(), options).await {
                Ok(()) => {}
                // Another server has made it whole meanwhile.
                Err(error) if is_conflict(&error) || is_not_found(&error) => {}
                Err(error) => return Err(failed(&self.endpoint, "remove a volume", error)),
            }
        }
        self.ensure_volume(image).await
    }

    /// The name of the container that holds the volume for this installation.
    fn holder(&self) -> String {
        format!("sandyard-hold-{}", self.settings.installation)
    }

    /// Lets go of the volume. Idempotent.
    ///
    /// # Errors
    /// The engine's failure to remove the container that holds it.
    pub(crate) async fn release_volume(&self) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        match self.docker.remove_container(&self.holder(), Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(failed(&self.endpoint, "let go of the executor's volume", error)),
        }
    }

    /// Removes executor volumes that no container uses and no server holds: those of other versions and, with
    /// `all`, this version's too (it is filled again when needed). Returns their names.
    ///
    /// # Errors
    /// The engine's failure to list or remove.
    pub(crate) async fn remove_old_volumes(&self, all: bool) -> Result<Vec<String>, RuntimeError> {
        let fail = |call| move |error| failed(&self.endpoint, call, error);
        let filters: HashMap<&str, Vec<String>> =
            [("label", vec![format!("{LABEL_ROLE}=executor")])].into();
        let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let listed = self.docker.list_volumes(Some(options)).await;
        let listed = listed.map_err(fail("list volumes"))?.volumes.unwrap_or_default();
        let mut ready = self.volume_ready.lock().await;
        let mut removed = Vec::new();
        for name in listed.into_iter().map(|volume| volume.name) {
            let current = name == self.bundle.volume();
            if current && !all {
                continue;
            }
            match self.docker.remove_volume(&name, None::<RemoveVolumeOptions>).await {
                Ok(()) => {
                    *ready &= !current;
                    removed.push(name);
                }
                // A container uses it.
                Err(error) if is_conflict(&error) || is_not_found(&error) => {}
                Err(error) => return Err(fail("remove a volume")(error)),
            }
        }
        Ok(removed)
    }

    async fn hold_volume(&self, image: &str, volume: &str) -> Result<(), RuntimeError> {
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec!["/never-started".to_owned()]),
            labels: Some(self.labels("hold")),
            host_config: Some(HostConfig {
                mounts: Some(vec![Mount {
                    target: Some(MOUNT_POINT.to_owned()),
                    source: Some(volume.to_owned()),
                    typ: Some(MountType::VOLUME),
                    ..Mount::default()
                }]),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(&self.holder()).build();
        let created = self.docker.create_container(Some(options), body).await;
        let call = "create the container that holds the executor's volume";
        created.map(drop).map_err(|error| failed(&self.endpoint, call, error))
    }

    async fn fill_if_incomplete(&self, helper: &str, volume: &str) -> Result<(), RuntimeError> {
        let fail = |call| move |error| failed(&self.endpoint, call, error);
        let marker = format!("{MOUNT_POINT}/{COMPLETE}");
        let options = ContainerArchiveInfoOptionsBuilder::default().path(&marker).build();
        match self.docker.get_container_archive_info(helper, Some(options)).await {
            Ok(_) => return Ok(()),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(fail("look into the executor's volume")(error)),
        }
        info!(volume, "filling the executor's volume");
        let file = tokio::fs::File::open(&self.bundle.path).await.map_err(|error| {
            let reason = format!("{}: {error}", self.bundle.path.display());
            RuntimeError::Failed { call: "read the executor bundle", reason }
        })?;
        let upload = || UploadToContainerOptionsBuilder::default().path(MOUNT_POINT).build();
        let body = body_try_stream(ReaderStream::with_capacity(file, 1 << 16).into_stream());
        let sent = self.docker.upload_to_container(helper, Some(upload()), body).await;
        sent.map_err(fail("fill the executor's volume"))?;
        let marker = bollard::body_full(marker_tar()?.into());
        let sent = self.docker.upload_to_container(helper, Some(upload()), marker).await;
        sent.map_err(fail("finish the executor's volume"))
    }
}

fn marker_tar() -> Result<Vec<u8>, RuntimeError> {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o444);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    let done = builder
        .append_data(&mut header, COMPLETE, std::io::empty())
        .and_then(|()| builder.into_inner());
    done.map_err(|error| RuntimeError::Failed {
        call: "write the executor volume's marker",
        reason: error.to_string(),
    })
}

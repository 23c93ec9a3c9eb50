//! Images: those that templates name, and those that are made of sandboxes.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerConfig, ImageConfig};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions,
    ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use sandyard_core::{ImageFacts, RuntimeError};
use sandyard_types::{InstanceId, Template, TemplateKind};
use tracing::info;

use crate::container::container_name;
use crate::engine::{DockerRuntime, LABEL_INSTALLATION, LABEL_ROLE};
use crate::error::{failed, is_not_found};

/// What an image of a sandbox is for, as [`LABEL_ROLE`].
const ROLE: &str = "image";

/// The longest wait for the engine to write an image: sandboxes can have many gigabytes.
const WRITE_LIMIT: Duration = Duration::from_secs(3600);

/// The engine's storage takes at most 127 layers in a container. An image with more than this gets a single one
/// instead of one more, so that images of sandboxes from images of sandboxes can be made without end.
const MAX_LAYERS: usize = 100;

impl DockerRuntime {
    /// The repository of this installation's images.
    fn repository(&self) -> String {
        format!("sandyard-{}/sandbox", self.settings.installation)
    }

    pub(crate) async fn is_present(&self, image: &str) -> Result<bool, RuntimeError> {
        match self.docker.inspect_image(image).await {
            Ok(_) => Ok(true),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => Err(failed(&self.endpoint, "inspect an image", error)),
        }
    }

    pub(crate) async fn image_facts(
        &self,
        template: &Template,
    ) -> Result<ImageFacts, RuntimeError> {
        let image = &template.image;
        let found = match self.docker.inspect_image(image).await {
            Err(error) if is_not_found(&error) => {
                self.pull(template).await?;
                self.docker.inspect_image(image).await
            }
            found => found,
        };
        let found = found.map_err(|error| failed(&self.endpoint, "inspect an image", error))?;
        let config = found.config.unwrap_or_default();
        let pairs = config.env.unwrap_or_default();
        let env: BTreeMap<String, String> = pairs
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        // Images without a WORKDIR say "" or "/": neither is where a user wants to start.
        let workdir = config.working_dir.filter(|dir| !matches!(dir.as_str(), "" | "/"));
        self.ensure_volume(image).await?;
        Ok(ImageFacts { env, workdir })
    }

    async fn pull(&self, template: &Template) -> Result<(), RuntimeError> {
        let image = &template.image;
        let missing = |reason: String| RuntimeError::ImageMissing {
            image: image.clone(),
            template: template.name.to_string(),
            reason,
        };
        if template.kind == TemplateKind::Snapshot {
            let reason = "it was made of a sandbox, and somebody removed it from the engine";
            return Err(missing(reason.to_owned()));
        }
        info!(image, "the image is not on the engine: pulling it");
        let options = CreateImageOptionsBuilder::default().from_image(image).build();
        let pulled = self.docker.create_image(Some(options), None, None);
        pulled
            .try_for_each(|_progress| async { Ok(()) })
            .await
            .map_err(|error| missing(error.to_string()))
    }

    pub(crate) async fn commit_container(
        &self,
        id: &InstanceId,
        tag: &str,
    ) -> Result<String, RuntimeError> {
        let repository = self.repository();
        let image = format!("{repository}:{tag}");
        let made = match self.base_of(id).await? {
            Base { layers, config } if layers > MAX_LAYERS => {
                self.flatten(id, &repository, tag, config).await
            }
            Base { .. } => self.add_layer(id, &repository, tag).await,
        };
        if made.is_err() {
            // The engine names an image last: most often there is none.
            self.delete_image(&image).await?;
        }
        made.map(|()| image)
    }

    async fn add_layer(
        &self,
        id: &InstanceId,
        repository: &str,
        tag: &str,
    ) -> Result<(), RuntimeError> {
        let options = CommitContainerOptionsBuilder::default()
            .container(&container_name(id))
            .repo(repository)
            .tag(tag)
            .pause(false)
            .build();
        let config = ContainerConfig { labels: Some(self.labels(ROLE)), ..Default::default() };
        let docker = self.docker.clone().with_timeout(WRITE_LIMIT);
        let committed = docker.commit_container(options, config).await;
        committed.map(drop).map_err(|error| failed(&self.endpoint, "make an image", error))
    }

    /// What a container was made from.
    async fn base_of(&self, id: &InstanceId) -> Result<Base, RuntimeError> {
        let fail = |error| failed(&self.endpoint, "inspect a container's image", error);
        let options = None::<InspectContainerOptions>;
        let found = self.docker.inspect_container(&container_name(id), options).await;
        let image = found.map_err(fail)?.image.unwrap_or_default();
        let image = self.docker.inspect_image(&image).await.map_err(fail)?;
        let layers = image.root_fs.and_then(|root| root.layers).map_or(0, |layers| layers.len());
        Ok(Base { layers, config: image.config.unwrap_or_default() })
    }

    /// Makes an image of one layer, with what the image before it said about itself.
    async fn flatten(
        &self,
        id: &InstanceId,
        repository: &str,
        tag: &str,
        config: ImageConfig,
    ) -> Result<(), RuntimeError> {
        info!(instance = %id, "the image has many layers: making one of them");
        let mut changes: Vec<String> = Vec::new();
        for (name, value) in self.labels(ROLE) {
            changes.push(format!("LABEL {name}={value}"));
        }
        for pair in config.env.unwrap_or_default() {
            if let Some((name, value)) = pair.split_once('=') {
                let quoted = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
                changes.push(format!("ENV {name}=\"{quoted}\""));
            }
        }
        if let Some(workdir) = config.working_dir.filter(|dir| !dir.is_empty()) {
            changes.push(format!("WORKDIR {workdir}"));
        }
        let options = CreateImageOptionsBuilder::default()
            .from_src("-")
            .repo(repository)
            .tag(tag)
            .changes(changes)
            .build();
        let docker = self.docker.clone().with_timeout(WRITE_LIMIT);
        let name = container_name(id);
        let reader = docker.clone();
        let files = export(reader, name);
        let imported =
            docker.create_image(Some(options), Some(bollard::body_try_stream(files)), None);
        imported
            .try_for_each(|_progress| async { Ok(()) })
            .await
            .map_err(|error| failed(&self.endpoint, "make an image of one layer", error))
    }

    pub(crate) async fn delete_image(&self, image: &str) -> Result<(), RuntimeError> {
        let options = RemoveImageOptionsBuilder::default().build();
        match self.docker.remove_image(image, Some(options), None).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(failed(&self.endpoint, "remove an image", error)),
        }
    }

    pub(crate) async fn own_images(&self) -> Result<Vec<String>, RuntimeError> {
        let labels = vec![
            format!("{LABEL_INSTALLATION}={}", self.settings.installation),
            format!("{LABEL_ROLE}={ROLE}"),
        ];
        let filters: HashMap<&str, Vec<String>> = [("label", labels)].into();
        let options = ListImagesOptionsBuilder::default().filters(&filters).build();
        let listed = self.docker.list_images(Some(options)).await;
        let listed = listed.map_err(|error| failed(&self.endpoint, "list images", error))?;
        let prefix = format!("{}:", self.repository());
        let names = listed.into_iter().flat_map(|image| image.repo_tags);
        Ok(names.filter(|name| name.starts_with(&prefix)).collect())
    }
}

struct Base {
    layers: usize,
    config: ImageConfig,
}

/// All files of a container, as an archive that comes as it is read.
fn export(
    docker: Docker,
    name: String,
) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    let (sender, receiver) = futures::channel::mpsc::channel(4);
    let read = async move {
        let mut sender = sender;
        let mut files = docker.export_container(&name).map_err(std::io::Error::other).boxed();
        while let Some(chunk) = files.next().await {
            // The import has given up.
            if futures::SinkExt::send(&mut sender, chunk).await.is_err() {
                return;
            }
        }
    };
    // Reads only as long as somebody takes what was read.
    futures::stream::select(receiver.map(Some), futures::stream::once(read).map(|()| None))
        .filter_map(|chunk| async { chunk })
}

//! Which templates exist, and what a client's reference to one means (control-plane 4.2): those of the
//! configuration, which belong to everybody and which no call changes, and those of teams, which the store
//! keeps. A snapshot is a template of its team's. All of it is in memory; a change is in the store first.

mod reference;
mod snapshots;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandyard_types::{BuildId, TeamId, Template, TemplateId, TemplateName};
use time::OffsetDateTime;
use tracing::error;

pub use reference::{DEFAULT_TAG, InvalidReference, TemplateReference};
pub use snapshots::{DeleteRefusal, InvalidSnapshotName, Snapshot, SnapshotFilter};

use crate::store::{StoredBuild, StoredTemplate};
use crate::{Store, StoreError, Team};

/// A reference to a template that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownTemplate {
    /// No template of that name or id.
    #[error("template '{0}' not found")]
    Name(String),
    /// The template has no such tag, or no build under it.
    #[error("tag '{tag}' does not exist for template '{name}'")]
    Tag {
        /// The template.
        name: String,
        /// The tag.
        tag: String,
    },
}

/// Whether a reference means a stored template, and whose.
pub(crate) enum FoundTemplate {
    /// One of the configuration.
    Configured(Arc<Template>),
    /// One of the store.
    Stored(TemplateId),
}

/// All templates of the server.
pub struct Catalogue {
    configured: Vec<Arc<Template>>,
    /// The namespaces of teams.
    slugs: Mutex<BTreeMap<TeamId, String>>,
    store: Store,
    stored: Mutex<BTreeMap<TemplateId, StoredTemplate>>,
    /// Whether all that the store holds could be read.
    is_whole: bool,
    /// Held over each change, so that two snapshots of one name are two builds of one template.
    changes: tokio::sync::Mutex<()>,
}

impl Catalogue {
    /// The configuration's templates, whose ids and names are unique, and those of the store.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(configured: Vec<Template>, store: Store) -> Result<Self, StoreError> {
        let (stored, unreadable) = store.stored_templates().await?;
        let is_whole = unreadable.is_empty();
        for reason in unreadable {
            error!(%reason, "a template of the store is left out");
        }
        let teams = store.teams().await?.into_iter();
        Ok(Self {
            configured: configured.into_iter().map(Arc::new).collect(),
            slugs: Mutex::new(teams.map(|team| (team.id, team.slug)).collect()),
            store,
            stored: Mutex::new(stored.into_iter().map(|t| (t.id.clone(), t)).collect()),
            is_whole,
            changes: tokio::sync::Mutex::default(),
        })
    }

    /// Those of the configuration.
    pub fn configured(&self) -> impl Iterator<Item = &Arc<Template>> {
        self.configured.iter()
    }

    fn stored(&self) -> MutexGuard<'_, BTreeMap<TemplateId, StoredTemplate>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A team may be new: teams are added beside a running server.
    pub fn learn(&self, team: &Team) {
        let mut slugs = self.slugs.lock().unwrap_or_else(PoisonError::into_inner);
        slugs.entry(team.id).or_insert_with(|| team.slug.clone());
    }

    /// The namespace of a team.
    pub(crate) fn slug(&self, team: TeamId) -> String {
        let slugs = self.slugs.lock().unwrap_or_else(PoisonError::into_inner);
        slugs.get(&team).cloned().unwrap_or_default()
    }

    /// What a reference means to a team, whatever its tag: in its own namespace first, then among the
    /// configuration's names, then as an id.
    pub(crate) fn find(
        &self,
        team: TeamId,
        reference: &TemplateReference,
    ) -> Result<FoundTemplate, UnknownTemplate> {
        let stored = self.stored();
        let mut own = stored.values().filter(|template| template.team == team);
        let named = own.clone().find(|template| template.name.as_ref() == Some(&reference.name));
        let unknown = || UnknownTemplate::Name(reference.without_tag());
        if let Some(namespace) = &reference.namespace {
            let named = named.filter(|_| *namespace == self.slug(team));
            return named
                .map(|template| FoundTemplate::Stored(template.id.clone()))
                .ok_or_else(unknown);
        }
        if let Some(template) = named {
            return Ok(FoundTemplate::Stored(template.id.clone()));
        }
        let name = &reference.name;
        let by_name = self.configured.iter().find(|template| template.name == *name);
        let by_id = || self.configured.iter().find(|t| t.id.as_str() == name.as_str());
        if let Some(template) = by_name.or_else(by_id) {
            return Ok(FoundTemplate::Configured(template.clone()));
        }
        let own = own.find(|template| template.id.as_str() == name.as_str());
        own.map(|template| FoundTemplate::Stored(template.id.clone())).ok_or_else(unknown)
    }

    /// The template a reference means to a team, as sandboxes start from it: with the image of the build that
    /// its tag means.
    ///
    /// # Errors
    /// [`UnknownTemplate`], naming what is not there.
    pub fn resolve(
        &self,
        team: TeamId,
        reference: &TemplateReference,
    ) -> Result<Arc<Template>, UnknownTemplate> {
        let no_tag = || UnknownTemplate::Tag {
            name: reference.without_tag(),
            tag: reference.tag().to_owned(),
        };
        match self.find(team, reference)? {
            FoundTemplate::Configured(_) if reference.names_a_tag() => Err(no_tag()),
            FoundTemplate::Configured(template) => Ok(template),
            FoundTemplate::Stored(id) => {
                let stored = self.stored();
                let template = stored.get(&id);
                let build = template.and_then(|template| template.build_of(reference));
                build.map(|build| build.template.clone()).ok_or_else(no_tag)
            }
        }
    }

    /// The id of the template a reference means to a team.
    pub fn id_of(&self, team: TeamId, reference: &TemplateReference) -> Option<TemplateId> {
        Some(match self.find(team, reference).ok()? {
            FoundTemplate::Configured(template) => template.id.clone(),
            FoundTemplate::Stored(id) => id,
        })
    }

    /// Whether it knows all that the store holds: an image that nobody seems to need may be one of what it could not
    /// read.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether a stored template has an image.
    pub(crate) fn has_image(&self, image: &str) -> bool {
        let stored = self.stored();
        let mut builds = stored.values().flat_map(|template| template.builds.values());
        builds.any(|build| build.template.image == image)
    }
}

impl StoredTemplate {
    fn build_of(&self, reference: &TemplateReference) -> Option<&StoredBuild> {
        let tagged = self.tags.get(reference.tag()).map(|(build, _)| *build);
        let id: Option<BuildId> = tagged.or_else(|| reference.build());
        self.builds.get(&id?)
    }

    /// When a tag was put on its build.
    fn tagged_at(&self, tag: &str) -> Option<OffsetDateTime> {
        self.tags.get(tag).map(|(_, at)| *at)
    }

    /// Its names as clients see them: with the namespace.
    fn names(&self, slug: &str) -> Vec<String> {
        self.name.iter().map(|name: &TemplateName| format!("{slug}/{name}")).collect()
    }
}

//! Snapshots as templates of the catalogue (control-plane 3.5).

use std::collections::BTreeMap;
use std::sync::Arc;

use sandyard_types::{
    BuildId, SandboxId, TeamId, Template, TemplateId, TemplateKind, TemplateName,
};
use time::OffsetDateTime;

use super::{Catalogue, DEFAULT_TAG, FoundTemplate, TemplateReference, UnknownTemplate};
use crate::StoreError;
use crate::now;
use crate::store::{StoredBuild, StoredTemplate};

/// A name that a team cannot give to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSnapshotName {
    /// The namespace of another team, or of nobody.
    #[error("'{namespace}' is not your namespace: leave it out, or write '{own}/{name}'")]
    Namespace {
        /// What was given.
        namespace: String,
        /// The team's own.
        own: String,
        /// The name.
        name: String,
    },
    /// A build id in the place of a tag.
    #[error("a tag cannot be a UUID: '{0}' would be taken for the id of a build")]
    Tag(String),
    /// The name of a template that no snapshot may change.
    #[error("'{0}' is a template of the server's configuration; give the snapshot another name")]
    Configured(String),
}

/// A snapshot as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What a create can name: `<template id>:<tag>`, or `<namespace>/<name>:<tag>`.
    pub id: String,
    /// Its names, with the namespace and without a tag; none if it was given none.
    pub names: Vec<String>,
    /// When it was taken.
    pub created_at: OffsetDateTime,
    /// Orders those of one instant.
    pub template: TemplateId,
}

/// Which snapshots are asked for.
#[derive(Clone, Debug, Default)]
pub struct SnapshotFilter {
    /// Those taken from this sandbox.
    pub source: Option<SandboxId>,
    /// Those of this template: with a tag only that one, without one the newest of each template.
    pub name: Option<TemplateReference>,
}

impl Catalogue {
    /// Refuses a name that the team cannot give to a snapshot.
    ///
    /// # Errors
    /// [`InvalidSnapshotName`]
    pub fn check_snapshot_name(
        &self,
        team: TeamId,
        name: &TemplateReference,
    ) -> Result<(), InvalidSnapshotName> {
        let own = self.slug(team);
        if let Some(namespace) = name.namespace.as_ref().filter(|given| **given != own) {
            return Err(InvalidSnapshotName::Namespace {
                namespace: namespace.clone(),
                own,
                name: name.name.to_string(),
            });
        }
        if name.build().is_some() {
            return Err(InvalidSnapshotName::Tag(name.tag().to_owned()));
        }
        if self.configured.iter().any(|template| template.id.as_str() == name.name.as_str()) {
            return Err(InvalidSnapshotName::Configured(name.name.to_string()));
        }
        Ok(())
    }

    /// Adds an image of a sandbox. `from` is what the sandbox was started from, as sandboxes from the image are
    /// to be.
    pub(crate) async fn add_snapshot(
        &self,
        team: TeamId,
        source: &SandboxId,
        from: Template,
        name: Option<&TemplateReference>,
    ) -> Result<Snapshot, StoreError> {
        let _one_at_a_time = self.changes.lock().await;
        let alias = name.map(|reference| reference.name.clone());
        let existing = {
            let stored = self.stored();
            let known = alias.as_ref().and_then(|alias| {
                // A bare template id stands for its template too.
                let is_it = |t: &&StoredTemplate| {
                    t.team == team
                        && (t.name.as_ref() == Some(alias) || t.id.as_str() == alias.as_str())
                };
                stored.values().find(is_it).cloned()
            });
            known.unwrap_or_else(|| StoredTemplate {
                id: TemplateId::random(),
                team,
                name: alias,
                builds: BTreeMap::new(),
                tags: BTreeMap::new(),
            })
        };
        let tag = name.map_or(DEFAULT_TAG, TemplateReference::tag);
        let shown = existing.name.clone();
        let template = Template {
            id: existing.id.clone(),
            name: shown.unwrap_or_else(|| TemplateName::from(existing.id.clone())),
            kind: TemplateKind::Snapshot,
            ..from
        };
        let build = StoredBuild {
            id: BuildId::random(),
            template: Arc::new(template),
            source: source.clone(),
            created_at: now(),
        };
        self.store.add_build(&existing, &build, tag).await?;
        let mut stored = self.stored();
        let entry = stored.entry(existing.id.clone()).or_insert(existing);
        entry.tags.insert(tag.to_owned(), (build.id, build.created_at));
        entry.builds.insert(build.id, build);
        Ok(self.snapshot_of(entry, tag))
    }

    fn snapshot_of(&self, template: &StoredTemplate, tag: &str) -> Snapshot {
        let names = template.names(&self.slug(template.team));
        let name = names.first().cloned().unwrap_or_else(|| template.id.to_string());
        Snapshot {
            id: format!("{name}:{tag}"),
            names,
            created_at: template.tagged_at(tag).unwrap_or(OffsetDateTime::UNIX_EPOCH),
            template: template.id.clone(),
        }
    }

    /// The snapshots of a team that fit, newest first.
    ///
    /// # Errors
    /// [`InvalidSnapshotName::Namespace`] for a name in another's namespace.
    pub fn snapshots(
        &self,
        team: TeamId,
        filter: &SnapshotFilter,
    ) -> Result<Vec<Snapshot>, InvalidSnapshotName> {
        if let Some(name) = &filter.name
            && let refused @ Err(InvalidSnapshotName::Namespace { .. }) =
                self.check_snapshot_name(team, name)
        {
            return refused.map(|()| Vec::new());
        }
        let named = match &filter.name {
            Some(name) => match self.find(team, name) {
                Ok(FoundTemplate::Stored(id)) => Some(id),
                Ok(FoundTemplate::Configured(_)) | Err(_) => return Ok(Vec::new()),
            },
            None => None,
        };
        let tag = filter.name.as_ref().and_then(|name| name.tag.clone());
        let stored = self.stored();
        let mut found = Vec::new();
        let of_team = stored.values().filter(|template| template.team == team);
        for template in of_team.filter(|t| named.as_ref().is_none_or(|id| *id == t.id)) {
            let fits = |(name, (build, _)): &(&String, &(BuildId, OffsetDateTime))| {
                tag.as_ref().is_none_or(|tag| tag == *name)
                    && filter.source.as_ref().is_none_or(|source| {
                        template.builds.get(build).is_some_and(|build| build.source == *source)
                    })
            };
            let tags = template.tags.iter().filter(fits);
            match (&filter.name, &tag) {
                // A bare name shows one entry, under its newest tag.
                (Some(_), None) => {
                    let newest = tags.max_by_key(|(_, (_, at))| *at);
                    found.extend(newest.map(|(tag, _)| self.snapshot_of(template, tag)));
                }
                _ => found.extend(tags.map(|(tag, _)| self.snapshot_of(template, tag))),
            }
        }
        found.sort_by(|a, b| (b.created_at, &a.id).cmp(&(a.created_at, &b.id)));
        Ok(found)
    }

    /// The stored template of a reference, of this team; the tag is ignored. Returns the images of its builds
    /// beside it.
    pub(crate) fn deletable(
        &self,
        team: TeamId,
        reference: &TemplateReference,
    ) -> Result<(TemplateId, Vec<String>), DeleteRefusal> {
        match self.find(team, reference) {
            Ok(FoundTemplate::Stored(id)) => {
                let stored = self.stored();
                let builds = stored.get(&id).into_iter().flat_map(|t| t.builds.values());
                let images = builds.map(|build| build.template.image.clone()).collect();
                Ok((id, images))
            }
            Ok(FoundTemplate::Configured(template)) => {
                Err(DeleteRefusal::Configured(template.name.to_string()))
            }
            Err(unknown) => {
                let stored = self.stored();
                let is_it = |t: &StoredTemplate| t.id.as_str() == reference.name.as_str();
                let foreign = reference.namespace.is_none() && stored.values().any(is_it);
                Err(if foreign { DeleteRefusal::Foreign } else { DeleteRefusal::Unknown(unknown) })
            }
        }
    }

    /// Forgets a stored template. Returns the images of its builds.
    pub(crate) async fn remove(&self, id: &TemplateId) -> Result<Vec<String>, StoreError> {
        let _one_at_a_time = self.changes.lock().await;
        self.store.remove_template(id).await?;
        let removed = self.stored().remove(id);
        let builds = removed.iter().flat_map(|template| template.builds.values());
        Ok(builds.map(|build| build.template.image.clone()).collect())
    }
}

/// Why a template cannot be deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeleteRefusal {
    /// There is none.
    #[error(transparent)]
    Unknown(UnknownTemplate),
    /// It is another team's.
    #[error("you don't have access to this template")]
    Foreign,
    /// It comes from the configuration.
    #[error("template '{0}' is part of the server's configuration, which no call changes")]
    Configured(String),
    /// Sandboxes were started from it.
    #[error("the template is in use by {0} sandboxes, running or paused: kill them first")]
    InUse(usize),
}

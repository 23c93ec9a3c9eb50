//! The stored part of the catalogue: templates, their names, builds and tags.

use std::collections::BTreeMap;
use std::sync::Arc;

use sandyard_types::{BuildId, SandboxId, TeamId, Template, TemplateId, TemplateName};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::accounts::parse_team;
use super::{Store, StoreError, corrupt, failed, to_json};
use crate::time_text::{from_micros, to_micros};

/// The version that builds are written in.
const VERSION: i64 = 1;

/// One image of a template, and what sandboxes from it are like.
#[derive(Clone, Debug)]
pub(crate) struct StoredBuild {
    pub(crate) id: BuildId,
    /// As it is started from: with the build's own image.
    pub(crate) template: Arc<Template>,
    /// The sandbox that it was taken from.
    pub(crate) source: SandboxId,
    pub(crate) created_at: OffsetDateTime,
}

/// A template of a team's.
#[derive(Clone, Debug)]
pub(crate) struct StoredTemplate {
    pub(crate) id: TemplateId,
    pub(crate) team: TeamId,
    pub(crate) name: Option<TemplateName>,
    pub(crate) builds: BTreeMap<BuildId, StoredBuild>,
    /// Which build each tag means, and since when.
    pub(crate) tags: BTreeMap<String, (BuildId, OffsetDateTime)>,
}

impl Store {
    /// Adds a build and puts a tag on it; makes the template and its name if they are new. All or nothing.
    pub(crate) async fn add_build(
        &self,
        template: &StoredTemplate,
        build: &StoredBuild,
        tag: &str,
    ) -> Result<(), StoreError> {
        let call = "add a build";
        let (id, at) = (template.id.as_str(), to_micros(build.created_at));
        let mut change = self.writer.begin().await.map_err(failed(call))?;
        sqlx::query(
            "INSERT INTO templates (id, team_id, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(template.team.to_string())
        .bind(at)
        .execute(&mut *change)
        .await
        .map_err(failed(call))?;
        if let Some(name) = &template.name {
            sqlx::query(
                "INSERT INTO template_names (team_id, name, template_id) VALUES (?, ?, ?) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(template.team.to_string())
            .bind(name.as_str())
            .bind(id)
            .execute(&mut *change)
            .await
            .map_err(failed(call))?;
        }
        sqlx::query(
            "INSERT INTO builds (id, template_id, source, created_at, version, document) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(build.id.to_string())
        .bind(id)
        .bind(build.source.as_str())
        .bind(at)
        .bind(VERSION)
        .bind(to_json(id, &*build.template)?)
        .execute(&mut *change)
        .await
        .map_err(failed(call))?;
        sqlx::query(
            "INSERT INTO template_tags (template_id, tag, build_id, assigned_at) VALUES (?, ?, ?, ?) \
             ON CONFLICT (template_id, tag) DO UPDATE SET build_id = excluded.build_id, \
             assigned_at = excluded.assigned_at",
        )
        .bind(id)
        .bind(tag)
        .bind(build.id.to_string())
        .bind(at)
        .execute(&mut *change)
        .await
        .map_err(failed(call))?;
        change.commit().await.map_err(failed(call))
    }

    /// Removes a template with its names, builds and tags.
    pub(crate) async fn remove_template(&self, id: &TemplateId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM templates WHERE id = ?")
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map_err(failed("remove a template"))?;
        Ok(())
    }

    /// All stored templates, and what of them cannot be read.
    pub(crate) async fn stored_templates(
        &self,
    ) -> Result<(Vec<StoredTemplate>, Vec<StoreError>), StoreError> {
        let call = "list templates";
        let all = async |query: &'static str| {
            sqlx::query(query).fetch_all(&self.writer).await.map_err(failed(call))
        };
        let mut unreadable = Vec::new();
        let mut found: BTreeMap<String, StoredTemplate> = BTreeMap::new();
        let rows = "SELECT t.id, t.team_id, n.name FROM templates t \
                    LEFT JOIN template_names n ON n.template_id = t.id";
        for row in all(rows).await? {
            match template_from(&row) {
                Ok(template) => drop(found.insert(template.id.to_string(), template)),
                Err(error) => unreadable.push(error),
            }
        }
        for row in all("SELECT * FROM builds").await? {
            match build_from(&row) {
                Ok((template, build)) => {
                    if let Some(template) = found.get_mut(&template) {
                        template.builds.insert(build.id, build);
                    }
                }
                Err(error) => unreadable.push(error),
            }
        }
        for row in all("SELECT * FROM template_tags").await? {
            match tag_from(&row) {
                Ok((template, tag, build, at)) => {
                    if let Some(template) = found.get_mut(&template)
                        && template.builds.contains_key(&build)
                    {
                        template.tags.insert(tag, (build, at));
                    }
                }
                Err(error) => unreadable.push(error),
            }
        }
        Ok((found.into_values().collect(), unreadable))
    }
}

fn text(row: &SqliteRow, column: &'static str) -> Result<String, StoreError> {
    row.try_get(column).map_err(failed("read a template"))
}

fn instant(row: &SqliteRow, column: &'static str, of: &str) -> Result<OffsetDateTime, StoreError> {
    let micros: i64 = row.try_get(column).map_err(failed("read a template"))?;
    from_micros(micros).ok_or_else(|| corrupt(of, &"a time out of range"))
}

fn template_from(row: &SqliteRow) -> Result<StoredTemplate, StoreError> {
    let id = text(row, "id")?;
    let name: Option<String> = row.try_get("name").map_err(failed("read a template"))?;
    Ok(StoredTemplate {
        team: parse_team(&text(row, "team_id")?)?,
        name: name.map(|name| name.parse()).transpose().map_err(|e| corrupt(&id, &e))?,
        builds: BTreeMap::new(),
        tags: BTreeMap::new(),
        id: id.parse().map_err(|e| corrupt(&id, &e))?,
    })
}

fn build_from(row: &SqliteRow) -> Result<(String, StoredBuild), StoreError> {
    let id = text(row, "id")?;
    let version: i64 = row.try_get("version").map_err(failed("read a build"))?;
    if version > VERSION {
        let reason = format!("version {version} is newer than this server's, {VERSION}");
        return Err(corrupt(&id, &reason));
    }
    let template: Template =
        serde_json::from_str(&text(row, "document")?).map_err(|e| corrupt(&id, &e))?;
    let build = StoredBuild {
        template: Arc::new(template),
        source: text(row, "source")?.parse().map_err(|e| corrupt(&id, &e))?,
        created_at: instant(row, "created_at", &id)?,
        id: id.parse().map_err(|e| corrupt(&id, &e))?,
    };
    Ok((text(row, "template_id")?, build))
}

fn tag_from(row: &SqliteRow) -> Result<(String, String, BuildId, OffsetDateTime), StoreError> {
    let template = text(row, "template_id")?;
    let build = text(row, "build_id")?.parse().map_err(|e| corrupt(&template, &e))?;
    let at = instant(row, "assigned_at", &template)?;
    Ok((template, text(row, "tag")?, build, at))
}

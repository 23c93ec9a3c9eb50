//! What must outlive the server: sandboxes and their end times, sessions, teams and keys. SQLite, one
//! file in the data folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sandyard_types::{
    InstanceId, InvalidWorkspace, KeyPrefix, Network, SandboxId, SessionId, TeamId, Template,
    WorkspaceSpec,
};
use sqlx::Row as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::time_text::{from_micros, now, to_micros};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data base refused or failed.
    #[error("the store failed to {call}")]
    Database {
        /// What was tried.
        call: &'static str,
        /// What the data base said.
        source: sqlx::Error,
    },
    /// The data base is from a newer version, or damaged.
    #[error("the store cannot be brought to this version's form")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A row holds what this version cannot read.
    #[error("the store's record of {what} is not readable: {reason}")]
    Corrupt {
        /// Which record.
        what: String,
        /// Why.
        reason: String,
    },
}

/// The slug of the team that an installation begins with.
pub const FIRST_TEAM: &str = "default";

/// SHA-256 of an API key, hex: what is stored in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeyHash(pub String);

/// A team ("project").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Team {
    /// Its id.
    pub id: TeamId,
    /// Its namespace: `[a-z0-9-_]+`.
    pub slug: String,
    /// What people call it.
    pub name: String,
}

/// How far a sandbox's life has come, as far as a restart needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its create has not answered yet: after a restart nobody knows its id, and it goes.
    Creating,
    /// Answered for.
    Running,
    /// Its end has begun and must be finished.
    Killing,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Killing => "killing",
        }
    }
}

/// One sandbox as the store keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) id: SandboxId,
    pub(crate) team: TeamId,
    pub(crate) template: Template,
    pub(crate) instance: InstanceId,
    pub(crate) stage: Stage,
    pub(crate) started_at: OffsetDateTime,
    pub(crate) end_at: OffsetDateTime,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) secure: bool,
    pub(crate) internet: Option<bool>,
    pub(crate) network: Option<Network>,
    pub(crate) workspace: Option<WorkspaceSpec>,
}

/// The store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
}

/// Turns a data base error into ours, naming what was tried.
fn failed(call: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { call, source }
}

impl Store {
    /// Opens the store in `file`, making it or bringing it to this version's form.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be opened or is from a newer version.
    pub async fn open(file: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An answered create must survive a power cut: its container would otherwise be removed
            // as nobody's.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            // SQLite has one writer; more connections would only wait for each other.
            .max_connections(1)
            .connect_with(options)
            .await
            .map_err(failed("open its file"))?;
        sqlx::migrate!().run(&pool).await?;
        Ok(Self { pool })
    }

    /// Closes the data base, so that its file is whole on disk.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// The team of an API key, `None` for an unknown key.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn team_of_key(&self, key: &ApiKeyHash) -> Result<Option<Team>, StoreError> {
        sqlx::query(
            "SELECT t.id, t.slug, t.name FROM api_keys k JOIN teams t ON t.id = k.team_id \
             WHERE k.hash = ?",
        )
        .bind(&key.0)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("look up an API key"))?
        .map(|row| team_from(&row))
        .transpose()
    }

    /// All teams.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn teams(&self) -> Result<Vec<Team>, StoreError> {
        let rows = sqlx::query("SELECT id, slug, name FROM teams ORDER BY slug")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list teams"))?;
        rows.iter().map(team_from).collect()
    }

    /// Adds a team.
    ///
    /// # Errors
    /// [`StoreError`], also if the slug is taken.
    pub async fn add_team(&self, team: &Team) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO teams (id, slug, name) VALUES (?, ?, ?)")
            .bind(team.id.to_string())
            .bind(&team.slug)
            .bind(&team.name)
            .execute(&self.pool)
            .await
            .map_err(failed("add a team"))?;
        Ok(())
    }

    /// Gives a team one more API key. A key that is known already stays with its team.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn add_api_key(&self, team: TeamId, key: &ApiKeyHash) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO api_keys (hash, team_id, created_at) VALUES (?, ?, ?) \
             ON CONFLICT (hash) DO NOTHING",
        )
        .bind(&key.0)
        .bind(team.to_string())
        .bind(to_micros(now()))
        .execute(&self.pool)
        .await
        .map_err(failed("add an API key"))?;
        Ok(())
    }

    /// Where the objects of a team's session are. Decided when the team first uses it, and the same for good:
    /// `sessions/<id>/` for the first team, `teams/<slug>/sessions/<id>/` for the others, and for whom the
    /// place is taken.
    ///
    /// # Errors
    /// [`StoreError`], also if there is no such team.
    pub async fn session_prefix(
        &self,
        team: TeamId,
        session: &SessionId,
    ) -> Result<KeyPrefix, StoreError> {
        let own = self.slug(team).await?;
        let unusable = |reason: InvalidWorkspace| corrupt(session.as_str(), &reason);
        let mut candidates = vec![KeyPrefix::team_session(&own, session).map_err(unusable)?];
        if own == FIRST_TEAM {
            candidates.insert(0, KeyPrefix::session(session));
        }
        for candidate in candidates {
            // Whatever keeps the row out is there then: this session, or another one at the same place.
            sqlx::query(
                "INSERT INTO sessions (team_id, id, prefix, created_at) VALUES (?, ?, ?, ?) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(team.to_string())
            .bind(session.as_str())
            .bind(candidate.as_str())
            .bind(to_micros(now()))
            .execute(&self.pool)
            .await
            .map_err(failed("add a session"))?;
            let row = sqlx::query("SELECT prefix FROM sessions WHERE team_id = ? AND id = ?")
                .bind(team.to_string())
                .bind(session.as_str())
                .fetch_optional(&self.pool)
                .await
                .map_err(failed("look up a session"))?;
            if let Some(row) = row {
                let prefix: String = row.try_get(0).map_err(failed("read a session"))?;
                return prefix.parse().map_err(unusable);
            }
        }
        Err(corrupt(session.as_str(), &"another session has its place"))
    }

    async fn slug(&self, team: TeamId) -> Result<String, StoreError> {
        let row = sqlx::query("SELECT slug FROM teams WHERE id = ?")
            .bind(team.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("look up a team"))?;
        let row = row.ok_or_else(|| corrupt(&team.to_string(), &"there is no such team"))?;
        row.try_get(0).map_err(failed("read a team"))
    }

    pub(crate) async fn insert(&self, record: &Record) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO sandboxes (id, team_id, template_id, template, instance, state, \
             started_at, end_at, metadata, secure, internet, network, workspace) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(record.id.as_str())
        .bind(record.team.to_string())
        .bind(record.template.id.as_str())
        .bind(to_json(&record.id, &record.template)?)
        .bind(record.instance.as_str())
        .bind(record.stage.as_str())
        .bind(to_micros(record.started_at))
        .bind(to_micros(record.end_at))
        .bind(to_json(&record.id, &record.metadata)?)
        .bind(record.secure)
        .bind(record.internet)
        .bind(record.network.as_ref().map(|n| to_json(&record.id, n)).transpose()?)
        .bind(record.workspace.as_ref().map(|w| to_json(&record.id, w)).transpose()?)
        .execute(&self.pool)
        .await
        .map_err(failed("add a sandbox"))?;
        Ok(())
    }

    pub(crate) async fn set_running(
        &self,
        id: &SandboxId,
        started_at: OffsetDateTime,
        end_at: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE sandboxes SET state = 'running', started_at = ?, end_at = ? WHERE id = ?",
        )
        .bind(to_micros(started_at))
        .bind(to_micros(end_at))
        .bind(id.as_str())
        .execute(&self.pool)
        .await
        .map_err(failed("mark a sandbox as running"))?;
        Ok(())
    }

    pub(crate) async fn set_killing(&self, id: &SandboxId) -> Result<(), StoreError> {
        sqlx::query("UPDATE sandboxes SET state = 'killing' WHERE id = ?")
            .bind(id.as_str())
            .execute(&self.pool)
            .await
            .map_err(failed("mark a sandbox as ending"))?;
        Ok(())
    }

    pub(crate) async fn set_end(
        &self,
        id: &SandboxId,
        end_at: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE sandboxes SET end_at = ? WHERE id = ?")
            .bind(to_micros(end_at))
            .bind(id.as_str())
            .execute(&self.pool)
            .await
            .map_err(failed("set a sandbox's end"))?;
        Ok(())
    }

    pub(crate) async fn remove(&self, id: &SandboxId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM sandboxes WHERE id = ?")
            .bind(id.as_str())
            .execute(&self.pool)
            .await
            .map_err(failed("remove a sandbox"))?;
        Ok(())
    }

    pub(crate) async fn all(&self) -> Result<Vec<Record>, StoreError> {
        let rows = sqlx::query("SELECT * FROM sandboxes ORDER BY started_at")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list sandboxes"))?;
        rows.iter().map(record_from).collect()
    }
}

fn to_json<T: serde::Serialize>(id: &SandboxId, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| corrupt(id.as_str(), &e))
}

fn corrupt(what: &str, reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt { what: format!("'{what}'"), reason: reason.to_string() }
}

fn parse_team(text: &str) -> Result<TeamId, StoreError> {
    text.parse::<Uuid>().map(TeamId).map_err(|e| corrupt(text, &e))
}

fn team_from(row: &SqliteRow) -> Result<Team, StoreError> {
    let read = failed("read a team");
    let id: String = row.try_get("id").map_err(&read)?;
    Ok(Team {
        id: parse_team(&id)?,
        slug: row.try_get("slug").map_err(&read)?,
        name: row.try_get("name").map_err(&read)?,
    })
}

fn record_from(row: &SqliteRow) -> Result<Record, StoreError> {
    let text = |column: &'static str| {
        row.try_get::<String, _>(column).map_err(failed("read a sandbox's record"))
    };
    let micros = |column: &'static str| {
        row.try_get::<i64, _>(column).map_err(failed("read a sandbox's record"))
    };
    let id = text("id")?;
    let time = |column: &'static str| {
        from_micros(micros(column)?).ok_or_else(|| corrupt(&id, &"a time out of range"))
    };
    let stage = match text("state")?.as_str() {
        "creating" => Stage::Creating,
        "running" => Stage::Running,
        "killing" => Stage::Killing,
        other => return Err(corrupt(&id, &format!("unknown state '{other}'"))),
    };
    let optional_text = |column: &'static str| {
        row.try_get::<Option<String>, _>(column).map_err(failed("read a sandbox's record"))
    };
    Ok(Record {
        team: parse_team(&text("team_id")?)?,
        template: serde_json::from_str(&text("template")?).map_err(|e| corrupt(&id, &e))?,
        instance: text("instance")?.parse().map_err(|e| corrupt(&id, &e))?,
        stage,
        started_at: time("started_at")?,
        end_at: time("end_at")?,
        metadata: serde_json::from_str(&text("metadata")?).map_err(|e| corrupt(&id, &e))?,
        secure: row.try_get("secure").map_err(failed("read a sandbox's record"))?,
        internet: row.try_get("internet").map_err(failed("read a sandbox's record"))?,
        network: optional_text("network")?
            .map(|json| serde_json::from_str(&json))
            .transpose()
            .map_err(|e| corrupt(&id, &e))?,
        workspace: optional_text("workspace")?
            .map(|json| serde_json::from_str(&json))
            .transpose()
            .map_err(|e| corrupt(&id, &e))?,
        id: id.parse().map_err(|e| corrupt(&id, &e))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open() -> anyhow::Result<(tempfile::TempDir, Store)> {
        let folder = tempfile::tempdir()?;
        let store = Store::open(&folder.path().join("store.db")).await?;
        Ok((folder, store))
    }

    fn team(slug: &str) -> Team {
        Team { id: TeamId::random(), slug: slug.to_owned(), name: slug.to_owned() }
    }

    #[tokio::test]
    async fn a_key_leads_to_its_team_and_an_unknown_one_to_none() -> anyhow::Result<()> {
        let (_folder, store) = open().await?;
        let (one, two) = (team("one"), team("two"));
        store.add_team(&one).await?;
        store.add_team(&two).await?;
        let key = ApiKeyHash("aa".to_owned());
        store.add_api_key(one.id, &key).await?;
        // Adding it again, even for another team, changes nothing.
        store.add_api_key(two.id, &key).await?;
        assert_eq!(store.team_of_key(&key).await?, Some(one));
        assert_eq!(store.team_of_key(&ApiKeyHash("bb".to_owned())).await?, None);
        Ok(())
    }

    #[tokio::test]
    async fn sessions_are_named_within_teams_and_keep_their_place() -> anyhow::Result<()> {
        let (folder, store) = open().await?;
        let (first, other) = (team(FIRST_TEAM), team("two"));
        store.add_team(&first).await?;
        store.add_team(&other).await?;
        let session: SessionId = "s1".parse()?;
        let place = async |store: &Store, team: &Team| {
            store.session_prefix(team.id, &session).await.map(|prefix| prefix.to_string())
        };
        assert_eq!(place(&store, &other).await?, "teams/two/sessions/s1/");
        assert_eq!(place(&store, &first).await?, "sessions/s1/");
        store.close().await;
        let store = Store::open(&folder.path().join("store.db")).await?;
        assert_eq!(place(&store, &other).await?, "teams/two/sessions/s1/");
        assert_eq!(place(&store, &first).await?, "sessions/s1/");
        assert!(store.session_prefix(TeamId::random(), &session).await.is_err());
        Ok(())
    }

    #[tokio::test]
    async fn a_session_of_an_earlier_version_stays_where_it_is() -> anyhow::Result<()> {
        let (_folder, store) = open().await?;
        let (first, other) = (team(FIRST_TEAM), team("two"));
        store.add_team(&first).await?;
        store.add_team(&other).await?;
        // As the migration leaves what another team had used first.
        sqlx::query("INSERT INTO sessions (team_id, id, prefix, created_at) VALUES (?, 's', 'sessions/s/', 0)")
            .bind(other.id.to_string())
            .execute(&store.pool)
            .await?;
        let session: SessionId = "s".parse()?;
        let prefix = store.session_prefix(other.id, &session).await?;
        assert_eq!(prefix.as_str(), "sessions/s/");
        let prefix = store.session_prefix(first.id, &session).await?;
        assert_eq!(prefix.as_str(), "teams/default/sessions/s/");
        Ok(())
    }

    #[tokio::test]
    async fn a_file_that_is_no_data_base_is_an_error_that_says_so() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("store.db");
        std::fs::write(&file, "not a data base, but long enough to be taken for one".repeat(100))?;
        assert!(Store::open(&file).await.is_err());
        Ok(())
    }
}

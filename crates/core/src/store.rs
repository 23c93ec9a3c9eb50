//! What must outlive the server: sandboxes and their end times, sessions, teams and keys. SQLite, one
//! file in the data folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sandyard_types::{InstanceId, Network, SandboxId, SessionId, TeamId, Template, WorkspaceSpec};
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

    /// Takes the session for the team if nobody has it yet, and returns the team that has it.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn claim_session(
        &self,
        session: &SessionId,
        team: TeamId,
    ) -> Result<TeamId, StoreError> {
        let row = sqlx::query(
            // The update changes nothing; it makes the row that is there come back.
            "INSERT INTO sessions (id, team_id, created_at) VALUES (?, ?, ?) \
             ON CONFLICT (id) DO UPDATE SET id = excluded.id RETURNING team_id",
        )
        .bind(session.as_str())
        .bind(team.to_string())
        .bind(to_micros(now()))
        .fetch_one(&self.pool)
        .await
        .map_err(failed("claim a session"))?;
        let owner: String = row.try_get(0).map_err(failed("read a session's team"))?;
        parse_team(&owner)
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
    async fn a_session_stays_with_the_team_that_first_used_it() -> anyhow::Result<()> {
        let (folder, store) = open().await?;
        let (one, two) = (team("one"), team("two"));
        store.add_team(&one).await?;
        store.add_team(&two).await?;
        let session: SessionId = "s1".parse()?;
        assert_eq!(store.claim_session(&session, one.id).await?, one.id);
        store.close().await;
        let store = Store::open(&folder.path().join("store.db")).await?;
        assert_eq!(store.claim_session(&session, two.id).await?, one.id);
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

//! Sandboxes: one versioned document each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sandyard_types::{
    InstanceId, Lifecycle, Network, PauseKind, SandboxId, TeamId, Template, WorkspaceSpec,
};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::accounts::parse_team;
use super::{Store, StoreError, corrupt, failed, to_json};
use crate::SandboxState;
use crate::time_text::{from_micros, to_micros};

/// The version that documents are written in. One of a later version is not read.
const VERSION: i64 = 1;

/// How far a sandbox's life has come. A transition is noted before it begins, so that a start after a crash
/// knows what may be half-done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is", content = "pause")]
pub(crate) enum Stage {
    /// Its create has not answered yet: after a crash nobody knows its id, and it goes.
    Creating,
    /// Answered for.
    Running,
    /// An image of it is being made.
    Snapshotting,
    /// Is being paused.
    Pausing(PauseKind),
    /// Is paused.
    Paused(PauseKind),
    /// Is being resumed from such a pause.
    Resuming(PauseKind),
    /// Its end has begun and must be finished.
    Ending,
}

impl Stage {
    /// The state of the life-cycle table.
    pub(crate) fn state(self) -> SandboxState {
        match self {
            Self::Creating => SandboxState::Creating,
            Self::Running => SandboxState::Running,
            Self::Snapshotting => SandboxState::Snapshotting,
            Self::Pausing(_) => SandboxState::Pausing,
            Self::Paused(_) => SandboxState::Paused,
            Self::Resuming(_) => SandboxState::Resuming,
            Self::Ending => SandboxState::Killing,
        }
    }
}

/// One sandbox: all that a start after a crash and a second claim of its container need.
#[derive(Clone, Debug)]
pub(crate) struct SandboxRecord {
    pub(crate) id: SandboxId,
    pub(crate) team: TeamId,
    /// What it was started from, as that was then.
    pub(crate) template: Arc<Template>,
    /// Its container, from the create to the end.
    pub(crate) instance: InstanceId,
    pub(crate) stage: Stage,
    /// Start of the present run, or of the last one while it is paused.
    pub(crate) started_at: OffsetDateTime,
    /// End of the present run, or the moment of the pause.
    pub(crate) end_at: OffsetDateTime,
    pub(crate) metadata: Arc<BTreeMap<String, String>>,
    /// What the client asked for; with the image's and the template's it makes the environment.
    pub(crate) env: BTreeMap<String, String>,
    /// The image's own environment and directory, known once the container was made.
    pub(crate) image_env: BTreeMap<String, String>,
    pub(crate) image_workdir: Option<String>,
    pub(crate) secure: bool,
    pub(crate) internet: Option<bool>,
    pub(crate) network: Option<Arc<Network>>,
    pub(crate) workspace: Option<Arc<WorkspaceSpec>>,
    /// The time that the create asked for (control-plane 3.4, auto-resume).
    pub(crate) timeout: Duration,
    pub(crate) lifecycle: Lifecycle,
}

/// A row that this version cannot read.
#[derive(Debug)]
pub(crate) struct UnreadableSandbox {
    /// The sandbox, as far as the row tells.
    pub(crate) id: String,
    /// Its container, which is to be left alone.
    pub(crate) instance: String,
    /// Why.
    pub(crate) reason: StoreError,
}

/// A record as it is written. Members that came later have defaults.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    template: Template,
    stage: Stage,
    /// Microseconds since the Unix epoch.
    started_at: i64,
    end_at: i64,
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    image_env: BTreeMap<String, String>,
    #[serde(default)]
    image_workdir: Option<String>,
    secure: bool,
    internet: Option<bool>,
    network: Option<Network>,
    workspace: Option<WorkspaceSpec>,
    #[serde(default)]
    timeout_seconds: u64,
    #[serde(default)]
    lifecycle: Lifecycle,
}

impl From<&SandboxRecord> for Document {
    fn from(record: &SandboxRecord) -> Self {
        Self {
            template: Template::clone(&record.template),
            stage: record.stage,
            started_at: to_micros(record.started_at),
            end_at: to_micros(record.end_at),
            metadata: BTreeMap::clone(&record.metadata),
            env: record.env.clone(),
            image_env: record.image_env.clone(),
            image_workdir: record.image_workdir.clone(),
            secure: record.secure,
            internet: record.internet,
            network: record.network.as_deref().cloned(),
            workspace: record.workspace.as_deref().cloned(),
            timeout_seconds: record.timeout.as_secs(),
            lifecycle: record.lifecycle,
        }
    }
}

impl Store {
    pub(crate) async fn insert_sandbox(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO sandboxes (id, team_id, instance, version, document) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(record.id.as_str())
        .bind(record.team.to_string())
        .bind(record.instance.as_str())
        .bind(VERSION)
        .bind(to_json(record.id.as_str(), &Document::from(record))?)
        .execute(&self.writer)
        .await
        .map_err(failed("add a sandbox"))?;
        Ok(())
    }

    pub(crate) async fn update_sandbox(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        let done = sqlx::query(
            "UPDATE sandboxes SET instance = ?, version = ?, document = ? WHERE id = ?",
        )
        .bind(record.instance.as_str())
        .bind(VERSION)
        .bind(to_json(record.id.as_str(), &Document::from(record))?)
        .bind(record.id.as_str())
        .execute(&self.writer)
        .await
        .map_err(failed("change a sandbox"))?;
        if done.rows_affected() == 0 {
            return Err(corrupt(record.id.as_str(), &"it is not there"));
        }
        Ok(())
    }

    pub(crate) async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM sandboxes WHERE id = ?")
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map_err(failed("remove a sandbox"))?;
        Ok(())
    }

    /// All sandboxes, and the rows that cannot be read.
    pub(crate) async fn sandboxes(
        &self,
    ) -> Result<(Vec<SandboxRecord>, Vec<UnreadableSandbox>), StoreError> {
        let rows = sqlx::query("SELECT id, team_id, instance, version, document FROM sandboxes")
            .fetch_all(&self.writer)
            .await
            .map_err(failed("list sandboxes"))?;
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for row in &rows {
            let read = failed("read a sandbox's record");
            let id: String = row.try_get("id").map_err(&read)?;
            let instance: String = row.try_get("instance").map_err(&read)?;
            match record_from(row, &id, &instance) {
                Ok(record) => records.push(record),
                Err(reason) => unreadable.push(UnreadableSandbox { id, instance, reason }),
            }
        }
        Ok((records, unreadable))
    }
}

fn record_from(row: &SqliteRow, id: &str, instance: &str) -> Result<SandboxRecord, StoreError> {
    let read = failed("read a sandbox's record");
    let version: i64 = row.try_get("version").map_err(&read)?;
    if version > VERSION {
        let text = format!("version {version} is newer than this server's, {VERSION}");
        return Err(corrupt(id, &text));
    }
    let team: String = row.try_get("team_id").map_err(&read)?;
    let document: String = row.try_get("document").map_err(&read)?;
    let document: Document = serde_json::from_str(&document).map_err(|e| corrupt(id, &e))?;
    let time = |micros| from_micros(micros).ok_or_else(|| corrupt(id, &"a time out of range"));
    Ok(SandboxRecord {
        id: id.parse().map_err(|e| corrupt(id, &e))?,
        team: parse_team(&team)?,
        template: Arc::new(document.template),
        instance: instance.parse().map_err(|e| corrupt(id, &e))?,
        stage: document.stage,
        started_at: time(document.started_at)?,
        end_at: time(document.end_at)?,
        metadata: Arc::new(document.metadata),
        env: document.env,
        image_env: document.image_env,
        image_workdir: document.image_workdir,
        secure: document.secure,
        internet: document.internet,
        network: document.network.map(Arc::new),
        workspace: document.workspace.map(Arc::new),
        timeout: Duration::from_secs(document.timeout_seconds),
        lifecycle: document.lifecycle,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::open;
    use super::*;

    /// What this version writes. A change here is a change of what later versions must read.
    fn written() -> Value {
        json!({
            "template": {
                "id": "abcdefghij0123456789", "name": "base", "kind": "built-in", "image": "i",
                "cpu_count": 2, "memory_mib": 512, "pids": 100, "disk_mib": 1000, "user": "user",
                "workdir": null, "env": {"A": "1"}, "sudo": true, "workspace_target": "/workspace",
                "pool": 0, "interpreter": false,
            },
            "stage": {"is": "paused", "pause": "full"},
            "startedAt": 1_700_000_000_000_001_i64,
            "endAt": 1_700_000_300_000_001_i64,
            "metadata": {"k": "v"},
            "env": {"B": "2"},
            "imageEnv": {"PATH": "/bin"},
            "imageWorkdir": "/srv",
            "secure": true,
            "internet": null,
            "network": {"allowPublicTraffic": false},
            "workspace": null,
            "timeoutSeconds": 300,
            "lifecycle": {"on_timeout": {"pause": "filesystem"}, "auto_resume": true},
        })
    }

    #[test]
    fn a_document_is_read_and_written_without_loss() {
        let document: Document = serde_json::from_value(written()).expect("readable");
        assert_eq!(serde_json::to_value(document).expect("writable"), written());
    }

    #[tokio::test]
    async fn what_an_earlier_version_left_is_brought_over() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("store.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
        let pool = sqlx::SqlitePool::connect_with(options.create_if_missing(true)).await?;
        let mut migrator = sqlx::migrate!();
        migrator.migrations.to_mut().truncate(3);
        migrator.run(&pool).await?;
        let team = TeamId::random();
        sqlx::query("INSERT INTO teams VALUES (?, 'default', 'x')")
            .bind(team.to_string())
            .execute(&pool)
            .await?;
        sqlx::query(
            "INSERT INTO sandboxes VALUES ('iabc', ?, 't', ?, ?, 'killing', 1, 2, '{\"a\":\"b\"}', 0, 1, NULL, NULL)",
        )
        .bind(team.to_string())
        .bind(written()["template"].to_string())
        .bind(InstanceId::random().as_str())
        .execute(&pool)
        .await?;
        pool.close().await;
        let store = Store::open(&file).await?;
        let (records, unreadable) = store.sandboxes().await?;
        assert!(unreadable.is_empty(), "{unreadable:?}");
        let [record] = &records[..] else { anyhow::bail!("{records:?}") };
        assert_eq!((record.stage, record.team), (Stage::Ending, team));
        assert_eq!((record.secure, record.internet), (false, Some(true)));
        assert_eq!(record.metadata.get("a").map(String::as_str), Some("b"));
        assert_eq!(to_micros(record.end_at), 2);
        Ok(())
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_read_does_not_hide_the_others() -> anyhow::Result<()> {
        let (_folder, store) = open().await?;
        let team = crate::Team { id: TeamId::random(), slug: "a".to_owned(), name: String::new() };
        store.add_team(&team).await?;
        for (id, version, document) in [
            ("ione", 1, written().to_string()),
            ("itwo", 1, "{}".to_owned()),
            ("ithree", 9, "{}".to_owned()),
        ] {
            sqlx::query("INSERT INTO sandboxes VALUES (?, ?, ?, ?, ?)")
                .bind(id)
                .bind(team.id.to_string())
                .bind(InstanceId::random().as_str())
                .bind(version)
                .bind(document)
                .execute(&store.writer)
                .await?;
        }
        let (records, unreadable) = store.sandboxes().await?;
        assert_eq!(records.len(), 1);
        let mut ids: Vec<&str> = unreadable.iter().map(|row| row.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["ithree", "itwo"]);
        Ok(())
    }
}

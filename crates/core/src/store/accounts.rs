//! Teams and their API keys.

use sandyard_types::TeamId;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{Store, StoreError, corrupt, failed};
use crate::time_text::{now, to_micros};

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

impl Store {
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
        .fetch_optional(&self.readers)
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
            .fetch_all(&self.readers)
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
            .execute(&self.writer)
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
        .execute(&self.writer)
        .await
        .map_err(failed("add an API key"))?;
        Ok(())
    }

    /// The namespace of a team.
    ///
    /// # Errors
    /// [`StoreError`], also if there is no such team.
    pub async fn slug(&self, team: TeamId) -> Result<String, StoreError> {
        let row = sqlx::query("SELECT slug FROM teams WHERE id = ?")
            .bind(team.to_string())
            .fetch_optional(&self.readers)
            .await
            .map_err(failed("look up a team"))?;
        let row = row.ok_or_else(|| corrupt(&team.to_string(), &"there is no such team"))?;
        row.try_get(0).map_err(failed("read a team"))
    }
}

pub(super) fn parse_team(text: &str) -> Result<TeamId, StoreError> {
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

#[cfg(test)]
mod tests {
    use super::super::tests::open;
    use super::*;

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
}

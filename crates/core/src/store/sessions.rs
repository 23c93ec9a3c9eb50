//! Sessions: which team's they are, and where their objects lie.

use sandyard_types::{InvalidWorkspace, KeyPrefix, SessionId, TeamId};
use sqlx::Row as _;

use super::{FIRST_TEAM, Store, StoreError, corrupt, failed};
use crate::time_text::{now, to_micros};

impl Store {
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
        if let Some(prefix) = self.known_prefix(team, session).await? {
            return Ok(prefix);
        }
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
            .execute(&self.writer)
            .await
            .map_err(failed("add a session"))?;
            if let Some(prefix) = self.known_prefix(team, session).await? {
                return Ok(prefix);
            }
        }
        Err(corrupt(session.as_str(), &"another session has its place"))
    }

    async fn known_prefix(
        &self,
        team: TeamId,
        session: &SessionId,
    ) -> Result<Option<KeyPrefix>, StoreError> {
        let row = sqlx::query("SELECT prefix FROM sessions WHERE team_id = ? AND id = ?")
            .bind(team.to_string())
            .bind(session.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(failed("look up a session"))?;
        let Some(row) = row else { return Ok(None) };
        let prefix: String = row.try_get(0).map_err(failed("read a session"))?;
        let parsed = prefix.parse();
        parsed.map(Some).map_err(|reason: InvalidWorkspace| corrupt(session.as_str(), &reason))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::open;
    use super::*;
    use crate::Team;

    fn team(slug: &str) -> Team {
        Team { id: TeamId::random(), slug: slug.to_owned(), name: slug.to_owned() }
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
            .execute(&store.writer)
            .await?;
        let session: SessionId = "s".parse()?;
        let prefix = store.session_prefix(other.id, &session).await?;
        assert_eq!(prefix.as_str(), "sessions/s/");
        let prefix = store.session_prefix(first.id, &session).await?;
        assert_eq!(prefix.as_str(), "teams/default/sessions/s/");
        Ok(())
    }
}

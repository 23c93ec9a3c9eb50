-- A session is named within its team. Where its objects are is kept, so that sessions from before stay
-- where they are; no two share a place.
CREATE TABLE team_sessions (
    team_id    TEXT NOT NULL REFERENCES teams (id),
    id         TEXT NOT NULL,
    prefix     TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (team_id, id)
) STRICT;

INSERT INTO team_sessions (team_id, id, prefix, created_at)
SELECT team_id, id, 'sessions/' || id || '/', created_at FROM sessions;

DROP TABLE sessions;

ALTER TABLE team_sessions RENAME TO sessions;

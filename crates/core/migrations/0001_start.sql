-- Times are microseconds since the Unix epoch, UTC. JSON columns hold objects of strings unless said
-- otherwise.

CREATE TABLE teams (
    id   TEXT PRIMARY KEY NOT NULL,
    slug TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL
) STRICT;

CREATE TABLE api_keys (
    -- SHA-256 of the whole key, hex: the key itself is not stored.
    hash       TEXT PRIMARY KEY NOT NULL,
    team_id    TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL
) STRICT;

-- A session belongs to the team that first used it.
CREATE TABLE sessions (
    id         TEXT PRIMARY KEY NOT NULL,
    team_id    TEXT NOT NULL REFERENCES teams (id),
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE sandboxes (
    id            TEXT PRIMARY KEY NOT NULL,
    team_id       TEXT NOT NULL REFERENCES teams (id),
    -- Id of the template, and all of it as JSON: what a sandbox was started from stays known when the
    -- configuration changes.
    template_id   TEXT NOT NULL,
    template      TEXT NOT NULL,
    instance      TEXT NOT NULL,
    -- 'creating', 'running' or 'killing'.
    state         TEXT NOT NULL CHECK (state IN ('creating', 'running', 'killing')),
    started_at    INTEGER NOT NULL,
    end_at        INTEGER NOT NULL,
    metadata      TEXT NOT NULL,
    secure        INTEGER NOT NULL,
    -- NULL: never said by the client.
    internet      INTEGER,
    -- A workspace specification, or NULL for none.
    workspace     TEXT
) STRICT;

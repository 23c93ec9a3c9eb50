-- A sandbox is one document of a version, so that a later one can read what an earlier one wrote. What a
-- start needs even of a document that it cannot read has a column.
CREATE TABLE sandbox_documents (
    id       TEXT PRIMARY KEY NOT NULL,
    team_id  TEXT NOT NULL REFERENCES teams (id),
    instance TEXT NOT NULL,
    version  INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;

INSERT INTO sandbox_documents (id, team_id, instance, version, document)
SELECT id, team_id, instance, 1, json_object(
    'template', json(template),
    'stage', json_object('is', CASE state WHEN 'killing' THEN 'ending' ELSE state END),
    'startedAt', started_at,
    'endAt', end_at,
    'metadata', json(metadata),
    'secure', json(CASE secure WHEN 0 THEN 'false' ELSE 'true' END),
    'internet', json(CASE WHEN internet IS NULL THEN 'null' WHEN internet = 0 THEN 'false' ELSE 'true' END),
    'network', json(ifnull(network, 'null')),
    'workspace', json(ifnull(workspace, 'null'))
) FROM sandboxes;

DROP TABLE sandboxes;
ALTER TABLE sandbox_documents RENAME TO sandboxes;

-- The catalogue: templates that came about on the server. A snapshot is one.
CREATE TABLE templates (
    id         TEXT PRIMARY KEY NOT NULL,
    team_id    TEXT NOT NULL REFERENCES teams (id),
    created_at INTEGER NOT NULL
) STRICT;

-- What a template is called within its team.
CREATE TABLE template_names (
    team_id     TEXT NOT NULL REFERENCES teams (id),
    name        TEXT NOT NULL,
    template_id TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    PRIMARY KEY (team_id, name)
) STRICT;

-- One image of a template, as a document of a version.
CREATE TABLE builds (
    id          TEXT PRIMARY KEY NOT NULL,
    template_id TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    -- The sandbox that it was taken from.
    source      TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    document    TEXT NOT NULL
) STRICT;

-- Which build a tag means: the one that was assigned last.
CREATE TABLE template_tags (
    template_id TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    tag         TEXT NOT NULL,
    build_id    TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    assigned_at INTEGER NOT NULL,
    PRIMARY KEY (template_id, tag)
) STRICT;

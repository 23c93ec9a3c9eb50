-- The index of the embedded store. Keys are blobs, so that their order is the order of their bytes,
-- which is the order of S3's lists.

CREATE TABLE buckets (
    name TEXT NOT NULL PRIMARY KEY,
    created INTEGER NOT NULL
);

-- Content is either in `inline` (small objects) or in `segments`: JSON, parts of files in order.
-- `inline` is last, so that reading the other columns does not read it.
CREATE TABLE objects (
    bucket TEXT NOT NULL,
    key BLOB NOT NULL,
    size INTEGER NOT NULL,
    etag TEXT NOT NULL,
    modified INTEGER NOT NULL,
    attributes TEXT NOT NULL,
    segments TEXT,
    inline BLOB,
    PRIMARY KEY (bucket, key)
);

CREATE TABLE uploads (
    id TEXT NOT NULL PRIMARY KEY,
    bucket TEXT NOT NULL,
    key BLOB NOT NULL,
    initiated INTEGER NOT NULL,
    attributes TEXT NOT NULL
);
CREATE INDEX uploads_by_key ON uploads (bucket, key, id);

CREATE TABLE parts (
    upload TEXT NOT NULL,
    number INTEGER NOT NULL,
    size INTEGER NOT NULL,
    etag TEXT NOT NULL,
    modified INTEGER NOT NULL,
    segments TEXT NOT NULL,
    PRIMARY KEY (upload, number)
);

-- The content files, and how many segments use each. A file that is not here is removed at open.
CREATE TABLE files (
    id TEXT NOT NULL PRIMARY KEY,
    uses INTEGER NOT NULL
);

-- Several clusters (sites) may share this database: accounts and sessions are one, everything else is each site's own.
CREATE TABLE sites (
    name TEXT PRIMARY KEY
);

-- Where a user was given something, so that something may be left there.
CREATE TABLE presences (
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    site    TEXT NOT NULL,
    PRIMARY KEY (user_id, site)
);

-- Empty in rows of versions that knew of one site only.
ALTER TABLE operations ADD COLUMN site TEXT NOT NULL DEFAULT '';
CREATE INDEX operations_of_site ON operations (site, outcome, started_at);

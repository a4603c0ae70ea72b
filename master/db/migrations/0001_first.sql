-- Both SQLite and PostgreSQL read this file: TEXT and BIGINT only, ids as UUID text, times as microseconds, truth as 0 or 1.

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
-- The next block of user ids. Only ever grows: a removed user's block is never given to another.
INSERT INTO counters (name, value) VALUES ('id_range', 0);

CREATE TABLE users (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    role          TEXT NOT NULL,
    disabled      BIGINT NOT NULL,
    range_index   BIGINT NOT NULL UNIQUE,
    theme         TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    last_seen     BIGINT
);

CREATE TABLE sessions (
    hash       TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    kind       TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_used  BIGINT NOT NULL,
    user_agent TEXT NOT NULL,
    address    TEXT NOT NULL
);
CREATE INDEX sessions_of_user ON sessions (user_id);
CREATE INDEX sessions_by_end ON sessions (expires_at);

-- What signs a browser in at the origin of one app: a ticket (one use, seconds) and then a cookie.
CREATE TABLE app_tokens (
    hash         TEXT PRIMARY KEY,
    session_hash TEXT NOT NULL REFERENCES sessions (hash) ON DELETE CASCADE,
    kind         TEXT NOT NULL,
    host         TEXT NOT NULL,
    expires_at   BIGINT NOT NULL
);
CREATE INDEX app_tokens_of_session ON app_tokens (session_hash);
CREATE INDEX app_tokens_by_end ON app_tokens (expires_at);

CREATE TABLE idempotency_keys (
    user_id     TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key         TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    -- Absent while the first request is still worked on.
    status      BIGINT,
    body        TEXT,
    at          BIGINT NOT NULL,
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (at);

CREATE TABLE operations (
    id          TEXT PRIMARY KEY,
    vcluster_id TEXT NOT NULL,
    owner       TEXT NOT NULL,
    name        TEXT NOT NULL,
    action      TEXT NOT NULL,
    actor       TEXT NOT NULL,
    started_at  BIGINT NOT NULL,
    ended_at    BIGINT,
    outcome     TEXT NOT NULL,
    -- JSON.
    reason      TEXT,
    steps       TEXT NOT NULL
);
CREATE INDEX operations_of_vcluster ON operations (vcluster_id, started_at);
CREATE INDEX operations_of_owner ON operations (owner, started_at);
CREATE INDEX operations_by_outcome ON operations (outcome, started_at);

CREATE TABLE lockouts (
    key          TEXT PRIMARY KEY,
    fails        BIGINT NOT NULL,
    locked_until BIGINT NOT NULL,
    changed_at   BIGINT NOT NULL
);

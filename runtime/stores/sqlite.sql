-- All SQL of the SQLite store, in named blocks (`-- name: x`). Times are seconds since the epoch.
--
-- Payloads, results and attempts live beside `items`, so that a claim rewrites one short row whatever an item weighs.
-- The completed attempt stands with its result in `results`, all others in `attempts`.
-- `counters` holds the number of items per pool and state; every transaction that moves items moves it too.
-- A live worker that follows has its owner's heartbeat and lease (`owners`), so that a beat for thousands writes one row;
-- any other has its own. `registrations` says what holds. An owner stands in `owners` while somebody follows it; `beat`
-- names the beat since which its followers have not changed.

-- name: schema
CREATE TABLE items (
    seq          INTEGER PRIMARY KEY,
    id           TEXT    NOT NULL UNIQUE,
    pool         TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    priority     INTEGER NOT NULL,
    due          REAL    NOT NULL,
    token        INTEGER NOT NULL DEFAULT 0,
    attempts     INTEGER NOT NULL DEFAULT 0,
    crashes      INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    max_crashes  INTEGER NOT NULL,
    requires     TEXT,
    worker       TEXT,
    owner        TEXT,
    error_type   TEXT,
    error        TEXT,
    created      REAL    NOT NULL,
    started      REAL,
    finished     REAL
);
CREATE INDEX items_ready ON items (pool, priority DESC, seq) WHERE state = 'ready';
CREATE INDEX items_delayed ON items (pool, due) WHERE state = 'delayed';
CREATE INDEX items_claimed ON items (pool, due) WHERE state = 'claimed';
CREATE INDEX items_dead ON items (pool, seq) WHERE state = 'dead';
CREATE TABLE payloads (seq INTEGER PRIMARY KEY, data TEXT NOT NULL);
CREATE TABLE results (
    seq     INTEGER PRIMARY KEY,
    token   INTEGER NOT NULL,
    worker  TEXT    NOT NULL,
    started REAL    NOT NULL,
    ended   REAL    NOT NULL,
    cost    REAL    NOT NULL,
    result  TEXT    NOT NULL
);
CREATE TABLE attempts (
    seq        INTEGER NOT NULL,
    token      INTEGER NOT NULL,
    worker     TEXT    NOT NULL,
    started    REAL    NOT NULL,
    ended      REAL    NOT NULL,
    outcome    TEXT    NOT NULL,
    error_type TEXT,
    error      TEXT,
    cost       REAL    NOT NULL,
    PRIMARY KEY (seq, token)
) WITHOUT ROWID;
CREATE TABLE counters (pool TEXT NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (pool, state))
    WITHOUT ROWID;
CREATE TABLE workers (
    id           TEXT PRIMARY KEY,
    status       TEXT NOT NULL,
    heartbeat    REAL NOT NULL,
    started      TEXT NOT NULL,
    host         TEXT,
    pid          INTEGER,
    capabilities TEXT,
    owner        TEXT NOT NULL,
    lease_until  REAL NOT NULL,
    metadata     TEXT NOT NULL,
    follows      INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX workers_live ON workers (follows, owner, status, id) WHERE status IN ('active', 'terminating');
CREATE TABLE owners (owner TEXT PRIMARY KEY, heartbeat REAL NOT NULL, until REAL NOT NULL, beat TEXT) WITHOUT ROWID;
CREATE VIEW registrations AS
    SELECT w.rowid AS seq, w.id, w.status, w.started, w.host, w.pid, w.capabilities, w.owner, w.metadata, w.follows,
        COALESCE(o.heartbeat, w.heartbeat) AS heartbeat, COALESCE(o.until, w.lease_until) AS lease_until
    FROM workers w LEFT JOIN owners o ON w.follows AND o.owner = w.owner;
CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE snapshots (
    execution_id TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    body         BLOB NOT NULL,
    event        TEXT,
    channel      TEXT,
    updated      REAL NOT NULL
);
CREATE INDEX snapshots_channel ON snapshots (channel) WHERE channel IS NOT NULL;
CREATE TABLE signals (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT NOT NULL,
    channel TEXT NOT NULL,
    data    TEXT NOT NULL,
    created REAL NOT NULL
);
CREATE INDEX signals_channel ON signals (channel, seq);
CREATE TABLE locks (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL);

-- name: push
INSERT INTO items (id, pool, key, state, priority, due, max_attempts, max_crashes, requires, created)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING;

-- name: push_payload
INSERT INTO payloads (seq, data) VALUES (?, ?);

-- name: wake_delayed
UPDATE items SET state = 'ready' WHERE pool = ? AND state = 'delayed' AND due <= ?;

-- name: expired
SELECT seq, id, pool, token, worker, started, attempts, crashes, max_attempts, max_crashes FROM items
WHERE pool = ? AND state = 'claimed' AND due <= ? LIMIT 500;

-- name: claim
UPDATE items SET state = 'claimed', token = token + 1, worker = :worker, owner = :owner, due = :until, started = :now
WHERE seq IN (
    SELECT seq FROM items WHERE pool = :pool AND state = 'ready'
      AND (requires IS NULL OR NOT EXISTS (
            SELECT 1 FROM json_each(requires) WHERE value NOT IN (SELECT value FROM json_each(:capabilities))))
      AND (crashes < :suspect OR seq = (
            SELECT seq FROM items WHERE pool = :pool AND state = 'ready' AND crashes >= :suspect
              AND (requires IS NULL OR NOT EXISTS (
                    SELECT 1 FROM json_each(requires) WHERE value NOT IN (SELECT value FROM json_each(:capabilities))))
              AND NOT EXISTS (
                    SELECT 1 FROM items WHERE state = 'claimed' AND owner = :owner AND crashes >= :suspect)
            ORDER BY priority DESC, seq LIMIT 1))
    ORDER BY priority DESC, seq LIMIT :n)
RETURNING seq, id, key, token, attempts, crashes, max_attempts, created, priority,
    (SELECT data FROM payloads WHERE payloads.seq = items.seq);

-- name: complete
UPDATE items SET state = 'completed', finished = :now, error_type = NULL, error = NULL
WHERE id = :id AND state = 'claimed' AND (:token IS NULL OR token = :token)
RETURNING seq, pool, token, worker, started;

-- name: put_result
INSERT INTO results (seq, token, worker, started, ended, cost, result) VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: attempt
INSERT INTO attempts (seq, token, worker, started, ended, outcome, error_type, error, cost)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (seq, token) DO NOTHING;

-- name: claimed
SELECT seq, id, pool, token, worker, started, attempts, crashes, max_attempts, max_crashes FROM items
WHERE id = :id AND state = 'claimed' AND (:token IS NULL OR token = :token);

-- name: settle
UPDATE items SET state = ?, due = ?, attempts = ?, crashes = ?, error_type = ?, error = ?, finished = ?,
    worker = NULL, owner = NULL
WHERE seq = ?;

-- name: now_is
SELECT state, token, worker FROM items WHERE id = ?;

-- name: held
SELECT seq, id, pool, token, worker, started, attempts, crashes, max_attempts, max_crashes FROM items
WHERE state = 'claimed' AND (:pool IS NULL OR pool = :pool) AND (:worker IS NULL OR worker = :worker) AND (:owner IS NULL OR owner = :owner);

-- name: dead_ids
SELECT id FROM items WHERE pool = ? AND state = 'dead';

-- name: redrive
UPDATE items SET state = 'ready', attempts = 0, crashes = 0, due = 0, finished = NULL, error_type = NULL, error = NULL
WHERE id = ? AND pool = ? AND state = 'dead';

-- name: item
SELECT i.*, p.data, r.result AS result FROM items i JOIN payloads p USING (seq) LEFT JOIN results r USING (seq) WHERE i.id = ?;

-- name: item_seq
SELECT seq FROM items WHERE id = ?;

-- name: items
SELECT i.*, p.data, r.result AS result FROM items i JOIN payloads p USING (seq) LEFT JOIN results r USING (seq)
WHERE i.pool = :pool AND i.seq > :after AND (:state IS NULL OR i.state = :state) ORDER BY i.seq LIMIT :limit;

-- name: attempts
SELECT a.token, a.worker, a.started, a.ended, a.outcome, a.error_type, a.error, a.cost
FROM attempts a JOIN items i USING (seq) WHERE i.id = :id
UNION ALL SELECT r.token, r.worker, r.started, r.ended, 'completed', NULL, NULL, r.cost
FROM results r JOIN items i USING (seq) WHERE i.id = :id
ORDER BY 1;

-- name: counts
SELECT state, n FROM counters WHERE pool = :pool
UNION ALL SELECT 'due', COUNT(*) FROM items WHERE pool = :pool AND state = 'delayed' AND due <= :now
UNION ALL SELECT 'expired', COUNT(*) FROM items WHERE pool = :pool AND state = 'claimed' AND due <= :now;

-- name: count
INSERT INTO counters (pool, state, n) VALUES (?, ?, ?) ON CONFLICT (pool, state) DO UPDATE SET n = n + excluded.n;

-- name: next_due
SELECT MIN(due) FROM (
    SELECT MIN(due) AS due FROM items WHERE pool = :pool AND state = 'delayed'
    UNION ALL SELECT MIN(due) FROM items WHERE pool = :pool AND state = 'claimed');

-- name: pools
SELECT DISTINCT pool FROM counters ORDER BY pool;

-- name: errors
SELECT COALESCE(error_type, 'unknown'), COUNT(*) FROM items WHERE pool = ? AND state = 'dead' GROUP BY 1 ORDER BY 2 DESC;

-- name: renew
UPDATE items SET due = :until FROM json_each(:leases) AS lease
WHERE items.id = lease.key AND items.token = lease.value AND items.state = 'claimed' RETURNING items.id;

-- name: registration
SELECT status, started, owner, lease_until, heartbeat, metadata, follows FROM registrations WHERE id = ?;

-- name: put_worker
INSERT INTO workers (id, status, heartbeat, started, host, pid, capabilities, owner, lease_until, metadata)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET status = excluded.status, heartbeat = excluded.heartbeat, started = excluded.started,
    host = excluded.host, pid = excluded.pid, capabilities = excluded.capabilities, owner = excluded.owner,
    lease_until = excluded.lease_until, metadata = excluded.metadata, follows = 0;

-- name: drop_worker
DELETE FROM workers WHERE id = ?;

-- name: beat_worker
UPDATE workers SET heartbeat = :now, lease_until = :until, follows = 0
WHERE id = :worker AND owner = :owner AND status IN ('active', 'terminating');

-- name: live_workers
SELECT follows, status, json_group_array(id) FROM workers
WHERE follows IN (0, 1) AND owner = ? AND status IN ('active', 'terminating') GROUP BY follows, status;

-- name: follow
UPDATE workers SET follows = 1 WHERE id IN (SELECT value FROM json_each(?));

-- name: unfollow
UPDATE workers SET heartbeat = r.heartbeat, lease_until = r.lease_until, follows = 0, status = COALESCE(:status, r.status)
FROM json_each(:workers) AS told JOIN registrations r ON r.id = told.value WHERE workers.id = told.value;

-- name: beat_owner
INSERT INTO owners (owner, heartbeat, until, beat) VALUES (:owner, :now, :until, :beat)
ON CONFLICT (owner) DO UPDATE SET heartbeat = excluded.heartbeat, until = excluded.until, beat = excluded.beat;

-- name: beat_again
UPDATE owners SET heartbeat = :now, until = :until WHERE owner = :owner AND beat = :beat;

-- name: changed
UPDATE owners SET beat = NULL WHERE owner = ? AND beat IS NOT NULL;

-- name: forget_owner
DELETE FROM owners WHERE owner = ? AND NOT EXISTS (
    SELECT 1 FROM workers w WHERE w.follows = 1 AND w.owner = owners.owner AND w.status IN ('active', 'terminating'));

-- name: worker_statuses
SELECT id, status FROM workers WHERE owner = :owner AND id IN (SELECT value FROM json_each(:workers));

-- name: set_status
UPDATE workers SET status = ?, metadata = ?, heartbeat = ?, lease_until = ?, follows = ? WHERE id = ?;

-- name: workers
SELECT r.*, (SELECT i.id FROM items i WHERE i.state = 'claimed' AND i.worker = r.id LIMIT 1) AS item
FROM registrations r WHERE r.id = ?;

-- name: all_workers
SELECT r.*, i.id AS item FROM registrations r
LEFT JOIN (SELECT worker, MIN(id) AS id FROM items WHERE state = 'claimed' GROUP BY worker) i ON i.worker = r.id
ORDER BY r.seq;

-- name: owners
SELECT DISTINCT owner FROM items WHERE state = 'claimed' AND owner IS NOT NULL
UNION SELECT owner FROM workers WHERE status IN ('active', 'terminating')
UNION SELECT owner FROM locks;

-- name: workers_of
SELECT id, owner FROM workers WHERE follows IN (0, 1) AND owner = ? AND status IN ('active', 'terminating')
ORDER BY rowid;

-- name: expired_workers
SELECT id, owner FROM (
    SELECT rowid AS seq, id, owner FROM workers
    WHERE follows = 0 AND status IN ('active', 'terminating') AND lease_until <= :now
    UNION ALL SELECT rowid, id, owner FROM workers
    WHERE follows = 1 AND status IN ('active', 'terminating') AND owner IN (SELECT owner FROM owners WHERE until <= :now))
ORDER BY seq;

-- name: unlock_owner
DELETE FROM locks WHERE owner = ?;

-- name: put
INSERT INTO entries (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: get
SELECT value FROM entries WHERE key = ?;

-- name: drop
DELETE FROM entries WHERE key = ?;

-- name: fence
SELECT 1 FROM items WHERE id = ? AND state = 'claimed' AND token = ?;

-- name: save_snapshot
INSERT INTO snapshots (execution_id, name, body, event, channel, updated) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (execution_id) DO UPDATE SET name = excluded.name, body = excluded.body, event = excluded.event,
    channel = excluded.channel, updated = excluded.updated;

-- name: drop_tree
DELETE FROM snapshots WHERE execution_id = ? OR (execution_id >= ? AND execution_id < ?);

-- name: drop_range
DELETE FROM snapshots WHERE execution_id >= ? AND execution_id < ? AND execution_id <> ?;

-- name: load_snapshot
SELECT execution_id, name, body, event, channel, updated FROM snapshots WHERE execution_id = ?;

-- name: snapshot_event
SELECT event FROM snapshots WHERE execution_id = ?;

-- name: snapshots
SELECT execution_id, name, event, channel, updated FROM snapshots
WHERE (:event IS NULL OR event = :event) AND (:channel IS NULL OR channel = :channel) ORDER BY updated, rowid;

-- name: send
INSERT INTO signals (id, channel, data, created) VALUES (?, ?, ?, ?);

-- name: consume
DELETE FROM signals WHERE seq = (SELECT seq FROM signals WHERE channel = ? ORDER BY seq LIMIT 1)
RETURNING id, channel, data, created;

-- name: peek
SELECT id, channel, data, created FROM signals WHERE channel = ? ORDER BY seq;

-- name: channels
SELECT DISTINCT channel FROM signals ORDER BY channel;

-- name: lock
INSERT INTO locks (key, owner, until) VALUES (:key, :owner, :until)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until
WHERE locks.owner = excluded.owner OR locks.until <= :now;

-- name: beat_locks
UPDATE locks SET until = ? WHERE owner = ?;

-- name: unlock
DELETE FROM locks WHERE key = ? AND owner = ?;

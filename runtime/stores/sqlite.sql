-- All SQL of the SQLite store, in named blocks (`-- name: x`). Times are seconds since the epoch.
--
-- Payloads, results and attempts live beside `items`, so that a claim rewrites one short row whatever an item weighs.
-- The completed attempt stands with its result in `results`, all others in `attempts`; `walked` is a JSON list, if any.
-- `counters` holds the number of items per pool and state, and of those that wait per set of capabilities that they
-- require (its JSON stands for a state, and sorts before them all); every transaction that moves items moves it too.
-- A live worker that follows has its owner's heartbeat and lease (`owners`), so that a beat for thousands writes one row;
-- any other has its own. `registrations` says what holds. An owner stands in `owners` while somebody follows it; `beat`
-- names the beat since which its followers have not changed. `pool`, `size` (its parallelism) and `fresh` (it has not asked
-- for an item yet) are what a worker's metadata says, written with it, so that a fleet is counted in its index alone.
-- `ready_at` is since when an item waits, or will. `metrics` has a row for each second of the last hour (buckets.py).
-- `signals` are the messages that wait in a channel, `messages` those that were handed out: each stands once, and in
-- `inbox` once for each execution that has not acknowledged it.

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
    finished     REAL,
    ready_at     REAL    NOT NULL
);
CREATE INDEX items_ready ON items (pool, priority DESC, seq) WHERE state = 'ready' AND requires IS NULL;
CREATE INDEX items_needy ON items (pool, requires, priority DESC, seq) WHERE state = 'ready' AND requires IS NOT NULL;
CREATE INDEX items_delayed ON items (pool, due) WHERE state = 'delayed';
CREATE INDEX items_claimed ON items (pool, due, worker, id, state) WHERE state = 'claimed';
CREATE INDEX items_dead ON items (pool, seq) WHERE state = 'dead';
CREATE TABLE payloads (seq INTEGER PRIMARY KEY, data TEXT NOT NULL);
CREATE TABLE results (
    seq     INTEGER PRIMARY KEY,
    token   INTEGER NOT NULL,
    worker  TEXT    NOT NULL,
    started REAL    NOT NULL,
    ended   REAL    NOT NULL,
    cost    REAL    NOT NULL,
    walked  TEXT,
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
    walked     TEXT,
    PRIMARY KEY (seq, token)
) WITHOUT ROWID;
CREATE TABLE pauses (pool TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
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
    follows      INTEGER NOT NULL DEFAULT 0,
    pool         TEXT,
    size         INTEGER NOT NULL,
    fresh        INTEGER NOT NULL
);
CREATE INDEX workers_pool ON workers (pool, status, follows, owner, lease_until, size, fresh);
CREATE INDEX workers_live ON workers (follows, owner, status, id) WHERE status IN ('active', 'terminating');
CREATE TABLE owners (owner TEXT PRIMARY KEY, heartbeat REAL NOT NULL, until REAL NOT NULL, beat TEXT) WITHOUT ROWID;
CREATE VIEW registrations AS
    SELECT w.rowid AS seq, w.id, w.status, w.started, w.host, w.pid, w.capabilities, w.owner, w.metadata, w.follows,
        w.pool, COALESCE(o.heartbeat, w.heartbeat) AS heartbeat, COALESCE(o.until, w.lease_until) AS lease_until
    FROM workers w LEFT JOIN owners o ON w.follows AND o.owner = w.owner;
CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT NOT NULL, updated REAL NOT NULL);
CREATE TABLE snapshots (
    execution_id TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    event        TEXT,
    channel      TEXT,
    updated      REAL NOT NULL,
    body         BLOB NOT NULL
);
CREATE INDEX snapshots_parked ON snapshots (channel, execution_id, updated, event) WHERE event = 'waiting';
CREATE INDEX snapshots_woken ON snapshots (channel, execution_id) WHERE event = 'woken';
CREATE TABLE signals (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT NOT NULL,
    channel TEXT NOT NULL,
    data    TEXT NOT NULL,
    created REAL NOT NULL
);
CREATE INDEX signals_channel ON signals (channel, seq);
CREATE TABLE messages (
    seq     INTEGER PRIMARY KEY,
    id      TEXT NOT NULL UNIQUE,
    channel TEXT NOT NULL,
    data    TEXT NOT NULL,
    created REAL NOT NULL
);
CREATE TABLE inbox (
    execution_id TEXT    NOT NULL,
    channel      TEXT    NOT NULL,
    seq          INTEGER NOT NULL,
    PRIMARY KEY (execution_id, channel, seq)
) WITHOUT ROWID;
CREATE INDEX inbox_seq ON inbox (seq);
CREATE TABLE locks (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL);
CREATE TABLE decisions (seq INTEGER PRIMARY KEY, fleet TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, UNIQUE (fleet, id));
CREATE INDEX decisions_fleet ON decisions (fleet, seq);
CREATE TABLE targets (fleet TEXT PRIMARY KEY, target INTEGER NOT NULL);
CREATE TABLE metrics (pool TEXT NOT NULL, at INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (pool, at)) WITHOUT ROWID;

-- name: push
INSERT INTO items (id, pool, key, state, priority, due, max_attempts, max_crashes, requires, created, ready_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING;

-- name: push_payload
INSERT INTO payloads (seq, data) VALUES (?, ?);

-- name: wake_delayed
UPDATE items SET state = 'ready' WHERE pool = ? AND state = 'delayed' AND due <= ?;

-- name: expired
SELECT seq, id, pool, token, worker, started, attempts, crashes, max_attempts, max_crashes, requires FROM items
WHERE pool = ? AND state = 'claimed' AND due <= ? LIMIT 500;

-- name: claim
UPDATE items SET state = 'claimed', token = token + 1, worker = :worker, owner = :owner, due = :until, started = :now
WHERE seq IN (
    SELECT seq FROM items WHERE pool = :pool AND state = 'ready' AND requires IS NULL
      AND (crashes < :suspect OR seq = (
            SELECT seq FROM items WHERE pool = :pool AND state = 'ready' AND requires IS NULL AND crashes >= :suspect
              AND NOT EXISTS (
                    SELECT 1 FROM items WHERE state = 'claimed' AND owner = :owner AND crashes >= :suspect)
            ORDER BY priority DESC, seq LIMIT 1))
    ORDER BY priority DESC, seq LIMIT :n)
RETURNING seq, id, key, token, attempts, crashes, max_attempts, created, priority,
    (SELECT data FROM payloads WHERE payloads.seq = items.seq), ready_at, requires;

-- name: claim_these
UPDATE items SET state = 'claimed', token = token + 1, worker = :worker, owner = :owner, due = :until, started = :now
WHERE seq IN (SELECT value FROM json_each(:seqs))
RETURNING seq, id, key, token, attempts, crashes, max_attempts, created, priority,
    (SELECT data FROM payloads WHERE payloads.seq = items.seq), ready_at, requires;

-- name: ready_needs
WITH RECURSIVE needs (requires) AS (
    SELECT MIN(requires) FROM items WHERE pool = :pool AND state = 'ready' AND requires IS NOT NULL
    UNION ALL SELECT (SELECT MIN(requires) FROM items
        WHERE pool = :pool AND state = 'ready' AND requires IS NOT NULL AND requires > needs.requires)
    FROM needs WHERE needs.requires IS NOT NULL)
SELECT requires FROM needs WHERE requires IS NOT NULL;

-- name: plain_line
SELECT -priority, seq, crashes FROM items WHERE pool = ? AND state = 'ready' AND requires IS NULL ORDER BY priority DESC, seq;

-- name: needy_line
SELECT -priority, seq, crashes FROM items WHERE pool = ? AND state = 'ready' AND requires = ? AND requires IS NOT NULL
ORDER BY priority DESC, seq;

-- name: holds_suspect
SELECT EXISTS (SELECT 1 FROM items WHERE state = 'claimed' AND owner = ? AND crashes >= ?);

-- name: complete
UPDATE items SET state = 'completed', finished = :now, error_type = NULL, error = NULL
WHERE id = :id AND state = 'claimed' AND (:token IS NULL OR token = :token)
RETURNING seq, pool, token, worker, started, created;

-- name: put_result
INSERT INTO results (seq, token, worker, started, ended, cost, walked, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: attempt
INSERT INTO attempts (seq, token, worker, started, ended, outcome, error_type, error, cost, walked)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (seq, token) DO NOTHING;

-- name: claimed
SELECT seq, id, pool, token, worker, started, attempts, crashes, max_attempts, max_crashes, requires FROM items
WHERE id = :id AND state = 'claimed' AND (:token IS NULL OR token = :token);

-- name: settle
UPDATE items SET state = ?, due = ?, attempts = ?, crashes = ?, error_type = ?, error = ?, finished = ?,
    ready_at = ?, worker = NULL, owner = NULL
WHERE seq = ?;

-- name: now_is
SELECT state, token, worker FROM items WHERE id = ?;

-- name: held
SELECT seq, id, pool, token, worker, started, attempts, crashes, max_attempts, max_crashes, requires FROM items
WHERE state = 'claimed' AND (:pool IS NULL OR pool = :pool) AND (:worker IS NULL OR worker = :worker) AND (:owner IS NULL OR owner = :owner);

-- name: held_up_to
SELECT COUNT(*) FROM (SELECT 1 FROM items WHERE pool = ? AND state = 'claimed' LIMIT ?);

-- name: cancellable
SELECT seq, id, pool, token, worker, started, attempts, crashes, max_attempts, max_crashes, requires, state FROM items
WHERE id = ? AND pool = ? AND state IN ('ready', 'delayed', 'claimed');

-- name: pause
INSERT INTO pauses (pool, until) VALUES (?, ?) ON CONFLICT (pool) DO UPDATE SET until = excluded.until;

-- name: resume
DELETE FROM pauses WHERE pool = ?;

-- name: paused
SELECT until FROM pauses WHERE pool = ? AND until > ?;

-- name: dead_ids
SELECT id FROM items WHERE pool = ? AND state = 'dead';

-- name: redrive
UPDATE items SET state = 'ready', attempts = 0, crashes = 0, due = 0, finished = NULL, error_type = NULL, error = NULL, ready_at = ?
WHERE id = ? AND pool = ? AND state = 'dead' RETURNING requires;

-- name: item
SELECT i.*, p.data, r.result AS result FROM items i JOIN payloads p USING (seq) LEFT JOIN results r USING (seq) WHERE i.id = ?;

-- name: item_seq
SELECT seq FROM items WHERE id = ?;

-- name: items
SELECT i.*, p.data, r.result AS result FROM items i JOIN payloads p USING (seq) LEFT JOIN results r USING (seq)
WHERE i.pool = :pool AND i.seq > :after AND (:state IS NULL OR i.state = :state) ORDER BY i.seq LIMIT :limit;

-- name: attempts
SELECT a.token, a.worker, a.started, a.ended, a.outcome, a.error_type, a.error, a.cost, a.walked
FROM attempts a JOIN items i USING (seq) WHERE i.id = :id
UNION ALL SELECT r.token, r.worker, r.started, r.ended, 'completed', NULL, NULL, r.cost, r.walked
FROM results r JOIN items i USING (seq) WHERE i.id = :id
ORDER BY 1;

-- name: counts
SELECT state, n FROM counters WHERE pool = :pool AND state > 'a'
UNION ALL SELECT 'due', COUNT(*) FROM items WHERE pool = :pool AND state = 'delayed' AND due <= :now
UNION ALL SELECT 'expired', COUNT(*) FROM items WHERE pool = :pool AND state = 'claimed' AND due <= :now;

-- name: count
INSERT INTO counters (pool, state, n) VALUES (?, ?, ?) ON CONFLICT (pool, state) DO UPDATE SET n = n + excluded.n;

-- name: requirements
SELECT state, n FROM counters WHERE pool = ? AND state < 'a' AND n > 0 ORDER BY state;

-- name: forget_requirements
DELETE FROM counters WHERE state < 'a' AND n = 0;

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
INSERT INTO workers (id, status, heartbeat, started, host, pid, capabilities, owner, lease_until, metadata, pool, size, fresh)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET status = excluded.status, heartbeat = excluded.heartbeat, started = excluded.started,
    host = excluded.host, pid = excluded.pid, capabilities = excluded.capabilities, owner = excluded.owner,
    lease_until = excluded.lease_until, metadata = excluded.metadata, pool = excluded.pool, size = excluded.size,
    fresh = excluded.fresh, follows = 0;

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
UPDATE workers SET status = ?, heartbeat = ?, lease_until = ?, follows = ?, metadata = ?, pool = ?, size = ?, fresh = ?
WHERE id = ?;

-- name: worker
SELECT *, (SELECT id FROM items WHERE state = 'claimed' AND worker = r.id LIMIT 1) AS item FROM registrations r WHERE id = ?;

-- name: workers
SELECT *, NULL AS item FROM registrations ORDER BY seq;

-- name: workers_of_status
SELECT *, NULL AS item FROM registrations WHERE status IN (SELECT value FROM json_each(:statuses)) ORDER BY seq;

-- name: workers_of_pool
SELECT *, NULL AS item FROM registrations WHERE pool = :pool ORDER BY seq;

-- name: workers_of_pool_and_status
SELECT *, NULL AS item FROM registrations
WHERE pool = :pool AND status IN (SELECT value FROM json_each(:statuses)) ORDER BY seq;

-- name: items_held
SELECT worker, id FROM items WHERE state = 'claimed';

-- name: draining
SELECT id, json_extract(metadata, '$.drain_until') FROM workers
WHERE follows IN (0, 1) AND owner = ? AND status IN ('active', 'terminating') AND status = 'terminating';

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
INSERT INTO entries (key, value, updated) VALUES (?, ?, ?)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated = excluded.updated;

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

-- name: any_inbox
SELECT 1 FROM inbox LIMIT 1;

-- name: drop_inboxes
DELETE FROM inbox WHERE execution_id = ? OR (execution_id >= ? AND execution_id < ?) RETURNING seq;

-- name: drop_inbox_range
DELETE FROM inbox WHERE execution_id >= ? AND execution_id < ? AND execution_id <> ? RETURNING seq;

-- name: acknowledge
DELETE FROM inbox WHERE execution_id = :execution AND (channel, seq) IN (
    SELECT channel, seq FROM messages WHERE id IN (SELECT value FROM json_each(:ids)))
RETURNING seq;

-- name: forget_messages
DELETE FROM messages WHERE seq IN (SELECT value FROM json_each(?))
    AND NOT EXISTS (SELECT 1 FROM inbox WHERE inbox.seq = messages.seq);

-- name: load_snapshot
SELECT execution_id, name, body, event, channel, updated FROM snapshots WHERE execution_id = ?;

-- name: snapshot_event
SELECT event FROM snapshots WHERE execution_id = ?;

-- name: snapshots
SELECT execution_id, name, event, channel, updated FROM snapshots
WHERE (:event IS NULL OR event = :event) AND (:channel IS NULL OR channel = :channel) ORDER BY updated, rowid;

-- name: snapshots_waiting
SELECT execution_id, name, event, channel, updated FROM snapshots
WHERE event = 'waiting' AND (:channel IS NULL OR channel = :channel) ORDER BY updated, rowid;

-- name: snapshots_woken
SELECT execution_id, name, event, channel, updated FROM snapshots
WHERE event = 'woken' AND (:channel IS NULL OR channel = :channel) ORDER BY updated, rowid;

-- name: send
INSERT INTO signals (id, channel, data, created) VALUES (?, ?, ?, ?);

-- name: consume
DELETE FROM signals WHERE seq = (SELECT seq FROM signals WHERE channel = ? ORDER BY seq LIMIT 1)
RETURNING id, channel, data, created;

-- name: peek
SELECT id, channel, data, created FROM signals WHERE channel = ? ORDER BY seq;

-- name: channels
SELECT DISTINCT channel FROM signals ORDER BY channel;

-- name: oldest
SELECT m.id, m.channel, m.data, m.created FROM inbox i JOIN messages m USING (seq)
WHERE i.execution_id = :execution AND i.channel = :channel AND m.id NOT IN (SELECT value FROM json_each(:skip))
ORDER BY i.seq LIMIT 1;

-- name: has_messages
SELECT 1 FROM signals WHERE channel = ? LIMIT 1;

-- name: hand_out
WITH oldest (seq) AS (SELECT MIN(seq) FROM signals WHERE channel = :channel)
INSERT INTO inbox (execution_id, channel, seq)
SELECT execution_id, channel, seq FROM snapshots, oldest WHERE event = 'waiting' AND channel = :channel
UNION SELECT execution_id, channel, seq FROM snapshots, oldest WHERE event = 'woken' AND channel = :channel
UNION SELECT :execution, :channel, seq FROM oldest WHERE :execution IS NOT NULL;

-- name: keep_message
INSERT INTO messages SELECT seq, id, channel, data, created FROM signals WHERE channel = ? ORDER BY seq LIMIT 1;

-- name: leave_channel
DELETE FROM signals WHERE seq = (SELECT MIN(seq) FROM signals WHERE channel = ?);

-- name: due_channels
WITH RECURSIVE pending (channel) AS (
    SELECT MIN(channel) FROM signals
    UNION ALL SELECT (SELECT MIN(channel) FROM signals WHERE channel > pending.channel) FROM pending
    WHERE pending.channel IS NOT NULL)
SELECT channel FROM pending WHERE channel IS NOT NULL AND EXISTS (
    SELECT 1 FROM snapshots s WHERE s.event = 'waiting' AND s.channel = pending.channel AND NOT EXISTS (
        SELECT 1 FROM inbox i WHERE i.execution_id = s.execution_id AND i.channel = s.channel));

-- name: woken
SELECT s.execution_id FROM (SELECT DISTINCT execution_id, channel FROM inbox) i
CROSS JOIN snapshots s ON s.event = 'waiting' AND s.channel = i.channel AND s.execution_id = i.execution_id
WHERE i.execution_id NOT IN (SELECT value FROM json_each(:skip)) ORDER BY s.updated, s.rowid LIMIT :n;

-- name: lock
INSERT INTO locks (key, owner, until) VALUES (:key, :owner, :until)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until
WHERE locks.owner = excluded.owner OR locks.until <= :now;

-- name: beat_locks
UPDATE locks SET until = ? WHERE owner = ?;

-- name: unlock
DELETE FROM locks WHERE key = ? AND owner = ?;

-- name: locks
SELECT key, owner, until FROM locks WHERE key >= ? AND key < ? AND until > ? ORDER BY key;

-- name: decide
INSERT INTO decisions (fleet, id, body) VALUES (?, ?, ?) ON CONFLICT (fleet, id) DO UPDATE SET body = excluded.body;

-- name: trim_decisions
DELETE FROM decisions WHERE fleet = :fleet AND seq <= (
    SELECT seq FROM decisions WHERE fleet = :fleet ORDER BY seq DESC LIMIT 1 OFFSET :keep);

-- name: decisions
SELECT body FROM decisions WHERE fleet = ? ORDER BY seq DESC LIMIT ?;

-- name: decision
SELECT body FROM decisions WHERE fleet = ? AND id = ?;

-- name: target
SELECT target FROM targets WHERE fleet = ?;

-- name: set_target
INSERT INTO targets (fleet, target) VALUES (?, ?) ON CONFLICT (fleet) DO UPDATE SET target = excluded.target;

-- name: forget_target
DELETE FROM targets WHERE fleet = ?;

-- name: fleets
SELECT fleet FROM targets UNION SELECT fleet FROM decisions WHERE fleet NOT GLOB '*/autoscaler' ORDER BY fleet;

-- name: last_bucket
SELECT at, body FROM metrics WHERE pool = ? ORDER BY at DESC LIMIT 1;

-- name: put_bucket
INSERT INTO metrics (pool, at, body) VALUES (?, ?, ?) ON CONFLICT (pool, at) DO UPDATE SET body = excluded.body;

-- name: trim_buckets
DELETE FROM metrics WHERE pool = ? AND at < ?;

-- name: buckets
SELECT at, body FROM metrics WHERE pool = ? AND at >= ? ORDER BY at DESC LIMIT ?;

-- name: first_ask
UPDATE workers SET metadata = json_set(metadata, '$.asked', :now), fresh = 0
WHERE id = :worker AND fresh AND status IN ('active', 'terminating')
RETURNING COALESCE((julianday(started) - 2440587.5) * 86400.0, :now);

-- name: oldest_wait
WITH RECURSIVE lines (priority) AS (
    SELECT MAX(priority) FROM items WHERE pool = :pool AND state = 'ready' AND requires IS NULL
    UNION ALL SELECT (SELECT MAX(priority) FROM items
        WHERE pool = :pool AND state = 'ready' AND requires IS NULL AND priority < lines.priority)
    FROM lines WHERE lines.priority IS NOT NULL LIMIT 16),
needs (requires) AS (
    SELECT MIN(requires) FROM items WHERE pool = :pool AND state = 'ready' AND requires IS NOT NULL
    UNION ALL SELECT (SELECT MIN(requires) FROM items
        WHERE pool = :pool AND state = 'ready' AND requires IS NOT NULL AND requires > needs.requires)
    FROM needs WHERE needs.requires IS NOT NULL LIMIT 16)
SELECT MIN(since) FROM (
    SELECT (SELECT MIN(ready_at) FROM (
        SELECT ready_at FROM items WHERE pool = :pool AND state = 'ready' AND requires IS NULL AND priority = lines.priority
        ORDER BY seq LIMIT 10)) AS since
    FROM lines WHERE lines.priority IS NOT NULL
    UNION ALL SELECT (SELECT MIN(ready_at) FROM (
        SELECT ready_at FROM items WHERE pool = :pool AND state = 'ready' AND requires = needs.requires AND requires IS NOT NULL
        ORDER BY priority DESC, seq LIMIT 10))
    FROM needs WHERE needs.requires IS NOT NULL
    UNION ALL SELECT MIN(due) FROM items WHERE pool = :pool AND state = 'delayed' AND due <= :now
    UNION ALL SELECT MIN(due) FROM items WHERE pool = :pool AND state = 'claimed' AND due <= :now);

-- name: crew
SELECT owner, status, SUM(size), SUM(size * fresh) FROM workers
WHERE pool = :pool AND status IN ('active', 'terminating') AND follows = 1
GROUP BY status, owner HAVING owner IN (SELECT owner FROM owners WHERE until >= :now)
UNION ALL SELECT owner, status, SUM(size), SUM(size * fresh) FROM workers
WHERE pool = :pool AND status IN ('active', 'terminating') AND follows = 0 AND lease_until >= :now
GROUP BY status, owner;

-- name: ended_workers
SELECT id FROM workers WHERE id > :after AND status IN ('terminated', 'lost') AND heartbeat < :before
  AND id NOT IN (SELECT worker FROM items WHERE state = 'claimed' AND worker IS NOT NULL) ORDER BY id LIMIT :n;

-- name: drop_ended
DELETE FROM workers WHERE id IN (SELECT value FROM json_each(:ids)) AND status IN ('terminated', 'lost') AND heartbeat < :before
  AND id NOT IN (SELECT worker FROM items WHERE state = 'claimed' AND worker IS NOT NULL) RETURNING id;

-- name: drop_results
DELETE FROM entries WHERE key IN (SELECT value || '/result' FROM json_each(?));

-- name: old_snapshots
SELECT execution_id, event FROM snapshots s WHERE execution_id > :after AND updated < :before
  AND NOT EXISTS (SELECT 1 FROM locks WHERE key = s.execution_id AND until > :now)
  AND NOT EXISTS (SELECT 1 FROM inbox i JOIN messages m USING (seq) WHERE i.execution_id = s.execution_id AND m.created >= :before)
ORDER BY execution_id LIMIT :n;

-- name: old_snapshot
SELECT event FROM snapshots s WHERE execution_id = :id AND updated < :before
  AND NOT EXISTS (SELECT 1 FROM locks WHERE key = s.execution_id AND until > :now)
  AND NOT EXISTS (SELECT 1 FROM inbox i JOIN messages m USING (seq) WHERE i.execution_id = s.execution_id AND m.created >= :before);

-- name: lone_inboxes
SELECT execution_id FROM inbox i JOIN messages m USING (seq)
WHERE execution_id > :after AND execution_id NOT IN (SELECT execution_id FROM snapshots)
  AND NOT EXISTS (SELECT 1 FROM locks WHERE key = i.execution_id AND until > :now)
GROUP BY execution_id HAVING MAX(m.created) < :before ORDER BY execution_id LIMIT :n;

-- name: lone_inbox
SELECT 1 FROM inbox i JOIN messages m USING (seq)
WHERE execution_id = :id AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.execution_id = i.execution_id)
  AND NOT EXISTS (SELECT 1 FROM locks WHERE key = i.execution_id AND until > :now)
GROUP BY execution_id HAVING MAX(m.created) < :before;

-- name: drop_snapshot
DELETE FROM snapshots WHERE execution_id = ?;

-- name: drop_inbox
DELETE FROM inbox WHERE execution_id = ? RETURNING seq;

-- name: full_fleets
SELECT fleet FROM decisions WHERE fleet > :after GROUP BY fleet HAVING COUNT(*) > :kept ORDER BY fleet LIMIT 1;

-- name: drop_decisions
DELETE FROM decisions WHERE fleet = :fleet AND json_extract(body, '$.at') < :before AND seq <= (
    SELECT seq FROM decisions WHERE fleet = :fleet ORDER BY seq DESC LIMIT 1 OFFSET :kept);

-- name: attempted
SELECT a.seq, COUNT(*) FROM attempts a JOIN items i USING (seq)
WHERE a.seq > :after AND i.state = 'completed' AND i.finished < :before
GROUP BY a.seq HAVING COUNT(*) >= :kept ORDER BY a.seq;

-- name: drop_attempts
DELETE FROM attempts WHERE seq = :seq AND token <= (
    SELECT token FROM attempts WHERE seq = :seq ORDER BY token DESC LIMIT 1 OFFSET :kept - 1);

-- name: old_configs
SELECT key FROM entries WHERE key >= 'config:' AND key < 'config;' AND updated < ?;

-- name: configs_in_use
SELECT DISTINCT json_extract(body, '$.config_hash') FROM (SELECT CAST(body AS TEXT) AS body FROM snapshots) WHERE json_valid(body);

-- name: drop_configs
DELETE FROM entries WHERE key IN (SELECT value FROM json_each(:keys)) AND updated < :before;

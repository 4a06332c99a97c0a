-- Schema 1. What a person with only the sqlite3 shell needs to know stands inside the statements:
-- `.schema` prints it. Never edit a released migration (its checksum is kept in the database); add
-- the next number.

CREATE TABLE meta (
  -- Facts about this database: which migrations made it, how far the housekeeping has come.
  key   TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE session (
  -- One conversation partner of one agent. A session is never removed, so max(seq) counts them.
  -- Times are milliseconds since 1970 UTC; to print one: datetime(created_at_ms/1000, 'unixepoch')
  seq              INTEGER PRIMARY KEY, -- order of creation
  id               TEXT NOT NULL UNIQUE, -- AGENT/KEY
  agent            TEXT NOT NULL, -- the part of id before the slash
  subject          TEXT NOT NULL, -- whom it belongs to
  created_at_ms    INTEGER NOT NULL,
  phase            TEXT NOT NULL, -- asleep, starting, awake, draining, stopping, backoff
  generation       INTEGER NOT NULL, -- number of the newest start; 0 before the first
  failures         INTEGER NOT NULL, -- failed lives in a row
  backoff_until_ms INTEGER, -- the next start is not due before this
  stop             TEXT, -- why the live instance is being stopped
  wake_wanted      INTEGER NOT NULL, -- 1: an operator wants it awake although no message waits
  start_took_ms    INTEGER, -- how long the last successful start took
  last_failure     TEXT -- cause of the newest of the failures
) STRICT;
CREATE INDEX session_by_subject ON session (subject);
CREATE INDEX session_by_agent ON session (agent);
CREATE INDEX session_not_asleep ON session (phase) WHERE phase <> 'asleep';
CREATE INDEX session_wake_wanted ON session (wake_wanted) WHERE wake_wanted <> 0;

CREATE TABLE message (
  -- One accepted message and where it stands. Rows are small; the long texts are in message_text
  -- and message_reply, so that a change of state does not rewrite them. Rows are never removed.
  seq                INTEGER PRIMARY KEY, -- order of acceptance
  id                 TEXT NOT NULL UNIQUE, -- msg_ and 32 hexadecimal digits; ascends with seq
  session            TEXT NOT NULL REFERENCES session (id) DEFERRABLE INITIALLY DEFERRED,
  subject            TEXT NOT NULL, -- who sent it
  state              TEXT NOT NULL, -- pending, leased; and for ever: answered, dead, cancelled
  bytes              INTEGER NOT NULL, -- length of the text
  accepted_at_ms     INTEGER NOT NULL,
  attempts           INTEGER NOT NULL, -- deliveries so far
  excused            INTEGER NOT NULL, -- those of them that are not held against the message
  leased_generation  INTEGER, -- the instance that has it, while leased
  leased_at_ms       INTEGER, -- start of the newest attempt
  not_before_ms      INTEGER, -- no new attempt before this
  ended_at_ms        INTEGER, -- set with the last state
  cause              TEXT, -- dead: the cause's code
  detail             TEXT, -- dead: what happened, in words
  exit_code          INTEGER, -- of agents that are one process per turn
  ended_by           TEXT, -- cancelled: who did; dead: who took it off the list
  dropped_at_ms      INTEGER, -- dead: since when it is off the list of dead letters
  redriven_as        TEXT, -- dead: the message that tried it anew
  redrive_of         TEXT, -- the dead letter that this one tries anew
  idempotency_key    TEXT, -- the sender's, by which a repeat is known for a day
  idempotency_digest TEXT -- SHA-256 of what came with the key
) STRICT;
-- In the order of acceptance and not of sessions, so that accepting appends to it: an index by
-- session would dirty one page per message. Finding one session's messages reads the entries of all
-- unended ones; the third column, always NULL, lets SQLite see that it need not read the rows.
CREATE INDEX message_unended ON message (seq, session, ended_at_ms) WHERE ended_at_ms IS NULL;
CREATE INDEX message_dead ON message (seq) WHERE state = 'dead';

CREATE TABLE message_text (
  -- What the sender wrote. seq is that of message.
  seq  INTEGER PRIMARY KEY,
  text TEXT NOT NULL
) STRICT;

CREATE TABLE message_reply (
  -- What the agent answered. seq is that of message.
  seq  INTEGER PRIMARY KEY,
  text TEXT NOT NULL
) STRICT;

CREATE TABLE idempotency (
  -- Where keys were used: the first eight bytes of SHA-256(subject, 0, key), and the message. One
  -- run per some ten thousand messages, each written once and in order; an index over all keys
  -- would dirty one page per message. The newest messages have no run yet: their keys are read
  -- from message at the start.
  run  INTEGER NOT NULL, -- the seq of its last message
  hash INTEGER NOT NULL,
  seq  INTEGER NOT NULL,
  PRIMARY KEY (run, hash, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE idempotency_run (
  -- The runs that are complete and not yet forgotten.
  run          INTEGER PRIMARY KEY,
  newest_at_ms INTEGER NOT NULL -- the youngest of its messages
) STRICT;
INSERT INTO meta VALUES ('idempotency_indexed_to_seq', '0');

CREATE TABLE tally (
  -- Messages by state, kept by the same transactions that change them.
  state    TEXT PRIMARY KEY,
  messages INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO tally
VALUES ('pending', 0), ('leased', 0), ('answered', 0), ('dead', 0), ('cancelled', 0);

CREATE TABLE journal (
  -- Every decision: what happened, from which phase to which, because of what. The newest 1000 of
  -- each session are kept.
  session    TEXT NOT NULL,
  n          INTEGER NOT NULL, -- 1, 2, 3 … in each session
  at_ms      INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  from_phase TEXT NOT NULL,
  to_phase   TEXT NOT NULL,
  because    TEXT NOT NULL, -- JSON
  PRIMARY KEY (session, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE exit (
  -- How instances ended. The newest 100 generations of each session are kept.
  seq               INTEGER PRIMARY KEY,
  session           TEXT NOT NULL,
  generation        INTEGER NOT NULL,
  at_ms             INTEGER NOT NULL,
  phase             TEXT NOT NULL, -- in which it ended
  cause             TEXT, -- NULL: it ended as it was asked to
  message_in_flight TEXT,
  evidence          TEXT NOT NULL, -- JSON: status, signal, memory, the log's tail
  UNIQUE (session, generation)
) STRICT;

CREATE TABLE api_key (
  -- Who may call. The key itself is not kept, only its digest.
  id            TEXT PRIMARY KEY,
  name          TEXT NOT NULL,
  hash          TEXT NOT NULL UNIQUE, -- SHA-256 of the key, hexadecimal
  subject       TEXT NOT NULL,
  scopes        TEXT NOT NULL, -- separated by spaces
  created_at_ms INTEGER NOT NULL,
  revoked_at_ms INTEGER
) STRICT, WITHOUT ROWID;

CREATE VIEW message_readable AS
  -- For people with the sqlite3 shell: SELECT * FROM message_readable ORDER BY id DESC LIMIT 10;
  SELECT m.id, m.session, m.subject, m.state, m.attempts,
         datetime(m.accepted_at_ms / 1000, 'unixepoch') AS accepted_at,
         datetime(m.ended_at_ms / 1000, 'unixepoch') AS ended_at,
         m.cause, m.detail, t.text, r.text AS reply
  FROM message m
  JOIN message_text t ON t.seq = m.seq
  LEFT JOIN message_reply r ON r.seq = m.seq;

CREATE VIEW journal_readable AS
  -- For people: SELECT * FROM journal_readable WHERE session = 'python/main' ORDER BY n DESC;
  SELECT session, n, datetime(at_ms / 1000, 'unixepoch') AS at, generation,
         from_phase || ' > ' || to_phase AS phases, because
  FROM journal;

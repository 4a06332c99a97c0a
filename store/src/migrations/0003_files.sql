-- Schema 3: the files of sessions. Their bytes are in the store of blobs, under their SHA-256.

ALTER TABLE session ADD COLUMN files TEXT; -- JSON: where its files stand; NULL: it never had any

CREATE TABLE upload (
  -- What somebody put into a session's workspace, or took out of it, and no checkpoint has yet.
  session TEXT NOT NULL,
  number  INTEGER NOT NULL, -- 1, 2, 3 … in each session
  path    TEXT NOT NULL,
  file    TEXT, -- JSON: size, SHA-256, mode; NULL: deleted
  at_ms   INTEGER NOT NULL,
  by      TEXT NOT NULL,
  PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE checkpoint (
  -- Workspaces as they were. The newest of each session are kept; the list of the files of one is
  -- a blob, under its manifest's digest.
  session    TEXT NOT NULL,
  number     INTEGER NOT NULL, -- 1, 2, 3 … in each session
  manifest   TEXT NOT NULL,
  uploads    INTEGER NOT NULL, -- the number of the newest upload that is in it
  files      INTEGER NOT NULL,
  bytes      INTEGER NOT NULL,
  at_ms      INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  turn       TEXT, -- the turn after which it was taken, if it was
  PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;

-- Schema 4: the configs that were in force, and the revisions of agents.

ALTER TABLE session ADD COLUMN revision INTEGER; -- what its newest start got; NULL: none was counted then

CREATE TABLE config (
  -- Every config that was in force, as it was written. The newest 100 are kept.
  number INTEGER PRIMARY KEY, -- 1, 2, 3 …
  at_ms  INTEGER NOT NULL,
  by     TEXT NOT NULL, -- who applied it
  text   TEXT NOT NULL
) STRICT;

CREATE TABLE agent_revision (
  -- What starts of an agent got of its settings. Never changed; the same settings again are the
  -- same revision.
  agent    TEXT NOT NULL,
  number   INTEGER NOT NULL, -- 1, 2, 3 … in each agent
  digest   TEXT NOT NULL, -- SHA-256 of the settings, hexadecimal
  settings TEXT NOT NULL, -- JSON
  at_ms    INTEGER NOT NULL,
  PRIMARY KEY (agent, number),
  UNIQUE (agent, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE rollout (
  -- Which revision of an agent is wanted, which is good, and how far the wanted one is.
  agent TEXT PRIMARY KEY,
  state TEXT NOT NULL -- JSON
) STRICT, WITHOUT ROWID;

//! Housekeeping that the clock asks for: forgetting idempotency keys.
//!
//! Owner: the engine calls `Store::prune` now and then. Invariants: a key is remembered for at
//! least the window, counted from its message's acceptance; one call looks at a bounded number of
//! rows. Messages, replies and dead letters are kept for ever in this version; journal and exits
//! are bounded where they are written (`apply`).
//! Absent: deleting anything.

use dormouse_core::limits::IDEMPOTENCY_WINDOW;
use dormouse_core::time::{Wall, millis};
use rusqlite::{Connection, params};

use crate::error::{ApplyError, CommitError, ReadError};
use crate::rows::integer;
use crate::writer::{Batch, Store};

/// Messages that one call looks at. Some milliseconds, and one commit.
const ROWS_PER_CALL: i64 = 2_000;

/// What one call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    pub keys_forgotten: usize,
    /// Nothing more is old enough now; else the next call goes on.
    pub is_finished: bool,
}

/// Why a call did not do its work; the same meanings as in a batch.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    #[error("old idempotency keys could not be looked up")]
    Read { source: ReadError },
    #[error("old idempotency keys could not be forgotten")]
    Apply { source: ApplyError },
    #[error("old idempotency keys could not be forgotten")]
    Commit { source: CommitError },
}

impl PruneError {
    /// No room on the disk: nothing was changed, and the store can go on. Anything else is fatal.
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            PruneError::Apply { source: ApplyError::Full { .. } }
                | PruneError::Commit { source: CommitError::Full { .. } }
        )
    }
}

impl Store {
    /// Forgets idempotency keys that are older than the window, some per call. After a jump of the
    /// wall clock keys may be forgotten late, or as early as the clock says.
    pub fn prune(&mut self, now: Wall) -> Result<Pruned, PruneError> {
        let window_ms = millis(IDEMPOTENCY_WINDOW);
        let accepted_before = integer(now.0.saturating_sub(window_ms));
        let after = self.forgotten_to_seq;
        let (old_to, is_finished) = self
            .read(|connection| oldest_run(connection, after, accepted_before))
            .map_err(|source| PruneError::Read { source })?;
        let Some(old_to) = old_to else {
            return Ok(Pruned { keys_forgotten: 0, is_finished });
        };
        let mut batch = self.batch();
        let keys_forgotten =
            batch.forget(after, old_to).map_err(|source| PruneError::Apply { source })?;
        batch.commit().map_err(|source| PruneError::Commit { source })?;
        self.forgotten_to_seq = old_to;
        Ok(Pruned { keys_forgotten, is_finished })
    }
}

/// The last of the leading messages after `after` that are all old enough, and whether a younger
/// one, or the end, follows.
fn oldest_run(
    connection: &Connection,
    after: i64,
    accepted_before: i64,
) -> Result<(Option<i64>, bool), ReadError> {
    const SQL: &str = "\
        SELECT seq, accepted_at_ms FROM message WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    let mut statement = connection.prepare_cached(SQL)?;
    let mut rows = statement.query([after, ROWS_PER_CALL])?;
    let mut old_to = None;
    let mut looked_at = 0;
    while let Some(row) = rows.next()? {
        let (seq, accepted_at): (i64, i64) = (row.get(0)?, row.get(1)?);
        if accepted_at >= accepted_before {
            return Ok((old_to, true));
        }
        old_to = Some(seq);
        looked_at += 1;
    }
    Ok((old_to, looked_at < ROWS_PER_CALL))
}

impl Batch<'_> {
    fn forget(&mut self, after: i64, to: i64) -> Result<usize, ApplyError> {
        const SQL: &str = "\
            UPDATE message SET idempotency_key = NULL, idempotency_digest = NULL \
            WHERE seq > ?1 AND seq <= ?2 AND idempotency_key IS NOT NULL";
        const SQL_POSITION: &str = "\
            INSERT INTO meta (key, value) VALUES ('idempotency_keys_forgotten_to_seq', ?1) \
            ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        self.change(|batch| {
            let forgotten = batch.execute_counted("Prune", "message", SQL, params![after, to])?;
            batch.change_one("Prune", "meta", SQL_POSITION, params![to.to_string()])?;
            Ok(forgotten)
        })
    }
}

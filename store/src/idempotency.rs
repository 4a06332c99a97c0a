//! Which keys senders used, and for which message: found fast, kept cheaply, forgotten in time.
//!
//! ```text
//!  InsertMessage ─▶ recent (memory) ── 32,768 messages later ─▶ building (memory, sorted)
//!                                                                  │ a slice with each commit
//!                              forgotten, whole runs ◀─ run (table) ◀┘
//! ```
//!
//! Owner: `Batch`, and `Store::prune` for forgetting. Invariants: a key is found from its
//! message's insertion until at least `limits::IDEMPOTENCY_WINDOW` after its acceptance, across
//! restarts (FAULTS I4); what memory holds is rebuilt from `message`; a match is confirmed with
//! the message's own row, so a digest's collision is no match. Absent: deciding what a repeat
//! means.
//!
//! One sorted index over all keys would be simpler, but keys are random: each accepted message
//! would dirty a page of it, four times the bytes of a usual message, in the log and again in the
//! database.

use std::collections::BTreeSet;

use dormouse_core::event::PriorMessage;
use dormouse_core::id::Subject;
use dormouse_core::limits::IDEMPOTENCY_WINDOW;
use dormouse_core::record::MessageRecord;
use dormouse_core::time::{Wall, millis};
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use crate::error::{ApplyError, CommitError, ReadError};
use crate::rows::{Columns, integer};
use crate::writer::{Batch, Store};

/// Messages per run. More make starts slower (their keys are read again), fewer make look-ups
/// slower (each run is asked).
const RUN_MESSAGES: i64 = if cfg!(test) { 8 } else { 32_768 };

/// Keys of a finished run that are forgotten per call: some milliseconds.
const FORGOTTEN_PER_CALL: i64 = if cfg!(test) { 3 } else { 8_192 };

/// Keys of a run that are written with each commit, beside twice as many as it brings.
const WRITTEN_PER_COMMIT: usize = if cfg!(test) { 1 } else { 64 };

/// A key's digest, and the place of its message in the order of acceptance.
type Entry = (i64, i64);

/// What is in memory of the index.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    recent: BTreeSet<Entry>,
    building: Option<Building>,
    /// Messages up to this one are in runs, or their keys are forgotten.
    indexed_to: i64,
    newest_at: i64,
    /// Messages accepted before this do not count any more.
    horizon: i64,
}

/// A run on its way into the table.
#[derive(Debug)]
struct Building {
    run: i64,
    newest_at: i64,
    entries: Vec<Entry>,
    written: usize,
}

/// What a batch adds; dropped with it.
#[derive(Debug, Default)]
pub(crate) struct NewKeys {
    entries: Vec<Entry>,
    inserted: usize,
    newest_seq: i64,
    newest_at: i64,
    written: usize,
}

impl NewKeys {
    pub(crate) fn note(&mut self, record: &MessageRecord, seq: i64) {
        self.inserted += 1;
        self.newest_seq = seq;
        self.newest_at = self.newest_at.max(integer(record.accepted_at.0));
        if let Some(idempotency) = &record.idempotency {
            self.entries.push((digest(&record.subject, &idempotency.key), seq));
        }
    }
}

impl KeyIndex {
    /// Reads the keys that are in no run yet, and removes what was left of an unfinished one.
    pub(crate) fn load(connection: &Connection) -> Result<Self, ReadError> {
        let indexed_to: i64 = {
            let mut statement = connection
                .prepare("SELECT value FROM meta WHERE key = 'idempotency_indexed_to_seq'")?;
            let mut rows = statement.query([])?;
            let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            Columns::new("meta", row).parsed(0, |text| text.parse().ok())?
        };
        connection.execute("DELETE FROM idempotency WHERE run > ?1", [indexed_to])?;
        let mut statement = connection.prepare(
            "SELECT seq, subject, idempotency_key, accepted_at_ms FROM message \
             WHERE seq > ?1 AND idempotency_key IS NOT NULL",
        )?;
        let mut rows = statement.query([indexed_to])?;
        let mut index =
            Self { recent: BTreeSet::new(), building: None, indexed_to, newest_at: 0, horizon: 0 };
        while let Some(row) = rows.next()? {
            let columns = Columns::new("message", row);
            let hash = digest(&columns.subject(1)?, columns.text(2)?);
            index.recent.insert((hash, columns.signed(0)?));
            index.newest_at = index.newest_at.max(columns.signed(3)?);
        }
        Ok(index)
    }

    /// The places where a key with this digest may have been used, in memory.
    fn places(&self, hash: i64) -> impl Iterator<Item = i64> + '_ {
        let recent = self.recent.range((hash, i64::MIN)..=(hash, i64::MAX));
        let building = self.building.iter().flat_map(move |building| {
            let first = building.entries.partition_point(|entry| entry.0 < hash);
            building.entries[first..].iter().take_while(move |entry| entry.0 == hash)
        });
        recent.chain(building).map(|entry| entry.1)
    }

    /// After the commit: what the batch brought is now everybody's.
    pub(crate) fn commit(&mut self, new: NewKeys) {
        if let Some(building) = &mut self.building {
            building.written += new.written;
            if building.written == building.entries.len() {
                self.indexed_to = building.run;
                self.building = None;
            }
        }
        self.recent.extend(new.entries);
        self.newest_at = self.newest_at.max(new.newest_at);
        if self.building.is_none() && new.newest_seq - self.indexed_to >= RUN_MESSAGES {
            let entries = std::mem::take(&mut self.recent).into_iter().collect();
            let (run, newest_at) = (new.newest_seq, std::mem::take(&mut self.newest_at));
            self.building = Some(Building { run, newest_at, entries, written: 0 });
        }
    }
}

impl Batch<'_> {
    /// The message that `subject` sent under this key before, as long as the key is remembered:
    /// at least `limits::IDEMPOTENCY_WINDOW`.
    pub fn find_prior(
        &mut self,
        subject: &Subject,
        idempotency_key: &str,
    ) -> Result<Option<PriorMessage>, ReadError> {
        let hash = digest(subject, idempotency_key);
        let own = self.new_keys.entries.iter().filter(|entry| entry.0 == hash);
        let places = own.map(|entry| entry.1).chain(self.keys().places(hash));
        let mut places: BTreeSet<i64> = places.collect();
        let horizon = self.keys().horizon;
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT i.seq FROM idempotency_run r CROSS JOIN idempotency i \
                 ON i.run = r.run AND i.hash = ?1",
            )?;
            let mut rows = statement.query([hash])?;
            while let Some(row) = rows.next()? {
                places.insert(Columns::new("idempotency", row).signed(0)?);
            }
            for place in places.into_iter().rev() {
                let found = confirm(connection, place, subject, idempotency_key, horizon)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        })
    }

    /// Before the commit: writes some more of the run that is being built, faster than new keys
    /// come in.
    pub(crate) fn write_keys(&mut self) -> rusqlite::Result<()> {
        const SQL: &str = "INSERT INTO idempotency (run, hash, seq) VALUES (?1, ?2, ?3)";
        const SQL_RUN: &str = "INSERT INTO idempotency_run (run, newest_at_ms) VALUES (?1, ?2)";
        const SQL_POSITION: &str =
            "UPDATE meta SET value = ?1 WHERE key = 'idempotency_indexed_to_seq'";
        let Some(building) = &self.keys().building else { return Ok(()) };
        let slice = WRITTEN_PER_COMMIT + 2 * self.new_keys.inserted;
        let end = building.entries.len().min(building.written + slice);
        let mut statement = self.statement(SQL)?;
        for (hash, seq) in &building.entries[building.written..end] {
            statement.execute([building.run, *hash, *seq])?;
        }
        drop(statement);
        if end == building.entries.len() {
            if end > 0 {
                self.statement(SQL_RUN)?.execute([building.run, building.newest_at])?;
            }
            self.statement(SQL_POSITION)?.execute([building.run.to_string()])?;
        }
        let written = end - building.written;
        self.new_keys.written = written;
        Ok(())
    }

    /// `true`: the oldest run was old enough, and some of it, or all, is now forgotten.
    fn forget_some(&mut self, horizon: i64) -> Result<(usize, bool), PruneError> {
        const SQL_OLDEST: &str = "\
            SELECT run FROM idempotency_run WHERE newest_at_ms < ?1 ORDER BY run LIMIT 1";
        const SQL: &str = "\
            DELETE FROM idempotency WHERE run = ?1 AND hash <= coalesce(\
              (SELECT hash FROM idempotency WHERE run = ?1 ORDER BY hash LIMIT 1 OFFSET ?2), \
              9223372036854775807)";
        const SQL_RUN: &str = "\
            DELETE FROM idempotency_run \
            WHERE run = ?1 AND NOT EXISTS (SELECT 1 FROM idempotency WHERE run = ?1)";
        let oldest = self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL_OLDEST)?;
            let mut rows = statement.query([horizon])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            Columns::new("idempotency_run", row).signed(0).map(Some)
        });
        let Some(run) = oldest.map_err(|source| PruneError::Read { source })? else {
            return Ok((0, true));
        };
        let forgotten = self.change(|batch| {
            let row = params![run, FORGOTTEN_PER_CALL - 1];
            let forgotten = batch.execute_counted("Prune", "idempotency", SQL, row)?;
            batch.execute_counted("Prune", "idempotency_run", SQL_RUN, [run])?;
            Ok(forgotten)
        });
        Ok((forgotten.map_err(|source| PruneError::Apply { source })?, false))
    }
}

/// The message at this place, if it was sent under this very key and is not too old.
fn confirm(
    connection: &Connection,
    place: i64,
    subject: &Subject,
    idempotency_key: &str,
    horizon: i64,
) -> Result<Option<PriorMessage>, ReadError> {
    const SQL: &str = "\
        SELECT id, idempotency_digest FROM message \
        WHERE seq = ?1 AND subject = ?2 AND idempotency_key = ?3 AND accepted_at_ms >= ?4";
    let mut statement = connection.prepare_cached(SQL)?;
    let mut rows = statement.query(params![place, subject.as_str(), idempotency_key, horizon])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let columns = Columns::new("message", row);
    Ok(Some(PriorMessage { id: columns.message_id(0)?, digest: columns.string(1)? }))
}

/// A subject has no zero byte in it, so no two pairs give the same input.
fn digest(subject: &Subject, idempotency_key: &str) -> i64 {
    let mut hasher = Sha256::new();
    hasher.update(subject.as_str());
    hasher.update([0]);
    hasher.update(idempotency_key);
    let digest = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

/// What one call of `Store::prune` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Rows of old keys that were removed. The messages stay.
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
        match self {
            PruneError::Read { .. } => false,
            PruneError::Apply { source } => matches!(source, ApplyError::Full { .. }),
            PruneError::Commit { source } => matches!(source, CommitError::Full { .. }),
        }
    }
}

impl Store {
    /// Forgets idempotency keys that are older than the window: from now on no look-up finds
    /// them, and the rows of some are removed, a bounded number per call. To be called at the
    /// start and now and then. Mostly it writes nothing.
    ///
    /// The ages are by the wall clock, as nothing else survives a restart: after a jump of it, keys
    /// are forgotten as late or as early as it says. Messages, replies and dead letters are kept
    /// for ever in this version.
    pub fn prune(&mut self, now: Wall) -> Result<Pruned, PruneError> {
        let horizon = integer(now.0.saturating_sub(millis(IDEMPOTENCY_WINDOW)));
        self.keys.horizon = horizon;
        let mut batch = self.batch();
        let (keys_forgotten, is_finished) = batch.forget_some(horizon)?;
        batch.commit().map_err(|source| PruneError::Commit { source })?;
        Ok(Pruned { keys_forgotten, is_finished })
    }
}

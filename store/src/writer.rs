//! The one writer: opens the folder, gives out batches, commits them, checkpoints the log.
//!
//! ```text
//!  Store::batch ─▶ Batch ── apply ─▶ … ─▶ commit ─▶ fsync ─▶ Ok: acknowledge
//!                    │ (BEGIN IMMEDIATE                 ├──▶ Full: nothing stored, go on
//!                    │  at the first write)             └──▶ Failed: halted, end the process
//!                    └── drop ─▶ rolled back
//! ```
//!
//! Owner: the engine's thread. Invariants: one transaction per batch, and `commit` returns `Ok`
//! only after the log is synced (FAULTS I1); after an error that leaves a doubt every further call
//! fails (I21); a batch that wrote nothing costs no transaction and no sync.
//! Absent: what a write means in SQL (`apply`), pages for people (`reader`).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use dormouse_core::id::MessageId;
use dormouse_core::record::MessageState;
use rusqlite::config::DbConfig;
use rusqlite::{CachedStatement, Connection};

use crate::connection::{self, DATABASE_FILE, LOG_FILE};
use crate::error::{ApplyError, CommitError, OpenError, ReadError, Severity};
use crate::idempotency::{KeyIndex, NewKeys};
use crate::lock::FolderLock;
use crate::log_check::check_log;
use crate::migrations;
use crate::recover;
use crate::rows::{MESSAGE_STATES, state_word};

/// Pages in the log after which it is time to copy them into the database. 4,000 pages are 16 MiB:
/// enough that the inner pages of the indexes are copied once for many commits, little enough that
/// copying and syncing takes tens of milliseconds.
const LOG_PAGES_DUE: u64 = 4_000;
/// Pages after which `commit` does it unasked, so that a caller who never does is bounded too.
const LOG_PAGES_MAX: u64 = 4 * LOG_PAGES_DUE;

/// The data folder's one writer. See the module's head for its life.
pub struct Store {
    // Order matters: the connection closes before the lock is given back.
    connection: Connection,
    folder: PathBuf,
    newest_message: Option<MessageId>,
    /// Sessions with unended messages, and how many. It spares a waking session, which mostly has
    /// none, a look at the index of all of them.
    unended: HashMap<Box<str>, i64>,
    pub(crate) keys: KeyIndex,
    is_halted: bool,
    _lock: FolderLock,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("folder", &self.folder)
            .field("is_halted", &self.is_halted)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a data folder for writing; makes it (mode 0700) and the database (0600) where they
    /// are missing, and brings an older schema up to date.
    pub fn open(folder: &Path) -> Result<Store, OpenError> {
        let folder = connection::absolute(folder)?;
        let is_new_folder = connection::create_folder(&folder)?;
        let lock = FolderLock::take(&folder)?;
        let path = folder.join(DATABASE_FILE);
        let is_new_file = connection::create_file(&path)?;
        if is_new_folder && let Some(parent) = folder.parent() {
            connection::sync_folder(parent)?;
        }
        check_log(&folder.join(LOG_FILE))?;
        let mut connection = connection::open_writer(&path)?;
        connection::start_log_over(&connection, &path)?;
        migrations::migrate(&mut connection, &path)?;
        if is_new_file {
            connection::sync_folder(&folder)?;
        }
        let unreadable = |source| OpenError::Contents { path: path.clone(), source };
        let newest_message = recover::newest_message(&connection).map_err(unreadable)?;
        let unended = recover::unended_counts(&connection).map_err(unreadable)?;
        let keys = KeyIndex::load(&connection).map_err(unreadable)?;
        let is_halted = false;
        Ok(Store { connection, folder, newest_message, unended, keys, is_halted, _lock: lock })
    }

    /// The highest id of any message ever accepted; new ones must be greater.
    pub fn newest_message_id(&self) -> Result<Option<MessageId>, ReadError> {
        if self.is_halted { Err(ReadError::Halted) } else { Ok(self.newest_message) }
    }

    /// The folder, as an absolute path.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether an error left it open what is on disk. The process must end without acknowledging.
    pub fn is_halted(&self) -> bool {
        self.is_halted
    }

    /// Bytes that an unprivileged process may still write to the folder's file system.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let facts = rustix::fs::statvfs(&self.folder)?;
        Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
    }

    /// The next transaction. Nothing is begun before its first write.
    pub fn batch(&mut self) -> Batch<'_> {
        Batch {
            newest_message: self.newest_message,
            store: self,
            new_keys: NewKeys::default(),
            tally_changes: [0; MESSAGE_STATES.len()],
            unended_changes: HashMap::new(),
            is_begun: false,
            is_broken: false,
        }
    }

    /// Copies the log into the database if it has grown enough. To be called when nobody waits for
    /// a commit, best after each batch's acknowledgements: mostly it does nothing, else it takes
    /// tens of milliseconds. No room on the disk is no error: it is tried again next time.
    pub fn checkpoint_if_due(&mut self) -> Result<(), CommitError> {
        self.checkpoint_above(LOG_PAGES_DUE)
    }

    fn checkpoint_above(&mut self, pages_due: u64) -> Result<(), CommitError> {
        if self.is_halted {
            return Err(CommitError::Halted);
        }
        let checked = self.log_pages("PRAGMA wal_checkpoint(NOOP)").and_then(|pages| match pages {
            pages if pages >= pages_due => self.log_pages("PRAGMA wal_checkpoint(PASSIVE)"),
            pages => Ok(pages),
        });
        match checked {
            Ok(_pages) => Ok(()),
            Err(error) if Severity::of(&error) == Severity::Full => Ok(()),
            Err(source) => {
                self.halt();
                Err(CommitError::Failed { source })
            }
        }
    }

    /// Runs a checkpoint pragma. Returns the pages of the log that are not yet in the database.
    fn log_pages(&self, pragma: &str) -> rusqlite::Result<u64> {
        let mut statement = self.connection.prepare_cached(pragma)?;
        statement.query_row([], |row| {
            let (pages, copied): (i64, i64) = (row.get(1)?, row.get(2)?);
            Ok(u64::try_from(pages - copied).unwrap_or(0))
        })
    }

    /// No further call succeeds, and closing leaves the files as they are for the next start.
    pub(crate) fn halt(&mut self) {
        self.is_halted = true;
        // A checkpoint at close would write what we have just stopped to trust.
        let setting = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        let is_set = self.connection.set_db_config(setting, true);
        debug_assert!(is_set.is_ok(), "a flag of an open connection can be set: {is_set:?}");
    }

    /// Halts for an error that leaves a doubt. For a read that is any error: the statements are
    /// known to be right, so it was the disk.
    pub(crate) fn read<T>(
        &mut self,
        read: impl FnOnce(&Connection) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        if self.is_halted {
            return Err(ReadError::Halted);
        }
        let result = read(&self.connection);
        if result.is_err() {
            self.halt();
        }
        result
    }
}

/// One transaction of the store. Dropping it undoes everything.
pub struct Batch<'store> {
    store: &'store mut Store,
    pub(crate) newest_message: Option<MessageId>,
    /// By place in `MESSAGE_STATES`; one update per batch instead of one per message.
    tally_changes: [i64; MESSAGE_STATES.len()],
    /// Messages that sessions got less those that ended.
    unended_changes: HashMap<Box<str>, i64>,
    pub(crate) new_keys: NewKeys,
    is_begun: bool,
    is_broken: bool,
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("is_begun", &self.is_begun)
            .field("is_broken", &self.is_broken)
            .finish_non_exhaustive()
    }
}

impl Batch<'_> {
    /// Makes the batch durable. `Ok` means that it is on disk, whole.
    pub fn commit(mut self) -> Result<(), CommitError> {
        assert!(!self.is_broken, "a batch in which a write failed can only be dropped");
        if self.store.is_halted {
            return Err(CommitError::Halted);
        }
        if !self.is_begun {
            return Ok(());
        }
        let committed = self
            .write_keys()
            .and_then(|()| self.store_tally())
            .and_then(|()| self.execute("COMMIT"));
        if let Err(source) = committed {
            // Dropping rolls back what SQLite has not already undone.
            if Severity::of(&source) == Severity::Full {
                return Err(CommitError::Full { source });
            }
            self.store.halt();
            return Err(CommitError::Failed { source });
        }
        self.is_begun = false;
        self.store.newest_message = self.newest_message;
        self.store.keys.commit(std::mem::take(&mut self.new_keys));
        for (session, change) in self.unended_changes.drain() {
            let before = self.store.unended.get(&session).copied().unwrap_or(0);
            match before + change {
                0 => drop(self.store.unended.remove(&session)),
                count => drop(self.store.unended.insert(session, count)),
            }
        }
        self.store.checkpoint_above(LOG_PAGES_MAX)
    }

    pub(crate) fn keys(&self) -> &KeyIndex {
        &self.store.keys
    }

    /// Whether the session may have unended messages; `false` is certain.
    pub(crate) fn may_have_unended(&self, session: &str) -> bool {
        self.store.unended.contains_key(session) || self.unended_changes.contains_key(session)
    }

    /// A change, inside the transaction, which this begins where it is the first. On an error the
    /// batch can only be dropped; what is no lack of room halts the store.
    pub(crate) fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, ApplyError>,
    ) -> Result<T, ApplyError> {
        assert!(!self.is_broken, "a batch in which a write failed can only be dropped");
        if self.store.is_halted {
            return Err(ApplyError::Halted);
        }
        let result = self.begin().and_then(|()| change(self));
        if let Err(error) = &result {
            self.is_broken = true;
            if !matches!(error, ApplyError::Full { .. }) {
                self.store.halt();
            }
        }
        result
    }

    pub(crate) fn read<T>(
        &mut self,
        read: impl FnOnce(&Connection) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        self.store.read(read)
    }

    pub(crate) fn statement(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.store.connection.prepare_cached(sql)
    }

    pub(crate) fn last_insert_rowid(&self) -> i64 {
        self.store.connection.last_insert_rowid()
    }

    /// Counts a message out of one state and into another.
    pub(crate) fn count(&mut self, from: MessageState, to: MessageState) {
        self.tally_changes[from as usize] -= 1;
        self.tally_changes[to as usize] += 1;
    }

    pub(crate) fn count_new(&mut self, session: &str) {
        self.tally_changes[MessageState::Pending as usize] += 1;
        self.change_unended(session, 1);
    }

    pub(crate) fn count_end(&mut self, session: &str, from: MessageState, to: MessageState) {
        self.count(from, to);
        self.change_unended(session, -1);
    }

    fn change_unended(&mut self, session: &str, change: i64) {
        match self.unended_changes.get_mut(session) {
            Some(count) => *count += change,
            None => drop(self.unended_changes.insert(session.into(), change)),
        }
    }

    fn begin(&mut self) -> Result<(), ApplyError> {
        if !self.is_begun {
            self.execute("BEGIN IMMEDIATE").map_err(|source| match Severity::of(&source) {
                Severity::Full => ApplyError::Full { source },
                Severity::Contradiction | Severity::Fatal => ApplyError::Failed { source },
            })?;
            self.is_begun = true;
        }
        Ok(())
    }

    fn store_tally(&self) -> rusqlite::Result<()> {
        for (state, change) in MESSAGE_STATES.into_iter().zip(self.tally_changes) {
            if change != 0 {
                self.statement("UPDATE tally SET messages = messages + ?2 WHERE state = ?1")?
                    .execute((state_word(state), change))?;
            }
        }
        Ok(())
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.statement(sql)?.execute([]).map(|_rows| ())
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let connection = &self.store.connection;
        // After some errors, a full disk among them, SQLite has rolled back by itself.
        if self.is_begun && !connection.is_autocommit() && self.execute("ROLLBACK").is_err() {
            self.store.halt();
        }
    }
}

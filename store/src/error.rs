//! What can go wrong with the store: one enum per operation.
//!
//! Owner: this file. Invariant: `Full` is said only where nothing of the batch was stored and the
//! store can go on; everything that leaves a doubt is `Failed`, and after it the store is halted.
//! Absent: retries.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

/// Why a data folder could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot create the data folder {}; choose another with --data", path.display())]
    CreateFolder { path: PathBuf, source: io::Error },
    #[error("cannot lock {}; the data folder must be writable by this user", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error(
        "another dormouse ({holder}) uses {}; stop it, or choose another folder with --data",
        folder.display()
    )]
    InUse { folder: PathBuf, holder: String },
    #[error("cannot create {}; the data folder must be writable by this user", path.display())]
    CreateDatabase { path: PathBuf, source: io::Error },
    #[error("cannot make the folder of {} durable", path.display())]
    SyncFolder { path: PathBuf, source: io::Error },
    #[error("there is no database {}; `dormouse up` makes one", path.display())]
    NoDatabase { path: PathBuf },
    #[error("cannot {doing} {}", path.display())]
    Database { path: PathBuf, doing: &'static str, source: rusqlite::Error },
    #[error(
        "{} runs with {name} = {found}, but {wanted} is needed: does the file system support \
         shared memory and locks?",
        path.display()
    )]
    Setting { path: PathBuf, name: &'static str, wanted: &'static str, found: String },
    #[error("{} is not a Dormouse database; move it away or choose another folder", path.display())]
    Foreign { path: PathBuf },
    #[error(
        "{} was written by a newer dormouse (schema {found}, this one knows up to {known}); \
         use that version, or restore the backup from before the upgrade",
        path.display()
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error(
        "{} has schema {found}, this one needs {known}; start the daemon once to upgrade it",
        path.display()
    )]
    Older { path: PathBuf, found: u32, known: u32 },
    #[error(
        "migration {version} in {} is not the one that this dormouse contains; \
         use a released binary",
        path.display()
    )]
    MigrationChanged { path: PathBuf, version: u32 },
    #[error("migration {version} of {} failed; the database is as before", path.display())]
    Migrate { path: PathBuf, version: u32, source: rusqlite::Error },
    #[error(
        "the write-ahead log {} is damaged in frame {frame}, and accepted work follows it; \
         restore the file, or remove it to go on without what it holds",
        path.display()
    )]
    LogDamaged { path: PathBuf, frame: u64 },
    #[error("cannot read the write-ahead log {}", path.display())]
    ReadLog { path: PathBuf, source: io::Error },
    #[error("{} cannot be read", path.display())]
    Contents { path: PathBuf, source: ReadError },
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the database could not be read")]
    Failed { source: rusqlite::Error },
    #[error("column {column} of {table} holds {value}, which this version cannot have written")]
    Malformed { table: &'static str, column: String, value: String },
    /// What was given as `before` did not come from the page before it.
    #[error("that is not the `next` of an earlier page")]
    NotACursor,
    /// An earlier failure left it open what is on disk; the process must end.
    #[error("the store has stopped after an earlier failure")]
    Halted,
}

/// Why a write did not become part of its batch. The batch can only be dropped.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No room on the disk. Nothing of the batch is stored, and the store can go on.
    #[error("the disk is full")]
    Full { source: rusqlite::Error },
    /// The caller must acknowledge nothing more and end the process.
    #[error("the database could not be written")]
    Failed { source: rusqlite::Error },
    /// The write contradicts what is stored: a defect, never bad input. Fatal like `Failed`.
    #[error("{write} of {what} contradicts what is stored")]
    Invariant { write: &'static str, what: String },
    #[error("the store has stopped after an earlier failure")]
    Halted,
}

/// Why a batch is not on disk.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// No room on the disk. Nothing of the batch is stored, and the store can go on.
    #[error("the disk is full; nothing of the batch is stored")]
    Full { source: rusqlite::Error },
    /// It is unknown whether the batch is on disk. The caller must acknowledge nothing more and
    /// end the process; what is true will be read at the next start.
    #[error("the database could not be written")]
    Failed { source: rusqlite::Error },
    #[error("the store has stopped after an earlier failure")]
    Halted,
}

/// What an SQLite error means for the one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// SQLite says this only for a write that found no room: the transaction is not in the log.
    Full,
    /// The statement asks for what the schema or the rows forbid.
    Contradiction,
    Fatal,
}

impl Severity {
    pub(crate) fn of(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Severity::Full,
            Some(ErrorCode::ConstraintViolation) => Severity::Contradiction,
            _other => Severity::Fatal,
        }
    }
}

impl From<rusqlite::Error> for ReadError {
    fn from(source: rusqlite::Error) -> Self {
        ReadError::Failed { source }
    }
}

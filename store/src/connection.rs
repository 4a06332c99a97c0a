//! How the database file is made and opened, and with which settings.
//!
//! Owner: this file; `Store::open` and `Reader::open` call it. Invariants: the file and its log
//! are readable by their owner only; WAL and `synchronous=FULL` are not asked for but checked; no
//! memory map (a read error would be a SIGBUS, not an error). Absent: schema, statements.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::{OpenError, Severity};

pub(crate) const DATABASE_FILE: &str = "dormouse.db";
pub(crate) const LOG_FILE: &str = "dormouse.db-wal";

/// For a person's sqlite3 shell that holds a lock for a moment. We never wait for ourselves.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Room for the inner pages of all indexes and the tails that every accept touches.
const WRITER_CACHE_KIB: i64 = 8 << 10;
const READER_CACHE_KIB: i64 = 2 << 10;

/// The log file is cut back to this when it starts over after growing beyond it; below it the
/// file is overwritten in place, which saves the file system a change of size at each commit.
const LOG_KEPT_BYTES: i64 = 64 << 20;

/// More than the statements there are, so that each is compiled once.
const STATEMENTS_KEPT: usize = 64;

/// Makes the folder where it is missing. `true`: it was made, so its own entry must be synced.
pub(crate) fn create_folder(folder: &Path) -> Result<bool, OpenError> {
    if folder.is_dir() {
        return Ok(false);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| OpenError::CreateFolder { path: folder.to_owned(), source })?;
    Ok(true)
}

/// Makes an empty database file where it is missing; SQLite gives the log the same mode.
pub(crate) fn create_file(path: &Path) -> Result<bool, OpenError> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_file) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(OpenError::CreateDatabase { path: path.to_owned(), source }),
    }
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), OpenError> {
    File::open(folder)
        .and_then(|opened| opened.sync_all())
        .map_err(|source| OpenError::SyncFolder { path: folder.to_owned(), source })
}

/// Absolute, so that SQLite cannot take a name for a `file:` address.
pub(crate) fn absolute(folder: &Path) -> Result<PathBuf, OpenError> {
    std::path::absolute(folder)
        .map_err(|source| OpenError::CreateFolder { path: folder.to_owned(), source })
}

pub(crate) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = open(path, flags)?;
    let failed = |source| OpenError::Database { path: path.to_owned(), doing: "set up", source };
    let set = |name: &str, value: &dyn rusqlite::ToSql| {
        connection.pragma_update(None, name, value).map_err(failed)
    };
    connection
        .pragma_update_and_check(None, "journal_mode", "wal", |_row| Ok(()))
        .map_err(failed)?;
    set("synchronous", &"FULL")?;
    // On for one relation: a message whose session has no row could never be answered. The check
    // costs one look-up per message and is made at the commit, so the order in a batch is free.
    set("foreign_keys", &true)?;
    set("cache_size", &-WRITER_CACHE_KIB)?;
    set("journal_size_limit", &LOG_KEPT_BYTES)?;
    // Automatic checkpoints would run inside the commit that somebody waits for, and would swallow
    // their errors; `Store::checkpoint_if_due` does neither.
    set("wal_autocheckpoint", &0)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    check_setting(&connection, path, "journal_mode", "wal")?;
    check_setting(&connection, path, "synchronous", "2")?;
    check_setting(&connection, path, "foreign_keys", "1")?;
    Ok(connection)
}

/// Copies what the last life left in the log into the database, and empties the log.
///
/// Somebody who reads meanwhile, or a full disk, may keep it from being emptied; that is no error.
pub(crate) fn start_log_over(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Database {
        path: path.to_owned(),
        doing: "copy the write-ahead log into",
        source,
    };
    connection.busy_timeout(Duration::ZERO).map_err(failed)?;
    let done = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()));
    match done {
        Err(source) if Severity::of(&source) != Severity::Full => return Err(failed(source)),
        Ok(()) | Err(_) => {}
    }
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)
}

pub(crate) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    if !path.exists() {
        return Err(OpenError::NoDatabase { path: path.to_owned() });
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = open(path, flags)?;
    let failed = |source| OpenError::Database { path: path.to_owned(), doing: "set up", source };
    connection.pragma_update(None, "query_only", true).map_err(failed)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(connection)
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
    let failed = |doing| move |source| OpenError::Database { path: path.to_owned(), doing, source };
    let connection = Connection::open_with_flags(path, flags).map_err(failed("open"))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed("set up"))?;
    // Plans that do not depend on bound values; without it statements that could use a partial
    // index are compiled anew for each of them.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
        .map_err(failed("set up"))?;
    for (name, value) in [("mmap_size", "0"), ("temp_store", "MEMORY"), ("trusted_schema", "OFF")] {
        connection
            .pragma_update_and_check(None, name, value, |_row| Ok(()))
            .or_else(|error| match error {
                // Some of these answer with a row and some do not.
                rusqlite::Error::QueryReturnedNoRows => Ok(()),
                other => Err(other),
            })
            .map_err(failed("set up"))?;
    }
    Ok(connection)
}

fn check_setting(
    connection: &Connection,
    path: &Path,
    name: &'static str,
    wanted: &'static str,
) -> Result<(), OpenError> {
    let found: rusqlite::types::Value = connection
        .pragma_query_value(None, name, |row| row.get(0))
        .map_err(|source| OpenError::Database { path: path.to_owned(), doing: "set up", source })?;
    let found = match found {
        rusqlite::types::Value::Text(text) => text,
        rusqlite::types::Value::Integer(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    if found == wanted {
        Ok(())
    } else {
        Err(OpenError::Setting { path: path.to_owned(), name, wanted, found })
    }
}

//! Forward-only numbered migrations.
//!
//! Owner: `Store::open` runs them before anything else. Invariants: a migration is one transaction
//! with its number and its checksum; a database that a newer version wrote is refused; a released
//! migration is never edited (its checksum stands in `meta` and is compared at every start).
//! Absent: going back. A downgrade needs the backup from before the upgrade.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use crate::error::OpenError;

#[derive(Debug)]
struct Migration {
    version: u32,
    sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, sql: include_str!("migrations/0001_initial.sql") },
    Migration { version: 2, sql: include_str!("migrations/0002_death_explained.sql") },
    Migration { version: 3, sql: include_str!("migrations/0003_files.sql") },
    Migration { version: 4, sql: include_str!("migrations/0004_revisions.sql") },
];

/// What this version reads and writes; SQLite's `user_version`.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// SQLite's `application_id`, by which `file` and we know the database: "DORM".
const APPLICATION_ID: i64 = 0x444f_524d;

/// Brings a database of any known version, or an empty one, to `SCHEMA_VERSION`.
pub(crate) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let version = known_version(connection, path)?;
    check_applied(connection, path, version)?;
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > version) {
        run(connection, migration).map_err(|source| OpenError::Migrate {
            path: path.to_owned(),
            version: migration.version,
            source,
        })?;
    }
    Ok(())
}

/// For a reader, which changes nothing: the version must be exactly ours.
pub(crate) fn check_version(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let found = known_version(connection, path)?;
    if found < SCHEMA_VERSION {
        return Err(OpenError::Older { path: path.to_owned(), found, known: SCHEMA_VERSION });
    }
    Ok(())
}

fn known_version(connection: &Connection, path: &Path) -> Result<u32, OpenError> {
    let failed = |source| OpenError::Database { path: path.to_owned(), doing: "read", source };
    let application_id: i64 =
        connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(failed)?;
    let version: u32 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    let tables: u32 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    let is_empty = application_id == 0 && version == 0 && tables == 0;
    if !is_empty && (application_id != APPLICATION_ID || version == 0) {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    if version > SCHEMA_VERSION {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found: version,
            known: SCHEMA_VERSION,
        });
    }
    Ok(version)
}

/// What ran in the past must be what we contain.
fn check_applied(connection: &Connection, path: &Path, version: u32) -> Result<(), OpenError> {
    for migration in MIGRATIONS.iter().filter(|migration| migration.version <= version) {
        let kept: Option<String> = connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key_of(migration)], |row| {
                row.get(0)
            })
            .optional()
            .map_err(|source| OpenError::Database {
                path: path.to_owned(),
                doing: "read the migrations of",
                source,
            })?;
        if kept != Some(checksum(migration.sql)) {
            let version = migration.version;
            return Err(OpenError::MigrationChanged { path: path.to_owned(), version });
        }
    }
    Ok(())
}

fn run(connection: &mut Connection, migration: &Migration) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(migration.sql)?;
    transaction.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2)",
        [key_of(migration), checksum(migration.sql)],
    )?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", migration.version)?;
    transaction.commit()
}

fn key_of(migration: &Migration) -> String {
    format!("migration_{:04}", migration.version)
}

/// FNV-1a, 64 bits: tells an edit from no edit; it need not withstand an attacker, who could
/// write anything into the database anyway.
fn checksum(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migrated() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, Path::new("test.db")).unwrap();
        connection
    }

    #[test]
    fn migrations_are_numbered_from_one_without_a_gap() {
        for (place, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version as usize, place + 1);
        }
    }

    #[test]
    fn the_checksum_is_fnv_1a() {
        assert_eq!(checksum(""), "cbf29ce484222325");
        assert_eq!(checksum("foobar"), "85944171f73967e8");
    }

    #[test]
    fn a_second_run_changes_nothing() {
        let mut connection = migrated();
        let before = connection.total_changes();
        migrate(&mut connection, Path::new("test.db")).unwrap();
        assert_eq!(connection.total_changes(), before);
    }

    #[test]
    fn a_newer_schema_is_refused_with_both_numbers() {
        let mut connection = migrated();
        connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
        let refused = migrate(&mut connection, Path::new("test.db")).unwrap_err();
        assert!(
            matches!(refused, OpenError::Newer { found, known, .. }
                if (found, known) == (SCHEMA_VERSION + 1, SCHEMA_VERSION)),
            "{refused}"
        );
    }

    #[test]
    fn an_edited_migration_is_refused() {
        let mut connection = migrated();
        connection
            .execute("UPDATE meta SET value = 'other' WHERE key = 'migration_0001'", [])
            .unwrap();
        let refused = migrate(&mut connection, Path::new("test.db")).unwrap_err();
        assert!(matches!(refused, OpenError::MigrationChanged { version: 1, .. }), "{refused}");
    }

    #[test]
    fn somebody_elses_database_is_refused_and_left_alone() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE recipe (name TEXT)").unwrap();
        let refused = migrate(&mut connection, Path::new("test.db")).unwrap_err();
        assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
        assert_eq!(connection.total_changes(), 0);
    }
}

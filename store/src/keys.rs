//! API keys as rows: made, revoked, found by their digest.
//!
//! Owner: the daemon, which makes the keys and hashes them. Invariants: only the digest is kept;
//! a revoked key is not found by its digest. Absent: hashing, comparing in constant time (a digest
//! is looked up, never the key), the meaning of scopes.

use dormouse_core::id::Subject;
use dormouse_core::time::Wall;
use rusqlite::{Connection, params};

use crate::error::{ApplyError, ReadError};
use crate::rows::{Columns, at};
use crate::writer::Batch;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Names the key to people; not secret.
    pub id: String,
    pub name: String,
    /// SHA-256 of the key, in hexadecimal.
    pub hash: String,
    pub subject: Subject,
    /// Words without white space.
    pub scopes: Vec<String>,
    pub created_at: Wall,
    pub revoked_at: Option<Wall>,
}

const KEY_COLUMNS: &str = "id, name, hash, subject, scopes, created_at_ms, revoked_at_ms";

impl Batch<'_> {
    /// A new key. An id or a digest that exists is a contradiction, as with every write.
    pub fn insert_key(&mut self, key: &KeyRecord) -> Result<(), ApplyError> {
        const SQL: &str = "\
            INSERT INTO api_key (id, name, hash, subject, scopes, created_at_ms, revoked_at_ms) \
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let is_word = |scope: &String| {
            !scope.is_empty() && !scope.contains(|letter: char| letter.is_whitespace())
        };
        assert!(key.scopes.iter().all(is_word), "a scope is one word: {:?}", key.scopes);
        self.change(|batch| {
            let row = params![
                key.id,
                key.name,
                key.hash,
                key.subject.as_str(),
                key.scopes.join(" "),
                at(key.created_at),
                key.revoked_at.map(at),
            ];
            batch.change_one("InsertKey", &key.id, SQL, row)
        })
    }

    /// `false`: there is no such key, or it was revoked before.
    pub fn revoke_key(&mut self, id: &str, when: Wall) -> Result<bool, ApplyError> {
        const SQL: &str =
            "UPDATE api_key SET revoked_at_ms = ?2 WHERE id = ?1 AND revoked_at_ms IS NULL";
        self.change(|batch| {
            let changed = batch.execute_counted("RevokeKey", id, SQL, params![id, at(when)])?;
            Ok(changed == 1)
        })
    }
}

/// All keys, the revoked ones too, oldest first.
pub(crate) fn all(connection: &Connection) -> Result<Vec<KeyRecord>, ReadError> {
    let sql = format!("SELECT {KEY_COLUMNS} FROM api_key ORDER BY created_at_ms, id");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([])?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        keys.push(key_record(&Columns::new("api_key", row))?);
    }
    Ok(keys)
}

/// The key with this digest, unless it is revoked.
pub(crate) fn valid_by_hash(
    connection: &Connection,
    hash: &str,
) -> Result<Option<KeyRecord>, ReadError> {
    let sql =
        format!("SELECT {KEY_COLUMNS} FROM api_key WHERE hash = ?1 AND revoked_at_ms IS NULL");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([hash])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    key_record(&Columns::new("api_key", row)).map(Some)
}

fn key_record(columns: &Columns<'_>) -> Result<KeyRecord, ReadError> {
    Ok(KeyRecord {
        id: columns.string(0)?,
        name: columns.string(1)?,
        hash: columns.string(2)?,
        subject: columns.subject(3)?,
        scopes: columns.text(4)?.split_whitespace().map(str::to_owned).collect(),
        created_at: columns.wall(5)?,
        revoked_at: columns.optional(6, Columns::wall)?,
    })
}

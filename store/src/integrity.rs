//! The whole database checked against itself, for `dormouse doctor`.
//!
//! Owner: `Reader::integrity_check`. Invariant: reads everything once, so it takes seconds on a
//! large database; changes nothing. Absent: repair. What is damaged comes back from a backup.

use rusqlite::Connection;

use crate::error::ReadError;
use crate::reader::Reader;
use crate::rows::{Columns, MESSAGE_STATES, state_word};

/// SQLite stops listing damage after so many lines.
const DAMAGE_LINES_MAX: u32 = 20;

/// What must be so in every database, as queries whose count must be zero.
const RULES: [(&str, &str); 6] = [
    (
        "messages belong to a session that has no row",
        "SELECT count(*) FROM message m LEFT JOIN session s ON s.id = m.session WHERE s.id IS NULL",
    ),
    (
        "messages have no text",
        "SELECT count(*) FROM message m LEFT JOIN message_text t ON t.seq = m.seq \
         WHERE t.seq IS NULL",
    ),
    (
        "messages are in a state that does not fit their end",
        "SELECT count(*) FROM message \
         WHERE (ended_at_ms IS NULL) <> (state IN ('pending', 'leased')) \
            OR state NOT IN ('pending', 'leased', 'answered', 'dead', 'cancelled')",
    ),
    (
        "messages have a reply without being answered, or are answered without one",
        "SELECT count(*) FROM message m LEFT JOIN message_reply r ON r.seq = m.seq \
         WHERE (r.seq IS NULL) = (m.state = 'answered')",
    ),
    (
        "messages are leased to nobody, or are not leased and have a lease",
        "SELECT count(*) FROM message WHERE (leased_generation IS NULL) = (state = 'leased')",
    ),
    (
        "messages are not in the order of their ids",
        "SELECT count(*) FROM (SELECT id, lag(id) OVER (ORDER BY seq) AS older FROM message) \
         WHERE older >= id",
    ),
];

impl Reader {
    /// Reads everything and lists what is wrong, in words; empty when nothing is.
    pub fn integrity_check(&self) -> Result<Vec<String>, ReadError> {
        self.at_one_moment(|connection| {
            let mut problems = damage(connection)?;
            if !problems.is_empty() {
                return Ok(problems);
            }
            for (problem, sql) in RULES {
                match count(connection, sql)? {
                    0 => {}
                    found => problems.push(format!("{found} {problem}")),
                }
            }
            for state in MESSAGE_STATES.map(state_word) {
                let sql = "SELECT messages FROM tally WHERE state = ?1";
                let mut statement = connection.prepare(sql)?;
                let tally: i64 = statement.query_row([state], |row| row.get(0))?;
                let sql = format!("SELECT count(*) FROM message WHERE state = '{state}'");
                let messages = count(connection, &sql)?;
                if tally != messages {
                    problems.push(format!("{messages} messages are {state}, tallied as {tally}"));
                }
            }
            Ok(problems)
        })
    }
}

/// What SQLite itself finds: pages, indexes, types.
fn damage(connection: &Connection) -> Result<Vec<String>, ReadError> {
    let mut statement =
        connection.prepare(&format!("PRAGMA integrity_check({DAMAGE_LINES_MAX})"))?;
    let mut rows = statement.query([])?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        lines.push(Columns::new("integrity_check", row).string(0)?);
    }
    lines.retain(|line| line != "ok");
    Ok(lines)
}

fn count(connection: &Connection, sql: &str) -> Result<i64, ReadError> {
    Ok(connection.query_row(sql, [], |row| row.get(0))?)
}

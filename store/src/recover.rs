//! What the engine reads back: everything at its start, one session or message in a batch.
//!
//! Owner: the engine's thread. Invariants: recovery scans partial indexes, so its cost follows what
//! is unended and not what was ever accepted; a batch sees its own writes.
//! Absent: pages for people (`reader`).

use std::collections::HashMap;

use dormouse_core::event::DeadLetter;
use dormouse_core::id::{MessageId, SessionId};
use dormouse_core::record::{Delivery, SessionRecord, StoredSession};
use rusqlite::Connection;

use crate::error::ReadError;
use crate::rows::{Columns, SESSION_COLUMNS, session_record};
use crate::writer::{Batch, Store};

/// The columns that `delivery` reads, in its order, after the session.
const DELIVERY_COLUMNS: &str =
    "session, id, bytes, attempts, excused, leased_generation, not_before_ms";

impl Store {
    /// Every session that something must be done for: not asleep, or with unended messages, or
    /// wanted awake. In the order of their ids; deliveries in the order of acceptance.
    pub fn live_sessions(&mut self) -> Result<Vec<StoredSession>, ReadError> {
        self.read(|connection| {
            let mut sessions = unended_by_session(connection)?;
            let mut live = Vec::with_capacity(sessions.len());
            for record in active_records(connection)? {
                let deliveries = sessions.remove(record.id.as_str()).unwrap_or_default();
                live.push(StoredSession { record, deliveries });
            }
            for (id, deliveries) in sessions {
                live.push(StoredSession { record: required_record(connection, &id)?, deliveries });
            }
            live.sort_unstable_by(|one, other| one.record.id.cmp(&other.record.id));
            Ok(live)
        })
    }
}

impl Batch<'_> {
    /// One session with its unended messages.
    pub fn session(&mut self, id: &SessionId) -> Result<Option<StoredSession>, ReadError> {
        let may_have_unended = self.may_have_unended(id.as_str());
        self.read(|connection| {
            let Some(record) = find_record(connection, id.as_str())? else { return Ok(None) };
            if !may_have_unended {
                return Ok(Some(StoredSession { record, deliveries: Vec::new() }));
            }
            let sql = format!(
                "SELECT {DELIVERY_COLUMNS} FROM message \
                 WHERE ended_at_ms IS NULL AND session = ?1 ORDER BY seq"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([id.as_str()])?;
            let mut deliveries = Vec::new();
            while let Some(row) = rows.next()? {
                deliveries.push(delivery(&Columns::new("message", row))?);
            }
            Ok(Some(StoredSession { record, deliveries }))
        })
    }

    /// What the sender wrote.
    pub fn message_text(&mut self, id: MessageId) -> Result<Option<String>, ReadError> {
        const SQL: &str = "\
            SELECT t.text FROM message m JOIN message_text t ON t.seq = m.seq WHERE m.id = ?1";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let mut rows = statement.query([id.to_string()])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            Columns::new("message_text", row).string(0).map(Some)
        })
    }

    /// A message that is dead and was not taken off the list of dead letters; `redriven_as` where
    /// it was tried anew.
    pub fn dead_letter(&mut self, id: MessageId) -> Result<Option<DeadLetter>, ReadError> {
        const SQL: &str = "\
            SELECT m.id, m.session, m.subject, t.text, m.redriven_as \
            FROM message m JOIN message_text t ON t.seq = m.seq \
            WHERE m.id = ?1 AND m.state = 'dead' AND m.dropped_at_ms IS NULL";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let mut rows = statement.query([id.to_string()])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let columns = Columns::new("message", row);
            Ok(Some(DeadLetter {
                id: columns.message_id(0)?,
                session: columns.session_id(1)?,
                subject: columns.subject(2)?,
                text: columns.string(3)?,
                redriven_as: columns.optional(4, Columns::message_id)?,
            }))
        })
    }
}

fn find_record(connection: &Connection, id: &str) -> Result<Option<SessionRecord>, ReadError> {
    let sql = format!("SELECT {SESSION_COLUMNS} FROM session WHERE id = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    session_record(&Columns::new("session", row), 0).map(Some)
}

/// The row of a session that has messages. Without it they would never be answered.
fn required_record(connection: &Connection, id: &str) -> Result<SessionRecord, ReadError> {
    find_record(connection, id)?.ok_or_else(|| ReadError::Malformed {
        table: "message",
        column: "session".to_owned(),
        value: format!("{id}, which has no row"),
    })
}

/// Sessions that are live whether or not a message waits, by id.
fn active_records(connection: &Connection) -> Result<Vec<SessionRecord>, ReadError> {
    let sql = format!(
        "SELECT {SESSION_COLUMNS} FROM session WHERE phase <> 'asleep' \
         UNION SELECT {SESSION_COLUMNS} FROM session WHERE wake_wanted <> 0 ORDER BY 1"
    );
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(session_record(&Columns::new("session", row), 0)?);
    }
    Ok(records)
}

/// All unended messages by session, oldest first.
fn unended_by_session(
    connection: &Connection,
) -> Result<HashMap<Box<str>, Vec<Delivery>>, ReadError> {
    let sql =
        format!("SELECT {DELIVERY_COLUMNS} FROM message WHERE ended_at_ms IS NULL ORDER BY seq");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let mut sessions: HashMap<Box<str>, Vec<Delivery>> = HashMap::new();
    while let Some(row) = rows.next()? {
        let columns = Columns::new("message", row);
        let session = columns.text(0)?;
        let delivery = delivery(&columns)?;
        match sessions.get_mut(session) {
            Some(deliveries) => deliveries.push(delivery),
            None => drop(sessions.insert(session.into(), vec![delivery])),
        }
    }
    Ok(sessions)
}

/// How many unended messages each session has that has any.
pub(crate) fn unended_counts(connection: &Connection) -> Result<HashMap<Box<str>, i64>, ReadError> {
    let mut statement =
        connection.prepare("SELECT session FROM message WHERE ended_at_ms IS NULL ORDER BY seq")?;
    let mut rows = statement.query([])?;
    let mut counts: HashMap<Box<str>, i64> = HashMap::new();
    while let Some(row) = rows.next()? {
        let session = Columns::new("message", row).text(0)?;
        match counts.get_mut(session) {
            Some(count) => *count += 1,
            None => drop(counts.insert(session.into(), 1)),
        }
    }
    Ok(counts)
}

/// The id of the message that was accepted last.
pub(crate) fn newest_message(connection: &Connection) -> Result<Option<MessageId>, ReadError> {
    let mut statement = connection.prepare("SELECT id FROM message ORDER BY seq DESC LIMIT 1")?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Columns::new("message", row).message_id(0).map(Some)
}

fn delivery(columns: &Columns<'_>) -> Result<Delivery, ReadError> {
    Ok(Delivery {
        message: columns.message_id(1)?,
        bytes: columns.number(2)?,
        attempts: columns.number(3)?,
        excused: columns.number(4)?,
        leased_to: columns.optional(5, Columns::generation)?,
        not_before: columns.optional(6, Columns::wall)?,
    })
}

//! What the engine reads back: everything at its start, one session or message in a batch.
//!
//! Owner: the engine's thread. Invariants: recovery is two ordered scans over partial indexes, so
//! its cost follows what is unended and not what was ever accepted; a batch sees its own writes.
//! Absent: pages for people (`reader`).

use dormouse_core::event::{DeadLetter, PriorMessage};
use dormouse_core::id::{MessageId, SessionId, Subject};
use dormouse_core::record::{Delivery, SessionRecord, StoredSession};
use rusqlite::{Connection, params};

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
            let mut waiting = unended_by_session(connection)?.into_iter().peekable();
            let mut live = Vec::new();
            let take_until = |live: &mut Vec<StoredSession>,
                              waiting: &mut std::iter::Peekable<_>,
                              id: Option<&SessionId>|
             -> Result<(), ReadError> {
                let is_before = |entry: &(SessionId, Vec<Delivery>)| id.is_none_or(|id| entry.0 < *id);
                while let Some((id, deliveries)) = waiting.next_if(is_before) {
                    let record = required_record(connection, &id)?;
                    live.push(StoredSession { record, deliveries });
                }
                Ok(())
            };
            for record in active_records(connection)? {
                take_until(&mut live, &mut waiting, Some(&record.id))?;
                let is_same = |entry: &(SessionId, Vec<Delivery>)| entry.0 == record.id;
                let deliveries = waiting.next_if(is_same).map(|entry| entry.1).unwrap_or_default();
                live.push(StoredSession { record, deliveries });
            }
            take_until(&mut live, &mut waiting, None)?;
            Ok(live)
        })
    }

    /// Where the last run stopped.
    pub(crate) fn load_positions(&mut self) -> Result<(), ReadError> {
        let (newest, forgotten) = self.read(|connection| {
            let mut newest =
                connection.prepare("SELECT id FROM message ORDER BY seq DESC LIMIT 1")?;
            let mut newest = newest.query([])?;
            let newest = match newest.next()? {
                Some(row) => Some(Columns::new("message", row).message_id(0)?),
                None => None,
            };
            let mut forgotten = connection
                .prepare("SELECT value FROM meta WHERE key = 'idempotency_keys_forgotten_to_seq'")?;
            let mut forgotten = forgotten.query([])?;
            let forgotten = match forgotten.next()? {
                Some(row) => Columns::new("meta", row).parsed(0, |text| text.parse().ok())?,
                None => 0,
            };
            Ok((newest, forgotten))
        })?;
        self.newest_message = newest;
        self.forgotten_to_seq = forgotten;
        Ok(())
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
        const SQL: &str = "\
            SELECT id, idempotency_digest FROM message \
            WHERE subject = ?1 AND idempotency_key = ?2 AND idempotency_key IS NOT NULL";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let mut rows = statement.query(params![subject.as_str(), idempotency_key])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let columns = Columns::new("message", row);
            let prior = PriorMessage { id: columns.message_id(0)?, digest: columns.string(1)? };
            Ok(Some(prior))
        })
    }

    /// One session with its unended messages.
    pub fn session(&mut self, id: &SessionId) -> Result<Option<StoredSession>, ReadError> {
        self.read(|connection| {
            let Some(record) = find_record(connection, id)? else { return Ok(None) };
            let sql = format!(
                "SELECT {DELIVERY_COLUMNS} FROM message \
                 WHERE session = ?1 AND ended_at_ms IS NULL ORDER BY id"
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

fn find_record(
    connection: &Connection,
    id: &SessionId,
) -> Result<Option<SessionRecord>, ReadError> {
    let sql = format!("SELECT {SESSION_COLUMNS} FROM session WHERE id = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    session_record(&Columns::new("session", row), 0).map(Some)
}

/// The row of a session that has messages. Without it they would never be answered.
fn required_record(connection: &Connection, id: &SessionId) -> Result<SessionRecord, ReadError> {
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

/// All unended messages, grouped by session in the order of ids, oldest first.
fn unended_by_session(
    connection: &Connection,
) -> Result<Vec<(SessionId, Vec<Delivery>)>, ReadError> {
    let sql = format!(
        "SELECT {DELIVERY_COLUMNS} FROM message WHERE ended_at_ms IS NULL ORDER BY session, id"
    );
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let mut sessions: Vec<(SessionId, Vec<Delivery>)> = Vec::new();
    while let Some(row) = rows.next()? {
        let columns = Columns::new("message", row);
        let session = columns.text(0)?;
        let delivery = delivery(&columns)?;
        match sessions.last_mut() {
            Some((last, deliveries)) if last.as_str() == session => deliveries.push(delivery),
            _other => sessions.push((columns.session_id(0)?, vec![delivery])),
        }
    }
    Ok(sessions)
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

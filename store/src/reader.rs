//! Pages for people: sessions, messages, queues, dead letters, journals, exits, keys, totals.
//!
//! Owner: whoever opens one; each is a connection of its own, for one thread at a time, beside the
//! living writer. Invariants: it cannot write; a view is of one moment and was committed; every
//! list is bounded by its `limit` and goes from new to old. Absent: who may see what (the daemon
//! asks with a filter), recovery (`recover`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use dormouse_core::diagnosis::own::diagnose_exit;
use dormouse_core::evidence::Evidence;
use dormouse_core::id::{MessageId, SessionId};
use dormouse_core::journal::Decision;
use dormouse_core::record::{Circumstances, ExitRecord};
use dormouse_core::session::phase::Phase;
use rusqlite::Connection;
use rusqlite::types::ToSql;

use crate::connection::{self, DATABASE_FILE};
use crate::error::{OpenError, ReadError};
use crate::keys::{self, KeyRecord};
use crate::migrations;
use crate::rows::{Columns, SESSION_COLUMNS, session_record};
use crate::views::{
    AgentSessions, Counts, LastExit, MessageFilter, MessageView, QueuedView, SessionFilter,
    SessionPage, SessionView,
};

/// A read-only connection to a data folder.
pub struct Reader {
    connection: Connection,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// The columns that `message_view` reads, in its order.
const MESSAGE_COLUMNS: &str = "m.id, m.session, m.subject, m.state, m.bytes, m.attempts, \
     m.excused, m.accepted_at_ms, m.leased_at_ms, m.not_before_ms, m.ended_at_ms, m.exit_code, \
     m.cause, m.detail, m.ended_by, m.dropped_at_ms, m.redriven_as, m.redrive_of, m.seq";

/// Their number, which is the place of the first column after them.
const MESSAGE_COLUMNS_COUNT: usize = 19;

impl Reader {
    /// Opens the database of a folder whose schema is this version's.
    pub fn open(folder: &Path) -> Result<Reader, OpenError> {
        let path = connection::absolute(folder)?.join(DATABASE_FILE);
        let connection = connection::open_reader(&path)?;
        migrations::check_version(&connection, &path)?;
        Ok(Reader { connection })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sessions, the newest first. `before` is the `next` of the page before.
    pub fn sessions(
        &self,
        filter: &SessionFilter,
        before: Option<&str>,
        limit: u32,
    ) -> Result<SessionPage, ReadError> {
        let before = match before {
            Some(text) => text.parse().map_err(|_error| ReadError::NotACursor)?,
            None => i64::MAX,
        };
        let subject = filter.subject.as_ref().map(|subject| subject.as_str());
        let agent = filter.agent.as_ref().map(|agent| agent.as_str());
        let phase = filter.phase.map(|phase| phase.to_string());
        let mut conditions = String::from("s.seq < ?1");
        let mut values: Vec<&dyn ToSql> = vec![&before, &limit];
        for (column, value) in [("subject", &subject), ("agent", &agent)] {
            if value.is_some() {
                values.push(value);
                conditions.push_str(&format!(" AND s.{column} = ?{}", values.len()));
            }
        }
        if let Some(word) = &phase {
            values.push(word);
            conditions.push_str(&format!(" AND s.phase = ?{}", values.len()));
            if filter.phase != Some(Phase::Asleep) {
                // So that SQLite sees that the partial index serves.
                conditions.push_str(" AND s.phase <> 'asleep'");
            }
        }
        let sql = format!(
            "SELECT s.seq, {SESSION_COLUMNS} FROM session s WHERE {conditions} \
             ORDER BY s.seq DESC LIMIT ?2"
        );
        self.at_one_moment(|connection| {
            let listed = self.rows(&sql, &values, "session", |columns| {
                Ok((columns.signed(0)?, session_record(columns, 1)?))
            })?;
            let is_full = listed.len() == limit as usize;
            let next = listed.last().filter(|_last| is_full).map(|(seq, _record)| seq.to_string());
            let ids = listed.iter().map(|(_seq, record)| record.id.as_str()).collect();
            let waiting = waiting_of(connection, ids)?;
            let mut items = Vec::with_capacity(listed.len());
            for (_seq, record) in &listed {
                let waiting = waiting.get(record.id.as_str()).copied().unwrap_or(0);
                let last_exit = self.last_exit(&record.id)?;
                items.push(SessionView { record: record.clone(), waiting, last_exit });
            }
            Ok(SessionPage { items, next })
        })
    }

    pub fn session(&self, id: &SessionId) -> Result<Option<SessionView>, ReadError> {
        let sql = format!("SELECT {SESSION_COLUMNS} FROM session WHERE id = ?1");
        self.at_one_moment(|connection| {
            let records =
                self.rows(&sql, &[&id.as_str()], "session", |columns| session_record(columns, 0))?;
            let Some(record) = records.into_iter().next() else { return Ok(None) };
            let waiting = waiting_of(connection, BTreeSet::from([id.as_str()]))?;
            let waiting = waiting.get(id.as_str()).copied().unwrap_or(0);
            let last_exit = self.last_exit(id)?;
            Ok(Some(SessionView { record, waiting, last_exit }))
        })
    }

    pub fn message(&self, id: MessageId) -> Result<Option<MessageView>, ReadError> {
        let sql = format!(
            "SELECT {MESSAGE_COLUMNS}, r.text FROM message m \
             LEFT JOIN message_reply r ON r.seq = m.seq WHERE m.id = ?1"
        );
        self.at_one_moment(|connection| {
            let mut found = self.rows(&sql, &[&id.to_string()], "message", |columns| {
                let (seq, mut view) = message_view(columns)?;
                view.reply = columns.optional(MESSAGE_COLUMNS_COUNT, Columns::string)?;
                Ok((seq, view))
            })?;
            let views = found.iter_mut().map(|(seq, view)| (*seq, view)).collect();
            fill_positions(connection, views)?;
            Ok(found.into_iter().next().map(|(_seq, view)| view))
        })
    }

    /// What the sender wrote.
    pub fn message_text(&self, id: MessageId) -> Result<Option<String>, ReadError> {
        const SQL: &str = "\
            SELECT t.text FROM message m JOIN message_text t ON t.seq = m.seq WHERE m.id = ?1";
        let found =
            self.rows(SQL, &[&id.to_string()], "message_text", |columns| columns.string(0))?;
        Ok(found.into_iter().next())
    }

    /// Decisions, the newest first, each with its number in the session; `before` is such a number.
    pub fn journal(
        &self,
        session: &SessionId,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<(i64, Decision)>, ReadError> {
        const SQL: &str = "\
            SELECT n, generation, at_ms, from_phase, to_phase, because FROM journal \
            WHERE session = ?1 AND n < ?2 ORDER BY n DESC LIMIT ?3";
        let before = before.unwrap_or(i64::MAX);
        self.rows(SQL, &[&session.as_str(), &before, &limit], "journal", |columns| {
            let decision = Decision {
                session: session.clone(),
                generation: columns.generation(1)?,
                at: columns.wall(2)?,
                from: columns.phase(3)?,
                to: columns.phase(4)?,
                because: columns.parsed(5, |text| serde_json::from_str(text).ok())?,
            };
            Ok((columns.signed(0)?, decision))
        })
    }

    /// Ended instances, the newest first, with their evidence.
    pub fn exits(&self, session: &SessionId, limit: u32) -> Result<Vec<ExitRecord>, ReadError> {
        const SQL: &str = "\
            SELECT generation, at_ms, phase, cause, message_in_flight, evidence, \
              circumstances, diagnosis FROM exit \
            WHERE session = ?1 ORDER BY generation DESC LIMIT ?2";
        self.rows(SQL, &[&session.as_str(), &limit], "exit", |columns| {
            let evidence: Evidence = columns.parsed(5, |text| serde_json::from_str(text).ok())?;
            let circumstances: Option<Circumstances> = columns.optional(6, |columns, place| {
                columns.parsed(place, |text| serde_json::from_str(text).ok())
            })?;
            let circumstances = circumstances.unwrap_or_default();
            // An end from before schema 2 is diagnosed from what was kept of it.
            let diagnosis = columns.optional(7, |columns, place| {
                columns.parsed(place, |text| serde_json::from_str(text).ok())
            })?;
            let diagnosis = diagnosis.unwrap_or_else(|| diagnose_exit(&evidence, &circumstances));
            Ok(ExitRecord {
                session: session.clone(),
                generation: columns.generation(0)?,
                at: columns.wall(1)?,
                phase: columns.phase(2)?,
                cause: columns.optional(3, Columns::cause)?,
                message_in_flight: columns.optional(4, Columns::message_id)?,
                evidence,
                circumstances,
                diagnosis,
            })
        })
    }

    /// Messages that have not ended, the newest first.
    pub fn queue(
        &self,
        filter: &MessageFilter,
        before: Option<MessageId>,
        limit: u32,
    ) -> Result<Vec<QueuedView>, ReadError> {
        self.messages("m.ended_at_ms IS NULL", filter, before, limit)
    }

    /// Dead letters that are not off the list, the newest first; also those that were redriven.
    pub fn dead_letters(
        &self,
        filter: &MessageFilter,
        before: Option<MessageId>,
        limit: u32,
    ) -> Result<Vec<QueuedView>, ReadError> {
        self.messages("m.state = 'dead' AND m.dropped_at_ms IS NULL", filter, before, limit)
    }

    /// Totals, at a cost that does not grow with what was ever accepted.
    pub fn counts(&self) -> Result<Counts, ReadError> {
        self.at_one_moment(|_connection| {
            let mut counts = Counts::default();
            let sql = "SELECT state, messages FROM tally";
            for (state, messages) in self
                .rows(sql, &[], "tally", |columns| Ok((columns.string(0)?, columns.number(1)?)))?
            {
                match state.as_str() {
                    "pending" => counts.pending = messages,
                    "leased" => counts.leased = messages,
                    "answered" => counts.answered = messages,
                    "dead" => counts.dead = messages,
                    "cancelled" => counts.cancelled = messages,
                    _other => {
                        let (table, column) = ("tally", "state".to_owned());
                        return Err(ReadError::Malformed { table, column, value: state });
                    }
                }
            }
            // Sessions are numbered from 1 and never removed.
            let sql = "SELECT coalesce(max(seq), 0) FROM session";
            let all = self.rows(sql, &[], "session", |columns| columns.number(0))?;
            counts.sessions = all.first().copied().unwrap_or(0);
            let sql = "SELECT phase, count(*) FROM session WHERE phase <> 'asleep' GROUP BY phase";
            let mut asleep = counts.sessions;
            for (phase, sessions) in self.rows(sql, &[], "session", |columns| {
                Ok((columns.phase(0)?, columns.number::<u64>(1)?))
            })? {
                counts.sessions_by_phase[phase as usize] = sessions;
                asleep = asleep.saturating_sub(sessions);
            }
            counts.sessions_by_phase[Phase::Asleep as usize] = asleep;
            Ok(counts)
        })
    }

    /// Sessions of each agent. Reads one index entry per session: not for every scrape.
    pub fn sessions_by_agent(&self) -> Result<BTreeMap<String, AgentSessions>, ReadError> {
        self.at_one_moment(|_connection| {
            let sql = "SELECT agent, count(*) FROM session GROUP BY agent";
            let all = self.rows(sql, &[], "session", |columns| {
                let sessions = columns.number(1)?;
                Ok((columns.string(0)?, AgentSessions { sessions, awake: 0 }))
            })?;
            let mut by_agent: BTreeMap<String, AgentSessions> = all.into_iter().collect();
            let sql = "SELECT agent, count(*) FROM session \
                 WHERE phase = 'awake' AND phase <> 'asleep' GROUP BY agent";
            for (agent, awake) in self
                .rows(sql, &[], "session", |columns| Ok((columns.string(0)?, columns.number(1)?)))?
            {
                by_agent.entry(agent).or_default().awake = awake;
            }
            Ok(by_agent)
        })
    }

    /// All API keys, the revoked ones too, oldest first.
    pub fn keys(&self) -> Result<Vec<KeyRecord>, ReadError> {
        keys::all(&self.connection)
    }

    /// The API key with this digest, unless it is revoked.
    pub fn key_by_hash(&self, hash: &str) -> Result<Option<KeyRecord>, ReadError> {
        keys::valid_by_hash(&self.connection, hash)
    }

    fn messages(
        &self,
        which: &str,
        filter: &MessageFilter,
        before: Option<MessageId>,
        limit: u32,
    ) -> Result<Vec<QueuedView>, ReadError> {
        let subject = filter.subject.as_ref().map(|subject| subject.as_str());
        let session = filter.session.as_ref().map(|session| session.as_str());
        let before = before.map(|id| id.to_string());
        let mut conditions = String::from(which);
        let mut values: Vec<&dyn ToSql> = vec![&limit];
        for (column, value) in [("subject", &subject), ("session", &session)] {
            if value.is_some() {
                values.push(value);
                conditions.push_str(&format!(" AND m.{column} = ?{}", values.len()));
            }
        }
        if before.is_some() {
            values.push(&before);
            let place = values.len();
            // Ids ascend with seq, so the first that is not before it bounds the scan.
            conditions.push_str(&format!(
                " AND m.seq < coalesce((SELECT seq FROM message WHERE id >= ?{place} \
                  ORDER BY id LIMIT 1), {})",
                i64::MAX
            ));
        }
        let sql = format!(
            "SELECT {MESSAGE_COLUMNS}, t.text FROM message m \
             CROSS JOIN message_text t ON t.seq = m.seq \
             WHERE {conditions} ORDER BY m.seq DESC LIMIT ?1"
        );
        self.at_one_moment(|connection| {
            let mut found = self.rows(&sql, &values, "message", |columns| {
                let text = columns.string(MESSAGE_COLUMNS_COUNT)?;
                let (seq, message) = message_view(columns)?;
                Ok((seq, QueuedView { message, text }))
            })?;
            let views = found.iter_mut().map(|(seq, item)| (*seq, &mut item.message)).collect();
            fill_positions(connection, views)?;
            Ok(found.into_iter().map(|(_seq, item)| item).collect())
        })
    }

    fn last_exit(&self, session: &SessionId) -> Result<Option<LastExit>, ReadError> {
        const SQL: &str = "\
            SELECT generation, at_ms, cause FROM exit \
            WHERE session = ?1 ORDER BY generation DESC LIMIT 1";
        let found = self.rows(SQL, &[&session.as_str()], "exit", |columns| {
            Ok(LastExit {
                generation: columns.generation(0)?,
                at: columns.wall(1)?,
                cause: columns.optional(2, Columns::cause)?,
            })
        })?;
        Ok(found.into_iter().next())
    }

    /// Several statements that see the same state of the database.
    pub(crate) fn at_one_moment<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let transaction = self.connection.unchecked_transaction()?;
        let result = read(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    pub(crate) fn rows<T>(
        &self,
        sql: &str,
        values: &[&dyn ToSql],
        table: &'static str,
        read: impl Fn(&Columns<'_>) -> Result<T, ReadError>,
    ) -> Result<Vec<T>, ReadError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(values)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read(&Columns::new(table, row))?);
        }
        Ok(found)
    }
}

/// Walks over all unended messages from old to new: place in the order of acceptance, session.
/// Reads only the index, some tens of bytes each.
fn each_unended(
    connection: &Connection,
    mut visit: impl FnMut(i64, &str),
) -> Result<(), ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, session FROM message WHERE ended_at_ms IS NULL ORDER BY seq",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let columns = Columns::new("message", row);
        visit(columns.signed(0)?, columns.text(1)?);
    }
    Ok(())
}

/// How many unended messages each of these sessions has.
fn waiting_of<'id>(
    connection: &Connection,
    sessions: BTreeSet<&'id str>,
) -> Result<BTreeMap<&'id str, u64>, ReadError> {
    let mut waiting: BTreeMap<&str, u64> = sessions.into_iter().map(|id| (id, 0)).collect();
    each_unended(connection, |_seq, session| {
        if let Some(count) = waiting.get_mut(session) {
            *count += 1;
        }
    })?;
    Ok(waiting)
}

/// Sets `position` in those of the views whose messages have not ended.
fn fill_positions(
    connection: &Connection,
    views: Vec<(i64, &mut MessageView)>,
) -> Result<(), ReadError> {
    let mut unended: BTreeMap<i64, &mut MessageView> =
        views.into_iter().filter(|(_seq, view)| view.ended_at.is_none()).collect();
    if unended.is_empty() {
        return Ok(());
    }
    let mut before: BTreeMap<String, u64> =
        unended.values().map(|view| (view.session.to_string(), 0)).collect();
    each_unended(connection, |seq, session| {
        if let Some(count) = before.get_mut(session) {
            if let Some(view) = unended.get_mut(&seq) {
                view.position = Some(*count);
            }
            *count += 1;
        }
    })
}

/// Reads `MESSAGE_COLUMNS`: the place in the order of acceptance, and all but position and reply.
fn message_view(columns: &Columns<'_>) -> Result<(i64, MessageView), ReadError> {
    let view = MessageView {
        id: columns.message_id(0)?,
        session: columns.session_id(1)?,
        subject: columns.subject(2)?,
        state: columns.state(3)?,
        bytes: columns.number(4)?,
        attempts: columns.number(5)?,
        excused: columns.number(6)?,
        accepted_at: columns.wall(7)?,
        leased_at: columns.optional(8, Columns::wall)?,
        not_before: columns.optional(9, Columns::wall)?,
        ended_at: columns.optional(10, Columns::wall)?,
        exit_code: columns.optional(11, Columns::number)?,
        cause: columns.optional(12, Columns::cause)?,
        detail: columns.optional(13, Columns::string)?,
        ended_by: columns.optional(14, Columns::subject)?,
        dropped_at: columns.optional(15, Columns::wall)?,
        redriven_as: columns.optional(16, Columns::message_id)?,
        redrive_of: columns.optional(17, Columns::message_id)?,
        position: None,
        reply: None,
    };
    Ok((columns.signed(MESSAGE_COLUMNS_COUNT - 1)?, view))
}

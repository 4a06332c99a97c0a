//! What each `Write` of the core is in SQL.
//!
//! Owner: the engine, through `Batch`. Invariants: a write that does not change exactly the row it
//! means is a contradiction between the core and the disk, and fatal; answered, dead and cancelled
//! are absorbing; a lease raises the attempts by one, and only the generation that holds a lease
//! can answer it. Absent: decisions.

use dormouse_core::cause::Cause;
use dormouse_core::command::Write;
use dormouse_core::id::{Generation, MessageId, Subject, TurnId};
use dormouse_core::journal::Decision;
use dormouse_core::limits::JOURNAL_ROWS_PER_SESSION;
use dormouse_core::record::{ExitRecord, FilesRecord, MessageRecord, MessageState, SessionRecord};
use dormouse_core::time::Wall;
use rusqlite::{Params, params};

use crate::error::{ApplyError, Severity};
use crate::rows::{at, integer, stop_word};
use crate::writer::Batch;

/// Exits kept per session, by generation; older ones go first.
pub const EXITS_PER_SESSION: u64 = 100;

/// Journal rows that a session may have beyond its bound before they are removed together.
const JOURNAL_ROWS_SLACK: u64 = 100;

/// What is needed of a message that ends.
#[derive(Debug)]
struct Unended {
    seq: i64,
    session: Box<str>,
    state: MessageState,
}

impl Batch<'_> {
    /// Makes one change of the core part of this batch.
    ///
    /// After `Full` the batch can only be dropped. `Invariant` and `Failed` halt the store: the
    /// core and the disk disagree, or the disk cannot be trusted, and the process must end.
    pub fn apply(&mut self, write: &Write) -> Result<(), ApplyError> {
        self.change(|batch| match write {
            Write::PutSession(record) => batch.put_session(record),
            Write::InsertMessage(record) => batch.insert_message(record),
            Write::LeaseDelivery { turn, generation, at } => batch.lease(*turn, *generation, *at),
            Write::ReturnDelivery { message, excused, not_before } => {
                batch.give_back(*message, *excused, *not_before)
            }
            Write::AnswerMessage { turn, generation, at, text, exit_code } => {
                batch.answer(*turn, *generation, *at, text, *exit_code)
            }
            Write::BuryMessage { message, at, cause, detail, exit_code } => {
                batch.bury(*message, *at, *cause, detail, *exit_code)
            }
            Write::CancelMessage { message, at, by } => batch.cancel(*message, *at, by),
            Write::MarkRedriven { message, new_id } => batch.mark_redriven(*message, *new_id),
            Write::DropDeadLetter { message, at, by } => batch.drop_letter(*message, *at, by),
            Write::InsertUpload(record) => batch.insert_upload(record),
            Write::InsertCheckpoint { record, keep } => batch.insert_checkpoint(record, *keep),
            Write::InsertExit(record) => batch.insert_exit(record),
            Write::InsertDecision(decision) => batch.insert_decision(decision),
            Write::PutRollout { agent, rollout } => batch.put_rollout(agent, rollout),
        })
    }

    fn put_session(&mut self, record: &SessionRecord) -> Result<(), ApplyError> {
        // Whom it belongs to and its beginning stay; the generation is a fence and only rises.
        const SQL: &str = "\
            INSERT INTO session (id, agent, subject, created_at_ms, phase, generation, failures, \
              backoff_until_ms, stop, wake_wanted, start_took_ms, last_failure, memory, \
              files, revision) \
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
            ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, \
              generation = excluded.generation, failures = excluded.failures, \
              backoff_until_ms = excluded.backoff_until_ms, stop = excluded.stop, \
              wake_wanted = excluded.wake_wanted, start_took_ms = excluded.start_took_ms, \
              last_failure = excluded.last_failure, memory = excluded.memory, \
              files = excluded.files, revision = excluded.revision \
            WHERE subject = excluded.subject AND created_at_ms = excluded.created_at_ms \
              AND generation <= excluded.generation";
        let phase = record.phase.to_string();
        let memory = record.memory.map(|memory| serde_json::to_string(&memory)).transpose();
        let memory =
            memory.map_err(|error| not_encoded("PutSession", record.id.as_str(), &error))?;
        let has_files = record.files != FilesRecord::default();
        let files = has_files.then(|| serde_json::to_string(&record.files)).transpose();
        let files = files.map_err(|error| not_encoded("PutSession", record.id.as_str(), &error))?;
        let row = params![
            record.id.as_str(),
            record.id.agent(),
            record.subject.as_str(),
            at(record.created_at),
            phase,
            integer(record.generation.0),
            record.failures,
            record.backoff_until.map(at),
            record.stop.map(stop_word),
            record.wake_wanted,
            record.start_took_ms.map(integer),
            record.last_failure.map(|cause| cause.code()),
            memory,
            files,
            record.revision.map(|revision| integer(revision.0)),
        ];
        self.change_one("PutSession", record.id.as_str(), SQL, row)
    }

    fn insert_message(&mut self, record: &MessageRecord) -> Result<(), ApplyError> {
        const SQL: &str = "\
            INSERT INTO message (id, session, subject, state, bytes, accepted_at_ms, attempts, \
              excused, redrive_of, idempotency_key, idempotency_digest) \
            VALUES (?1, ?2, ?3, 'pending', ?4, ?5, 0, 0, ?6, ?7, ?8)";
        const SQL_TEXT: &str = "INSERT INTO message_text (seq, text) VALUES (?1, ?2)";
        let id = record.id.to_string();
        if self.newest_message.is_some_and(|newest| newest >= record.id) {
            // Recovery restores the order of acceptance from the order of ids.
            return Err(ApplyError::Invariant { write: "InsertMessage", what: id });
        }
        let idempotency = record.idempotency.as_ref();
        let row = params![
            id,
            record.session.as_str(),
            record.subject.as_str(),
            integer(record.text.len() as u64),
            at(record.accepted_at),
            record.redrive_of.map(|dead| dead.to_string()),
            idempotency.map(|idempotency| idempotency.key.as_str()),
            idempotency.map(|idempotency| idempotency.digest.as_str()),
        ];
        self.change_one("InsertMessage", &id, SQL, row)?;
        let seq = self.last_insert_rowid();
        self.change_one("InsertMessage", &id, SQL_TEXT, params![seq, record.text])?;
        self.newest_message = Some(record.id);
        self.new_keys.note(record, seq);
        self.count_new(record.session.as_str());
        Ok(())
    }

    fn lease(
        &mut self,
        turn: TurnId,
        generation: Generation,
        when: Wall,
    ) -> Result<(), ApplyError> {
        const SQL: &str = "\
            UPDATE message SET state = 'leased', attempts = ?2, leased_generation = ?3, \
              leased_at_ms = ?4, not_before_ms = NULL \
            WHERE id = ?1 AND state = 'pending' AND attempts = ?2 - 1";
        let id = turn.message.to_string();
        let row = params![id, turn.attempt, integer(generation.0), at(when)];
        self.change_one("LeaseDelivery", &id, SQL, row)?;
        self.count(MessageState::Pending, MessageState::Leased);
        Ok(())
    }

    fn give_back(
        &mut self,
        message: MessageId,
        excused: u32,
        not_before: Option<Wall>,
    ) -> Result<(), ApplyError> {
        const SQL: &str = "\
            UPDATE message SET state = 'pending', excused = ?2, leased_generation = NULL, \
              not_before_ms = ?3 \
            WHERE id = ?1 AND state = 'leased' AND ?2 BETWEEN excused AND attempts";
        let id = message.to_string();
        self.change_one("ReturnDelivery", &id, SQL, params![id, excused, not_before.map(at)])?;
        self.count(MessageState::Leased, MessageState::Pending);
        Ok(())
    }

    fn answer(
        &mut self,
        turn: TurnId,
        generation: Generation,
        when: Wall,
        text: &str,
        exit_code: Option<i32>,
    ) -> Result<(), ApplyError> {
        const SQL: &str = "\
            UPDATE message SET state = 'answered', ended_at_ms = ?4, exit_code = ?5, \
              leased_generation = NULL \
            WHERE seq = ?1 AND state = 'leased' AND attempts = ?2 AND leased_generation = ?3";
        const SQL_REPLY: &str = "INSERT INTO message_reply (seq, text) VALUES (?1, ?2)";
        let write = "AnswerMessage";
        let id = turn.message.to_string();
        let message = self.unended(write, &id)?;
        let seq = message.seq;
        let row = params![seq, turn.attempt, integer(generation.0), at(when), exit_code];
        self.change_one(write, &id, SQL, row)?;
        self.change_one(write, &id, SQL_REPLY, params![seq, text])?;
        self.count_end(&message.session, message.state, MessageState::Answered);
        Ok(())
    }

    fn bury(
        &mut self,
        message: MessageId,
        when: Wall,
        cause: Cause,
        detail: &str,
        exit_code: Option<i32>,
    ) -> Result<(), ApplyError> {
        const SQL: &str = "\
            UPDATE message SET state = 'dead', ended_at_ms = ?2, cause = ?3, detail = ?4, \
              exit_code = ?5, leased_generation = NULL, not_before_ms = NULL \
            WHERE seq = ?1 AND ended_at_ms IS NULL";
        let id = message.to_string();
        let message = self.unended("BuryMessage", &id)?;
        let row = params![message.seq, at(when), cause.code(), detail, exit_code];
        self.change_one("BuryMessage", &id, SQL, row)?;
        self.count_end(&message.session, message.state, MessageState::Dead);
        Ok(())
    }

    fn cancel(&mut self, message: MessageId, when: Wall, by: &Subject) -> Result<(), ApplyError> {
        const SQL: &str = "\
            UPDATE message SET state = 'cancelled', ended_at_ms = ?2, ended_by = ?3, \
              leased_generation = NULL, not_before_ms = NULL \
            WHERE seq = ?1 AND ended_at_ms IS NULL";
        let id = message.to_string();
        let message = self.unended("CancelMessage", &id)?;
        self.change_one("CancelMessage", &id, SQL, params![message.seq, at(when), by.as_str()])?;
        self.count_end(&message.session, message.state, MessageState::Cancelled);
        Ok(())
    }

    /// The message that a write is about to end. One that has ended already is a contradiction.
    fn unended(&self, write: &'static str, id: &str) -> Result<Unended, ApplyError> {
        const SQL: &str = "\
            SELECT seq, session, state = 'leased' FROM message \
            WHERE id = ?1 AND ended_at_ms IS NULL";
        let found = self.statement(SQL).and_then(|mut statement| {
            statement.query_row([id], |row| {
                let is_leased: bool = row.get(2)?;
                let state = if is_leased { MessageState::Leased } else { MessageState::Pending };
                Ok(Unended { seq: row.get(0)?, session: row.get(1)?, state })
            })
        });
        found.map_err(|source| match source {
            rusqlite::Error::QueryReturnedNoRows => {
                ApplyError::Invariant { write, what: id.to_owned() }
            }
            source => ApplyError::Failed { source },
        })
    }

    fn mark_redriven(&mut self, message: MessageId, new_id: MessageId) -> Result<(), ApplyError> {
        const SQL: &str = "\
            UPDATE message SET redriven_as = ?2 \
            WHERE id = ?1 AND state = 'dead' AND redriven_as IS NULL AND dropped_at_ms IS NULL";
        let id = message.to_string();
        self.change_one("MarkRedriven", &id, SQL, params![id, new_id.to_string()])
    }

    fn drop_letter(
        &mut self,
        message: MessageId,
        when: Wall,
        by: &Subject,
    ) -> Result<(), ApplyError> {
        const SQL: &str = "\
            UPDATE message SET dropped_at_ms = ?2, ended_by = ?3 \
            WHERE id = ?1 AND state = 'dead' AND dropped_at_ms IS NULL";
        let id = message.to_string();
        self.change_one("DropDeadLetter", &id, SQL, params![id, at(when), by.as_str()])
    }

    fn insert_exit(&mut self, record: &ExitRecord) -> Result<(), ApplyError> {
        const SQL: &str = "\
            INSERT INTO exit \
            (session, generation, at_ms, phase, cause, message_in_flight, evidence, \
             circumstances, diagnosis) \
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        const SQL_TRIM: &str = "DELETE FROM exit WHERE session = ?1 AND generation <= ?2";
        let session = record.session.as_str();
        let what = format!("{session}#{}", record.generation);
        let json = |encoded| json("InsertExit", &what, encoded);
        let evidence = json(serde_json::to_string(&record.evidence))?;
        let circumstances = json(serde_json::to_string(&record.circumstances))?;
        let diagnosis = json(serde_json::to_string(&record.diagnosis))?;
        let row = params![
            session,
            integer(record.generation.0),
            at(record.at),
            record.phase.to_string(),
            record.cause.map(|cause| cause.code()),
            record.message_in_flight.map(|message| message.to_string()),
            evidence,
            circumstances,
            diagnosis,
        ];
        self.change_one("InsertExit", &what, SQL, row)?;
        if let Some(newest_to_go) = record.generation.0.checked_sub(EXITS_PER_SESSION) {
            self.execute_counted(
                "InsertExit",
                &what,
                SQL_TRIM,
                params![session, integer(newest_to_go)],
            )?;
        }
        Ok(())
    }

    fn insert_decision(&mut self, decision: &Decision) -> Result<(), ApplyError> {
        const SQL: &str = "\
            INSERT INTO journal (session, n, at_ms, generation, from_phase, to_phase, because) \
            SELECT ?1, 1 + coalesce((SELECT max(n) FROM journal WHERE session = ?1), 0), \
              ?2, ?3, ?4, ?5, ?6 \
            RETURNING n";
        const SQL_TRIM: &str = "DELETE FROM journal WHERE session = ?1 AND n <= ?2";
        let session = decision.session.as_str();
        let because = json("InsertDecision", session, serde_json::to_string(&decision.because))?;
        let row = params![
            session,
            at(decision.at),
            integer(decision.generation.0),
            decision.from.to_string(),
            decision.to.to_string(),
            because,
        ];
        let n: i64 = self
            .statement(SQL)
            .and_then(|mut statement| statement.query_row(row, |row| row.get(0)))
            .map_err(|source| failure("InsertDecision", session, source))?;
        // Numbers have no gaps, so the rows are counted by their newest number.
        let n = n.unsigned_abs();
        if n > JOURNAL_ROWS_PER_SESSION && n.is_multiple_of(JOURNAL_ROWS_SLACK) {
            let newest_to_go = integer(n - JOURNAL_ROWS_PER_SESSION);
            let row = params![session, newest_to_go];
            self.execute_counted("InsertDecision", session, SQL_TRIM, row)?;
        }
        Ok(())
    }

    /// Runs a statement that must change exactly one row.
    pub(crate) fn change_one(
        &self,
        write: &'static str,
        what: &str,
        sql: &str,
        row: impl Params,
    ) -> Result<(), ApplyError> {
        match self.execute_counted(write, what, sql, row)? {
            1 => Ok(()),
            _other => Err(ApplyError::Invariant { write, what: what.to_owned() }),
        }
    }

    pub(crate) fn execute_counted(
        &self,
        write: &'static str,
        what: &str,
        sql: &str,
        row: impl Params,
    ) -> Result<usize, ApplyError> {
        self.statement(sql)
            .and_then(|mut statement| statement.execute(row))
            .map_err(|source| failure(write, what, source))
    }
}

pub(crate) fn failure(write: &'static str, what: &str, source: rusqlite::Error) -> ApplyError {
    match Severity::of(&source) {
        Severity::Full => ApplyError::Full { source },
        Severity::Contradiction => {
            ApplyError::Invariant { write, what: format!("{what} ({source})") }
        }
        Severity::Fatal => ApplyError::Failed { source },
    }
}

fn json(
    write: &'static str,
    what: &str,
    encoded: serde_json::Result<String>,
) -> Result<String, ApplyError> {
    encoded.map_err(|error| not_encoded(write, what, &error))
}

pub(crate) fn not_encoded(
    write: &'static str,
    what: &str,
    error: &serde_json::Error,
) -> ApplyError {
    ApplyError::Invariant { write, what: format!("{what} ({error})") }
}

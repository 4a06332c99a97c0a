//! Between the core's words and the columns of a row, both ways.
//!
//! Owner: every statement of this crate reads through `Columns`. Invariant: a value that we cannot
//! have written is an error with its column's name, never a default. Absent: SQL.

use dormouse_core::cause::Cause;
use dormouse_core::id::{Generation, MessageId, RevisionNumber, SessionId, Subject};
use dormouse_core::record::{MessageState, SessionRecord, StopReason};
use dormouse_core::session::phase::Phase;
use dormouse_core::time::Wall;
use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::error::ReadError;

pub(crate) const MESSAGE_STATES: [MessageState; 5] = [
    MessageState::Pending,
    MessageState::Leased,
    MessageState::Answered,
    MessageState::Dead,
    MessageState::Cancelled,
];

pub(crate) const STOP_REASONS: [StopReason; 12] = [
    StopReason::Idle,
    StopReason::OperatorStop,
    StopReason::OperatorRestart,
    StopReason::Resize,
    StopReason::Revision,
    StopReason::StartTimeout,
    StopReason::TurnStuck,
    StopReason::TurnTooLong,
    StopReason::BridgeUnreachable,
    StopReason::ProtocolFault,
    StopReason::FilesFailed,
    StopReason::FilesRefused,
];

pub(crate) fn state_word(state: MessageState) -> &'static str {
    match state {
        MessageState::Pending => "pending",
        MessageState::Leased => "leased",
        MessageState::Answered => "answered",
        MessageState::Dead => "dead",
        MessageState::Cancelled => "cancelled",
    }
}

pub(crate) fn stop_word(stop: StopReason) -> &'static str {
    match stop {
        StopReason::Idle => "idle",
        StopReason::OperatorStop => "operator_stop",
        StopReason::OperatorRestart => "operator_restart",
        StopReason::Resize => "resize",
        StopReason::Revision => "revision",
        StopReason::StartTimeout => "start_timeout",
        StopReason::TurnStuck => "turn_stuck",
        StopReason::TurnTooLong => "turn_too_long",
        StopReason::BridgeUnreachable => "bridge_unreachable",
        StopReason::ProtocolFault => "protocol_fault",
        StopReason::FilesFailed => "files_failed",
        StopReason::FilesRefused => "files_refused",
    }
}

/// A number as SQLite stores it. What does not fit 63 bits is a time that means "never".
pub(crate) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn at(time: Wall) -> i64 {
    integer(time.0)
}

/// A row of `table`, read by the places of its columns.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'row> {
    pub(crate) row: &'row Row<'row>,
    pub(crate) table: &'static str,
}

impl<'row> Columns<'row> {
    pub(crate) fn new(table: &'static str, row: &'row Row<'row>) -> Self {
        Self { row, table }
    }

    fn value(&self, place: usize) -> Result<ValueRef<'row>, ReadError> {
        Ok(self.row.get_ref(place)?)
    }

    fn malformed(&self, place: usize) -> ReadError {
        let column = self.row.as_ref().column_name(place).unwrap_or("?").to_owned();
        let value = match self.row.get_ref(place) {
            Ok(ValueRef::Null) => "nothing".to_owned(),
            Ok(ValueRef::Integer(number)) => number.to_string(),
            Ok(ValueRef::Real(number)) => number.to_string(),
            // Not the whole text: it may be somebody's message.
            Ok(ValueRef::Text(text)) => format!("a text of {} bytes", text.len()),
            Ok(ValueRef::Blob(blob)) => format!("a blob of {} bytes", blob.len()),
            Err(error) => error.to_string(),
        };
        ReadError::Malformed { table: self.table, column, value }
    }

    pub(crate) fn is_null(&self, place: usize) -> Result<bool, ReadError> {
        Ok(self.value(place)? == ValueRef::Null)
    }

    pub(crate) fn text(&self, place: usize) -> Result<&'row str, ReadError> {
        match self.value(place)? {
            ValueRef::Text(bytes) => {
                std::str::from_utf8(bytes).map_err(|_not_utf8| self.malformed(place))
            }
            _other => Err(self.malformed(place)),
        }
    }

    pub(crate) fn string(&self, place: usize) -> Result<String, ReadError> {
        Ok(self.text(place)?.to_owned())
    }

    pub(crate) fn signed(&self, place: usize) -> Result<i64, ReadError> {
        match self.value(place)? {
            ValueRef::Integer(number) => Ok(number),
            _other => Err(self.malformed(place)),
        }
    }

    /// Any integer type; a negative or too large one is malformed.
    pub(crate) fn number<T: TryFrom<i64>>(&self, place: usize) -> Result<T, ReadError> {
        T::try_from(self.signed(place)?).map_err(|_out_of_range| self.malformed(place))
    }

    /// A text that `parse` turns into something.
    pub(crate) fn parsed<T>(
        &self,
        place: usize,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ReadError> {
        parse(self.text(place)?).ok_or_else(|| self.malformed(place))
    }

    /// `read` for a value, `None` for NULL.
    pub(crate) fn optional<T>(
        &self,
        place: usize,
        read: impl FnOnce(&Self, usize) -> Result<T, ReadError>,
    ) -> Result<Option<T>, ReadError> {
        if self.is_null(place)? { Ok(None) } else { read(self, place).map(Some) }
    }

    pub(crate) fn wall(&self, place: usize) -> Result<Wall, ReadError> {
        self.number(place).map(Wall)
    }

    pub(crate) fn generation(&self, place: usize) -> Result<Generation, ReadError> {
        self.number(place).map(Generation)
    }

    pub(crate) fn flag(&self, place: usize) -> Result<bool, ReadError> {
        match self.signed(place)? {
            0 => Ok(false),
            1 => Ok(true),
            _other => Err(self.malformed(place)),
        }
    }

    pub(crate) fn message_id(&self, place: usize) -> Result<MessageId, ReadError> {
        self.parsed(place, |text| text.parse().ok())
    }

    pub(crate) fn session_id(&self, place: usize) -> Result<SessionId, ReadError> {
        self.parsed(place, |text| SessionId::new(text).ok())
    }

    pub(crate) fn subject(&self, place: usize) -> Result<Subject, ReadError> {
        self.parsed(place, |text| Subject::new(text).ok())
    }

    pub(crate) fn phase(&self, place: usize) -> Result<Phase, ReadError> {
        self.parsed(place, |text| text.parse().ok())
    }

    pub(crate) fn cause(&self, place: usize) -> Result<Cause, ReadError> {
        self.parsed(place, |text| Cause::ALL.into_iter().find(|cause| cause.code() == text))
    }

    pub(crate) fn state(&self, place: usize) -> Result<MessageState, ReadError> {
        self.parsed(place, |text| {
            MESSAGE_STATES.into_iter().find(|state| state_word(*state) == text)
        })
    }

    fn stop(&self, place: usize) -> Result<StopReason, ReadError> {
        self.parsed(place, |text| STOP_REASONS.into_iter().find(|stop| stop_word(*stop) == text))
    }
}

/// The columns that `session_record` reads, in its order.
pub(crate) const SESSION_COLUMNS: &str = "id, subject, created_at_ms, phase, generation, failures, \
     backoff_until_ms, stop, wake_wanted, start_took_ms, last_failure, memory, files, revision";

/// Reads `SESSION_COLUMNS` that start at `first`.
pub(crate) fn session_record(
    columns: &Columns<'_>,
    first: usize,
) -> Result<SessionRecord, ReadError> {
    Ok(SessionRecord {
        id: columns.session_id(first)?,
        subject: columns.subject(first + 1)?,
        created_at: columns.wall(first + 2)?,
        phase: columns.phase(first + 3)?,
        generation: columns.generation(first + 4)?,
        failures: columns.number(first + 5)?,
        backoff_until: columns.optional(first + 6, Columns::wall)?,
        stop: columns.optional(first + 7, Columns::stop)?,
        wake_wanted: columns.flag(first + 8)?,
        start_took_ms: columns.optional(first + 9, Columns::number)?,
        last_failure: columns.optional(first + 10, Columns::cause)?,
        memory: columns.optional(first + 11, |columns, place| {
            columns.parsed(place, |text| serde_json::from_str(text).ok())
        })?,
        files: columns
            .optional(first + 12, |columns, place| {
                columns.parsed(place, |text| serde_json::from_str(text).ok())
            })?
            .unwrap_or_default(),
        revision: columns.optional(first + 13, Columns::number)?.map(RevisionNumber),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_words_are_the_words_of_the_core() {
        for state in MESSAGE_STATES {
            let word = format!("\"{}\"", state_word(state));
            assert_eq!(serde_json::to_string(&state).unwrap(), word);
        }
        for stop in STOP_REASONS {
            let word = format!("\"{}\"", stop_word(stop));
            assert_eq!(serde_json::to_string(&stop).unwrap(), word);
        }
    }

    #[test]
    fn what_we_cannot_have_written_is_named_by_its_column() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let sql = "SELECT -1 AS failures, 'msg_1' AS id, 7 AS wake_wanted, 'napping' AS phase";
        let mut statement = connection.prepare(sql).unwrap();
        let mut rows = statement.query([]).unwrap();
        let row = rows.next().unwrap().unwrap();
        let columns = Columns::new("session", row);
        let errors = [
            columns.number::<u32>(0).unwrap_err().to_string(),
            columns.message_id(1).unwrap_err().to_string(),
            columns.flag(2).unwrap_err().to_string(),
            columns.phase(3).unwrap_err().to_string(),
        ];
        for (error, column) in errors.iter().zip(["failures", "id", "wake_wanted", "phase"]) {
            assert!(error.contains(&format!("column {column} of session")), "{error}");
        }
    }
}

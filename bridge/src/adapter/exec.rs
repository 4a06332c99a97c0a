//! `exec`: one process per turn. The text goes to its standard input, which then ends; what it
//! writes to standard output is the reply, byte for byte; its exit status says how it went.
//!
//! Owner: `instance`. Invariants: there is an [`Exec::turn`] exactly while a turn's process lives;
//! standard error is log, and its end is in the message of a failure. Absent: spawning, killing.

use dormouse_core::cause::Cause;
use dormouse_core::event::TurnOutcome;
use dormouse_core::id::{SessionId, TurnId};

use super::{MESSAGE_BYTES_MAX, excerpt, failed};
use crate::child::SpawnError;
use crate::counters::Counters;
use crate::reaper::ExitStatus;
use crate::utf8::Utf8Stream;

const SIGKILL: i32 = 9;
/// How a shell passes on that its command was ended by SIGKILL.
const EXIT_CODE_OF_SIGKILL: i32 = 128 + SIGKILL;

#[derive(Debug, Default)]
pub(crate) struct Exec {
    pub(crate) turn: Option<ExecTurn>,
}

/// The process of one turn.
#[derive(Debug)]
pub(crate) struct ExecTurn {
    output: Utf8Stream,
    last_errors: Vec<u8>,
    pub(crate) counters_before: Counters,
    /// Decided before the process ended.
    pub(crate) verdict: Option<TurnOutcome>,
}

impl ExecTurn {
    pub(crate) fn new(counters_before: Counters) -> Self {
        Self {
            output: Utf8Stream::default(),
            last_errors: Vec::new(),
            counters_before,
            verdict: None,
        }
    }

    /// The text that these bytes of standard output complete.
    pub(crate) fn take_output(&mut self, bytes: &[u8]) -> String {
        self.output.push(bytes)
    }

    /// The text of a last, incomplete character.
    pub(crate) fn finish_output(&mut self) -> String {
        self.output.finish()
    }

    pub(crate) fn take_errors(&mut self, bytes: &[u8]) {
        self.last_errors.extend_from_slice(bytes);
        let surplus = self.last_errors.len().saturating_sub(MESSAGE_BYTES_MAX);
        self.last_errors.drain(..surplus);
    }

    /// What the end of the process means; `None` if the text so far is the answer.
    pub(crate) fn failure(&self, status: ExitStatus, oom_kills: u64) -> Option<TurnOutcome> {
        let was_oom_killed = oom_kills > 0
            && matches!(
                status,
                ExitStatus::Signal(SIGKILL) | ExitStatus::Code(EXIT_CODE_OF_SIGKILL)
            );
        let (cause, what, retryable, exit_code) = match status {
            ExitStatus::Code(0) => return None,
            ExitStatus::Code(code) if was_oom_killed => {
                let what = "ran out of memory".to_string();
                (Cause::OomLimit, what, true, Some(code))
            }
            ExitStatus::Code(code) => {
                (Cause::AgentError, format!("ended with exit code {code}"), false, Some(code))
            }
            ExitStatus::Signal(_) if was_oom_killed => {
                (Cause::OomLimit, "ran out of memory".to_string(), true, None)
            }
            ExitStatus::Signal(signal) => {
                (Cause::KilledOutside, format!("was killed by signal {signal}"), true, None)
            }
        };
        let errors = String::from_utf8_lossy(&self.last_errors);
        let errors = errors.trim();
        let message = match errors.is_empty() {
            true => format!("the program {what}"),
            false => format!("the program {what}: {errors}"),
        };
        let message = excerpt(&message, 2 * MESSAGE_BYTES_MAX);
        Some(TurnOutcome::Failed { cause, message, retryable, exit_code })
    }
}

/// What a turn's process finds in its environment beside the launch's own.
pub(crate) fn turn_environment(session: &SessionId, turn: TurnId) -> [(&'static str, String); 3] {
    [
        ("DORMOUSE_SESSION", session.to_string()),
        ("DORMOUSE_TURN", turn.to_string()),
        ("DORMOUSE_ATTEMPT", turn.attempt.to_string()),
    ]
}

pub(crate) fn not_executed(error: &SpawnError) -> TurnOutcome {
    failed(Cause::LaunchFailed, error.to_string(), error.may_pass())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: ExitStatus, oom_kills: u64, errors: &[u8]) -> String {
        let mut turn = ExecTurn::new(Counters::default());
        turn.take_errors(errors);
        match turn.failure(status, oom_kills) {
            None => "answered".to_string(),
            Some(TurnOutcome::Failed { cause, message, retryable, exit_code }) => {
                format!("{cause} {retryable} {exit_code:?} {message}")
            }
            Some(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn the_status_and_the_counter_decide() {
        let code = ExitStatus::Code;
        let signal = ExitStatus::Signal;
        assert_eq!(failure(code(0), 1, b"warning"), "answered");
        assert_eq!(
            failure(code(3), 0, b"boom\n"),
            "agent_error false Some(3) the program ended with exit code 3: boom"
        );
        assert_eq!(
            failure(code(137), 0, b""),
            "agent_error false Some(137) the program ended with exit code 137"
        );
        assert_eq!(
            failure(code(137), 1, b""),
            "oom_limit true Some(137) the program ran out of memory"
        );
        assert_eq!(
            failure(signal(9), 0, b""),
            "killed_outside true None the program was killed by signal 9"
        );
        assert_eq!(failure(signal(9), 2, b""), "oom_limit true None the program ran out of memory");
        assert_eq!(
            failure(signal(11), 2, b""),
            "killed_outside true None the program was killed by signal 11"
        );
    }

    #[test]
    fn a_failure_carries_the_last_of_a_long_standard_error() {
        let mut errors = vec![b'x'; 3 * MESSAGE_BYTES_MAX];
        errors.extend_from_slice(b"\nthe end");
        let message = failure(ExitStatus::Code(1), 0, &errors);
        assert!(message.ends_with("the end") && message.len() < 2 * MESSAGE_BYTES_MAX);
    }
}

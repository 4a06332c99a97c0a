//! `exec`: one process per turn. The text goes to its standard input, which then ends; what it
//! writes to standard output is the reply, byte for byte; its exit status says how it went. Of much
//! output the reply has the first and the last, and a file in the workspace the whole (`reply`).
//!
//! Owner: `instance`. Invariants: there is an [`Exec::turn`] exactly while a turn's process lives;
//! standard error is log, and its end is in the message of a failure; want of memory is said only
//! where it is proved, because the memory limit rises for it. Absent: spawning, killing.

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::{SIGHUP, SIGINT, SIGKILL, SIGTERM, signal_name};
use dormouse_core::event::TurnOutcome;
use dormouse_core::evidence::{MachineOom, OomVictim};
use dormouse_core::id::{SessionId, TurnId};

use super::{MESSAGE_BYTES_MAX, excerpt, failed};
use crate::child::SpawnError;
use crate::oom::Settled;
use crate::reaper::ExitStatus;

/// How a shell passes on that its command was ended by SIGKILL.
const EXIT_CODE_OF_SIGKILL: i32 = 128 + SIGKILL;
const CHILD_OOM_KILLED: &str =
    ", after the kernel killed a program that it had started, for its memory";

#[derive(Debug, Default)]
pub(crate) struct Exec {
    pub(crate) turn: Option<ExecTurn>,
}

/// The process of one turn.
#[derive(Debug, Default)]
pub(crate) struct ExecTurn {
    last_errors: Vec<u8>,
}

impl ExecTurn {
    pub(crate) fn take_errors(&mut self, bytes: &[u8]) {
        self.last_errors.extend_from_slice(bytes);
        let surplus = self.last_errors.len().saturating_sub(MESSAGE_BYTES_MAX);
        self.last_errors.drain(..surplus);
    }

    /// What the end of the process means; `None` if the text so far is the answer. `memory` is of
    /// its life; `whole` says where its output is, if that is in a file.
    pub(crate) fn failure(
        &self,
        status: ExitStatus,
        memory: Settled,
        whole: Option<String>,
    ) -> Option<TurnOutcome> {
        let Settled { kills: oom_kills, victim, machine_oom } = memory;
        let (cause, what, retryable, exit_code) = match status {
            ExitStatus::Code(0) => return None,
            ExitStatus::Code(code) => {
                let why = if oom_kills > 0 { CHILD_OOM_KILLED } else { "" };
                let what = format!("ended with exit code {code}{why}");
                // As a shell hands it on.
                let was_child = oom_kills > 0 && code == EXIT_CODE_OF_SIGKILL;
                let cause = if was_child { Cause::OomChild } else { Cause::AgentError };
                (cause, what, was_child, Some(code))
            }
            ExitStatus::Signal(SIGKILL) if let Some(said) = machine_oom => {
                let what = match said {
                    MachineOom::Chosen => "was killed because the machine was out of memory",
                    MachineOom::Killed => "was killed for memory, though not for its own limit",
                };
                (Cause::OomHost, what.to_owned(), true, None)
            }
            ExitStatus::Signal(SIGKILL) if victim == Some(OomVictim::Main) => {
                let what = "was killed because it needed more memory than it may use";
                (Cause::OomLimit, what.to_owned(), true, None)
            }
            ExitStatus::Signal(SIGKILL) if oom_kills > 0 && victim.is_none() => {
                let what = "was ended by SIGKILL; the kernel killed for memory meanwhile, but \
                            whom is not known";
                (Cause::Unknown, what.to_owned(), true, None)
            }
            ExitStatus::Signal(signal) => {
                let name = signal_name(signal);
                match signal {
                    SIGHUP | SIGINT | SIGKILL | SIGTERM => {
                        let what = format!("was ended by {name}, which Dormouse did not send");
                        (Cause::KilledOutside, what, true, None)
                    }
                    _ => (Cause::AppSignal, format!("crashed with {name}"), true, None),
                }
            }
        };
        let errors = String::from_utf8_lossy(&self.last_errors);
        let errors = errors.trim();
        let message = match errors.is_empty() {
            true => format!("the program {what}"),
            false => format!("the program {what}: {errors}"),
        };
        let mut message = excerpt(&message, 2 * MESSAGE_BYTES_MAX);
        if let Some(whole) = whole {
            message.push_str(&format!(" (its output: {whole})"));
        }
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

    fn failure(status: ExitStatus, errors: &[u8]) -> String {
        failure_with_oom(status, 0, None, errors)
    }

    fn failure_with_oom(
        status: ExitStatus,
        oom_kills: u64,
        oom_victim: Option<OomVictim>,
        errors: &[u8],
    ) -> String {
        let mut turn = ExecTurn::default();
        turn.take_errors(errors);
        let memory = Settled { kills: oom_kills, victim: oom_victim, machine_oom: None };
        words(turn.failure(status, memory, None))
    }

    fn words(failure: Option<TurnOutcome>) -> String {
        match failure {
            None => "answered".to_string(),
            Some(TurnOutcome::Failed { cause, message, retryable, exit_code }) => {
                format!("{cause} {retryable} {exit_code:?} {message}")
            }
            Some(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn the_status_decides() {
        assert_eq!(failure(ExitStatus::Code(0), b"warning"), "answered");
        assert_eq!(
            failure(ExitStatus::Code(3), b"boom\n"),
            "agent_error false Some(3) the program ended with exit code 3: boom"
        );
        assert_eq!(
            failure(ExitStatus::Code(137), b""),
            "agent_error false Some(137) the program ended with exit code 137"
        );
        for signal in [9, 15] {
            let words = failure(ExitStatus::Signal(signal), b"");
            assert!(words.starts_with("killed_outside true None the program was"), "{words}");
        }
        assert_eq!(
            failure(ExitStatus::Signal(11), b"core"),
            "app_signal true None the program crashed with SIGSEGV: core"
        );
        assert!(failure(ExitStatus::Signal(6), b"").starts_with("app_signal"));
    }

    #[test]
    fn a_counted_kill_is_the_cause_only_of_an_end_by_sigkill_that_it_may_have_been() {
        let cause = |status, victim| {
            let words = failure_with_oom(status, 2, victim, b"");
            words.split(' ').next().unwrap().to_owned()
        };
        let (main, child) = (Some(OomVictim::Main), Some(OomVictim::Child));
        assert_eq!(cause(ExitStatus::Signal(9), main), "oom_limit");
        assert_eq!(cause(ExitStatus::Signal(9), None), "unknown", "it is not proved");
        assert_eq!(cause(ExitStatus::Signal(9), child), "killed_outside");
        assert_eq!(cause(ExitStatus::Signal(11), None), "app_signal");
        assert_eq!(cause(ExitStatus::Code(0), child), "answered");
        let words = failure_with_oom(ExitStatus::Code(137), 1, child, b"");
        assert!(words.starts_with("oom_child true Some(137)"), "{words}");
        assert!(words.ends_with("killed a program that it had started, for its memory"), "{words}");
        let words = failure_with_oom(ExitStatus::Code(1), 1, child, b"");
        assert!(words.starts_with("agent_error false Some(1)"), "{words}");
    }

    #[test]
    fn a_kill_for_the_machine_s_memory_is_not_the_limit_s() {
        for (said, what) in [
            (MachineOom::Chosen, "because the machine was out of memory"),
            (MachineOom::Killed, "for memory, though not for its own limit"),
        ] {
            // The kernel counts it in the group as well.
            let memory = Settled { kills: 1, victim: None, machine_oom: Some(said) };
            let words = words(ExecTurn::default().failure(ExitStatus::Signal(9), memory, None));
            assert_eq!(words, format!("oom_host true None the program was killed {what}"));
        }
    }

    #[test]
    fn a_failure_carries_the_last_of_a_long_standard_error() {
        let mut errors = vec![b'x'; 3 * MESSAGE_BYTES_MAX];
        errors.extend_from_slice(b"\nthe end");
        let message = failure(ExitStatus::Code(1), &errors);
        assert!(message.ends_with("the end") && message.len() < 2 * MESSAGE_BYTES_MAX);
    }
}

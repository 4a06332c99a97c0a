//! The closed list of causes: why a message, a turn or an instance ended otherwise than well.
//!
//! Owner: this list. Each code has a page docs/causes/CODE.md (symptom, evidence, what Dormouse
//! does, what you do).
//! Invariant: a code, once released, keeps its meaning. Absent: evidence (`evidence`), and wording
//! with facts in it, which `journal` prints.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The agent ended by itself with an exit code.
    AgentExited,
    /// A signal that Dormouse did not send ended the agent.
    AgentKilled,
    /// SIGKILL that nobody asked for, and the kernel counted an out-of-memory kill in its control
    /// group.
    AgentOutOfMemory,
    /// The agent's command could not be executed.
    LaunchFailed,
    /// The driver could not start an instance at all.
    StartFailed,
    /// Not ready within `start.ready_within`.
    StartTimeout,
    /// No progress within `turn.stuck_after`.
    TurnStuck,
    /// Longer than `turn.within`.
    TurnTooLong,
    /// The bridge ended before it could report.
    BridgeLost,
    /// The bridge did not connect within its limit.
    BridgeUnreachable,
    /// Dormouse stopped the agent while its turn ran.
    StoppedDuringTurn,
    /// Delivered as often as allowed, without an answer.
    AttemptsExhausted,
    /// The outcome of a turn that must not be repeated is unknown.
    Ambiguous,
    /// The agent answered that it failed.
    AgentError,
    /// The agent broke its protocol.
    ProtocolFault,
    /// The reply is longer than is kept.
    ReplyTooLarge,
    /// The evidence does not say.
    Unknown,
}

impl Cause {
    pub const ALL: [Cause; 17] = [
        Cause::AgentExited,
        Cause::AgentKilled,
        Cause::AgentOutOfMemory,
        Cause::LaunchFailed,
        Cause::StartFailed,
        Cause::StartTimeout,
        Cause::TurnStuck,
        Cause::TurnTooLong,
        Cause::BridgeLost,
        Cause::BridgeUnreachable,
        Cause::StoppedDuringTurn,
        Cause::AttemptsExhausted,
        Cause::Ambiguous,
        Cause::AgentError,
        Cause::ProtocolFault,
        Cause::ReplyTooLarge,
        Cause::Unknown,
    ];

    /// The stable code: in the store, the API, metrics, and the name of its page.
    pub fn code(&self) -> &'static str {
        match self {
            Cause::AgentExited => "agent_exited",
            Cause::AgentKilled => "agent_killed",
            Cause::AgentOutOfMemory => "agent_out_of_memory",
            Cause::LaunchFailed => "launch_failed",
            Cause::StartFailed => "start_failed",
            Cause::StartTimeout => "start_timeout",
            Cause::TurnStuck => "turn_stuck",
            Cause::TurnTooLong => "turn_too_long",
            Cause::BridgeLost => "bridge_lost",
            Cause::BridgeUnreachable => "bridge_unreachable",
            Cause::StoppedDuringTurn => "stopped_during_turn",
            Cause::AttemptsExhausted => "attempts_exhausted",
            Cause::Ambiguous => "ambiguous",
            Cause::AgentError => "agent_error",
            Cause::ProtocolFault => "protocol_fault",
            Cause::ReplyTooLarge => "reply_too_large",
            Cause::Unknown => "unknown",
        }
    }

    /// One sentence in plain words, for a sender who knows nothing of processes.
    pub fn plain_words(&self) -> &'static str {
        match self {
            Cause::AgentExited => "the agent's program ended by itself",
            Cause::AgentKilled => "something outside Dormouse killed the agent's program",
            Cause::AgentOutOfMemory => "the agent needed more memory than it may use",
            Cause::LaunchFailed => "the agent's program could not be started",
            Cause::StartFailed => "no place could be made for the agent to run in",
            Cause::StartTimeout => "the agent did not become ready in time",
            Cause::TurnStuck => "the agent showed no sign of progress for too long",
            Cause::TurnTooLong => "the agent worked on this longer than is allowed",
            Cause::BridgeLost => "the agent's supervisor was killed",
            Cause::BridgeUnreachable => "the agent could not be reached any more",
            Cause::StoppedDuringTurn => "the agent was stopped before it had finished",
            Cause::AttemptsExhausted => "it was tried as often as is allowed, without an answer",
            Cause::Ambiguous => {
                "it may or may not have been done, and must not be repeated unasked"
            }
            Cause::AgentError => "the agent said that it failed",
            Cause::ProtocolFault => "the agent's answer could not be understood",
            Cause::ReplyTooLarge => "the agent's answer was longer than can be kept",
            Cause::Unknown => "it is not known why",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_one_code_which_is_also_its_stored_form() {
        let codes: std::collections::BTreeSet<_> = Cause::ALL.iter().map(Cause::code).collect();
        assert_eq!(codes.len(), Cause::ALL.len());
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_string(&cause).unwrap(), format!("\"{}\"", cause.code()));
        }
    }
}

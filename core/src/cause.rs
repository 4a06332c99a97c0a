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
    AppExit,
    /// A fault of its own ended the agent by a signal: SIGSEGV, SIGABRT and their like.
    AppSignal,
    /// Somebody outside Dormouse, who is not known, sent the signal that ended it.
    KilledOutside,
    /// The kernel killed the main process for the memory limit of its group.
    OomLimit,
    /// The kernel killed a child for that limit, and the main process ended because of it.
    OomChild,
    /// The machine as a whole was out of memory.
    OomHost,
    /// A runtime gave up at a heap limit of its own (V8), well or badly below the group's.
    OomHeap,
    /// Asked to end, it did not within its grace, and was killed.
    StopTimeoutKill,
    /// Its group's limit on processes and threads refused it one.
    PidsLimit,
    /// The port that it wanted to listen on was in use.
    PortTaken,
    /// It could not write: no space left.
    DiskFull,
    /// It says that its own configuration is wrong (exit code 78).
    ConfigRejected,
    /// A person or a program stopped it through the platform.
    StoppedByUser,
    /// A watchdog stopped it: idle, too old, or hung.
    StoppedByWatchdog,
    /// A deployment or a scale-in replaced it.
    DeployReplaced,
    /// Its container's health check failed.
    HealthContainer,
    /// The load balancer's health check failed.
    HealthLb,
    /// The spot capacity that it ran on was taken back.
    Spot,
    /// The machine that it ran on is gone.
    HostLost,
    /// The node evicted it.
    Evicted,
    /// Its image could not be pulled.
    ImagePull,
    /// Secrets, logging or volumes could not be set up for it.
    InitFailed,
    /// There is no room for it on any machine.
    Placement,
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
    /// The agent died each time that it was given this message, as often as is allowed.
    PoisonMessage,
    /// Delivered as often as allowed, without an answer.
    AttemptsExhausted,
    /// The outcome of a turn that must not be repeated is unknown.
    Ambiguous,
    /// A file that the agent's config requires is not there.
    InputMissing,
    /// The files that the turn needs could not be brought to its workspace.
    SyncFailed,
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
    pub const ALL: [Cause; 40] = [
        Cause::AppExit,
        Cause::AppSignal,
        Cause::KilledOutside,
        Cause::OomLimit,
        Cause::OomChild,
        Cause::OomHost,
        Cause::OomHeap,
        Cause::StopTimeoutKill,
        Cause::PidsLimit,
        Cause::PortTaken,
        Cause::DiskFull,
        Cause::ConfigRejected,
        Cause::StoppedByUser,
        Cause::StoppedByWatchdog,
        Cause::DeployReplaced,
        Cause::HealthContainer,
        Cause::HealthLb,
        Cause::Spot,
        Cause::HostLost,
        Cause::Evicted,
        Cause::ImagePull,
        Cause::InitFailed,
        Cause::Placement,
        Cause::LaunchFailed,
        Cause::StartFailed,
        Cause::StartTimeout,
        Cause::TurnStuck,
        Cause::TurnTooLong,
        Cause::BridgeLost,
        Cause::BridgeUnreachable,
        Cause::StoppedDuringTurn,
        Cause::PoisonMessage,
        Cause::AttemptsExhausted,
        Cause::Ambiguous,
        Cause::InputMissing,
        Cause::SyncFailed,
        Cause::AgentError,
        Cause::ProtocolFault,
        Cause::ReplyTooLarge,
        Cause::Unknown,
    ];

    /// The stable code: in the store, the API, metrics, and the name of its page.
    pub fn code(&self) -> &'static str {
        match self {
            Cause::AppExit => "app_exit",
            Cause::AppSignal => "app_signal",
            Cause::KilledOutside => "killed_outside",
            Cause::OomLimit => "oom_limit",
            Cause::OomChild => "oom_child",
            Cause::OomHost => "oom_host",
            Cause::OomHeap => "oom_heap",
            Cause::StopTimeoutKill => "stop_timeout_kill",
            Cause::PidsLimit => "pids_limit",
            Cause::PortTaken => "port_taken",
            Cause::DiskFull => "disk_full",
            Cause::ConfigRejected => "config_rejected",
            Cause::StoppedByUser => "stopped_by_user",
            Cause::StoppedByWatchdog => "stopped_by_watchdog",
            Cause::DeployReplaced => "deploy_replaced",
            Cause::HealthContainer => "health_container",
            Cause::HealthLb => "health_lb",
            Cause::Spot => "spot",
            Cause::HostLost => "host_lost",
            Cause::Evicted => "evicted",
            Cause::ImagePull => "image_pull",
            Cause::InitFailed => "init_failed",
            Cause::Placement => "placement",
            Cause::LaunchFailed => "launch_failed",
            Cause::StartFailed => "start_failed",
            Cause::StartTimeout => "start_timeout",
            Cause::TurnStuck => "turn_stuck",
            Cause::TurnTooLong => "turn_too_long",
            Cause::BridgeLost => "bridge_lost",
            Cause::BridgeUnreachable => "bridge_unreachable",
            Cause::StoppedDuringTurn => "stopped_during_turn",
            Cause::PoisonMessage => "poison_message",
            Cause::AttemptsExhausted => "attempts_exhausted",
            Cause::Ambiguous => "ambiguous",
            Cause::InputMissing => "input_missing",
            Cause::SyncFailed => "sync_failed",
            Cause::AgentError => "agent_error",
            Cause::ProtocolFault => "protocol_fault",
            Cause::ReplyTooLarge => "reply_too_large",
            Cause::Unknown => "unknown",
        }
    }

    /// One sentence in plain words, for a sender who knows nothing of processes.
    pub fn plain_words(&self) -> &'static str {
        match self {
            Cause::AppExit => "the agent's program ended by itself",
            Cause::AppSignal => "the agent's program crashed",
            Cause::KilledOutside => "something outside Dormouse killed the agent's program",
            Cause::OomLimit => "the agent needed more memory than it may use",
            Cause::OomChild => {
                "a program that the agent had started needed more memory than it may use"
            }
            Cause::OomHost => "the machine ran out of memory",
            Cause::OomHeap => "the agent's runtime reached its own memory limit",
            Cause::StopTimeoutKill => "it did not end in time when asked to, and was killed",
            Cause::PidsLimit => "the agent wanted more processes or threads than it may have",
            Cause::PortTaken => "the port that the agent wanted is in use",
            Cause::DiskFull => "there was no disk space left for the agent",
            Cause::ConfigRejected => "the agent says that its configuration is wrong",
            Cause::StoppedByUser => "somebody stopped it",
            Cause::StoppedByWatchdog => "a watchdog stopped it",
            Cause::DeployReplaced => "a deployment replaced it",
            Cause::HealthContainer => "its health check failed",
            Cause::HealthLb => "the load balancer's health check failed",
            Cause::Spot => "the spot capacity that it ran on was taken back",
            Cause::HostLost => "the machine that it ran on is gone",
            Cause::Evicted => "the machine that it ran on needed the room",
            Cause::ImagePull => "its image could not be fetched",
            Cause::InitFailed => "what it needs before its start could not be set up",
            Cause::Placement => "no machine has room for it",
            Cause::LaunchFailed => "the agent's program could not be started",
            Cause::StartFailed => "no place could be made for the agent to run in",
            Cause::StartTimeout => "the agent did not become ready in time",
            Cause::TurnStuck => "the agent showed no sign of progress for too long",
            Cause::TurnTooLong => "the agent worked on this longer than is allowed",
            Cause::BridgeLost => "the agent's supervisor was killed",
            Cause::BridgeUnreachable => "the agent could not be reached any more",
            Cause::StoppedDuringTurn => "the agent was stopped before it had finished",
            Cause::PoisonMessage => "the agent's program died each time it worked on it",
            Cause::AttemptsExhausted => "it was tried as often as is allowed, without an answer",
            Cause::Ambiguous => {
                "it may or may not have been done, and must not be repeated unasked"
            }
            Cause::InputMissing => "a file that the agent needs is not there",
            Cause::SyncFailed => "the files that the agent needs could not be brought to it",
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

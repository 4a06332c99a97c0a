//! The journal: one row per decision, what happened, from which phase to which, because of what.
//! `why` prints these.
//!
//! Owner: `session` writes a decision with every change of phase and every turn. Invariant: a row
//! can be read by a person who has only the row. Absent: texts of messages and replies, secrets,
//! log lines.

mod revision;

use std::fmt;
use std::time::Duration;

pub use revision::RevisionChange;
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::evidence::{AskedBy, End, Evidence};
use crate::id::{Generation, MessageId, SessionId, Subject, TurnId};
use crate::manifest::FilePath;
use crate::record::StopReason;
use crate::session::phase::Phase;
use crate::time::Wall;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub session: SessionId,
    pub generation: Generation,
    pub at: Wall,
    pub from: Phase,
    pub to: Phase,
    pub because: Because,
}

/// What a decision rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Because {
    MessagesWait {
        waiting: usize,
    },
    WakeRequested {
        by: Subject,
    },
    /// No message waits; an earlier request to wake or restart is being met.
    WakeWanted,
    StopRequested {
        by: Subject,
    },
    RestartRequested {
        by: Subject,
    },
    BecameReady {
        took_ms: u64,
    },
    TurnStarted {
        turn: TurnId,
    },
    TurnAnswered {
        turn: TurnId,
        took_ms: u64,
        bytes: u64,
    },
    TurnFailed {
        turn: TurnId,
        cause: Cause,
        message: String,
        retry_at: Option<Wall>,
    },
    TurnInterrupted {
        turn: TurnId,
        excused: bool,
    },
    MessageBuried {
        message: MessageId,
        cause: Cause,
        attempts: u32,
    },
    MessageDropped {
        message: MessageId,
        by: Subject,
    },
    MessageRedriven {
        dead: MessageId,
        message: MessageId,
        by: Subject,
    },
    WasIdle {
        idle_ms: u64,
    },
    DrainFinished,
    DrainTimeUp {
        turn: Option<TurnId>,
    },
    NotReadyInTime {
        within_ms: u64,
    },
    TurnStuck {
        turn: TurnId,
        silent_ms: u64,
    },
    TurnTooLong {
        turn: TurnId,
        within_ms: u64,
    },
    BridgeUnreachable {
        for_ms: u64,
    },
    KillRepeated,
    BrokeProtocol {
        what: String,
    },
    HoldTaken {
        name: String,
        for_ms: u64,
    },
    StartFailed {
        error: String,
        failures: u32,
        restart_at: Option<Wall>,
    },
    Exited {
        summary: ExitSummary,
        failures: u32,
        restart_at: Option<Wall>,
    },
    BackoffEnded,
    /// Several sessions of its agent failed at their start; one of them is tried first.
    AgentHeldBack,
    /// A turn has raised the memory limit, which only a new instance has.
    MemoryOutgrown,
    /// After a death that is proved to be for want of memory.
    MemoryRaised {
        from_bytes: u64,
        to_bytes: u64,
        cause: Cause,
    },
    /// It would have to be raised, and may not be.
    MemoryAtCeiling {
        limit_bytes: u64,
    },
    MemoryLowered {
        from_bytes: u64,
        to_bytes: u64,
    },
    Revision {
        change: RevisionChange,
    },
    Files {
        change: FilesChange,
    },
    /// It was started for messages, and they were given up.
    NothingLeftToDo,
    /// The daemon came back and found the session like this.
    Recovered {
        waiting: usize,
    },
    AgentNotConfigured,
}

/// What became of a session's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum FilesChange {
    /// The workspace holds what is expected of it.
    InPlace {
        took_ms: u64,
    },
    Failed {
        cause: Cause,
        message: String,
        retry_at: Option<Wall>,
    },
    Uploaded {
        path: FilePath,
        is_deleted: bool,
        by: Subject,
    },
    CheckpointMade {
        number: u64,
        files: u64,
        bytes: u64,
    },
    RestoreRequested {
        checkpoint: u64,
        by: Subject,
    },
}

/// An exit's facts, short enough for a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitSummary {
    pub cause: Option<Cause>,
    pub end: End,
    pub asked_by: Option<AskedBy>,
    pub stop: Option<StopReason>,
    pub grace_ran_out: bool,
    pub uptime_ms: Option<u64>,
    pub oom_kills: Option<u64>,
}

impl ExitSummary {
    pub fn of(evidence: &Evidence, cause: Option<Cause>, stop: Option<StopReason>) -> Self {
        Self {
            cause,
            end: evidence.end.clone(),
            asked_by: evidence.asked_by,
            stop,
            grace_ran_out: evidence.grace_ran_out,
            uptime_ms: evidence.uptime_ms,
            oom_kills: evidence.oom_kills,
        }
    }
}

/// "1.5 s", "340 ms", "12 min": for people, in the largest fitting unit.
pub fn human_span(span: Duration) -> String {
    let millis = span.as_millis();
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => {
            let tenths = millis / 100;
            if tenths.is_multiple_of(10) {
                format!("{} s", tenths / 10)
            } else {
                format!("{}.{} s", tenths / 10, tenths % 10)
            }
        }
        60_000..3_600_000 => two_units(millis / 1_000, 60, "min", "s"),
        _ => two_units(millis / 60_000, 60, "h", "min"),
    }
}

fn two_units(small: u128, per_large: u128, large_name: &str, small_name: &str) -> String {
    match small % per_large {
        0 => format!("{} {large_name}", small / per_large),
        rest => format!("{} {large_name} {rest} {small_name}", small / per_large),
    }
}

fn span(ms: u64) -> String {
    human_span(Duration::from_millis(ms))
}

/// "512 MiB".
pub(crate) fn mebibytes(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    }
}

/// "1 message", "2 messages".
pub fn count(n: u64, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

const KILL_REPEATED: &str = "its end was not confirmed in time; ordered to be killed";
const MEMORY_OUTGROWN: &str = "what it may use has risen, which holds from the next start on";
const AGENT_HELD_BACK: &str =
    "not started yet: other sessions of its agent failed at their start, and one is tried first";
const AGENT_NOT_CONFIGURED: &str = "not started, because its agent is not in the config any more";

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Because::MessagesWait { waiting } => {
                write!(f, "{} to answer", count(*waiting as u64, "message", "messages"))
            }
            Because::WakeRequested { by } => write!(f, "{by} asked to wake it"),
            Because::WakeWanted => f.write_str("it was asked for"),
            Because::StopRequested { by } => write!(f, "{by} asked to stop it"),
            Because::RestartRequested { by } => write!(f, "{by} asked to restart it"),
            Because::BecameReady { took_ms } => {
                write!(f, "the agent was ready after {}", span(*took_ms))
            }
            Because::MessageBuried { message, cause, attempts } => {
                message_buried(f, *message, *cause, *attempts)
            }
            Because::MessageDropped { message, by } => write!(f, "{by} dropped {message}"),
            Because::MessageRedriven { dead, message, by } => {
                write!(f, "{by} redrove {dead} as {message}")
            }
            Because::WasIdle { idle_ms } => was_idle(f, *idle_ms),
            Because::DrainFinished => f.write_str("its turn is finished"),
            Because::DrainTimeUp { turn } => drain_time_up(f, turn.as_ref()),
            Because::NotReadyInTime { within_ms } => not_ready(f, *within_ms),
            Because::BridgeUnreachable { for_ms } => {
                write!(f, "its bridge was not connected for {}", span(*for_ms))
            }
            Because::KillRepeated => f.write_str(KILL_REPEATED),
            Because::BrokeProtocol { what } => write!(f, "its bridge broke the protocol: {what}"),
            Because::HoldTaken { name, for_ms } => hold_taken(f, name, *for_ms),
            Because::TurnStarted { turn } => {
                write!(f, "{} was handed to the agent, attempt {}", turn.message, turn.attempt)
            }
            Because::TurnAnswered { turn, took_ms, bytes } => {
                turn_answered(f, turn, *took_ms, *bytes)
            }
            Because::TurnFailed { turn, cause, message, retry_at } => {
                turn_failed(f, turn, *cause, message, retry_at.is_some())
            }
            Because::TurnInterrupted { turn, excused } => turn_interrupted(f, turn, *excused),
            Because::TurnStuck { turn, silent_ms } => {
                write!(f, "{} showed no progress for {}", turn.message, span(*silent_ms))
            }
            Because::TurnTooLong { turn, within_ms } => {
                write!(f, "{} took longer than {}", turn.message, span(*within_ms))
            }
            Because::StartFailed { error, failures, restart_at } => {
                write!(f, "it could not be started: {error}")?;
                restart(f, *failures, restart_at.is_some())
            }
            Because::Exited { summary, failures, restart_at } => {
                write!(f, "{summary}")?;
                restart(f, *failures, restart_at.is_some())
            }
            Because::AgentHeldBack => f.write_str(AGENT_HELD_BACK),
            Because::BackoffEnded => f.write_str("the pause before the next start is over"),
            Because::MemoryOutgrown => f.write_str(MEMORY_OUTGROWN),
            Because::MemoryRaised { from_bytes: from, to_bytes: to, cause } => {
                memory_raised(f, *from, *to, *cause)
            }
            Because::MemoryAtCeiling { limit_bytes } => memory_at_ceiling(f, *limit_bytes),
            Because::MemoryLowered { from_bytes: from, to_bytes: to } => {
                memory_lowered(f, *from, *to)
            }
            Because::Revision { change } => change.fmt(f),
            Because::Files { change } => change.fmt(f),
            Because::NothingLeftToDo => f.write_str("nothing is left that waits for it"),
            Because::Recovered { waiting } => recovered(f, *waiting),
            Because::AgentNotConfigured => f.write_str(AGENT_NOT_CONFIGURED),
        }
    }
}

fn was_idle(f: &mut fmt::Formatter<'_>, idle_ms: u64) -> fmt::Result {
    write!(f, "nothing happened for {}, and nothing needs it", span(idle_ms))
}

fn message_buried(
    f: &mut fmt::Formatter<'_>,
    message: MessageId,
    cause: Cause,
    attempts: u32,
) -> fmt::Result {
    let tries = count(u64::from(attempts), "attempt", "attempts");
    write!(f, "{message} was dead-lettered after {tries} [{cause}]")
}

fn turn_answered(f: &mut fmt::Formatter<'_>, turn: &TurnId, took: u64, bytes: u64) -> fmt::Result {
    let bytes = count(bytes, "byte", "bytes");
    write!(f, "{} was answered in {} ({bytes})", turn.message, span(took))
}

impl fmt::Display for FilesChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FilesChange::InPlace { took_ms } => {
                write!(f, "its files were in place after {}", span(*took_ms))
            }
            FilesChange::Failed { cause, message, retry_at } => {
                let next = if retry_at.is_some() { "; it will be tried again" } else { "" };
                write!(f, "its files are not in place [{cause}]: {message}{next}")
            }
            FilesChange::Uploaded { path, is_deleted: false, by } => write!(f, "{by} put {path}"),
            FilesChange::Uploaded { path, is_deleted: true, by } => {
                write!(f, "{by} deleted {path}")
            }
            FilesChange::CheckpointMade { number, files, bytes } => {
                let (files, bytes) =
                    (count(*files, "file", "files"), count(*bytes, "byte", "bytes"));
                write!(f, "checkpoint {number} of its workspace was taken ({files}, {bytes})")
            }
            FilesChange::RestoreRequested { checkpoint, by } => {
                write!(f, "{by} asked for its files as they were in checkpoint {checkpoint}")
            }
        }
    }
}

fn recovered(f: &mut fmt::Formatter<'_>, waiting: usize) -> fmt::Result {
    let messages = count(waiting as u64, "message", "messages");
    write!(f, "the daemon came back and found {messages} waiting")
}

fn not_ready(f: &mut fmt::Formatter<'_>, within_ms: u64) -> fmt::Result {
    write!(f, "it was not ready within {}", span(within_ms))
}

fn memory_raised(f: &mut fmt::Formatter<'_>, from: u64, to: u64, cause: Cause) -> fmt::Result {
    let (from, to) = (mebibytes(from), mebibytes(to));
    write!(f, "its memory limit goes from {from} to {to} for the next start [{cause}]")
}

fn hold_taken(f: &mut fmt::Formatter<'_>, name: &str, for_ms: u64) -> fmt::Result {
    write!(f, "the agent asked to stay awake for {} ({name})", span(for_ms))
}

fn memory_at_ceiling(f: &mut fmt::Formatter<'_>, limit: u64) -> fmt::Result {
    let limit = mebibytes(limit);
    write!(f, "it needs more memory, and {limit} is the most that it may have")
}

fn memory_lowered(f: &mut fmt::Formatter<'_>, from: u64, to: u64) -> fmt::Result {
    let (from, to) = (mebibytes(from), mebibytes(to));
    write!(f, "less was enough for long: its memory limit goes from {from} to {to}")
}

fn turn_failed(
    f: &mut fmt::Formatter<'_>,
    turn: &TurnId,
    cause: Cause,
    message: &str,
    will_retry: bool,
) -> fmt::Result {
    let next = if will_retry { "; it will be tried again" } else { "" };
    write!(f, "{} failed [{cause}]: {message}{next}", turn.message)
}

fn drain_time_up(f: &mut fmt::Formatter<'_>, turn: Option<&TurnId>) -> fmt::Result {
    match turn {
        Some(turn) => write!(f, "{} did not finish within the drain time", turn.message),
        None => f.write_str("the drain time is over"),
    }
}

fn turn_interrupted(f: &mut fmt::Formatter<'_>, turn: &TurnId, excused: bool) -> fmt::Result {
    let counted = if excused { "not counted" } else { "counted" };
    write!(f, "{} was cut short; attempt {} is {counted}", turn.message, turn.attempt)
}

fn restart(f: &mut fmt::Formatter<'_>, failures: u32, later: bool) -> fmt::Result {
    if later {
        write!(f, "; failure {failures} in a row, so the next start has to wait")?;
    }
    Ok(())
}

impl fmt::Display for ExitSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            End::Exited { code } => write!(f, "the agent ended with exit code {code}")?,
            End::Signaled { signal } => write!(f, "the agent was ended by signal {signal}")?,
            End::LaunchFailed { error } => write!(f, "the agent could not be executed: {error}")?,
            End::NeverLaunched => {
                f.write_str("the instance ended before its agent was executed")?
            }
            End::BridgeLost => f.write_str("the bridge was gone without a report")?,
        }
        if let Some(uptime_ms) = self.uptime_ms {
            write!(f, " after {}", span(uptime_ms))?;
        }
        if let Some(stop) = self.stop {
            write!(f, ", as asked ({})", stop_words(stop))?;
        } else if self.asked_by == Some(AskedBy::OrphanLimit) {
            f.write_str(", because no daemon came back for it")?;
        } else if self.asked_by == Some(AskedBy::Signal) {
            f.write_str(", because its bridge was told to end by a signal from outside")?;
        }
        if self.grace_ran_out {
            f.write_str(", killed when its grace ran out")?;
        }
        if let Some(kills) = self.oom_kills.filter(|kills| *kills > 0) {
            write!(f, "; out-of-memory kills counted: {kills}")?;
        }
        match self.cause {
            Some(cause) => write!(f, " [{cause}]"),
            None => Ok(()),
        }
    }
}

fn stop_words(stop: StopReason) -> &'static str {
    match stop {
        StopReason::Idle => "idle",
        StopReason::OperatorStop => "stop",
        StopReason::OperatorRestart => "restart",
        StopReason::Resize => "more memory",
        StopReason::Revision => "another revision",
        StopReason::StartTimeout => "not ready in time",
        StopReason::TurnStuck => "turn stuck",
        StopReason::TurnTooLong => "turn too long",
        StopReason::BridgeUnreachable => "bridge unreachable",
        StopReason::ProtocolFault => "protocol fault",
        StopReason::FilesFailed => "its files could not be brought",
        StopReason::FilesRefused => "its files cannot be brought",
    }
}

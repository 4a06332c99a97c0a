//! Everything that may be done, as closed lists: what to write, what to do after the commit, whom
//! to tell.
//!
//! Owner: `core` pushes, the engine takes. The order is fixed: all writes of a batch are committed,
//! then answers and notices go out, then commands run. Invariant: commands are at-least-once and
//! idempotent; a lost one is derived anew from the records. Absent: how anything is done.

use std::time::Duration;

use crate::cause::Cause;
use crate::event::FilesProgress;
use crate::id::{
    AgentName, BootId, Generation, InstanceId, MessageId, RequestId, RevisionNumber, SessionId,
    Subject, TurnId,
};
use crate::journal::Decision;
use crate::manifest::FilesVersion;
use crate::record::{CheckpointRecord, ExitRecord, MessageRecord, SessionRecord, UploadRecord};
use crate::rollout::Rollout;
use crate::time::Wall;

/// A push-only view for the handlers; the engine drains it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    pub writes: Vec<Write>,
    pub answers: Vec<(RequestId, Answer)>,
    pub notices: Vec<Notice>,
    pub commands: Vec<Command>,
    /// Events that were dropped because they came from a past generation or were repeated.
    pub stale: u64,
}

/// One change of the store. All of a batch are one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    PutSession(SessionRecord),
    InsertMessage(MessageRecord),
    /// On disk before the turn's first byte reaches an agent.
    LeaseDelivery {
        turn: TurnId,
        generation: Generation,
        at: Wall,
    },
    /// Pending again after a failed or interrupted attempt.
    ReturnDelivery {
        message: MessageId,
        excused: u32,
        not_before: Option<Wall>,
    },
    /// Reply and queue acknowledgement in one.
    AnswerMessage {
        turn: TurnId,
        generation: Generation,
        at: Wall,
        text: String,
        exit_code: Option<i32>,
    },
    BuryMessage {
        message: MessageId,
        at: Wall,
        cause: Cause,
        detail: String,
        exit_code: Option<i32>,
    },
    CancelMessage {
        message: MessageId,
        at: Wall,
        by: Subject,
    },
    /// The dead letter was tried anew as `new_id`; it stays dead.
    MarkRedriven {
        message: MessageId,
        new_id: MessageId,
    },
    /// Off the list of dead letters; the message stays dead.
    DropDeadLetter {
        message: MessageId,
        at: Wall,
        by: Subject,
    },
    InsertUpload(UploadRecord),
    /// Only the newest `keep` checkpoints of the session are kept, and the one to restore.
    InsertCheckpoint {
        record: CheckpointRecord,
        keep: u64,
    },
    InsertExit(ExitRecord),
    InsertDecision(Decision),
    PutRollout {
        agent: AgentName,
        rollout: Rollout,
    },
}

/// What the edge is to do after the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Driver: execute a bridge for this instance, unless it exists.
    StartInstance {
        instance: InstanceId,
        revision: RevisionNumber,
        memory_limit_bytes: Option<u64>,
    },
    /// Bridge: welcome, and with `launch` execute the agent in this revision.
    AdmitBridge { instance: InstanceId, boot: BootId, launch: Option<RevisionNumber> },
    /// Bridge: you are not the one; end without touching anything.
    RefuseBridge { instance: InstanceId, boot: BootId, why: &'static str },
    /// Daemon: look what the agent's inputs are now.
    ListInputs { instance: InstanceId, look: u64 },
    /// Bridge: bring the workspace to this version.
    SyncFiles { instance: InstanceId, version: FilesVersion },
    /// Bridge: execute the agent now.
    LaunchAgent { instance: InstanceId, revision: RevisionNumber },
    /// Bridge: run this turn. The engine adds the message's text.
    DeliverTurn { instance: InstanceId, turn: TurnId },
    /// Bridge: the result is on disk, forget it.
    AcknowledgeTurn { instance: InstanceId, turn: TurnId },
    /// Bridge: ask the agent to end, kill what is left after `grace`, then report.
    StopInstance { instance: InstanceId, grace: Duration },
    /// Driver: kill everything of this instance, then report its exit.
    KillInstance { instance: InstanceId },
    /// Bridge and driver: the exit is on disk; end, and remove what was kept for it.
    ReleaseInstance { instance: InstanceId },
}

/// What a sender who waits for a message is told meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub message: MessageId,
    pub news: News,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Behind `ahead` other messages of the session.
    Queued {
        ahead: usize,
    },
    /// The agent is being started; `estimate` from measured starts, if there are any.
    Waking {
        estimate: Option<Duration>,
    },
    /// The agent will be started once `ahead` other starts have been.
    InLine {
        ahead: usize,
    },
    /// The files that it needs are on their way.
    Syncing {
        progress: FilesProgress,
    },
    /// Handed to the agent.
    Delivered {
        attempt: u32,
    },
    /// A piece of the reply of that attempt; `offset` counts bytes from the reply's start.
    Delta {
        attempt: u32,
        offset: u64,
        text: String,
    },
    /// No progress for `silent`, not yet given up.
    Slow {
        silent: Duration,
    },
    /// The attempt failed; the next is due at `at`.
    Retrying {
        attempt: u32,
        at: Wall,
        cause: Cause,
    },
    /// The agent could not be kept alive; the next start is due at `at`.
    WaitingToRestart {
        at: Wall,
        cause: Cause,
    },
    /// The daemon is ending: the message waits on disk for its next start.
    DaemonEnding,
    Answered {
        attempt: u32,
        text: String,
        exit_code: Option<i32>,
    },
    Dead {
        cause: Cause,
        detail: String,
    },
    Cancelled,
}

/// What a request is answered with, after the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Durable. `position` 0 means that it is next, or already with the agent.
    Accepted {
        message: MessageId,
        position: usize,
    },
    /// Accepted earlier under the same idempotency key.
    Duplicate {
        message: MessageId,
    },
    Requested(RequestOutcome),
    /// The file will be there for the next turn.
    Uploaded {
        number: u64,
    },
    CheckpointMade {
        number: u64,
    },
    /// The config is in force.
    Configured,
    Refused(Refusal),
}

/// An operator's request is accepted, ignored or denied with a typed reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome {
    /// `waiting` messages will wake the agent again after a stop.
    Accepted {
        waiting: usize,
    },
    Ignored(IgnoredBecause),
    Denied(DeniedBecause),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IgnoredBecause {
    AlreadyAwake,
    AlreadyStarting,
    AlreadyAsleep,
    AlreadyStopping,
    AlreadyEnded,
    /// It would change nothing.
    AlreadySo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeniedBecause {
    /// Messages wait for the next start; drop them first.
    MessagesWaiting {
        waiting: usize,
    },
    /// The message is with the agent; stop the session first.
    InFlight,
    /// Its agent is not in the config.
    AgentNotConfigured,
    NoSuchCheckpoint,
}

/// Why a message, a file or a checkpoint was not accepted. Nothing was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    UnknownAgent,
    NotYourSession,
    IdempotencyConflict {
        message: MessageId,
    },
    QueueFull {
        messages: usize,
        bytes: u64,
    },
    /// A checkpoint of a life that is over.
    PastLife,
    /// A checkpoint of a workspace that has been restored to something else since.
    OtherLineage,
    /// A checkpoint of a workspace that is not known to be whole.
    NotWhole,
}

impl Effects {
    pub(crate) fn write(&mut self, write: Write) {
        self.writes.push(write);
    }

    pub(crate) fn answer(&mut self, request: RequestId, answer: Answer) {
        self.answers.push((request, answer));
    }

    pub(crate) fn tell(&mut self, message: MessageId, news: News) {
        self.notices.push(Notice { message, news });
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.commands.push(command);
    }

    /// The session that a command is for; every command is for one instance.
    pub fn session_of(command: &Command) -> &SessionId {
        let instance = match command {
            Command::StartInstance { instance, .. }
            | Command::AdmitBridge { instance, .. }
            | Command::RefuseBridge { instance, .. }
            | Command::ListInputs { instance, .. }
            | Command::SyncFiles { instance, .. }
            | Command::LaunchAgent { instance, .. }
            | Command::DeliverTurn { instance, .. }
            | Command::AcknowledgeTurn { instance, .. }
            | Command::StopInstance { instance, .. }
            | Command::KillInstance { instance }
            | Command::ReleaseInstance { instance } => instance,
        };
        &instance.session
    }
}

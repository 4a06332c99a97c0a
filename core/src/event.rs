//! Everything that can happen, as one closed list. Names are past tense; what an operator asks for
//! ends in `Requested`.
//!
//! Owner: the engine linearises every source into these. Invariant: what an instance says carries
//! its generation.
//! Absent: what to do about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::evidence::Evidence;
use crate::id::{AgentName, BootId, InstanceId, MessageId, RequestId, SessionId, Subject, TurnId};
use crate::manifest::{FileKind, FilePath, FilesVersion, ManifestDigest};
use crate::policy::{AgentSetup, NodePolicy};
use crate::record::Idempotency;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A sender's message passed the gate. Legal for any session; makes the session when it is new.
    MessageSubmitted {
        request: RequestId,
        submission: Submission,
    },
    /// An operator, or the session's owner, asked for something. Answered exactly once.
    SessionRequested {
        request: RequestId,
        session: SessionId,
        what: SessionRequest,
        by: Subject,
    },
    /// A dead letter is to be tried anew, as a new message.
    RedriveRequested {
        request: RequestId,
        dead: DeadLetter,
        new_id: MessageId,
        by: Subject,
    },
    /// A message is to be given up: taken out of the queue or, where the store says `is_dead`, off
    /// the list of dead letters.
    DropRequested {
        request: RequestId,
        session: SessionId,
        message: MessageId,
        is_dead: bool,
        by: Subject,
    },

    /// A file of the session's own is in the store of blobs, or one is to be deleted. Makes the
    /// session when it is new, and wakes nobody.
    UploadSubmitted {
        request: RequestId,
        upload: UploadSubmission,
    },
    /// The workspace is to be as it was in that checkpoint.
    RestoreRequested {
        request: RequestId,
        session: SessionId,
        checkpoint: u64,
        by: Subject,
    },

    /// The driver executed the bridge.
    InstanceStarted {
        instance: InstanceId,
    },
    /// The driver could not; nothing of the instance exists.
    InstanceStartFailed {
        instance: InstanceId,
        error: String,
    },
    /// A bridge said hello with a valid token.
    BridgeAttached {
        instance: InstanceId,
        boot: BootId,
        agent: AgentState,
        held: Vec<TurnId>,
    },
    /// The connection of that bridge ended.
    BridgeDetached {
        instance: InstanceId,
        boot: BootId,
    },
    /// The agent is ready for turns.
    InstanceReady {
        instance: InstanceId,
    },
    /// A piece of a reply: `text` starts at byte `offset` of the turn's text.
    TurnProgressed {
        instance: InstanceId,
        turn: TurnId,
        offset: u64,
        text: String,
    },
    TurnEnded {
        instance: InstanceId,
        turn: TurnId,
        outcome: TurnOutcome,
    },
    /// The agent declared a reason to stay awake, or renewed it.
    HoldTaken {
        instance: InstanceId,
        name: String,
        for_ms: u64,
    },
    /// The daemon has looked at what the agent's inputs are now.
    InputsListed {
        instance: InstanceId,
        look: u64,
        outcome: Result<ManifestDigest, FilesProblem>,
    },
    /// How far the bridge is with what it was told to sync.
    FilesProgressed {
        instance: InstanceId,
        progress: FilesProgress,
    },
    /// The workspace holds that version, as the bridge of this boot has proved. Repeated after each
    /// hello.
    FilesSynced {
        instance: InstanceId,
        version: FilesVersion,
    },
    FilesSyncFailed {
        instance: InstanceId,
        version: FilesVersion,
        problem: FilesProblem,
    },
    /// What the agent has made is in the store of blobs. Answered exactly once.
    CheckpointOffered {
        request: RequestId,
        instance: InstanceId,
        offer: CheckpointOffer,
    },
    /// The instance is over: nothing of it runs any more. Said by its bridge, or by the driver.
    InstanceExited {
        instance: InstanceId,
        evidence: Evidence,
    },

    /// A new config is in force.
    Configured {
        request: RequestId,
        setup: Box<Setup>,
    },
    /// An operator steers how a new revision of an agent comes into use.
    RolloutRequested {
        request: RequestId,
        agent: AgentName,
        what: RolloutRequest,
        by: Subject,
    },

    /// Time went by: `now` is at or after `Supervisor::next_deadline`.
    DeadlinePassed,
}

impl Event {
    /// The session that this is about. The engine loads it before it hands the event over.
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Event::MessageSubmitted { submission, .. } => Some(&submission.session),
            Event::RedriveRequested { dead, .. } => Some(&dead.session),
            Event::UploadSubmitted { upload, .. } => Some(&upload.session),
            Event::SessionRequested { session, .. }
            | Event::DropRequested { session, .. }
            | Event::RestoreRequested { session, .. } => Some(session),
            Event::InstanceStarted { .. }
            | Event::InstanceStartFailed { .. }
            | Event::BridgeAttached { .. }
            | Event::BridgeDetached { .. }
            | Event::InstanceReady { .. }
            | Event::TurnProgressed { .. }
            | Event::TurnEnded { .. }
            | Event::HoldTaken { .. }
            | Event::InputsListed { .. }
            | Event::FilesProgressed { .. }
            | Event::FilesSynced { .. }
            | Event::FilesSyncFailed { .. }
            | Event::CheckpointOffered { .. }
            | Event::InstanceExited { .. } => self.instance().map(|instance| &instance.session),
            Event::Configured { .. } | Event::RolloutRequested { .. } | Event::DeadlinePassed => {
                None
            }
        }
    }

    /// The instance that says this, or of which it is said.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Event::InstanceStarted { instance }
            | Event::InstanceStartFailed { instance, .. }
            | Event::BridgeAttached { instance, .. }
            | Event::BridgeDetached { instance, .. }
            | Event::InstanceReady { instance }
            | Event::TurnProgressed { instance, .. }
            | Event::TurnEnded { instance, .. }
            | Event::HoldTaken { instance, .. }
            | Event::InputsListed { instance, .. }
            | Event::FilesProgressed { instance, .. }
            | Event::FilesSynced { instance, .. }
            | Event::FilesSyncFailed { instance, .. }
            | Event::CheckpointOffered { instance, .. }
            | Event::InstanceExited { instance, .. } => Some(instance),
            Event::MessageSubmitted { .. }
            | Event::SessionRequested { .. }
            | Event::RedriveRequested { .. }
            | Event::DropRequested { .. }
            | Event::UploadSubmitted { .. }
            | Event::RestoreRequested { .. }
            | Event::Configured { .. }
            | Event::RolloutRequested { .. }
            | Event::DeadlinePassed => None,
        }
    }
}

/// What the config in force says, as far as it is decided by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    pub node: NodePolicy,
    pub agents: BTreeMap<AgentName, AgentSetup>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutRequest {
    /// Nobody new moves to the wanted revision.
    Pause,
    Resume,
    /// Everybody goes back to the revision that was good before.
    Abort,
    /// A revision that was found bad is tried again.
    Retry,
}

/// Why files are not what they are to be. No paths of this machine, no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesProblem {
    pub cause: Cause,
    pub message: String,
    /// Trying again may help.
    pub retryable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesProgress {
    pub done_files: u64,
    pub files: u64,
    pub done_bytes: u64,
    pub bytes: u64,
}

/// A file that somebody put into a session's workspace, or took out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadSubmission {
    pub session: SessionId,
    pub subject: Subject,
    /// The sender may write to any session.
    pub is_operator: bool,
    pub path: FilePath,
    /// `None`: to be deleted.
    pub file: Option<FileKind>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointOffer {
    /// Which workspace it is of; a restore makes another one.
    pub lineage: u64,
    /// The newest upload that is in it.
    pub uploads: u64,
    pub manifest: ManifestDigest,
    pub files: u64,
    pub bytes: u64,
    /// The turn after which it was taken, if it was.
    pub turn: Option<TurnId>,
}

/// What a sender handed in, with what the store knows of its idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    pub id: MessageId,
    pub session: SessionId,
    pub subject: Subject,
    /// The sender may write to any session.
    pub is_operator: bool,
    pub text: String,
    /// Put into the workspace before its turn, if it is accepted. Their bytes are kept already.
    pub attachments: Vec<Attachment>,
    pub idempotency: Option<Idempotency>,
    /// The message that was accepted under the same key before.
    pub prior: Option<PriorMessage>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub path: FilePath,
    pub file: FileKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorMessage {
    pub id: MessageId,
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: MessageId,
    pub session: SessionId,
    pub subject: Subject,
    pub text: String,
    pub redriven_as: Option<MessageId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionRequest {
    Wake,
    Stop,
    Restart,
}

/// How far the bridge's agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// The bridge waits for its welcome before it executes anything.
    NotLaunched,
    Starting,
    Ready,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ended", rename_all = "snake_case")]
pub enum TurnOutcome {
    Answered {
        text: String,
        /// For adapters that run one process per turn.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    Failed {
        cause: Cause,
        /// For the operator and the sender; no secrets, no stack of ours.
        message: String,
        /// The agent's side says that trying again may help and does no harm.
        retryable: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
}

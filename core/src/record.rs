//! What the store keeps, in the words of the core: session rows, messages, queue states, exits.
//!
//! Owner: `command::Write` carries these out; `Supervisor::load` takes them back in.
//! Invariant: state after a restart is a function of these records and of what the driver lists, of
//! nothing else (FAULTS I22). Absent: SQL, file names, monotonic times.

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::diagnosis::Diagnosis;
use crate::evidence::Evidence;
use crate::id::{Generation, MessageId, RevisionNumber, SessionId, Subject, TurnId};
use crate::manifest::{FileKind, FilePath, ManifestDigest};
use crate::session::phase::Phase;
use crate::sizing::LearnedMemory;
use crate::time::Wall;

/// A session's row. A sleeping session is this and nothing in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    pub id: SessionId,
    pub subject: Subject,
    pub created_at: Wall,
    pub phase: Phase,
    /// The newest start's number; 0 before the first.
    pub generation: Generation,
    /// Failed lives in a row, since the last answer.
    pub failures: u32,
    /// In `Phase::Backoff` and `Phase::Tripped`: when the next start is due.
    pub backoff_until: Option<Wall>,
    /// Why the live instance is being stopped, in `Phase::Draining` and `Phase::Stopping`.
    pub stop: Option<StopReason>,
    /// Start it (again) although no message waits: an operator asked.
    pub wake_wanted: bool,
    /// How long the last successful start took, for estimates.
    pub start_took_ms: Option<u64>,
    /// Why the newest of those `failures` failed.
    pub last_failure: Option<Cause>,
    /// What it has learned of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<LearnedMemory>,
    #[serde(default)]
    pub files: FilesRecord,
    /// What the newest start got; `None` before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<RevisionNumber>,
}

/// Where a session's files stand. All zero: it never had any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesRecord {
    /// The number of the newest upload.
    pub uploads: u64,
    /// The number of the newest checkpoint.
    pub checkpoints: u64,
    /// The checkpoint that a workspace which is not whole is made from; 0: none, it begins empty.
    pub restore: u64,
    /// Uploads up to this one are in that checkpoint, or are not wanted after it.
    pub floor: u64,
    /// Raised by each restore that is asked for: a workspace of another lineage is not whole.
    pub lineage: u64,
}

/// A file that was put into a session's workspace, or taken out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    pub session: SessionId,
    /// From 1, without a gap.
    pub number: u64,
    pub path: FilePath,
    /// `None`: deleted.
    pub file: Option<FileKind>,
    pub at: Wall,
    pub by: Subject,
}

/// A workspace as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    pub session: SessionId,
    /// From 1, without a gap.
    pub number: u64,
    pub manifest: ManifestDigest,
    /// The newest upload that is in it.
    pub uploads: u64,
    pub files: u64,
    pub bytes: u64,
    pub at: Wall,
    pub generation: Generation,
    pub turn: Option<TurnId>,
}

/// Why an instance is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    Idle,
    OperatorStop,
    OperatorRestart,
    /// A turn has raised the memory limit, which only a new instance has.
    Resize,
    StartTimeout,
    TurnStuck,
    TurnTooLong,
    BridgeUnreachable,
    /// The bridge broke the frames' order; a new instance is safer than a guess.
    ProtocolFault,
    /// It runs another revision than it is to.
    Revision,
    /// The workspace could not be made what it is to be, and that may pass.
    FilesFailed,
    /// It cannot be, and no message is left that waits for it.
    FilesRefused,
}

impl StopReason {
    /// The cause, where this stop is a failure of the instance and not a wish of somebody.
    pub fn failure(self) -> Option<Cause> {
        match self {
            StopReason::Idle
            | StopReason::OperatorStop
            | StopReason::OperatorRestart
            | StopReason::FilesRefused => None,
            StopReason::Resize | StopReason::Revision => None,
            StopReason::FilesFailed => Some(Cause::SyncFailed),
            StopReason::StartTimeout => Some(Cause::StartTimeout),
            StopReason::TurnStuck => Some(Cause::TurnStuck),
            StopReason::TurnTooLong => Some(Cause::TurnTooLong),
            StopReason::BridgeUnreachable => Some(Cause::BridgeUnreachable),
            StopReason::ProtocolFault => Some(Cause::ProtocolFault),
        }
    }
}

/// A message as accepted. Its id is its place in the order of acceptance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    pub id: MessageId,
    pub session: SessionId,
    pub subject: Subject,
    pub text: String,
    pub accepted_at: Wall,
    pub idempotency: Option<Idempotency>,
    /// The dead letter that this message tries anew.
    pub redrive_of: Option<MessageId>,
}

/// The sender's key, and what it stood for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    pub key: String,
    /// SHA-256 of the session and the body, so that the same key with another body is a conflict.
    pub digest: String,
}

/// Where a message stands. The last three are terminal and absorbing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    Pending,
    Leased,
    Answered,
    Dead,
    Cancelled,
}

/// One queued message, as much of it as the core keeps in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub message: MessageId,
    pub bytes: u32,
    /// Deliveries so far; also the number of the newest attempt.
    pub attempts: u32,
    /// Those of `attempts` that Dormouse itself cut short, which are not held against the message.
    pub excused: u32,
    /// The generation that has it now.
    pub leased_to: Option<Generation>,
    /// Not to be delivered again before this.
    pub not_before: Option<Wall>,
}

/// What the store holds of one session: enough to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSession {
    pub record: SessionRecord,
    /// Pending and leased ones, in order of acceptance.
    pub deliveries: Vec<Delivery>,
}

/// One ended instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub session: SessionId,
    pub generation: Generation,
    pub at: Wall,
    pub phase: Phase,
    /// `None`: it ended as it was asked to.
    pub cause: Option<Cause>,
    pub message_in_flight: Option<MessageId>,
    pub evidence: Evidence,
    pub circumstances: Circumstances,
    pub diagnosis: Diagnosis,
}

/// What the daemon, and not the bridge, knew of an end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances {
    /// Why it was being stopped, if it was.
    pub stop: Option<StopReason>,
    /// The attempt of the message in flight.
    pub attempt: Option<u32>,
    /// From the start order to ready. `None`: it never was.
    pub ready_after_ms: Option<u64>,
    /// From the last sign of activity to the end.
    pub silent_ms: u64,
    /// From the start order to the end.
    pub lived_ms: u64,
}

//! The JSON of the HTTP interface, as types: what `api` writes and `cli` reads.
//!
//! Owner: this file is the contract of `/v1`. Invariants: times are integer milliseconds since 1970
//! in fields that end in `_ms`; ids are the texts of `core::id`; absent facts are left out. Absent:
//! OpenAI's shapes (`api::openai`).

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::loops::LoopStatistics;
use dormouse_core::diagnosis::{Confidence, Diagnosis};
use dormouse_core::event::FilesProgress;
use dormouse_core::evidence::Evidence;
use dormouse_core::id::{Generation, MessageId, SessionId, Subject, TurnId};
use dormouse_core::record::{Circumstances, MessageState};
use dormouse_core::session::phase::Phase;
use serde::{Deserialize, Serialize};

/// `POST /v1/sessions/{agent}/{key}/messages`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubmitBody {
    pub(crate) text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) attachments: Vec<AttachmentBody>,
}

/// A small file that comes with a message; larger ones are put first. One of `text` and `base64`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an item of attachments, with path and text or base64")]
pub(crate) struct AttachmentBody {
    pub(crate) path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base64: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) executable: bool,
}

/// 202: the message is on disk.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Submitted {
    pub(crate) message_id: MessageId,
    pub(crate) session: SessionId,
    pub(crate) state: MessageState,
    /// How many messages of the session are before it.
    pub(crate) position: usize,
    /// It had been accepted before, under the same idempotency key.
    pub(crate) duplicate: bool,
}

/// `GET /v1/messages/{id}`, and the data of the `done` event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) message_id: MessageId,
    pub(crate) session: SessionId,
    pub(crate) state: MessageState,
    pub(crate) attempts: u32,
    pub(crate) accepted_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended_at_ms: Option<u64>,
    /// How many messages of the session are before it, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) position: Option<u64>,
    /// Not handed to an agent again before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_before_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reply: Option<String>,
    /// Of the program that its turn was, or that its agent told of: as a shell shows it, or the
    /// negated number of the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<i32>,
    /// How long the turn took that ended it, from its delivery on; absent where no turn did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) took_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<Cause>,
    /// The cause in plain words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause_text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) redrive_of: Option<MessageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) redriven_as: Option<MessageId>,
}

/// The data of a `status` event: what a sender is told while waiting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) message_id: MessageId,
    #[serde(flatten)]
    pub(crate) state: StatusState,
    /// The same in plain words: "waking, about 12 s".
    pub(crate) text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum StatusState {
    Accepted { position: usize },
    Queued { ahead: usize },
    InLine { ahead: usize },
    Waking { estimate_ms: Option<u64> },
    Syncing { done_files: u64, files: u64, done_bytes: u64, bytes: u64 },
    Delivered { attempt: u32 },
    Slow { silent_ms: u64 },
    Retrying { attempt: u32, at_ms: u64, cause: Cause },
    WaitingToRestart { at_ms: u64, cause: Cause },
    DaemonEnding,
}

/// The data of a `delta` event; its id is `ATTEMPT.OFFSET`, where OFFSET is the end of the piece in
/// bytes of the reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delta {
    pub(crate) text: String,
}

/// Every error, and the data of an `error` event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    pub(crate) error: ErrorDetail,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ErrorDetail {
    pub(crate) code: String,
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message_id: Option<MessageId>,
}

/// `PUT` and `DELETE /v1/sessions/{agent}/{key}/files/{path}`: on disk, and there for the next
/// turn.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Uploaded {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    /// 1, 2, 3 … in each session.
    pub(crate) number: u64,
}

/// `GET /v1/sessions/{agent}/{key}/files`: the newest checkpoint with what was put since.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Files {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint: Option<u64>,
    /// Whether what the agent makes is kept at all.
    pub(crate) takes_checkpoints: bool,
    pub(crate) files: Vec<FileView>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct FileView {
    pub(crate) path: String,
    /// `file`, `link` or `folder`.
    pub(crate) kind: String,
    pub(crate) bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_executable: bool,
    /// Of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<String>,
    /// The checkpoint that has it; else it was put since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) upload: Option<u64>,
}

/// `GET /v1/sessions/{agent}/{key}/checkpoints`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointView {
    pub(crate) number: u64,
    pub(crate) at_ms: u64,
    pub(crate) generation: Generation,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// The turn after which it was taken, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) turn: Option<TurnId>,
}

/// `POST /v1/sessions/{agent}/{key}/restore`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreBody {
    pub(crate) checkpoint: u64,
}

/// A page, newest first; ask for the next with `?before=NEXT`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

/// `GET /v1/sessions/{agent}/{key}`, and the items of `GET /v1/sessions`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionView {
    pub(crate) session: SessionId,
    pub(crate) subject: Subject,
    pub(crate) phase: Phase,
    /// The number of its newest start.
    pub(crate) generation: Generation,
    /// Messages that are not answered yet.
    pub(crate) waiting: u64,
    /// Failed lives in a row.
    pub(crate) failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_failure: Option<Cause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_start_at_ms: Option<u64>,
    pub(crate) created_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) start_took_ms: Option<u64>,
    /// How far its files are, while they are brought to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) syncing: Option<FilesProgress>,
}

/// An item of `…/journal`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JournalRow {
    pub(crate) at_ms: u64,
    pub(crate) generation: Generation,
    pub(crate) from: Phase,
    pub(crate) to: Phase,
    /// In words.
    pub(crate) text: String,
    /// The same for programs.
    pub(crate) because: serde_json::Value,
}

/// An ended instance, newest first, in `…/why`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExitView {
    pub(crate) generation: Generation,
    pub(crate) at_ms: u64,
    pub(crate) phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<Cause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message_in_flight: Option<MessageId>,
    pub(crate) evidence: Evidence,
    #[serde(default)]
    pub(crate) circumstances: Circumstances,
    pub(crate) diagnosis: Diagnosis,
}

/// An end in short, in `…/why` and with a dead letter.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExitShort {
    pub(crate) generation: Generation,
    pub(crate) at_ms: u64,
    pub(crate) phase: Phase,
    /// Left out where it ended as it was asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<Cause>,
    pub(crate) verdict: Cause,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) kind: String,
    pub(crate) confidence: Confidence,
    pub(crate) sentence: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uptime_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message_in_flight: Option<MessageId>,
    /// The attempt of that message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) attempt: Option<u32>,
}

/// What the next start may use of memory, and why so much.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MemoryView {
    pub(crate) limit_bytes: u64,
    /// As configured.
    pub(crate) first_bytes: u64,
    /// The most that the limit may rise to.
    pub(crate) ceiling_bytes: u64,
    /// The most that this machine gives to one agent, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) machine_bytes: Option<u64>,
    /// The cause of the death that raised it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) because: Option<Cause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since_ms: Option<u64>,
    /// The highest peak of a life under this limit that did not end for want of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peak_survived_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_peak_bytes: Option<u64>,
    /// That peak was cut off by the limit: more was needed, and how much is not known.
    pub(crate) last_peak_is_censored: bool,
    /// "+1 GiB, about 3.50 USD a month": the limit against the configured one, where it differs and
    /// prices are configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) monthly_difference: Option<String>,
}

/// A change of the config that answers a cause.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Remedy {
    /// Lines with " ", "-" or "+" before them.
    pub(crate) diff: Vec<String>,
    /// What it is expected to do.
    pub(crate) effect: String,
    /// What it may cost, where it is about memory and prices are configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) monthly_difference: Option<String>,
    /// The command that shows whether it did.
    pub(crate) check: String,
}

/// `GET /v1/sessions/{agent}/{key}/why` and `GET /v1/messages/{id}/why`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Why {
    pub(crate) session: SessionView,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<Message>,
    /// One or two sentences: what is the case now, and because of what.
    pub(crate) verdict: String,
    /// What can be done about it; empty when nothing needs doing.
    pub(crate) next_steps: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<Remedy>,
    /// Reasons to be awake, in force now.
    pub(crate) awake_because: Vec<String>,
    /// Of a message: of the newest life that had it in work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_exit: Option<ExitView>,
    /// The message that this life had in work, as it stands now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) in_flight: Option<Message>,
    /// The newest ones first.
    #[serde(default)]
    pub(crate) exits: Vec<ExitShort>,
    /// Left out with fewer than two failures.
    #[serde(default, rename = "loop", skip_serializing_if = "Option::is_none")]
    pub(crate) loop_statistics: Option<LoopStatistics>,
    /// Left out where no limit is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<MemoryView>,
    /// Oldest first.
    pub(crate) timeline: Vec<JournalRow>,
}

/// `POST …/{wake,stop,restart}`, and dropping. A denied request is a 409 error with its reason as
/// the code.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Requested {
    /// `accepted` or `ignored`.
    pub(crate) outcome: String,
    /// Why it was ignored: `already_awake`, `already_starting`, `already_asleep`,
    /// `already_stopping`, `already_ended`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) because: Option<String>,
    /// Messages that wait, and will wake the agent again after a stop.
    pub(crate) waiting: usize,
}

/// `GET /v1/queue` and `GET /v1/dead-letters`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct QueueItem {
    #[serde(flatten)]
    pub(crate) message: Message,
    /// The message's own text, shortened in lists.
    pub(crate) text: String,
    /// The end of the newest life that had it in work; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_life: Option<ExitShort>,
}

/// `GET /v1/agents`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AgentView {
    pub(crate) agent: String,
    pub(crate) driver: String,
    pub(crate) adapter: String,
    pub(crate) command: Vec<String>,
    /// Sessions by phase, as far as they are not asleep.
    pub(crate) awake: u64,
    pub(crate) sessions: u64,
    /// The revision of its settings that sessions run; 0 before its first start.
    #[serde(default)]
    pub(crate) revision: u64,
    /// Where the config asks for another one than that: how far it is, in words.
    #[serde(default)]
    pub(crate) rollout: Option<String>,
    /// What it lacks on this machine, in words; empty when it can run.
    pub(crate) lacks: Vec<String>,
}

/// `POST /v1/keys`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateKey {
    pub(crate) name: String,
    pub(crate) subject: Subject,
    /// `operator`, or none for a key that reaches only its own subject's sessions.
    #[serde(default)]
    pub(crate) scopes: Vec<String>,
}

/// `GET /v1/keys`; `token` only in the answer to `POST`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeyView {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) subject: Subject,
    pub(crate) scopes: Vec<String>,
    pub(crate) created_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

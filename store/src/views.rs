//! What a `Reader` hands out: rows joined to what people ask for.
//!
//! Owner: `reader`. Invariant: a view is of one moment; it was committed. Absent: wording.

use dormouse_core::cause::Cause;
use dormouse_core::id::{AgentName, Generation, MessageId, SessionId, Subject};
use dormouse_core::record::{MessageState, SessionRecord};
use dormouse_core::session::phase::Phase;
use dormouse_core::time::Wall;

/// Which sessions; what is `None` is not asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionFilter {
    pub subject: Option<Subject>,
    pub agent: Option<AgentName>,
    pub phase: Option<Phase>,
}

/// Which messages; `subject` is who sent them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MessageFilter {
    pub subject: Option<Subject>,
    pub session: Option<SessionId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    pub record: SessionRecord,
    /// Messages that have not ended.
    pub waiting: u64,
    pub last_exit: Option<LastExit>,
}

/// The newest exit without its evidence, which `Reader::exits` has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastExit {
    pub generation: Generation,
    pub at: Wall,
    /// `None`: it ended as it was asked to.
    pub cause: Option<Cause>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPage {
    pub items: Vec<SessionView>,
    /// The `before` of the next page, where there is one.
    pub next: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageView {
    pub id: MessageId,
    pub session: SessionId,
    pub subject: Subject,
    pub state: MessageState,
    /// Bytes of its text.
    pub bytes: u32,
    pub attempts: u32,
    pub excused: u32,
    pub accepted_at: Wall,
    /// Start of the newest attempt.
    pub leased_at: Option<Wall>,
    pub not_before: Option<Wall>,
    pub ended_at: Option<Wall>,
    /// Unended messages of the session before it; `None` once it has ended.
    pub position: Option<u64>,
    /// In lists always `None`.
    pub reply: Option<String>,
    pub exit_code: Option<i32>,
    pub cause: Option<Cause>,
    pub detail: Option<String>,
    /// Who cancelled it, or took it off the list of dead letters.
    pub ended_by: Option<Subject>,
    /// Since when it is off the list of dead letters.
    pub dropped_at: Option<Wall>,
    pub redriven_as: Option<MessageId>,
    pub redrive_of: Option<MessageId>,
}

/// A message in a list, with its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedView {
    pub message: MessageView,
    pub text: String,
}

/// Cheap totals for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub pending: u64,
    pub leased: u64,
    pub answered: u64,
    pub dead: u64,
    pub cancelled: u64,
    pub sessions: u64,
    /// By place in `Phase::ALL`.
    pub sessions_by_phase: [u64; Phase::ALL.len()],
}

impl Counts {
    /// Messages that have not ended.
    pub fn waiting(&self) -> u64 {
        self.pending + self.leased
    }

    /// Every message ever accepted.
    pub fn accepted(&self) -> u64 {
        self.pending + self.leased + self.answered + self.dead + self.cancelled
    }
}

/// One agent's sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentSessions {
    pub sessions: u64,
    /// Those in `Phase::Awake`.
    pub awake: u64,
}

//! What the outside asks of the engine, and the door through which it asks.
//!
//! Owner: handlers of the API hold a `Gateway`. Invariants: the door is bounded and refuses at once
//! when it is full (FAULTS I16); a request that was taken is answered once, after the commit, or
//! its answer channel closes because the engine ended.

use std::time::Instant;

use dormouse_core::command::Answer;
use dormouse_core::event::{
    CheckpointOffer, RolloutRequest, SessionRequest, Submission, UploadSubmission,
};
use dormouse_core::id::{AgentName, InstanceId, MessageId, SessionId, Subject, TurnId};
use dormouse_store::{KeyRecord, RevisionRecord};
use tokio::sync::{mpsc, oneshot, watch};

use crate::hub::Watcher;
use crate::in_force::Current;

/// Requests that wait for the engine; beyond that it is overloaded, and says so.
pub(crate) const REQUESTS_MAX: usize = 8_192;

pub(crate) type Reply = oneshot::Sender<Verdict>;

#[derive(Debug)]
pub(crate) enum Request {
    Submit {
        submission: Submission,
        ask: Ask,
    },
    Session {
        session: SessionId,
        what: SessionRequest,
        by: Subject,
        ask: Ask,
    },
    Redrive {
        message: MessageId,
        by: Subject,
        ask: Ask,
    },
    Drop {
        session: SessionId,
        message: MessageId,
        is_dead: bool,
        by: Subject,
        ask: Ask,
    },
    Upload {
        upload: UploadSubmission,
        ask: Ask,
    },
    Restore {
        session: SessionId,
        checkpoint: u64,
        by: Subject,
        ask: Ask,
    },
    Checkpoint {
        instance: InstanceId,
        offer: CheckpointOffer,
        ask: Ask,
    },
    Rollout {
        agent: AgentName,
        what: RolloutRequest,
        by: Subject,
        ask: Ask,
    },
    Configure {
        change: Box<ConfigChange>,
        ask: Ask,
    },
    Key {
        change: KeyChange,
        reply: Reply,
    },
    /// Why is it awake?
    Explain {
        session: SessionId,
        reply: Reply,
    },
    /// Begin no turn and start nothing from now on, and keep telling which turns still run.
    Drain {
        report: watch::Sender<Option<Vec<RunningTurn>>>,
    },
    /// Finish the batch and end the loop.
    End,
}

/// A turn that an agent works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunningTurn {
    pub(crate) session: SessionId,
    pub(crate) turn: TurnId,
    /// As far as this process has seen.
    pub(crate) began_at: Instant,
}

impl Request {
    /// Answers that there is no room. A sender who has gone away meanwhile loses nothing.
    pub(crate) fn refuse(self) {
        let reply = match self {
            Request::Submit { ask, .. }
            | Request::Session { ask, .. }
            | Request::Redrive { ask, .. }
            | Request::Upload { ask, .. }
            | Request::Restore { ask, .. }
            | Request::Rollout { ask, .. }
            | Request::Configure { ask, .. }
            | Request::Checkpoint { ask, .. }
            | Request::Drop { ask, .. } => ask.reply,
            Request::Key { reply, .. } | Request::Explain { reply, .. } => reply,
            Request::Drain { .. } | Request::End => return,
        };
        drop(reply.send(Verdict::StoreFull));
    }
}

#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) reply: Reply,
    /// The sender stays, and wants to see what happens from the first moment.
    pub(crate) watch: bool,
}

/// A config that is to come into force.
#[derive(Debug)]
pub(crate) struct ConfigChange {
    pub(crate) current: Current,
    /// What is new of the agents' settings.
    pub(crate) revisions: Vec<RevisionRecord>,
}

#[derive(Debug)]
pub(crate) enum KeyChange {
    Insert(KeyRecord),
    Revoke(String),
}

#[derive(Debug)]
pub(crate) enum Verdict {
    Answered {
        answer: Answer,
        watcher: Option<Watcher>,
    },
    Done,
    Explained {
        turn: Option<TurnId>,
        holds: Vec<String>,
    },
    NotFound,
    /// No room on the disk; nothing was stored.
    StoreFull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    #[error("too many requests wait already")]
    Overloaded,
    #[error("the engine has ended")]
    Ended,
}

/// The way in for everything that is not a bridge, a driver or a clock.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    requests: mpsc::Sender<Request>,
}

impl Gateway {
    pub(crate) fn new(requests: mpsc::Sender<Request>) -> Self {
        Self { requests }
    }

    pub(crate) async fn ask(
        &self,
        watch: bool,
        request: impl FnOnce(Ask) -> Request,
    ) -> Result<Verdict, AskError> {
        let (reply, answer) = oneshot::channel();
        self.put(request(Ask { reply, watch }))?;
        answer.await.map_err(|_| AskError::Ended)
    }

    pub(crate) async fn change_key(&self, change: KeyChange) -> Result<Verdict, AskError> {
        let (reply, answer) = oneshot::channel();
        self.put(Request::Key { change, reply })?;
        answer.await.map_err(|_| AskError::Ended)
    }

    pub(crate) async fn explain(&self, session: SessionId) -> Result<Verdict, AskError> {
        let (reply, answer) = oneshot::channel();
        self.put(Request::Explain { session, reply })?;
        answer.await.map_err(|_| AskError::Ended)
    }

    /// Waits for room: a drain is not refused. What is to be read is `None` until the engine has
    /// looked, and ends with the engine.
    pub(crate) async fn drain(&self) -> watch::Receiver<Option<Vec<RunningTurn>>> {
        let (report, running) = watch::channel(None);
        // Of an engine that has ended, the receiver says so.
        drop(self.requests.send(Request::Drain { report }).await);
        running
    }

    /// Waits for room: an end is not refused.
    pub(crate) async fn end(&self) {
        // An engine that has ended already is what was wanted.
        drop(self.requests.send(Request::End).await);
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.requests.is_closed()
    }

    fn put(&self, request: Request) -> Result<(), AskError> {
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AskError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => AskError::Ended,
        })
    }
}

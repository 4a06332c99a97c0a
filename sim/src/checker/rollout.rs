//! How one agent's wanted revision stands, as plainly as it can be said.
//!
//! ```text
//!  Configured · retry ─▶ Open ── a life that it was opened for: ready, or answers ──▶ Good
//!                          └──── the same: dies, is not ready, fails · abort ───────▶ GivenUp
//! ```
//!
//! Owner: `checker::revisions`. Invariant: it is told what was asked for and what lives have shown,
//! and nothing of what the core thinks. Absent: lives, decisions.

use dormouse_core::event::RolloutRequest;
use dormouse_core::id::{Generation, RevisionNumber, SessionId};
use dormouse_core::policy::{AgentSetup, Canary};

/// How one agent's wanted revision stands.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) wanted: RevisionNumber,
    pub(super) good: Option<RevisionNumber>,
    pub(super) previous: Option<RevisionNumber>,
    pub(super) standing: Standing,
    pub(super) is_paused: bool,
    pub(super) opened: u64,
    pub(super) canary: Option<Canary>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Open,
    Good,
    /// Found bad, or aborted.
    GivenUp,
}

/// What a living instance was started with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub(super) generation: Generation,
    pub(super) revision: RevisionNumber,
    /// What was open to a trial then.
    pub(super) opened: u64,
}

impl Book {
    /// Of an agent that nobody knew before.
    pub(super) fn new(setup: &AgentSetup, opened: u64) -> Self {
        Self {
            wanted: setup.wanted,
            good: None,
            previous: None,
            standing: Standing::Open,
            is_paused: false,
            opened,
            canary: setup.canary.clone(),
        }
    }

    pub(super) fn want(&mut self, wanted: RevisionNumber, opened: &mut u64) {
        if self.wanted == wanted {
            return;
        }
        (self.wanted, self.is_paused) = (wanted, false);
        if self.previous == Some(wanted) {
            (self.good, self.previous) = (self.previous, self.good);
        }
        self.standing = if self.good == Some(wanted) { Standing::Good } else { self.open(opened) };
    }

    pub(super) fn open(&mut self, opened: &mut u64) -> Standing {
        *opened += 1;
        self.opened = *opened;
        Standing::Open
    }

    pub(super) fn steer(&mut self, what: RolloutRequest, opened: &mut u64) {
        match what {
            RolloutRequest::Pause => self.is_paused = true,
            RolloutRequest::Resume => self.is_paused = false,
            RolloutRequest::Retry if self.standing == Standing::GivenUp => {
                self.standing = self.open(opened);
            }
            RolloutRequest::Retry => {}
            RolloutRequest::Abort => match self.standing {
                Standing::Good if self.previous.is_some() => {
                    self.good = self.previous.take();
                    self.standing = Standing::GivenUp;
                }
                Standing::Open if self.good.is_some() => self.standing = Standing::GivenUp,
                Standing::Good | Standing::Open | Standing::GivenUp => {}
            },
        }
    }

    /// What a life gets that tries nothing.
    pub(super) fn target(&self) -> RevisionNumber {
        match self.standing {
            Standing::Good if self.is_paused => self.previous.unwrap_or(self.wanted),
            Standing::Good | Standing::Open | Standing::GivenUp => self.good.unwrap_or(self.wanted),
        }
    }

    /// What becomes of it says something of the wanted revision.
    pub(super) fn is_on_trial(&self, life: &Life) -> bool {
        let is_in_time = self.good.is_none() || life.opened == self.opened;
        self.standing == Standing::Open && life.revision == self.wanted && is_in_time
    }

    pub(super) fn prove(&mut self) {
        self.previous = self.good;
        self.good = Some(self.wanted);
        self.standing = Standing::Good;
    }

    pub(super) fn canary_of(&self, session: &SessionId) -> Option<&Canary> {
        self.canary.as_ref().filter(|canary| canary.session == *session)
    }
}

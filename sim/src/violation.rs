//! What a run can fail with: one of the invariants of the design, or an assertion inside the core.
//!
//! Owner: whoever checks returns one of these, and the run of that seed is over. Invariant: the
//! numbers are those of the project's list of invariants and keep their meaning. Absent: recovery;
//! a violation is always a defect of something.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// I1: an acknowledged message is on disk.
    DurableAccept,
    /// I2: each accepted message is in exactly one state, and terminal states are final.
    Conservation,
    /// I3: each request of a committed batch is answered once, and truly.
    HonestAnswer,
    /// I4: one key, one message.
    IdempotentAccept,
    /// I5: turns start in the order of acceptance, one at a time.
    SessionOrder,
    /// I6: an attempt is on disk before it reaches an agent, attempts are bounded, a turn is
    /// executed once.
    BoundedAttempts,
    /// I7: at most one launched agent per session, and the past changes nothing.
    OneLiveInstance,
    /// I8: no idle stop with work, under a hold, or too early.
    NoIdleStopWithWork,
    /// I9: failed starts are followed by pauses (in true time, whatever the wall clock does: I17),
    /// and starts at one time are bounded.
    BoundedRestarts,
    /// No turn before its agent is ready.
    ReadyBeforeWork,
    /// I11: no turn before its files.
    FilesBeforeWork,
    /// I11: no checkpoint of what is not whole, or has less than the one before.
    NothingOverwritten,
    /// I12: a reply is what the agent said in that attempt, without gap or repeat.
    ReplyIntegrity,
    /// I13: one final word per message.
    OneOutcome,
    /// I14: while something is known to be good, one life at a time tries what is new.
    OneAtRisk,
    /// I14: what was found bad is used by nobody, and nothing is called bad without reason.
    BadRevision,
    /// I15: a daemon that is ending begins nothing.
    Drain,
    /// I18: every change of phase has a decision, every exit its evidence.
    Cause,
    /// I22: what was rebuilt from the store equals what ran.
    Recovery,
    /// I23: without faults, everything ends within bounded time.
    Liveness,
    /// An assertion of the core failed, or one of the simulator.
    Assertion,
}

impl Invariant {
    fn name(self) -> &'static str {
        match self {
            Invariant::DurableAccept => "I1 durable accept",
            Invariant::Conservation => "I2 conservation",
            Invariant::HonestAnswer => "I3 honest answer",
            Invariant::IdempotentAccept => "I4 idempotent accept",
            Invariant::SessionOrder => "I5 session order",
            Invariant::BoundedAttempts => "I6 bounded at-least-once",
            Invariant::OneLiveInstance => "I7 one live instance",
            Invariant::NoIdleStopWithWork => "I8 no idle stop with work",
            Invariant::BoundedRestarts => "I9 bounded restarts",
            Invariant::ReadyBeforeWork => "I11 ready before work",
            Invariant::FilesBeforeWork => "I11 files before work",
            Invariant::NothingOverwritten => "I11 nothing good is overwritten",
            Invariant::ReplyIntegrity => "I12 reply integrity",
            Invariant::OneOutcome => "I13 one visible outcome",
            Invariant::OneAtRisk => "I14 one at risk",
            Invariant::BadRevision => "I14 a bad revision stays unused",
            Invariant::Drain => "I15 drain",
            Invariant::Cause => "I18 cause",
            Invariant::Recovery => "I22 recovery",
            Invariant::Liveness => "I23 liveness",
            Invariant::Assertion => "assertion",
        }
    }

    /// `Err` with this invariant and `what` unless `holds`.
    pub(crate) fn check(self, holds: bool, what: impl FnOnce() -> String) -> Checked {
        if holds { Ok(()) } else { Err(self.broken(what())) }
    }

    pub(crate) fn broken(self, what: impl Into<String>) -> Violation {
        Violation { invariant: self, what: what.into() }
    }
}

pub(crate) type Checked<T = ()> = Result<T, Violation>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.name(), self.what)
    }
}

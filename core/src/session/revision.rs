//! What this session says of a revision that it is the first to run.
//!
//! Owner: `Session`; the supervisor carries the verdict to the agent's `rollout`. Invariants: a
//! trial is judged once, by a start that fails, by the first turn's end, or by being ready with
//! nothing to answer; what the trial broke is not held against the session or its message; where
//! there is no good revision to go back to, nothing is judged bad.
//! Absent: who tries (`rollout`).

use crate::cause::Cause;
use crate::diagnosis::Diagnosis;
use crate::event::TurnOutcome;
use crate::journal::{Because, RevisionChange};
use crate::record::StopReason;
use crate::rollout::{Failure, Trial, Verdict, points_to_revision};
use crate::session::{Context, Session};

impl Session {
    pub(super) fn note_trial(&mut self, ctx: &mut Context<'_>) {
        if ctx.trial == Trial::Canary {
            self.note(
                Because::Revision { change: RevisionChange::Tried { revision: ctx.revision } },
                ctx,
            );
        }
    }

    /// Nothing waits for an answer: to be ready is all that there is to prove.
    pub(super) fn ready_in_trial(&mut self, ctx: &mut Context<'_>) {
        if self.queue.is_empty() && ctx.canary.is_none() {
            self.proved(ctx);
        }
    }

    fn proved(&mut self, ctx: &mut Context<'_>) {
        match ctx.trial {
            Trial::None => return,
            // Nobody wondered.
            Trial::First => {}
            Trial::Canary => self.note(
                Because::Revision { change: RevisionChange::Proved { revision: ctx.revision } },
                ctx,
            ),
        }
        ctx.trial = Trial::None;
        ctx.verdict = Some(Verdict::Proved);
    }

    /// `true`: it is told of the revision, and this session starts anew with the last good one.
    fn failed(&mut self, cause: Cause, detail: String, ctx: &mut Context<'_>) -> bool {
        if ctx.trial != Trial::Canary || !points_to_revision(cause) {
            return false;
        }
        let revision = ctx.revision;
        let change = RevisionChange::Failed { revision, cause, detail: detail.clone() };
        self.note(Because::Revision { change }, ctx);
        ctx.trial = Trial::None;
        ctx.verdict = Some(Verdict::Failed(Failure {
            cause,
            detail,
            session: self.id.clone(),
            generation: self.generation,
            at: ctx.now.wall,
        }));
        true
    }

    /// `true`: the live instance ends, so that its next turn tries the revision that waits for it.
    /// A hold does not keep it: a session that is there for trials does nobody's work.
    pub(super) fn makes_place(&mut self, ctx: &mut Context<'_>) -> bool {
        if ctx.makes_place {
            let change = RevisionChange::Outdated { revision: ctx.revision };
            let because = Because::Revision { change };
            self.begin_stop(StopReason::Revision, because, ctx);
        }
        ctx.makes_place
    }

    /// `true`: the session rests, and nothing is counted.
    pub(super) fn start_failed_in_trial(&mut self, error: &str, ctx: &mut Context<'_>) -> bool {
        if !self.failed(Cause::StartFailed, error.to_owned(), ctx) {
            return false;
        }
        let (error, failures) = (error.to_owned(), self.failures);
        let because = Because::StartFailed { error, failures, restart_at: None };
        self.enter_rest(None, because, None, ctx);
        true
    }

    /// Called before anything of the exit is counted.
    pub(super) fn exit_in_trial(
        &mut self,
        cause: Option<Cause>,
        diagnosis: &Diagnosis,
        ctx: &mut Context<'_>,
    ) -> bool {
        let Some(cause) = cause else { return false };
        self.failed(cause, diagnosis.sentence.clone(), ctx)
    }

    /// `true`: it failed, by its own words or by those that are missing in its answer.
    pub(super) fn turn_ended_in_trial(
        &mut self,
        outcome: &TurnOutcome,
        ctx: &mut Context<'_>,
    ) -> bool {
        match outcome {
            TurnOutcome::Answered { text, .. } => {
                let expects = ctx.canary.and_then(|canary| canary.expects.as_deref());
                if let Some(expected) = expects.filter(|expected| !text.contains(expected)) {
                    let detail = format!("its answer does not contain \"{expected}\"");
                    return self.failed(Cause::AgentError, detail, ctx);
                }
                self.proved(ctx);
                false
            }
            // More memory may be all that it needs.
            TurnOutcome::Failed { cause: Cause::OomLimit | Cause::OomChild, .. } => false,
            TurnOutcome::Failed { cause, message, .. } => self.failed(*cause, message.clone(), ctx),
        }
    }
}

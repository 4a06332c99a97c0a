//! What a death means, in fixed order: diagnose → size → breaker → queue → next phase.
//!
//! Owner: `Session`. Invariants: nothing is decided before the evidence is in the batch; an exit
//! that was asked for is not a failure; the message in flight ends its attempt here and nowhere
//! else; 137 is not a diagnosis (the signal, the kernel's counter and who asked are three facts).
//! Absent: the order of causes (`diagnosis`), how much and how long (`sizing`, `breaker`).

use crate::cause::Cause;
use crate::command::{Command, News, Write};
use crate::diagnosis::own::diagnose_exit;
use crate::diagnosis::{Confidence, Diagnosis};
use crate::evidence::{AskedBy, End, Evidence};
use crate::id::TurnId;
use crate::journal::{Because, ExitSummary};
use crate::policy::RetrySafety;
use crate::queue::AfterFailure;
use crate::record::{Circumstances, ExitRecord, StopReason};
use crate::session::phase::Phase;
use crate::session::turn::last_of;
use crate::session::{Context, Instance, Session};
use crate::sizing::{self, Sized};
use crate::time::{Monotonic, Wall, millis};

impl Session {
    pub(super) fn exited(&mut self, evidence: Evidence, ctx: &mut Context<'_>) {
        let instance = self.instance.take().expect("the fence lets only the live one exit");
        let circumstances = circumstances(&instance, ctx.now.monotonic);
        let turn = instance.turn.map(|turn| turn.id);
        let was_long = ctx.now.monotonic.since(instance.started_at) >= ctx.policy.breaker.window;

        let diagnosis = diagnose_exit(&evidence, &circumstances);
        let cause = failure(&diagnosis, &evidence, &circumstances);
        let peak_bytes = evidence.memory_peak_bytes;
        let stop = circumstances.stop;
        let has_more_memory = self.size(&diagnosis, peak_bytes, stop, ctx);
        let is_fault_of_trial = !has_more_memory && self.exit_in_trial(cause, &diagnosis, ctx);
        let paced_as = match is_fault_of_trial {
            true => None,
            false => cause.or_else(|| self.unwanted_end(&evidence, circumstances.stop)),
        };
        let summary = ExitSummary::of(&evidence, cause, circumstances.stop);
        ctx.effects.write(Write::InsertExit(ExitRecord {
            session: self.id.clone(),
            generation: self.generation,
            at: ctx.now.wall,
            phase: self.phase,
            cause,
            message_in_flight: turn.map(|turn| turn.message),
            evidence,
            circumstances,
            diagnosis,
        }));

        if let Some(cause) = paced_as {
            // A life as long as the breaker's window was no failure to live.
            let in_a_row = if was_long { 0 } else { self.failures };
            self.failures = in_a_row.saturating_add(1);
            self.last_failure = Some(cause);
        }
        if self.phase == Phase::Starting && cause.is_some() && !is_fault_of_trial {
            // The start that was asked for has failed. One that was lost with a daemon has not.
            self.wake_wanted = false;
        }
        let restart = paced_as.and_then(|_| self.pause(ctx));
        let restart_at = restart.map(|due| due.at_wall);

        if let Some(turn) = turn {
            match cause {
                // The limit was at fault and not the message; that can happen only so often.
                Some(cause) if has_more_memory || is_fault_of_trial => {
                    self.attempt_was_cut_short(turn, cause, restart_at, ctx);
                }
                Some(cause) => {
                    let was_stopped = stop.is_some();
                    self.attempt_died(turn, cause, was_stopped, restart_at, ctx);
                }
                None => {
                    self.attempt_was_cut_short(turn, Cause::StoppedDuringTurn, restart_at, ctx);
                }
            }
        }

        let because = Because::Exited { summary, failures: self.failures, restart_at };
        self.enter_rest(restart, because, turn.map(|turn| turn.message), ctx);
        ctx.effects.command(Command::ReleaseInstance { instance: self.instance_id() });
    }

    /// How much memory the next life may use. `true`: more than this one.
    fn size(
        &mut self,
        diagnosis: &Diagnosis,
        peak_bytes: Option<u64>,
        stop: Option<StopReason>,
        ctx: &mut Context<'_>,
    ) -> bool {
        let wants_more = matches!(diagnosis.cause, Cause::OomLimit | Cause::OomChild)
            || (diagnosis.cause == Cause::OomHeap && ctx.policy.heap_follows);
        let is_proved = wants_more && diagnosis.confidence == Confidence::Proved;
        if stop == Some(StopReason::Resize) {
            // It had less than what has been learned: neither its want nor its peak is of that.
            return is_proved;
        }
        if is_proved {
            return self.size_after_want(diagnosis.cause, ctx);
        }
        let sized = sizing::after_life(ctx.policy.memory, self.memory, peak_bytes, ctx.now.wall);
        self.apply(sized, ctx)
    }

    /// A turn's own process was killed while its instance lives. Of a turn such a cause is said
    /// only where it is proved.
    pub(super) fn size_after_turn(&mut self, cause: Cause, ctx: &mut Context<'_>) -> bool {
        matches!(cause, Cause::OomLimit | Cause::OomChild) && self.size_after_want(cause, ctx)
    }

    fn size_after_want(&mut self, cause: Cause, ctx: &mut Context<'_>) -> bool {
        let (policy, machine) = (ctx.policy.memory, ctx.node.memory_max_bytes);
        let sized = sizing::after_want(policy, self.memory, machine, cause, ctx.now.wall);
        self.apply(sized, ctx)
    }

    fn apply(&mut self, sized: Sized, ctx: &mut Context<'_>) -> bool {
        match sized {
            Sized::Unchanged => return false,
            Sized::Noted(memory) => self.memory = Some(memory),
            Sized::AtCeiling { limit_bytes } => {
                self.note(Because::MemoryAtCeiling { limit_bytes }, ctx);
                return false;
            }
            Sized::Raised { from_bytes, to } => {
                self.memory = Some(to);
                let (to_bytes, cause) = (to.limit_bytes, to.because);
                self.note(Because::MemoryRaised { from_bytes, to_bytes, cause }, ctx);
            }
            Sized::Lowered { from_bytes, to } => {
                self.memory = to;
                let to_bytes = self.memory_limit(ctx).unwrap_or(from_bytes);
                self.note(Because::MemoryLowered { from_bytes, to_bytes }, ctx);
            }
        }
        self.dirty = true;
        matches!(sized, Sized::Raised { .. })
    }

    /// An end that is nobody's failure, and yet not what a session that is wanted wants: the next
    /// start is paced as after one, so that no such end makes a loop without pauses (FAULTS I9).
    fn unwanted_end(&self, evidence: &Evidence, stop: Option<StopReason>) -> Option<Cause> {
        if stop.is_some() || (self.queue.is_empty() && !self.wake_wanted) {
            return None;
        }
        match (evidence.asked_by, &evidence.end) {
            (Some(AskedBy::Signal), _) => Some(Cause::KilledOutside),
            // Paced already: by that limit, or by the daemon's own restart.
            (Some(AskedBy::OrphanLimit), _) | (_, End::NeverLaunched) => None,
            (Some(AskedBy::Daemon | AskedBy::Driver) | None, _) => Some(Cause::AppExit),
        }
    }

    /// The agent died with this message in its hands, or was stopped because of it.
    fn attempt_died(
        &mut self,
        turn: TurnId,
        cause: Cause,
        was_stopped: bool,
        restart_at: Option<Wall>,
        ctx: &mut Context<'_>,
    ) {
        self.note(Because::TurnInterrupted { turn, excused: false }, ctx);
        if ctx.policy.retry == RetrySafety::Ask {
            self.bury_as_ambiguous(turn, cause, ctx);
            return;
        }
        match self.queue.fail(turn, ctx.policy.attempts, None) {
            AfterFailure::Exhausted { attempts } => {
                let detail = last_of(attempts, cause.plain_words());
                let poison =
                    if was_stopped { Cause::AttemptsExhausted } else { Cause::PoisonMessage };
                self.bury(turn, poison, detail, None, ctx);
            }
            AfterFailure::Again { attempts, excused } => {
                let message = turn.message;
                ctx.effects.write(Write::ReturnDelivery { message, excused, not_before: None });
                let at = restart_at.unwrap_or(ctx.now.wall);
                ctx.effects.tell(message, News::Retrying { attempt: attempts + 1, at, cause });
            }
        }
    }

    /// We stopped the agent, or its bridge was told to end, while it worked on this message; or it
    /// had less memory than it may have. Not held against the message.
    pub(super) fn attempt_was_cut_short(
        &mut self,
        turn: TurnId,
        cause: Cause,
        restart_at: Option<Wall>,
        ctx: &mut Context<'_>,
    ) {
        self.note(Because::TurnInterrupted { turn, excused: true }, ctx);
        if ctx.policy.retry == RetrySafety::Ask {
            self.bury_as_ambiguous(turn, cause, ctx);
            return;
        }
        let AfterFailure::Again { attempts, excused } = self.queue.excuse(turn) else {
            unreachable!("an excused attempt exhausts nothing");
        };
        let message = turn.message;
        ctx.effects.write(Write::ReturnDelivery { message, excused, not_before: None });
        let at = restart_at.unwrap_or(ctx.now.wall);
        ctx.effects.tell(message, News::Retrying { attempt: attempts + 1, at, cause });
    }

    fn bury_as_ambiguous(&mut self, turn: TurnId, cause: Cause, ctx: &mut Context<'_>) {
        self.queue.finish(turn);
        let detail = format!("the turn was interrupted: {}", cause.plain_words());
        self.bury(turn, Cause::Ambiguous, detail, None, ctx);
    }
}

/// The failure, or `None` where the instance ended as somebody asked it to.
fn failure(
    diagnosis: &Diagnosis,
    evidence: &Evidence,
    circumstances: &Circumstances,
) -> Option<Cause> {
    if let Some(reason) = circumstances.stop {
        return reason.failure();
    }
    match evidence.asked_by {
        Some(AskedBy::OrphanLimit | AskedBy::Signal) => return None,
        // Killed or stopped for a session that had not asked: a stop of the past, carried out late.
        Some(AskedBy::Daemon | AskedBy::Driver) | None => {}
    }
    let was_ready = circumstances.ready_after_ms.is_some();
    match &evidence.end {
        // The daemon went away between the commit and the start; nothing failed.
        End::NeverLaunched => None,
        // Done, with nothing to do: an agent may end itself.
        End::Exited { code: 0 } if was_ready && circumstances.attempt.is_none() => None,
        End::Exited { .. } | End::Signaled { .. } | End::LaunchFailed { .. } | End::BridgeLost => {
            Some(diagnosis.cause)
        }
    }
}

fn circumstances(instance: &Instance, now: Monotonic) -> Circumstances {
    let ready_after = instance.ready_at.map(|at| at.since(instance.started_at));
    Circumstances {
        stop: instance.stop.map(|stop| stop.reason),
        attempt: instance.turn.as_ref().map(|turn| turn.id.attempt),
        ready_after_ms: ready_after.map(millis),
        silent_ms: millis(now.since(instance.last_activity)),
        lived_ms: millis(now.since(instance.started_at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(end: End, oom_kills: u64, circumstances: &Circumstances) -> Option<Cause> {
        let evidence = Evidence { oom_kills: Some(oom_kills), ..Evidence::bare(end) };
        failure(&diagnose_exit(&evidence, circumstances), &evidence, circumstances)
    }

    fn awake(attempt: Option<u32>) -> Circumstances {
        Circumstances { attempt, ready_after_ms: Some(5), ..Circumstances::default() }
    }

    #[test]
    fn an_exit_that_was_asked_for_is_not_a_failure_even_if_it_took_a_kill() {
        let stopped = |reason| Circumstances { stop: Some(reason), ..awake(None) };
        let killed = || End::Signaled { signal: 9 };
        assert_eq!(cause(killed(), 0, &stopped(StopReason::Idle)), None);
        let stuck = cause(killed(), 0, &stopped(StopReason::TurnStuck));
        assert_eq!(stuck, Some(Cause::TurnStuck));
    }

    #[test]
    fn exit_code_zero_is_fine_only_when_nothing_was_being_done() {
        let exited = |circumstances| cause(End::Exited { code: 0 }, 0, &circumstances);
        assert_eq!(exited(awake(None)), None);
        assert_eq!(exited(awake(Some(1))), Some(Cause::AppExit));
        assert_eq!(exited(Circumstances::default()), Some(Cause::AppExit));
    }
}

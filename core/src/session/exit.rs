//! What a death means, in fixed order: diagnose → count → queue → next phase.
//!
//! Owner: `Session`. Invariants: nothing is decided before the evidence is in the batch; an exit
//! that was asked for is not a failure; the message in flight ends its attempt here and nowhere
//! else; 137 is not a diagnosis (the signal, the kernel's counter and who asked are three facts).
//! Absent: sizing and the breaker, which take their places in this order when they come.

use crate::cause::Cause;
use crate::command::{Command, News, Write};
use crate::evidence::{AskedBy, End, Evidence};
use crate::id::TurnId;
use crate::journal::{Because, ExitSummary};
use crate::policy::RetrySafety;
use crate::queue::AfterFailure;
use crate::record::{ExitRecord, StopReason};
use crate::session::phase::Phase;
use crate::session::turn::last_of;
use crate::session::{Context, Session};
use crate::time::Wall;

const SIGKILL: i32 = 9;

impl Session {
    pub(super) fn exited(&mut self, evidence: Evidence, ctx: &mut Context<'_>) {
        let instance = self.instance.take().expect("the fence lets only the live one exit");
        let stop = instance.stop.map(|stop| stop.reason);
        let turn = instance.turn.map(|turn| turn.id);

        let cause = diagnose(&evidence, stop, turn.is_some(), instance.ready_at.is_some());
        let paced_as = cause.or_else(|| self.unwanted_end(&evidence, stop));
        let summary = ExitSummary::of(&evidence, cause, stop);
        ctx.effects.write(Write::InsertExit(ExitRecord {
            session: self.id.clone(),
            generation: self.generation,
            at: ctx.now.wall,
            phase: self.phase,
            cause,
            message_in_flight: turn.map(|turn| turn.message),
            evidence,
        }));

        if let Some(cause) = paced_as {
            self.failures = self.failures.saturating_add(1);
            self.last_failure = Some(cause);
        }
        if self.phase == Phase::Starting && cause.is_some() {
            // The start that was asked for has failed. One that was lost with a daemon has not.
            self.wake_wanted = false;
        }
        let restart = paced_as.and_then(|_| self.pause(ctx));
        let restart_at = restart.map(|due| due.at_wall);

        if let Some(turn) = turn {
            match cause {
                Some(cause) => self.attempt_died(turn, cause, restart_at, ctx),
                None => self.attempt_was_cut_short(turn, restart_at, ctx),
            }
        }

        let because = Because::Exited { summary, failures: self.failures, restart_at };
        self.enter_rest(restart, because, ctx);
        ctx.effects.command(Command::ReleaseInstance { instance: self.instance_id() });
    }

    /// An end that is nobody's failure, and yet not what a session that is wanted wants: the next
    /// start is paced as after one, so that no such end makes a loop without pauses (FAULTS I9).
    fn unwanted_end(&self, evidence: &Evidence, stop: Option<StopReason>) -> Option<Cause> {
        if stop.is_some() || (self.queue.is_empty() && !self.wake_wanted) {
            return None;
        }
        match (evidence.asked_by, &evidence.end) {
            (Some(AskedBy::Signal), _) => Some(Cause::AgentKilled),
            // Paced already: by that limit, or by the daemon's own restart.
            (Some(AskedBy::OrphanLimit), _) | (_, End::NeverLaunched) => None,
            (Some(AskedBy::Daemon | AskedBy::Driver) | None, _) => Some(Cause::AgentExited),
        }
    }

    /// The agent died with this message in its hands.
    fn attempt_died(
        &mut self,
        turn: TurnId,
        cause: Cause,
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
                self.bury(turn, Cause::AttemptsExhausted, detail, None, ctx);
            }
            AfterFailure::Again { attempts, excused } => {
                let message = turn.message;
                ctx.effects.write(Write::ReturnDelivery { message, excused, not_before: None });
                let at = restart_at.unwrap_or(ctx.now.wall);
                ctx.effects.tell(message, News::Retrying { attempt: attempts + 1, at, cause });
            }
        }
    }

    /// We stopped the agent, or its bridge was told to end, while it worked on this message.
    fn attempt_was_cut_short(
        &mut self,
        turn: TurnId,
        restart_at: Option<Wall>,
        ctx: &mut Context<'_>,
    ) {
        self.note(Because::TurnInterrupted { turn, excused: true }, ctx);
        if ctx.policy.retry == RetrySafety::Ask {
            self.bury_as_ambiguous(turn, Cause::StoppedDuringTurn, ctx);
            return;
        }
        let AfterFailure::Again { attempts, excused } = self.queue.excuse(turn) else {
            unreachable!("an excused attempt exhausts nothing");
        };
        let message = turn.message;
        ctx.effects.write(Write::ReturnDelivery { message, excused, not_before: None });
        let (at, cause) = (restart_at.unwrap_or(ctx.now.wall), Cause::StoppedDuringTurn);
        ctx.effects.tell(message, News::Retrying { attempt: attempts + 1, at, cause });
    }

    fn bury_as_ambiguous(&mut self, turn: TurnId, cause: Cause, ctx: &mut Context<'_>) {
        self.queue.finish(turn);
        let detail = format!("the turn was interrupted: {}", cause.plain_words());
        self.bury(turn, Cause::Ambiguous, detail, None, ctx);
    }
}

/// The cause, or `None` where the instance ended as somebody asked it to.
fn diagnose(
    evidence: &Evidence,
    stop: Option<StopReason>,
    had_turn: bool,
    was_ready: bool,
) -> Option<Cause> {
    if let Some(reason) = stop {
        return reason.failure();
    }
    match evidence.asked_by {
        Some(AskedBy::OrphanLimit | AskedBy::Signal) => return None,
        // Killed or stopped for a session that had not asked: a stop of the past, carried out late.
        Some(AskedBy::Daemon | AskedBy::Driver) | None => {}
    }
    match &evidence.end {
        // The daemon went away between the commit and the start; nothing failed.
        End::NeverLaunched => None,
        // Done, with nothing to do: an agent may end itself.
        End::Exited { code: 0 } if was_ready && !had_turn => None,
        End::Exited { .. } => Some(Cause::AgentExited),
        End::Signaled { signal } => {
            let was_counted = evidence.oom_kills.is_some_and(|kills| kills > 0);
            let is_oom = *signal == SIGKILL && was_counted && evidence.asked_by.is_none();
            Some(if is_oom { Cause::AgentOutOfMemory } else { Cause::AgentKilled })
        }
        End::LaunchFailed { .. } => Some(Cause::LaunchFailed),
        End::BridgeLost => Some(Cause::BridgeLost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(end: End, oom_kills: Option<u64>) -> Evidence {
        Evidence { oom_kills, ..Evidence::bare(end) }
    }

    #[test]
    fn sigkill_alone_is_not_out_of_memory() {
        let killed = |oom| diagnose(&after(End::Signaled { signal: 9 }, oom), None, true, true);
        assert_eq!(killed(None), Some(Cause::AgentKilled));
        assert_eq!(killed(Some(0)), Some(Cause::AgentKilled));
        assert_eq!(killed(Some(1)), Some(Cause::AgentOutOfMemory));
        let aborted = after(End::Signaled { signal: 6 }, Some(1));
        assert_eq!(diagnose(&aborted, None, true, true), Some(Cause::AgentKilled));
    }

    #[test]
    fn an_exit_that_was_asked_for_is_not_a_failure_even_if_it_took_a_kill() {
        let evidence = Evidence {
            asked_by: Some(AskedBy::Daemon),
            grace_ran_out: true,
            ..after(End::Signaled { signal: 9 }, Some(0))
        };
        assert_eq!(diagnose(&evidence, Some(StopReason::Idle), false, true), None);
        assert_eq!(
            diagnose(&evidence, Some(StopReason::TurnStuck), true, true),
            Some(Cause::TurnStuck)
        );
    }

    #[test]
    fn exit_code_zero_is_fine_only_when_nothing_was_being_done() {
        let exited = |had_turn, was_ready| {
            diagnose(&after(End::Exited { code: 0 }, None), None, had_turn, was_ready)
        };
        assert_eq!(exited(false, true), None);
        assert_eq!(exited(true, true), Some(Cause::AgentExited));
        assert_eq!(exited(false, false), Some(Cause::AgentExited));
    }
}

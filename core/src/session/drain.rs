//! Asked to wake, stop or restart; idle; and making sure that it ends.
//!
//! Owner: `Session`. Invariants: the idle stop is decided by the same `handle` that sees turns,
//! holds and the queue, so that it cannot race them (FAULTS I8); every stop has a moment at which
//! it becomes a kill; a request is accepted, ignored or denied with a reason, never silently
//! dropped.
//! Absent: what the exit then means (`exit`).

use crate::command::{Answer, Command, DeniedBecause, IgnoredBecause, RequestOutcome};
use crate::event::SessionRequest;
use crate::id::{RequestId, Subject};
use crate::journal::{Because, RevisionChange};
use crate::limits;
use crate::record::StopReason;
use crate::session::phase::Phase;
use crate::session::{Context, Link, Session, Stop};
use crate::time::{Monotonic, millis};

impl Session {
    pub(super) fn requested(
        &mut self,
        request: RequestId,
        what: SessionRequest,
        by: Subject,
        ctx: &mut Context<'_>,
    ) {
        let outcome = match what {
            SessionRequest::Wake => self.wake_requested(by, ctx),
            SessionRequest::Stop => self.stop_requested(by, ctx),
            SessionRequest::Restart => self.restart_requested(by, ctx),
        };
        ctx.effects.answer(request, Answer::Requested(outcome));
    }

    fn accepted(&self) -> RequestOutcome {
        // What a draining instance works on is not left for the next one, if all goes well.
        let finishing = usize::from(self.phase == Phase::Draining && self.turn().is_some());
        RequestOutcome::Accepted { waiting: self.queue.len() - finishing }
    }

    pub(super) fn want_wake(&mut self) {
        self.wake_wanted = true;
        self.dirty = true;
    }

    fn wake_requested(&mut self, by: Subject, ctx: &mut Context<'_>) -> RequestOutcome {
        if !ctx.is_configured {
            return RequestOutcome::Denied(DeniedBecause::AgentNotConfigured);
        }
        match self.phase {
            Phase::Starting => RequestOutcome::Ignored(IgnoredBecause::AlreadyStarting),
            Phase::Awake => {
                self.touch(ctx.now.monotonic);
                RequestOutcome::Ignored(IgnoredBecause::AlreadyAwake)
            }
            Phase::Asleep | Phase::Draining | Phase::Stopping => {
                self.want_wake();
                self.note(Because::WakeRequested { by }, ctx);
                self.accepted()
            }
            Phase::Backoff | Phase::Tripped => {
                self.want_wake();
                self.end_backoff(Because::WakeRequested { by }, ctx);
                self.accepted()
            }
        }
    }

    fn stop_requested(&mut self, by: Subject, ctx: &mut Context<'_>) -> RequestOutcome {
        let waiting = self.queue.len();
        match self.phase {
            Phase::Asleep if self.wants_start() => {
                // It waits in line for its start. Messages are not dropped by a stop.
                if waiting > 0 {
                    return RequestOutcome::Denied(DeniedBecause::MessagesWaiting { waiting });
                }
                self.wake_wanted = false;
                self.dirty = true;
                self.note(Because::StopRequested { by }, ctx);
                self.accepted()
            }
            Phase::Asleep => RequestOutcome::Ignored(IgnoredBecause::AlreadyAsleep),
            Phase::Backoff | Phase::Tripped if waiting > 0 => {
                RequestOutcome::Denied(DeniedBecause::MessagesWaiting { waiting })
            }
            Phase::Backoff | Phase::Tripped => {
                self.wake_wanted = false;
                self.end_backoff(Because::StopRequested { by }, ctx);
                self.accepted()
            }
            Phase::Draining | Phase::Stopping => {
                if self.wake_wanted {
                    self.wake_wanted = false;
                    self.dirty = true;
                    self.note(Because::StopRequested { by }, ctx);
                    return self.accepted();
                }
                RequestOutcome::Ignored(IgnoredBecause::AlreadyStopping)
            }
            Phase::Starting => {
                self.wake_wanted = false;
                self.begin_stop(StopReason::OperatorStop, Because::StopRequested { by }, ctx);
                self.accepted()
            }
            Phase::Awake => {
                self.stop_or_drain(StopReason::OperatorStop, Because::StopRequested { by }, ctx);
                self.accepted()
            }
        }
    }

    fn restart_requested(&mut self, by: Subject, ctx: &mut Context<'_>) -> RequestOutcome {
        if !ctx.is_configured {
            return RequestOutcome::Denied(DeniedBecause::AgentNotConfigured);
        }
        let because = Because::RestartRequested { by };
        self.want_wake();
        match self.phase {
            Phase::Asleep | Phase::Draining | Phase::Stopping => self.note(because, ctx),
            Phase::Backoff | Phase::Tripped => self.end_backoff(because, ctx),
            Phase::Starting => self.begin_stop(StopReason::OperatorRestart, because, ctx),
            Phase::Awake => self.stop_or_drain(StopReason::OperatorRestart, because, ctx),
        }
        self.accepted()
    }

    /// A running turn is finished first.
    pub(super) fn stop_or_drain(
        &mut self,
        reason: StopReason,
        because: Because,
        ctx: &mut Context<'_>,
    ) {
        if self.turn().is_none() {
            self.begin_stop(reason, because, ctx);
            return;
        }
        self.instance_mut().drain_since = Some(ctx.now.monotonic);
        self.enter(Phase::Draining, because, ctx);
    }

    /// Why a draining instance is drained: it is to come back, or not.
    pub(super) fn drain_reason(&self) -> StopReason {
        if self.wake_wanted { StopReason::OperatorRestart } else { StopReason::OperatorStop }
    }

    pub(super) fn begin_stop(
        &mut self,
        reason: StopReason,
        because: Because,
        ctx: &mut Context<'_>,
    ) {
        let kill_at = end_of_grace(ctx);
        let instance = self.instance_mut();
        instance.drain_since = None;
        instance.stop = Some(Stop { reason, kill_at, kills: 0 });
        self.enter(Phase::Stopping, because, ctx);
        self.command_stop(ctx);
    }

    /// Its bridge hears of the stop only now, so the agent's grace begins now.
    pub(super) fn grant_grace(&mut self, ctx: &Context<'_>) {
        let stop = self.instance_mut().stop.as_mut().expect("stopping has a reason");
        if stop.reason != StopReason::BridgeUnreachable {
            stop.kill_at = stop.kill_at.max(end_of_grace(ctx));
        }
    }

    /// Asks the bridge if there is one to ask. A bridge that never came, or that is given up, is
    /// killed.
    pub(super) fn command_stop(&mut self, ctx: &mut Context<'_>) {
        let instance = self.instance();
        let stop = instance.stop.expect("stopping has a reason");
        let is_given_up = stop.reason == StopReason::BridgeUnreachable;
        let command = match instance.link {
            Link::Attached { .. } if !is_given_up => {
                let grace = ctx.policy.stop_grace;
                Command::StopInstance { instance: self.instance_id(), grace }
            }
            Link::Detached { .. } if instance.boot.is_some() && !is_given_up => return,
            Link::Attached { .. } | Link::Detached { .. } => {
                Command::KillInstance { instance: self.instance_id() }
            }
        };
        ctx.effects.command(command);
    }

    pub(super) fn idle_deadline(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        let instance = self.instance();
        if instance.idle_at(now, ctx.policy).is_none_or(|idle_at| now < idle_at) {
            return;
        }
        let idle_ms = millis(now.since(instance.last_activity));
        if ctx.is_outdated {
            let change = RevisionChange::Outdated { revision: ctx.revision };
            let because = Because::Revision { change };
            return self.begin_stop(StopReason::Revision, because, ctx);
        }
        self.begin_stop(StopReason::Idle, Because::WasIdle { idle_ms }, ctx);
    }

    pub(super) fn drain_deadline(&mut self, ctx: &mut Context<'_>) {
        if self.give_up_bridge(ctx) {
            return;
        }
        let since = self.instance().drain_since.expect("draining has begun at some time");
        if ctx.now.monotonic >= since + ctx.policy.drain_within {
            let turn = self.turn();
            let reason = self.drain_reason();
            self.begin_stop(reason, Because::DrainTimeUp { turn }, ctx);
        }
    }

    pub(super) fn stop_deadline(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        let stop = self.instance_mut().stop.as_mut().expect("stopping has a reason");
        if now < stop.kill_at {
            return;
        }
        stop.kill_at = now + limits::KILL_REPEAT_AFTER;
        stop.kills = stop.kills.saturating_add(1);
        // Ever fewer rows, so that one that never ends does not push its story out of the journal.
        if stop.kills.is_power_of_two() {
            self.note(Because::KillRepeated, ctx);
        }
        ctx.effects.command(Command::KillInstance { instance: self.instance_id() });
    }
}

/// When a bridge that is asked to stop now must have reported the end.
fn end_of_grace(ctx: &Context<'_>) -> Monotonic {
    ctx.now.monotonic + ctx.policy.stop_grace + limits::STOP_REPORT_MARGIN
}

//! From the start command to a ready agent, and the bridge's comings and goings.
//!
//! Owner: `Session`. Invariants: a start raises the generation, and the command goes out only after
//! that is on disk; a bridge of the wrong boot is refused before it executes anything (FAULTS I7).
//! Absent: which of many sessions may start (`supervisor`).

use std::time::Duration;

use crate::breaker::{self, Next};
use crate::cause::Cause;
use crate::command::{Command, News};
use crate::event::AgentState;
use crate::id::{BootId, MessageId, TurnId};
use crate::journal::Because;
use crate::limits;
use crate::policy::AgentPolicy;
use crate::record::StopReason;
use crate::rollout::Trial;
use crate::session::phase::Phase;
use crate::session::{Context, Due, Instance, Link, Session};
use crate::time::{Monotonic, millis};

impl Session {
    /// Admitted: order an instance.
    pub(crate) fn begin_start(&mut self, ctx: &mut Context<'_>) {
        assert!(self.wants_start(), "{} is started for a reason", self.id);
        let because = match self.queue.len() {
            0 => Because::WakeWanted,
            waiting => Because::MessagesWait { waiting },
        };
        self.generation = self.generation.next();
        self.instance = Some(Box::new(Instance::new(ctx.now.monotonic)));
        self.revision = Some(ctx.revision);
        self.enter(Phase::Starting, because, ctx);
        self.note_trial(ctx);
        let memory_limit_bytes = self.memory_limit(ctx);
        let (instance, revision) = (self.instance_id(), ctx.revision);
        let start = Command::StartInstance { instance, revision, memory_limit_bytes };
        ctx.effects.command(start);
        let estimate = self.start_took.or(ctx.start_estimate);
        for message in self.queue.messages() {
            ctx.effects.tell(message, News::Waking { estimate });
        }
        self.save_if_dirty(ctx.effects);
        self.check();
    }

    pub(super) fn bridge_attached(
        &mut self,
        boot: BootId,
        agent: AgentState,
        held: &[TurnId],
        ctx: &mut Context<'_>,
    ) {
        let instance_id = self.instance_id();
        let phase = self.phase;
        let instance = self.instance_mut();
        if instance.boot.is_some_and(|known| known != boot) {
            ctx.effects.stale += 1;
            let why = "another bridge of this generation is connected";
            ctx.effects.command(Command::RefuseBridge { instance: instance_id, boot, why });
            return;
        }
        let is_first_hello = instance.boot.replace(boot).is_none();
        let holds_known_after = match agent {
            // What was never executed holds nothing.
            AgentState::NotLaunched => Duration::ZERO,
            AgentState::Starting | AgentState::Ready => limits::HOLDS_RETOLD_WITHIN,
        };
        instance.link = Link::Attached { holds_known_at: ctx.now.monotonic + holds_known_after };
        instance.files.start_over();
        let is_to_launch = phase == Phase::Starting && agent == AgentState::NotLaunched;
        let launch = is_to_launch && !self.needs_files(ctx);
        let launched = launch.then_some(ctx.revision);
        let admit = Command::AdmitBridge { instance: instance_id, boot, launch: launched };
        ctx.effects.command(admit);
        match (phase, agent) {
            (Phase::Starting, AgentState::NotLaunched) => {
                if !launch && self.files_are_in_place(ctx) {
                    self.launch(ctx);
                }
            }
            (Phase::Starting, AgentState::Starting) => {}
            (Phase::Starting, AgentState::Ready) => self.became_ready(ctx),
            (Phase::Awake | Phase::Draining, AgentState::Starting | AgentState::Ready) => {
                self.reconcile_turn(held, ctx);
                self.deliver_next(ctx);
            }
            (Phase::Awake | Phase::Draining, AgentState::NotLaunched) => {
                let what = "the agent that was ready was never executed".to_owned();
                self.begin_stop(StopReason::ProtocolFault, Because::BrokeProtocol { what }, ctx);
            }
            (Phase::Stopping, _) => {
                if is_first_hello {
                    self.grant_grace(ctx);
                }
                self.command_stop(ctx);
            }
            (Phase::Asleep | Phase::Backoff | Phase::Tripped, _) => {
                unreachable!("{} passed the fence", self.id)
            }
        }
    }

    /// A turn whose frame was lost with the connection or the daemon is delivered again, under the
    /// same id.
    fn reconcile_turn(&mut self, held: &[TurnId], ctx: &mut Context<'_>) {
        let Some(turn) = self.turn() else { return };
        if !held.contains(&turn) {
            ctx.effects.command(Command::DeliverTurn { instance: self.instance_id(), turn });
        }
    }

    pub(super) fn bridge_detached(&mut self, boot: BootId, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        let instance = self.instance_mut();
        if instance.boot == Some(boot) && instance.link.is_attached() {
            instance.link = Link::Detached { since: now };
            if instance.files.overdue_at().is_some() {
                // They are asked for again once it is back; until then it has a start's time.
                instance.launch_from = now;
            }
            instance.files.start_over();
        }
    }

    /// The workspace is whole: execute the agent.
    pub(super) fn launch(&mut self, ctx: &mut Context<'_>) {
        self.use_files(ctx);
        self.instance_mut().launch_from = ctx.now.monotonic;
        let (instance, revision) = (self.instance_id(), ctx.revision);
        ctx.effects.command(Command::LaunchAgent { instance, revision });
    }

    pub(super) fn became_ready(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        let instance = self.instance_mut();
        let took = now.since(instance.started_at);
        instance.ready_at = Some(now);
        instance.last_activity = now;
        self.start_took = Some(took);
        self.wake_wanted = false;
        self.enter(Phase::Awake, Because::BecameReady { took_ms: millis(took) }, ctx);
        self.ready_in_trial(ctx);
        self.deliver_next(ctx);
    }

    /// The driver could not execute a bridge: nothing exists, so there is no exit to wait for.
    pub(super) fn start_failed(&mut self, error: String, ctx: &mut Context<'_>) {
        if self.instance().was_seen() {
            // It was executed, whatever the driver thinks; its exit will tell.
            ctx.effects.stale += 1;
            return;
        }
        match self.phase {
            Phase::Starting | Phase::Stopping => {
                self.instance = None;
                if self.start_failed_in_trial(&error, ctx) {
                    return;
                }
                // What was asked for while it was being stopped is still to come.
                self.wake_wanted &= self.phase == Phase::Stopping;
                self.failures = self.failures.saturating_add(1);
                self.last_failure = Some(Cause::StartFailed);
                let restart = self.pause(ctx);
                let because = Because::StartFailed {
                    error,
                    failures: self.failures,
                    restart_at: restart.map(|due| due.at_wall),
                };
                self.enter_rest(restart, because, None, ctx);
            }
            Phase::Awake | Phase::Draining => unreachable!("{} was ready unseen", self.id),
            Phase::Asleep | Phase::Backoff | Phase::Tripped => {
                unreachable!("{} passed the fence", self.id)
            }
        }
    }

    /// The pause that the failures so far call for, if it is longer than nothing.
    pub(super) fn pause(&self, ctx: &Context<'_>) -> Option<Due> {
        let policy = ctx.policy.breaker;
        // It would say the same again: the breaker opens at once.
        let is_certain = self.last_failure == Some(Cause::ConfigRejected);
        let at_least = if is_certain { policy.intensity } else { 0 };
        let (pause, is_probe) = match breaker::next(self.failures.max(at_least), policy, &self.id) {
            Next::AtOnce => return None,
            Next::After(pause) => (pause, false),
            Next::Probe(pause) => (pause, true),
        };
        Some(Due { at: ctx.now.monotonic + pause, at_wall: ctx.now.wall + pause, is_probe })
    }

    /// Without an instance: asleep, or waiting for the next start to be due. `already_told` knows
    /// when it is tried again.
    pub(super) fn enter_rest(
        &mut self,
        restart: Option<Due>,
        because: Because,
        already_told: Option<MessageId>,
        ctx: &mut Context<'_>,
    ) {
        self.backoff = restart;
        let Some(due) = restart else {
            self.enter(Phase::Asleep, because, ctx);
            return;
        };
        let phase = if due.is_probe { Phase::Tripped } else { Phase::Backoff };
        self.enter(phase, because, ctx);
        for message in self.queue.messages().filter(|message| Some(*message) != already_told) {
            ctx.effects.tell(message, self.waiting_to_restart(due));
        }
    }

    pub(super) fn waiting_to_restart(&self, due: Due) -> News {
        News::WaitingToRestart {
            at: due.at_wall,
            cause: self.last_failure.unwrap_or(Cause::Unknown),
        }
    }

    /// When the start is given up: it has its time from the moment at which its files are there.
    pub(super) fn start_due(&self, policy: &AgentPolicy) -> Monotonic {
        let instance = self.instance();
        instance.files.overdue_at().unwrap_or(instance.launch_from + policy.ready_within)
    }

    pub(super) fn start_deadline(&mut self, ctx: &mut Context<'_>) {
        if self.give_up_files(ctx) {
            return;
        }
        let within = ctx.policy.ready_within;
        if ctx.now.monotonic >= self.start_due(ctx.policy) {
            let because = Because::NotReadyInTime { within_ms: millis(within) };
            // After a trial it goes on with the good revision, as it was asked to.
            self.wake_wanted &= ctx.trial == Trial::Canary;
            self.begin_stop(StopReason::StartTimeout, because, ctx);
        }
    }

    pub(super) fn backoff_deadline(&mut self, ctx: &mut Context<'_>) {
        if self.backoff.is_some_and(|due| ctx.now.monotonic >= due.at) {
            self.end_backoff(Because::BackoffEnded, ctx);
        }
    }

    pub(super) fn end_backoff(&mut self, because: Because, ctx: &mut Context<'_>) {
        self.backoff = None;
        self.enter(Phase::Asleep, because, ctx);
    }

    /// Without a bridge for longer than allowed: it cannot be asked any more, only killed.
    pub(super) fn give_up_bridge(&mut self, ctx: &mut Context<'_>) -> bool {
        let now: Monotonic = ctx.now.monotonic;
        let Link::Detached { since } = self.instance().link else { return false };
        if now < since + ctx.policy.reattach_within {
            return false;
        }
        let because = Because::BridgeUnreachable { for_ms: millis(now.since(since)) };
        self.begin_stop(StopReason::BridgeUnreachable, because, ctx);
        true
    }
}

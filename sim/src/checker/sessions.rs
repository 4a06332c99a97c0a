//! The judge of lives: phases and their reasons, generations, stops, starts and the pauses between
//! them.
//!
//! Owner: `Checker`. Invariants: the books of a session are kept from committed writes and from
//! what its instances were heard to say, never from the core's memory; times are true times, so
//! that a clock that lies is found. Absent: messages' texts and answers (`checker`).

use std::collections::{BTreeMap, BTreeSet};

use dormouse_core::command::Write;
use dormouse_core::event::{Event, SessionRequest};
use dormouse_core::id::{Generation, InstanceId, MessageId, SessionId, TurnId};
use dormouse_core::journal::{Because, Decision, ExitSummary, FilesChange};
use dormouse_core::limits;
use dormouse_core::policy::RetrySafety;
use dormouse_core::record::{FilesRecord, SessionRecord};
use dormouse_core::session::phase::Phase;
use dormouse_core::time::{Wall, millis};

use super::Checker;
use super::clocks::Clocks;
use super::pauses::{PAUSE_MAX, PROBE_MAX, Pause, check_end};
use super::starts::{check_idle_stop, check_start};
use crate::engine::Step;
use crate::store::Tables;
use crate::violation::{Checked, Invariant};

/// The books of one session.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) phase: Phase,
    pub(super) generation: Generation,
    pub(super) active_at: u64,
    pub(super) clocks: Clocks,
    /// Holds that its live instance declared.
    pub(super) holds: BTreeMap<String, Hold>,
    /// The same as the agent itself knows them: it may have given up one that the daemon still
    /// counts.
    pub(super) true_holds: BTreeMap<String, u64>,
    pub(super) queue: BTreeSet<MessageId>,
    pub(super) turn: Option<TurnId>,
    pub(super) failures: u32,
    pub(super) pause: Option<Pause>,
    /// Starts since something other than a failure happened.
    pub(super) starts: Vec<u64>,
    /// Starts that the driver said had failed: nothing was there, so there is no evidence.
    pub(super) never_started: BTreeSet<Generation>,
    /// It was wanted when its newest exit was written down: for messages, or by an operator.
    pub(super) had_work: bool,
    decisions: u64,
    pub(super) wake: Wake,
    /// Something was put into it, or kept of it, or declared for it.
    pub(super) has_files: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    pub(super) until: u64,
    /// Said to an earlier supervisor, and not again since.
    pub(super) is_of_the_past: bool,
}

/// What became of a request to wake or restart a session that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    NotAsked,
    Owed,
    /// It was started, and is not ready yet.
    BeingMet,
}

impl Wake {
    /// A start that failed is an answer too, and told as one. One that nobody wanted to end is not.
    pub(super) fn after_exit(self, summary: &ExitSummary, has_failed_trial: bool) -> Self {
        match self {
            _of_trial if has_failed_trial => self.after_trial(),
            Wake::BeingMet if summary.cause.is_none() && summary.stop.is_none() => Wake::Owed,
            Wake::BeingMet => Wake::NotAsked,
            other => other,
        }
    }

    /// The session goes on with what is good.
    pub(super) fn after_trial(self) -> Self {
        if self == Wake::BeingMet { Wake::Owed } else { self }
    }
}

/// An agent that always fails is started at most this often in ten minutes.
pub(super) const STARTS_MAX: usize = 8;
pub(super) const STARTS_WINDOW_MS: u64 = 10 * 60 * 1_000;

impl Watch {
    fn new() -> Self {
        Self {
            phase: Phase::Asleep,
            generation: Generation::default(),
            active_at: 0,
            clocks: Clocks::default(),
            holds: BTreeMap::new(),
            true_holds: BTreeMap::new(),
            queue: BTreeSet::new(),
            turn: None,
            failures: 0,
            pause: None,
            starts: Vec::new(),
            never_started: BTreeSet::new(),
            had_work: false,
            decisions: 0,
            wake: Wake::NotAsked,
            has_files: false,
        }
    }

    fn hears(&mut self, event: &Event, at: u64, is_configured: bool) {
        let is_current = |instance: &InstanceId| {
            instance.generation == self.generation && self.phase.has_instance()
        };
        if event.instance().is_some_and(is_current) {
            self.clocks.hear(event, at);
        }
        match event {
            Event::TurnProgressed { instance, turn, .. }
            | Event::TurnEnded { instance, turn, .. }
                if is_current(instance) && self.turn == Some(*turn) =>
            {
                self.active_at = at;
                self.clocks.progresses(at);
            }
            Event::HoldTaken { instance, name, for_ms } if is_current(instance) => {
                let lasts = (*for_ms).min(millis(limits::HOLD_SPAN_MAX));
                self.active_at = at;
                self.clocks.progresses(at);
                self.holds.insert(name.clone(), Hold { until: at + lasts, is_of_the_past: false });
            }
            Event::SessionRequested { what: SessionRequest::Wake, .. }
                if self.phase == Phase::Awake && is_configured =>
            {
                self.active_at = at;
            }
            Event::MessageSubmitted { .. }
            | Event::SessionRequested { .. }
            | Event::RedriveRequested { .. }
            | Event::DropRequested { .. }
            | Event::InstanceStarted { .. }
            | Event::InstanceStartFailed { .. }
            | Event::BridgeAttached { .. }
            | Event::BridgeDetached { .. }
            | Event::InstanceReady { .. }
            | Event::TurnProgressed { .. }
            | Event::TurnEnded { .. }
            | Event::HoldTaken { .. }
            | Event::UploadSubmitted { .. }
            | Event::RestoreRequested { .. }
            | Event::InputsListed { .. }
            | Event::FilesProgressed { .. }
            | Event::FilesSynced { .. }
            | Event::FilesSyncFailed { .. }
            | Event::CheckpointOffered { .. }
            | Event::InstanceExited { .. }
            | Event::Configured { .. }
            | Event::RolloutRequested { .. }
            | Event::DeadlinePassed => {}
        }
    }

    fn files_changed(&mut self, change: &FilesChange, phase: Phase, at: u64) {
        match change {
            FilesChange::InPlace { .. } => self.clocks.files_are_there(at),
            // Of a life that runs it makes another one.
            FilesChange::RestoreRequested { .. } if phase.has_instance() => {
                self.wake = Wake::Owed;
            }
            FilesChange::RestoreRequested { .. }
            | FilesChange::Failed { .. }
            | FilesChange::Uploaded { .. }
            | FilesChange::CheckpointMade { .. } => {}
        }
    }

    fn ends_message(&mut self, message: MessageId) {
        self.queue.remove(&message);
        self.turn = self.turn.filter(|turn| turn.message != message);
    }

    pub(super) fn ends_pause(&mut self, id: &SessionId, at: u64) -> Checked {
        let Some(pause) = self.pause.take() else { return Ok(()) };
        Invariant::BoundedRestarts.check(at >= pause.over_at, || {
            format!("{id}: its pause ended {} ms too early", pause.over_at - at)
        })
    }

    /// Somebody, or an answer, took the weight off the failures so far.
    pub(super) fn start_over(&mut self) {
        self.starts.clear();
    }
}

impl Checker {
    /// A batch with this step in it is on disk.
    pub(crate) fn committed(&mut self, step: &Step, in_touch: &BTreeSet<SessionId>) -> Checked {
        self.in_touch.clone_from(in_touch);
        if let Some(event) = &step.event
            && let Some(session) = event.session()
        {
            let is_configured = self.revisions.is_configured(session);
            self.watch(session).hears(event, step.at_ms, is_configured);
        }
        if let Some(event) = &step.event {
            self.revisions_hear(event);
        }
        for write in &step.effects.writes {
            self.entered(write, step)?;
        }
        self.check_orders(step)?;
        self.note_wants();
        Ok(())
    }

    pub(super) fn watch(&mut self, session: &SessionId) -> &mut Watch {
        if !self.watches.contains_key(session) {
            self.watches.insert(session.clone(), Watch::new());
        }
        self.watches.get_mut(session).expect("it was just put there")
    }

    fn entered(&mut self, write: &Write, step: &Step) -> Checked {
        match write {
            Write::InsertMessage(record) => {
                self.files.accepted(record.id, step.at_ms);
                let watch = self.watch(&record.session);
                watch.queue.insert(record.id);
                if watch.phase == Phase::Awake {
                    watch.active_at = step.at_ms;
                }
            }
            Write::LeaseDelivery { turn, .. } => {
                let Some(session) = self.session_of(turn.message) else { return Ok(()) };
                let policy = self.policy_of(&session);
                self.files.leased(&session, *turn, policy.files);
                let watch = self.watch(&session);
                watch.turn = Some(*turn);
                watch.active_at = step.at_ms;
                watch.clocks.turn_begins(step.at_ms, &policy);
            }
            Write::ReturnDelivery { message, excused, .. } => {
                self.note_turn_end(*message, step.at_ms);
                let is_excused = self.revisions.is_excused_more(*message, *excused);
                self.check_excuse(*message, Some(*excused))?;
                let turn = self.watch_of(*message).and_then(|watch| watch.turn.take());
                return self.check_attempts(*message, turn, *excused, is_excused);
            }
            Write::AnswerMessage { turn, generation, text, .. } => {
                self.check_outcome(*turn, *generation, text)?;
                self.note_turn_end(turn.message, step.at_ms);
                if let Some(id) = self.session_of(turn.message) {
                    self.revision_answered(&id, text)?;
                }
                if let Some(watch) = self.watch_of(turn.message) {
                    watch.ends_message(turn.message);
                    watch.failures = 0;
                    watch.start_over();
                }
            }
            // It was with nobody.
            Write::CancelMessage { message, .. } => {
                if let Some(watch) = self.watch_of(*message) {
                    watch.ends_message(*message);
                }
            }
            Write::BuryMessage { message, .. } => {
                self.check_excuse(*message, None)?;
                self.note_turn_end(*message, step.at_ms);
                if let Some(watch) = self.watch_of(*message) {
                    watch.ends_message(*message);
                }
            }
            Write::InsertDecision(decision) => return self.decided(decision, step),
            Write::PutSession(record) => return self.check_record(record),
            Write::InsertExit(exit) => {
                let watch = self.watch(&exit.session);
                watch.had_work = !watch.queue.is_empty() || watch.wake != Wake::NotAsked;
            }
            Write::InsertUpload(record) => self.files.uploaded(&record.session, record.number),
            Write::MarkRedriven { .. }
            | Write::DropDeadLetter { .. }
            | Write::InsertCheckpoint { .. } => {}
            Write::PutRollout { agent, rollout } => return self.check_rollout(agent, rollout),
        }
        Ok(())
    }

    fn watch_of(&mut self, message: MessageId) -> Option<&mut Watch> {
        self.watches.values_mut().find(|watch| watch.queue.contains(&message))
    }

    /// An agent took a hold, or changed the end of one.
    pub(crate) fn held(&mut self, session: &SessionId, name: &str, until: u64) {
        self.watch(session).true_holds.insert(name.to_owned(), until);
    }

    /// A message that is to be tried again may be tried again.
    fn check_attempts(
        &self,
        message: MessageId,
        turn: Option<TurnId>,
        excused: u32,
        is_excused: bool,
    ) -> Checked {
        let session = self.watches.iter().find(|watch| watch.1.queue.contains(&message));
        let policy = session.map(|session| self.policy_of(session.0));
        let (Some(turn), Some(policy)) = (turn, policy) else {
            return Err(Invariant::Conservation.broken(format!("{message} was not leased")));
        };
        let counted = turn.attempt - excused;
        // What is not counted exhausts nothing, whatever the config allows by now.
        Invariant::BoundedAttempts.check(is_excused || counted < policy.attempts, || {
            format!("{turn} is to be tried again after {counted} of {}", policy.attempts)
        })?;
        Invariant::BoundedAttempts.check(policy.retry == RetrySafety::Safe, || {
            format!("{turn} is to be tried again, and its agent must not repeat turns")
        })
    }

    fn note_turn_end(&mut self, message: MessageId, at: u64) {
        if let Some(session) = self.session_of(message) {
            self.files.turn_ended(&session, at);
        }
    }

    pub(super) fn session_of(&self, message: MessageId) -> Option<SessionId> {
        let watch = self.watches.iter().find(|watch| watch.1.queue.contains(&message));
        watch.map(|watch| watch.0.clone())
    }

    fn check_record(&mut self, record: &SessionRecord) -> Checked {
        self.files.put(&record.id, record.files);
        self.watch(&record.id).has_files |= record.files != FilesRecord::default();
        let watch = self.watch(&record.id);
        let (phase, generation) = (watch.phase, watch.generation);
        Invariant::Cause.check(phase == record.phase, || {
            format!("{}: {} on disk, {phase} by its decisions", record.id, record.phase)
        })?;
        Invariant::OneLiveInstance.check(generation == record.generation, || {
            format!("{}: generation {} after {generation}", record.id, record.generation)
        })?;
        let failures = watch.failures;
        Invariant::BoundedRestarts.check(failures == record.failures, || {
            format!("{}: {} failures on disk, {failures} counted", record.id, record.failures)
        })
    }

    fn decided(&mut self, decision: &Decision, step: &Step) -> Checked {
        let at = step.at_ms;
        let id = &decision.session;
        let policy = self.policy_of(id);
        if decision.to == Phase::Starting && decision.from != Phase::Starting {
            self.check_line(id)?;
            self.note_restart(id, at)?;
        }
        self.note_start(decision);
        self.check_outdated_stop(decision, at)?;
        self.revision_decided(decision)?;
        let (has_failed_trial, is_canary) = (self.has_failed_trial(id), self.is_canary(id));
        let is_in_touch = self.in_touch.contains(id);
        let watch = self.watch(id);
        watch.check_clock(decision, &policy, at)?;
        watch.decisions += 1;
        let phase = watch.phase;
        Invariant::Cause.check(decision.from == phase, || {
            format!("{id}: decided from {}, it was {phase}", decision.from)
        })?;
        if let Because::Files { change } = &decision.because {
            watch.files_changed(change, decision.from, at);
        }
        match &decision.because {
            Because::WasIdle { .. } => check_idle_stop(id, watch, &policy, at, is_in_touch)?,
            Because::MessagesWait { .. } | Because::WakeWanted => check_start(decision, watch, at)?,
            Because::BackoffEnded => watch.ends_pause(id, at)?,
            Because::NotReadyInTime { .. } if is_canary => watch.wake = watch.wake.after_trial(),
            Because::BecameReady { .. } => {
                watch.active_at = at;
                watch.wake = Wake::NotAsked;
            }
            Because::WakeRequested { .. }
            | Because::StopRequested { .. }
            | Because::RestartRequested { .. } => {
                let is_stop = matches!(decision.because, Because::StopRequested { .. });
                watch.pause = None;
                watch.start_over();
                watch.wake = if is_stop { Wake::NotAsked } else { Wake::Owed };
            }
            Because::Exited { .. } | Because::StartFailed { .. } => {
                check_end(decision, watch, step, &policy, has_failed_trial)?;
            }
            _other => {}
        }
        watch.phase = decision.to;
        watch.set_clocks(decision, at);
        if !watch.phase.has_instance() {
            watch.holds.clear();
        }
        Ok(())
    }

    /// The exit's evidence is on disk before what was kept for it is thrown away.
    pub(crate) fn released(&mut self, instance: &InstanceId, durable: &Tables) -> Checked {
        let never_started =
            self.watch(&instance.session).never_started.contains(&instance.generation);
        Invariant::Cause.check(durable.exits.contains(instance) || never_started, || {
            format!("{instance} is released, and there is no evidence of its end")
        })
    }

    /// A new supervisor: what only memory knew starts anew, and pauses go on as far as the wall
    /// clock tells.
    pub(crate) fn rebuilt(&mut self, at: u64, wall: Wall) {
        self.failed_starts.clear();
        self.restarts.clear();
        let wall_clock_moved = std::mem::take(&mut self.wall_clock_moves) > 0;
        for watch in self.watches.values_mut() {
            watch.active_at = at;
            watch.clocks.begin_anew(at);
            watch.holds.values_mut().for_each(|hold| hold.is_of_the_past = true);
            if let Some(pause) = &mut watch.pause {
                let longest = if pause.is_probe { PROBE_MAX } else { PAUSE_MAX };
                let left = wall.until(pause.over_at_wall).min(longest);
                pause.over_at = at + millis(left);
            }
            if wall_clock_moved {
                watch.start_over();
            }
        }
    }

    pub(crate) fn wall_clock_moved(&mut self) {
        self.wall_clock_moves += 1;
    }

    /// Who was told that the session will be woken was told the truth.
    pub(super) fn check_wakes(&self) -> Checked {
        let owed = self.watches.iter().find(|watch| watch.1.wake == Wake::Owed);
        Invariant::HonestAnswer.check(owed.is_none(), || {
            format!("{:?}: an accepted request to wake it came to nothing", owed.map(|owed| owed.0))
        })
    }

    /// The books and the disk agree on what waits and on what was decided.
    pub(super) fn check_books(&self, session: &SessionId, durable: &Tables) -> Checked {
        let on_disk: BTreeSet<MessageId> =
            durable.queue(session).map(|row| row.record.id).collect();
        let empty = BTreeSet::new();
        let watch = self.watches.get(session);
        let booked = watch.map_or(&empty, |watch| &watch.queue);
        let rows = durable.decisions.get(session).copied().unwrap_or_default();
        let decided = watch.map_or(0, |watch| watch.decisions);
        Invariant::Cause.check(rows == decided, || {
            format!("{session}: {decided} decisions, {rows} of them on disk")
        })?;
        Invariant::Conservation.check(on_disk == *booked, || {
            format!("{session}: on disk wait {on_disk:?}, by the books {booked:?}")
        })
    }
}

//! One session: its phase, its queue, its one instance. See `phase` for the diagram.
//!
//! One file per verb: `start` (until the agent is ready) · `turn` (messages and replies) · `drain`
//! (asked to stop) · `files` (the gates before an agent and before a turn) · `revision` (a trial of
//! what is new) · `exit` (what a death means). This file holds the state, the phase × event table,
//! and the deadlines.
//!
//! Owner: `Supervisor`. Invariants, asserted after every event: an instance exists exactly in the
//! phases that have one; a message is leased exactly while a turn runs; a turn runs only on a ready
//! instance.
//! Absent: other sessions, admission of starts, IO.

pub mod phase;

mod drain;
mod exit;
mod files;
mod instance;
mod revision;
mod start;
mod turn;

use std::time::Duration;

use crate::backoff;
use crate::breaker;
use crate::cause::Cause;
use crate::command::{Effects, Write};
use crate::event::Event;
use crate::id::{Generation, InstanceId, RevisionNumber, SessionId, Subject, TurnId};
use crate::journal::{Because, Decision};
use crate::policy::{AgentPolicy, Canary, NodePolicy};
use crate::queue::Queue;
use crate::record::{FilesRecord, SessionRecord, StopReason, StoredSession};
use crate::rollout::{self, Trial};
use crate::sizing::{self, LearnedMemory};
use crate::time::{Monotonic, Now, Wall, millis};
use instance::{Instance, Link, Stop, Turn};
use phase::Phase;

#[derive(Debug)]
pub struct Session {
    id: SessionId,
    subject: Subject,
    created_at: Wall,
    phase: Phase,
    generation: Generation,
    failures: u32,
    last_failure: Option<Cause>,
    backoff: Option<Due>,
    wake_wanted: bool,
    start_took: Option<Duration>,
    memory: Option<LearnedMemory>,
    files: FilesRecord,
    /// What the newest start got.
    revision: Option<RevisionNumber>,
    queue: Queue,
    /// When the head, after a failed attempt, may be tried again.
    retry: Option<Monotonic>,
    instance: Option<Box<Instance>>,
    /// The store has a row of it.
    is_stored: bool,
    /// The row differs from this.
    dirty: bool,
}

/// A moment on both clocks: decided by the one, told by the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    at: Monotonic,
    at_wall: Wall,
    /// The breaker is open: one start, to see.
    is_probe: bool,
}

/// What a handler may see and push.
pub(crate) struct Context<'a> {
    pub(crate) now: Now,
    pub(crate) policy: &'a AgentPolicy,
    /// The agent is in the config.
    pub(crate) is_configured: bool,
    /// What a start gets now, or the live instance has.
    pub(crate) revision: RevisionNumber,
    /// What the live instance says of it.
    pub(crate) trial: Trial,
    /// The trial is this session's alone, with a turn of its own.
    pub(crate) canary: Option<&'a Canary>,
    /// The live instance is to make place for another revision.
    pub(crate) is_outdated: bool,
    /// The next turn is the trial of another revision than the live instance has.
    pub(crate) makes_place: bool,
    /// What came out of the trial.
    pub(crate) verdict: Option<rollout::Verdict>,
    pub(crate) node: &'a NodePolicy,
    /// How long starts of this agent took lately.
    pub(crate) start_estimate: Option<Duration>,
    /// The daemon is ending: no turn begins any more.
    pub(crate) is_draining: bool,
    pub(crate) effects: &'a mut Effects,
}

impl Session {
    pub(crate) fn new(id: SessionId, subject: Subject, now: Now) -> Self {
        Self {
            id,
            subject,
            created_at: now.wall,
            phase: Phase::Asleep,
            generation: Generation::default(),
            failures: 0,
            last_failure: None,
            backoff: None,
            wake_wanted: false,
            start_took: None,
            memory: None,
            files: FilesRecord::default(),
            revision: None,
            queue: Queue::default(),
            retry: None,
            instance: None,
            is_stored: false,
            dirty: false,
        }
    }

    /// A session as the store has it. An instance that it had is not connected until its bridge
    /// says hello.
    pub(crate) fn restored(stored: StoredSession, now: Now) -> Self {
        let record = stored.record;
        let queue = Queue::restored(stored.deliveries);
        let is_probe = record.phase == Phase::Tripped;
        let longest = if is_probe { breaker::LONGEST } else { backoff::LONGEST };
        let due = |at_wall: Wall| Due {
            at: now.monotonic + now.wall.until(at_wall).min(longest),
            at_wall,
            is_probe,
        };
        let retry = queue.head().and_then(|head| head.not_before).map(|at| due(at).at);
        let instance =
            record.phase.has_instance().then(|| Box::new(Instance::restored(&record, &queue, now)));
        let session = Self {
            id: record.id,
            subject: record.subject,
            created_at: record.created_at,
            phase: record.phase,
            generation: record.generation,
            failures: record.failures,
            last_failure: record.last_failure,
            backoff: record.backoff_until.map(due),
            wake_wanted: record.wake_wanted,
            start_took: record.start_took_ms.map(Duration::from_millis),
            memory: record.memory,
            files: record.files,
            revision: record.revision,
            queue,
            retry,
            instance,
            is_stored: true,
            dirty: false,
        };
        session.check();
        session
    }

    pub fn id(&self) -> &SessionId {
        &self.id
    }

    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Failed lives in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    pub fn last_failure(&self) -> Option<Cause> {
        self.last_failure
    }

    /// It is being started, or was, and is stopped because it, or its files, were not ready in
    /// time.
    pub(crate) fn is_at_its_start(&self) -> bool {
        let stop = self.instance.as_ref().and_then(|instance| Some(instance.stop?.reason));
        self.phase == Phase::Starting
            || matches!(stop, Some(StopReason::StartTimeout | StopReason::FilesFailed))
    }

    /// What the newest start got.
    pub fn revision(&self) -> Option<RevisionNumber> {
        self.revision
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// What the next start may use.
    fn memory_limit(&self, ctx: &Context<'_>) -> Option<u64> {
        sizing::limit(ctx.policy.memory, self.memory, ctx.node.memory_max_bytes)
    }

    pub fn start_took(&self) -> Option<Duration> {
        self.start_took
    }

    /// The turn that runs now.
    pub fn turn(&self) -> Option<TurnId> {
        self.instance.as_ref()?.turn.as_ref().map(|turn| turn.id)
    }

    /// Since when it runs, as far as this daemon has seen.
    pub fn turn_since(&self) -> Option<Monotonic> {
        self.instance.as_ref()?.turn.as_ref().map(|turn| turn.clock.started_at())
    }

    /// Names of the agent's own holds in force.
    pub fn holds(&self, now: Monotonic) -> impl Iterator<Item = &str> {
        self.instance
            .iter()
            .flat_map(move |instance| instance.holds.in_force(now))
            .map(|hold| hold.0)
    }

    /// Nothing to remember beyond the record: may be forgotten until the next event.
    pub fn is_dormant(&self) -> bool {
        self.phase == Phase::Asleep && self.queue.is_empty() && !self.wake_wanted
    }

    /// Asleep with a reason not to be.
    pub fn wants_start(&self) -> bool {
        self.phase == Phase::Asleep && (!self.queue.is_empty() || self.wake_wanted)
    }

    /// The phase × event table. What an instance says was checked against the fence before.
    pub(crate) fn handle(&mut self, event: Event, ctx: &mut Context<'_>) {
        match event {
            Event::MessageSubmitted { request, submission } => {
                self.submit(request, submission, ctx)
            }
            Event::RedriveRequested { request, dead, new_id, by } => {
                self.redrive(request, dead, new_id, by, ctx);
            }
            Event::DropRequested { request, session: _, message, is_dead, by } => {
                self.drop_message(request, message, is_dead, by, ctx);
            }
            Event::SessionRequested { request, session: _, what, by } => {
                self.requested(request, what, by, ctx);
            }
            Event::UploadSubmitted { request, upload } => self.upload(request, upload, ctx),
            Event::RestoreRequested { request, session: _, checkpoint, by } => {
                self.restore_requested(request, checkpoint, by, ctx);
            }
            Event::InstanceStarted { instance: _ } => match self.phase {
                // The bridge's own hello is what counts; this only says that it was executed.
                Phase::Starting | Phase::Awake | Phase::Draining | Phase::Stopping => {}
                Phase::Asleep | Phase::Backoff | Phase::Tripped => {
                    unreachable!("{} passed the fence", self.id)
                }
            },
            Event::InstanceStartFailed { instance: _, error } => self.start_failed(error, ctx),
            Event::BridgeAttached { instance: _, boot, agent, held } => {
                self.bridge_attached(boot, agent, &held, ctx);
            }
            Event::BridgeDetached { instance: _, boot } => self.bridge_detached(boot, ctx),
            Event::InstanceReady { instance: _ } => match self.phase {
                Phase::Starting => self.became_ready(ctx),
                // Repeated after a reconnect, or too late to matter.
                Phase::Awake | Phase::Draining | Phase::Stopping => {}
                Phase::Asleep | Phase::Backoff | Phase::Tripped => {
                    unreachable!("{} passed the fence", self.id)
                }
            },
            Event::TurnProgressed { instance: _, turn, offset, text } => {
                self.turn_progressed(turn, offset, text, ctx);
            }
            Event::TurnEnded { instance: _, turn, outcome } => self.turn_ended(turn, outcome, ctx),
            Event::HoldTaken { instance: _, name, for_ms } => {
                self.hold_taken(&name, Duration::from_millis(for_ms), ctx);
            }
            Event::InputsListed { instance: _, look, outcome } => {
                self.inputs_listed(look, outcome, ctx);
            }
            Event::FilesProgressed { instance: _, progress } => {
                self.files_progressed(progress, ctx)
            }
            Event::FilesSynced { instance: _, version } => self.files_synced(version, ctx),
            Event::FilesSyncFailed { instance: _, version, problem } => {
                self.files_sync_failed(version, problem, ctx);
            }
            Event::CheckpointOffered { request, instance: _, offer } => {
                self.checkpoint_offered(request, offer, ctx);
            }
            Event::InstanceExited { instance: _, evidence } => self.exited(evidence, ctx),
            Event::DeadlinePassed => self.deadline_passed(ctx),
            Event::Configured { .. } | Event::RolloutRequested { .. } => {
                unreachable!("{}: that is about no session", self.id)
            }
        }
        self.save_if_dirty(ctx.effects);
        self.check();
    }

    fn deadline_passed(&mut self, ctx: &mut Context<'_>) {
        match self.phase {
            Phase::Asleep => {}
            Phase::Starting => self.start_deadline(ctx),
            Phase::Awake => self.awake_deadline(ctx),
            Phase::Draining => self.drain_deadline(ctx),
            Phase::Stopping => self.stop_deadline(ctx),
            Phase::Backoff | Phase::Tripped => self.backoff_deadline(ctx),
        }
    }

    /// When this session wants to be called next, whatever else happens. Timers are data: nothing
    /// is armed or cancelled.
    pub(crate) fn deadline(&self, now: Monotonic, policy: &AgentPolicy) -> Option<Monotonic> {
        let unreachable_at = || match self.instance().link {
            Link::Attached { .. } => None,
            Link::Detached { since } => Some(since + policy.reattach_within),
        };
        match self.phase {
            Phase::Asleep => None,
            Phase::Starting => Some(self.start_due(policy)),
            Phase::Awake => {
                let instance = self.instance();
                let next = match &instance.turn {
                    Some(turn) => {
                        let held_until = instance.silent_until(now, policy);
                        Some(turn.clock.next_change(now, turn.limits(policy), held_until))
                    }
                    None if self.queue.is_empty() => instance.idle_at(now, policy),
                    // A message waits for its files, for its pause, or for the bridge, which has
                    // its own limit.
                    None => instance
                        .files
                        .overdue_at()
                        .or_else(|| self.retry.filter(|_| instance.link.is_attached())),
                };
                earliest(next, unreachable_at())
            }
            Phase::Draining => {
                let since = self.instance().drain_since.expect("draining has begun at some time");
                earliest(Some(since + policy.drain_within), unreachable_at())
            }
            Phase::Stopping => Some(self.instance().stop.expect("stopping has a reason").kill_at),
            Phase::Backoff | Phase::Tripped => Some(self.backoff.expect("backoff has an end").at),
        }
    }

    /// Whether what is said of `instance` is said of the life that counts.
    pub(crate) fn is_current(&self, instance: &InstanceId) -> bool {
        self.instance.is_some() && instance.generation == self.generation
    }

    fn instance_id(&self) -> InstanceId {
        InstanceId { session: self.id.clone(), generation: self.generation }
    }

    fn instance(&self) -> &Instance {
        self.instance.as_deref().expect("this phase has an instance")
    }

    fn instance_mut(&mut self) -> &mut Instance {
        self.instance.as_deref_mut().expect("this phase has an instance")
    }

    fn enter(&mut self, next: Phase, because: Because, ctx: &mut Context<'_>) {
        assert!(self.phase.may_become(next), "{}: {} may not become {next}", self.id, self.phase);
        self.journal(next, because, ctx);
        self.phase = next;
        self.dirty = true;
        if !ctx.is_configured && self.wants_start() {
            self.note(Because::AgentNotConfigured, ctx);
        }
    }

    /// A decision that changes no phase.
    fn note(&mut self, because: Because, ctx: &mut Context<'_>) {
        self.journal(self.phase, because, ctx);
    }

    fn journal(&self, to: Phase, because: Because, ctx: &mut Context<'_>) {
        ctx.effects.write(Write::InsertDecision(Decision {
            session: self.id.clone(),
            generation: self.generation,
            at: ctx.now.wall,
            from: self.phase,
            to,
            because,
        }));
    }

    fn save_if_dirty(&mut self, effects: &mut Effects) {
        if std::mem::take(&mut self.dirty) {
            self.is_stored = true;
            effects.write(Write::PutSession(self.record()));
        }
    }

    pub fn record(&self) -> SessionRecord {
        SessionRecord {
            id: self.id.clone(),
            subject: self.subject.clone(),
            created_at: self.created_at,
            phase: self.phase,
            generation: self.generation,
            failures: self.failures,
            backoff_until: self.backoff.map(|due| due.at_wall),
            stop: self.instance.as_ref().and_then(|instance| Some(instance.stop?.reason)),
            wake_wanted: self.wake_wanted,
            start_took_ms: self.start_took.map(millis),
            last_failure: self.last_failure,
            memory: self.memory,
            files: self.files,
            revision: self.revision,
        }
    }

    fn check(&self) {
        let (id, phase) = (&self.id, self.phase);
        assert_eq!(self.instance.is_some(), phase.has_instance(), "{id}: instance in {phase}");
        let is_probe = self.backoff.map(|due| due.is_probe);
        let expected = match phase {
            Phase::Backoff => Some(false),
            Phase::Tripped => Some(true),
            Phase::Asleep | Phase::Starting | Phase::Awake | Phase::Draining | Phase::Stopping => {
                None
            }
        };
        assert_eq!(is_probe, expected, "{id}: the next start in {phase}");
        assert_eq!(self.turn(), self.queue.leased().map(|lease| lease.0), "{id}: turn and lease");
        if let Some((turn, generation)) = self.queue.leased() {
            assert_eq!(
                generation, self.generation,
                "{id}: {turn} is leased to the live generation"
            );
            assert_ne!(phase, Phase::Starting, "{id}: {turn} runs before the agent is ready");
        }
        if let Some(instance) = &self.instance {
            assert_eq!(instance.stop.is_some(), phase == Phase::Stopping, "{id}: stop in {phase}");
            assert_eq!(
                instance.drain_since.is_some(),
                phase == Phase::Draining,
                "{id}: drain in {phase}"
            );
        }
    }
}

fn earliest(one: Option<Monotonic>, other: Option<Monotonic>) -> Option<Monotonic> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

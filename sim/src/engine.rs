//! The daemon's loop in small: the same order of steps as the real one, around the same
//! `Supervisor`.
//!
//! ```text
//!  inbox ─▶ batch: load, add what the store knows, handle ─▶ deadlines   one reading of the clocks
//!                                                                │
//!           commands ◀─ answers, notices ◀────────── commit ◀────┘
//!                 crash points: between, after it, before it
//! ```
//!
//! Owner: `World`. Invariants: one batch is open at a time; nothing leaves before its commit;
//! everything that has arrived is handled before a deadline is. Absent: what happens when the
//! process or the disk fails (`recovery`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dormouse_core::command::{Effects, Write};
use dormouse_core::event::{Attachment, Event, Submission};
use dormouse_core::id::{AgentName, InstanceId, MessageId, RequestId, SessionId, Subject};
use dormouse_core::policy::AgentSetup;
use dormouse_core::record::Idempotency;
use dormouse_core::rollout::Standing;
use dormouse_core::session::phase::Phase;
use dormouse_core::supervisor::Supervisor;
use dormouse_core::time::{Monotonic, Now};

use crate::fault::Fault;
use crate::hub::LinkId;
use crate::revisions::Revisions;
use crate::sabotage::Sabotage;
use crate::swarm::Config;
use crate::violation::{Checked, Invariant};
use crate::world::{Action, World};

/// What stands in line for the core.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// Said on a link, if one is named.
    Happened(Event, Option<LinkId>),
    Submit(RequestId, NewMessage),
    Redrive(RequestId, MessageId, Subject),
    /// What to give up, in which session, and whether it was a dead letter when that was looked up.
    Drop(RequestId, MessageId, SessionId, bool, Subject),
    /// The config was edited.
    Configure(RequestId),
    /// The driver's list did not show an instance that the store believes in.
    Gone(InstanceId),
}

/// A sender's message before it has an id.
#[derive(Debug, Clone)]
pub(crate) struct NewMessage {
    pub(crate) session: SessionId,
    pub(crate) subject: Subject,
    pub(crate) is_operator: bool,
    pub(crate) text: String,
    pub(crate) attachments: Vec<Attachment>,
    pub(crate) idempotency: Option<Idempotency>,
}

/// One thing that the core was handed, and what it said.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) at_ms: u64,
    pub(crate) now: Now,
    /// `None`: a session was taken over from the store.
    pub(crate) event: Option<Event>,
    pub(crate) effects: Effects,
}

#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) steps: Vec<Step>,
    /// Requests that the engine answers itself, because there is nothing to ask the core about.
    pub(crate) refused: Vec<RequestId>,
    /// The first of a daemon: the config as it read it.
    pub(crate) taken_over: Option<BTreeMap<AgentName, AgentSetup>>,
    pub(crate) begun_at_ms: u64,
    /// All that had arrived was handled, and then every deadline.
    pub(crate) has_caught_up: bool,
}

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) supervisor: Supervisor,
    pub(crate) is_up: bool,
    /// It was asked to end.
    pub(crate) is_draining: bool,
    /// Counts processes.
    pub(crate) life: u64,
    /// Counts supervisors: one per process, and one more after each failed commit.
    pub(crate) epoch: u64,
    /// What the clock of this process says is `true time - zero_at`.
    pub(crate) zero_at: i64,
    pub(crate) inbox: VecDeque<Input>,
    pub(crate) open: Option<Batch>,
    turn_at: Option<u64>,
    /// Deadlines in a row at which there was nothing to do.
    idle_turns: u64,
    pub(crate) newest_message: u128,
    /// Live according to the store; the driver has not confirmed it yet.
    pub(crate) suspects: BTreeSet<InstanceId>,
    /// Their bridges said hello since the last rebuild, so whatever the driver lists, they live.
    pub(crate) greeted: BTreeSet<InstanceId>,
    pub(crate) is_listing: bool,
}

/// Early deadlines are left behind by activity; there are never more than a few per session.
const IDLE_TURNS_MAX: u64 = 100;

impl Engine {
    pub(crate) fn new(config: &Config, revisions: &Revisions) -> Self {
        Self {
            supervisor: Supervisor::new(config.node.clone(), revisions.setups(), BTreeMap::new()),
            is_up: true,
            is_draining: false,
            life: 0,
            epoch: 0,
            zero_at: -1_000,
            inbox: VecDeque::new(),
            open: None,
            turn_at: None,
            idle_turns: 0,
            newest_message: 0,
            suspects: BTreeSet::new(),
            greeted: BTreeSet::new(),
            is_listing: false,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.is_up
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.is_up
            && self.inbox.is_empty()
            && self.open.is_none()
            && !self.is_listing
            && self.supervisor.sessions().next().is_none()
    }

    pub(crate) fn monotonic(&self, true_ms: u64) -> Monotonic {
        let reading = i64::try_from(true_ms).expect("a run is short") - self.zero_at;
        Monotonic(u64::try_from(reading).expect("a process reads its clock after its birth"))
    }

    pub(crate) fn true_time(&self, at: Monotonic) -> u64 {
        let at = i64::try_from(at.0).unwrap_or(i64::MAX);
        u64::try_from(at.saturating_add(self.zero_at)).unwrap_or(0)
    }

    /// Forgets everything that is only in memory.
    pub(crate) fn forget(&mut self) {
        self.open = None;
        self.turn_at = None;
        self.suspects.clear();
        self.greeted.clear();
        self.is_listing = false;
        self.epoch += 1;
    }
}

impl World {
    /// Something for the core arrived. A daemon that is down hears nothing.
    pub(crate) fn push_input(&mut self, input: Input) {
        if self.engine.is_up {
            self.engine.inbox.push_back(input);
            self.arm_engine();
        }
    }

    /// Plans the next turn of the loop: soon if something waits, else at the next deadline.
    pub(crate) fn arm_engine(&mut self) {
        if !self.engine.is_up || self.engine.open.is_some() {
            return;
        }
        let at = if !self.engine.inbox.is_empty() {
            self.now + self.rng.below(3)
        } else {
            let deadline = self.engine.supervisor.next_deadline();
            let Some(deadline) =
                deadline.filter(|_| !self.is_sabotaged(Sabotage::EngineSleepsThrough))
            else {
                return;
            };
            self.true_time(deadline).max(self.now) + self.rng.below(4)
        };
        if self.engine.turn_at.is_none_or(|planned| at < planned) {
            self.engine.turn_at = Some(at);
            self.plan(at, Action::EngineTurns);
        }
    }

    pub(crate) fn engine_turns(&mut self) -> Checked {
        if !self.engine.is_up || self.engine.open.is_some() || self.engine.turn_at != Some(self.now)
        {
            return Ok(());
        }
        self.engine.turn_at = None;
        if self.fires(Fault::ProcessPaused) {
            let at = self.now + self.rng.spread(500, 180_000);
            self.engine.turn_at = Some(at);
            self.plan(at, Action::EngineTurns);
            return Ok(());
        }
        let now = self.batch_clocks();
        let count = self.rng.between(1, self.config.batch_max as u64);
        let mut batch = Batch { begun_at_ms: self.now, ..Batch::default() };
        for _ in 0..count {
            let Some(input) = self.engine.inbox.pop_front() else { break };
            self.hand_in(input, now, &mut batch)?;
        }
        let next = self.engine.supervisor.next_deadline();
        // With more in line than fits a batch, the rest comes first: a real batch takes a thousand.
        let is_due = next.is_some_and(|at| at <= now.monotonic) && self.engine.inbox.is_empty();
        if is_due && !self.is_sabotaged(Sabotage::EngineSleepsThrough) {
            self.handle(Event::DeadlinePassed, now, &mut batch)?;
            self.count_idle_turns(&batch)?;
            let next = self.engine.supervisor.next_deadline();
            Invariant::Liveness.check(next.is_none_or(|next| next > now.monotonic), || {
                format!("at {now:?} the next deadline is still {next:?}")
            })?;
        }
        batch.has_caught_up = self.engine.inbox.is_empty();
        self.open_batch(batch)
    }

    /// A deadline may come early and find nothing to do; one after the other means a busy loop.
    fn count_idle_turns(&mut self, batch: &Batch) -> Checked {
        let did_nothing = |step: &Step| step.effects == Effects::default();
        let is_idle = batch.steps.len() == 1 && batch.steps.iter().all(did_nothing);
        self.engine.idle_turns = if is_idle { self.engine.idle_turns + 1 } else { 0 };
        let idle_turns = self.engine.idle_turns;
        Invariant::Liveness.check(idle_turns <= IDLE_TURNS_MAX, || {
            format!("{idle_turns} deadlines in a row were for nothing")
        })
    }

    fn batch_clocks(&self) -> Now {
        let mut now = self.read_clocks();
        if self.is_sabotaged(Sabotage::EngineClockRunsFast) {
            now.monotonic.0 = now.monotonic.0 * 3 / 2;
        }
        if self.is_sabotaged(Sabotage::EngineClockRunsSlow) {
            now.monotonic.0 = now.monotonic.0 * 9 / 10;
        }
        now
    }

    pub(crate) fn open_batch(&mut self, batch: Batch) -> Checked {
        let has_writes = batch.steps.iter().any(|step| !step.effects.writes.is_empty());
        if self.is_sabotaged(Sabotage::EngineAnswersFirst) {
            self.release_answers(&batch)?;
        }
        if self.is_sabotaged(Sabotage::EngineActsFirst) {
            self.release_commands(&batch, usize::MAX)?;
        }
        self.engine.open = Some(batch);
        let commit_ms = if has_writes { self.config.commit_ms_max } else { 0 };
        self.plan_soon(commit_ms, Action::EngineCommits { epoch: self.engine.epoch });
        Ok(())
    }

    /// Fills in what the store knows, and hands the event to the core.
    fn hand_in(&mut self, input: Input, now: Now, batch: &mut Batch) -> Checked {
        let event = match input {
            Input::Happened(event, _) => self.as_the_present_says(event),
            Input::Submit(request, new) => {
                let submission = self.submission(new, now);
                Event::MessageSubmitted { request, submission }
            }
            Input::Redrive(request, message, by) => match self.working.dead_letter(message) {
                Some(dead) => {
                    let new_id = self.mint(now);
                    Event::RedriveRequested { request, dead, new_id, by }
                }
                None => {
                    batch.refused.push(request);
                    return Ok(());
                }
            },
            Input::Drop(request, message, session, is_dead, by) => {
                Event::DropRequested { request, session, message, is_dead, by }
            }
            Input::Configure(request) => self.configured(request),
            Input::Gone(instance) => {
                let has_been_heard = self.engine.greeted.contains(&instance);
                if has_been_heard && !self.is_sabotaged(Sabotage::EngineBelievesTheList) {
                    return Ok(());
                }
                let evidence = self.driver.evidence_of_the_gone(&instance);
                Event::InstanceExited { instance, evidence }
            }
        };
        self.handle(event, now, batch)
    }

    fn submission(&mut self, new: NewMessage, now: Now) -> Submission {
        let prior = new
            .idempotency
            .as_ref()
            .and_then(|claim| self.working.prior(&new.subject, &claim.key, now.wall));
        Submission {
            id: self.mint(now),
            session: new.session,
            subject: new.subject,
            is_operator: new.is_operator,
            text: new.text,
            attachments: new.attachments,
            idempotency: new.idempotency,
            prior,
        }
    }

    /// The clock in the upper bits, and always more than the last one.
    fn mint(&mut self, now: Now) -> MessageId {
        let by_clock = u128::from(now.wall.0) << 80;
        self.engine.newest_message = by_clock.max(self.engine.newest_message + 1);
        MessageId(self.engine.newest_message)
    }

    /// The one call of the core for events; everything that can be said of one step alone is
    /// checked here.
    pub(crate) fn handle(&mut self, event: Event, now: Now, batch: &mut Batch) -> Checked {
        let session = event.session().cloned();
        if let Some(session) = &session {
            self.load(session, now);
        }
        let is_past = event.instance().is_some_and(|instance| !self.is_current(instance));
        if is_past {
            let is_hello = matches!(event, Event::BridgeAttached { .. });
            self.faults.count(match is_hello {
                true => Fault::PastGenerationSaidHello,
                false => Fault::PastGenerationSpoke,
            });
        }
        let mut effects = Effects::default();
        self.engine.supervisor.handle(now, self.as_told(event.clone()), &mut effects);
        self.doctor(now, &mut effects);
        self.figures.events += 1;
        self.trace.handled(self.now, session.as_ref(), format_args!("{event:?}"), &effects);
        if is_past {
            let changed = effects.writes.iter().any(|write| !is_start(write));
            Invariant::OneLiveInstance.check(!changed, || {
                format!("{event:?} is of the past and changed {:?}", effects.writes)
            })?;
        }
        self.take_step(Some(event), now, effects, batch)
    }

    fn is_current(&self, instance: &InstanceId) -> bool {
        self.engine.supervisor.session(&instance.session).is_some_and(|session| {
            session.phase().has_instance() && session.generation() == instance.generation
        })
    }

    pub(crate) fn take_step(
        &mut self,
        event: Option<Event>,
        now: Now,
        effects: Effects,
        batch: &mut Batch,
    ) -> Checked {
        for write in &effects.writes {
            self.working.apply(write)?;
        }
        let sessions = self.engine.supervisor.sessions();
        let starting = sessions.filter(|session| session.phase() == Phase::Starting).count();
        let starts_at_once = self.config.node.starts_at_once;
        Invariant::BoundedRestarts.check(starting <= starts_at_once, || {
            format!("{starting} starts at one time, {starts_at_once} are allowed")
        })?;
        let is_quiet = !effects.writes.iter().any(begins_something);
        Invariant::Drain.check(is_quiet || !self.engine.is_draining, || {
            format!("the daemon is ending, and begins {:?}", effects.writes)
        })?;
        batch.steps.push(Step { at_ms: self.now, now, event, effects });
        Ok(())
    }

    /// Brings a session that sleeps in the store into memory.
    fn load(&mut self, session: &SessionId, now: Now) {
        let is_known = self.engine.supervisor.is_loaded(session);
        if is_known || self.is_sabotaged(Sabotage::EngineForgetsToLoad) {
            return;
        }
        if let Some(stored) = self.working.stored(session) {
            self.engine.supervisor.load(now, stored);
        }
    }

    fn as_the_present_says(&self, mut event: Event) -> Event {
        if !self.is_sabotaged(Sabotage::EngineForgetsGenerations) {
            return event;
        }
        let newest = event
            .session()
            .and_then(|session| self.engine.supervisor.session(session))
            .map(|session| session.generation());
        if let (Some(newest), Event::InstanceExited { instance, .. }) = (newest, &mut event) {
            instance.generation = newest;
        }
        event
    }
}

/// A turn, or a life.
fn begins_something(write: &Write) -> bool {
    match write {
        Write::LeaseDelivery { .. } => true,
        Write::InsertDecision(decision) => {
            decision.to == Phase::Starting && decision.from != Phase::Starting
        }
        _other => false,
    }
}

/// Of a session that stood in line: the first event after a rebuild lets it in, whatever it says.
fn is_start(write: &Write) -> bool {
    match write {
        Write::InsertDecision(decision) => decision.to == Phase::Starting,
        Write::PutSession(record) => record.phase == Phase::Starting,
        Write::PutRollout { rollout, .. } => matches!(rollout.standing, Standing::Trying { .. }),
        _other => false,
    }
}

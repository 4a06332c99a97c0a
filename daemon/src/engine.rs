//! The one loop that owns all state: events in, `core` decides, one transaction, then answers,
//! notices and commands.
//!
//! ```text
//!  gateway ─ requests ─┐
//!  bridges ─ events ───┼▶ batch ─▶ load ─▶ Supervisor::handle ─▶ commit (fsync) ─┬▶ answers
//!  drivers ─ events ───┤                                                         ├▶ Hub: notices
//!  deadline ───────────┘                                                         └▶ Hands: acts
//! ```
//!
//! Owner: a thread of its own. Invariants: nothing is answered, told or done before the batch it
//! rests on is committed; after a failed commit nothing is acknowledged any more, and the loop ends
//! with the reason (FAULTS I21); a full disk undoes the whole batch, refuses its messages, and
//! starts over from the store in place (F6).
//! Absent: decisions (`core`), SQL (`store`), processes and sockets (`edge`).

mod canary;
pub(crate) mod clock;
pub(crate) mod hands;
mod launching;
pub(crate) mod mint;
mod pending;
pub(crate) mod request;
mod step;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_core::command::{Answer, Effects};
use dormouse_core::event::{Event, Setup};
use dormouse_core::id::{AgentName, InstanceId};
use dormouse_core::policy::NodePolicy;
use dormouse_core::rollout::Rollout;
use dormouse_core::supervisor::Supervisor;
use dormouse_core::time::{Monotonic, Now};
use dormouse_store::{ApplyError, CommitError, PruneError, ReadError, Store};
use tokio::sync::{mpsc, watch};

use crate::hub::{Hub, Place};
use crate::in_force::InForce;
use crate::metrics::Metrics;
use crate::notify::Notifier;
use clock::Clock;
use hands::Hands;
use mint::Mint;
use pending::Pending;
use request::{Request, RunningTurn, Verdict};
use step::{Step, apply_all};

/// The most inputs that one transaction takes: enough for group commit, few enough that the first
/// of them does not wait.
const BATCH_INPUTS_MAX: usize = 1_024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("the store failed while reading")]
    Read(#[source] ReadError),
    #[error("the store refused a change")]
    Apply(#[source] ApplyError),
    #[error("the store failed to commit; nothing of this batch was acknowledged")]
    Commit(#[source] CommitError),
    #[error("the store failed while it forgot old idempotency keys")]
    Prune(#[source] PruneError),
}

pub(crate) struct Engine {
    store: Store,
    supervisor: Supervisor,
    in_force: InForce,
    clock: Clock,
    mint: Mint,
    hub: Hub,
    hands: Hands,
    metrics: Arc<Metrics>,
    notifier: Notifier,
    requests: mpsc::Receiver<Request>,
    events: mpsc::Receiver<Event>,
    next_request: u64,
    /// The disk was too full even to start over: nothing is taken until it is not.
    is_stalled: bool,
    /// The process is to end: who wants to know which turns still run.
    draining: Option<watch::Sender<Option<Vec<RunningTurn>>>>,
    /// When old idempotency keys are looked for again.
    prune_at: Monotonic,
}

/// How often old idempotency keys are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// How often a stalled engine looks whether there is room again.
const STALL_RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) struct EngineParts {
    pub(crate) store: Store,
    pub(crate) in_force: InForce,
    pub(crate) hub: Hub,
    pub(crate) hands: Hands,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) notifier: Notifier,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) events: mpsc::Receiver<Event>,
}

impl Engine {
    /// Takes over what the store holds. `alive` are the instances that the drivers found running.
    pub(crate) fn recover(parts: EngineParts) -> Result<Self, EngineError> {
        let EngineParts { store, in_force, hub, hands, metrics, notifier, requests, events } =
            parts;
        let newest = store.newest_message_id().map_err(EngineError::Read)?;
        let mut engine = Self {
            supervisor: Supervisor::new(NodePolicy::default(), BTreeMap::new(), BTreeMap::new()),
            mint: Mint::after(newest),
            clock: Clock::start(),
            next_request: 0,
            is_stalled: false,
            draining: None,
            prune_at: Monotonic::default(),
            store,
            in_force,
            hub,
            hands,
            metrics,
            notifier,
            requests,
            events,
        };
        engine.start_over()?;
        Ok(engine)
    }

    /// Runs until it is told to end, or cannot go on.
    pub(crate) async fn run(mut self) -> Result<(), EngineError> {
        let mut requests = Vec::with_capacity(BATCH_INPUTS_MAX);
        let mut events = Vec::with_capacity(BATCH_INPUTS_MAX);
        loop {
            if self.is_stalled {
                if !self.wait_for_room().await? {
                    return Ok(());
                }
                continue;
            }
            let deadline = self.supervisor.next_deadline();
            let wait = self.clock.wait_until(deadline);
            tokio::select! {
                biased;
                taken = self.events.recv_many(&mut events, BATCH_INPUTS_MAX) => {
                    if taken == 0 { return Ok(()) }
                }
                taken = self.requests.recv_many(&mut requests, BATCH_INPUTS_MAX) => {
                    if taken == 0 { return Ok(()) }
                }
                () = wait => {}
            }
            // Whatever else is there rides in the same transaction.
            while requests.len() < BATCH_INPUTS_MAX
                && let Ok(request) = self.requests.try_recv()
            {
                requests.push(request);
            }
            while events.len() < BATCH_INPUTS_MAX
                && let Ok(event) = self.events.try_recv()
            {
                events.push(event);
            }
            let ends = requests.iter().any(|request| matches!(request, Request::End));
            requests.iter().for_each(|request| self.heed(request));
            let is_due = self.clock.is_due(deadline);
            self.batch(std::mem::take(&mut events), std::mem::take(&mut requests), is_due)?;
            self.report_running();
            self.keep_house()?;
            if ends {
                return Ok(());
            }
        }
    }

    /// A drain holds for all of this process, whatever else befalls it.
    fn heed(&mut self, request: &Request) {
        if let Request::Drain { report } = request {
            self.draining = Some(report.clone());
            self.drain();
        }
    }

    fn drain(&mut self) {
        if self.draining.is_none() {
            return;
        }
        let mut effects = Effects::default();
        self.supervisor.drain(&mut effects);
        assert!(effects.writes.is_empty(), "a drain is in memory only");
        effects.notices.into_iter().for_each(|notice| self.hub.post(notice));
    }

    /// To whoever waits for the last of them.
    fn report_running(&self) {
        let Some(report) = self.draining.as_ref().filter(|_| !self.is_stalled) else { return };
        let (now, instant) = (self.clock.now().monotonic, Instant::now());
        let turns = self.supervisor.sessions().filter_map(|session| {
            let began = now.since(session.turn_since()?);
            let began_at = instant.checked_sub(began).unwrap_or(instant);
            Some(RunningTurn { session: session.id().clone(), turn: session.turn()?, began_at })
        });
        let turns: Vec<RunningTurn> = turns.collect();
        let is_same = |known: &Vec<RunningTurn>| {
            known.iter().map(|one| one.turn).eq(turns.iter().map(|one| one.turn))
        };
        report.send_if_modified(|known| {
            let is_news = !known.as_ref().is_some_and(is_same);
            if is_news {
                *known = Some(turns.clone());
            }
            is_news
        });
    }

    fn batch(
        &mut self,
        events: Vec<Event>,
        requests: Vec<Request>,
        is_due: bool,
    ) -> Result<(), EngineError> {
        let now = self.clock.now();
        let mut pending = Pending::default();
        match self.handle_all(now, events, requests, is_due, &mut pending) {
            Ok(()) => {
                self.release(pending);
                Ok(())
            }
            Err(error) if error.is_full() => {
                pending.refuse_everything();
                self.metrics.store_full.inc();
                tracing::error!("the disk is full: messages are refused until there is room again");
                self.start_over()
            }
            Err(error) => Err(error),
        }
    }

    /// What the store needs now and then, after everybody has been answered.
    fn keep_house(&mut self) -> Result<(), EngineError> {
        self.store.checkpoint_if_due().map_err(EngineError::Commit)?;
        let now = self.clock.now();
        if now.monotonic < self.prune_at {
            return Ok(());
        }
        let pruned = match self.store.prune(now.wall) {
            Ok(pruned) => pruned,
            // Nothing was removed; there may be room next time.
            Err(error) if error.is_full() => return Ok(()),
            Err(error) => return Err(EngineError::Prune(error)),
        };
        if pruned.is_finished {
            self.prune_at = now.monotonic + PRUNE_EVERY;
        }
        Ok(())
    }

    fn handle_all(
        &mut self,
        now: Now,
        events: Vec<Event>,
        requests: Vec<Request>,
        is_due: bool,
        pending: &mut Pending,
    ) -> Result<(), EngineError> {
        let has_room = requests.is_empty() || self.has_room();
        let mut batch = self.store.batch();
        let mut step = Step {
            now,
            in_force: &self.in_force,
            supervisor: &mut self.supervisor,
            mint: &mut self.mint,
            next_request: &mut self.next_request,
            batch: &mut batch,
            pending,
        };
        for event in events {
            self.hands.hear(&event);
            step.handle(event)?;
        }
        for request in requests {
            step.request(request, has_room)?;
        }
        if is_due {
            step.handle(Event::DeadlinePassed)?;
        }
        self.metrics.time_commit(|| batch.commit()).map_err(EngineError::Commit)
    }

    /// Whether the file system has more than the floor free. A failure to ask is not a full disk.
    fn has_room(&self) -> bool {
        match self.store.free_bytes() {
            Ok(free) => free >= self.in_force.now().config().disk_floor_bytes,
            Err(error) => {
                tracing::warn!(%error, "cannot ask how much room the data folder has");
                true
            }
        }
    }

    /// After the commit: answer, tell, act.
    fn release(&mut self, mut pending: Pending) {
        // First: whatever follows from it goes by it.
        if let Some(config) = pending.config.take() {
            self.in_force.replace(*config);
        }
        self.metrics.count(&pending.effects);
        self.metrics.count_outcomes(&pending.outcomes);
        let supervisor = &self.supervisor;
        self.metrics.set_held_back(supervisor.agents_held_back(), supervisor.restarts_waiting());
        self.notifier.tell(&pending.outcomes);
        for (request, answer) in std::mem::take(&mut pending.effects.answers) {
            let ask = pending.waiting.remove(&request).expect("each request is answered once");
            let watcher = match (&answer, ask.watch) {
                (Answer::Accepted { message, .. }, true) => {
                    Some(self.hub.watch(*message, Place::default()))
                }
                _other => None,
            };
            // A sender who has gone away meanwhile has its answer in the store.
            drop(ask.reply.send(Verdict::Answered { answer, watcher }));
        }
        assert!(pending.waiting.is_empty(), "each request is answered in its batch");
        for (reply, verdict) in pending.replies {
            drop(reply.send(verdict));
        }
        for notice in pending.effects.notices {
            self.hub.post(notice);
        }
        for command in pending.effects.commands {
            self.hands.act(command, &mut pending.texts);
        }
    }

    /// From the store alone, as after a restart, without one. Bridges dial again and repeat what
    /// was not acknowledged.
    fn start_over(&mut self) -> Result<(), EngineError> {
        let rollouts = self.store.rollouts().map_err(EngineError::Read)?;
        self.supervisor = self.empty_supervisor(rollouts);
        self.drain();
        self.hub.forget_turns();
        self.hands.disconnect_bridges();
        match self.rebuild() {
            Ok(()) => self.is_stalled = false,
            Err(error) if error.is_full() => {
                self.supervisor = self.empty_supervisor(BTreeMap::new());
                self.drain();
                self.is_stalled = true;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Refuses what comes and tries again after a while. `false`: it was told to end.
    async fn wait_for_room(&mut self) -> Result<bool, EngineError> {
        let retry_at = tokio::time::Instant::now() + STALL_RETRY_AFTER;
        loop {
            let request = tokio::select! {
                request = self.requests.recv() => request,
                () = tokio::time::sleep_until(retry_at) => break,
            };
            match request {
                None | Some(Request::End) => return Ok(false),
                Some(request) => {
                    self.heed(&request);
                    request.refuse();
                }
            }
        }
        self.start_over()?;
        Ok(true)
    }

    fn empty_supervisor(&self, rollouts: BTreeMap<AgentName, Rollout>) -> Supervisor {
        let Setup { node, agents } = self.in_force.now().setup();
        Supervisor::new(node, agents, rollouts)
    }

    /// Takes over every session that is not dormant, and settles with the drivers what still lives.
    fn rebuild(&mut self) -> Result<(), EngineError> {
        let now = self.clock.now();
        let mut pending = Pending::default();
        self.supervisor.note_rollouts(&mut pending.effects);
        let live = self.store.live_sessions().map_err(EngineError::Read)?;
        let mut expected = Vec::new();
        for stored in live {
            let record = &stored.record;
            if record.phase.has_instance() {
                expected
                    .push(InstanceId { session: record.id.clone(), generation: record.generation });
            }
            self.supervisor.recover(now, stored, &mut pending.effects);
        }
        let mut batch = self.store.batch();
        apply_all(&mut batch, &mut pending)?;
        batch.commit().map_err(EngineError::Commit)?;
        self.release(pending);
        self.hands.reconcile(expected);
        self.ask_canaries()
    }

    /// Of what the config has changed while there was no daemon.
    fn ask_canaries(&mut self) -> Result<(), EngineError> {
        let (now, current) = (self.clock.now(), self.in_force.now());
        let mut pending = Pending::default();
        let mut batch = self.store.batch();
        let mut step = Step {
            now,
            in_force: &self.in_force,
            supervisor: &mut self.supervisor,
            mint: &mut self.mint,
            next_request: &mut self.next_request,
            batch: &mut batch,
            pending: &mut pending,
        };
        step.ask_canaries(&current, &format!("config {}", current.number))?;
        batch.commit().map_err(EngineError::Commit)?;
        self.release(pending);
        Ok(())
    }
}

impl EngineError {
    fn is_full(&self) -> bool {
        match self {
            EngineError::Apply(error) => matches!(error, ApplyError::Full { .. }),
            EngineError::Commit(error) => matches!(error, CommitError::Full { .. }),
            EngineError::Read(_) | EngineError::Prune(_) => false,
        }
    }
}

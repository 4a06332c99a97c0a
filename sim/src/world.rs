//! One world: a daemon, its store, its driver, bridges, agents, senders and operators, in virtual
//! time.
//!
//! ```text
//!  clients ─▶ engine ─▶ core ─▶ store          everything below this line runs beside the
//!                │  ▲                          daemon and outlives it
//!          driver▼  │hub, links    ────────────────────────────────────────────────
//!               bridge ─▶ agent
//! ```
//!
//! Owner: one run of one seed. Each part is a file with its own `impl World`; they meet only
//! through the agenda, which holds what is to happen next. Invariants: nothing here reads a clock
//! or a random number that does not come from the seed; actions at the same moment happen in the
//! order in which they were planned. Absent: threads, judgement (`checker`).

use std::collections::{BTreeMap, BTreeSet};

use dormouse_core::event::Event;
use dormouse_core::id::{AgentName, InstanceId, TurnId};
use dormouse_core::manifest::FilesVersion;
use dormouse_core::time::{Monotonic, Now, Wall};

use crate::agent::AgentEnd;
use crate::bridge::{Bridge, BridgeId};
use crate::checker::Checker;
use crate::clients::Clients;
use crate::driver::Driver;
use crate::engine::Engine;
use crate::fault::{Fault, FaultCounts};
use crate::files::FilesWorld;
use crate::hub::{Down, Link, LinkId, Up};
use crate::prng::Prng;
use crate::revisions::Revisions;
use crate::sabotage::Sabotage;
use crate::store::Tables;
use crate::swarm::Config;
use crate::trace::Trace;
use crate::violation::{Checked, Invariant};

/// What is to happen. Whoever it concerns may be gone by then; the handler looks.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    EngineTurns,
    EngineCommits { epoch: u64 },
    EngineReturns,
    DrainEnds { life: u64 },
    DriverLists { epoch: u64 },
    DriverAnswers { epoch: u64, listed: BTreeSet<InstanceId> },
    DriverCreates { instance: InstanceId, ticket: u64 },
    DriverKills { life: u64, instance: InstanceId },
    DriverNotices { life: u64, instance: InstanceId },
    DriverReports { life: u64, event: Event },
    BridgeConnects { bridge: BridgeId },
    FrameUp { link: LinkId, frame: Up },
    FrameDown { link: LinkId, frame: Down },
    LinkLostAtBridge { link: LinkId },
    LinkLostAtDaemon { link: LinkId },
    OrphanLimit { bridge: BridgeId, since: u64 },
    AgentReady { bridge: BridgeId },
    AgentWorks { bridge: BridgeId, turn: TurnId },
    AgentEnds { bridge: BridgeId, end: AgentEnd },
    InputsAreListed { epoch: u64, instance: InstanceId, look: u64 },
    SyncGoesOn { bridge: BridgeId },
    SyncEnds { bridge: BridgeId, version: FilesVersion },
    ClientActs,
    ClientRetries { send: usize },
    RolloutResumes { agent: AgentName },
    WeatherChanges,
    Heals,
}

#[derive(Debug, Default)]
struct Agenda {
    actions: BTreeMap<(u64, u64), Action>,
    planned: u64,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) rng: Prng,
    /// Milliseconds of true time; no part of the daemon sees this number.
    pub(crate) now: u64,
    wall_ms: i64,
    ids: u64,
    agenda: Agenda,
    pub(crate) faults: FaultCounts,
    pub(crate) is_healed: bool,
    pub(crate) durable: Tables,
    pub(crate) working: Tables,
    pub(crate) engine: Engine,
    pub(crate) driver: Driver,
    pub(crate) bridges: BTreeMap<BridgeId, Bridge>,
    pub(crate) links: BTreeMap<LinkId, Link>,
    pub(crate) files: FilesWorld,
    pub(crate) revisions: Revisions,
    pub(crate) clients: Clients,
    pub(crate) checker: Checker,
    pub(crate) trace: Trace,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) figures: Figures,
}

/// What a run amounted to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) actions: u64,
    pub(crate) events: u64,
    pub(crate) commits: u64,
    pub(crate) accepted: u64,
    pub(crate) answered: u64,
    pub(crate) dead: u64,
    pub(crate) cancelled: u64,
    pub(crate) virtual_ms: u64,
}

/// A wall clock's reading in the world's first moment; any number far from both ends will do.
const FIRST_WALL_MS: i64 = 1_700_000_000_000;
/// A run that needs more than this does the same thing over and over.
const ACTIONS_MAX: u64 = 400_000;

impl World {
    pub(crate) fn new(seed: u64, trace: Trace, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Prng::new(seed);
        let config = Config::draw(&mut rng);
        let revisions = Revisions::new(&config);
        let engine = Engine::new(&config, &revisions);
        Self {
            rng,
            now: 0,
            wall_ms: FIRST_WALL_MS,
            ids: 0,
            agenda: Agenda::default(),
            faults: FaultCounts::default(),
            is_healed: false,
            durable: Tables::default(),
            working: Tables::default(),
            engine,
            driver: Driver::default(),
            bridges: BTreeMap::new(),
            links: BTreeMap::new(),
            files: FilesWorld::default(),
            revisions,
            clients: Clients::default(),
            checker: Checker::new(&config),
            trace,
            sabotage,
            figures: Figures::default(),
            config,
        }
    }

    /// From the first request until everything has ended after the last fault.
    pub(crate) fn run(&mut self) -> Checked {
        self.rebuild()?;
        for _ in 0..self.config.requests {
            let at = self.rng.below(self.config.rough_ms);
            self.plan(at, Action::ClientActs);
        }
        self.plan(self.config.weather_ms, Action::WeatherChanges);
        self.plan(self.config.rough_ms, Action::Heals);
        while !self.is_settled() {
            let Some(((at, _), action)) = self.agenda.actions.pop_first() else {
                return Err(Invariant::Liveness
                    .broken(format!("nothing is planned any more; {}", self.unsettled())));
            };
            self.now = at;
            self.figures.actions += 1;
            self.check_bounds()?;
            self.trace.note(at, action.session(), format_args!("{action:?}"));
            self.act(action)?;
        }
        self.figures.virtual_ms = self.now;
        self.checker.check_end(&self.durable)?;
        self.count_messages();
        Ok(())
    }

    fn act(&mut self, action: Action) -> Checked {
        match action {
            Action::EngineTurns => self.engine_turns(),
            Action::EngineCommits { epoch } => self.engine_commits(epoch),
            Action::EngineReturns => self.engine_returns(),
            Action::DrainEnds { life } => self.drain_ends(life),
            Action::DriverLists { epoch } => self.driver_lists(epoch),
            Action::DriverAnswers { epoch, listed } => self.driver_answers(epoch, &listed),
            Action::DriverCreates { instance, ticket } => self.driver_creates(instance, ticket),
            Action::DriverKills { life, instance } => self.driver_kills(life, instance),
            Action::DriverNotices { life, instance } => self.driver_notices(life, instance),
            Action::DriverReports { life, event } => self.driver_reports(life, event),
            Action::BridgeConnects { bridge } => self.bridge_connects(bridge),
            Action::FrameUp { link, frame } => self.frame_up_arrives(link, frame),
            Action::FrameDown { link, frame } => self.frame_down_arrives(link, frame),
            Action::LinkLostAtBridge { link } => self.link_lost_at_bridge(link),
            Action::LinkLostAtDaemon { link } => self.link_lost_at_daemon(link),
            Action::OrphanLimit { bridge, since } => self.orphan_limit(bridge, since),
            Action::AgentReady { bridge } => self.agent_ready(bridge),
            Action::AgentWorks { bridge, turn } => self.agent_works(bridge, turn),
            Action::AgentEnds { bridge, end } => self.agent_ends(bridge, end),
            Action::InputsAreListed { epoch, instance, look } => {
                self.inputs_are_listed(epoch, instance, look)
            }
            Action::SyncGoesOn { bridge } => self.sync_goes_on(bridge),
            Action::SyncEnds { bridge, version } => self.sync_ends(bridge, version),
            Action::ClientActs => self.client_acts(),
            Action::ClientRetries { send } => self.client_retries(send),
            Action::RolloutResumes { agent } => self.rollout_resumes(agent),
            Action::WeatherChanges => self.weather_changes(),
            Action::Heals => self.heals(),
        }
    }

    /// Something is to happen at `at`, or now if that has passed.
    pub(crate) fn plan(&mut self, at: u64, action: Action) {
        let number = self.agenda.planned;
        self.agenda.planned += 1;
        self.agenda.actions.insert((at.max(self.now), number), action);
    }

    /// Something is to happen within the next `within_ms`.
    pub(crate) fn plan_soon(&mut self, within_ms: u64, action: Action) {
        let after = self.rng.between(0, within_ms);
        self.plan(self.now + after, action);
    }

    /// A number that nothing else in this world has.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// Rolls for a fault on one of its occasions, and counts it.
    pub(crate) fn fires(&mut self, fault: Fault) -> bool {
        let per_mille = self.config.per_mille(fault);
        // The draw is made in any case, so that a healed world differs only in what it does.
        let fires = self.rng.chance(per_mille) && !self.is_healed;
        if fires {
            self.faults.count(fault);
        }
        fires
    }

    pub(crate) fn is_sabotaged(&self, by: Sabotage) -> bool {
        self.sabotage == Some(by)
    }

    /// Both clocks as the daemon's process reads them.
    pub(crate) fn read_clocks(&self) -> Now {
        let wall = u64::try_from(self.wall_ms.saturating_add_unsigned(self.now)).unwrap_or(0);
        Now { monotonic: self.engine.monotonic(self.now), wall: Wall(wall) }
    }

    /// The true time of a reading of the daemon's monotonic clock.
    pub(crate) fn true_time(&self, at: Monotonic) -> u64 {
        self.engine.true_time(at)
    }

    fn weather_changes(&mut self) -> Checked {
        if self.is_healed {
            return Ok(());
        }
        if self.fires(Fault::WallClockForward) {
            self.move_wall_clock(1);
        }
        if self.fires(Fault::WallClockBack) {
            self.move_wall_clock(-1);
        }
        self.change_inputs();
        let everyone: Vec<BridgeId> = self.bridges.keys().copied().collect();
        for bridge in everyone {
            if self.fires(Fault::BridgeKilled) {
                self.kill_bridge(bridge);
            } else if self.fires(Fault::BridgeSignalled) {
                self.signal_bridge(bridge);
            }
        }
        if self.engine.is_up() && self.fires(Fault::CrashAnytime) {
            self.crash()?;
        }
        if self.engine.is_up() && self.fires(Fault::Drained) {
            self.drain();
        }
        let soon = self.config.weather_ms * 2;
        self.plan_soon(soon, Action::WeatherChanges);
        Ok(())
    }

    fn move_wall_clock(&mut self, direction: i64) {
        let year_ms = 365 * 24 * 60 * 60 * 1_000;
        let by_ms = i64::try_from(self.rng.spread(1_000, year_ms)).expect("a year fits");
        self.wall_ms += direction * by_ms;
        self.checker.wall_clock_moved();
    }

    fn heals(&mut self) -> Checked {
        self.is_healed = true;
        self.mend_config()?;
        Ok(())
    }

    /// Healed, and nothing is left to do anywhere.
    fn is_settled(&self) -> bool {
        self.is_healed
            && !self.bridges.values().any(Bridge::lives)
            && self.engine.is_idle()
            && self.driver.is_idle()
            && self.clients.are_done()
            && self.durable.awake_sessions().is_empty()
    }

    fn unsettled(&self) -> String {
        let sessions = self.durable.awake_sessions();
        let shown: Vec<String> = sessions
            .iter()
            .filter_map(|id| {
                let record = self.durable.sessions.get(id)?;
                Some(format!("{id} {} ({} queued)", record.phase, self.durable.queue(id).count()))
            })
            .collect();
        let bridges: Vec<String> =
            self.bridges.values().map(|bridge| bridge.instance.to_string()).collect();
        format!("sessions {shown:?}, instances {bridges:?}")
    }

    fn check_bounds(&self) -> Checked {
        let messages = self.durable.messages.len();
        let has_time = self.now <= self.config.settled_by_ms(&self.revisions, messages);
        Invariant::Liveness
            .check(has_time, || format!("too long after the last fault: {}", self.unsettled()))?;
        Invariant::Liveness.check(self.figures.actions <= ACTIONS_MAX, || {
            format!("after {ACTIONS_MAX} actions there is no end: {}", self.unsettled())
        })
    }

    fn count_messages(&mut self) {
        use dormouse_core::record::MessageState;
        for row in self.durable.messages.values() {
            self.figures.accepted += 1;
            match row.state {
                MessageState::Answered => self.figures.answered += 1,
                MessageState::Dead => self.figures.dead += 1,
                MessageState::Cancelled => self.figures.cancelled += 1,
                MessageState::Pending | MessageState::Leased => {}
            }
        }
    }
}

impl Action {
    /// For filtering a replay.
    fn session(&self) -> Option<&dormouse_core::id::SessionId> {
        match self {
            Action::DriverCreates { instance, .. }
            | Action::DriverKills { instance, .. }
            | Action::DriverNotices { instance, .. }
            | Action::InputsAreListed { instance, .. } => Some(&instance.session),
            Action::DriverReports { event, .. } => event.session(),
            Action::EngineTurns
            | Action::EngineCommits { .. }
            | Action::EngineReturns
            | Action::DrainEnds { .. }
            | Action::DriverLists { .. }
            | Action::DriverAnswers { .. }
            | Action::BridgeConnects { .. }
            | Action::FrameUp { .. }
            | Action::FrameDown { .. }
            | Action::LinkLostAtBridge { .. }
            | Action::LinkLostAtDaemon { .. }
            | Action::OrphanLimit { .. }
            | Action::AgentReady { .. }
            | Action::AgentWorks { .. }
            | Action::AgentEnds { .. }
            | Action::SyncGoesOn { .. }
            | Action::SyncEnds { .. }
            | Action::ClientActs
            | Action::ClientRetries { .. }
            | Action::RolloutResumes { .. }
            | Action::WeatherChanges
            | Action::Heals => None,
        }
    }
}

//! All sessions, the fence, the line of starts, and when to be called next.
//!
//! ```text
//!  event ─▶ fence (generation) ─▶ session.handle ─▶ line of starts ─▶ next deadline
//!                                                                     └▶ forget it, if dormant
//! ```
//!
//! Owner: one loop. Invariants: what comes from a past life changes nothing (FAULTS I7); starts are
//! admitted oldest first, at most `starts_at_once` at a time; a dormant session costs no memory
//! here. A deadline may fire early (it was armed before activity moved it), never late.
//! Absent: IO. A session that is not here but in the store must be loaded before its event is
//! handed in.

mod fence;
mod line;
mod revisions;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::agent_breaker::AgentBreaker;
use crate::cause::Cause;
use crate::command::{Answer, Effects, IgnoredBecause, News, Refusal, RequestOutcome, Write};
use crate::event::{Event, SessionRequest};
use crate::id::{AgentName, SessionId, Subject};
use crate::journal::{Because, Decision};
use crate::policy::{AgentPolicy, AgentSetup, NodePolicy, RetrySafety};
use crate::record::StoredSession;
use crate::rollout::Rollout;
use crate::session::phase::Phase;
use crate::session::{Context, Session};
use crate::start_budget::StartBudget;
use crate::time::{Monotonic, Now};
use fence::{request_of, stale};
use line::Line;
use revisions::Seat;

#[derive(Debug)]
pub struct Supervisor {
    node: NodePolicy,
    agents: BTreeMap<AgentName, Agent>,
    /// Of agents that are not in the config now, and may be again.
    other_rollouts: BTreeMap<AgentName, Rollout>,
    /// For what is left of agents that are not configured any more: enough to stop them.
    leftover_policy: AgentPolicy,
    sessions: BTreeMap<SessionId, Slot>,
    deadlines: BTreeSet<(Monotonic, SessionId)>,
    line: Line,
    /// Those of agents that are not started for now.
    held_back: BTreeMap<AgentName, VecDeque<(u64, SessionId)>>,
    agent_breakers: BTreeMap<AgentName, AgentBreaker>,
    /// Those who failed before and wait for the budget, oldest first.
    paced: VecDeque<(u64, SessionId)>,
    budget: StartBudget,
    starting: usize,
    start_took: BTreeMap<AgentName, Duration>,
    /// This process is ending. Never stored: the next one begins without it.
    is_draining: bool,
}

#[derive(Debug)]
struct Agent {
    setup: AgentSetup,
    rollout: Rollout,
    /// The store knows how it stands.
    is_kept: bool,
}

#[derive(Debug)]
struct Slot {
    session: Session,
    armed: Option<Monotonic>,
    /// Its place in the line of starts, while it stands there.
    ticket: Option<u64>,
}

impl Borrow<str> for AgentName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl Supervisor {
    /// `rollouts` as they were kept; an agent without one is new. `note_rollouts` follows.
    pub fn new(
        node: NodePolicy,
        agents: BTreeMap<AgentName, AgentSetup>,
        mut rollouts: BTreeMap<AgentName, Rollout>,
    ) -> Self {
        let agents = agents.into_iter().map(|(name, setup)| {
            let kept = rollouts.remove(&name);
            let is_kept = kept.as_ref().is_some_and(|kept| kept.wanted == setup.wanted);
            let mut rollout = kept.unwrap_or_else(|| Rollout::first(setup.wanted));
            rollout.want(setup.wanted);
            (name, Agent { setup, rollout, is_kept })
        });
        let agents = agents.collect();
        Self {
            node,
            agents,
            other_rollouts: rollouts,
            // Whether its turns may be repeated is not known any more, so none is (FAULTS I6).
            leftover_policy: AgentPolicy { retry: RetrySafety::Ask, ..AgentPolicy::default() },
            sessions: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            line: Line::default(),
            held_back: BTreeMap::new(),
            agent_breakers: BTreeMap::new(),
            paced: VecDeque::new(),
            budget: StartBudget::default(),
            starting: 0,
            start_took: BTreeMap::new(),
            is_draining: false,
        }
    }

    /// Whether the session is in memory; if not, it is dormant in the store, or new.
    pub fn is_loaded(&self, id: &SessionId) -> bool {
        self.sessions.contains_key(id)
    }

    pub fn session(&self, id: &SessionId) -> Option<&Session> {
        self.sessions.get(id).map(|slot| &slot.session)
    }

    /// Those in memory: everything that is not dormant.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values().map(|slot| &slot.session)
    }

    /// When `handle(DeadlinePassed)` is wanted next: at once, if there is room for starts.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let first = self.deadlines.first().map(|deadline| deadline.0);
        if self.is_draining {
            return first;
        }
        if self.starting < self.node.starts_at_once && !self.line.waiting.is_empty() {
            return Some(Monotonic::default());
        }
        let has_room = self.starting < self.node.starts_at_once;
        let probes = self.held_back.iter().filter(|_| has_room).filter_map(|(agent, waiting)| {
            let probe = self.agent_breakers.get(agent)?.next_probe()?.0;
            let needs_budget = waiting.front().is_some_and(|(_, id)| self.failed_before(id));
            let budget_at = self.budget.next_at(self.node.restarts_per_minute);
            Some(if needs_budget { probe.max(budget_at) } else { probe })
        });
        let paced = (has_room && !self.paced.is_empty())
            .then(|| self.budget.next_at(self.node.restarts_per_minute));
        probes.chain(paced).chain(first).min()
    }

    /// Brings a session into memory that slept in the store; its event follows.
    pub fn load(&mut self, now: Now, stored: StoredSession) {
        let session = Session::restored(stored, now);
        let id = session.id().clone();
        self.starting += usize::from(session.phase() == Phase::Starting);
        let slot = Slot { session, armed: None, ticket: None };
        let before = self.sessions.insert(id, slot);
        assert!(before.is_none(), "a session is loaded once");
    }

    /// At the daemon's start: takes over a session that was not dormant. Its instance, if it had
    /// one, must either be found by the driver, whose bridge then says hello, or be reported as
    /// exited. Nothing is started before all that was starting is known: see `next_deadline`.
    pub fn recover(&mut self, now: Now, stored: StoredSession, effects: &mut Effects) {
        let id = stored.record.id.clone();
        let (phase, generation) = (stored.record.phase, stored.record.generation);
        let because = if phase.has_instance() {
            Some(Because::Recovered { waiting: stored.deliveries.len() })
        } else if phase == Phase::Asleep && !self.agents.contains_key(id.agent()) {
            Some(Because::AgentNotConfigured)
        } else {
            None
        };
        if let Some(because) = because {
            let (session, at) = (id.clone(), now.wall);
            let decision = Decision { session, generation, at, from: phase, to: phase, because };
            effects.write(Write::InsertDecision(decision));
        }
        self.load(now, stored);
        self.settle(&id, now, effects);
    }

    /// The one way in.
    pub fn handle(&mut self, now: Now, event: Event, effects: &mut Effects) {
        if event.session().is_some() {
            self.route(now, event, effects);
        } else if let Event::Configured { request, setup } = event {
            self.configured(request, *setup, now, effects);
        } else if let Event::RolloutRequested { request, agent, what, by } = event {
            self.rollout_requested(request, &agent, what, by, now, effects);
        } else {
            self.deadlines_passed(now, effects);
        }
        self.admit_starts(now, effects);
    }

    fn route(&mut self, now: Now, event: Event, effects: &mut Effects) {
        let id = event.session().expect("only DeadlinePassed is about no session").clone();
        if let Some(instance) = event.instance() {
            let is_current = self.session(&id).is_some_and(|session| session.is_current(instance));
            if !is_current {
                stale(event, effects);
                if self.is_loaded(&id) {
                    self.settle(&id, now, effects);
                }
                return;
            }
        } else if !self.is_loaded(&id) {
            match new_session_for(&event, &self.agents) {
                Ok(subject) => {
                    let session = Session::new(id.clone(), subject, now);
                    self.sessions.insert(id.clone(), Slot { session, armed: None, ticket: None });
                }
                Err(answer) => {
                    if let Some(request) = request_of(&event) {
                        effects.answer(request, answer);
                    }
                    return;
                }
            }
        }
        self.pass(&id, now, event, effects);
    }

    fn pass(&mut self, id: &SessionId, now: Now, event: Event, effects: &mut Effects) {
        let newest_before = effects.writes.len();
        let slot = self.sessions.get_mut(id).expect("the session was just found or made");
        let was_starting = slot.session.phase() == Phase::Starting;
        let was_start = slot.session.is_at_its_start();
        let failures = slot.session.failures();
        let agent = self.agents.get(id.agent());
        let seat = Seat::of(agent, &slot.session, &self.leftover_policy);
        let mut ctx = Context {
            now,
            policy: &seat.policy,
            is_configured: agent.is_some(),
            revision: seat.revision,
            trial: seat.trial,
            canary: seat.canary,
            is_outdated: seat.is_outdated,
            makes_place: seat.makes_place,
            verdict: None,
            node: &self.node,
            start_estimate: self.start_took.get(id.agent()).copied(),
            is_draining: self.is_draining,
            effects,
        };
        slot.session.handle(event, &mut ctx);
        let verdict = ctx.verdict.take();
        let is_starting = slot.session.phase() == Phase::Starting;
        if was_starting && !is_starting {
            self.starting -= 1;
            if slot.session.phase() == Phase::Awake
                && let Some(took) = slot.session.start_took()
            {
                self.start_took.insert(id.agent_name(), took);
            }
        }
        self.note_start(id, was_start, failures, now.monotonic);
        self.tell_newcomers(id, now, newest_before, effects);
        self.settle(id, now, effects);
        // It may have nothing left to remember, and be forgotten by now.
        if let Some(verdict) = verdict {
            self.judge(id.agent_name(), verdict, now, effects);
        }
    }

    /// What became of a start tells something of its agent.
    fn note_start(&mut self, id: &SessionId, was_start: bool, failures: u32, now: Monotonic) {
        let session = &self.sessions.get(id).expect("it was just handled").session;
        let has_failed = was_start && session.failures() > failures;
        let became_ready = was_start && session.phase() == Phase::Awake;
        let is_called_off = was_start && !session.is_at_its_start();
        if became_ready {
            if self.agent_breakers.remove(id.agent()).is_some_and(|mut b| b.became_ready()) {
                self.line.rejoin(self.held_back.remove(id.agent()).unwrap_or_default());
            }
        } else if has_failed {
            let cause = session.last_failure().unwrap_or(Cause::Unknown);
            let breaker = self.agent_breakers.entry(id.agent_name()).or_default();
            breaker.start_failed(id, cause, now);
        } else if is_called_off && let Some(breaker) = self.agent_breakers.get_mut(id.agent()) {
            breaker.start_was_called_off(id);
        }
    }

    /// Messages that were accepted just now, by a session that waits for its start, are told so.
    fn tell_newcomers(
        &self,
        id: &SessionId,
        now: Now,
        newest_before: usize,
        effects: &mut Effects,
    ) {
        let slot = self.sessions.get(id).expect("it was just handled");
        let Some(ticket) = slot.ticket.filter(|_| !self.is_draining) else { return };
        let accepted: Vec<_> = effects.writes[newest_before..]
            .iter()
            .filter_map(|write| {
                let Write::InsertMessage(message) = write else { return None };
                (message.session == *id).then_some(message.id)
            })
            .collect();
        let news = self.news_of_waiting(id, ticket, now);
        for message in accepted {
            effects.tell(message, news.clone());
        }
    }

    fn news_of_waiting(&self, id: &SessionId, ticket: u64, now: Now) -> News {
        let probe = self.agent_breakers.get(id.agent()).and_then(AgentBreaker::next_probe);
        match probe {
            Some((at, cause)) => {
                let at = now.wall + at.since(now.monotonic);
                News::WaitingToRestart { at, cause }
            }
            None => News::InLine { ahead: self.line.ahead_of(ticket) },
        }
    }

    /// After a change: join the line, arm the deadline, or forget.
    fn settle(&mut self, id: &SessionId, now: Now, effects: &mut Effects) {
        let slot = self.sessions.get_mut(id).expect("a session is settled while it is here");
        let agent = self.agents.get(id.agent());
        // Without an agent it has no place in the line; one that it left is skipped.
        slot.ticket = slot.ticket.filter(|_| agent.is_some());
        if slot.session.wants_start() && slot.ticket.is_none() && agent.is_some() {
            let ticket = self.line.join(id.clone());
            slot.ticket = Some(ticket);
            let ahead = self.line.ahead_of(ticket);
            // Who is held back is told so when the line comes to it.
            if self.starting + ahead >= self.node.starts_at_once && !self.is_draining {
                for message in slot.session.queue().messages() {
                    effects.tell(message, News::InLine { ahead });
                }
            }
        }
        if slot.session.is_dormant() {
            disarm(&mut self.deadlines, id, slot.armed);
            // A place in the line that it leaves behind is skipped when its turn comes.
            self.sessions.remove(id);
            return;
        }
        let seat = Seat::of(agent, &slot.session, &self.leftover_policy);
        let wanted = slot.session.deadline(now.monotonic, &seat.policy);
        let must_rearm = match (slot.armed, wanted) {
            (None, Some(_)) => true,
            (Some(armed), Some(wanted)) => wanted < armed,
            (_, None) => false,
        };
        if must_rearm {
            disarm(&mut self.deadlines, id, slot.armed);
            slot.armed = wanted;
            self.deadlines.extend(wanted.map(|at| (at, id.clone())));
        }
    }

    fn deadlines_passed(&mut self, now: Now, effects: &mut Effects) {
        while let Some((at, _)) = self.deadlines.first()
            && *at <= now.monotonic
        {
            let (_, id) = self.deadlines.pop_first().expect("the first one was just seen");
            self.sessions.get_mut(&id).expect("what is armed is here").armed = None;
            self.pass(&id, now, Event::DeadlinePassed, effects);
        }
    }

    fn admit_starts(&mut self, now: Now, effects: &mut Effects) {
        if self.is_draining {
            return;
        }
        self.admit_probes(now.monotonic);
        self.admit_paced(now.monotonic);
        while self.starting < self.node.starts_at_once {
            let Some((ticket, id)) = self.line.waiting.pop_front() else {
                // Whom the budget had room for may have been held back, and left it to others.
                if self.admit_paced(now.monotonic) { continue } else { return }
            };
            let Some(slot) = self.sessions.get_mut(&id).filter(|slot| slot.ticket == Some(ticket))
            else {
                continue;
            };
            if !slot.session.wants_start() {
                slot.ticket = None;
                continue;
            }
            if !self.agent_breakers.get(id.agent()).is_none_or(|b| b.admits(now.monotonic)) {
                self.hold_back(ticket, id, now, effects);
                continue;
            }
            let is_restart = slot.session.failures() > 0;
            let per_minute = self.node.restarts_per_minute;
            if is_restart && self.budget.left(now.monotonic, per_minute) == 0 {
                self.pace(ticket, id, now, effects);
                continue;
            }
            slot.ticket = None;
            if is_restart {
                self.budget.starts(now.monotonic);
            }
            if let Some(breaker) = self.agent_breakers.get_mut(id.agent()) {
                breaker.starts(&id);
            }
            let (revision, trial) = self.assign(&id, effects);
            let agent = self.agents.get(id.agent()).expect("only configured agents stand in line");
            let slot = self.sessions.get_mut(&id).expect("it was just found");
            let mut ctx = Context {
                now,
                policy: agent.setup.policy_of(revision),
                is_configured: true,
                revision,
                trial,
                canary: agent.canary_of(&id),
                is_outdated: false,
                makes_place: false,
                verdict: None,
                node: &self.node,
                start_estimate: self.start_took.get(id.agent()).copied(),
                is_draining: false,
                effects,
            };
            slot.session.begin_start(&mut ctx);
            self.starting += 1;
            self.settle(&id, now, effects);
        }
    }
}

fn disarm(
    deadlines: &mut BTreeSet<(Monotonic, SessionId)>,
    id: &SessionId,
    armed: Option<Monotonic>,
) {
    if let Some(at) = armed {
        deadlines.remove(&(at, id.clone()));
    }
}

/// Who owns the session that this request makes; or the answer, where it makes none.
fn new_session_for(event: &Event, agents: &BTreeMap<AgentName, Agent>) -> Result<Subject, Answer> {
    let agent = event.session().map_or("", SessionId::agent);
    if !agents.contains_key(agent) {
        return Err(Answer::Refused(Refusal::UnknownAgent));
    }
    let ignored = Answer::Requested(RequestOutcome::Ignored(IgnoredBecause::AlreadyAsleep));
    match event {
        Event::MessageSubmitted { submission, .. } => Ok(submission.subject.clone()),
        Event::RedriveRequested { dead, .. } => Ok(dead.subject.clone()),
        Event::SessionRequested { what: SessionRequest::Stop, .. } => Err(ignored),
        Event::SessionRequested { by, .. }
        | Event::DropRequested { by, .. }
        | Event::RestoreRequested { by, .. } => Ok(by.clone()),
        Event::UploadSubmitted { upload, .. } => Ok(upload.subject.clone()),
        Event::InstanceStarted { .. }
        | Event::InstanceStartFailed { .. }
        | Event::BridgeAttached { .. }
        | Event::BridgeDetached { .. }
        | Event::InstanceReady { .. }
        | Event::TurnProgressed { .. }
        | Event::TurnEnded { .. }
        | Event::HoldTaken { .. }
        | Event::InputsListed { .. }
        | Event::FilesProgressed { .. }
        | Event::FilesSynced { .. }
        | Event::FilesSyncFailed { .. }
        | Event::CheckpointOffered { .. }
        | Event::InstanceExited { .. }
        | Event::Configured { .. }
        | Event::RolloutRequested { .. }
        | Event::DeadlinePassed => unreachable!("an instance's event does not make a session"),
    }
}

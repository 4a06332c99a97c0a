//! What the operator's config asks for: which revision of each agent, what is wrong with it, and
//! how its coming into use is steered.
//!
//! ```text
//!  edit ─▶ file ─▶ Configured ─▶ core      a daemon that is down reads the file when it returns
//!  pause · resume · abort · retry ─▶ RolloutRequested
//! ```
//!
//! Owner: `World`. Invariants: the file survives every crash; the first revision is never broken,
//! and what is wrong with another one never changes, so that a trial can be judged by what was
//! tried. Absent: who gets which revision (that is the core's), judgement (`checker`).

use std::collections::BTreeMap;

use dormouse_core::event::{Event, RolloutRequest, SessionRequest, Setup};
use dormouse_core::id::{AgentName, RequestId, RevisionNumber};
use dormouse_core::policy::{AgentPolicy, AgentSetup, Canary};

use crate::clients::Asked;
use crate::engine::Input;
use crate::fault::Fault;
use crate::swarm::Config;
use crate::violation::Checked;
use crate::world::{Action, World};

/// What every agent that obeys says in a canary turn.
pub(crate) const PONG: &str = "pong";

/// What is wrong with a revision, in each of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    NeverLaunches,
    DiesAtStart,
    NeverReady,
    FailsRetryably,
    FailsFinally,
    /// It says that all is well, in the wrong words.
    AnswersWrong,
}

impl Broken {
    const ALL: [Broken; 6] = [
        Broken::NeverLaunches,
        Broken::DiesAtStart,
        Broken::NeverReady,
        Broken::FailsRetryably,
        Broken::FailsFinally,
        Broken::AnswersWrong,
    ];
}

/// The file.
#[derive(Debug)]
pub(crate) struct Revisions {
    by_agent: BTreeMap<AgentName, OfAgent>,
}

#[derive(Debug)]
struct OfAgent {
    wanted: RevisionNumber,
    newest: RevisionNumber,
    broken: BTreeMap<RevisionNumber, Broken>,
    canary: Option<Canary>,
}

impl Revisions {
    pub(crate) fn new(config: &Config) -> Self {
        let first = |name: &AgentName| OfAgent {
            wanted: RevisionNumber::FIRST,
            newest: RevisionNumber::FIRST,
            broken: BTreeMap::new(),
            canary: config.canaries.get(name).cloned(),
        };
        let by_agent = config.agents.keys().map(|name| (name.clone(), first(name)));
        Self { by_agent: by_agent.collect() }
    }

    /// What the core is told of these agents.
    pub(crate) fn setups(
        &self,
        agents: &BTreeMap<AgentName, AgentPolicy>,
    ) -> BTreeMap<AgentName, AgentSetup> {
        let setup = |(name, policy): (&AgentName, &AgentPolicy)| {
            let of_agent = self.of(name);
            let known = (RevisionNumber::FIRST.0..=of_agent.newest.0).map(RevisionNumber);
            let setup = AgentSetup {
                wanted: of_agent.wanted,
                policies: known.map(|number| (number, policy.clone())).collect(),
                canary: of_agent.canary.clone(),
            };
            (name.clone(), setup)
        };
        agents.iter().map(setup).collect()
    }

    fn of(&self, name: &AgentName) -> &OfAgent {
        self.by_agent.get(name).expect("every agent that was drawn is here")
    }

    pub(crate) fn broken(&self, agent: &str, revision: RevisionNumber) -> Option<Broken> {
        self.by_agent.get(agent)?.broken.get(&revision).copied()
    }
}

impl World {
    /// Somebody edits an agent's part of the config.
    pub(crate) fn revise(&mut self) {
        let name = self.some_agent();
        let is_new = self.rng.chance(700);
        let is_broken = is_new && self.fires(Fault::RevisionBroken);
        let what_is_wrong = *self.rng.pick(&Broken::ALL);
        let earlier = self.rng.between(1, self.revisions.of(&name).newest.0);
        let of_agent = self.revisions.by_agent.get_mut(&name).expect("it was just picked");
        if is_new {
            of_agent.newest.0 += 1;
            of_agent.wanted = of_agent.newest;
            if is_broken {
                of_agent.broken.insert(of_agent.wanted, what_is_wrong);
            }
        } else {
            of_agent.wanted = RevisionNumber(earlier);
        }
        self.config_was_edited(&name);
    }

    fn some_agent(&mut self) -> AgentName {
        let names: Vec<&AgentName> = self.config.agents.keys().collect();
        (*self.rng.pick(&names)).clone()
    }

    /// A daemon that runs sees it. Whoever edits also asks the canary, where there is one.
    fn config_was_edited(&mut self, name: &AgentName) {
        if !self.engine.is_up() {
            return;
        }
        let request = self.ask(Asked::Configure);
        self.push_input(Input::Configure(request));
        if let Some(canary) = &self.revisions.of(name).canary {
            let place = self.config.sessions.iter().position(|id| *id == canary.session);
            self.send_one(place.expect("a canary's session is among those that were drawn"));
        }
    }

    /// The file, as the daemon reads it when it comes to it.
    pub(crate) fn configured(&self, request: RequestId) -> Event {
        let agents = self.revisions.setups(&self.engine.agents);
        let setup = Setup { node: self.config.node.clone(), agents };
        Event::Configured { request, setup: Box::new(setup) }
    }

    /// An operator helps a roll-out along, or holds it up.
    pub(crate) fn steer(&mut self) {
        if !self.engine.is_up() {
            return;
        }
        let agent = self.some_agent();
        let what = *self.rng.pick(&[
            RolloutRequest::Pause,
            RolloutRequest::Resume,
            RolloutRequest::Abort,
            RolloutRequest::Retry,
        ]);
        self.ask_of_rollout(agent.clone(), what);
        if what == RolloutRequest::Pause && self.rng.chance(500) {
            self.take_trial_back(agent);
        }
    }

    /// Whoever tries it is to go back at once, and it is paused for a moment only.
    fn take_trial_back(&mut self, agent: AgentName) {
        for session in self.checker.canaries_of(&agent) {
            self.ask_of_session(session, SessionRequest::Restart);
        }
        let after = self.rng.spread(1_000, 120_000);
        self.plan(self.now + after, Action::RolloutResumes { agent });
    }

    pub(crate) fn rollout_resumes(&mut self, agent: AgentName) -> Checked {
        if self.engine.is_up() {
            self.ask_of_rollout(agent, RolloutRequest::Resume);
        }
        Ok(())
    }

    fn ask_of_rollout(&mut self, agent: AgentName, what: RolloutRequest) {
        let request = self.ask(Asked::Steer { agent: agent.clone() });
        let by = self.config.operator.clone();
        let event = Event::RolloutRequested { request, agent, what, by };
        self.push_input(Input::Happened(event, None));
    }

    /// The end of all faults: where there is nothing sound to go back to, somebody edits the config
    /// until there is. A roll-out that is paused stays so, and a broken revision that was found bad
    /// stays in the file: neither may keep a session from its answers.
    pub(crate) fn mend_config(&mut self) -> Checked {
        let names: Vec<AgentName> = self.config.agents.keys().cloned().collect();
        for name in names {
            let of_agent = self.revisions.of(&name);
            let is_sound = |number: &RevisionNumber| !of_agent.broken.contains_key(number);
            let good = self.checker.good_revision(&name);
            let is_safe = is_sound(&of_agent.wanted) || good.as_ref().is_some_and(is_sound);
            if is_safe && good.as_ref().is_none_or(is_sound) {
                continue;
            }
            let of_agent = self.revisions.by_agent.get_mut(&name).expect("it was just listed");
            of_agent.wanted = RevisionNumber::FIRST;
            self.config_was_edited(&name);
        }
        Ok(())
    }
}

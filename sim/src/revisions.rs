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
use crate::swarm::{Config, draw_agent};
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
    policies: BTreeMap<RevisionNumber, AgentPolicy>,
    broken: BTreeMap<RevisionNumber, Broken>,
    /// An edit has taken the agent out.
    is_out: bool,
    canary: Option<Canary>,
}

impl Revisions {
    pub(crate) fn new(config: &Config) -> Self {
        let first = |name: &AgentName, policy: &AgentPolicy| OfAgent {
            policies: BTreeMap::from([(RevisionNumber::FIRST, policy.clone())]),
            is_out: false,
            wanted: RevisionNumber::FIRST,
            newest: RevisionNumber::FIRST,
            broken: BTreeMap::new(),
            canary: config.canaries.get(name).cloned(),
        };
        let agents = config.agents.iter();
        Self {
            by_agent: agents.map(|(name, policy)| (name.clone(), first(name, policy))).collect(),
        }
    }

    /// What the core is told.
    pub(crate) fn setups(&self) -> BTreeMap<AgentName, AgentSetup> {
        let setup = |of_agent: &OfAgent| AgentSetup {
            wanted: of_agent.wanted,
            policies: of_agent.policies.clone(),
            canary: of_agent.canary.clone(),
        };
        let agents = self.by_agent.iter().filter(|of| !of.1.is_out);
        agents.map(|(name, of_agent)| (name.clone(), setup(of_agent))).collect()
    }

    pub(crate) fn policy(&self, agent: &str, revision: RevisionNumber) -> &AgentPolicy {
        let of_agent = self.by_agent.get(agent).expect("every agent that was drawn is here");
        of_agent.policies.get(&revision).expect("every revision was drawn with its policy")
    }

    /// Those that any agent was ever given.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &AgentPolicy> {
        self.by_agent.values().flat_map(|of_agent| of_agent.policies.values())
    }

    /// Every agent is in the file again.
    pub(crate) fn put_back(&mut self) {
        self.by_agent.values_mut().for_each(|of_agent| of_agent.is_out = false);
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
        let is_out = self.fires(Fault::AgentTakenOut);
        let other_policy = self.rng.chance(500).then(|| draw_agent(&mut self.rng));
        let of_agent = self.revisions.by_agent.get_mut(&name).expect("it was just picked");
        of_agent.is_out = is_out;
        if is_out {
            return self.config_was_edited(&name);
        }
        if is_new {
            let policy = of_agent.policies.get(&of_agent.wanted).cloned();
            let policy = other_policy.or(policy).expect("each revision has a policy");
            of_agent.newest.0 += 1;
            of_agent.wanted = of_agent.newest;
            of_agent.policies.insert(of_agent.wanted, policy);
            if is_broken {
                of_agent.broken.insert(of_agent.wanted, what_is_wrong);
            }
        } else {
            of_agent.wanted = RevisionNumber(earlier);
        }
        self.config_was_edited(&name);
    }

    /// While no daemon ran, somebody took an agent out of the file.
    pub(crate) fn take_out(&mut self) {
        let name = self.some_agent();
        self.revisions.by_agent.get_mut(&name).expect("it was just picked").is_out = true;
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
        let setup = Setup { node: self.config.node.clone(), agents: self.revisions.setups() };
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
            let was_out = {
                let of_agent = self.revisions.by_agent.get_mut(&name).expect("it was just listed");
                std::mem::take(&mut of_agent.is_out)
            };
            let of_agent = self.revisions.of(&name);
            let is_sound = |number: &RevisionNumber| !of_agent.broken.contains_key(number);
            let good = self.checker.good_revision(&name);
            let is_safe = is_sound(&of_agent.wanted) || good.as_ref().is_some_and(is_sound);
            if !is_safe || !good.as_ref().is_none_or(is_sound) {
                let of_agent = self.revisions.by_agent.get_mut(&name).expect("it was just listed");
                of_agent.wanted = RevisionNumber::FIRST;
            } else if !was_out {
                continue;
            }
            self.config_was_edited(&name);
        }
        Ok(())
    }
}

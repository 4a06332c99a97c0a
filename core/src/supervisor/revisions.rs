//! Which revision a session runs, who tries a new one, and what a new config changes.
//!
//! Owner: `Supervisor`. Invariants: a change of the config stops no agent that works; who runs what
//! is not wanted any more is stopped when it has been idle for a while, like anybody who is idle;
//! what a trial found is on disk before another start is ordered.
//! Absent: what is in a revision.

use std::borrow::Cow;

use crate::command::{Answer, DeniedBecause, Effects, IgnoredBecause, RequestOutcome, Write};
use crate::event::{RolloutRequest, Setup};
use crate::id::{AgentName, RequestId, RevisionNumber, SessionId, Subject};
use crate::limits;
use crate::policy::{AgentPolicy, Canary};
use crate::rollout::{Rollout, Standing, Trial, Verdict};
use crate::session::Session;
use crate::session::phase::Phase;
use crate::supervisor::{Agent, Supervisor};
use crate::time::Now;

/// How a session is lived with at this moment.
pub(super) struct Seat<'a> {
    pub(super) policy: Cow<'a, AgentPolicy>,
    pub(super) revision: RevisionNumber,
    pub(super) trial: Trial,
    pub(super) canary: Option<&'a Canary>,
    pub(super) is_outdated: bool,
    pub(super) makes_place: bool,
}

impl<'a> Seat<'a> {
    pub(super) fn of(
        agent: Option<&'a Agent>,
        session: &Session,
        leftover: &'a AgentPolicy,
    ) -> Self {
        let revision = session.revision();
        let Some(agent) = agent else {
            return Self {
                policy: Cow::Borrowed(leftover),
                revision: revision.unwrap_or(RevisionNumber::FIRST),
                trial: Trial::None,
                canary: None,
                is_outdated: false,
                makes_place: false,
            };
        };
        let target = agent.rollout.target();
        // What was started before there were revisions had the one that is in force.
        let revision = match session.phase().has_instance() {
            true => revision.unwrap_or(target),
            false => target,
        };
        let is_outdated =
            session.phase() == Phase::Awake && agent.rollout.is_outdated(session.id(), revision);
        let mut policy = Cow::Borrowed(agent.setup.policy_of(revision));
        if is_outdated && policy.stop_after > limits::OUTDATED_STOP_AFTER {
            policy.to_mut().stop_after = limits::OUTDATED_STOP_AFTER;
        }
        Self {
            policy,
            revision,
            trial: agent.rollout.trial_of(session.id(), revision),
            makes_place: agent.canary_of(session.id()).is_some()
                && agent.rollout.waits_for_trial()
                && revision != agent.rollout.wanted,
            canary: agent.canary_of(session.id()),
            is_outdated,
        }
    }
}

impl Agent {
    pub(super) fn canary_of(&self, session: &SessionId) -> Option<&Canary> {
        self.setup.canary.as_ref().filter(|canary| canary.session == *session)
    }
}

impl Supervisor {
    /// Where each agent's revisions stand.
    pub fn rollouts(&self) -> impl Iterator<Item = (&AgentName, &Rollout)> {
        self.agents.iter().map(|(name, agent)| (name, &agent.rollout))
    }

    /// What the config has changed while there was no daemon.
    pub fn note_rollouts(&mut self, effects: &mut Effects) {
        for (name, agent) in &mut self.agents {
            if !std::mem::replace(&mut agent.is_kept, true) {
                put(name.clone(), &agent.rollout, effects);
            }
        }
    }

    /// What the next start of this session gets; a trial is noted as begun.
    pub(super) fn assign(
        &mut self,
        id: &SessionId,
        effects: &mut Effects,
    ) -> (RevisionNumber, Trial) {
        let agent = self.agents.get_mut(id.agent()).expect("only configured agents are started");
        let wanted = Some(agent.rollout.wanted);
        let runs_it = |id: &SessionId| {
            let session = self.sessions.get(id).map(|slot| &slot.session);
            session.is_some_and(|it| it.phase().has_instance() && it.revision() == wanted)
        };
        let reserved = agent.setup.canary.as_ref().map(|canary| &canary.session);
        let (revision, trial) = agent.rollout.of_next_start(id, reserved, runs_it);
        if trial == Trial::Canary {
            agent.rollout.standing = Standing::Trying { session: id.clone() };
            put(id.agent_name(), &agent.rollout, effects);
        }
        (revision, trial)
    }

    pub(super) fn judge(
        &mut self,
        name: AgentName,
        verdict: Verdict,
        now: Now,
        effects: &mut Effects,
    ) {
        let Some(agent) = self.agents.get_mut(&name) else { return };
        agent.rollout.judge(verdict);
        put(name.clone(), &agent.rollout, effects);
        self.settle_all_of(&name, now, effects);
    }

    /// Their deadlines may come earlier now.
    fn settle_all_of(&mut self, name: &AgentName, now: Now, effects: &mut Effects) {
        let is_of = |id: &&SessionId| id.agent() == name.as_str();
        let ids: Vec<_> = self.sessions.keys().filter(is_of).cloned().collect();
        ids.iter().for_each(|id| self.settle(id, now, effects));
    }

    /// A new config is in force.
    pub(super) fn configured(
        &mut self,
        request: RequestId,
        setup: Setup,
        now: Now,
        effects: &mut Effects,
    ) {
        self.node = setup.node;
        let before = std::mem::take(&mut self.agents).into_iter();
        self.other_rollouts.extend(before.map(|(name, agent)| (name, agent.rollout)));
        for (name, setup) in setup.agents {
            let known = self.other_rollouts.remove(&name);
            let is_new = known.is_none();
            let mut rollout = known.unwrap_or_else(|| Rollout::first(setup.wanted));
            if rollout.want(setup.wanted) || is_new {
                put(name.clone(), &rollout, effects);
            }
            self.agents.insert(name, Agent { setup, rollout, is_kept: true });
        }
        let ids: Vec<_> = self.sessions.keys().cloned().collect();
        ids.iter().for_each(|id| self.settle(id, now, effects));
        effects.answer(request, Answer::Configured);
    }

    pub(super) fn rollout_requested(
        &mut self,
        request: RequestId,
        name: &AgentName,
        what: RolloutRequest,
        by: Subject,
        now: Now,
        effects: &mut Effects,
    ) {
        let Some(agent) = self.agents.get_mut(name) else {
            let denied = RequestOutcome::Denied(DeniedBecause::AgentNotConfigured);
            return effects.answer(request, Answer::Requested(denied));
        };
        let before = agent.rollout.clone();
        let rollout = &mut agent.rollout;
        match what {
            RolloutRequest::Pause => rollout.is_paused = true,
            RolloutRequest::Resume => rollout.is_paused = false,
            RolloutRequest::Retry => rollout.retry(),
            RolloutRequest::Abort => rollout.abort(by, now.wall),
        }
        let outcome = if *rollout == before {
            RequestOutcome::Ignored(IgnoredBecause::AlreadySo)
        } else {
            put(name.clone(), rollout, effects);
            RequestOutcome::Accepted { waiting: 0 }
        };
        self.settle_all_of(name, now, effects);
        effects.answer(request, Answer::Requested(outcome));
    }
}

fn put(agent: AgentName, rollout: &Rollout, effects: &mut Effects) {
    effects.write(Write::PutRollout { agent, rollout: rollout.clone() });
}

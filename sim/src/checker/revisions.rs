//! The judge of revisions: who may start what, what a trial shows, and what follows from it.
//!
//! Owner: `Checker`. Invariants: the books are kept from what was asked for and from what became of
//! lives; what the core says of a trial must agree with them; while something is known to be good,
//! one life at a time is put at risk. Absent: phases and pauses (`checker::sessions`).

use std::collections::{BTreeMap, BTreeSet};

use dormouse_core::cause::Cause;
use dormouse_core::command::Command;
use dormouse_core::event::Event;
use dormouse_core::id::{AgentName, InstanceId, MessageId, RevisionNumber, SessionId};
use dormouse_core::journal::{Because, Decision, RevisionChange};
use dormouse_core::limits;
use dormouse_core::policy::{AgentPolicy, AgentSetup, RetrySafety};
use dormouse_core::rollout::{Rollout, points_to_revision};
use dormouse_core::supervisor::Supervisor;

use super::Checker;
use super::rollout::{Book, Life, Standing};
use super::starts::check_idle_stop;
use crate::engine::Step;
use crate::store::Tables;
use crate::violation::{Checked, Invariant};

#[derive(Debug, Default)]
pub(super) struct RevisionBooks {
    by_agent: BTreeMap<AgentName, Book>,
    /// What the config that is in force says.
    setups: BTreeMap<AgentName, AgentSetup>,
    lives: BTreeMap<SessionId, Life>,
    excused: BTreeMap<MessageId, u32>,
    /// Counts what was opened to a trial.
    opened: u64,
    in_step: InStep,
    /// Since the batch began: agents that were in the config, and that were not.
    in_batch: (BTreeSet<AgentName>, BTreeSet<AgentName>),
}

/// What one step has said so far, by session.
#[derive(Debug, Default)]
struct InStep {
    tried: BTreeSet<SessionId>,
    failed: BTreeSet<SessionId>,
    /// Said to be good, and shown to be.
    claimed: BTreeSet<SessionId>,
    shown: BTreeSet<SessionId>,
    has_more_memory: BTreeSet<SessionId>,
}

impl RevisionBooks {
    /// Of an agent that is not in the config nothing is found out.
    fn of(&self, session: &SessionId) -> Option<(&Book, &Life)> {
        if !self.is_configured(session) {
            return None;
        }
        Some((self.by_agent.get(session.agent())?, self.lives.get(session)?))
    }

    pub(super) fn is_configured(&self, session: &SessionId) -> bool {
        self.setups.contains_key(session.agent())
    }

    /// It is the one that tries the wanted revision, while another one is known to be good.
    fn is_canary(&self, session: &SessionId) -> bool {
        self.of(session).is_some_and(|(book, life)| book.good.is_some() && book.is_on_trial(life))
    }

    /// Its next turn is the trial of what is wanted, and it runs something else.
    fn makes_place(&self, session: &SessionId) -> bool {
        self.of(session).is_some_and(|(book, life)| {
            let waits = book.standing == Standing::Open && book.good.is_some() && !book.is_paused;
            waits && book.canary_of(session).is_some() && life.revision != book.wanted
        })
    }

    /// It is to make place for another revision, once nothing needs it.
    fn is_outdated(&self, session: &SessionId) -> bool {
        self.of(session).is_some_and(|(book, life)| {
            !book.is_paused && life.revision != book.target() && !self.is_canary(session)
        })
    }

    fn configure(&mut self, setups: &BTreeMap<AgentName, AgentSetup>) {
        self.setups.clone_from(setups);
        for (name, setup) in setups {
            if let Some(book) = self.by_agent.get_mut(name) {
                book.want(setup.wanted, &mut self.opened);
                book.canary.clone_from(&setup.canary);
                continue;
            }
            self.opened += 1;
            let book = Book::new(setup, self.opened);
            self.by_agent.insert(name.clone(), book);
            // Until now in this batch, nobody had heard of it.
            self.in_batch.1.insert(name.clone());
        }
        self.note_configured();
    }

    fn note_configured(&mut self) {
        for name in self.by_agent.keys() {
            let (present, absent) = &mut self.in_batch;
            let side = if self.setups.contains_key(name) { present } else { absent };
            side.insert(name.clone());
        }
    }

    /// This attempt of it is not counted.
    pub(super) fn is_excused_more(&self, message: MessageId, excused: u32) -> bool {
        excused > self.excused.get(&message).copied().unwrap_or(0)
    }

    /// A life has shown that its revision works.
    fn shows(&mut self, session: &SessionId) {
        let is_on_trial = self.of(session).is_some_and(|(book, life)| book.is_on_trial(life));
        if is_on_trial {
            if self.is_canary(session) {
                self.in_step.shown.insert(session.clone());
            }
            self.by_agent.get_mut(session.agent()).expect("it was just found").prove();
        }
    }

    fn starts(&mut self, instance: &InstanceId, revision: RevisionNumber) -> Checked {
        let session = &instance.session;
        let Some(book) = self.by_agent.get(session.agent()) else {
            return Err(Invariant::OneAtRisk.broken(format!("{instance}: of no agent")));
        };
        let has_it = |(other, life): &(&SessionId, &Life)| {
            other.agent() == session.agent()
                && life.revision == book.wanted
                && life.opened == book.opened
        };
        let trying = self.lives.iter().find(has_it).map(|life| life.0);
        let is_risk =
            book.good.is_some() && book.standing == Standing::Open && revision == book.wanted;
        Invariant::OneAtRisk.check(!is_risk || trying.is_none(), || {
            format!("{instance} is started with {revision}, and {trying:?} tries it already")
        })?;
        let is_given_up = book.good.is_some() && book.standing == Standing::GivenUp;
        Invariant::BadRevision.check(!is_given_up || revision != book.wanted, || {
            format!("{instance} is started with {revision}, which was given up: {book:?}")
        })?;
        let is_reserved = book.canary.as_ref().is_some_and(|canary| canary.session != *session);
        let is_mine = trying.is_none() && !book.is_paused && !is_reserved;
        let expected = match book.standing {
            Standing::Open if is_mine || book.good.is_none() => book.wanted,
            Standing::Open | Standing::Good | Standing::GivenUp => book.target(),
        };
        Invariant::OneAtRisk.check(revision == expected, || {
            format!("{instance} is started with {revision}, and not {expected}: {book:?}")
        })?;
        let is_told = self.in_step.tried.remove(session);
        Invariant::Cause.check(is_told == is_risk, || {
            format!("{instance} tries {revision}: {is_risk}, by its decisions: {is_told}")
        })?;
        let life = Life { generation: instance.generation, revision, opened: book.opened };
        self.lives.insert(session.clone(), life);
        Ok(())
    }

    fn failed(&mut self, id: &SessionId, revision: RevisionNumber, cause: Cause) -> Checked {
        let is_of_it = self.of(id).is_some_and(|(_, life)| life.revision == revision);
        let is_just = is_of_it && self.is_canary(id) && points_to_revision(cause);
        Invariant::BadRevision.check(is_just, || {
            format!("{id}: {revision} is called bad for {cause}: {:?}", self.of(id))
        })?;
        let book = self.by_agent.get_mut(id.agent()).expect("it was just found");
        book.standing = Standing::GivenUp;
        self.in_step.failed.insert(id.clone());
        Ok(())
    }

    /// What ends so, in a trial, ends the trial.
    fn must_have_failed(&self, id: &SessionId, what: &Because) -> Checked {
        let is_excused = self.in_step.has_more_memory.contains(id);
        Invariant::BadRevision.check(is_excused || !self.is_canary(id), || {
            format!("{id}: its revision was on trial, and is not called bad after {what:?}")
        })
    }
}

impl Checker {
    /// The config as a daemon has read it.
    pub(crate) fn configured(&mut self, setups: &BTreeMap<AgentName, AgentSetup>) {
        self.revisions.configure(setups);
    }

    pub(crate) fn begin_batch(&mut self) {
        self.revisions.in_batch = Default::default();
        self.revisions.note_configured();
    }

    /// At some time in this batch it was so.
    pub(super) fn may_be_configured(&self, agent: &str, is_configured: bool) -> bool {
        let (present, absent) = &self.revisions.in_batch;
        let side = if is_configured { present } else { absent };
        let is_known = self.revisions.by_agent.contains_key(agent);
        side.contains(agent) || (!is_known && !is_configured)
    }

    /// How its life is lived with, or its next one. Of an agent that is not in the config nothing
    /// is known, so that no turn may be repeated.
    pub(super) fn policy_of(&self, id: &SessionId) -> AgentPolicy {
        let books = &self.revisions;
        let (Some(setup), Some(book)) =
            (books.setups.get(id.agent()), books.by_agent.get(id.agent()))
        else {
            return AgentPolicy { retry: RetrySafety::Ask, ..AgentPolicy::default() };
        };
        let life = books.lives.get(id);
        setup.policy_of(life.map_or(book.target(), |life| life.revision)).clone()
    }

    /// What the agent's sessions can go back to.
    pub(crate) fn good_revision(&self, agent: &AgentName) -> Option<RevisionNumber> {
        self.revisions.by_agent.get(agent)?.good
    }

    pub(super) fn revisions_hear(&mut self, event: &Event) {
        let books = &mut self.revisions;
        if let Event::Configured { setup, .. } = event {
            books.configure(&setup.agents);
        } else if let Event::RolloutRequested { agent, what, .. } = event
            && books.setups.contains_key(agent)
            && let Some(book) = books.by_agent.get_mut(agent)
        {
            book.steer(*what, &mut books.opened);
        }
    }

    /// Before the books of its session know of the decision.
    pub(super) fn revision_decided(&mut self, decision: &Decision) -> Checked {
        let id = &decision.session;
        let is_queue_empty = self.watch(id).queue.is_empty();
        let books = &mut self.revisions;
        match &decision.because {
            Because::Revision { change: RevisionChange::Tried { .. } } => {
                books.in_step.tried.insert(id.clone());
            }
            Because::Revision { change: RevisionChange::Proved { .. } } => {
                books.in_step.claimed.insert(id.clone());
            }
            Because::Revision { change: RevisionChange::Failed { revision, cause, .. } } => {
                books.failed(id, *revision, *cause)?;
            }
            Because::MemoryRaised { .. } => {
                books.in_step.has_more_memory.insert(id.clone());
            }
            Because::BecameReady { .. } => {
                let has_canary = books.of(id).is_some_and(|of| of.0.canary_of(id).is_some());
                if is_queue_empty && !has_canary {
                    books.shows(id);
                }
            }
            Because::Exited { summary, .. } if summary.cause.is_some_and(points_to_revision) => {
                books.must_have_failed(id, &decision.because)?;
            }
            Because::TurnFailed { cause: Cause::OomLimit | Cause::OomChild, .. } => {}
            Because::TurnFailed { cause, .. } if points_to_revision(*cause) => {
                books.must_have_failed(id, &decision.because)?;
            }
            Because::StartFailed { .. } => books.must_have_failed(id, &decision.because)?,
            _other => {}
        }
        if !decision.to.has_instance() {
            books.lives.remove(id);
        }
        Ok(())
    }

    pub(super) fn revision_answered(&mut self, id: &SessionId, text: &str) -> Checked {
        let Some((book, _)) = self.revisions.of(id) else { return Ok(()) };
        let expects = book.canary_of(id).and_then(|canary| canary.expects.as_ref());
        if expects.is_none_or(|expected| text.contains(expected)) {
            self.revisions.shows(id);
            return Ok(());
        }
        Invariant::BadRevision.check(!self.revisions.is_canary(id), || {
            format!("{id}: a canary's answer was {text:?}, and its revision is not called bad")
        })
    }

    /// What the trial broke is not held against the message; and it is tried again, unless it was
    /// the canary's own turn, or may not be repeated.
    pub(super) fn check_excuse(&mut self, message: MessageId, excused: Option<u32>) -> Checked {
        let session = self.session_of(message);
        let books = &mut self.revisions;
        let before = books.excused.get(&message).copied().unwrap_or(0);
        books.excused.extend(excused.map(|excused| (message, excused)));
        let Some(id) = session.filter(|id| books.in_step.failed.contains(id)) else {
            return Ok(());
        };
        let has_canary = books.of(&id).is_some_and(|of| of.0.canary_of(&id).is_some());
        let is_just = excused.is_none_or(|excused| excused == before + 1)
            && (excused.is_some() || self.policy_of(&id).retry == RetrySafety::Ask);
        Invariant::BoundedAttempts.check(has_canary || is_just, || {
            format!("{message} met a bad revision: excused {excused:?} after {before}")
        })
    }

    /// The trial that this life was has failed in this step.
    pub(super) fn has_failed_trial(&self, id: &SessionId) -> bool {
        self.revisions.in_step.failed.contains(id)
    }

    /// Who tries the agent's wanted revision.
    pub(crate) fn canaries_of(&self, agent: &AgentName) -> Vec<SessionId> {
        let lives = self.revisions.lives.keys();
        let is_canary =
            |id: &&SessionId| id.agent() == agent.as_str() && self.revisions.is_canary(id);
        lives.filter(is_canary).cloned().collect()
    }

    pub(super) fn is_canary(&self, id: &SessionId) -> bool {
        self.revisions.is_canary(id)
    }

    /// Who is to make place for another revision is idle sooner.
    pub(super) fn idle_policy(&self, id: &SessionId) -> AgentPolicy {
        let mut policy = self.policy_of(id);
        if self.revisions.is_outdated(id) {
            policy.stop_after = policy.stop_after.min(limits::OUTDATED_STOP_AFTER);
        }
        policy
    }

    /// A life is stopped for its revision when it is idle, and not before; or when it has failed
    /// its trial.
    pub(super) fn check_outdated_stop(&mut self, decision: &Decision, at: u64) -> Checked {
        let Because::Revision { change: RevisionChange::Outdated { .. } } = &decision.because
        else {
            return Ok(());
        };
        let id = &decision.session;
        if self.has_failed_trial(id) {
            return Ok(());
        }
        let is_in_touch = self.in_touch.contains(id);
        if self.revisions.makes_place(id) && !self.watch(id).queue.is_empty() {
            let watch = self.watch(id);
            let turn = watch.turn;
            // A hold does not keep it: a session that is there for trials does nobody's work.
            return Invariant::NoIdleStopWithWork.check(turn.is_none(), || {
                format!("{id} makes place for a trial in its turn {turn:?}")
            });
        }
        Invariant::NoIdleStopWithWork.check(self.revisions.is_outdated(id), || {
            format!("{id} is stopped for its revision: {:?}", self.revisions.of(id))
        })?;
        let policy = self.idle_policy(id);
        check_idle_stop(id, self.watch(id), &policy, at, is_in_touch)
    }

    /// After all that a step writes.
    pub(super) fn check_orders(&mut self, step: &Step) -> Checked {
        for command in &step.effects.commands {
            let (instance, revision) = match command {
                Command::StartInstance { instance, revision, .. } => {
                    self.revisions.starts(instance, *revision)?;
                    let files = self.policy_of(&instance.session).files;
                    let may_wait = files.has_inputs || files.is_kept;
                    self.watch(&instance.session).has_files |= may_wait;
                    continue;
                }
                Command::AdmitBridge { instance, launch: Some(revision), .. }
                | Command::LaunchAgent { instance, revision } => (instance, *revision),
                _other => continue,
            };
            self.launched(instance, revision)?;
        }
        let InStep { tried, claimed, shown, .. } = std::mem::take(&mut self.revisions.in_step);
        Invariant::Cause.check(tried.is_empty(), || format!("{tried:?} try nothing"))?;
        Invariant::OneAtRisk.check(claimed == shown, || {
            format!("revisions are called good for {claimed:?}, and shown to be by {shown:?}")
        })
    }

    /// An agent is executed in the revision that its start was ordered in.
    pub(crate) fn launched(&self, instance: &InstanceId, revision: RevisionNumber) -> Checked {
        let life = self.revisions.lives.get(&instance.session);
        let ordered = life.filter(|life| life.generation == instance.generation);
        Invariant::OneAtRisk.check(ordered.is_none_or(|life| life.revision == revision), || {
            format!("{instance} is executed in {revision}, it was ordered as {life:?}")
        })
    }

    pub(super) fn check_rollout(&self, name: &AgentName, rollout: &Rollout) -> Checked {
        let book = self.revisions.by_agent.get(name);
        let is_same = book.is_some_and(|book| {
            rollout.wanted == book.wanted
                && rollout.good == book.good
                && rollout.is_paused == book.is_paused
        });
        Invariant::OneAtRisk
            .check(is_same, || format!("{name}: on disk {rollout:?}, by the books {book:?}"))
    }

    /// A supervisor as it would be after a restart.
    pub(super) fn rebuilt_supervisor(&self, durable: &Tables) -> Supervisor {
        let setups = self.revisions.setups.clone();
        Supervisor::new(self.node.clone(), setups, durable.rollouts.clone())
    }

    /// What ran is what is on disk, and what is rebuilt from it.
    pub(super) fn compare_rollouts(
        &self,
        running: &Supervisor,
        fresh: &Supervisor,
        durable: &Tables,
    ) -> Checked {
        Invariant::Recovery.check(running.rollouts().eq(fresh.rollouts()), || {
            let of = |supervisor: &Supervisor| {
                format!("{:?}", supervisor.rollouts().collect::<Vec<_>>())
            };
            format!("running {}, loaded anew {}", of(running), of(fresh))
        })?;
        for (name, rollout) in running.rollouts() {
            let on_disk = durable.rollouts.get(name);
            Invariant::Recovery.check(on_disk == Some(rollout), || {
                format!("{name}: running {rollout:?}, on disk {on_disk:?}")
            })?;
            self.check_rollout(name, rollout)?;
        }
        Ok(())
    }
}

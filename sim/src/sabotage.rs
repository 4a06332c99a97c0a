//! Worlds that are broken on purpose, so that the checker can be seen to bite.
//!
//! Owner: the tests name one for a run; a real run has none. Invariant: for each of these some seed
//! is found guilty of the named invariant (`tests::every_sabotage_is_found`): a checker that cannot
//! fail proves nothing. Absent: faults; those a correct core survives, these nobody could.

use dormouse_core::command::{Command, Effects, Write};
use dormouse_core::event::{Event, RolloutRequest};
use dormouse_core::journal::{Because, Decision, RevisionChange};
use dormouse_core::rollout::Standing;
use dormouse_core::session::phase::Phase;
use dormouse_core::time::Now;

use crate::store::Tables;
use crate::violation::Invariant;
use crate::world::World;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// The commit says that it succeeded, and one accepted message is not on disk.
    StoreLosesMessage,
    /// The commit says that it succeeded, and an answer is not on disk.
    StoreLosesAnswer,
    StoreLosesDecision,
    StoreLosesExit,
    /// Sessions are read back with their queue in another order.
    StoreReversesQueue,
    /// Idempotency keys do not survive a crash.
    StoreForgetsKeys,
    /// Pauses are forgotten in a crash.
    StoreForgetsPause,
    /// What an operator asked to wake is not asked for any more after a crash.
    StoreForgetsWakes,
    /// Answers leave before the commit.
    EngineAnswersFirst,
    /// Commands leave before the commit.
    EngineActsFirst,
    /// Notices of a batch that failed leave anyway.
    EngineTellsRolledBack,
    /// A sleeping session is treated as new.
    EngineForgetsToLoad,
    /// What the past says is handed in as if the present had said it.
    EngineForgetsGenerations,
    /// The core is told that it is later than it is.
    EngineClockRunsFast,
    /// The core is told that it is earlier than it is.
    EngineClockRunsSlow,
    /// The core is never told that a deadline has passed.
    EngineSleepsThrough,
    /// A batch is answered twice.
    EngineAnswersTwice,
    /// What an older list did not show is called gone, although its bridge has said hello since.
    EngineBelievesTheList,
    /// What was started between the rebuild and the list is killed, because nobody expected it.
    EngineKillsTheUnexpected,
    /// An instance is reported as gone while it runs.
    DriverReportsTheLiving,
    /// Two bridges per start, and both execute their agent.
    DriverStartsTwo,
    /// An exit is not reported, and neither does the list show it.
    DriverHidesExits,
    /// The text of two tries is sent as one.
    BridgeSplices,
    /// A turn that is done is executed again after a reconnect.
    BridgeRepeats,
    /// Holds that last are not said again after a reconnect.
    BridgeForgetsHolds,
    /// The bridge changes what the agent said.
    BridgeMisquotes,
    /// The bridge says that the files are there, and has brought none.
    BridgeSkipsSync,
    /// A checkpoint that is committed holds less than was offered.
    StoreCutsCheckpoint,
    /// How a roll-out stands is not written down.
    StoreLosesRollout,
    /// After a crash nobody knows any more who tries a revision.
    StoreForgetsTrials,
    /// What was found bad is not known to be so any more after a crash.
    StoreForgetsVerdicts,
    /// An operator's pause is taken for its opposite.
    EngineResumesForPause,
    /// A bridge executes the first revision, whatever it was told.
    BridgeRunsTheFirst,
    /// Who runs another revision than is wanted is stopped in its turn.
    CoreStopsOutdated,
    /// A revision that is wanted is started by all.
    CoreMovesEverybody,
    /// The death that a bad revision died is counted as the session's.
    CoreBlamesSession,
    /// And the attempt as the message's.
    CoreBlamesMessage,
}

impl Sabotage {
    /// Each with the invariants that may be found broken first.
    pub(crate) const ALL: &[(Sabotage, &[Invariant])] = &[
        (Sabotage::StoreLosesMessage, &[Invariant::DurableAccept, Invariant::Conservation]),
        (Sabotage::StoreLosesAnswer, &[Invariant::Conservation]),
        (Sabotage::StoreLosesDecision, &[Invariant::Cause]),
        (Sabotage::StoreLosesExit, &[Invariant::Cause]),
        (Sabotage::StoreReversesQueue, &[Invariant::Recovery]),
        (Sabotage::StoreForgetsKeys, &[Invariant::IdempotentAccept]),
        (Sabotage::StoreForgetsPause, &[Invariant::BoundedRestarts]),
        (Sabotage::StoreForgetsWakes, &[Invariant::Liveness]),
        (Sabotage::EngineAnswersFirst, &[Invariant::DurableAccept]),
        (Sabotage::EngineActsFirst, &[Invariant::BoundedAttempts]),
        (Sabotage::EngineTellsRolledBack, &[Invariant::HonestAnswer, Invariant::OneOutcome]),
        (Sabotage::EngineForgetsToLoad, &[Invariant::OneLiveInstance, Invariant::Recovery]),
        (Sabotage::EngineForgetsGenerations, &[Invariant::OneLiveInstance]),
        (Sabotage::EngineClockRunsFast, &[Invariant::NoIdleStopWithWork]),
        (Sabotage::EngineClockRunsSlow, &[Invariant::Liveness]),
        (Sabotage::EngineSleepsThrough, &[Invariant::Liveness]),
        (Sabotage::EngineAnswersTwice, &[Invariant::HonestAnswer]),
        (Sabotage::EngineBelievesTheList, &[Invariant::OneLiveInstance]),
        (Sabotage::EngineKillsTheUnexpected, &[Invariant::Cause]),
        (Sabotage::DriverReportsTheLiving, &[Invariant::OneLiveInstance]),
        (Sabotage::DriverStartsTwo, &[Invariant::OneLiveInstance]),
        (Sabotage::DriverHidesExits, &[Invariant::Liveness]),
        (Sabotage::BridgeSplices, &[Invariant::ReplyIntegrity]),
        (Sabotage::BridgeRepeats, &[Invariant::BoundedAttempts]),
        (Sabotage::BridgeForgetsHolds, &[Invariant::NoIdleStopWithWork]),
        (Sabotage::BridgeMisquotes, &[Invariant::ReplyIntegrity]),
        (Sabotage::BridgeSkipsSync, &[Invariant::FilesBeforeWork]),
        (Sabotage::StoreCutsCheckpoint, &[Invariant::NothingOverwritten]),
        (Sabotage::StoreLosesRollout, &[Invariant::Recovery]),
        (Sabotage::StoreForgetsTrials, &[Invariant::OneAtRisk]),
        (Sabotage::StoreForgetsVerdicts, &[Invariant::BadRevision]),
        (Sabotage::EngineResumesForPause, &[Invariant::OneAtRisk]),
        (Sabotage::BridgeRunsTheFirst, &[Invariant::OneAtRisk]),
        (Sabotage::CoreStopsOutdated, &[Invariant::NoIdleStopWithWork]),
        (Sabotage::CoreMovesEverybody, &[Invariant::OneAtRisk]),
        (Sabotage::CoreBlamesSession, &[Invariant::BoundedRestarts]),
        (Sabotage::CoreBlamesMessage, &[Invariant::BoundedAttempts]),
    ];
}

impl World {
    /// What a sabotaged engine makes of what it is to hand in.
    pub(crate) fn as_told(&self, mut event: Event) -> Event {
        if let Event::RolloutRequested { what, .. } = &mut event
            && *what == RolloutRequest::Pause
            && self.is_sabotaged(Sabotage::EngineResumesForPause)
        {
            *what = RolloutRequest::Resume;
        }
        event
    }

    /// A core that is worse than ours would have said this.
    pub(crate) fn doctor(&self, now: Now, effects: &mut Effects) {
        match self.sabotage {
            Some(Sabotage::CoreStopsOutdated) => self.stop_outdated(now, effects),
            Some(Sabotage::CoreMovesEverybody) => self.move_everybody(effects),
            Some(Sabotage::CoreBlamesSession) if has_failed_trial(effects) => {
                for decision in effects.writes.iter_mut().filter_map(decision_of) {
                    if let Because::Exited { failures, .. } = &mut decision.because {
                        *failures += 1;
                    }
                }
            }
            Some(Sabotage::CoreBlamesMessage) if has_failed_trial(effects) => {
                for write in &mut effects.writes {
                    if let Write::ReturnDelivery { excused, .. } = write {
                        *excused = excused.saturating_sub(1);
                    }
                }
            }
            _sound => {}
        }
    }

    fn stop_outdated(&self, now: Now, effects: &mut Effects) {
        let supervisor = &self.engine.supervisor;
        let mut works = supervisor.sessions().filter(|session| {
            session.phase() == Phase::Awake && session.turn().is_some() && effects.writes.is_empty()
        });
        let outdated = works.find_map(|session| {
            let mut rollouts = supervisor.rollouts();
            let rollout = rollouts.find(|of| of.0.as_str() == session.id().agent())?.1;
            let revision = session.revision()?;
            rollout.is_outdated(session.id(), revision).then_some((session, revision))
        });
        let Some((session, revision)) = outdated else { return };
        effects.writes.push(Write::InsertDecision(Decision {
            session: session.id().clone(),
            generation: session.generation(),
            at: now.wall,
            from: Phase::Awake,
            to: Phase::Stopping,
            because: Because::Revision { change: RevisionChange::Outdated { revision } },
        }));
    }

    fn move_everybody(&self, effects: &mut Effects) {
        for command in &mut effects.commands {
            if let Command::StartInstance { instance, revision, .. } = command {
                let mut rollouts = self.engine.supervisor.rollouts();
                let of_agent = rollouts.find(|of| of.0.as_str() == instance.session.agent());
                *revision = of_agent.map_or(*revision, |of| of.1.wanted);
            }
        }
    }
}

impl Tables {
    /// What a sabotaged store reads back.
    pub(crate) fn forget_of_rollouts(&mut self, sabotage: Option<Sabotage>) {
        for rollout in self.rollouts.values_mut() {
            let is_forgotten = match rollout.standing {
                Standing::Trying { .. } => sabotage == Some(Sabotage::StoreForgetsTrials),
                Standing::Bad { .. } => sabotage == Some(Sabotage::StoreForgetsVerdicts),
                Standing::Untried | Standing::Good | Standing::Aborted { .. } => false,
            };
            if is_forgotten {
                rollout.standing = Standing::Untried;
            }
        }
    }
}

fn decision_of(write: &mut Write) -> Option<&mut Decision> {
    match write {
        Write::InsertDecision(decision) => Some(decision),
        _other => None,
    }
}

fn has_failed_trial(effects: &Effects) -> bool {
    effects.writes.iter().any(|write| {
        let Write::InsertDecision(decision) = write else { return false };
        matches!(decision.because, Because::Revision { change: RevisionChange::Failed { .. } })
    })
}

impl std::str::FromStr for Sabotage {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let named = |(sabotage, _): &&(Sabotage, _)| format!("{sabotage:?}") == text;
        let found = Sabotage::ALL.iter().find(named);
        found
            .map(|(sabotage, _)| *sabotage)
            .ok_or_else(|| format!("no sabotage is called {text:?}"))
    }
}

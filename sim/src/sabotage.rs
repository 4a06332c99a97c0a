//! Worlds that are broken on purpose, so that the checker can be seen to bite.
//!
//! Owner: the tests name one for a run; a real run has none. Invariant: for each of these some seed
//! is found guilty of the named invariant (`tests::every_sabotage_is_found`): a checker that cannot
//! fail proves nothing. Absent: faults; those a correct core survives, these nobody could.

use crate::violation::Invariant;

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
    ];
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

//! Every kind of fault and of rough use, as one closed list, and how often each fired.
//!
//! Owner: `World::fires` rolls and counts. Invariant: a kind that is listed here fires at least
//! once in a whole `sim run`, or the run fails and names it: a fault that is never injected proves
//! nothing. Absent: what a fault does (its place in the world does that), and how likely it is in
//! one seed (`swarm`).

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $per_mille:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            pub(crate) const ALL: &[Fault] = &[$(Fault::$name,)*];

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Fault::$name => stringify!($name),)*
                }
            }

            /// How likely it is at each of its occasions in a seed of medium roughness. Zero: it
            /// follows from others.
            pub(crate) fn per_mille(self) -> u32 {
                match self {
                    $(Fault::$name => $per_mille,)*
                }
            }
        }
    };
}

faults! {
    // The daemon's process and its disk.
    /// At any time.
    CrashAnytime = 25,
    /// A batch was handled, and nothing of it is on disk.
    CrashBeforeCommit = 4,
    /// The batch is on disk; answers, notices and commands are lost.
    CrashAfterCommit = 4,
    /// Some of the batch's commands were carried out.
    CrashBetweenCommands = 4,
    /// While what a crash left is being taken over.
    CrashInRecovery = 150,
    /// It is asked to end: nothing begins any more, and after a while it ends.
    Drained = 12,
    /// Down for minutes.
    LongDowntime = 120,
    /// The commit fails and the process goes on.
    StoreFull = 4,
    /// The process does not run for a while.
    ProcessPaused = 6,
    /// After a restart the config lacks an agent.
    AgentUnconfigured = 60,
    WallClockForward = 20,
    WallClockBack = 20,

    // Between the daemon and its bridges.
    LinkCut = 12,
    /// The daemon notices a cut later than the bridge.
    LinkHalfOpen = 300,
    /// The bridge dials again as soon as it has said hello.
    LinkFlaps = 80,
    /// The bridge cannot reconnect for a while.
    NetworkDown = 150,
    FrameUpLost = 0,
    FrameDownLost = 0,
    TextReplayed = 0,
    ResultReplayed = 0,
    ExitReplayed = 0,
    HoldReplayed = 0,
    /// A bridge got a turn that it has already.
    TurnRepeated = 0,
    /// A bridge of a past generation said hello.
    PastGenerationSaidHello = 0,
    /// Something else was said of a past generation.
    PastGenerationSpoke = 0,

    // The driver.
    StartFails = 60,
    StartSlow = 60,
    /// A start that a crash interrupted takes place after all.
    StartLate = 900,
    /// Asked again, or not: what does not come back by itself is then killed by deadline.
    ListFails = 250,
    KillLate = 150,
    KillFails = 150,
    ReportLate = 100,
    ReportRepeated = 50,

    // Bridges and agents.
    BridgeKilled = 10,
    BridgeSignalled = 10,
    /// A bridge was without a daemon for too long.
    OrphanLimitReached = 0,
    LaunchFails = 30,
    NeverReady = 40,
    DiesDuringStart = 50,
    IgnoresStop = 100,
    DiesIdle = 30,
    ExitsZeroIdle = 20,
    HoldsIdle = 80,
    HangsInTurn = 30,
    SilentUnderHold = 40,
    WorksForEver = 15,
    ExitsInTurn = 40,
    ExitsZeroInTurn = 20,
    SignalledInTurn = 25,
    OutOfMemory = 25,
    /// Of the turn's own process; the instance goes on.
    TurnOutOfMemory = 25,
    FailsRetryably = 70,
    FailsFinally = 40,
    PoisonMessage = 40,

    // Files.
    InputsChange = 60,
    InputMissing = 40,
    InputsUnreachable = 60,
    /// The daemon never says what the inputs are.
    ListingHangs = 20,
    SyncFails = 80,
    SyncFailsForGood = 20,
    /// The machine, or its disk, is another one.
    WorkspaceLost = 80,
    WorkspaceRestored = 0,
    UploadedBySender = 80,
    RestoredByOperator = 40,

    // Senders and operators.
    AnswerLost = 60,
    KeyRepeated = 60,
    KeyReused = 30,
    ForeignSubject = 40,
    Burst = 60,
    QueueFull = 0,
    WokenByOperator = 60,
    StoppedByOperator = 60,
    RestartedByOperator = 60,
    Dropped = 60,
    Redriven = 80,

    // The config of agents.
    /// A new revision, or an earlier one again.
    ConfigRevised = 90,
    RevisionBroken = 600,
    /// And put back by the next edit.
    AgentTakenOut = 150,
    /// Paused, resumed, aborted, tried again.
    RolloutSteered = 120,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FaultCounts([u64; Fault::ALL.len()]);

impl Default for FaultCounts {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl FaultCounts {
    pub(crate) fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    pub(crate) fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub(crate) fn add(&mut self, other: &FaultCounts) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    pub(crate) fn never_fired(&self) -> Vec<Fault> {
        Fault::ALL.iter().copied().filter(|fault| self.of(*fault) == 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_never_fired_is_named() {
        let mut counts = FaultCounts::default();
        for fault in Fault::ALL.iter().filter(|fault| **fault != Fault::LinkCut) {
            counts.count(*fault);
        }
        assert_eq!(counts.never_fired(), [Fault::LinkCut]);
    }
}

//! Which revision of an agent a session's next start gets, and how a new one proves itself.
//!
//! ```text
//!               wanted changes
//!   Good ──────────────────────▶ Untried ── one start ──▶ Trying ── ready, and answered ──▶ Good
//!                                   ▲                       │
//!                                   ├── it says nothing ────┤
//!                                   └── retried ── Bad ◀────┘ no start, or no answer
//! ```
//!
//! Owner: `supervisor`, one per agent; a value that is kept on disk. Invariants: while an older
//! revision is known to be good, an unproved one is started for one session at a time; a bad one is
//! started by nobody until an operator or a new config says otherwise; without a good one there is
//! nothing to go back to, and the wanted one is started by all.
//! Absent: what a revision contains, and who is stopped for it.

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::id::{Generation, RevisionNumber, SessionId, Subject};
use crate::time::Wall;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// What the config in force asks for.
    pub wanted: RevisionNumber,
    /// The newest that has proved itself.
    pub good: Option<RevisionNumber>,
    /// What was good before that.
    pub previous: Option<RevisionNumber>,
    pub standing: Standing,
    /// Nobody new moves to the wanted one.
    pub is_paused: bool,
}

/// How far the wanted revision is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "standing", rename_all = "snake_case")]
pub enum Standing {
    Untried,
    /// One session has it; everybody else has the good one.
    Trying {
        session: SessionId,
    },
    Good,
    Bad {
        why: Failure,
    },
    /// An operator gave it up.
    Aborted {
        by: Subject,
        at: Wall,
    },
}

/// What the trial ended with, so that the operator can look at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub cause: Cause,
    pub detail: String,
    pub session: SessionId,
    pub generation: Generation,
    pub at: Wall,
}

/// What an instance's fate says of its revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// Nothing: it runs what is known, or what is not wanted any more.
    None,
    /// It may prove it, and there is nothing to go back to.
    First,
    /// It decides.
    Canary,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Proved,
    Failed(Failure),
}

impl Rollout {
    pub fn first(wanted: RevisionNumber) -> Self {
        Self { wanted, good: None, previous: None, standing: Standing::Untried, is_paused: false }
    }

    /// The config asks for this one. `true`: that is another one than before.
    pub fn want(&mut self, wanted: RevisionNumber) -> bool {
        if self.wanted == wanted {
            return false;
        }
        self.wanted = wanted;
        self.is_paused = false;
        if self.previous == Some(wanted) {
            // Back to what was good: there is nothing to find out.
            std::mem::swap(&mut self.good, &mut self.previous);
        }
        self.standing = match self.good == Some(wanted) {
            true => Standing::Good,
            false => Standing::Untried,
        };
        true
    }

    /// What those run who decide nothing.
    pub fn target(&self) -> RevisionNumber {
        match self.standing {
            Standing::Good if self.is_paused => self.previous.unwrap_or(self.wanted),
            Standing::Good
            | Standing::Untried
            | Standing::Trying { .. }
            | Standing::Bad { .. }
            | Standing::Aborted { .. } => self.good.unwrap_or(self.wanted),
        }
    }

    /// What a start of `session` gets. The trial is `reserved` for one session where the agent has
    /// a canary turn. A trial whose session does not run the wanted one any more has said nothing.
    pub fn of_next_start(
        &self,
        session: &SessionId,
        reserved: Option<&SessionId>,
        runs_it: impl Fn(&SessionId) -> bool,
    ) -> (RevisionNumber, Trial) {
        let is_open = match &self.standing {
            Standing::Untried => true,
            Standing::Trying { session: trying } => trying == session || !runs_it(trying),
            Standing::Good | Standing::Bad { .. } | Standing::Aborted { .. } => false,
        };
        let is_mine = reserved.is_none_or(|reserved| reserved == session);
        match self.good {
            None if is_open => (self.wanted, Trial::First),
            Some(_) if is_open && is_mine && !self.is_paused => (self.wanted, Trial::Canary),
            _known => (self.target(), Trial::None),
        }
    }

    /// What an instance of `session`, started with `revision`, decides.
    pub fn trial_of(&self, session: &SessionId, revision: RevisionNumber) -> Trial {
        match &self.standing {
            _other if revision != self.wanted => Trial::None,
            Standing::Untried if self.good.is_none() => Trial::First,
            Standing::Trying { session: trying } if trying == session => Trial::Canary,
            Standing::Untried
            | Standing::Trying { .. }
            | Standing::Good
            | Standing::Bad { .. }
            | Standing::Aborted { .. } => Trial::None,
        }
    }

    pub fn judge(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Proved => {
                // One that is good at a pause has still proved itself.
                if self.good != Some(self.wanted) {
                    self.previous = self.good;
                }
                self.good = Some(self.wanted);
                self.standing = Standing::Good;
            }
            Verdict::Failed(why) => self.standing = Standing::Bad { why },
        }
    }

    /// A bad one gets another trial.
    pub fn retry(&mut self) {
        match self.standing {
            Standing::Bad { .. } | Standing::Aborted { .. } => self.standing = Standing::Untried,
            Standing::Untried | Standing::Trying { .. } | Standing::Good => {}
        }
    }

    /// Everybody back to what was good before, if anything was.
    pub fn abort(&mut self, by: Subject, at: Wall) {
        match self.standing {
            Standing::Aborted { .. } => return,
            Standing::Good => match self.previous.take() {
                None => return,
                Some(previous) => self.good = Some(previous),
            },
            Standing::Untried | Standing::Trying { .. } | Standing::Bad { .. } => {
                if self.good.is_none() {
                    return;
                }
            }
        }
        self.standing = Standing::Aborted { by, at };
    }

    /// It is not known yet whether the wanted one is good, and nothing keeps it from its trial.
    pub fn waits_for_trial(&self) -> bool {
        let is_open = match self.standing {
            Standing::Untried | Standing::Trying { .. } => true,
            Standing::Good | Standing::Bad { .. } | Standing::Aborted { .. } => false,
        };
        is_open && self.good.is_some() && !self.is_paused
    }

    /// An instance that runs this is to make place for the target, once nothing needs it.
    pub fn is_outdated(&self, session: &SessionId, revision: RevisionNumber) -> bool {
        !self.is_paused
            && revision != self.target()
            && self.trial_of(session, revision) != Trial::Canary
    }
}

/// Whether a death at the start, or in the first turn, may be the revision's fault. What the
/// machine, an operator or the files did is not.
pub fn points_to_revision(cause: Cause) -> bool {
    match cause {
        Cause::AppExit
        | Cause::AppSignal
        | Cause::OomLimit
        | Cause::OomChild
        | Cause::OomHeap
        | Cause::PidsLimit
        | Cause::PortTaken
        | Cause::ConfigRejected
        | Cause::HealthContainer
        | Cause::ImagePull
        | Cause::InitFailed
        | Cause::LaunchFailed
        | Cause::StartFailed
        | Cause::StartTimeout
        | Cause::TurnStuck
        | Cause::TurnTooLong
        | Cause::AgentError
        | Cause::ProtocolFault
        | Cause::ReplyTooLarge
        | Cause::Unknown => true,
        Cause::KilledOutside
        | Cause::OomHost
        | Cause::StopTimeoutKill
        | Cause::DiskFull
        | Cause::StoppedByUser
        | Cause::StoppedByWatchdog
        | Cause::DeployReplaced
        | Cause::HealthLb
        | Cause::Spot
        | Cause::HostLost
        | Cause::Evicted
        | Cause::Placement
        | Cause::BridgeLost
        | Cause::BridgeUnreachable
        | Cause::StoppedDuringTurn
        | Cause::PoisonMessage
        | Cause::AttemptsExhausted
        | Cause::Ambiguous
        | Cause::InputMissing
        | Cause::SyncFailed => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: RevisionNumber = RevisionNumber(1);
    const TWO: RevisionNumber = RevisionNumber(2);

    fn session(key: usize) -> SessionId {
        format!("a/{key}").parse().unwrap()
    }

    fn failure() -> Failure {
        Failure {
            cause: Cause::AppExit,
            detail: "exit code 1".to_owned(),
            session: session(0),
            generation: Generation(1),
            at: Wall::default(),
        }
    }

    fn changed() -> Rollout {
        let mut rollout = Rollout::first(ONE);
        rollout.judge(Verdict::Proved);
        assert!(rollout.want(TWO));
        rollout
    }

    #[test]
    fn without_a_good_revision_everybody_starts_the_wanted_one() {
        let rollout = Rollout::first(ONE);
        for key in 0..2 {
            let next = rollout.of_next_start(&session(key), None, |_| true);
            assert_eq!(next, (ONE, Trial::First));
        }
    }

    #[test]
    fn one_session_tries_and_the_others_stay_where_they_are() {
        let mut rollout = changed();
        let next = rollout.of_next_start(&session(0), None, |_| true);
        assert_eq!(next, (TWO, Trial::Canary));
        rollout.standing = Standing::Trying { session: session(0) };
        let other = rollout.of_next_start(&session(1), None, |_| true);
        assert_eq!(other, (ONE, Trial::None));
        assert!(!rollout.is_outdated(&session(0), TWO), "the trial itself goes on");
        assert!(!rollout.is_outdated(&session(1), ONE), "nobody moves before it is proved");
        rollout.judge(Verdict::Proved);
        assert!(rollout.is_outdated(&session(1), ONE));
        assert_eq!(rollout.of_next_start(&session(1), None, |_| true), (TWO, Trial::None));
    }

    #[test]
    fn a_bad_revision_is_started_by_nobody_and_a_new_one_gets_a_trial_of_its_own() {
        let mut rollout = changed();
        rollout.judge(Verdict::Failed(failure()));
        assert_eq!(rollout.of_next_start(&session(0), None, |_| true), (ONE, Trial::None));
        assert!(!rollout.want(TWO), "the same again changes nothing");
        assert!(rollout.want(RevisionNumber(3)));
        let next = rollout.of_next_start(&session(0), None, |_| true);
        assert_eq!(next, (RevisionNumber(3), Trial::Canary));
        assert!(rollout.want(ONE));
        assert_eq!((rollout.target(), &rollout.standing), (ONE, &Standing::Good));
    }

    #[test]
    fn a_reserved_trial_is_nobody_elses_and_a_pause_is_everybodys() {
        let mut rollout = changed();
        let canary = session(9);
        let next =
            |rollout: &Rollout, key| rollout.of_next_start(&session(key), Some(&canary), |_| true);
        assert_eq!(next(&rollout, 0), (ONE, Trial::None));
        assert_eq!(next(&rollout, 9), (TWO, Trial::Canary));
        rollout.is_paused = true;
        assert_eq!(next(&rollout, 9), (ONE, Trial::None));
    }

    #[test]
    fn a_trial_that_was_lost_is_open_to_the_next() {
        let mut rollout = changed();
        rollout.standing = Standing::Trying { session: session(0) };
        let next = |alive| rollout.of_next_start(&session(1), None, |_| alive);
        assert_eq!(next(true), (ONE, Trial::None));
        assert_eq!(next(false), (TWO, Trial::Canary));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Want(u64),
        Start(usize),
        End(usize),
        Prove(usize),
        Fail(usize),
        Pause(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..4_u64).prop_map(Step::Want),
            (0..4_usize).prop_map(Step::Start),
            (0..4_usize).prop_map(Step::End),
            (0..4_usize).prop_map(Step::Prove),
            (0..4_usize).prop_map(Step::Fail),
            any::<bool>().prop_map(Step::Pause),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        /// Against a list of who runs what: never two sessions on a revision that has not proved
        /// itself, as long as there is one that has.
        #[test]
        fn at_most_one_session_is_at_risk(steps in steps()) {
            let mut rollout = Rollout::first(ONE);
            rollout.judge(Verdict::Proved);
            let mut proved = vec![ONE];
            let mut runs: [Option<RevisionNumber>; 4] = [None; 4];
            // Since it is wanted: what an earlier trial left running is stopped when it is idle.
            let mut started = [false; 4];
            for step in steps {
                match step {
                    Step::Want(revision) => {
                        if rollout.want(RevisionNumber(revision)) {
                            started = [false; 4];
                        }
                    }
                    Step::Start(key) => {
                        let alive = |id: &SessionId| {
                            let wanted = Some(rollout.wanted);
                            (0..4).any(|key| session(key) == *id && runs[key] == wanted)
                        };
                        let (revision, trial) = rollout.of_next_start(&session(key), None, alive);
                        if trial == Trial::Canary {
                            rollout.standing = Standing::Trying { session: session(key) };
                        } else {
                            prop_assert!(proved.contains(&revision), "{revision:?} without trial");
                        }
                        runs[key] = Some(revision);
                        started[key] = true;
                    }
                    Step::End(key) => runs[key] = None,
                    Step::Prove(key) | Step::Fail(key) => {
                        let Some(revision) = runs[key] else { continue };
                        if rollout.trial_of(&session(key), revision) == Trial::None {
                            continue;
                        }
                        let is_proved = matches!(step, Step::Prove(_));
                        if is_proved {
                            proved.push(revision);
                            rollout.judge(Verdict::Proved);
                        } else {
                            rollout.judge(Verdict::Failed(failure()));
                            runs[key] = None;
                        }
                    }
                    Step::Pause(is_paused) => rollout.is_paused = is_paused,
                }
                let wanted = rollout.wanted;
                let has_it = |key: &usize| started[*key] && runs[*key] == Some(wanted);
                let at_risk = (0..4).filter(has_it).count();
                if !proved.contains(&wanted) {
                    prop_assert!(at_risk <= 1, "{at_risk} sessions run {wanted:?}");
                }
            }
        }
    }
}

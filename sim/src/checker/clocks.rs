//! The judge of clocks: no limit runs out unnoticed, none is called over before it is, and whoever
//! waits longest is started first.
//!
//! Owner: `Checker`. Invariants: all times are true times, and every clock starts anew when the
//! daemon does, because time without a daemon is not held against an agent.
//! Absent: the idle stop and the pauses before a start (`checker::sessions`).

use std::time::Duration;

use dormouse_core::event::{AgentState, Event};
use dormouse_core::id::SessionId;
use dormouse_core::journal::{Because, Decision};
use dormouse_core::limits;
use dormouse_core::policy::AgentPolicy;
use dormouse_core::session::phase::Phase;
use dormouse_core::time::millis;

use super::Checker;
use super::sessions::{Wake, Watch};
use crate::violation::{Checked, Invariant};

/// Since when. What does not run is not looked at.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    started_at: u64,
    files_at: u64,
    files_heard_at: u64,
    turn_at: u64,
    /// The longest silence, and the longest turn, when it began; none, if a daemon before knew.
    turn_began_with: Option<(Duration, Duration)>,
    progress_at: u64,
    drain_at: u64,
    detached_at: Option<u64>,
    /// Before this, a bridge that came back may not have said yet what holds its agent.
    holds_known_at: u64,
    /// Its place among those that want to be started.
    wanted_since: Option<u64>,
    /// It is stopped because it was not ready in time.
    is_too_slow: bool,
}

impl Clocks {
    /// Everything begins at `at`, and the bridge is not connected.
    pub(super) fn begun(at: u64) -> Self {
        Self {
            started_at: at,
            files_at: at,
            files_heard_at: at,
            turn_at: at,
            turn_began_with: None,
            progress_at: at,
            drain_at: at,
            detached_at: Some(at),
            holds_known_at: at,
            wanted_since: None,
            is_too_slow: false,
        }
    }

    /// With a new daemon. Why it is being stopped is in its record.
    pub(super) fn begin_anew(&mut self, at: u64) {
        let is_too_slow = self.is_too_slow;
        *self = Self { is_too_slow, ..Self::begun(at) };
    }

    /// From now on the agent has its time to become ready.
    pub(super) fn files_are_there(&mut self, at: u64) {
        self.files_at = at;
    }

    pub(super) fn turn_begins(&mut self, at: u64, policy: &AgentPolicy) {
        (self.turn_at, self.progress_at) = (at, at);
        self.turn_began_with = Some((policy.stuck_after, policy.turn_within));
    }

    /// Of what it began with, and what is in force, each time the longer one.
    fn turn_limits(&self, policy: &AgentPolicy) -> (Duration, Duration) {
        let (stuck_after, turn_within) = self.turn_began_with.unwrap_or_default();
        (stuck_after.max(policy.stuck_after), turn_within.max(policy.turn_within))
    }

    /// What the bridge was known to hold before may be given up by now.
    pub(super) fn knows_holds(&self, at: u64) -> bool {
        self.detached_at.is_none() && at >= self.holds_known_at
    }

    pub(super) fn progresses(&mut self, at: u64) {
        self.progress_at = at;
    }

    /// Of the live instance's bridge.
    pub(super) fn hear(&mut self, event: &Event, at: u64) {
        if let Event::BridgeAttached { agent, .. } = event {
            self.detached_at = None;
            self.holds_known_at = match agent {
                AgentState::NotLaunched => at,
                AgentState::Starting | AgentState::Ready => {
                    at + millis(limits::HOLDS_RETOLD_WITHIN)
                }
            };
        } else if let Event::BridgeDetached { .. } = event {
            self.detached_at.get_or_insert(at);
        }
        let is_of_files = matches!(
            event,
            Event::BridgeAttached { .. }
                | Event::InputsListed { .. }
                | Event::FilesProgressed { .. }
                | Event::FilesSynced { .. }
        );
        if is_of_files {
            self.files_heard_at = at;
        }
    }
}

impl Watch {
    /// By what was said since the daemon came back.
    fn is_held(&self, at: u64) -> bool {
        self.holds.values().any(|hold| hold.until > at && !hold.is_of_the_past)
    }

    /// Its silence says nothing: it is held, or its bridge is or was away and could not tell.
    fn may_be_silent(&self, at: u64) -> bool {
        let clocks = &self.clocks;
        self.is_held(at) || clocks.detached_at.is_some() || at < clocks.holds_known_at
    }

    /// The limits that have run out by `at`, each with its name.
    fn run_out(&self, policy: &AgentPolicy, at: u64) -> Option<&'static str> {
        let clocks = &self.clocks;
        let is_over = |since: u64, limit| at >= since + millis(limit);
        let is_unreachable =
            clocks.detached_at.is_some_and(|since| is_over(since, policy.reattach_within));
        let (stuck_after, turn_within) = clocks.turn_limits(policy);
        let is_stuck = is_over(clocks.progress_at, stuck_after) && !self.may_be_silent(at);
        match self.phase {
            Phase::Starting if is_over(self.start_since(), self.start_limit(policy)) => {
                Some("ready")
            }
            Phase::Awake | Phase::Draining if is_unreachable => Some("reattach"),
            Phase::Awake if self.turn.is_some() && is_stuck => Some("stuck"),
            Phase::Awake if self.turn.is_some() && is_over(clocks.turn_at, turn_within) => {
                Some("turn")
            }
            Phase::Awake if self.is_idle_for_good(policy, at) => Some("idle"),
            Phase::Draining if is_over(clocks.drain_at, policy.drain_within) => Some("drain"),
            Phase::Backoff | Phase::Tripped
                if self.pause.is_none_or(|pause| at >= pause.over_at) =>
            {
                Some("pause")
            }
            Phase::Asleep
            | Phase::Starting
            | Phase::Awake
            | Phase::Draining
            | Phase::Stopping
            | Phase::Backoff
            | Phase::Tripped => None,
        }
    }

    /// Since when its start is judged: with files on their way, since these were heard of.
    fn start_since(&self) -> u64 {
        self.clocks.started_at.max(self.clocks.files_heard_at)
    }

    /// Files have their own silence, and then the agent has its time.
    fn start_limit(&self, policy: &AgentPolicy) -> Duration {
        let silence = if self.has_files { limits::FILES_SILENT_WITHIN } else { Duration::ZERO };
        policy.ready_within + silence
    }

    /// The life that ends now was at least this long.
    pub(super) fn has_lived(&self, window: Duration, at: u64) -> bool {
        at >= self.clocks.started_at + millis(window)
    }

    fn is_idle_for_good(&self, policy: &AgentPolicy, at: u64) -> bool {
        let idle_at = self.clocks.holds_known_at.max(self.active_at + millis(policy.stop_after));
        let is_connected = self.clocks.detached_at.is_none();
        is_connected && self.queue.is_empty() && !self.is_held(at) && at >= idle_at
    }

    /// A decision that rests on a clock rests on what the clock says.
    pub(super) fn check_clock(
        &self,
        decision: &Decision,
        policy: &AgentPolicy,
        at: u64,
    ) -> Checked {
        let clocks = &self.clocks;
        let (since, limit, is_excused) = match &decision.because {
            Because::NotReadyInTime { .. } => (clocks.files_at, policy.ready_within, false),
            Because::TurnStuck { .. } => {
                (clocks.progress_at, clocks.turn_limits(policy).0, self.may_be_silent(at))
            }
            Because::TurnTooLong { .. } => (clocks.turn_at, clocks.turn_limits(policy).1, false),
            Because::DrainTimeUp { .. } => (clocks.drain_at, policy.drain_within, false),
            Because::BridgeUnreachable { .. } => {
                let since = clocks.detached_at.unwrap_or(at);
                (since, policy.reattach_within, false)
            }
            _no_clock => return Ok(()),
        };
        let is_over = at >= since + millis(limit) && !is_excused;
        Invariant::NoIdleStopWithWork.check(is_over, || {
            format!("{}: {:?} after {} ms", decision.session, decision.because, at - since)
        })
    }

    pub(super) fn set_clocks(&mut self, decision: &Decision, at: u64) {
        if decision.from == decision.to {
            return;
        }
        if decision.to == Phase::Starting {
            self.clocks = Clocks::begun(at);
        } else if decision.to == Phase::Draining {
            self.clocks.drain_at = at;
        }
    }

    fn wants_start(&self) -> bool {
        self.phase == Phase::Asleep && (!self.queue.is_empty() || self.wake == Wake::Owed)
    }
}

const MINUTE_MS: u64 = 60_000;
/// Different sessions of an agent, after whose failures in a row the others are held back.
const AGENT_SESSIONS: usize = 5;

impl Checker {
    /// After a step: who wants to be started since when.
    pub(super) fn note_wants(&mut self) {
        self.steps += 1;
        for (id, watch) in &mut self.watches {
            let is_wanted = watch.wants_start() && self.revisions.is_configured(id);
            let since = watch.clocks.wanted_since.unwrap_or(self.steps);
            watch.clocks.wanted_since = is_wanted.then_some(since);
        }
    }

    /// It is about to be started, and nobody has waited longer.
    pub(super) fn check_line(&self, starting: &SessionId) -> Checked {
        let own = self.watches.get(starting).and_then(|watch| watch.clocks.wanted_since);
        let waited_longer = |(id, watch): &(&SessionId, &Watch)| {
            let since = watch.clocks.wanted_since;
            let may_be_passed = self.is_unwell(id.agent()) || watch.failures > 0;
            let is_longer = since.is_some_and(|since| own.is_none_or(|own| since < own));
            *id != starting && is_longer && !may_be_passed
        };
        let other = self.watches.iter().find(waited_longer).map(|other| other.0);
        Invariant::BoundedRestarts
            .check(other.is_none(), || format!("{starting} is started before {other:?}"))
    }

    /// No minute of one daemon has more starts of sessions that failed than are allowed.
    pub(super) fn note_restart(&mut self, id: &SessionId, at: u64) -> Checked {
        if self.watches.get(id).is_none_or(|watch| watch.failures == 0) {
            return Ok(());
        }
        Invariant::BoundedRestarts.check(!self.is_budget_spent(at), || {
            format!("{id} is started, and the minute has had {:?}", self.restarts)
        })?;
        self.restarts.push(at);
        Ok(())
    }

    fn is_budget_spent(&self, at: u64) -> bool {
        let recent = self.restarts.iter().filter(|start| **start + MINUTE_MS > at).count();
        recent >= self.node.restarts_per_minute
    }

    /// So many of the agent's sessions failed in a row before they were ready that the others are
    /// held back, but for one probe at a time.
    fn is_unwell(&self, agent: &str) -> bool {
        self.failed_starts.get(agent).is_some_and(|failed| failed.len() >= AGENT_SESSIONS)
    }

    /// Whether a start has come to something.
    pub(super) fn note_start(&mut self, decision: &Decision) {
        let id = &decision.session;
        let watch = self.watch(id);
        let was_too_slow = watch.clocks.is_too_slow;
        watch.clocks.is_too_slow |= matches!(decision.because, Because::NotReadyInTime { .. });
        // Of a start, only what ends it is a failure of the start.
        let is_of_files = matches!(decision.because, Because::Files { .. });
        watch.clocks.is_too_slow |=
            is_of_files && decision.to == Phase::Stopping && decision.from == Phase::Starting;
        let failures = match &decision.because {
            Because::Exited { failures, .. } | Because::StartFailed { failures, .. } => *failures,
            _other => watch.failures,
        };
        let was_start = match decision.from {
            Phase::Starting => true,
            Phase::Stopping => was_too_slow,
            Phase::Asleep | Phase::Awake | Phase::Draining | Phase::Backoff | Phase::Tripped => {
                false
            }
        };
        let has_failed = was_start && failures > watch.failures;
        let failed = self.failed_starts.entry(id.agent_name()).or_default();
        if has_failed {
            failed.insert(id.clone());
        } else if matches!(decision.because, Because::BecameReady { .. }) {
            failed.clear();
        }
    }

    /// The daemon has handled everything that there was at `at`: nothing is overdue.
    pub(crate) fn check_overdue(&self, at: u64, is_draining: bool) -> Checked {
        for (id, watch) in &self.watches {
            let overdue = watch.run_out(&self.idle_policy(id), at);
            Invariant::Liveness.check(overdue.is_none(), || {
                format!("{id}: its limit {overdue:?} has run out, and it is still {}", watch.phase)
            })?;
        }
        let starting = self.watches.values().filter(|watch| watch.phase == Phase::Starting);
        let has_room = starting.count() < self.node.starts_at_once && !is_draining;
        let waiting = self.watches.iter().find(|(id, watch)| {
            let is_paced = watch.failures > 0 && self.is_budget_spent(at);
            watch.clocks.wanted_since.is_some() && !is_paced && !self.is_unwell(id.agent())
        });
        Invariant::Liveness.check(!has_room || waiting.is_none(), || {
            format!("{:?} waits to be started while there is room", waiting.map(|one| one.0))
        })
    }
}

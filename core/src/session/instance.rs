//! One life of a session's agent, as far as the daemon knows.
//!
//! Owner: `Session`. Invariant: its clocks begin anew with each daemon, so that time without one is
//! held against nobody. Absent: what follows from any of it.

use crate::hold::Holds;
use crate::id::{BootId, TurnId};
use crate::limits;
use crate::policy::AgentPolicy;
use crate::queue::Queue;
use crate::record::{SessionRecord, StopReason};
use crate::session::files::Files;
use crate::session::phase::Phase;
use crate::time::{Monotonic, Now};
use crate::watchdog::{ProgressClock, ProgressLimits};

/// One life of the agent, as far as the daemon knows.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) started_at: Monotonic,
    pub(super) ready_at: Option<Monotonic>,
    pub(super) boot: Option<BootId>,
    pub(super) link: Link,
    pub(super) last_activity: Monotonic,
    pub(super) turn: Option<Turn>,
    pub(super) holds: Holds,
    pub(super) files: Files,
    /// From when on the agent has its time to become ready.
    pub(super) launch_from: Monotonic,
    pub(super) drain_since: Option<Monotonic>,
    pub(super) stop: Option<Stop>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// From `holds_known_at` on, what its bridge has not said to hold it does not.
    Attached {
        holds_known_at: Monotonic,
    },
    Detached {
        since: Monotonic,
    },
}

#[derive(Debug)]
pub(super) struct Turn {
    pub(super) id: TurnId,
    pub(super) clock: ProgressClock,
    /// What it began with; `None`: a daemon that has ended knew.
    began_with: Option<ProgressLimits>,
    /// Bytes of its text that were passed on.
    pub(super) bytes: u64,
    pub(super) slow_was_told: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    pub(super) reason: StopReason,
    /// When the next kill is due, if no exit was seen by then.
    pub(super) kill_at: Monotonic,
    pub(super) kills: u32,
}

impl Instance {
    pub(super) fn new(now: Monotonic) -> Self {
        Self {
            started_at: now,
            ready_at: None,
            boot: None,
            link: Link::Detached { since: now },
            last_activity: now,
            turn: None,
            holds: Holds::default(),
            files: Files::default(),
            launch_from: now,
            drain_since: None,
            stop: None,
        }
    }

    /// Every clock starts anew: time without a daemon is not held against the agent.
    pub(super) fn restored(record: &SessionRecord, queue: &Queue, now: Now) -> Self {
        let now = now.monotonic;
        let turn = queue.leased().map(|(id, _)| Turn::new(id, now, None));
        let is_ready = matches!(record.phase, Phase::Awake | Phase::Draining);
        let stop = match record.phase {
            Phase::Stopping => {
                let reason = record.stop.expect("a session is stopped for a reason");
                Some(Stop { reason, kill_at: now + limits::KILL_REPEAT_AFTER, kills: 0 })
            }
            Phase::Asleep
            | Phase::Starting
            | Phase::Awake
            | Phase::Draining
            | Phase::Backoff
            | Phase::Tripped => None,
        };
        Self {
            ready_at: is_ready.then_some(now),
            turn,
            drain_since: (record.phase == Phase::Draining).then_some(now),
            stop,
            ..Self::new(now)
        }
    }

    /// Whether its bridge is known to have been executed: it said hello, or did so to an earlier
    /// daemon, as what it led to shows.
    pub(super) fn was_seen(&self) -> bool {
        self.boot.is_some() || self.ready_at.is_some() || self.turn.is_some()
    }

    /// Until when its silence says nothing: a hold covers it, or its bridge is away (which has a
    /// limit of its own) or was, and has not had the time to say what holds it.
    pub(super) fn silent_until(&self, now: Monotonic, policy: &AgentPolicy) -> Option<Monotonic> {
        let heard_from = match self.link {
            Link::Attached { holds_known_at } => holds_known_at,
            Link::Detached { since } => since + policy.reattach_within,
        };
        self.holds.held_until(now).max(Some(heard_from).filter(|from| *from > now))
    }

    /// When nothing will have needed it for the whole idle limit. `None`: only its bridge could
    /// tell what holds it, and that is away.
    pub(super) fn idle_at(&self, now: Monotonic, policy: &AgentPolicy) -> Option<Monotonic> {
        let Link::Attached { holds_known_at } = self.link else { return None };
        let idle_at = holds_known_at.max(self.last_activity + policy.stop_after);
        Some(self.holds.held_until(now).map_or(idle_at, |held_until| held_until.max(idle_at)))
    }
}

impl Link {
    pub(super) fn is_attached(self) -> bool {
        match self {
            Link::Attached { .. } => true,
            Link::Detached { .. } => false,
        }
    }
}

impl Turn {
    pub(super) fn new(id: TurnId, now: Monotonic, policy: Option<&AgentPolicy>) -> Self {
        Self {
            id,
            clock: ProgressClock::started(now),
            began_with: policy.map(limits_in),
            bytes: 0,
            slow_was_told: false,
        }
    }

    /// A limit that was raised helps it; one that was lowered is for the turns after it.
    pub(super) fn limits(&self, policy: &AgentPolicy) -> ProgressLimits {
        let now = limits_in(policy);
        self.began_with.map_or(now, |began_with| began_with.widest(now))
    }
}

fn limits_in(policy: &AgentPolicy) -> ProgressLimits {
    ProgressLimits { stuck_after: policy.stuck_after, whole_within: policy.turn_within }
}

//! The phases of a session and the legal transitions between them.
//!
//! ```text
//!            message · operator              bridge attached + agent ready
//!  Asleep ─────────────────────▶ Starting ─────────────────────────────────▶ Awake ⇄ (turn)
//!    ▲  ▲                           │  │ stop · not ready in time             │ │ idle · stuck
//!    │  │                           │  └───────────────▶ Stopping ◀───────────┘ │ stop, turn runs
//!    │  └── exit as asked ──────────│──────────────────────┘  ▲                 ▼
//!    │                              │ exit                    └──────────── Draining
//!    └── delay over ── Backoff, Tripped ◀── exit unasked ── (any phase with an instance)
//! ```
//!
//! Owner: `session` alone changes a phase, through `Session::enter`, which asserts `may_become`.
//! Absent: Syncing and Frozen, which come with files and freezing.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No instance. Costs a row.
    Asleep,
    /// An instance was ordered and is not ready yet.
    Starting,
    /// Ready: runs a turn, or is idle.
    Awake,
    /// Finishes its turn, takes no other.
    Draining,
    /// Asked to end, or being killed.
    Stopping,
    /// No instance; the next start is not due yet.
    Backoff,
    /// No instance; the breaker is open, and the next start is a probe.
    Tripped,
}

impl Phase {
    pub const ALL: [Phase; 7] = [
        Phase::Asleep,
        Phase::Starting,
        Phase::Awake,
        Phase::Draining,
        Phase::Stopping,
        Phase::Backoff,
        Phase::Tripped,
    ];

    /// Whether an instance may exist.
    pub fn has_instance(self) -> bool {
        match self {
            Phase::Starting | Phase::Awake | Phase::Draining | Phase::Stopping => true,
            Phase::Asleep | Phase::Backoff | Phase::Tripped => false,
        }
    }

    /// The legal transitions. Staying is not one of them.
    pub fn may_become(self, next: Phase) -> bool {
        use Phase::{Asleep, Awake, Backoff, Draining, Starting, Stopping, Tripped};
        match self {
            Asleep => matches!(next, Starting),
            Starting => matches!(next, Awake | Stopping | Asleep | Backoff | Tripped),
            Awake => matches!(next, Draining | Stopping | Asleep | Backoff | Tripped),
            Draining => matches!(next, Stopping | Asleep | Backoff | Tripped),
            Stopping => matches!(next, Asleep | Backoff | Tripped),
            Backoff | Tripped => matches!(next, Asleep),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Asleep => "asleep",
            Phase::Starting => "starting",
            Phase::Awake => "awake",
            Phase::Draining => "draining",
            Phase::Stopping => "stopping",
            Phase::Backoff => "backoff",
            Phase::Tripped => "tripped",
        })
    }
}

impl std::str::FromStr for Phase {
    type Err = UnknownPhase;
    fn from_str(text: &str) -> Result<Self, UnknownPhase> {
        Phase::ALL
            .into_iter()
            .find(|phase| phase.to_string() == text)
            .ok_or_else(|| UnknownPhase(text.to_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no phase is called '{0}'")]
pub struct UnknownPhase(String);

//! When a session is not started again by itself for a good while: too many failures in a row.
//!
//! ```text
//!  closed ── `intensity` failures in a row, no life of them longer than `window` ──▶ open
//!    ▲                                                                               │ probe due
//!    └──── an answer ◀── the probe lives ── one start ◀──────────────────────────────┘
//!                                             └─ dies: open again, for twice as long
//! ```
//!
//! Owner: a pure function; `session::exit` counts. The count is of failures in a row and not of one
//! cause, so that two causes that take turns do not keep it closed. Source of the numbers: five
//! failures take 21 s of pauses, and with the first probe five minutes later an agent that always
//! crashes starts six times in ten minutes (BENCH.md B8 allows eight). Absent: clocks, other
//! sessions.

use std::time::Duration;

use crate::backoff;
use crate::id::SessionId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// A life at least this long was no failure to live, whatever ended it. `WINDOW_MIN` or more.
    pub window: Duration,
    /// Failures in a row that open it.
    pub intensity: u32,
}

/// With a shorter one, lives a little longer than it could follow one another without pauses.
pub const WINDOW_MIN: Duration = Duration::from_secs(10 * 60);

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self { window: WINDOW_MIN, intensity: 5 }
    }
}

const FIRST_PROBE_AFTER: Duration = Duration::from_secs(5 * 60);
const FACTOR: u32 = 2;
/// The longest between two probes, before jitter.
pub(crate) const LONGEST: Duration = Duration::from_secs(60 * 60);

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    AtOnce,
    After(Duration),
    /// Open: one start after this long.
    Probe(Duration),
}

/// After `failures` in a row (1 is the first one).
pub fn next(failures: u32, policy: BreakerPolicy, session: &SessionId) -> Next {
    if failures >= policy.intensity {
        let probes = failures - policy.intensity;
        let longest_probes = 6; // 2^6 times five minutes is beyond LONGEST
        let pause = FIRST_PROBE_AFTER * FACTOR.pow(probes.min(longest_probes));
        return Next::Probe(backoff::jittered(pause.min(LONGEST), failures, session));
    }
    let pause = backoff::pause_after(failures, session);
    if pause.is_zero() { Next::AtOnce } else { Next::After(pause) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> SessionId {
        "a/k".parse().unwrap()
    }

    fn pause(next: Next) -> Duration {
        match next {
            Next::AtOnce => Duration::ZERO,
            Next::After(pause) | Next::Probe(pause) => pause,
        }
    }

    #[test]
    fn it_opens_at_its_intensity_and_probes_ever_less_often() {
        let policy = BreakerPolicy::default();
        for failures in 1..5 {
            assert!(!matches!(next(failures, policy, &session()), Next::Probe(_)), "{failures}");
        }
        let mut last = Duration::ZERO;
        for failures in 5..9 {
            let next = next(failures, policy, &session());
            assert!(matches!(next, Next::Probe(_)), "{failures}");
            assert!(pause(next) > last);
            last = pause(next);
        }
        let latest = next(u32::MAX, policy, &session());
        assert!((LONGEST..=LONGEST.mul_f64(1.1)).contains(&pause(latest)), "{latest:?}");
    }

    #[test]
    fn an_agent_that_always_crashes_starts_at_most_eight_times_in_ten_minutes() {
        let (mut at, mut starts, mut failures) = (Duration::ZERO, 0, 0);
        while at < Duration::from_secs(600) {
            starts += 1;
            failures += 1;
            at += pause(next(failures, BreakerPolicy::default(), &session()));
        }
        assert!(starts <= 8, "{starts} starts");
    }
}

//! Progress clocks: since when, how long, and what that means. Three colours, three reactions:
//! fine, slow (the sender is told), stuck (the turn ends).
//!
//! Owner: one per turn. Invariants: progress moves the clock, nothing else does; a hold covers
//! silence, but no hold and no progress covers the limit of the whole turn (FAULTS F16, F17).
//! Absent: timers; the session asks `next_change`.

use std::time::Duration;

use crate::time::Monotonic;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressClock {
    started_at: Monotonic,
    last_progress: Monotonic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// Silent for at least half of the limit.
    Slow {
        silent: Duration,
    },
    Stuck {
        silent: Duration,
    },
    /// Progress or not, the whole of it takes too long.
    TooLong,
}

/// The bounds of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressLimits {
    pub stuck_after: Duration,
    pub whole_within: Duration,
}

impl ProgressLimits {
    /// Of each the longer one.
    pub fn widest(self, other: Self) -> Self {
        Self {
            stuck_after: self.stuck_after.max(other.stuck_after),
            whole_within: self.whole_within.max(other.whole_within),
        }
    }

    fn slow_after(self) -> Duration {
        self.stuck_after / 2
    }
}

impl ProgressClock {
    pub fn started(now: Monotonic) -> Self {
        Self { started_at: now, last_progress: now }
    }

    pub fn started_at(self) -> Monotonic {
        self.started_at
    }

    pub fn progress(&mut self, now: Monotonic) {
        self.last_progress = self.last_progress.max(now);
    }

    /// `held_until`: silence before that moment is declared, and does not count.
    pub fn verdict(
        self,
        now: Monotonic,
        limits: ProgressLimits,
        held_until: Option<Monotonic>,
    ) -> Verdict {
        if now.since(self.started_at) >= limits.whole_within {
            return Verdict::TooLong;
        }
        if held_until.is_some_and(|until| until > now) {
            return Verdict::Fine;
        }
        let silent = now.since(self.last_progress);
        if silent >= limits.stuck_after {
            Verdict::Stuck { silent }
        } else if silent >= limits.slow_after() {
            Verdict::Slow { silent }
        } else {
            Verdict::Fine
        }
    }

    /// The next moment at which the verdict may differ from now's.
    pub fn next_change(
        self,
        now: Monotonic,
        limits: ProgressLimits,
        held_until: Option<Monotonic>,
    ) -> Monotonic {
        let end = self.started_at + limits.whole_within;
        let held = held_until.filter(|until| *until > now);
        let slow_at = self.last_progress + limits.slow_after();
        let stuck_at = self.last_progress + limits.stuck_after;
        let next = match held {
            Some(until) => until,
            None if slow_at > now => slow_at,
            None => stuck_at,
        };
        next.min(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: ProgressLimits = ProgressLimits {
        stuck_after: Duration::from_millis(1_000),
        whole_within: Duration::from_millis(5_000),
    };

    fn verdict(last_progress: u64, now: u64, held_until: Option<u64>) -> Verdict {
        let mut clock = ProgressClock::started(Monotonic(0));
        clock.progress(Monotonic(last_progress));
        clock.verdict(Monotonic(now), LIMITS, held_until.map(Monotonic))
    }

    #[test]
    fn each_border_belongs_to_the_harder_verdict() {
        let ms = Duration::from_millis;
        assert_eq!(verdict(0, 499, None), Verdict::Fine);
        assert_eq!(verdict(0, 500, None), Verdict::Slow { silent: ms(500) });
        assert_eq!(verdict(0, 999, None), Verdict::Slow { silent: ms(999) });
        assert_eq!(verdict(0, 1_000, None), Verdict::Stuck { silent: ms(1_000) });
        assert_eq!(verdict(4_999, 4_999, None), Verdict::Fine);
        assert_eq!(verdict(4_999, 5_000, None), Verdict::TooLong);
    }

    #[test]
    fn a_hold_covers_silence_until_it_expires_but_not_the_whole_turn() {
        assert_eq!(verdict(0, 3_000, Some(3_001)), Verdict::Fine);
        assert!(matches!(verdict(0, 3_001, Some(3_001)), Verdict::Stuck { .. }));
        assert_eq!(verdict(0, 5_000, Some(9_000)), Verdict::TooLong);
    }

    proptest! {
        /// Between now and `next_change` the kind of verdict stays the same.
        #[test]
        fn the_next_change_is_never_announced_too_late(
            last in 0u64..5_000, now_after in 0u64..5_000, held in prop::option::of(0u64..8_000),
        ) {
            let now = last + now_after;
            prop_assume!(now < 5_000);
            let mut clock = ProgressClock::started(Monotonic(0));
            clock.progress(Monotonic(last));
            let held = held.map(Monotonic);
            let next = clock.next_change(Monotonic(now), LIMITS, held);
            let verdict = |at: u64| clock.verdict(Monotonic(at), LIMITS, held);
            let kind = |at: u64| std::mem::discriminant(&verdict(at));
            let already_over =
                matches!(verdict(now), Verdict::Stuck { .. } | Verdict::TooLong);
            if !already_over {
                prop_assert!(next.0 > now);
                for at in now..next.0 {
                    prop_assert_eq!(kind(at), kind(now));
                }
            }
        }
    }
}

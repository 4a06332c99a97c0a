//! Holds: named, expiring reasons to stay awake that the agent declares. Answers "why is it awake".
//!
//! Owner: one instance's `Holds`. Invariants: every hold expires unless it is renewed, none lasts
//! longer than `limits::HOLD_SPAN_MAX` from its last renewal, and there are at most
//! `limits::HOLDS_MAX` (FAULTS I8, I16).
//! Absent: the turn, which holds the session awake by being there; holds of other kinds than the
//! agent's own.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits;
use crate::time::Monotonic;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    expiries: BTreeMap<Box<str>, Monotonic>,
}

/// What became of a hold that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    New {
        lasts: Duration,
    },
    Renewed,
    /// There are too many, or the name is too long.
    Refused,
}

impl Holds {
    /// Takes or renews `name` for `lasts`, cut to the limit. A shorter renewal shortens it: the
    /// owner knows best.
    pub fn take(&mut self, now: Monotonic, name: &str, lasts: Duration) -> Taken {
        self.drop_expired(now);
        let lasts = lasts.min(limits::HOLD_SPAN_MAX);
        if name.len() > limits::HOLD_NAME_BYTES_MAX {
            return Taken::Refused;
        }
        if let Some(expiry) = self.expiries.get_mut(name) {
            *expiry = now + lasts;
            return Taken::Renewed;
        }
        if self.expiries.len() >= limits::HOLDS_MAX {
            return Taken::Refused;
        }
        self.expiries.insert(name.into(), now + lasts);
        Taken::New { lasts }
    }

    /// When the last of them is over; `None` if none is in force.
    pub fn held_until(&self, now: Monotonic) -> Option<Monotonic> {
        self.expiries.values().copied().filter(|expiry| *expiry > now).max()
    }

    /// The holds in force, with their ends.
    pub fn in_force(&self, now: Monotonic) -> impl Iterator<Item = (&str, Monotonic)> {
        self.expiries
            .iter()
            .filter(move |(_, expiry)| **expiry > now)
            .map(|(name, expiry)| (&**name, *expiry))
    }

    fn drop_expired(&mut self, now: Monotonic) {
        self.expiries.retain(|_, expiry| *expiry > now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_hold_is_in_force_up_to_its_end_and_not_at_it() {
        let mut holds = Holds::default();
        holds.take(Monotonic(0), "tool", MINUTE);
        assert_eq!(holds.held_until(Monotonic(59_999)), Some(Monotonic(60_000)));
        assert_eq!(holds.held_until(Monotonic(60_000)), None);
    }

    #[test]
    fn renewal_counts_from_the_renewal_and_may_shorten() {
        let mut holds = Holds::default();
        holds.take(Monotonic(0), "tool", MINUTE);
        assert_eq!(holds.take(Monotonic(30_000), "tool", MINUTE), Taken::Renewed);
        assert_eq!(holds.held_until(Monotonic(30_000)), Some(Monotonic(90_000)));
        holds.take(Monotonic(30_000), "tool", Duration::ZERO);
        assert_eq!(holds.held_until(Monotonic(30_000)), None);
    }

    #[test]
    fn nothing_can_pin_for_ever_and_nothing_can_flood() {
        let mut holds = Holds::default();
        holds.take(Monotonic(0), "greedy", Duration::MAX);
        assert_eq!(holds.held_until(Monotonic(0)), Some(Monotonic(0) + limits::HOLD_SPAN_MAX));
        let taken: Vec<Taken> = (0..limits::HOLDS_MAX + 1)
            .map(|n| holds.take(Monotonic(0), &format!("hold {n}"), MINUTE))
            .collect();
        assert_eq!(taken.last(), Some(&Taken::Refused));
        let long = "x".repeat(limits::HOLD_NAME_BYTES_MAX + 1);
        assert_eq!(holds.take(Monotonic(0), &long, MINUTE), Taken::Refused);
    }

    proptest! {
        #[test]
        fn it_is_held_exactly_while_the_newest_take_of_some_name_lasts(
            takes in prop::collection::vec((0u64..5_000, 0usize..4, 0u64..3_000), 0..40),
            probe in 0u64..10_000,
        ) {
            let mut takes = takes;
            takes.sort_by_key(|take| take.0);
            takes.retain(|take| take.0 <= probe);
            let mut holds = Holds::default();
            for (at, name, lasts) in &takes {
                holds.take(Monotonic(*at), &name.to_string(), Duration::from_millis(*lasts));
            }
            let held = (0..4).any(|name| {
                let newest = takes.iter().rev().find(|take| take.1 == name);
                newest.is_some_and(|(at, _, lasts)| at + lasts > probe)
            });
            prop_assert_eq!(holds.held_until(Monotonic(probe)).is_some(), held);
        }
    }
}

//! How much memory the next start may use.
//!
//! Owner: a pure function per question; `session::exit` asks. Invariants: the limit rises only
//! after a death that is proved to be for want of memory, and never beyond the ceiling or what the
//! machine can give; it comes down only after a long time in which less was enough. A peak under
//! the limit that killed is censored: all it says is "more than this".
//! Absent: how a limit is enforced, and what memory costs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::time::Wall;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryPolicy {
    /// The limit of the first start. `None`: no limit is set.
    pub first_bytes: Option<u64>,
    /// No learned limit is above this. `None`: `CEILING_FACTOR` times the first.
    pub ceiling_bytes: Option<u64>,
}

/// Where no ceiling is configured.
pub const CEILING_FACTOR: u64 = 4;
/// Nothing is known of the need but that it is more: twice as much reaches any need in steps whose
/// sum is less than twice the last.
const RAISE_FACTOR: u64 = 2;
/// Limits are multiples of this.
const STEP_BYTES: u64 = 16 << 20;
/// How long less must have been enough before the limit comes down.
pub const LOWER_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What a lowered limit leaves above the highest peak that was seen, in percent of it.
const HEADROOM_PERCENT: u64 = 50;

impl MemoryPolicy {
    /// The highest limit that may be learned on a machine which can give `machine_bytes`.
    pub fn ceiling(&self, first: u64, machine_bytes: Option<u64>) -> u64 {
        let configured = self.ceiling_bytes.unwrap_or(first.saturating_mul(CEILING_FACTOR));
        configured.min(machine_bytes.unwrap_or(u64::MAX)).max(first)
    }
}

/// What a session has learned, kept in its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedMemory {
    pub limit_bytes: u64,
    /// The death that raised it.
    pub because: Cause,
    /// Since when it has been this much, or since its last death for want of memory.
    pub since: Wall,
    /// The highest peak of a life under it that did not end for want of memory; 0: none yet.
    pub peak_survived_bytes: u64,
}

/// What follows for the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sized {
    Raised {
        from_bytes: u64,
        to: LearnedMemory,
    },
    /// It would have to rise and may not.
    AtCeiling {
        limit_bytes: u64,
    },
    Lowered {
        from_bytes: u64,
        to: Option<LearnedMemory>,
    },
    /// Only what was seen is noted.
    Noted(LearnedMemory),
    Unchanged,
}

/// The limit of the next start.
pub fn limit(
    policy: MemoryPolicy,
    learned: Option<LearnedMemory>,
    machine_bytes: Option<u64>,
) -> Option<u64> {
    let first = policy.first_bytes?;
    let ceiling = policy.ceiling(first, machine_bytes);
    Some(learned.map_or(first, |learned| learned.limit_bytes.clamp(first, ceiling)))
}

/// After a death that is proved to be for want of memory under the limit in force.
pub fn after_want(
    policy: MemoryPolicy,
    learned: Option<LearnedMemory>,
    machine_bytes: Option<u64>,
    because: Cause,
    now: Wall,
) -> Sized {
    let Some(first) = policy.first_bytes else { return Sized::Unchanged };
    let from_bytes = limit(policy, learned, machine_bytes).unwrap_or(first);
    let ceiling = policy.ceiling(first, machine_bytes);
    let wanted = from_bytes.saturating_mul(RAISE_FACTOR).next_multiple_of(STEP_BYTES);
    let limit_bytes = wanted.min(ceiling);
    if limit_bytes <= from_bytes {
        return Sized::AtCeiling { limit_bytes: from_bytes };
    }
    let to = LearnedMemory { limit_bytes, because, since: now, peak_survived_bytes: 0 };
    Sized::Raised { from_bytes, to }
}

/// After any other end.
pub fn after_life(
    policy: MemoryPolicy,
    learned: Option<LearnedMemory>,
    peak_bytes: Option<u64>,
    now: Wall,
) -> Sized {
    let (Some(learned), Some(first)) = (learned, policy.first_bytes) else {
        return Sized::Unchanged;
    };
    let peak = learned.peak_survived_bytes.max(peak_bytes.unwrap_or(0));
    let is_long_quiet = peak > 0 && learned.since.until(now) >= LOWER_AFTER;
    if !is_long_quiet {
        let noted = LearnedMemory { peak_survived_bytes: peak, ..learned };
        return if noted == learned { Sized::Unchanged } else { Sized::Noted(noted) };
    }
    let enough = peak.saturating_add(peak / 100 * HEADROOM_PERCENT).next_multiple_of(STEP_BYTES);
    let from_bytes = learned.limit_bytes;
    if enough <= first {
        return Sized::Lowered { from_bytes, to: None };
    }
    if enough < from_bytes {
        let to =
            LearnedMemory { limit_bytes: enough, since: now, peak_survived_bytes: 0, ..learned };
        return Sized::Lowered { from_bytes, to: Some(to) };
    }
    // It needs what it has; look again after as long.
    Sized::Noted(LearnedMemory { since: now, peak_survived_bytes: 0, ..learned })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const POLICY: MemoryPolicy =
        MemoryPolicy { first_bytes: Some(512 * MIB), ceiling_bytes: Some(4096 * MIB) };
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

    fn raised(learned: Option<LearnedMemory>) -> Option<LearnedMemory> {
        let sized = after_want(POLICY, learned, None, Cause::OomLimit, Wall(5));
        if let Sized::Raised { to, .. } = sized { Some(to) } else { None }
    }

    #[test]
    fn a_proved_death_doubles_the_limit_up_to_the_ceiling() {
        let mut learned = None;
        let mut limits = Vec::new();
        while let Some(next) = raised(learned) {
            limits.push(next.limit_bytes / MIB);
            learned = Some(next);
        }
        assert_eq!(limits, [1_024, 2_048, 4_096]);
        let at_ceiling = after_want(POLICY, learned, None, Cause::OomLimit, Wall(5));
        assert_eq!(at_ceiling, Sized::AtCeiling { limit_bytes: 4_096 * MIB });
    }

    #[test]
    fn the_machine_is_a_ceiling_too_and_without_a_first_limit_there_is_none() {
        let small = after_want(POLICY, None, Some(600 * MIB), Cause::OomLimit, Wall(0));
        let Sized::Raised { to, .. } = small else { panic!("{small:?}") };
        assert_eq!(to.limit_bytes, 600 * MIB);
        let unlimited = MemoryPolicy::default();
        assert_eq!(after_want(unlimited, None, None, Cause::OomLimit, Wall(0)), Sized::Unchanged);
        assert_eq!(limit(unlimited, None, None), None);
    }

    #[test]
    fn it_comes_down_only_after_a_week_in_which_less_was_enough() {
        let learned = raised(raised(None)).unwrap();
        let after = |days: u64, peak| {
            after_life(POLICY, Some(learned), Some(peak), Wall(5 + days * DAY_MS))
        };
        assert!(matches!(after(6, 100 * MIB), Sized::Noted(_)));
        assert_eq!(after(7, 100 * MIB), Sized::Lowered { from_bytes: 2048 * MIB, to: None });
        let Sized::Lowered { to: Some(to), .. } = after(8, 600 * MIB) else { panic!() };
        assert_eq!(to.limit_bytes, 912 * MIB);
        assert!(matches!(after(8, 2_000 * MIB), Sized::Noted(_)), "it needs what it has");
        assert!(matches!(after(8, 0), Sized::Noted(_) | Sized::Unchanged), "nothing was seen");
    }

    proptest! {
        #[test]
        fn limits_stay_between_the_first_and_every_ceiling(
            steps in prop::collection::vec((any::<bool>(), 0..u64::MAX / 4, 0..10 * DAY_MS), 0..40),
            machine in prop::option::of(64 * MIB..8_192 * MIB),
        ) {
            let (mut learned, mut now) = (None, 0);
            for (is_want, peak, later) in steps {
                now += later;
                let sized = if is_want {
                    after_want(POLICY, learned, machine, Cause::OomLimit, Wall(now))
                } else {
                    after_life(POLICY, learned, Some(peak), Wall(now))
                };
                let before = limit(POLICY, learned, machine).unwrap();
                match sized {
                    Sized::Raised { to, .. } | Sized::Noted(to) => learned = Some(to),
                    Sized::Lowered { to, .. } => learned = to,
                    Sized::AtCeiling { .. } | Sized::Unchanged => {}
                }
                let after = limit(POLICY, learned, machine).unwrap();
                let ceiling = (4_096 * MIB).min(machine.unwrap_or(u64::MAX)).max(512 * MIB);
                prop_assert!((512 * MIB..=ceiling).contains(&after));
                prop_assert!(is_want || after <= before, "only want raises it");
            }
        }
    }
}

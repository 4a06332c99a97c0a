//! The pause before the next start, or the next try, after failures in a row.
//!
//! Owner: a pure function. Source of the numbers: the first failure costs nothing, so that a single
//! kill is answered at once; then 1 s times four each time up to five minutes, which bounds an
//! agent that always crashes to eight starts in ten minutes (BENCH.md B8). Jitter is drawn from the
//! session and the count, so that a node full of crashed sessions does not come back in one instant
//! and a replay gives the same pauses. Absent: randomness.

use std::time::Duration;

use crate::id::SessionId;

const FIRST: Duration = Duration::from_secs(1);
const FACTOR: u32 = 4;
pub(crate) const LONGEST: Duration = Duration::from_secs(5 * 60);
/// The pause is lengthened by up to this part of itself.
const JITTER_PERCENT: u64 = 10;

/// After `failures` in a row (1 is the first one).
pub fn pause_after(failures: u32, session: &SessionId) -> Duration {
    let Some(repeats) = failures.checked_sub(2) else {
        return Duration::ZERO;
    };
    let longest_repeats = 8; // FACTOR^8 seconds is far beyond LONGEST, and far from overflow
    let pause = (FIRST * FACTOR.pow(repeats.min(longest_repeats))).min(LONGEST);
    jittered(pause, failures, session)
}

/// Longer by a part of itself that depends on the session and the count alone.
pub(crate) fn jittered(pause: Duration, failures: u32, session: &SessionId) -> Duration {
    let percent = hash(session.as_str(), failures) % (JITTER_PERCENT + 1);
    pause + pause.mul_f64(percent as f64 / 100.0)
}

/// FNV-1a over the session and the count: stable across runs and machines.
fn hash(text: &str, count: u32) -> u64 {
    let offset_basis = 0xcbf2_9ce4_8422_2325_u64;
    let prime = 0x0000_0100_0000_01b3;
    let bytes = text.bytes().chain(count.to_le_bytes());
    bytes.fold(offset_basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(prime))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(name: &str) -> SessionId {
        name.parse().unwrap()
    }

    #[test]
    fn pauses_grow_to_a_cap_and_the_first_is_none() {
        let pauses: Vec<f64> =
            (0..9).map(|n| pause_after(n, &session("a/k")).as_secs_f64()).collect();
        for (failures, whole) in [
            (0, 0.0),
            (1, 0.0),
            (2, 1.0),
            (3, 4.0),
            (4, 16.0),
            (5, 64.0),
            (6, 256.0),
            (7, 300.0),
            (8, 300.0),
        ] {
            let pause: f64 = pauses[failures];
            assert!(
                (whole..=whole * 1.1).contains(&pause),
                "{failures}: {pause} is not about {whole}"
            );
        }
        assert!(pause_after(u32::MAX, &session("a/k")) <= LONGEST.mul_f64(1.1));
    }

    #[test]
    fn an_agent_that_always_crashes_starts_at_most_eight_times_in_ten_minutes() {
        let (mut at, mut starts, mut failures) = (Duration::ZERO, 0, 0);
        while at < Duration::from_secs(600) {
            starts += 1;
            failures += 1;
            at += pause_after(failures, &session("a/k"));
        }
        assert!(starts <= 8, "{starts} starts");
    }

    #[test]
    fn two_sessions_that_crash_together_do_not_come_back_together() {
        let pauses: std::collections::BTreeSet<_> =
            (0..20).map(|n| pause_after(4, &session(&format!("a/{n}")))).collect();
        assert!(pauses.len() > 5, "{pauses:?}");
    }
}

//! The agent's reasons to stay awake, as the daemon is to hear of them.
//!
//! Owner: `instance`. Invariants: at most `limits::HOLDS_MAX` names at a time; a new connection
//! hears of every hold that still lasts, with the time that is left of it, because a daemon that
//! was started anew knows of none. Absent: whether a hold is granted, which is the core's.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_core::limits::{HOLD_NAME_BYTES_MAX, HOLD_SPAN_MAX, HOLDS_MAX};
use dormouse_core::time::millis;
use tokio::time::Instant;

use crate::frames::FromBridge;

/// So much may pass on the way to the daemon without being taken off: who asked for five minutes
/// reads of five minutes.
const MOMENT: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Holds {
    by_name: BTreeMap<String, Hold>,
}

#[derive(Debug)]
struct Hold {
    span: Duration,
    until: Instant,
    is_told: bool,
}

/// There are as many holds as there may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooManyHolds;

impl Holds {
    /// Takes a hold, or renews the one of that name; no time at all gives it back.
    pub(crate) fn take(
        &mut self,
        name: &str,
        for_ms: u64,
        now: Instant,
    ) -> Result<(), TooManyHolds> {
        self.by_name.retain(|_, hold| hold.until > now || !hold.is_told);
        let name = &name[..name.floor_char_boundary(HOLD_NAME_BYTES_MAX)];
        if self.by_name.len() >= HOLDS_MAX && !self.by_name.contains_key(name) {
            return Err(TooManyHolds);
        }
        let span = Duration::from_millis(for_ms).min(HOLD_SPAN_MAX);
        let hold = Hold { span, until: now + span, is_told: false };
        self.by_name.insert(name.to_string(), hold);
        Ok(())
    }

    /// A new connection: all that lasts is to be told anew.
    pub(crate) fn retell(&mut self, now: Instant) {
        self.by_name.retain(|_, hold| hold.until > now);
        self.by_name.values_mut().for_each(|hold| hold.is_told = false);
    }

    pub(crate) fn has_news(&self) -> bool {
        self.by_name.values().any(|hold| !hold.is_told)
    }

    /// The next frame that the daemon has to be sent; it counts as sent.
    pub(crate) fn next_frame(&mut self, now: Instant) -> Option<FromBridge> {
        let (name, hold) = self.by_name.iter_mut().find(|(_, hold)| !hold.is_told)?;
        hold.is_told = true;
        let left = hold.until.saturating_duration_since(now);
        let told = if hold.span - left < MOMENT { hold.span } else { left };
        Some(FromBridge::Hold { name: name.clone(), for_ms: millis(told) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(holds: &mut Holds, now: Instant) -> Vec<(String, u64)> {
        let mut told = Vec::new();
        while let Some(FromBridge::Hold { name, for_ms }) = holds.next_frame(now) {
            told.push((name, for_ms));
        }
        assert!(!holds.has_news());
        told
    }

    #[test]
    fn a_new_connection_hears_what_is_left_of_each_hold() {
        let start = Instant::now();
        let later = start + Duration::from_secs(2);
        let mut holds = Holds::default();
        holds.take("build", 5_000, start).unwrap();
        holds.take("short", 1_000, start).unwrap();
        assert_eq!(told(&mut holds, start), [("build".into(), 5_000), ("short".into(), 1_000)]);
        holds.retell(later);
        assert_eq!(told(&mut holds, later), [("build".into(), 3_000)]);
    }

    #[test]
    fn what_passes_on_the_way_is_not_taken_off() {
        let start = Instant::now();
        let mut holds = Holds::default();
        holds.take("build", 300_000, start).unwrap();
        let a_little_later = start + Duration::from_millis(3);
        assert_eq!(told(&mut holds, a_little_later), [("build".into(), 300_000)]);
    }

    #[test]
    fn a_hold_of_no_time_is_told_once_and_forgotten() {
        let now = Instant::now();
        let mut holds = Holds::default();
        holds.take("build", 5_000, now).unwrap();
        holds.take("build", 0, now).unwrap();
        assert_eq!(told(&mut holds, now), [("build".into(), 0)]);
        holds.retell(now);
        assert!(told(&mut holds, now).is_empty());
    }

    #[test]
    fn holds_are_bounded_in_number_name_and_time() {
        let now = Instant::now();
        let mut holds = Holds::default();
        for number in 0..HOLDS_MAX {
            holds.take(&format!("hold {number}"), u64::MAX, now).unwrap();
        }
        assert_eq!(holds.take("one more", 1, now), Err(TooManyHolds));
        assert_eq!(holds.take("hold 0", 1_000, now), Ok(()));
        assert!(told(&mut holds, now).iter().all(|(_, ms)| *ms <= millis(HOLD_SPAN_MAX)));
        let later = now + HOLD_SPAN_MAX;
        holds.take(&"é".repeat(HOLD_NAME_BYTES_MAX), 1_000, later).unwrap();
        assert_eq!(told(&mut holds, later)[0].0.len(), HOLD_NAME_BYTES_MAX);
    }
}

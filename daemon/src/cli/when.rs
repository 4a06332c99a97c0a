//! Times as people say them: "14:05:09", "3 min ago", "in 8 s".
//!
//! Invariants: a time on another day carries its date; a time that lies a little ahead because two
//! clocks differ is "just now". Absent: reading the clock more than once per command.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dormouse_core::journal::human_span;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The moment at which a command looks at things, and where its user lives.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    now_ms: u64,
    zone: TimeZone,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Self { now_ms, zone: TimeZone::system() }
    }

    #[cfg(test)]
    pub(crate) fn fixed(now_ms: u64, zone: TimeZone) -> Self {
        Self { now_ms, zone }
    }

    /// "14:05:09", with the date before it on another day.
    pub(crate) fn clock(&self, at_ms: u64) -> String {
        let (Some(at), Some(now)) = (timestamp(at_ms), timestamp(self.now_ms)) else {
            return format!("{at_ms} ms");
        };
        let at = at.to_zoned(self.zone.clone());
        let is_today = at.date() == now.to_zoned(self.zone.clone()).date();
        at.strftime(if is_today { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" }).to_string()
    }

    /// "3 min ago", or "in 8 s".
    pub(crate) fn distance(&self, at_ms: u64) -> String {
        if at_ms > self.now_ms {
            return match at_ms - self.now_ms {
                0..1_000 => "now".to_owned(),
                ahead => format!("in {}", rough(ahead)),
            };
        }
        match self.now_ms - at_ms {
            0..1_000 => "just now".to_owned(),
            behind => format!("{} ago", rough(behind)),
        }
    }

    /// "14:05:09 (3 min ago)"
    pub(crate) fn clock_and_distance(&self, at_ms: u64) -> String {
        format!("{} ({})", self.clock(at_ms), self.distance(at_ms))
    }
}

fn timestamp(ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()
}

/// In one unit, rounded down.
fn rough(ms: u64) -> String {
    const SECOND: u64 = 1_000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match ms {
        0..MINUTE => human_span(Duration::from_secs(ms / SECOND)),
        MINUTE..HOUR => format!("{} min", ms / MINUTE),
        HOUR..DAY => format!("{} h", ms / HOUR),
        _ if ms / DAY == 1 => "1 day".to_owned(),
        _ => format!("{} days", ms / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 13:00:00 UTC
    const NOON: u64 = 1_795_352_400_000;

    fn moment() -> Moment {
        Moment::fixed(NOON, TimeZone::fixed(jiff::tz::offset(1)))
    }

    #[test]
    fn the_clock_is_local_and_other_days_carry_their_date() {
        assert_eq!(moment().clock(NOON + 309_000), "14:05:09");
        assert_eq!(moment().clock(NOON - 14 * 3_600_000 - 1_000), "2026-11-21 23:59:59");
    }

    #[test]
    fn distances_are_in_one_unit_and_a_fast_clock_does_no_harm() {
        let at = |offset: i64| moment().distance(NOON.checked_add_signed(offset).unwrap());
        assert_eq!(at(-999), "just now");
        assert_eq!(at(-12_300), "12 s ago");
        assert_eq!(at(-200_000), "3 min ago");
        assert_eq!(at(-7_200_000), "2 h ago");
        assert_eq!(at(-86_400_000), "1 day ago");
        assert_eq!(at(-9 * 86_400_000), "9 days ago");
        assert_eq!(at(500), "now");
        assert_eq!(at(8_000), "in 8 s");
    }

    #[test]
    fn a_time_beyond_all_calendars_is_still_shown() {
        assert_eq!(moment().clock(u64::MAX), "18446744073709551615 ms");
    }
}

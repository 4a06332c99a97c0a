//! Times as the platforms write them: RFC 3339 text with any offset, or seconds since 1970.
//!
//! Invariant: what is before 1970, beyond year 9999 or no time at all is `None`; Docker's
//! 0001-01-01 means "never", and so is `None` as well. Absent: the clock.

use std::time::Duration;

use dormouse_core::journal::human_span;
use dormouse_core::time::Wall;

const YEAR_10000_SECONDS: f64 = 253_402_300_800.0;

pub(super) fn of_text(text: &str) -> Option<Wall> {
    let at: jiff::Timestamp = text.trim().parse().ok()?;
    of_milliseconds(at.as_millisecond())
}

pub(super) fn of_seconds(seconds: f64) -> Option<Wall> {
    let is_time = seconds > 0.0 && seconds < YEAR_10000_SECONDS;
    // In range, so that nothing is cut but parts of a millisecond.
    is_time.then(|| Wall((seconds * 1_000.0).round() as u64))
}

pub(super) fn of_nanoseconds(nanoseconds: i64) -> Option<Wall> {
    of_milliseconds(nanoseconds / 1_000_000)
}

fn of_milliseconds(milliseconds: i64) -> Option<Wall> {
    u64::try_from(milliseconds).ok().filter(|at| *at > 0).map(Wall)
}

/// From `earlier` to `later`; nothing where a clock went backwards between them.
pub(super) fn between_ms(earlier: Option<Wall>, later: Option<Wall>) -> Option<u64> {
    later?.0.checked_sub(earlier?.0)
}

/// "28 s before its end", for the fact of a start.
pub(super) fn lived(uptime_ms: u64) -> String {
    format!("{} before its end", human_span(Duration::from_millis(uptime_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_platform_s_way_of_writing_one_moment_is_that_moment() {
        let moment = Some(Wall(1_795_352_400_123));
        for text in [
            "2026-11-22T13:00:00.123Z",
            "2026-11-22T13:00:00.123456789Z",
            "2026-11-22T14:00:00.123000+01:00",
            "2026-11-22T04:30:00.123-08:30",
        ] {
            assert_eq!(of_text(text), moment, "{text}");
        }
        assert_eq!(of_seconds(1_795_352_400.123), moment);
        assert_eq!(of_nanoseconds(1_795_352_400_123_456_789), moment);
    }

    #[test]
    fn never_and_nonsense_are_no_times() {
        for text in ["0001-01-01T00:00:00Z", "", "yesterday", "2026-13-01T00:00:00Z", "1970"] {
            assert_eq!(of_text(text), None, "{text:?}");
        }
        for seconds in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
            assert_eq!(of_seconds(seconds), None);
        }
        assert_eq!(of_nanoseconds(i64::MIN), None);
    }

    #[test]
    fn a_clock_that_went_backwards_gives_no_span() {
        assert_eq!(between_ms(Some(Wall(5)), Some(Wall(3))), None);
        assert_eq!(between_ms(Some(Wall(3)), Some(Wall(5))), Some(2));
        assert_eq!(between_ms(None, Some(Wall(5))), None);
    }
}

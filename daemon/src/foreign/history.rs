//! Many ends of one thing: how often, after how long, and whether for one cause.
//!
//! Owner: `report`. Invariants: the period is from start to start and the uptime from start to end,
//! and neither stands for the other; lives beside one another (replicas) have no period; medians,
//! so that one odd life moves nothing. Absent: why (`core::diagnosis`).

use std::collections::BTreeMap;

use dormouse_core::time::Wall;
use serde::Serialize;

/// When in its life it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// It never ran.
    BeforeStart,
    /// Always after about the same time.
    FixedUptime,
    VaryingUptime,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Loop {
    /// As far as is known: the platform may count more than it keeps evidence of.
    pub(crate) deaths: u64,
    /// Of so many is there evidence.
    pub(crate) deaths_read: usize,
    /// From one start to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) period_ms_median: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uptime_ms_median: Option<u64>,
    pub(crate) exit_codes: BTreeMap<String, usize>,
    /// Of the ends that were read, those of the newest one's cause.
    pub(crate) same_cause_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) phase: Option<Phase>,
}

/// What is counted of one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) started_at: Option<Wall>,
    pub(super) ended_at: Option<Wall>,
    pub(super) uptime_ms: Option<u64>,
    pub(super) exit_code: Option<i32>,
    pub(super) never_ran: bool,
    pub(super) same_cause: bool,
}

/// Nothing, unless it ended at least twice. `starts` are those of lives that go on, too.
pub(super) fn loop_of(ends: &[Counted], starts: &[Wall], counted: Option<u64>) -> Option<Loop> {
    let read = ends.len();
    let deaths = counted.unwrap_or_default().max(u64::try_from(read).unwrap_or(u64::MAX));
    if deaths < 2 || read == 0 {
        return None;
    }
    let mut uptimes: Vec<u64> = ends.iter().filter_map(|end| end.uptime_ms).collect();
    let mut exit_codes = BTreeMap::new();
    for end in ends {
        let code = end.exit_code.map_or("none".to_owned(), |code| code.to_string());
        *exit_codes.entry(code).or_default() += 1;
    }
    let same = ends.iter().filter(|end| end.same_cause).count();
    Some(Loop {
        deaths,
        deaths_read: read,
        period_ms_median: period(ends, starts),
        phase: phase(ends, &mut uptimes),
        uptime_ms_median: median(&mut uptimes),
        exit_codes,
        same_cause_ratio: (same as f64 / read as f64 * 100.0).round() / 100.0,
    })
}

fn phase(ends: &[Counted], uptimes: &mut [u64]) -> Option<Phase> {
    if ends.iter().all(|end| end.never_ran) {
        return Some(Phase::BeforeStart);
    }
    // Two may be equal by chance.
    if uptimes.len() < 3 {
        return None;
    }
    let middle = median(uptimes)?;
    let is_near = |uptime: &u64| uptime.abs_diff(middle) <= middle / 5;
    Some(if uptimes.iter().all(is_near) { Phase::FixedUptime } else { Phase::VaryingUptime })
}

/// The median of the times from start to start, or else from end to end.
fn period(ends: &[Counted], starts: &[Wall]) -> Option<u64> {
    if are_beside_one_another(ends) {
        return None;
    }
    let mut starts = starts.to_vec();
    let mut stops: Vec<Wall> = ends.iter().filter_map(|end| end.ended_at).collect();
    median(&mut steps(&mut starts)).or_else(|| median(&mut steps(&mut stops)))
}

fn steps(times: &mut [Wall]) -> Vec<u64> {
    times.sort();
    let steps = times.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].0));
    steps.filter(|step| *step > 0).collect()
}

/// More than a quarter of the lives began before the one before them had ended.
fn are_beside_one_another(ends: &[Counted]) -> bool {
    let mut lives: Vec<(Wall, Wall)> =
        ends.iter().filter_map(|end| Some((end.started_at?, end.ended_at?))).collect();
    lives.sort();
    let overlaps = lives.windows(2).filter(|pair| pair[1].0 < pair[0].1).count();
    overlaps * 4 > lives.len().saturating_sub(1)
}

fn median(values: &mut [u64]) -> Option<u64> {
    values.sort_unstable();
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    match values.len().is_multiple_of(2) {
        false => Some(upper),
        true => {
            let lower = *values.get(middle.checked_sub(1)?)?;
            Some(lower + (upper - lower) / 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(start_s: u64, uptime_s: u64) -> Counted {
        Counted {
            started_at: Some(Wall(start_s * 1_000)),
            ended_at: Some(Wall((start_s + uptime_s) * 1_000)),
            uptime_ms: Some(uptime_s * 1_000),
            exit_code: Some(137),
            never_ran: false,
            same_cause: true,
        }
    }

    fn starts(ends: &[Counted]) -> Vec<Wall> {
        ends.iter().filter_map(|end| end.started_at).collect()
    }

    #[test]
    fn the_period_is_not_the_uptime() {
        let ends: Vec<_> = (0..6).map(|index| life(1_000 + index * 50, 28)).collect();
        let seen = loop_of(&ends, &starts(&ends), None).unwrap();
        assert_eq!(seen.period_ms_median, Some(50_000));
        assert_eq!(seen.uptime_ms_median, Some(28_000));
        assert_eq!(seen.phase, Some(Phase::FixedUptime));
        assert_eq!(seen.exit_codes, BTreeMap::from([("137".to_owned(), 6)]));
    }

    #[test]
    fn replicas_beside_one_another_have_no_period() {
        let ends: Vec<_> = (0..6).map(|index| life(1_000 + index * 10, 28)).collect();
        let seen = loop_of(&ends, &starts(&ends), None).unwrap();
        assert_eq!((seen.period_ms_median, seen.uptime_ms_median), (None, Some(28_000)));
    }

    #[test]
    fn one_end_is_no_loop_unless_the_platform_counted_more() {
        assert_eq!(loop_of(&[life(1, 1)], &[], None), None);
        let seen = loop_of(&[life(1, 1)], &[Wall(1_000), Wall(9_000)], Some(14)).unwrap();
        assert_eq!((seen.deaths, seen.deaths_read, seen.phase), (14, 1, None));
        assert_eq!(seen.period_ms_median, Some(8_000));
        assert_eq!(loop_of(&[], &[], Some(14)), None);
    }

    #[test]
    fn different_ends_are_counted_apart() {
        let mut ends = vec![life(0, 10), life(100, 20), life(200, 300), life(600, 5)];
        ends[1].exit_code = None;
        ends[1].same_cause = false;
        let seen = loop_of(&ends, &starts(&ends), Some(1)).unwrap();
        assert_eq!((seen.same_cause_ratio, seen.phase), (0.75, Some(Phase::VaryingUptime)));
        assert_eq!(seen.exit_codes["none"], 1);
        assert_eq!(seen.uptime_ms_median, Some(15_000));
    }

    #[test]
    fn what_never_ran_died_before_its_start() {
        let never = Counted { started_at: None, uptime_ms: None, never_ran: true, ..life(0, 0) };
        let ends = vec![never.clone(), never];
        assert_eq!(loop_of(&ends, &[], None).unwrap().phase, Some(Phase::BeforeStart));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&mut [4, 2]), Some(3));
        assert_eq!(median(&mut [u64::MAX, u64::MAX]), Some(u64::MAX));
        assert_eq!(median(&mut []), None);
    }
}

//! Does a session go round in circles? What its kept ends have in common.
//!
//! Owner: a pure function. Invariants: the period, from end to end, and the uptime, from execution
//! to end, are two numbers, because pauses lie between; both are medians, which one odd life does
//! not move; with fewer than two failures there is nothing to compare. Absent: advice.

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::diagnosis::signal_name;
use crate::evidence::End;
use crate::record::ExitRecord;
use crate::time::{Wall, millis};

/// What the failed lives of a session have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopStatistics {
    /// Ends that were looked at, failures or not: all that are kept.
    pub ends: usize,
    pub failures: usize,
    /// The end of the first of those failures.
    pub since: Wall,
    /// Median time from one failure's end to the next one's.
    pub period_ms: u64,
    /// Median time that the failed lives lasted. `None`: not known of any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_ms: Option<u64>,
    /// Failures before the agent was ready.
    pub before_ready: usize,
    /// The most frequent cause; of equally frequent ones the newest.
    pub cause: Cause,
    /// How many of a hundred failures have that cause.
    pub cause_percent: usize,
    /// How they ended, the most frequent first.
    pub histogram: Vec<EndCount>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndCount {
    /// "exit code 1", "SIGKILL".
    pub end: String,
    pub count: usize,
}

/// Of a session's kept ends, the newest first. `None`: fewer than two failures.
pub fn statistics(newest_first: &[ExitRecord]) -> Option<LoopStatistics> {
    let failures: Vec<(&ExitRecord, Cause)> =
        newest_first.iter().filter_map(|exit| Some((exit, exit.cause?))).collect();
    let since = failures.get(1).and(failures.last())?.0.at;
    let gaps = failures.windows(2).map(|pair| millis(pair[1].0.at.until(pair[0].0.at)));
    let uptimes = failures.iter().filter_map(|(exit, _)| exit.evidence.uptime_ms);
    let was_ready = |exit: &ExitRecord| exit.circumstances.ready_after_ms.is_some();
    let (cause, count) = counted(failures.iter().map(|(_, cause)| *cause)).into_iter().next()?;
    let ends = counted(failures.iter().map(|(exit, _)| end_words(&exit.evidence.end)));
    Some(LoopStatistics {
        ends: newest_first.len(),
        failures: failures.len(),
        since,
        period_ms: median(gaps.collect())?,
        uptime_ms: median(uptimes.collect()),
        before_ready: failures.iter().filter(|(exit, _)| !was_ready(exit)).count(),
        cause,
        cause_percent: count * 100 / failures.len(),
        histogram: ends.into_iter().map(|(end, count)| EndCount { end, count }).collect(),
    })
}

/// The most frequent first; among equals, the one that came first.
fn counted<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<(T, usize)> {
    let mut counts: Vec<(T, usize)> = Vec::new();
    for item in items {
        match counts.iter_mut().find(|(known, _)| *known == item) {
            Some((_, count)) => *count += 1,
            None => counts.push((item, 1)),
        }
    }
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// Of an even number, the lower one of the two in the middle.
fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    let middle = values.len().checked_sub(1)? / 2;
    values.get(middle).copied()
}

fn end_words(end: &End) -> String {
    match end {
        End::Exited { code } => format!("exit code {code}"),
        End::Signaled { signal } => signal_name(*signal),
        End::LaunchFailed { .. } => "not executed".to_owned(),
        End::NeverLaunched => "never launched".to_owned(),
        End::BridgeLost => "bridge lost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::own::diagnose_exit;
    use crate::evidence::Evidence;
    use crate::id::Generation;
    use crate::record::Circumstances;
    use crate::session::phase::Phase;

    fn exit(at_s: u64, end: End, cause: Option<Cause>, uptime_s: Option<u64>) -> ExitRecord {
        let evidence = Evidence { uptime_ms: uptime_s.map(|s| s * 1_000), ..Evidence::bare(end) };
        let circumstances = Circumstances { ready_after_ms: uptime_s, ..Circumstances::default() };
        ExitRecord {
            session: "a/k".parse().unwrap(),
            generation: Generation(at_s),
            at: Wall(at_s * 1_000),
            phase: Phase::Awake,
            cause,
            message_in_flight: None,
            diagnosis: diagnose_exit(&evidence, &circumstances),
            evidence,
            circumstances,
        }
    }

    fn killed(at_s: u64, uptime_s: u64) -> ExitRecord {
        exit(at_s, End::Signaled { signal: 9 }, Some(Cause::OomLimit), Some(uptime_s))
    }

    fn idle(at_s: u64) -> ExitRecord {
        exit(at_s, End::Exited { code: 0 }, None, Some(3_600))
    }

    #[test]
    fn a_loop_has_a_period_and_an_uptime_and_they_differ() {
        let lives = [killed(150, 28), killed(100, 28), killed(50, 27), killed(0, 400)];
        let found = statistics(&lives).unwrap();
        assert_eq!((found.period_ms, found.uptime_ms), (50_000, Some(28_000)));
        assert_eq!((found.failures, found.before_ready), (4, 0));
        assert_eq!((found.cause, found.cause_percent), (Cause::OomLimit, 100));
        assert_eq!(found.histogram, [EndCount { end: "SIGKILL".to_owned(), count: 4 }]);
        assert_eq!(found.since, Wall(0));
    }

    #[test]
    fn fewer_than_two_failures_are_no_loop_however_many_ends_there_are() {
        assert_eq!(statistics(&[]), None);
        assert_eq!(statistics(&[idle(9), killed(5, 1), idle(3)]), None);
    }

    #[test]
    fn wanted_ends_are_counted_and_not_compared() {
        let mixed = [
            exit(90, End::Exited { code: 1 }, Some(Cause::AppExit), None),
            idle(80),
            killed(60, 10),
            exit(30, End::Exited { code: 1 }, Some(Cause::AppExit), None),
        ];
        let found = statistics(&mixed).unwrap();
        assert_eq!((found.ends, found.failures, found.before_ready), (4, 3, 2));
        assert_eq!((found.period_ms, found.uptime_ms), (30_000, Some(10_000)));
        assert_eq!((found.cause, found.cause_percent), (Cause::AppExit, 66));
        let words: Vec<_> = found.histogram.iter().map(|end| (&*end.end, end.count)).collect();
        assert_eq!(words, [("exit code 1", 2), ("SIGKILL", 1)]);
    }

    #[test]
    fn a_clock_that_was_set_back_gives_no_negative_period() {
        assert_eq!(statistics(&[killed(10, 1), killed(50, 1)]).unwrap().period_ms, 0);
    }
}

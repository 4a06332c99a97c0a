//! Counts of tests, read from what the test runners print.
//!
//! Owner: `ci`. Invariants: what a runner leaves out by filter is not "skipped", what it was told
//! to ignore is; a test that timed out failed. Absent: names of tests; the runners print them.

use std::fmt;
use std::ops::AddAssign;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

/// The closing line of a run; readers of logs rely on its form.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    Nextest,
    CargoTest,
    Unittest,
}

/// Listens to one runner.
#[derive(Debug)]
pub(crate) struct Counter {
    runner: Runner,
    tally: Tally,
    summaries: usize,
    /// Of Python's `Ran N tests`; its next line says how they ended.
    ran: u64,
}

impl Counter {
    pub(crate) fn new(runner: Runner) -> Counter {
        Counter { runner, tally: Tally::default(), summaries: 0, ran: 0 }
    }

    pub(crate) fn line(&mut self, line: &str) {
        let found = match self.runner {
            Runner::Nextest => nextest(line),
            Runner::CargoTest => cargo_test(line),
            Runner::Unittest => self.unittest(line),
        };
        if let Some(tally) = found {
            self.tally += tally;
            self.summaries += 1;
        }
    }

    /// None when the runner printed no summary, so that nothing is known.
    pub(crate) fn tally(&self) -> Option<Tally> {
        (self.summaries > 0).then_some(self.tally)
    }

    fn unittest(&mut self, line: &str) -> Option<Tally> {
        if let Some(rest) = line.strip_prefix("Ran ") {
            self.ran = rest.split(' ').next()?.parse().ok()?;
            return None;
        }
        let (verdict, details) = line.split_once(" (").unwrap_or((line, ""));
        if !matches!(verdict, "OK" | "FAILED") {
            return None;
        }
        let count = |wanted: &str| -> u64 {
            let entries = details.trim_end_matches(')').split(", ");
            let named = entries.filter_map(|entry| entry.split_once('='));
            named
                .filter(|(name, _)| *name == wanted)
                .filter_map(|(_, n)| n.parse::<u64>().ok())
                .sum()
        };
        let failed = count("failures") + count("errors") + count("unexpected successes");
        let skipped = count("skipped");
        // A failing sub-test counts on top of `Ran`.
        let passed = self.ran.saturating_sub(failed + skipped);
        Some(Tally { passed, failed, skipped })
    }
}

/// `Summary [ 1.2s] 9/12 tests run: 5 passed (1 slow), 2 failed, 1 exec failed, 1 timed out, 3
/// skipped`
fn nextest(line: &str) -> Option<Tally> {
    let (_, counts) = line.trim_start().strip_prefix("Summary [")?.split_once(" run: ")?;
    let mut tally = Tally::default();
    for (count, what) in without_parentheses(counts).split(',').filter_map(counted) {
        match what {
            "passed" => tally.passed += count,
            "failed" | "exec failed" | "timed out" => tally.failed += count,
            "skipped" => tally.skipped += count,
            _ => {}
        }
    }
    Some(tally)
}

/// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0s`
fn cargo_test(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut tally = Tally::default();
    for (count, what) in counts.split(';').filter_map(counted) {
        match what {
            "passed" => tally.passed += count,
            "failed" => tally.failed += count,
            "ignored" => tally.skipped += count,
            _ => {}
        }
    }
    Some(tally)
}

fn counted(entry: &str) -> Option<(u64, &str)> {
    let (count, what) = entry.trim().split_once(' ')?;
    Some((count.parse().ok()?, what.trim()))
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0;
    let is_outside = |c: &char| {
        depth += i32::from(*c == '(');
        let outside = depth == 0;
        depth -= i32::from(*c == ')');
        outside
    };
    text.chars().filter(is_outside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(runner: Runner, lines: &str) -> Option<(u64, u64, u64)> {
        let mut counter = Counter::new(runner);
        lines.lines().for_each(|line| counter.line(line));
        counter.tally().map(|tally| (tally.passed, tally.failed, tally.skipped))
    }

    #[test]
    fn the_summary_of_nextest_is_read() {
        let read = |line: &str| read(Runner::Nextest, line);
        let clean = "     Summary [   0.527s] 46 tests run: 46 passed, 0 skipped";
        assert_eq!(read(clean), Some((46, 0, 0)));
        let one = "     Summary [   0.007s] 1 test run: 1 passed, 2 skipped";
        assert_eq!(read(one), Some((1, 0, 2)));
        let bad = "     Summary [   9.000s] 9/12 tests run: 5 passed (1 slow, 1 flaky), 2 failed \
            (1 due to being leaky), 1 exec failed, 1 timed out, 3 skipped";
        assert_eq!(read(bad), Some((5, 4, 3)));
        assert_eq!(read("        PASS [   0.006s] (1/1) a 1 test run: 1 passed"), None);
    }

    #[test]
    fn the_summaries_of_cargo_test_are_added_up() {
        let lines = "running 3 tests\n\
            test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; \
            finished in 0.14s\n\
            test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
            finished in 0.00s\n";
        assert_eq!(read(Runner::CargoTest, lines), Some((6, 1, 1)));
    }

    #[test]
    fn the_verdict_of_python_is_read() {
        let read = |lines: &str| read(Runner::Unittest, lines);
        assert_eq!(read("....\nRan 38 tests in 5.365s\n\nOK\n"), Some((38, 0, 0)));
        assert_eq!(read("Ran 3 tests in 0.1s\n\nOK (skipped=1)\n"), Some((2, 0, 1)));
        let bad = "Ran 9 tests in 0.1s\n\nFAILED (failures=1, errors=2, skipped=3)\n";
        assert_eq!(read(bad), Some((3, 3, 3)));
        let surprise = "Ran 2 tests in 0.1s\n\nFAILED (unexpected successes=1)\n";
        assert_eq!(read(surprise), Some((1, 1, 0)));
    }

    #[test]
    fn a_runner_that_says_nothing_has_no_tally() {
        assert_eq!(read(Runner::Nextest, "error: could not compile"), None);
        assert_eq!(read(Runner::CargoTest, "error: could not compile"), None);
        assert_eq!(read(Runner::Unittest, "Ran 3 tests in 0.1s"), None);
    }

    #[test]
    fn the_closing_line_has_its_exact_form() {
        let mut sum = Tally { passed: 1, failed: 2, skipped: 3 };
        sum += Tally { passed: 10, failed: 0, skipped: 0 };
        assert_eq!(sum.to_string(), "11 passed, 2 failed, 3 skipped");
    }
}

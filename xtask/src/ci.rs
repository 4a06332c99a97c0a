//! `cargo xtask ci`: everything a change must pass, in order, with one closing line of counts.
//!
//! Owner: the table `STEPS`. Invariants: it stops at the first step that fails and says what to
//! do; a step whose package or target is missing fails; the last line printed is always
//! `N passed, N failed, N skipped`; the exit code is 0 only if nothing failed.
//! Absent: what only some machines can do (containers, benchmarks).

mod steps;
mod tally;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::{CommandResult, UsageError, terminal, with_sources};
use steps::{STEPS, Step};
use tally::Tally;

pub(crate) fn command(arguments: &[String]) -> CommandResult {
    let steps = chosen(arguments)?;
    let mut tally = Tally::default();
    let mut report = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        terminal::say(&format!("\n=== {}: {}", step.name, step.purpose));
        let started = Instant::now();
        let failed_before = tally.failed;
        let result = (step.run)(&mut tally);
        let elapsed = started.elapsed();
        report.push(report_line(step, elapsed, result.is_ok()));
        if let Err(error) = result {
            // A step that could not count its failures is one failure.
            tally.failed = tally.failed.max(failed_before + 1);
            terminal::complain(&with_sources(&error));
            terminal::complain(&format!("what to do: {}", step.remedy));
            report
                .extend(steps[index + 1..].iter().map(|step| format!("{:<9} not run", step.name)));
            break;
        }
        terminal::say(&format!("=== {}: ok, {}", step.name, seconds(elapsed)));
    }
    terminal::say(&format!("\n{}\n{tally}", report.join("\n")));
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All steps, or the named ones in the order of the table.
fn chosen(names: &[String]) -> Result<Vec<&'static Step>, UsageError> {
    if let Some(unknown) = names.iter().find(|name| !STEPS.iter().any(|step| step.name == **name)) {
        let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        let problem = format!("there is no step {unknown:?}, only {}", known.join(" "));
        return Err(UsageError::new("ci", problem));
    }
    let is_chosen = |step: &&Step| names.is_empty() || names.iter().any(|name| name == step.name);
    Ok(STEPS.iter().filter(is_chosen).collect())
}

fn report_line(step: &Step, elapsed: Duration, passed: bool) -> String {
    let word = if passed { "ok" } else { "FAILED" };
    format!("{:<9} {word:<6} {:>8}", step.name, seconds(elapsed))
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Result<Vec<&'static str>, String> {
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let steps = chosen(&words).map_err(|error| error.to_string())?;
        Ok(steps.into_iter().map(|step| step.name).collect())
    }

    #[test]
    fn all_steps_run_unless_some_are_named() {
        assert_eq!(names(&[]).expect("the table").len(), STEPS.len());
        assert_eq!(names(&["tidy", "fmt"]), Ok(vec!["fmt", "tidy"]), "in the order of the table");
    }

    #[test]
    fn an_unknown_step_is_refused_with_the_known_ones() {
        let error = names(&["lint"]).expect_err("there is no such step");
        assert!(error.contains("\"lint\"") && error.contains("fmt clippy tidy"), "{error}");
    }

    #[test]
    fn every_step_says_what_to_do_when_it_fails() {
        for step in STEPS {
            assert!(!step.remedy.is_empty() && !step.purpose.is_empty(), "{}", step.name);
            assert!(step.name.len() <= 9, "{}: the report is aligned for 9", step.name);
        }
    }
}

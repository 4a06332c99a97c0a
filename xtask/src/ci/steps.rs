//! The steps of `cargo xtask ci`: what each runs, how long it may take, what to do when it fails.
//!
//! Owner: the table `STEPS`; commands that other crates answer for stand beside it as constants.
//! Invariants: a command that succeeds without having run a test is a failure; what this machine
//! cannot run is counted as skipped, with the reason printed. Absent: the loop over the steps.

use std::io::IsTerminal;
use std::process::ExitStatus;
use std::time::Duration;

use super::tally::{Counter, Runner, Tally};
use crate::fuzz::{self, FuzzError, Fuzzer};
use crate::process::{CommandLine, RunError};
use crate::provision::{ProvisionError, provision};
use crate::tidy::{TidyError, check_tree};
use crate::toolchain::{TestTarget, ToolchainError, cargo, has_npm, is_there, test_targets};
use crate::{root, terminal};

pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) purpose: &'static str,
    pub(super) remedy: &'static str,
    pub(super) run: fn(&mut Tally) -> Result<(), StepError>,
}

/// The simulator: this many worlds, drawn by as many seeds.
const SIMULATOR: &[&str] = &[
    "run",
    "--locked",
    "--package",
    "dormouse-sim",
    "--bin",
    "sim",
    "--",
    "run",
    "--seeds",
    "2000",
];

/// Integration tests with this prefix run in the chaos step, against the real binary.
const CHAOS_PREFIX: &str = "chaos_";
const CHAOS_SECONDS: (&str, &str) = ("DORMOUSE_CHAOS_SECONDS", "30");

/// Integration tests with this prefix need what `cargo xtask provision` brings by npm.
const OPENCLAW_PREFIX: &str = "e2e_openclaw";

const PYTHON_TESTS: [&str; 2] = ["examples/python", "examples/openclaw"];
/// What promtool is asked.
const ALERTS: [[&str; 3]; 2] = [
    ["check", "rules", "docs/alerts/dormouse.rules.yml"],
    ["test", "rules", "docs/alerts/dormouse.rules.test.yml"],
];
const FUZZ_SECONDS_PER_TARGET: u64 = 15;

const LIMIT_CHECK: Duration = Duration::from_secs(900);
const LIMIT_TEST: Duration = Duration::from_secs(1_500);

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "tools",
        purpose: "what the other steps need",
        remedy: "rustup component add rustfmt clippy",
        run: check_tools,
    },
    Step {
        name: "fmt",
        purpose: "one layout",
        remedy: "cargo fmt --all (and cargo fmt --manifest-path fuzz/Cargo.toml)",
        run: check_format,
    },
    Step {
        name: "clippy",
        purpose: "no warning in any target",
        remedy: "correct what clippy names; an exception is #[expect(lint, reason = \"…\")]",
        run: check_lints,
    },
    Step {
        name: "tidy",
        purpose: "the rules of the tree",
        remedy: "correct the lines above; `cargo xtask tidy` checks again",
        run: check_tidy,
    },
    Step {
        name: "provision",
        purpose: "the real OpenClaw and the official clients, for the tests",
        remedy: "read the message above; `cargo xtask provision all` tries again",
        run: install_agents,
    },
    Step {
        name: "test",
        purpose: "unit, integration and end-to-end tests",
        remedy: "run the failing test alone: cargo nextest run -p CRATE NAME",
        run: run_tests,
    },
    Step {
        name: "doctest",
        purpose: "examples in the documentation",
        remedy: "cargo test --workspace --doc",
        run: run_doc_tests,
    },
    Step {
        name: "python",
        purpose: "the examples' own tests",
        remedy: "python3 -m unittest discover examples/python",
        run: run_python_tests,
    },
    Step {
        name: "alerts",
        purpose: "the alert rules, and what they say when",
        remedy: "promtool test rules docs/alerts/dormouse.rules.test.yml",
        run: check_alerts,
    },
    Step {
        name: "sim",
        purpose: "the core in many worlds full of faults",
        remedy: "the seed above replays it; see the simulator's --help",
        run: run_simulator,
    },
    Step {
        name: "fuzz",
        purpose: "what arrives from outside, for a short time",
        remedy: "replay the input named above, correct the code, add the input as a test",
        run: run_fuzz,
    },
    Step {
        name: "chaos",
        purpose: "the real binary under kill -9 and faults, for a short time",
        remedy: "run the failing test alone: cargo nextest run -p CRATE NAME",
        run: run_chaos,
    },
];

#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error("{missing} is missing")]
    ToolMissing { missing: &'static str },
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("`{command}` failed with {status}")]
    Failed { command: String, status: ExitStatus },
    #[error("`{command}` printed no summary of tests: nothing is known")]
    NotCounted { command: String },
    #[error("`{command}` ran no test: they are gone, or no longer found")]
    NothingRan { command: String },
    #[error("the tree cannot be checked")]
    Tidy(#[source] TidyError),
    #[error("the tree is not tidy: {violations} to put right")]
    Untidy { violations: usize },
    #[error("what the tests talk to cannot be installed")]
    Provision(#[source] ProvisionError),
    #[error("the tests of the workspace cannot be listed")]
    Targets(#[source] ToolchainError),
    #[error("no integration test is named {prefix}…")]
    NoTarget { prefix: &'static str },
    #[error("fuzzing failed")]
    Fuzz(#[source] FuzzError),
}

fn check_tools(_: &mut Tally) -> Result<(), StepError> {
    let tools = [("fmt", "rustfmt"), ("clippy", "clippy")];
    for (subcommand, missing) in tools {
        if !is_there("cargo", &[subcommand, "--version"]) {
            return Err(StepError::ToolMissing { missing });
        }
    }
    if !is_there("python3", &["--version"]) {
        return Err(StepError::ToolMissing { missing: "python3" });
    }
    if !has_nextest() {
        terminal::say("cargo-nextest is not there: `cargo test` takes its place, slower");
    }
    Ok(())
}

fn check_format(_: &mut Tally) -> Result<(), StepError> {
    expect_success(&cargo(&["fmt", "--all", "--check"]))?;
    // A manifest without targets has nothing to format; the fuzz step reports that it is so.
    if fuzz::targets().map_err(StepError::Fuzz)?.is_empty() {
        return Ok(());
    }
    expect_success(&cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
}

fn check_lints(_: &mut Tally) -> Result<(), StepError> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    expect_success(&cargo(&arguments).limit(LIMIT_CHECK))
}

fn check_tidy(_: &mut Tally) -> Result<(), StepError> {
    let violations = check_tree(&root()).map_err(StepError::Tidy)?;
    violations.iter().for_each(|violation| terminal::say(&violation.to_string()));
    match violations.len() {
        0 => Ok(()),
        violations => Err(StepError::Untidy { violations }),
    }
}

fn install_agents(tally: &mut Tally) -> Result<(), StepError> {
    let parts = if has_npm() { "all" } else { "openai-client" };
    if parts != "all" {
        terminal::say("npm is not there: the end-to-end test with a real OpenClaw is skipped");
        tally.skipped += 1;
    }
    provision(&[parts.to_string()]).map_err(StepError::Provision)
}

fn run_tests(tally: &mut Tally) -> Result<(), StepError> {
    let targets = test_targets().map_err(StepError::Targets)?;
    let (left_out, chosen) = split_targets(targets, has_npm());
    if has_nextest() {
        let filter = nextest_filter(&left_out);
        let arguments = ["nextest", "run", "--workspace", "--locked", "--profile", "ci"];
        let command = cargo(&[&arguments[..], &["--filterset", &filter]].concat());
        return count(&command, Runner::Nextest, Least::One, tally);
    }
    let arguments = ["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins"];
    let units = count(&cargo(&arguments), Runner::CargoTest, Least::One, tally);
    if chosen.is_empty() {
        return units;
    }
    // One run shows everything that is wrong.
    let integration = count(&one_at_a_time(&chosen), Runner::CargoTest, Least::One, tally);
    units.and(integration)
}

fn run_doc_tests(tally: &mut Tally) -> Result<(), StepError> {
    let command = cargo(&["test", "--workspace", "--locked", "--no-fail-fast", "--doc"]);
    count(&command, Runner::CargoTest, Least::None, tally)
}

fn run_python_tests(tally: &mut Tally) -> Result<(), StepError> {
    for folder in PYTHON_TESTS {
        let arguments = ["-m", "unittest", "discover", folder];
        let command = CommandLine::new("python3", &arguments, root());
        let command = command.env("PYTHONDONTWRITEBYTECODE", "1");
        count(&command, Runner::Unittest, Least::One, tally)?;
    }
    Ok(())
}

fn check_alerts(tally: &mut Tally) -> Result<(), StepError> {
    if !is_there("promtool", &["--version"]) {
        terminal::say("promtool is not there (Debian: prometheus): the alert rules are skipped");
        tally.skipped += 1;
        return Ok(());
    }
    for arguments in ALERTS {
        expect_success(&CommandLine::new("promtool", &arguments, root()))?;
        tally.passed += 1;
    }
    Ok(())
}

fn run_simulator(tally: &mut Tally) -> Result<(), StepError> {
    expect_success(&cargo(SIMULATOR).limit(LIMIT_CHECK))?;
    tally.passed += 1;
    Ok(())
}

fn run_fuzz(tally: &mut Tally) -> Result<(), StepError> {
    let fuzzer = Fuzzer::build().map_err(StepError::Fuzz)?;
    for target in &fuzzer.targets {
        fuzzer.fuzz(target, FUZZ_SECONDS_PER_TARGET).map_err(StepError::Fuzz)?;
        tally.passed += 1;
    }
    Ok(())
}

fn run_chaos(tally: &mut Tally) -> Result<(), StepError> {
    let targets = test_targets().map_err(StepError::Targets)?;
    let chosen: Vec<TestTarget> =
        targets.into_iter().filter(|target| target.name.starts_with(CHAOS_PREFIX)).collect();
    if chosen.is_empty() {
        return Err(StepError::NoTarget { prefix: CHAOS_PREFIX });
    }
    let (name, value) = CHAOS_SECONDS;
    count(&one_at_a_time(&chosen).env(name, value), Runner::CargoTest, Least::One, tally)
}

fn has_nextest() -> bool {
    is_there("cargo", &["nextest", "--version"])
}

/// Integration tests that the test step leaves out, and those that it runs.
fn split_targets(targets: Vec<TestTarget>, has_npm: bool) -> (Vec<TestTarget>, Vec<TestTarget>) {
    targets.into_iter().partition(|target| {
        let needs_npm = target.name.starts_with(OPENCLAW_PREFIX);
        target.name.starts_with(CHAOS_PREFIX) || (needs_npm && !has_npm)
    })
}

/// Only of binaries that exist: nextest refuses a filter that matches nothing.
fn nextest_filter(left_out: &[TestTarget]) -> String {
    let exceptions = left_out.iter().map(|target| format!(" and not binary(={})", target.name));
    exceptions.fold("all()".to_string(), |filter, exception| filter + &exception)
}

/// Tests that measure time or count processes, without neighbours.
fn one_at_a_time(targets: &[TestTarget]) -> CommandLine {
    let mut command = cargo(&["test", "--locked", "--no-fail-fast"]);
    for TestTarget { package, name } in targets {
        command.arguments.extend(["--package", package, "--test", name].map(str::to_string));
    }
    command.arguments.extend(["--", "--test-threads=1"].map(str::to_string));
    command
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Least {
    None,
    One,
}

/// Runs tests and adds their counts, also when some failed.
fn count(
    command: &CommandLine,
    runner: Runner,
    least: Least,
    tally: &mut Tally,
) -> Result<(), StepError> {
    let mut counter = Counter::new(runner);
    let status = colored(command).limit(LIMIT_TEST).run(&mut |line| counter.line(line))?;
    let command = command.to_string();
    let counted = counter.tally();
    *tally += counted.unwrap_or_default();
    match counted {
        _ if !status.success() => Err(StepError::Failed { command, status }),
        None => Err(StepError::NotCounted { command }),
        Some(Tally { passed: 0, .. }) if least == Least::One => {
            Err(StepError::NothingRan { command })
        }
        Some(_) => Ok(()),
    }
}

fn expect_success(command: &CommandLine) -> Result<(), StepError> {
    let status = colored(command).run(&mut |_| ())?;
    if status.success() {
        return Ok(());
    }
    Err(StepError::Failed { command: command.to_string(), status })
}

/// Children write into a pipe; cargo and nextest keep their colours if the reader is a terminal.
fn colored(command: &CommandLine) -> CommandLine {
    let command = command.clone();
    if std::io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always")
    } else {
        command
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn target(name: &str) -> TestTarget {
        TestTarget { package: "dormouse".to_string(), name: name.to_string() }
    }

    fn counted(script: &str, least: Least) -> (Tally, Result<(), String>) {
        let command = CommandLine::new("sh", &["-c", script], PathBuf::from("."));
        let mut tally = Tally::default();
        let result = count(&command, Runner::CargoTest, least, &mut tally);
        (tally, result.map_err(|error| error.to_string()))
    }

    const PASSED: &str = "echo 'test result: ok. 2 passed; 0 failed; 1 ignored; done'";
    const FAILED: &str = "echo 'test result: FAILED. 2 passed; 3 failed; 0 ignored; done'";
    const EMPTY: &str = "echo 'test result: ok. 0 passed; 0 failed; 0 ignored; done'";

    #[test]
    fn counts_of_a_run_are_added() {
        let (tally, result) = counted(PASSED, Least::One);
        assert_eq!((tally, result), (Tally { passed: 2, failed: 0, skipped: 1 }, Ok(())));
    }

    #[test]
    fn counts_of_a_failed_run_are_added_too() {
        let (tally, result) = counted(&format!("{FAILED}; exit 101"), Least::One);
        assert_eq!(tally, Tally { passed: 2, failed: 3, skipped: 0 });
        assert!(result.expect_err("it failed").contains("failed with exit status: 101"));
    }

    #[test]
    fn a_run_without_tests_or_without_a_summary_is_a_failure() {
        let (_, nothing) = counted(EMPTY, Least::One);
        assert!(nothing.expect_err("no test ran").contains("ran no test"));
        let (_, silent) = counted("true", Least::None);
        assert!(silent.expect_err("nothing is known").contains("no summary"));
        assert_eq!(counted(EMPTY, Least::None).1, Ok(()), "no example is no failure");
    }

    #[test]
    fn chaos_has_its_own_step_and_openclaw_needs_npm() {
        let all = || ["e2e_http", "chaos_kill", "e2e_openclaw_turn"].map(target).to_vec();
        let (left_out, chosen) = split_targets(all(), true);
        assert_eq!(left_out, [target("chaos_kill")]);
        assert_eq!(chosen, [target("e2e_http"), target("e2e_openclaw_turn")]);
        let (left_out, chosen) = split_targets(all(), false);
        assert_eq!(left_out, [target("chaos_kill"), target("e2e_openclaw_turn")]);
        assert_eq!(chosen, [target("e2e_http")]);
    }

    #[test]
    fn the_filter_names_what_is_left_out() {
        assert_eq!(nextest_filter(&[]), "all()");
        let filter = nextest_filter(&[target("chaos_a"), target("chaos_b")]);
        assert_eq!(filter, "all() and not binary(=chaos_a) and not binary(=chaos_b)");
    }

    #[test]
    fn exclusive_tests_run_one_at_a_time() {
        let command = one_at_a_time(&[target("chaos_a")]).arguments.join(" ");
        let expected =
            "test --locked --no-fail-fast --package dormouse --test chaos_a -- --test-threads=1";
        assert_eq!(command, expected);
    }
}

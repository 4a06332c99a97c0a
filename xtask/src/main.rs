//! `cargo xtask`: the project's chores, in Rust and without shell scripts.
//!
//! Owner: the table `COMMANDS` below; a new chore is one more row and one more file.
//! Invariants: a chore that failed exits with 1 and says what to do, wrong usage exits with 2.
//! Absent: anything that ships in a release.

mod bench;
mod chaos;
mod ci;
mod elf;
mod fuzz;
mod process;
mod provision;
mod static_bridge;
mod terminal;
mod tidy;
mod toolchain;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use provision::ProvisionError;

type CommandResult = Result<ExitCode, Box<dyn Error>>;

struct Command {
    name: &'static str,
    usage: &'static str,
    summary: &'static str,
    run: fn(&[String]) -> CommandResult,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "ci",
        usage: "ci [STEP…]",
        summary: "everything a change must pass, in order (or only the named steps)",
        run: ci::command,
    },
    Command {
        name: "tidy",
        usage: "tidy",
        summary: "the rules of the tree: sizes, layers, leftovers, pages, links",
        run: tidy::command,
    },
    Command {
        name: "provision",
        usage: "provision [all|openclaw|openai-client|openclaw-newest|openclaw-2026.2|clawdbot]…",
        summary: "install the real programs that end-to-end tests talk to, under target/",
        run: provision_parts,
    },
    Command {
        name: "fuzz",
        usage: "fuzz [--seconds N] [TARGET [INPUT…]]",
        summary: "fuzz every target (or one), or replay inputs on one",
        run: fuzz::command,
    },
    Command {
        name: "bridge",
        usage: "bridge",
        summary: "build the static dormouse-bridge and prove that it is static",
        run: static_bridge::command,
    },
    Command {
        name: "chaos",
        usage: "chaos [--kills N] [--seed S]",
        summary: "kill the real program under load, N times (1000), and check what is left",
        run: chaos::command,
    },
    Command {
        name: "bench",
        usage: "bench [--short] [--build] [--program PATH] [--patience SECONDS] \
                [--clients N]… [NAME…]",
        summary: "figures of the real program beside the machine's own (docs/bench.md)",
        run: bench::command,
    },
];

const EXIT_USAGE: u8 = 2;

/// A wrong command line; its text ends with the usage of the command.
#[derive(Debug, thiserror::Error)]
#[error("{problem}\nusage: cargo xtask {usage}")]
pub(crate) struct UsageError {
    problem: String,
    usage: &'static str,
}

impl UsageError {
    /// `command` is the command's name in the table.
    pub(crate) fn new(command: &str, problem: impl Into<String>) -> UsageError {
        let usage = COMMANDS.iter().find(|row| row.name == command).map_or("", |row| row.usage);
        UsageError { problem: problem.into(), usage }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = arguments.split_first() else {
        terminal::complain(&overview());
        return ExitCode::from(EXIT_USAGE);
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        terminal::say(&overview());
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        terminal::complain(&format!("there is no chore {name:?}\n{}", overview()));
        return ExitCode::from(EXIT_USAGE);
    };
    if rest.iter().any(|argument| argument == "--help" || argument == "-h") {
        terminal::say(&format!("usage: cargo xtask {}\n{}", command.usage, command.summary));
        return ExitCode::SUCCESS;
    }
    match (command.run)(rest) {
        Ok(code) => code,
        Err(error) => {
            terminal::complain(&with_sources(error.as_ref()));
            let wrong_usage = error.is::<UsageError>();
            if wrong_usage { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn provision_parts(arguments: &[String]) -> CommandResult {
    match provision::provision(arguments) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ ProvisionError::UnknownPart(_)) => {
            Err(UsageError::new("provision", error.to_string()).into())
        }
        Err(error) => Err(error.into()),
    }
}

fn overview() -> String {
    let width = COMMANDS.iter().map(|command| command.usage.chars().count()).max().unwrap_or(0);
    let mut text = String::from("usage: cargo xtask CHORE\n");
    for Command { usage, summary, .. } in COMMANDS {
        text.push_str(&format!("\n  {usage:width$}  {summary}"));
    }
    text
}

/// An error and what it came from, outermost first, one line each.
pub(crate) fn with_sources(error: &dyn Error) -> String {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!("\n  because: {inner}"));
        source = inner.source();
    }
    text
}

/// The root of the work tree: the folder above this crate.
pub(crate) fn root() -> PathBuf {
    // Cargo sets this for `cargo run` and `cargo test`; the compiled-in path serves a bare start.
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest_dir.parent().expect("xtask is a folder of the workspace").to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_usage_that_starts_with_its_name() {
        for command in COMMANDS {
            assert!(command.usage.split(' ').next() == Some(command.name), "{}", command.usage);
            assert!(!command.summary.is_empty());
            assert!(overview().contains(command.usage));
        }
    }

    #[test]
    fn a_usage_error_shows_the_usage_of_its_command() {
        let error = UsageError::new("fuzz", "no such target");
        assert_eq!(
            error.to_string(),
            "no such target\nusage: cargo xtask fuzz [--seconds N] [TARGET [INPUT…]]"
        );
    }

    #[test]
    fn an_error_is_printed_with_every_source_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::num::ParseIntError);
        let error = Outer("x".parse::<u8>().expect_err("not a number"));
        assert_eq!(with_sources(&error), "error: outer\n  because: invalid digit found in string");
    }
}

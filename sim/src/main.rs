//! The proof of Dormouse: the core, unchanged, in a world we own, with faults in it and a judge
//! beside it.
//!
//! ```text
//!  sim run --seeds 2000     one world per seed: rough, then healed; each invariant at each step
//!  sim replay 1234          the same world again, step by step, in words
//! ```
//!
//! Read in this order: `world` (the parts and the agenda) → `engine`, `commit`, `recovery`, `hub`,
//! `driver`, `bridge`, `agent`, `clients`, `revisions`, `store` (the parts) → `fault` and `swarm`
//! (what goes wrong) → `checker` (what must hold all the same) → `sabotage` (that the checker
//! bites) → `run` and `replay` (the commands).
//! Owner: this crate is never part of a release binary. Absent: IO of the daemon; its own tests
//! have that.

mod agent;
mod bridge;
mod checker;
mod clients;
mod commit;
mod driver;
mod engine;
mod fault;
mod files;
mod hub;
mod prng;
mod recovery;
mod replay;
mod revisions;
mod run;
mod sabotage;
mod store;
mod swarm;
mod terminal;
#[cfg(test)]
mod tests;
mod trace;
mod violation;
mod world;

use std::process::ExitCode;

const USAGE: &str = "usage:
  sim run [--seeds N] [--first N] [--jobs N]
      one world per seed; exit 1 and a journal under target/sim if an invariant breaks
  sim replay SEED|FILE [--from STEP] [--to STEP] [--session AGENT/KEY] [--sabotage NAME]
      what happened in one of them, step by step";

const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((name, rest)) if name == "run" => run::command(rest),
        Some((name, rest)) if name == "replay" => replay::command(rest),
        Some((name, _)) if name == "help" || name == "--help" => {
            terminal::say(USAGE);
            return ExitCode::SUCCESS;
        }
        Some((name, _)) => Err(format!("there is no command {name:?}")),
        None => Err("a command is missing".to_owned()),
    };
    match result {
        Ok(code) => code,
        Err(problem) => {
            terminal::complain(&format!("{problem}\n{USAGE}"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

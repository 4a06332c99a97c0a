//! Dormouse: the control plane that keeps AI agents answering.
//!
//! Read on in this order: `cli` (commands) → `run` (the daemon from first line to last) → `engine`
//! (the one loop) → `dormouse_core::supervisor` → `dormouse_core::session`. Beside them: `api`
//! (HTTP), `hub` (who waits for what), `foreign` (why something ended that Dormouse does not run),
//! `config` with `in_force`, `agents`, `secrets`, `keys`, `gate`, `outcomes` with
//! `metrics` and `notify`, `machine`, `server`.
//!
//! Owner: the process. Invariant: a bridge is this same program, and nothing of the daemon is set
//! up for it. Absent: an interface for other crates; this library exists for its program.

mod agents;
mod api;
mod cli;
mod config;
mod doctor;
mod engine;
pub(crate) mod files;
mod foreign;
mod gate;
mod handover;
mod hub;
mod in_force;
mod keys;
mod machine;
mod metrics;
mod notify;
mod outcomes;
mod random;
mod reload;
mod report;
mod revisions;
mod run;
mod secrets;
mod server;

use std::process::ExitCode;

/// The program.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "bridge") {
        // Before anything else: a bridge lies on the way of every wake, and stays small.
        return match (arguments.next(), arguments.next()) {
            (Some(folder), None) => dormouse_bridge::run(folder.into()),
            _other => ExitCode::from(dormouse_bridge::EXIT_USAGE),
        };
    }
    cli::main()
}

//! The supervisor beside every agent, and the frames it speaks with the daemon.
//!
//! Read in this order: `frames` (what is said) and `rundir` (what is left in files) are the two
//! contracts → `run` (start and loop) → `instance` with `launch` and `ending` (what happens when)
//! → `turn` with `reply` and `output_file`, `hold` (what the daemon has yet to hear) → `adapter`
//! (one file per kind of agent) → `files` (the workspace's) → `child`, `reaper`, `counters`, `oom`,
//! `kernel_log` (processes) → `link` (the line) → `framer`, `sse`, `utf8`, `template`, `log`,
//! `inherited` (bytes, texts, descriptors).
//!
//! Owner: one process per instance, started by a driver, ended by the daemon's `release`.
//! Invariants: the bridge outlives the daemon and the agent never outlives the bridge; one loop
//! owns all state; nothing is buffered without a bound.
//! Absent: decisions about restarts, retries and messages; secrets other than the agent's own.

mod adapter;
mod child;
mod counters;
mod ending;
pub mod files;
pub mod framer;
pub mod frames;
mod hold;
mod inherited;
mod instance;
mod kernel_log;
mod launch;
mod link;
mod log;
mod oom;
mod output_file;
mod reaper;
mod render;
mod reply;
mod run;
pub mod rundir;
pub mod sse;
mod template;
#[cfg(test)]
mod testing;
mod turn;
mod utf8;

pub use link::BRIDGE_PATH;
pub use log::{LINE_BYTES_MAX, LOG_FILE, LOG_FILE_BYTES_MAX, OLD_LOG_FILE, first_error};
pub use run::{EXIT_OVER, EXIT_RUN_FOLDER, EXIT_SYSTEM, EXIT_TAKEN, EXIT_USAGE, complain, run};

/// An error with all that is beneath it, for one line of log.
fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(beneath) = source {
        words.push_str(": ");
        words.push_str(&beneath.to_string());
        source = beneath.source();
    }
    words
}

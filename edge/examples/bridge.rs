//! A bridge as a program of its own, for the tests of the process driver: `bridge RUN_FOLDER`.
//!
//! Owner: those tests; cargo builds it along with them. Absent: anything that `dormouse bridge`
//! does not do.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(run_folder) => dormouse_bridge::run(run_folder.into()),
        None => ExitCode::from(dormouse_bridge::EXIT_USAGE),
    }
}

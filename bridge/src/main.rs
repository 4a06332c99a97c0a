//! The static binary: `dormouse-bridge RUN_FOLDER`.
//!
//! Owner: drivers execute it, one process per instance. Exit codes: 0 over (released, refused, or
//! nobody left to tell), 2 wrong usage, 3 the run folder is broken, 4 the run folder is another
//! bridge's, 5 the system refused. Absent: everything but the command line.

use std::process::ExitCode;

use dormouse_bridge::{EXIT_USAGE, complain, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(run_folder), None) => run(run_folder.into()),
        _ => {
            complain("usage: dormouse-bridge RUN_FOLDER");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

//! The one door to the terminal: whole lines to stdout and stderr.
//!
//! Invariant: a reader that went away (`cargo xtask ci | head`) ends the run with a code of its
//! own and no panic. Absent: colours, progress bars; children bring theirs.

use std::io::{self, Write};

/// What a shell shows for a process that died of SIGPIPE.
const EXIT_READER_GONE: i32 = 141;

pub(crate) fn say(line: &str) {
    write_bytes(&mut io::stdout().lock(), format!("{line}\n").as_bytes());
}

pub(crate) fn complain(line: &str) {
    write_bytes(&mut io::stderr().lock(), format!("{line}\n").as_bytes());
}

/// Passes on what a child wrote, unchanged.
pub(crate) fn pass_on_to_stdout(bytes: &[u8]) {
    write_bytes(&mut io::stdout().lock(), bytes);
}

pub(crate) fn pass_on_to_stderr(bytes: &[u8]) {
    write_bytes(&mut io::stderr().lock(), bytes);
}

fn write_bytes(target: &mut dyn Write, bytes: &[u8]) {
    if target.write_all(bytes).and_then(|()| target.flush()).is_err() {
        std::process::exit(EXIT_READER_GONE);
    }
}

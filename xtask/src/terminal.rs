//! The one door to the terminal: whole lines to stdout and stderr.
//!
//! Invariant: a reader that went away (`cargo xtask ci | head`) ends the run with a code of its
//! own and no panic. Absent: colours, progress bars; children bring theirs.

use std::io::{self, Write};

/// What a shell shows for a process that died of SIGPIPE.
#[cfg(not(test))]
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

#[cfg(not(test))]
fn write_bytes(target: &mut dyn Write, bytes: &[u8]) {
    if target.write_all(bytes).and_then(|()| target.flush()).is_err() {
        std::process::exit(EXIT_READER_GONE);
    }
}

/// Tests run children that print what test runners print; a runner above must not read it.
#[cfg(test)]
#[expect(clippy::print_stdout, reason = "the test harness captures this and nothing else")]
fn write_bytes(_: &mut dyn Write, bytes: &[u8]) {
    print!("{}", String::from_utf8_lossy(bytes));
}

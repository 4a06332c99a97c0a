//! The one door to the terminal: whole lines to stdout and stderr.
//!
//! Invariant: a reader that went away (`sim replay 7 | head`) ends the run with a code of its own
//! and no panic. Absent: colours.

use std::io::{self, IsTerminal, Write};

/// What a shell shows for a process that died of SIGPIPE.
const EXIT_READER_GONE: i32 = 141;

pub(crate) fn say(line: &str) {
    write_text(&mut io::stdout().lock(), &format!("{line}\n"));
}

pub(crate) fn complain(line: &str) {
    write_text(&mut io::stderr().lock(), &format!("{line}\n"));
}

/// A line that the next one replaces; only where somebody looks.
pub(crate) fn show_progress(line: &str) {
    if io::stderr().is_terminal() {
        write_text(&mut io::stderr().lock(), &format!("\r\x1b[K{line}"));
    }
}

pub(crate) fn end_progress() {
    show_progress("");
}

fn write_text(target: &mut dyn Write, text: &str) {
    if target.write_all(text.as_bytes()).and_then(|()| target.flush()).is_err() {
        std::process::exit(EXIT_READER_GONE);
    }
}

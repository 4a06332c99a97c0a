//! The one door to standard output and standard error.
//!
//! Owner: the command that runs. Invariants: no control character that came from an agent reaches a
//! terminal raw; colours only on a terminal and without NO_COLOR; a reader that went away is an
//! error value (`OutputError::ReaderGone`), never a panic. Absent: what is said (`render`,
//! `error`).

use std::borrow::Cow;
use std::fmt::Debug;
use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::scrub;

#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error("whoever read the output went away")]
    ReaderGone,
    #[error("standard output could not be written")]
    Write(#[source] io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::ReaderGone
        } else {
            Self::Write(error)
        }
    }
}

/// How a stretch of text is to be shown where colours are possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Bold,
    Dim,
    Red,
    Yellow,
    Green,
}

impl Tone {
    fn start(self) -> &'static str {
        match self {
            Tone::Plain => "",
            Tone::Bold => "\u{1b}[1m",
            Tone::Dim => "\u{1b}[2m",
            Tone::Red => "\u{1b}[31m",
            Tone::Yellow => "\u{1b}[33m",
            Tone::Green => "\u{1b}[32m",
        }
    }
}

const TONE_END: &str = "\u{1b}[0m";

struct Side {
    writer: Box<dyn Write>,
    is_terminal: bool,
    has_colours: bool,
}

impl Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Side").field("is_terminal", &self.is_terminal).finish_non_exhaustive()
    }
}

impl Side {
    fn new(writer: Box<dyn Write>, is_terminal: bool, no_colour: bool) -> Self {
        Self { writer, is_terminal, has_colours: is_terminal && !no_colour }
    }

    fn toned(&self, tone: Tone, text: &str) -> String {
        if self.has_colours && tone != Tone::Plain {
            format!("{}{text}{TONE_END}", tone.start())
        } else {
            text.to_owned()
        }
    }
}

#[derive(Debug)]
pub(crate) struct Terminal {
    out: Side,
    err: Side,
    /// The last thing shown on a terminal did not end its line.
    is_within_line: bool,
}

impl Terminal {
    pub(crate) fn of_this_process() -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let no_colour = no_colour || is_dumb;
        Self {
            out: Side::new(Box::new(io::stdout()), io::stdout().is_terminal(), no_colour),
            err: Side::new(Box::new(io::stderr()), io::stderr().is_terminal(), no_colour),
            is_within_line: false,
        }
    }

    pub(crate) fn out_is_terminal(&self) -> bool {
        self.out.is_terminal
    }

    /// `text` in `tone`, for a line on standard output.
    pub(crate) fn toned(&self, tone: Tone, text: &str) -> String {
        self.out.toned(tone, text)
    }

    /// One line, or several, of our own words on standard output. What is not ours has to be
    /// escaped in it (`scrub::line`).
    pub(crate) fn line(&mut self, text: &str) -> Result<(), OutputError> {
        self.end_line()?;
        write_all(&mut self.out, &format!("{text}\n"))
    }

    /// A JSON document of several lines.
    pub(crate) fn json(&mut self, value: &Value) -> Result<(), OutputError> {
        self.line(&scrub::json(&format!("{value:#}")))
    }

    /// A JSON document as one line of several.
    pub(crate) fn json_line(&mut self, value: &Value) -> Result<(), OutputError> {
        self.line(&scrub::json(&value.to_string()))
    }

    /// A piece of an agent's reply: it may have lines and tabs, and on a terminal nothing else.
    pub(crate) fn reply(&mut self, text: &str) -> Result<(), OutputError> {
        let shown = if self.out.is_terminal { scrub::reply(text) } else { Cow::Borrowed(text) };
        if let Some(last) = shown.chars().next_back() {
            self.is_within_line = last != '\n';
        }
        write_all(&mut self.out, &shown)
    }

    /// Ends a line that a reply has left open.
    /// A file's bytes, as they are; on a terminal, which they must not drive, as text.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        if self.out.is_terminal {
            return self.reply(&String::from_utf8_lossy(bytes));
        }
        self.out.writer.write_all(bytes).and_then(|()| self.out.writer.flush())?;
        Ok(())
    }

    pub(crate) fn end_line(&mut self) -> Result<(), OutputError> {
        if std::mem::take(&mut self.is_within_line) {
            write_all(&mut self.out, "\n")?;
        }
        Ok(())
    }

    /// A prompt, where both ends of the conversation are a terminal.
    pub(crate) fn prompt(&mut self, text: &str) -> Result<(), OutputError> {
        self.end_line()?;
        write_all(&mut self.out, text)
    }

    /// A line for whoever watches, on standard error; dimmed.
    pub(crate) fn status(&mut self, text: &str) {
        self.note(Tone::Dim, text);
    }

    /// A JSON document as a line on standard error.
    pub(crate) fn json_note(&mut self, value: &Value) {
        let text = value.to_string();
        // As in `note`.
        let _: Result<(), OutputError> =
            write_all(&mut self.err, &format!("{}\n", scrub::json(&text)));
    }

    /// A line on standard error. It may hold an agent's words.
    pub(crate) fn note(&mut self, tone: Tone, text: &str) {
        if self.out.is_terminal && self.err.is_terminal {
            // A reader that went away is found at the next write to standard output.
            let _: Result<(), OutputError> = self.end_line();
        }
        let text = self.err.toned(tone, &scrub::line(text));
        // Nobody is left to tell when standard error cannot be written.
        let _: Result<(), OutputError> = write_all(&mut self.err, &format!("{text}\n"));
    }
}

fn write_all(side: &mut Side, text: &str) -> Result<(), OutputError> {
    side.writer.write_all(text.as_bytes())?;
    side.writer.flush()?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod testing {
    //! A terminal whose two streams are kept in memory.

    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[derive(Debug, Clone, Default)]
    pub(crate) struct Kept(Rc<RefCell<Vec<u8>>>);

    impl Kept {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.borrow().clone()).unwrap()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Screen {
        pub(crate) out: Kept,
        pub(crate) err: Kept,
    }

    impl Screen {
        /// As on a terminal without colours.
        pub(crate) fn terminal(&self) -> Terminal {
            self.with(true, true)
        }

        /// As in a pipe.
        pub(crate) fn pipe(&self) -> Terminal {
            self.with(false, true)
        }

        pub(crate) fn with(&self, is_terminal: bool, no_colour: bool) -> Terminal {
            Terminal {
                out: Side::new(Box::new(self.out.clone()), is_terminal, no_colour),
                err: Side::new(Box::new(self.err.clone()), is_terminal, no_colour),
                is_within_line: false,
            }
        }
    }

    /// A reader that went away.
    #[derive(Debug)]
    pub(crate) struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Gone, Screen};
    use super::*;

    #[test]
    fn a_reply_cannot_drive_the_terminal_and_reaches_a_pipe_unchanged() {
        let hostile = "one\u{1b}[2J\ttwo\r\n\u{9b}31mthree\u{202e}\u{7}";
        let screen = Screen::default();
        screen.terminal().reply(hostile).unwrap();
        assert_eq!(screen.out.text(), "one[2J\ttwo\n31mthree");
        let pipe = Screen::default();
        pipe.pipe().reply(hostile).unwrap();
        assert_eq!(pipe.out.text(), hostile);
    }

    #[test]
    fn a_status_line_shows_control_characters_as_text_and_never_splits_a_line_of_the_reply() {
        let screen = Screen::default();
        let mut terminal = screen.terminal();
        terminal.reply("half a line").unwrap();
        terminal.status("slow\n\u{1b}]0;title\u{7}");
        terminal.reply("rest\n").unwrap();
        terminal.line("next").unwrap();
        assert_eq!(screen.out.text(), "half a line\nrest\nnext\n");
        assert_eq!(screen.err.text(), "slow\\n\\u{1b}]0;title\\u{7}\n");
    }

    #[test]
    fn colours_come_on_a_terminal_only_and_only_if_they_are_wanted() {
        for (is_terminal, no_colour, expected) in
            [(true, false, "\u{1b}[2mx\u{1b}[0m"), (true, true, "x"), (false, false, "x")]
        {
            let terminal = Screen::default().with(is_terminal, no_colour);
            assert_eq!(terminal.toned(Tone::Dim, "x"), expected);
        }
    }

    #[test]
    fn a_reader_that_went_away_is_a_value_and_other_failures_are_told_apart() {
        let mut terminal = Screen::default().pipe();
        terminal.out.writer = Box::new(Gone);
        assert!(matches!(terminal.line("x"), Err(OutputError::ReaderGone)));
        let full = OutputError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(full, OutputError::Write(_)));
    }
}

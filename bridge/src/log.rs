//! The agent's log: `agent.log` in the log folder, and before it `agent.log.1`.
//!
//! Each line is `MILLISECONDS STREAM TEXT`: Unix time, then `out`, `err` or `bridge`, then the
//! text with what is no UTF-8 replaced, cut at [`LINE_BYTES_MAX`].
//!
//! Owner: the bridge's one loop. Invariants: a line that cannot be written is dropped and counted,
//! and the count is written as soon as writing works again; no error of the log reaches the agent
//! or a turn. The newest lines are also kept in memory, so that evidence has them whatever the
//! disk does. Absent: reading logs, and the removal of old sessions' logs.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use dormouse_core::diagnosis::facts::first_error_line;
use dormouse_core::limits::LOG_TAIL_BYTES_MAX;

use crate::adapter::excerpt;
use crate::framer::{Framed, LineFramer};

pub const LOG_FILE: &str = "agent.log";
pub const OLD_LOG_FILE: &str = "agent.log.1";
/// At this size the file becomes the old one and a new one is begun.
pub const LOG_FILE_BYTES_MAX: u64 = 4 << 20;
/// A longer line loses its rest.
pub const LINE_BYTES_MAX: usize = 8 << 10;

const CUT_MARK: &str = " …";
const FIRST_ERROR_BYTES_MAX: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
    Bridge,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stream::Out => "out",
            Stream::Err => "err",
            Stream::Bridge => "bridge",
        })
    }
}

/// The first line of a log's tail in which the agent speaks of an error, without its time and
/// stream. What the bridge itself wrote is passed over.
pub fn first_error(tail: &str) -> Option<String> {
    let said = |line| {
        let (_unix_ms, line) = str::split_once(line, ' ')?;
        let (stream, text) = line.split_once(' ')?;
        matches!(stream, "out" | "err").then_some(text)
    };
    let texts: Vec<&str> = tail.lines().filter_map(said).collect();
    first_error_line(&texts.join("\n")).map(|line| excerpt(line, FIRST_ERROR_BYTES_MAX))
}

#[derive(Debug)]
pub(crate) struct Log {
    folder: PathBuf,
    file: Option<File>,
    file_bytes: u64,
    file_bytes_max: u64,
    /// A write was cut short: the next one begins a new line.
    is_torn: bool,
    lines_dropped: u64,
    out: LineFramer,
    err: LineFramer,
    /// Lines on their way to the file, written together.
    batch: String,
    batch_lines: u64,
    /// The newest whole lines.
    tail: String,
}

impl Log {
    /// Nothing is opened before there is something to write.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            file: None,
            file_bytes: 0,
            file_bytes_max: LOG_FILE_BYTES_MAX,
            is_torn: false,
            lines_dropped: 0,
            out: LineFramer::new(LINE_BYTES_MAX),
            err: LineFramer::new(LINE_BYTES_MAX),
            batch: String::new(),
            batch_lines: 0,
            tail: String::new(),
        }
    }

    /// One line of the bridge's own.
    pub(crate) fn note(&mut self, text: &str) {
        self.line(Stream::Bridge, text.as_bytes());
    }

    /// One whole line.
    pub(crate) fn line(&mut self, stream: Stream, text: &[u8]) {
        let is_cut = text.len() > LINE_BYTES_MAX;
        self.batch_line(stream, &text[..text.len().min(LINE_BYTES_MAX)], is_cut);
        self.write_batch();
    }

    /// Bytes as they came from the agent's standard output.
    pub(crate) fn feed_out(&mut self, bytes: &[u8]) {
        let mut framer = std::mem::replace(&mut self.out, LineFramer::new(0));
        framer.push(bytes, |framed| self.batch_framed(Stream::Out, framed));
        self.out = framer;
        self.write_batch();
    }

    /// Bytes as they came from the agent's standard error.
    pub(crate) fn feed_err(&mut self, bytes: &[u8]) {
        let mut framer = std::mem::replace(&mut self.err, LineFramer::new(0));
        framer.push(bytes, |framed| self.batch_framed(Stream::Err, framed));
        self.err = framer;
        self.write_batch();
    }

    /// The agent's process is over: what it left without a line's end is a line too.
    pub(crate) fn finish_streams(&mut self) {
        for stream in [Stream::Out, Stream::Err] {
            let kept = if stream == Stream::Out { &mut self.out } else { &mut self.err };
            let mut framer = std::mem::replace(kept, LineFramer::new(LINE_BYTES_MAX));
            framer.finish(|framed| self.batch_framed(stream, framed));
        }
        self.write_batch();
    }

    /// The newest lines, at most `LOG_TAIL_BYTES_MAX` bytes of them.
    pub(crate) fn tail(&self) -> String {
        self.tail.trim_end_matches('\n').to_string()
    }

    fn batch_framed(&mut self, stream: Stream, framed: Framed<'_>) {
        match framed {
            Framed::Line(text) => self.batch_line(stream, text, false),
            Framed::Overlong(head) => self.batch_line(stream, head, true),
        }
    }

    fn batch_line(&mut self, stream: Stream, text: &[u8], is_cut: bool) {
        let text = String::from_utf8_lossy(text);
        // Replacing makes a text longer than its bytes were.
        let kept_bytes = text.floor_char_boundary(LINE_BYTES_MAX);
        let cut_mark = if is_cut || kept_bytes < text.len() { CUT_MARK } else { "" };
        let text = &text[..kept_bytes];
        let written = writeln!(self.batch, "{} {stream} {text}{cut_mark}", unix_ms());
        written.expect("a String takes everything");
        self.batch_lines += 1;
    }

    /// The newest whole lines of what there was and of the batch.
    fn keep_tail(&mut self) {
        self.tail.push_str(&self.batch);
        let surplus_bytes = self.tail.len().saturating_sub(LOG_TAIL_BYTES_MAX);
        if surplus_bytes > 0 {
            let last_byte_to_go = surplus_bytes - 1;
            let line_end = self.tail.as_bytes()[last_byte_to_go..].iter().position(|b| *b == b'\n');
            let kept_from = line_end.map_or(self.tail.len(), |at| last_byte_to_go + at + 1);
            self.tail.drain(..kept_from);
            self.tail.shrink_to(LOG_TAIL_BYTES_MAX);
        }
    }

    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.keep_tail();
        let lines_dropped_before = self.lines_dropped;
        match self.try_write_batch() {
            Ok(()) => self.lines_dropped -= lines_dropped_before,
            Err(_counted_and_told_by_the_next_note) => {
                self.lines_dropped += self.batch_lines;
                self.file = None;
            }
        }
        self.batch.clear();
        self.batch.shrink_to(BATCH_BYTES_KEPT);
        self.batch_lines = 0;
    }

    fn try_write_batch(&mut self) -> io::Result<()> {
        let mut head = String::new();
        if self.lines_dropped > 0 {
            let lines = self.lines_dropped;
            head = format!("{} bridge {lines} lines could not be written\n", unix_ms());
        }
        if self.is_torn {
            head.insert(0, '\n');
        }
        if !head.is_empty() {
            self.batch.insert_str(0, &head);
        }
        let batch_bytes = self.batch.len() as u64;
        if self.file.is_none() {
            fs::create_dir_all(&self.folder)?;
            self.open()?;
        }
        if self.file_bytes > 0 && self.file_bytes + batch_bytes > self.file_bytes_max {
            self.file = None;
            fs::rename(self.folder.join(LOG_FILE), self.folder.join(OLD_LOG_FILE))?;
            self.open()?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let written = file.write_all(self.batch.as_bytes());
        self.is_torn = written.is_err();
        self.file_bytes += batch_bytes;
        written
    }

    fn open(&mut self) -> io::Result<()> {
        let path = self.folder.join(LOG_FILE);
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        self.file_bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }
}

const BATCH_BYTES_KEPT: usize = 16 << 10;

fn unix_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn the_first_error_is_the_agent_s_and_not_the_bridge_s() {
        let tail = "1 bridge turn x failed: agent_error\n2 err all is well\n\
                    3 err ValueError: no key\n4 err Traceback";
        assert_eq!(first_error(tail).as_deref(), Some("ValueError: no key"));
        assert_eq!(first_error("1 out fine\n2 bridge error"), None);
        assert_eq!(first_error("error"), None);
        let long = format!("1 err error {}", "x".repeat(LINE_BYTES_MAX));
        assert!(first_error(&long).unwrap().len() < LINE_BYTES_MAX / 2);
    }

    fn written(scratch: &Scratch, name: &str) -> Vec<String> {
        let text = fs::read_to_string(scratch.path().join(name)).unwrap_or_default();
        let without_time = |line: &str| line.split_once(' ').unwrap().1.to_string();
        text.lines().map(without_time).collect()
    }

    #[test]
    fn streams_are_cut_into_lines_of_their_own() {
        let scratch = Scratch::new();
        let mut log = Log::new(scratch.path().join("logs"));
        log.feed_out(b"half ");
        log.feed_err(b"bad \xff\r\n");
        log.note("note");
        log.feed_out(b"line\nrest");
        log.finish_streams();
        let lines = written(&scratch, "logs/agent.log");
        assert_eq!(lines, ["err bad \u{fffd}", "bridge note", "out half line", "out rest"]);
    }

    #[test]
    fn a_line_of_8_kib_is_whole_and_a_longer_one_is_cut() {
        let scratch = Scratch::new();
        let mut log = Log::new(scratch.path().into());
        log.feed_out(&[&[b'a'; LINE_BYTES_MAX][..], b"\n"].concat());
        log.feed_out(&[&[b'b'; LINE_BYTES_MAX + 1][..], b"\nnext\n"].concat());
        log.line(Stream::Out, &[b'c'; LINE_BYTES_MAX + 1]);
        log.line(Stream::Out, &[0xff; LINE_BYTES_MAX]);
        let lines = written(&scratch, LOG_FILE);
        assert_eq!(lines[0], format!("out {}", "a".repeat(LINE_BYTES_MAX)));
        assert_eq!(lines[1], format!("out {} …", "b".repeat(LINE_BYTES_MAX)));
        assert_eq!(lines[2], "out next");
        assert_eq!(lines[3], format!("out {} …", "c".repeat(LINE_BYTES_MAX)));
        assert_eq!(lines[4], format!("out {} …", "\u{fffd}".repeat(LINE_BYTES_MAX / 3)));
        assert!(!log.tail().is_empty());
    }

    #[test]
    fn a_full_file_becomes_the_old_one() {
        let scratch = Scratch::new();
        let mut log = Log::new(scratch.path().into());
        log.file_bytes_max = 100;
        for number in 0..10 {
            log.note(&format!("line {number}"));
        }
        let old = written(&scratch, OLD_LOG_FILE);
        let new = written(&scratch, LOG_FILE);
        let lines: Vec<_> = old.iter().chain(&new).collect();
        assert!((2..=8).contains(&lines.len()), "{lines:?}");
        assert_eq!(lines.last().unwrap().as_str(), "bridge line 9");
        for name in [LOG_FILE, OLD_LOG_FILE] {
            assert!(fs::metadata(scratch.path().join(name)).unwrap().len() <= 100);
        }
    }

    #[test]
    fn a_log_goes_on_where_it_was_left() {
        let scratch = Scratch::new();
        Log::new(scratch.path().into()).note("first life");
        Log::new(scratch.path().into()).note("second life");
        assert_eq!(written(&scratch, LOG_FILE), ["bridge first life", "bridge second life"]);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_told() {
        let scratch = Scratch::new();
        let folder = scratch.path().join("logs");
        fs::write(&folder, "a file where the folder should be").unwrap();
        let mut log = Log::new(folder.clone());
        log.feed_err(b"one\ntwo\n");
        log.note("three");
        assert!(log.tail().contains("err two"));
        fs::remove_file(&folder).unwrap();
        log.note("four");
        log.note("five");
        let lines = written(&scratch, "logs/agent.log");
        assert_eq!(lines, ["bridge 3 lines could not be written", "bridge four", "bridge five"]);
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else() {
        let scratch = Scratch::new();
        std::os::unix::fs::symlink("/dev/full", scratch.path().join(LOG_FILE)).unwrap();
        let mut log = Log::new(scratch.path().into());
        log.feed_out(b"lost\n");
        assert_eq!(log.lines_dropped, 1);
        fs::remove_file(scratch.path().join(LOG_FILE)).unwrap();
        log.note("after");
        let lines = written_after_tear(&scratch);
        assert_eq!(lines, ["", "bridge 1 lines could not be written", "bridge after"]);
    }

    fn written_after_tear(scratch: &Scratch) -> Vec<String> {
        let text = fs::read_to_string(scratch.path().join(LOG_FILE)).unwrap();
        let without_time = |line: &str| line.split_once(' ').map_or("", |parts| parts.1).into();
        text.lines().map(without_time).collect()
    }

    proptest! {
        #[test]
        fn the_tail_is_the_last_lines_within_its_bound(
            sizes in prop::collection::vec(0usize..9000, 0..12),
        ) {
            let scratch = Scratch::new();
            let mut log = Log::new(scratch.path().into());
            for (number, size) in sizes.iter().enumerate() {
                log.note(&format!("{number}:{}", "x".repeat(*size)));
            }
            let tail = log.tail();
            prop_assert!(tail.len() <= LOG_TAIL_BYTES_MAX);
            let all = fs::read_to_string(scratch.path().join(LOG_FILE)).unwrap_or_default();
            prop_assert!(all.trim_end_matches('\n').ends_with(&tail));
            prop_assert_eq!(tail.is_empty(), sizes.is_empty());
        }
    }
}

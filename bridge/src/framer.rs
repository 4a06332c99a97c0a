//! Cuts a stream of bytes into lines, whatever the writer does.
//!
//! Owner: whoever reads a pipe of an agent: the jsonl adapter (with the cap of a frame) and the log
//! (with the cap of a log line). Invariants: never more than the cap is kept; the same bytes give
//! the same lines however they are split into reads; nothing here fails.
//! Absent: IO, text encoding, what a line means.

/// A line without its end (`\n` or `\r\n`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framed<'a> {
    Line(&'a [u8]),
    /// The first bytes of a line that is longer than the cap; the rest of it is passed over.
    Overlong(&'a [u8]),
}

#[derive(Debug)]
pub struct LineFramer {
    line_bytes_max: usize,
    /// The unfinished line.
    line: Vec<u8>,
    /// The head of the line was handed out; its rest is passed over.
    is_skipping: bool,
}

/// A buffer above this size is given back once its line is done.
const KEPT_BUFFER_BYTES_MAX: usize = 16 << 10;

impl LineFramer {
    pub fn new(line_bytes_max: usize) -> Self {
        Self { line_bytes_max, line: Vec::new(), is_skipping: false }
    }

    /// Takes the next bytes and hands out every line that they complete.
    pub fn push(&mut self, mut bytes: &[u8], mut take: impl FnMut(Framed<'_>)) {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (piece, rest) = match end {
                Some(at) => (&bytes[..at], &bytes[at + 1..]),
                None => (bytes, &bytes[bytes.len()..]),
            };
            self.push_piece(piece, end.is_some(), &mut take);
            bytes = rest;
        }
    }

    fn push_piece(&mut self, piece: &[u8], is_end: bool, take: &mut impl FnMut(Framed<'_>)) {
        if !self.is_skipping {
            if is_end && self.line.is_empty() && piece.len() <= self.line_bytes_max {
                take(Framed::Line(without_carriage_return(piece)));
                return;
            }
            let room = self.line_bytes_max - self.line.len();
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.len() > room {
                take(Framed::Overlong(&self.line));
                self.clear();
                self.is_skipping = true;
            }
        }
        if is_end {
            if !self.is_skipping {
                take(Framed::Line(without_carriage_return(&self.line)));
            }
            self.clear();
            self.is_skipping = false;
        }
    }

    /// The writer is gone: hands out what it left without a line's end.
    pub fn finish(&mut self, mut take: impl FnMut(Framed<'_>)) {
        if !self.is_skipping && !self.line.is_empty() {
            take(Framed::Line(without_carriage_return(&self.line)));
        }
        self.clear();
        self.is_skipping = false;
    }

    fn clear(&mut self) {
        self.line.clear();
        if self.line.capacity() > KEPT_BUFFER_BYTES_MAX {
            self.line = Vec::new();
        }
    }
}

fn without_carriage_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAP: usize = 8;

    fn frame(pieces: &[&[u8]]) -> Vec<String> {
        let mut framer = LineFramer::new(CAP);
        let mut lines = Vec::new();
        let mut take = |framed: Framed<'_>| {
            lines.push(match framed {
                Framed::Line(line) => format!("={}", line.escape_ascii()),
                Framed::Overlong(head) => format!(">{}", head.escape_ascii()),
            });
        };
        for piece in pieces {
            framer.push(piece, &mut take);
        }
        framer.finish(&mut take);
        lines
    }

    #[test]
    fn lines_come_out_without_their_ends() {
        assert_eq!(frame(&[b"a\nbc\r\n\nlast"]), ["=a", "=bc", "=", "=last"]);
    }

    #[test]
    fn a_line_at_the_cap_is_whole_and_one_byte_more_is_cut() {
        assert_eq!(frame(&[b"12345678\nx\n"]), ["=12345678", "=x"]);
        assert_eq!(frame(&[b"123456789\nx\n"]), [">12345678", "=x"]);
        assert_eq!(frame(&[b"12345678", b"9", b"0\nx"]), [">12345678", "=x"]);
    }

    #[test]
    fn a_line_that_never_ends_keeps_no_more_than_the_cap() {
        let mut framer = LineFramer::new(CAP);
        let mut heads = 0;
        for _ in 0..10_000 {
            framer.push(&[0u8; 1000], |framed| {
                assert_eq!(framed, Framed::Overlong(&[0u8; CAP]));
                heads += 1;
            });
            assert!(framer.line.len() <= CAP);
        }
        assert_eq!(heads, 1);
    }

    /// The obvious way, for comparison: all bytes at once.
    fn model(bytes: &[u8]) -> Vec<String> {
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        if lines.last().is_some_and(|last| last.is_empty()) {
            lines.pop();
        }
        let shown = |line: &&[u8]| match line.len() > CAP {
            true => format!(">{}", line[..CAP].escape_ascii()),
            false => format!("={}", without_carriage_return(line).escape_ascii()),
        };
        lines.iter().map(shown).collect()
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_split_the_lines_are_the_same(
            pieces in prop::collection::vec(
                prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..20),
                0..12,
            ),
        ) {
            let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(frame(&slices), model(&pieces.concat()));
        }
    }
}

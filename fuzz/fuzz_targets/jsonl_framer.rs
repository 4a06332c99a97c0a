//! The line framer: the same bytes give the same lines however they are cut into reads, and no
//! line is longer than the cap.

#![no_main]

use dormouse_bridge::framer::{Framed, LineFramer};
use libfuzzer_sys::fuzz_target;

const LINE_BYTES_MAX: usize = 32;

fn lines<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<(bool, Vec<u8>)> {
    let mut framer = LineFramer::new(LINE_BYTES_MAX);
    let mut lines = Vec::new();
    let mut take = |framed: Framed<'_>| {
        let (is_whole, line) = match framed {
            Framed::Line(line) => (true, line),
            Framed::Overlong(head) => (false, head),
        };
        assert!(line.len() <= LINE_BYTES_MAX);
        lines.push((is_whole, line.to_vec()));
    };
    for piece in pieces {
        framer.push(piece, &mut take);
    }
    framer.finish(&mut take);
    lines
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let whole = lines(std::iter::once(bytes));
    assert_eq!(lines(bytes.chunks(usize::from(size).max(1))), whole);
    assert_eq!(lines(bytes.chunks(1)), whole);
});

//! The event stream parser: the same bytes give the same events however they are cut into reads.

#![no_main]

use dormouse_bridge::sse::{SseEvent, SseOverlong, SseParser};
use libfuzzer_sys::fuzz_target;

const BYTES_MAX: usize = 64;

fn events<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<SseEvent>, Result<(), SseOverlong>) {
    let mut parser = SseParser::new(BYTES_MAX);
    let mut events = Vec::new();
    for piece in pieces {
        if let Err(overlong) = parser.push(piece, |event| events.push(event)) {
            return (events, Err(overlong));
        }
    }
    let end = parser.finish(|event| events.push(event));
    (events, end)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let whole = events(std::iter::once(bytes));
    assert_eq!(events(bytes.chunks(usize::from(size).max(1))), whole);
    assert_eq!(events(bytes.chunks(1)), whole);
});

//! Server-sent events out of a stream of bytes.
//!
//! Owner: the openai adapter. Source: the WHATWG HTML standard, "Interpreting an event stream";
//! differing from it, an event at the end of the stream needs no empty line after it, because
//! servers leave it out. Invariants: never more than the cap is kept; the same bytes give the same
//! events however they are split into reads. Absent: HTTP, reconnecting, `id` and `retry`.

/// One event with data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// The `event` field; empty if there was none.
    pub name: String,
    /// The `data` lines, joined by `\n`; bytes that are no text are replaced.
    pub data: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {bytes_max} bytes")]
pub struct SseOverlong {
    pub bytes_max: usize,
}

#[derive(Debug)]
pub struct SseParser {
    /// For the line and for the event's data, each.
    bytes_max: usize,
    line: Vec<u8>,
    /// The line before ended with `\r`, so that a `\n` now belongs to it.
    is_after_carriage_return: bool,
    is_first_line: bool,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

impl SseParser {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            line: Vec::new(),
            is_after_carriage_return: false,
            is_first_line: true,
            name: Vec::new(),
            data: Vec::new(),
            has_data: false,
        }
    }

    /// Takes the next bytes and hands out every event that they complete.
    pub fn push(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(SseEvent),
    ) -> Result<(), SseOverlong> {
        for byte in bytes {
            let is_second_of_pair = self.is_after_carriage_return && *byte == b'\n';
            self.is_after_carriage_return = *byte == b'\r';
            if is_second_of_pair {
                continue;
            }
            if matches!(byte, b'\r' | b'\n') {
                self.end_line(&mut take)?;
            } else if self.line.len() == self.bytes_max {
                return Err(SseOverlong { bytes_max: self.bytes_max });
            } else {
                self.line.push(*byte);
            }
        }
        Ok(())
    }

    /// The stream is over: hands out an event whose last empty line is missing.
    pub fn finish(&mut self, mut take: impl FnMut(SseEvent)) -> Result<(), SseOverlong> {
        if !self.line.is_empty() {
            self.end_line(&mut take)?;
        }
        self.end_event(&mut take);
        Ok(())
    }

    fn end_line(&mut self, take: &mut impl FnMut(SseEvent)) -> Result<(), SseOverlong> {
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.is_first_line) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.is_empty() {
            self.end_event(take);
            return Ok(());
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => {
                if self.data.len() + value.len() >= self.bytes_max {
                    return Err(SseOverlong { bytes_max: self.bytes_max });
                }
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"event" => self.name = value.to_vec(),
            _ => {}
        }
        line.clear();
        self.line = line;
        Ok(())
    }

    fn end_event(&mut self, take: &mut impl FnMut(SseEvent)) {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            take(SseEvent {
                name: String::from_utf8_lossy(&name).into_owned(),
                data: String::from_utf8_lossy(&data).into_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::new(64);
        let mut events = Vec::new();
        let mut take = |event: SseEvent| events.push(format!("{}|{}", event.name, event.data));
        for piece in pieces {
            parser.push(piece, &mut take).unwrap();
        }
        parser.finish(&mut take).unwrap();
        events
    }

    #[test]
    fn events_end_at_empty_lines_and_data_lines_are_joined() {
        let stream = b"\xef\xbb\xbfdata: one\n\nevent: error\ndata:two\ndata: three\n\n: hi\n\n";
        assert_eq!(parse(&[stream]), ["|one", "error|two\nthree"]);
    }

    #[test]
    fn all_three_line_ends_are_taken() {
        assert_eq!(parse(&[b"data: a\r\n\r\ndata: b\r\rdata: c\n\n"]), ["|a", "|b", "|c"]);
        assert_eq!(parse(&[b"data: a\r", b"\n", b"\r", b"\n"]), ["|a"]);
    }

    #[test]
    fn an_event_without_data_is_none_and_a_field_without_colon_is_empty_data() {
        assert_eq!(parse(&[b"event: ping\n\ndata\n\nid: 3\nretry: 9\ndata: x\n\n"]), ["|", "|x"]);
    }

    #[test]
    fn the_last_event_needs_no_empty_line() {
        assert_eq!(parse(&[b"data: a\n\ndata: [DONE]"]), ["|a", "|[DONE]"]);
    }

    #[test]
    fn a_line_or_event_over_the_cap_is_refused() {
        let overlong = SseOverlong { bytes_max: 64 };
        let mut parser = SseParser::new(64);
        assert_eq!(parser.push(&[b'x'; 64], |_| ()), Ok(()));
        assert_eq!(parser.push(b"x", |_| ()), Err(overlong));
        let mut parser = SseParser::new(64);
        assert!((0..64).any(|_| parser.push(b"data: xxxx\n", |_| ()).is_err()));
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_split_the_events_are_the_same(
            pieces in prop::collection::vec("[a:\r\n]{0,6}|data: [a-z]{0,3}\n{0,2}", 0..10),
        ) {
            let slices: Vec<&[u8]> = pieces.iter().map(String::as_bytes).collect();
            let whole = pieces.concat();
            let whole = whole.as_bytes();
            let bytes: Vec<&[u8]> = whole.chunks(1).collect();
            prop_assert_eq!(parse(&slices), parse(&[whole]));
            prop_assert_eq!(parse(&bytes), parse(&[whole]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut parser = SseParser::new(64);
            if parser.push(&bytes, |_| ()).is_ok() {
                let _ends_or_refuses: Result<(), SseOverlong> = parser.finish(|_| ());
            }
        }
    }
}

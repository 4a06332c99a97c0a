//! Server-sent events with their ids, out of a stream of bytes.
//!
//! Source: the WHATWG HTML standard, "Interpreting an event stream". Owner: `client`. Invariants:
//! an event counts only when its empty line has come, so a cut stream never yields half an event;
//! never more than `EVENT_BYTES_MAX` is kept. Absent: `retry`; reconnecting is `follow`'s.

/// A whole reply of the longest size in JSON, where every byte may be written as six.
const EVENT_BYTES_MAX: usize = 6 * dormouse_core::limits::REPLY_BYTES_MAX + (1 << 20);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: String,
}

#[derive(Debug, Default)]
pub(crate) struct EventParser {
    line: Vec<u8>,
    is_after_carriage_return: bool,
    event: Event,
    has_data: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EventError {
    #[error("an event is longer than any reply can be")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotUtf8,
}

impl EventParser {
    /// Takes the next bytes and appends the events that they complete to `events`.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        events: &mut impl Extend<Event>,
    ) -> Result<(), EventError> {
        for byte in bytes {
            let is_second_of_pair = self.is_after_carriage_return && *byte == b'\n';
            self.is_after_carriage_return = *byte == b'\r';
            match byte {
                b'\n' if is_second_of_pair => {}
                b'\r' | b'\n' => events.extend(self.end_line()?),
                _ if self.line.len() >= EVENT_BYTES_MAX => return Err(EventError::TooLong),
                _ => self.line.push(*byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<Event>, EventError> {
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line).map_err(|_| EventError::NotUtf8)?;
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return Ok(std::mem::take(&mut self.has_data).then_some(event));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if self.event.data.len() + value.len() >= EVENT_BYTES_MAX {
                    return Err(EventError::TooLong);
                }
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            // An empty field is a comment; others are of a later version.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pieces: &[&[u8]]) -> Vec<Event> {
        let mut parser = EventParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut events).unwrap();
        }
        events
    }

    #[test]
    fn events_are_the_same_however_they_are_cut_and_a_half_one_is_none() {
        let text = ": hello\r\nevent: delta\r\nid: 1.4\r\ndata: grü\r\ndata: ße\r\n\r\n\
                    data\n\nevent: nothing\n\ndata: cut off\n";
        let expected = [
            Event { name: "delta".into(), id: Some("1.4".into()), data: "grü\nße".into() },
            Event::default(),
        ];
        assert_eq!(parsed(&[text.as_bytes()]), expected);
        let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(parsed(&single), expected);
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let refused = EventParser::default().push(b"data: \xff\n\n", &mut Vec::new());
        assert_eq!(refused, Err(EventError::NotUtf8));
    }
}

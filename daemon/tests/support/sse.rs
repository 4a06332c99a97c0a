//! Server-sent events, read one at a time, and what a client has seen of one message.
//!
//! Owner: `Client::stream` and `Client::follow`. Invariants: the end of a stream and the breaking
//! of its connection are told apart; a stream on which only signs of life come is given up. Absent:
//! reconnecting.

use std::io::{self, BufRead, BufReader};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http::Body;

/// The longest wait for one event.
const EVENT_WITHIN: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SseEvent {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

#[derive(Debug)]
pub(crate) struct EventStream {
    lines: BufReader<Body>,
    event_within: Duration,
}

impl EventStream {
    pub(crate) fn of(body: Body) -> Self {
        Self { lines: BufReader::new(body), event_within: EVENT_WITHIN }
    }

    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.lines.get_ref().set_read_timeout(timeout)
    }

    /// The next event; `None` at the end. Comments are passed over.
    pub(crate) fn try_next(&mut self) -> io::Result<Option<SseEvent>> {
        let (mut name, mut id, mut data) = (String::new(), None, String::new());
        let deadline = Instant::now() + self.event_within;
        loop {
            if Instant::now() > deadline {
                let words = "only signs of life come, and no event";
                return Err(io::Error::new(io::ErrorKind::TimedOut, words));
            }
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                let is_between = name.is_empty() && data.is_empty();
                return if is_between {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                if data.is_empty() {
                    continue;
                }
                let data = serde_json::from_str(&data).unwrap_or(Value::String(data));
                return Ok(Some(SseEvent { name, id, data }));
            }
            match line.split_once(':').map(|(field, value)| (field, value.trim_start())) {
                Some(("event", value)) => name = value.to_owned(),
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("data", value)) => data.push_str(value),
                Some(("", _)) | Some(_) | None => {}
            }
        }
    }

    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<SseEvent> {
        self.try_next().unwrap_or_else(|error| panic!("the stream broke: {error}"))
    }

    /// Takes events until there is one like this, and gives all of them.
    #[track_caller]
    pub(crate) fn until(&mut self, is_it: impl Fn(&SseEvent) -> bool) -> Seen {
        let mut seen = Seen::default();
        loop {
            let Some(event) = self.next() else { panic!("the stream ended before: {seen:?}") };
            let found = is_it(&event);
            seen.add(event);
            if found {
                return seen;
            }
        }
    }

    /// The same, where each event may take this long.
    #[track_caller]
    pub(crate) fn until_within(
        &mut self,
        limit: Duration,
        is_it: impl Fn(&SseEvent) -> bool,
    ) -> Seen {
        self.event_within = limit;
        self.until(is_it)
    }

    /// Everything up to the end of the stream, where each event may take this long.
    #[track_caller]
    pub(crate) fn rest_within(mut self, limit: Duration) -> Seen {
        self.event_within = limit;
        self.rest()
    }

    /// Everything up to the end of the stream.
    #[track_caller]
    pub(crate) fn rest(mut self) -> Seen {
        let mut seen = Seen::default();
        while let Some(event) = self.next() {
            seen.add(event);
        }
        seen
    }

    /// What comes until the stream ends or breaks.
    pub(crate) fn rest_until_broken(mut self) -> Seen {
        let mut seen = Seen::default();
        while let Ok(Some(event)) = self.try_next() {
            seen.add(event);
        }
        seen
    }
}

/// What came of one message, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) events: Vec<SseEvent>,
}

impl Seen {
    fn add(&mut self, event: SseEvent) {
        self.events.push(event);
    }

    pub(crate) fn of(&self, name: &str) -> Vec<&SseEvent> {
        self.events.iter().filter(|event| event.name == name).collect()
    }

    /// The states of the status events.
    pub(crate) fn states(&self) -> Vec<&str> {
        self.of("status").iter().filter_map(|event| event.data["state"].as_str()).collect()
    }

    /// The deltas' text, in one.
    pub(crate) fn text(&self) -> String {
        self.of("delta").iter().filter_map(|event| event.data["text"].as_str()).collect()
    }

    /// Where to go on from.
    pub(crate) fn last_id(&self) -> Option<&str> {
        self.events.iter().rev().find_map(|event| event.id.as_deref())
    }

    /// The last event, which must be `done` or `error`, and the only one of these.
    #[track_caller]
    pub(crate) fn end(&self) -> &SseEvent {
        let ends = self.events.iter().filter(|event| event.name == "done" || event.name == "error");
        assert_eq!(ends.count(), 1, "{:?}", self.events);
        self.events.last().expect("there is one")
    }

    #[track_caller]
    pub(crate) fn message_id(&self) -> String {
        let mut ids = self.events.iter().filter_map(|event| event.data["message_id"].as_str());
        ids.next_back().expect("an event names the message").to_owned()
    }
}

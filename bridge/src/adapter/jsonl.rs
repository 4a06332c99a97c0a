//! `jsonl`: one long-lived process that speaks JSON lines.
//!
//! In, one line a turn: `{"turn", "session", "text", "attempt"}`. Out: `{"ready": true}`, `{"turn",
//! "delta"}`, `{"turn", "done": text}`, `{"turn", "error": text}` (with `"retryable": true` if a
//! new try may help and does no harm), `{"hold": why, "for": "5m"}`. `done` and `error` may have
//! `"exit": N`, the exit status of what the turn executed: as a shell shows it, or the negated
//! number of a signal. It is kept with the message and changes nothing else.
//!
//! Owner: `instance`. Invariants: no bytes of an agent make this fail, and none make it keep more
//! than one frame; what is no frame is handed back as noise for the log.
//! Absent: which turn runs, and what becomes of a frame for another one.

use dormouse_core::id::{SessionId, TurnId};
use serde::de::{Deserializer, Error as _, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use super::{MESSAGE_BYTES_MAX, excerpt};
use crate::framer::{Framed, LineFramer};
use crate::frames::FRAME_BYTES_MAX;

/// Log of an overlong line, to recognise it by.
const OVERLONG_HEAD_BYTES: usize = 256;

/// One thing that an agent said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Ready,
    Delta {
        turn: String,
        text: String,
    },
    /// An empty text means the deltas' text.
    Done {
        turn: String,
        text: String,
        exit_code: Option<i32>,
    },
    Error {
        turn: String,
        message: String,
        retryable: bool,
        exit_code: Option<i32>,
    },
    Hold {
        name: String,
        for_ms: u64,
    },
    /// A line that is none of the above.
    Noise(Vec<u8>),
    /// A line longer than any frame may be; its beginning.
    Overlong(Vec<u8>),
}

#[derive(Debug)]
pub(crate) struct Jsonl {
    framer: LineFramer,
    pub(crate) noise_lines: u64,
    /// Frames for turns that do not run.
    pub(crate) stray_frames: u64,
}

impl Jsonl {
    pub(crate) fn new() -> Self {
        Self { framer: LineFramer::new(FRAME_BYTES_MAX), noise_lines: 0, stray_frames: 0 }
    }

    /// Takes bytes of standard output and hands out what they complete.
    pub(crate) fn push(&mut self, bytes: &[u8], said: &mut Vec<Said>) {
        let said_before = said.len();
        self.framer.push(bytes, |framed| said.push(understand(framed)));
        self.count_noise(&said[said_before..]);
    }

    /// The process is gone: a last line without its end is a line too.
    pub(crate) fn finish(&mut self, said: &mut Vec<Said>) {
        let said_before = said.len();
        self.framer.finish(|framed| said.push(understand(framed)));
        self.count_noise(&said[said_before..]);
    }

    fn count_noise(&mut self, said: &[Said]) {
        let is_noise = |said: &&Said| matches!(said, Said::Noise(_) | Said::Overlong(_));
        self.noise_lines += said.iter().filter(is_noise).count() as u64;
    }
}

/// The line that gives an agent its turn.
pub(crate) fn turn_line(session: &SessionId, turn: TurnId, text: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct TurnLine<'a> {
        turn: TurnId,
        session: &'a SessionId,
        text: &'a str,
        attempt: u32,
    }
    let line = TurnLine { turn, session, text, attempt: turn.attempt };
    let mut line = serde_json::to_vec(&line).expect("ids and texts are always JSON");
    line.push(b'\n');
    line
}

#[derive(Deserialize)]
struct Line {
    ready: Option<bool>,
    turn: Option<String>,
    delta: Option<String>,
    #[serde(default, deserialize_with = "present")]
    done: Option<String>,
    error: Option<String>,
    #[serde(default)]
    retryable: bool,
    #[serde(default, deserialize_with = "whole_number")]
    exit: Option<i32>,
    hold: Option<String>,
    #[serde(rename = "for")]
    hold_for: Option<String>,
}

/// `done` with a text, or with `null` or `true` for none; told apart from no `done` at all.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = String;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a text, null or true")
        }
        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_string())
        }
        fn visit_string<E>(self, text: String) -> Result<String, E> {
            Ok(text)
        }
        fn visit_unit<E>(self) -> Result<String, E> {
            Ok(String::new())
        }
        fn visit_bool<E: serde::de::Error>(self, is_done: bool) -> Result<String, E> {
            match is_done {
                true => Ok(String::new()),
                false => Err(E::invalid_value(Unexpected::Bool(false), &self)),
            }
        }
    }
    deserializer.deserialize_any(Text).map(Some).map_err(D::Error::custom)
}

/// A status that is no such number is left out; the answer that it came with is not lost for it.
fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_i64().and_then(|number| i32::try_from(number).ok()))
}

fn understand(framed: Framed<'_>) -> Said {
    match framed {
        Framed::Line(line) => {
            let parsed = serde_json::from_slice(line).ok();
            parsed.and_then(frame).unwrap_or_else(|| Said::Noise(line.to_vec()))
        }
        Framed::Overlong(head) => {
            Said::Overlong(head[..head.len().min(OVERLONG_HEAD_BYTES)].to_vec())
        }
    }
}

fn frame(line: Line) -> Option<Said> {
    match line {
        Line { turn: Some(turn), done: Some(text), exit: exit_code, .. } => {
            Some(Said::Done { turn, text, exit_code })
        }
        Line { turn: Some(turn), error: Some(message), retryable, exit: exit_code, .. } => {
            let message = excerpt(&message, MESSAGE_BYTES_MAX);
            Some(Said::Error { turn, message, retryable, exit_code })
        }
        Line { turn: Some(turn), delta: Some(text), .. } => Some(Said::Delta { turn, text }),
        Line { hold: Some(name), hold_for: Some(span), .. } => {
            Some(Said::Hold { name, for_ms: span_ms(&span)? })
        }
        Line { ready: Some(true), .. } => Some(Said::Ready),
        _ => None,
    }
}

/// Milliseconds of a span such as `500ms`, `30s`, `5m` or `1h`.
fn span_ms(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let unit_ms = match unit.trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms)
}

#[cfg(test)]
mod tests {
    use dormouse_core::id::MessageId;
    use proptest::prelude::*;

    use super::*;

    fn understood(line: &str) -> Said {
        understand(Framed::Line(line.as_bytes()))
    }

    fn noise(line: &str) -> Said {
        Said::Noise(line.as_bytes().to_vec())
    }

    #[test]
    fn every_frame_of_the_contract_is_understood() {
        let turn = || "t".to_string();
        assert_eq!(understood("{\"ready\": true}"), Said::Ready);
        assert_eq!(
            understood("{\"turn\":\"t\",\"delta\":\"a\\u00e9\\n\"}"),
            Said::Delta { turn: turn(), text: "aé\n".into() }
        );
        for (done, text) in [("\"all\"", "all"), ("\"\"", ""), ("null", ""), ("true", "")] {
            assert_eq!(
                understood(&format!("{{\"turn\":\"t\",\"done\":{done}}}")),
                Said::Done { turn: turn(), text: text.into(), exit_code: None }
            );
        }
        let message = "no".to_string();
        assert_eq!(
            understood("{\"turn\":\"t\",\"error\":\"no\",\"retryable\":true}"),
            Said::Error { turn: turn(), message, retryable: true, exit_code: None }
        );
        assert_eq!(
            understood("{\"hold\":\"build\",\"for\":\"5m\"}"),
            Said::Hold { name: "build".into(), for_ms: 300_000 }
        );
    }

    #[test]
    fn an_exit_status_comes_with_the_end_and_a_wrong_one_takes_nothing_with_it() {
        for (exit, exit_code) in [
            ("0", Some(0)),
            ("3", Some(3)),
            ("-9", Some(-9)),
            ("null", None),
            ("\"1\"", None),
            ("true", None),
            ("1.5", None),
            ("99999999999", None),
            ("[]", None),
        ] {
            let done = format!("{{\"turn\":\"t\",\"done\":\"x\",\"exit\":{exit}}}");
            let expected = Said::Done { turn: "t".into(), text: "x".into(), exit_code };
            assert_eq!(understood(&done), expected, "{exit}");
            let error = format!("{{\"turn\":\"t\",\"error\":\"x\",\"exit\":{exit}}}");
            let (turn, message) = ("t".into(), "x".into());
            let expected = Said::Error { turn, message, retryable: false, exit_code };
            assert_eq!(understood(&error), expected, "{exit}");
        }
    }

    #[test]
    fn lines_that_are_no_frames_are_noise() {
        for line in [
            "",
            "Loading…",
            "42",
            "[]",
            "null",
            "{}",
            "{\"level\":\"error\",\"error\":\"in some log\"}",
            "{\"delta\":\"of no turn\"}",
            "{\"turn\":5,\"delta\":\"x\"}",
            "{\"turn\":\"t\",\"done\":false}",
            "{\"turn\":\"t\",\"done\":{}}",
            "{\"hold\":\"x\"}",
            "{\"hold\":\"x\",\"for\":\"5\"}",
            "{\"ready\":false}",
            "{\"ready\":true",
            "\0\0",
        ] {
            assert_eq!(understood(line), noise(line));
        }
    }

    #[test]
    fn spans_need_a_unit_and_do_not_overflow() {
        assert_eq!(span_ms("500ms"), Some(500));
        assert_eq!(span_ms("30s"), Some(30_000));
        assert_eq!(span_ms("5 m"), Some(300_000));
        assert_eq!(span_ms("0s"), Some(0));
        assert_eq!(span_ms("1h"), Some(3_600_000));
        for text in ["", "5", "s", "-5s", "1.5h", "5d", "99999999999999999999s"] {
            assert_eq!(span_ms(text), None, "{text:?}");
        }
        assert_eq!(span_ms(&format!("{}h", u64::MAX)), None);
    }

    #[test]
    fn the_turn_line_is_the_contracts() {
        let session = "python/main".parse().unwrap();
        let turn = TurnId { message: MessageId(7), attempt: 2 };
        let line = turn_line(&session, turn, "a\n\"b\"");
        let expected = "{\"turn\":\"msg_00000000000000000000000000000007.2\",\
                        \"session\":\"python/main\",\"text\":\"a\\n\\\"b\\\"\",\"attempt\":2}\n";
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }

    #[test]
    fn noise_is_counted() {
        let mut jsonl = Jsonl::new();
        let mut said = Vec::new();
        jsonl.push(b"x\n{\"ready\":true}\nlast", &mut said);
        jsonl.finish(&mut Vec::new());
        assert_eq!(jsonl.noise_lines, 2);
    }

    proptest! {
        #[test]
        fn no_line_makes_it_fail(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let said = understand(Framed::Line(&line));
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&line).is_ok()
                || said == Said::Noise(line));
        }

        #[test]
        fn what_a_writer_meant_is_what_is_understood(turn in "\\PC{0,8}", text in "\\PC{0,40}") {
            let line = serde_json::json!({"turn": turn, "delta": text}).to_string();
            prop_assert_eq!(understood(&line), Said::Delta { turn, text });
        }
    }
}

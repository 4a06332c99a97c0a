//! Words of a step: quoted texts, spans of time, names of messages and instances.
//!
//! Owner: `steps`. Invariant: what cannot be read fails the story and is named. Absent: meaning.

use std::time::Duration;

use dormouse_core::id::{MessageId, TurnId};
use dormouse_core::manifest::{FilesVersion, Manifest, ManifestDigest, Sha256Hash};

/// Words at blanks and commas; a quoted text is one word.
pub(crate) fn words(step: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in step.split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            let plain = part.split([' ', ',']).filter(|word| !word.is_empty());
            words.extend(plain.map(str::to_owned));
        }
    }
    words
}

const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// `29m59s999ms`.
pub(crate) fn span(text: &str) -> Duration {
    let mut rest = text;
    let mut millis = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_ends = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_ends);
        let number: u64 = number.parse().unwrap_or_else(|_| panic!("no span of time: {text:?}"));
        let known = UNITS.iter().find(|known| known.0 == unit);
        millis += number * known.unwrap_or_else(|| panic!("no span of time: {text:?}")).1;
        rest = next;
    }
    Duration::from_millis(millis)
}

/// The inverse of `span`.
pub(crate) fn span_text(span: Duration) -> String {
    let mut rest = u64::try_from(span.as_millis()).unwrap();
    let mut text = String::new();
    for (unit, millis) in UNITS.into_iter().rev() {
        if rest >= millis {
            text.push_str(&format!("{}{unit}", rest / millis));
            rest %= millis;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// `m7`.
pub(crate) fn message(word: &str) -> MessageId {
    let number = word.strip_prefix('m').and_then(|digits| digits.parse().ok());
    MessageId(number.unwrap_or_else(|| panic!("messages are called m1, m2 …, not {word:?}")))
}

pub(crate) fn message_name(message: MessageId) -> String {
    format!("m{}", message.0)
}

/// `m7.2`.
pub(crate) fn turn(word: &str) -> TurnId {
    let (name, attempt) = word.split_once('.').expect("a turn is called m1.2");
    TurnId { message: message(name), attempt: number(attempt) }
}

pub(crate) fn turn_name(turn: TurnId) -> String {
    format!("{}.{}", message_name(turn.message), turn.attempt)
}

pub(crate) fn number<N: std::str::FromStr>(word: &str) -> N {
    word.parse().unwrap_or_else(|_| panic!("no number: {word:?}"))
}

/// What an agent's inputs are called; no inputs are `nothing`.
pub(crate) const INPUTS: [&str; 3] = ["nothing", "january", "february"];

pub(crate) fn inputs(name: &str) -> ManifestDigest {
    match name {
        "nothing" => Manifest::default().digest(),
        _other => ManifestDigest(Sha256Hash::of(name.as_bytes())),
    }
}

/// `january+2`.
pub(crate) fn version(word: &str) -> FilesVersion {
    let (name, uploads) = word.split_once('+').expect("a version is called january+2");
    FilesVersion { inputs: inputs(name), uploads: number(uploads) }
}

#[test]
fn spans_are_read_as_they_are_printed() {
    for text in ["0s", "1ms", "29m59s999ms", "1d2h", "5m"] {
        assert_eq!(span_text(span(text)), text);
    }
    assert_eq!(span("90s"), Duration::from_secs(90));
}

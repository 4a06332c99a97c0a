//! What holds of any text that is a config, and of any two: for tests and for fuzzing.
//!
//! Owner: the config. Invariant: a law that is broken is a panic. Absent: texts.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::flat::Effective;
use super::plan::plan;
use super::{ConfigError, Parsed, parse_bytes};

/// What stands between the two texts of an input.
#[cfg(fuzzing)]
const BETWEEN: &[u8] = b"\n%%\n";

/// Any bytes, as two configs.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let middle = bytes.windows(BETWEEN.len()).position(|window| window == BETWEEN);
    let (one, other) = match middle {
        Some(at) => (&bytes[..at], &bytes[at + BETWEEN.len()..]),
        None => (bytes, &b"# the defaults"[..]),
    };
    let [one, other] = [one, other].map(|bytes| effective_of(bytes).ok());
    if let (Some(one), Some(other)) = (one, other) {
        assert_plans(&one, &other);
    }
}

/// The settings of a text, or an error that is one line.
pub(super) fn effective_of(bytes: &[u8]) -> Result<Effective, String> {
    match parse_bytes(bytes, Path::new("dormouse.toml")) {
        Ok(parsed) => {
            assert_revisions(&parsed);
            Ok(Effective::of(&parsed.file))
        }
        Err(error) => {
            let words = error.to_string();
            assert!(!words.contains(char::is_control), "{words:?}");
            if let ConfigError::Wrong(wrong) = &error
                && let Some(place) = wrong.place
            {
                let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
                assert!((1..=lines).contains(&place.line) && place.column > 0, "{place:?}");
            }
            Err(words)
        }
    }
}

/// A table with its own revision is the same table.
fn assert_revisions(parsed: &Parsed) {
    for table in parsed.file.agents.values() {
        let again = table.with_revision_part(&table.revision_part());
        let again = again.expect("its own revision is none that is not known");
        assert_eq!(format!("{again:?}"), format!("{table:?}"));
    }
}

fn values(effective: &Effective) -> BTreeMap<String, Json> {
    let entries = effective.entries.iter();
    entries.map(|(path, entry)| (path.clone(), entry.value.clone())).collect()
}

pub(super) fn assert_plans(one: &Effective, other: &Effective) {
    assert!(plan(one, one).is_empty());
    let there = plan(one, other);
    let mut applied = values(one);
    there.apply(&mut applied);
    assert_eq!(applied, values(other), "applied, it is the other");
    let back = there.flip();
    assert_eq!(back, plan(other, one), "flipped, it is the way back");
    back.apply(&mut applied);
    assert_eq!(applied, values(one));
}

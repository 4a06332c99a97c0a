//! The examples in README.md are what the types read and write, and there is one of each frame.

use std::collections::BTreeSet;

use dormouse_bridge::frames::{FromBridge, ToBridge};
use dormouse_bridge::rundir::Spec;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const README: &str = include_str!("../README.md");

/// The fenced blocks that are marked `json KIND`.
fn examples(kind: &str) -> Vec<&'static str> {
    let opening = format!("```json {kind}\n");
    let blocks = README.split(opening.as_str()).skip(1);
    blocks.map(|rest| rest.split("```").next().expect("split gives at least one")).collect()
}

/// Reads every example and expects it back, word for word, when it is written again.
fn check<T: Serialize + DeserializeOwned>(kind: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for example in examples(kind) {
        let value: T = serde_json::from_str(example).unwrap_or_else(|e| panic!("{e}: {example}"));
        let expected: Value = serde_json::from_str(example).unwrap();
        assert_eq!(serde_json::to_value(&value).unwrap(), expected);
        names.extend(expected.get("frame").and_then(Value::as_str).map(str::to_string));
    }
    names
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn every_frame_of_the_bridge_has_an_example_that_is_one() {
    let shown = check::<FromBridge>("from-bridge");
    let syncs = ["syncing", "synced", "sync_failed"];
    let expected = ["hello", "ready", "delta", "ended", "hold", "exited"];
    assert_eq!(shown, names(&[&expected[..], &syncs].concat()));
    // The compiler asks whoever adds a frame to come by here.
    let _all = |frame: FromBridge| match frame {
        FromBridge::Hello(_)
        | FromBridge::Ready
        | FromBridge::Delta { .. }
        | FromBridge::Ended { .. }
        | FromBridge::Hold { .. }
        | FromBridge::Syncing { .. }
        | FromBridge::Synced { .. }
        | FromBridge::SyncFailed { .. }
        | FromBridge::Exited { .. } => {}
    };
}

#[test]
fn every_frame_to_the_bridge_has_an_example_that_is_one() {
    let shown = check::<ToBridge>("to-bridge");
    let expected =
        ["welcome", "refused", "sync", "launch", "turn", "acknowledge", "stop", "release"];
    assert_eq!(shown, names(&expected));
    // The compiler asks whoever adds a frame to come by here.
    let _all = |frame: ToBridge| match frame {
        ToBridge::Welcome { .. }
        | ToBridge::Refused { .. }
        | ToBridge::Sync { .. }
        | ToBridge::Launch { .. }
        | ToBridge::Turn { .. }
        | ToBridge::Acknowledge { .. }
        | ToBridge::Stop { .. }
        | ToBridge::Release => {}
    };
}

#[test]
fn the_spec_example_is_a_spec() {
    assert_eq!(examples("spec").len(), 1);
    check::<Spec>("spec");
}

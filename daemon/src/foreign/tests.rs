//! Reports as a whole: what holds for every platform.

use serde_json::{Value, json};

use super::*;

pub(super) fn input(name: &str, document: &Value) -> Input {
    Input { name: name.to_owned(), bytes: document.to_string().into_bytes() }
}

/// The report on documents alone.
pub(super) fn report(platform: Platform, documents: &[Value]) -> Value {
    wanted_report(platform, Wanted::default(), documents)
}

pub(super) fn wanted_report(platform: Platform, wanted: Wanted, documents: &[Value]) -> Value {
    let documents = documents.iter().map(|document| input("f.json", document)).collect();
    let question = Question { platform, wanted, documents, log: None, missing: Vec::new() };
    let report = examine(question).unwrap();
    report.assert_sound();
    report.to_json()
}

#[test]
fn without_an_end_there_is_no_verdict_and_what_was_looked_at_is_said() {
    let running = json!([{"Id": "a".repeat(64), "Name": "/web", "State":
        {"Status": "running", "Running": true, "StartedAt": "2026-11-03T09:00:00Z",
         "FinishedAt": "0001-01-01T00:00:00Z"}}]);
    let seen = report(Platform::Docker, &[running]);
    assert_eq!(seen.get("verdict"), None);
    let sentence = seen["sentence"].as_str().unwrap();
    assert!(sentence.starts_with("nothing ended, as far as was looked: docker inspect"), "{seen}");
}

#[test]
fn what_could_not_be_asked_is_missing_and_never_read_as_nothing() {
    let question = Question {
        platform: Platform::Ecs,
        wanted: Wanted { service: Some("api".to_owned()), ..Wanted::default() },
        documents: vec![input("x", &json!({"taskArns": []}))],
        log: None,
        missing: vec!["aws ecs describe-services: throttled".to_owned()],
    };
    let seen = examine(question).unwrap().to_json();
    assert_eq!(seen["missing"], json!(["aws ecs describe-services: throttled"]));
    let sentence = seen["sentence"].as_str().unwrap();
    assert!(sentence.starts_with("no end was found, and not everything could be looked at"));
    assert_eq!(seen["subject"], "ECS service api");
}

#[test]
fn an_unknown_end_says_what_would_say_more() {
    let task = json!({"taskArn": "arn/t/1", "lastStatus": "STOPPED",
        "stopCode": "EssentialContainerExited", "containers": [{"name": "a", "exitCode": 137}]});
    let seen = report(Platform::Ecs, &[task]);
    assert_eq!((&seen["verdict"], &seen["confidence"]), (&json!("unknown"), &json!("possible")));
    let missing = seen["missing"].to_string();
    assert!(missing.contains("who sent SIGKILL") && missing.contains("kernel log"), "{missing}");
}

#[test]
fn only_the_newest_fifty_ends_are_listed_and_the_rest_is_counted() {
    let task = |n: u64| {
        json!({"taskArn": format!("arn/t/{n}"), "lastStatus": "STOPPED",
            "stopCode": "EssentialContainerExited", "startedAt": 1_700_000_000 + n * 100,
            "stoppedAt": 1_700_000_010 + n * 100, "containers": [{"name": "a", "exitCode": 1}]})
    };
    let seen = report(Platform::Ecs, &[json!({"tasks": (0..60).map(task).collect::<Vec<_>>()})]);
    assert_eq!(seen["deaths"].as_array().unwrap().len(), 50);
    assert_eq!((&seen["deaths_left_out"], &seen["loop"]["deaths"]), (&json!(10), &json!(60)));
    assert_eq!(seen["deaths"][0]["at"], 1_700_005_910_000_u64);
}

#[test]
fn long_and_hostile_texts_are_cut_and_kept_as_text() {
    let text = format!("\u{1b}[2J{}", "x".repeat(1 << 20));
    let task = json!({"taskArn": "arn/t/1", "lastStatus": "STOPPED", "stopCode": "UserInitiated",
        "stoppedReason": text, "containers": []});
    let seen = report(Platform::Ecs, &[task]);
    assert_eq!(seen["verdict"], "stopped_by_user");
    assert!(seen.to_string().len() < 5_000, "{} bytes", seen.to_string().len());
}

#[test]
fn what_the_fuzzer_begins_with_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/foreign_evidence");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        fuzz(&bytes);
        let is_read = |platform| {
            let input = Input { name: "seed".to_owned(), bytes: bytes.clone() };
            document::read(&input, platform).is_ok()
        };
        let platforms = [Platform::Ecs, Platform::Docker, Platform::Kubernetes];
        assert!(platforms.into_iter().any(is_read), "{path:?}");
    }
}

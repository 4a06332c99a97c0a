//! Docker: what a reader must not mistake.

use serde_json::{Value, json};

use super::super::Platform;
use super::super::tests::{report, wanted_report};
use super::*;

const ID: &str = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";
const START_SECONDS: u64 = 1_795_352_400;

fn event(at_s: u64, action: &str, attributes: &Value) -> Value {
    let mut attributes = attributes.clone();
    attributes["name"] = json!("web");
    json!({"Type": "container", "Action": action, "Actor": {"ID": ID, "Attributes": attributes},
        "timeNano": (START_SECONDS + at_s) * 1_000_000_000})
}

fn die(at_s: u64, code: &str) -> Value {
    event(at_s, "die", &json!({"exitCode": code}))
}

fn inspect(state: &Value, more: &Value) -> Value {
    let mut document = json!({"Id": ID, "Name": "/web", "State": state,
        "HostConfig": {"Memory": 536_870_912}, "Config": {}});
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
    json!([document])
}

#[test]
fn lives_are_told_apart_by_their_events() {
    let none = json!({});
    let events = [
        event(0, "start", &none),
        die(30, "1"),
        event(60, "start", &none),
        event(89, "oom", &none),
        die(90, "137"),
        event(120, "start", &none),
        die(150, "137"),
    ];
    let seen = report(Platform::Docker, &events);
    let verdicts: Vec<&Value> =
        seen["deaths"].as_array().unwrap().iter().map(|death| &death["verdict"]).collect();
    assert_eq!(verdicts, ["killed_outside", "oom_limit", "app_exit"]);
    assert_eq!(seen["loop"]["period_ms_median"], 60_000);
    assert_eq!(seen["loop"]["uptime_ms_median"], 30_000);
    assert_eq!(seen["subject"], "Docker container web");
}

#[test]
fn inspect_and_events_of_one_end_are_one_end() {
    let state = json!({"Status": "exited", "ExitCode": 1, "OOMKilled": false,
        "StartedAt": "2026-11-22T13:00:00.1Z", "FinishedAt": "2026-11-22T13:00:30.4Z"});
    let seen = report(
        Platform::Docker,
        &[inspect(&state, &json!({})), event(0, "start", &json!({})), die(30, "1")],
    );
    assert_eq!(seen["deaths"].as_array().unwrap().len(), 1);
}

#[test]
fn a_kill_counts_within_the_container_s_own_stop_timeout() {
    let verdict = |stop_timeout: Option<u64>| {
        let config = json!({"Config": {"StopTimeout": stop_timeout}});
        let state = json!({"Status": "exited", "ExitCode": 137, "OOMKilled": false,
            "FinishedAt": "2026-11-22T13:05:00Z"});
        let none = json!({});
        let events = [
            inspect(&state, &config),
            event(0, "start", &none),
            event(100, "kill", &json!({"signal": "15"})),
            die(300, "137"),
        ];
        report(Platform::Docker, &events)["verdict"].clone()
    };
    assert_eq!(verdict(Some(200)), "stopped_by_user");
    assert_eq!(verdict(None), "killed_outside");
}

#[test]
fn a_mark_on_the_container_is_no_cause_of_a_good_end() {
    let state = json!({"Status": "exited", "ExitCode": 0, "OOMKilled": true,
        "FinishedAt": "2026-11-22T13:05:00Z"});
    let seen = report(Platform::Docker, &[inspect(&state, &json!({}))]);
    assert_eq!(seen["verdict"], "app_exit");
    assert_eq!(seen["ruled_out"][0]["verdict"], "oom_limit");
}

#[test]
fn nobody_counts_as_asking_where_the_events_begin_too_late() {
    let seen = report(Platform::Docker, &[event(299, "top", &json!({})), die(300, "137")]);
    assert_eq!(seen["verdict"], "unknown");
    assert!(seen["missing"].to_string().contains("a kill event may be before them"), "{seen}");
}

#[test]
fn a_container_is_found_by_its_name_or_by_its_short_id() {
    let state = json!({"Status": "exited", "ExitCode": 3, "FinishedAt": "2026-11-22T13:05:00Z"});
    for name in ["web", &ID[..12]] {
        let wanted = Wanted { container: Some(name.to_owned()), ..Wanted::default() };
        let seen = wanted_report(Platform::Docker, wanted, &[inspect(&state, &json!({}))]);
        assert_eq!(seen["deaths"][0]["exit_code"], 3, "{name}");
    }
    let wanted = Wanted { container: Some("other".to_owned()), ..Wanted::default() };
    let seen = wanted_report(Platform::Docker, wanted, &[inspect(&state, &json!({}))]);
    assert_eq!(seen.get("deaths"), None);
}

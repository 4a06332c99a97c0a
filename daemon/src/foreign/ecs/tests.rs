//! ECS: what a reader must not mistake.

use serde_json::{Value, json};

use super::super::Platform;
use super::super::tests::{report, wanted_report};
use super::*;

fn stopped(number: u32, group: &str, more: &Value) -> Value {
    let mut task = json!({"taskArn": format!("arn:aws:ecs:eu:1:task/c/{number}"), "group": group,
        "clusterArn": "arn:aws:ecs:eu:1:cluster/c", "lastStatus": "STOPPED",
        "stopCode": "EssentialContainerExited",
        "stoppedReason": "Essential container in task exited",
        "startedAt": format!("2026-11-03T09:0{number}:00Z"),
        "stoppingAt": format!("2026-11-03T09:0{number}:28Z"),
        "executionStoppedAt": format!("2026-11-03T09:0{number}:40Z"),
        "stoppedAt": format!("2026-11-03T09:0{number}:55Z"),
        "containers": [{"name": "app", "exitCode": 1}]});
    for (key, value) in more.as_object().unwrap() {
        task[key] = value.clone();
    }
    task
}

#[test]
fn an_uptime_ends_with_the_container_and_not_with_the_clearing_away() {
    let seen = report(Platform::Ecs, &[stopped(1, "service:a", &json!({}))]);
    assert_eq!(seen["deaths"][0]["uptime_ms"], 28_000);
    let asked = json!({"stopCode": "UserInitiated", "stoppedReason": "x"});
    let seen = report(Platform::Ecs, &[stopped(1, "service:a", &asked)]);
    assert_eq!(seen["deaths"][0]["uptime_ms"], 40_000, "asked to stop, it went on to its end");
}

#[test]
fn of_several_groups_the_one_that_ended_last_is_reported_and_the_others_are_named() {
    let tasks = json!({"tasks": [stopped(1, "service:a", &json!({})),
        stopped(3, "service:b", &json!({})), stopped(2, "service:a", &json!({}))]});
    let seen = report(Platform::Ecs, std::slice::from_ref(&tasks));
    assert_eq!(seen["subject"], "ECS service b in cluster c");
    assert!(seen["missing"].to_string().contains("tasks of service:a are in the documents"));
    let wanted = Wanted { service: Some("a".to_owned()), ..Wanted::default() };
    let seen = wanted_report(Platform::Ecs, wanted, &[tasks]);
    assert_eq!(
        (&seen["subject"], &seen["loop"]["deaths"]),
        (&json!("ECS service a in cluster c"), &json!(2))
    );
}

#[test]
fn of_one_task_s_changes_the_last_counts() {
    let change = |status: &str, version: u32, more: &Value| {
        let mut detail = stopped(1, "service:a", more);
        detail["lastStatus"] = json!(status);
        detail["version"] = json!(version);
        json!({"detail-type": "ECS Task State Change", "source": "aws.ecs", "detail": detail})
    };
    let spot = json!({"stopCode": "SpotInterruption"});
    let notice = json!({"stopCode": "TerminationNotice"});
    let seen = report(
        Platform::Ecs,
        &[change("STOPPED", 9, &spot), change("RUNNING", 7, &notice), change("STOPPED", 8, &spot)],
    );
    assert_eq!((&seen["verdict"], seen["deaths"].as_array().unwrap().len()), (&json!("spot"), 1));
}

#[test]
fn another_container_s_137_is_a_consequence_and_not_the_cause() {
    let containers = json!({"containers": [{"name": "app", "exitCode": 137},
        {"name": "proxy", "exitCode": 3}]});
    let seen = report(Platform::Ecs, &[stopped(1, "service:a", &containers)]);
    assert_eq!((&seen["verdict"], &seen["confidence"]), (&json!("app_exit"), &json!("proved")));
    assert_eq!(seen["because"][0]["field"], "containers[1].exitCode");
}

#[test]
fn a_container_that_is_not_essential_decides_nothing() {
    let containers = json!({"containers": [{"name": "setup", "exitCode": 1},
        {"name": "app", "exitCode": 139}]});
    let task = stopped(1, "service:a", &containers);
    let definition = json!({"taskDefinition": {"containerDefinitions": [
        {"name": "setup", "essential": false}, {"name": "app", "essential": true}]}});
    let seen = report(Platform::Ecs, &[task, definition]);
    assert_eq!((&seen["verdict"], &seen["kind"]), (&json!("app_signal"), &json!("SIGSEGV")));
}

#[test]
fn the_stop_timeout_is_known_by_its_time_at_both_of_its_edges() {
    let verdict = |took_s: f64| {
        let start = 1_700_000_000.0;
        let more = json!({"stopCode": "UserInitiated", "stoppedReason": "x",
            "startedAt": start, "stoppingAt": start + 100.0,
            "executionStoppedAt": start + 100.0 + took_s, "stoppedAt": start + 300.0,
            "containers": [{"name": "app", "exitCode": 137}]});
        report(Platform::Ecs, &[stopped(1, "service:a", &more)])["verdict"].clone()
    };
    assert_eq!(verdict(28.4), "stopped_by_user");
    assert_eq!(verdict(28.6), "stop_timeout_kill");
    assert_eq!(verdict(44.9), "stop_timeout_kill");
    assert_eq!(verdict(46.0), "stopped_by_user");
}

#[test]
fn a_task_that_ecs_forgot_is_missing_by_its_name() {
    let answer = json!({"tasks": [], "failures": [{"arn": "arn:aws:ecs:eu:1:task/c/0a1b",
        "reason": "MISSING"}]});
    let seen = report(Platform::Ecs, &[answer]);
    let missing = seen["missing"][0].as_str().unwrap();
    assert!(missing.starts_with("0a1b: ECS does not know it: stopped tasks"), "{missing}");
}

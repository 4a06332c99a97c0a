//! Kubernetes: what a reader must not mistake.

use serde_json::{Value, json};

use super::super::Platform;
use super::super::tests::{report, wanted_report};
use super::*;

fn pod(name: &str, status: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"containers": [{"name": "app", "resources": {"limits": {"memory": "512Mi"}}}]},
        "status": status})
}

fn terminated(code: i32, reason: &str, finished_s: u32) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason,
        "startedAt": "2026-11-03T09:00:00Z",
        "finishedAt": format!("2026-11-03T09:00:{finished_s}Z")}})
}

fn event(at_s: u32, reason: &str, message: &str, container: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Event", "reason": reason, "message": message,
        "lastTimestamp": format!("2026-11-03T09:00:{at_s}Z"),
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "web",
            "fieldPath": format!("spec.containers{{{container}}}")}})
}

#[test]
fn crash_loop_back_off_is_a_state_and_the_last_end_the_cause() {
    let status = json!({"phase": "Running", "containerStatuses": [{"name": "app",
        "restartCount": 14, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": terminated(137, "OOMKilled", 28)}]});
    let seen = report(Platform::Kubernetes, &[pod("web", &status)]);
    assert_eq!((&seen["verdict"], &seen["confidence"]), (&json!("oom_limit"), &json!("proved")));
    assert_eq!((&seen["loop"]["deaths"], &seen["loop"]["deaths_read"]), (&json!(14), &json!(1)));
    assert_eq!(seen["deaths"][0]["uptime_ms"], 28_000);
    assert!(seen["remedy"]["diff"].as_str().unwrap().contains("+        memory: 2048Mi"));
}

#[test]
fn another_container_s_probe_ends_nothing_here() {
    let status = json!({"phase": "Running", "containerStatuses": [{"name": "app",
        "restartCount": 1, "state": {}, "lastState": terminated(137, "Error", 40)}]});
    let killing = "Container proxy failed liveness probe, will be restarted";
    let of_proxy = event(39, "Killing", killing, "proxy");
    let seen = report(Platform::Kubernetes, &[pod("web", &status), of_proxy]);
    assert_eq!(seen["verdict"], "unknown");
    let killing = "Container app failed liveness probe, will be restarted";
    let seen =
        report(Platform::Kubernetes, &[pod("web", &status), event(39, "Killing", killing, "app")]);
    assert_eq!(seen["verdict"], "health_container");
}

#[test]
fn events_of_the_newer_api_are_read_as_well() {
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "reason": "Evicted",
        "note": "The node was low on resource: memory.", "eventTime": "2026-11-03T09:00:10.123456Z",
        "regarding": {"kind": "Pod", "namespace": "shop", "name": "web"}});
    let seen = report(Platform::Kubernetes, &[event]);
    assert_eq!((&seen["verdict"], &seen["kind"]), (&json!("evicted"), &json!("memory")));
    assert_eq!(seen["subject"], "Kubernetes pod shop/web");
}

#[test]
fn of_several_pods_the_one_that_ended_last_is_reported() {
    let status = |code, at| {
        json!({"phase": "Running", "containerStatuses": [{"name": "app", "restartCount": 1,
            "state": {}, "lastState": terminated(code, "Error", at)}]})
    };
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [pod("a", &status(1, 20)),
        pod("b", &status(139, 40)), pod("c", &json!({"phase": "Running"}))]});
    let seen = report(Platform::Kubernetes, std::slice::from_ref(&list));
    assert_eq!(seen["subject"], "Kubernetes pod shop/b");
    assert!(seen["missing"].to_string().contains("2 more pods"));
    let wanted = Wanted {
        namespace: Some("shop".to_owned()),
        pod: Some("a".to_owned()),
        ..Wanted::default()
    };
    let seen = wanted_report(Platform::Kubernetes, wanted, &[list]);
    assert_eq!(
        (&seen["subject"], &seen["verdict"]),
        (&json!("Kubernetes pod shop/a"), &json!("app_exit"))
    );
}

#[test]
fn an_exit_code_that_the_node_made_up_is_no_kill() {
    let status = json!({"phase": "Failed", "containerStatuses": [{"name": "app",
        "state": terminated(137, "ContainerStatusUnknown", 28)}]});
    let seen = report(Platform::Kubernetes, &[pod("web", &status)]);
    assert_eq!((&seen["verdict"], seen.get("loop")), (&json!("unknown"), None));
    assert_eq!(seen["deaths"][0].get("exit_code"), None);
}

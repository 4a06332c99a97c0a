//! `why ecs|docker|k8s` against labelled documents: how often the cause is right, and that nothing
//! wrong is called proved.
//!
//! A document is daemon/tests/corpus/PLATFORM/NAME.json: {"source", "expect": {"verdict", "kind"?,
//! "at_most"?}, "log"?, "documents": […]}; the verdict "none" means that nothing ended. Invariant:
//! the program itself is asked, as its users do. Absent: recorded data of anybody.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const RIGHT_PERCENT_MIN: usize = 95;
const DOCUMENTS_MIN: usize = 60;

const PLATFORMS: [(&str, &str); 3] = [("ecs", "ecs"), ("docker", "docker"), ("kubernetes", "k8s")];

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

struct Case {
    name: String,
    command: &'static str,
    content: Value,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (folder, command) in PLATFORMS {
        let mut paths: Vec<PathBuf> = fs::read_dir(corpus().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        for path in paths {
            let content = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let name = format!("{folder}/{}", path.file_stem().unwrap().to_string_lossy());
            cases.push(Case { name, command, content });
        }
    }
    cases
}

/// The report of the program, which is asked with a file for each document.
fn report(case: &Case, more: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse"));
    command.args(["why", case.command]).args(more).env_clear().stdin(Stdio::null());
    for (index, document) in case.content["documents"].as_array().unwrap().iter().enumerate() {
        let path = folder.path().join(format!("{index}.json"));
        fs::write(&path, document.to_string()).unwrap();
        command.arg("--from").arg(path);
    }
    if let Some(log) = case.content["log"].as_str() {
        let path = folder.path().join("log");
        fs::write(&path, log).unwrap();
        command.arg("--log").arg(path);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{}: {err}", case.name);
    (out, err)
}

fn json_report(case: &Case) -> Value {
    serde_json::from_str(&report(case, &["--json"]).0).unwrap()
}

/// What is wrong with it, or nothing.
fn fault(expect: &Value, seen: &Value) -> Option<String> {
    let verdict = seen["verdict"].as_str().unwrap_or("none");
    let wanted = expect["verdict"].as_str().unwrap();
    if verdict != wanted {
        return Some(format!("{verdict} in place of {wanted}"));
    }
    let kind = seen["kind"].as_str().unwrap_or_default();
    if let Some(wanted) = expect["kind"].as_str().filter(|wanted| *wanted != kind) {
        return Some(format!("{verdict}: kind {kind:?} in place of {wanted:?}"));
    }
    let rank = |word: &str| ["possible", "likely", "proved"].iter().position(|it| *it == word);
    let confidence = seen["confidence"].as_str().unwrap_or("possible");
    let at_most = expect["at_most"].as_str().unwrap_or("proved");
    (rank(confidence) > rank(at_most)).then(|| format!("{verdict}: {confidence}, over {at_most}"))
}

#[test]
fn the_cause_of_labelled_ends_is_found_and_nothing_wrong_is_proved() {
    let cases = cases();
    assert!(cases.len() >= DOCUMENTS_MIN, "only {} documents", cases.len());
    let (mut wrong, mut wrong_proved) = (Vec::new(), 0);
    for case in &cases {
        let seen = json_report(case);
        if let Some(fault) = fault(&case.content["expect"], &seen) {
            wrong_proved += usize::from(seen["confidence"] == "proved");
            wrong.push(format!("  {}: {fault}", case.name));
        }
    }
    let right = cases.len() - wrong.len();
    let score = format!(
        "{right} of {} right, {wrong_proved} wrong proved\n{}",
        cases.len(),
        wrong.join("\n")
    );
    let mut out = std::io::stdout().lock();
    std::io::Write::write_all(&mut out, score.as_bytes()).unwrap();
    assert_eq!(wrong_proved, 0, "{score}");
    assert!(right * 100 >= cases.len() * RIGHT_PERCENT_MIN, "{score}");
}

#[test]
fn every_cause_that_a_platform_can_show_is_in_the_corpus() {
    let labels: Vec<Value> =
        cases().into_iter().map(|case| case.content["expect"]["verdict"].clone()).collect();
    for cause in [
        "app_exit",
        "app_signal",
        "config_rejected",
        "deploy_replaced",
        "disk_full",
        "evicted",
        "health_container",
        "health_lb",
        "host_lost",
        "image_pull",
        "init_failed",
        "killed_outside",
        "none",
        "oom_child",
        "oom_heap",
        "oom_host",
        "oom_limit",
        "placement",
        "port_taken",
        "spot",
        "start_failed",
        "start_timeout",
        "stop_timeout_kill",
        "stopped_by_user",
        "stopped_by_watchdog",
        "unknown",
    ] {
        assert!(labels.contains(&json!(cause)), "no document for {cause}");
    }
}

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

#[test]
fn the_loop_that_looked_healthy_is_seen_through() {
    let case = case("ecs/oom_loop_that_looks_healthy");
    let seen = json_report(&case);
    assert_eq!((&seen["verdict"], &seen["confidence"]), (&json!("oom_limit"), &json!("proved")));
    let history = &seen["loop"];
    assert_eq!((&history["deaths"], &history["phase"]), (&json!(7), &json!("fixed_uptime")));
    let near = |value: &Value, wanted: u64| value.as_u64().unwrap().abs_diff(wanted) <= 1_500;
    assert!(near(&history["period_ms_median"], 50_000), "{history}");
    assert!(near(&history["uptime_ms_median"], 28_000), "{history}");
    assert_eq!(history["exit_codes"], json!({"137": 7}));
    assert_eq!(seen["memory"]["limit_bytes"], 512 << 20);
    assert_eq!(seen["memory"]["peak_is_censored"], true);
    assert_eq!(seen["initiator"], "the kernel");
    let remedy = &seen["remedy"];
    assert!(remedy["diff"].as_str().unwrap().contains("\"containerDefinitions\""), "{remedy}");
    assert!(remedy["diff"].as_str().unwrap().contains("+  \"memory\": \"2048\""), "{remedy}");
    let not_health: Vec<&str> = seen["not_health"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["value"].as_str().unwrap())
        .collect();
    assert_eq!(not_health[..3], ["1", "COMPLETED", "0"]);
    assert_eq!(seen["deaths"].as_array().unwrap().len(), 7);

    for more in [&[][..], &["--markdown"]] {
        let (text, _) = report(&case, more);
        for words in ["peak is censored by the limit", "50 s from start to start", "28 s", "2048"] {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
        assert!(!text.contains("do-not-print-me"), "a value of its environment is shown");
    }
}

#[test]
fn what_ended_with_137_is_told_apart_by_evidence() {
    let verdicts: Vec<Value> = [
        "docker/oom_by_events",
        "docker/stop_timeout",
        "docker/killed_by_docker_kill",
        "docker/killed_from_outside_of_docker",
        "docker/killed_137_by_inspect_alone",
        "kubernetes/liveness_kill",
    ]
    .map(|name| json_report(&case(name))["verdict"].clone())
    .into();
    assert_eq!(
        json!(verdicts),
        json!([
            "oom_limit",
            "stop_timeout_kill",
            "stopped_by_user",
            "killed_outside",
            "unknown",
            "health_container"
        ])
    );
}

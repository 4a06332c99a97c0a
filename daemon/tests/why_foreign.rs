//! `why ecs|docker|k8s` as its users run it: from files, and by the platforms' own tools.
//!
//! The tools here are scripts that answer from files and write down what they were asked.
//! Invariant: nothing of the tester's own environment reaches the program, so no platform is ever
//! asked. Absent: whether causes are right (`diagnosis_corpus`).

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

struct Place(TempDir);

struct Seen {
    code: i32,
    out: String,
    err: String,
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{}{}", self.out, self.err))
    }
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }

    /// A tool that answers by its `place`th argument: "what" → standard output, or a complaint.
    fn tool(&self, name: &str, place: usize, answers: &[(&str, Result<Value, &str>)]) {
        let mut script = format!(
            "#!/bin/sh\nfor word in \"$@\"; do printf '%s\\n' \"[$word]\" >> {0}/asked; done\n\
             case \"${{{place}}}\" in\n",
            self.0.path().display()
        );
        for (what, answer) in answers {
            let (content, rest) = match answer {
                Ok(value) => (value.to_string(), String::new()),
                Err(complaint) => ((*complaint).to_owned(), ">&2; exit 254".to_owned()),
            };
            let path = self.file(&format!("{name}-{what}"), &content);
            script.push_str(&format!("{what}) /bin/cat {path} {rest};;\n"));
        }
        script.push_str("*) echo unexpected >&2; exit 1;;\nesac\n");
        let path = self.file(name, &script);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn why(&self, arguments: &[&str]) -> Seen {
        self.why_with(arguments, "")
    }

    fn why_with(&self, arguments: &[&str], input: &str) -> Seen {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse"));
        command.arg("why").args(arguments).env_clear().env("PATH", self.0.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Who is not asked to read it goes away first.
        let _: Result<(), std::io::Error> = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Seen {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

fn task(id: &str, reason: &str) -> Value {
    json!({"taskArn": format!("arn:aws:ecs:eu-west-1:1:task/prod/{id}"), "group": "service:api",
        "clusterArn": "arn:aws:ecs:eu-west-1:1:cluster/prod", "lastStatus": "STOPPED",
        "taskDefinitionArn": "arn:aws:ecs:eu-west-1:1:task-definition/api:4", "memory": "512",
        "stopCode": "EssentialContainerExited",
        "stoppedReason": "Essential container in task exited",
        "startedAt": "2026-11-03T09:00:00Z", "stoppedAt": "2026-11-03T09:00:28Z",
        "containers": [{"name": "app", "exitCode": 137, "reason": reason}]})
}

const OUT_OF_MEMORY: &str = "OutOfMemoryError: Container killed due to memory usage";

fn service() -> Value {
    json!({"services": [{"serviceName": "api", "runningCount": 1, "events": [
        {"createdAt": "2026-11-03T09:00:00Z",
         "message": "(service api) has started 1 tasks: (task 0f0f)."}]}], "failures": []})
}

#[test]
fn ecs_is_asked_through_its_own_tool_also_for_tasks_that_the_list_forgot() {
    let place = Place::new();
    place.tool(
        "aws",
        2,
        &[
            ("list-tasks", Ok(json!({"taskArns": ["arn:aws:ecs:eu-west-1:1:task/prod/0a0a"]}))),
            ("describe-clusters", Ok(cluster("ACTIVE"))),
            ("describe-services", Ok(service())),
            ("describe-tasks", Ok(json!({"tasks": [task("0f0f", OUT_OF_MEMORY)], "failures": []}))),
            (
                "describe-task-definition",
                Err("\nAn error occurred (AccessDeniedException) when calling: not authorized\n"),
            ),
        ],
    );
    let seen = place.why(&["ecs", "--cluster", "prod", "--service", "api", "--json"]);
    let report = seen.json();
    assert_eq!((seen.code, &report["verdict"]), (0, &json!("oom_limit")), "{}", seen.err);
    assert_eq!(report["subject"], "ECS service api in cluster prod");
    let missing = report["missing"].to_string();
    assert!(
        missing.contains("aws ecs describe-task-definition: not allowed (An error"),
        "{missing}"
    );
    let asked = place.read("asked").replace(['[', ']'], "").replace('\n', " ");
    let first = "ecs describe-clusters --clusters prod --output json ecs list-tasks ";
    assert!(asked.trim_start().starts_with(first), "{asked}");
    for call in [
        "ecs list-tasks --service-name api --desired-status STOPPED --cluster prod --output json",
        "ecs describe-services --services api --cluster prod --output json",
        "ecs describe-tasks --tasks 0a0a 0f0f --cluster prod --output json",
    ] {
        assert!(asked.contains(call), "{call} is not in {asked}");
    }
}

fn cluster(status: &str) -> Value {
    let arn = "arn:aws:ecs:eu-west-1:1:cluster/prod";
    json!({"clusters": [{"clusterArn": arn, "clusterName": "prod", "status": status,
        "registeredContainerInstancesCount": 0, "runningTasksCount": 0}], "failures": []})
}

#[test]
fn a_cluster_that_is_not_there_or_was_deleted_is_named_and_nothing_more_is_asked() {
    let unknown = json!({"clusters": [], "failures": [
        {"arn": "arn:aws:ecs:eu-west-1:1:cluster/prod", "reason": "MISSING"}]});
    for (answer, in_sentence, in_missing) in [
        (unknown, "cluster prod, which does not exist", "knows no cluster of this name"),
        (cluster("INACTIVE"), "cluster prod, which is INACTIVE", "it was deleted"),
    ] {
        let place = Place::new();
        place.tool("aws", 2, &[("describe-clusters", Ok(answer))]);
        let asking = ["ecs", "--cluster", "prod", "--service", "api", "--json"];
        let report = place.why(&asking).json();
        assert_eq!(report.get("verdict"), None, "{report}");
        assert!(report["sentence"].as_str().unwrap().contains(in_sentence), "{report}");
        assert!(report["missing"].to_string().contains(in_missing), "{report}");
        assert_eq!(report["missing"].as_array().unwrap().len(), 1, "{report}");
        let asked = place.read("asked");
        assert_eq!(asked.matches("[ecs]").count(), 1, "{asked}");
    }
}

#[test]
fn who_may_not_look_at_the_cluster_is_told_so_and_the_rest_is_asked_all_the_same() {
    let place = Place::new();
    let denied = "An error occurred (AccessDeniedException): not authorized to perform: \
                  ecs:DescribeClusters";
    place.tool(
        "aws",
        2,
        &[
            ("describe-clusters", Err(denied)),
            ("list-tasks", Ok(json!({"taskArns": ["arn:aws:ecs:eu-west-1:1:task/prod/0a0a"]}))),
            ("describe-services", Ok(service())),
            ("describe-tasks", Ok(json!({"tasks": [task("0f0f", OUT_OF_MEMORY)], "failures": []}))),
            ("describe-task-definition", Err("AccessDeniedException")),
        ],
    );
    let report = place.why(&["ecs", "--cluster", "prod", "--service", "api", "--json"]).json();
    assert_eq!(report["verdict"], "oom_limit", "{report}");
    let missing = report["missing"].to_string();
    assert!(missing.contains("aws ecs describe-clusters: not allowed"), "{missing}");
    assert!(missing.contains("ecs:DescribeClusters"), "{missing}");
}

#[test]
fn a_throttled_answer_is_never_read_as_nothing_ended() {
    let place = Place::new();
    let throttled = "An error occurred (ThrottlingException): Rate exceeded";
    place.tool(
        "aws",
        2,
        &[
            ("list-tasks", Ok(json!({"taskArns": ["t/0a0a"]}))),
            ("describe-services", Ok(service())),
            ("describe-tasks", Err(throttled)),
        ],
    );
    let report = place.why(&["ecs", "--service", "api", "--json"]).json();
    assert_eq!(report.get("verdict"), None);
    assert!(report["sentence"].as_str().unwrap().contains("not everything could be looked at"));
    assert!(report["missing"].to_string().contains("throttled, which says nothing"), "{report}");
}

#[test]
fn a_tool_that_is_not_there_is_an_error_with_the_way_around_it() {
    let place = Place::new();
    let seen = place.why(&["docker", "web"]);
    assert_eq!((seen.code, seen.out.as_str()), (1, ""));
    assert!(seen.err.contains("not installed, or not in PATH"), "{}", seen.err);
    assert!(seen.err.contains("--from FILE"), "{}", seen.err);
}

#[test]
fn docker_is_asked_for_its_events_and_the_log_as_well() {
    let place = Place::new();
    let state = json!({"Status": "exited", "ExitCode": 134, "Running": false,
        "StartedAt": "2026-11-03T09:00:00Z", "FinishedAt": "2026-11-03T09:10:00Z"});
    place.tool(
        "docker",
        1,
        &[
            ("inspect", Ok(json!([{"Id": "a".repeat(64), "Name": "/web", "State": state}]))),
            ("events", Err("\n")),
            ("logs", Ok(json!("FATAL ERROR: Reached heap limit: JavaScript heap out of memory"))),
        ],
    );
    let report = place.why(&["docker", "web", "--json"]).json();
    assert_eq!((&report["verdict"], &report["confidence"]), (&json!("oom_heap"), &json!("proved")));
    assert!(report["missing"].to_string().contains("docker events: it failed"), "{report}");
}

#[test]
fn a_name_reaches_the_tool_as_one_argument_and_never_as_an_option() {
    let place = Place::new();
    place.tool("docker", 1, &[("inspect", Err("Error: No such container: x"))]);
    let name = "x;>touched$(>touched)`>touched`";
    let seen = place.why(&["docker", name]);
    assert_eq!(seen.code, 1);
    assert!(seen.err.contains("not there, or not there any more"), "{}", seen.err);
    assert!(place.read("asked").lines().any(|line| line == format!("[{name}]")));
    assert!(!place.0.path().join("touched").exists());
    for arguments in [
        &["docker", "--from=x", "--", "-v"][..],
        &["k8s", "shop/--all"],
        &["ecs", "--service=--debug"],
        &["ecs"],
        &["ecs", "--cluster", "c"],
        &["docker"],
        &["docker", "--from", "x", "--markdown", "--json"],
        &["ecs", "--service", "a", "--task", "b"],
        &[],
    ] {
        let seen = place.why(arguments);
        assert_eq!((seen.code, seen.out.as_str()), (2, ""), "{arguments:?}: {}", seen.err);
    }
}

#[test]
fn of_a_pod_that_is_gone_its_events_are_left() {
    let place = Place::new();
    let evicted = json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "Event",
        "apiVersion": "v1", "reason": "Evicted", "message": "The node was low on resource: memory.",
        "lastTimestamp": "2026-11-03T09:00:00Z",
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "web-1"}}]});
    let gone = "Error from server (NotFound): pods \"web-1\" not found";
    place.tool("kubectl", 2, &[("pod", Err(gone)), ("events", Ok(evicted))]);
    let report = place.why(&["k8s", "shop/web-1", "--json"]).json();
    assert_eq!((&report["verdict"], &report["kind"]), (&json!("evicted"), &json!("memory")));
    assert!(report["missing"].to_string().contains("kubectl get pod: not there"), "{report}");
}

#[test]
fn files_and_standard_input_need_no_tool_and_no_name() {
    let place = Place::new();
    let tasks = json!({"tasks": [task("0a", OUT_OF_MEMORY)]}).to_string();
    let seen = place.why_with(&["ecs", "--from", "-", "--json"], &tasks);
    assert_eq!(seen.json()["verdict"], "oom_limit");
    let file = place.file("tasks.json", &tasks);
    let services = place.file("services.json", &service().to_string());
    let seen = place.why(&["ecs", "--from", &file, "--from", &services, "--json"]);
    assert_eq!(seen.json()["not_health"][0]["value"], "1");
}

#[test]
fn what_more_memory_costs_is_named_where_the_config_has_prices() {
    let place = Place::new();
    let inspected = json!([{"Id": "0123456789ab", "Name": "/web", "RestartCount": 0,
        "HostConfig": {"Memory": 536_870_912},
        "State": {"Status": "exited", "Running": false, "OOMKilled": true, "ExitCode": 137,
            "StartedAt": "2026-01-01T10:00:00Z", "FinishedAt": "2026-01-01T10:00:28Z"}}]);
    let file = place.file("inspect.json", &inspected.to_string());
    let event = json!({"Type": "container", "Action": "oom", "time": 1_767_261_628,
        "Actor": {"ID": "0123456789ab", "Attributes": {"name": "web"}}});
    let events = place.file("events.json", &event.to_string());
    let config = "[prices]\nmemory_gib_month = 3.50\ncurrency = \"USD\"\n";
    let config = place.file("priced.toml", config);
    let of_files = ["docker", "--from", &file, "--from", &events];
    let priced = [&of_files[..], &["--config", &config]].concat();
    let cost = "+1.5 GiB, about 5.25 USD a month";
    let seen = place.why(&priced);
    assert!(seen.out.contains(cost), "{}{}", seen.out, seen.err);
    let value = place.why(&[&priced[..], &["--json"]].concat()).json();
    assert_eq!(value["remedy"]["monthly_difference"], cost);
    let unpriced = place.why(&of_files);
    assert!(!unpriced.out.contains("a month"), "{}", unpriced.out);
    let wrong = place.file("wrong.toml", "[prices]\nmemory_gib_month = -1\ncurrency = \"USD\"\n");
    let seen = place.why(&[&of_files[..], &["--config", &wrong]].concat());
    assert_eq!(seen.code, unpriced.code, "{}", seen.err);
    let words = seen.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("what memory costs: the config") && words.contains("line 2"), "{words}");
}

#[test]
fn a_document_that_cannot_be_used_is_refused_by_its_name_and_place() {
    let place = Place::new();
    let refusal = |name: &str, content: &str| {
        let file = place.file(name, content);
        let seen = place.why(&["k8s", "--from", &file]);
        assert_eq!((seen.code, seen.out.as_str()), (2, ""), "{}", seen.err);
        seen.err
    };
    let err = refusal("broken.json", "{\"kind\": \"Pod\",\n \"status\": }");
    assert!(err.contains("broken.json is not JSON: line 2, column 12"), "{err}");
    let err = refusal("tasks.json", "{\"tasks\": []}");
    assert!(err.contains("tasks.json is of Amazon ECS, and was read for Kubernetes"), "{err}");
    assert!(refusal("empty", "").contains("empty is empty"));
    let gone = place.why(&["k8s", "--from", "/no/such/file"]);
    assert_eq!(gone.code, 10);
    assert!(gone.err.contains("/no/such/file cannot be read"), "{}", gone.err);
}

#[test]
fn no_control_character_of_a_document_reaches_the_terminal() {
    let place = Place::new();
    let mut hostile = task("0a\u{1b}[31m", "x");
    hostile["stopCode"] = json!("UserInitiated");
    hostile["stoppedReason"] = json!("\u{1b}]0;owned\u{7}\u{202e}```\n# heading");
    hostile["group"] = json!("service:\u{9b}2J");
    let document = json!({"tasks": [hostile]}).to_string();
    for more in [&[][..], &["--json"], &["--markdown"]] {
        let arguments = [&["ecs", "--from", "-"], more].concat();
        let seen = place.why_with(&arguments, &document);
        let is_hostile = |c: &char| (c.is_control() && *c != '\n') || *c == '\u{202e}';
        assert_eq!(seen.out.chars().find(is_hostile), None, "{}", seen.out);
        assert!(seen.out.contains("stopped_by_user") || seen.out.contains("stopped\\_by\\_user"));
        assert!(!seen.out.lines().any(|line| line == "# heading"), "{}", seen.out);
    }
}

//! The real OpenClaw under less memory than it needs: it is killed, gets more, and answers.
//!
//! Owner: `cargo xtask ci` for the version that `cargo xtask provision` installs; the newest one
//! takes minutes and is asked for by name (see its test). Invariants: nothing is faked between the
//! kernel's kill and what `why` says of it; where no memory limit can be set the tests say aloud
//! that they are skipped. Absent: that OpenClaw remembers (`e2e_openclaw`), and agents that die in
//! other ways (`e2e_deaths`).

#[expect(dead_code, reason = "each test program uses a part of what they share")]
mod support;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::agents::python;
use support::http::{Client, decisions};
use support::scratch::say;
use support::waiting::within;
use support::{Daemon, Setup};

const TOKEN: &str = "only-for-this-test";
const SESSION: &str = "openclaw/ann";
const MIB: u64 = 1 << 20;
/// Of all starts together: each takes half a minute on a busy machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(420);

fn checkout() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("the crate is in the checkout").to_owned()
}

/// Where `cargo xtask provision PART` has put it.
fn provisioned(part: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let path = target.unwrap_or_else(|| checkout().join("target")).join("provision").join(part);
    // The last thing that an installation writes.
    if path.join("provisioned.txt").exists() {
        return Some(path);
    }
    let is_left_out = std::env::var_os("DORMOUSE_SKIP_OPENCLAW").is_some_and(|value| value == "1");
    assert!(is_left_out, "{} is not whole: run `cargo xtask provision {part}`", path.display());
    say("SKIPPED: OpenClaw is not installed, and DORMOUSE_SKIP_OPENCLAW=1");
    None
}

/// The model server, ended with the test.
struct Model {
    child: Child,
    port: u64,
}

impl Model {
    fn start() -> Self {
        let mut child = Command::new(python())
            .arg(checkout().join("examples/openclaw/scripted_model.py"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python can be executed");
        let stdout = child.stdout.take().expect("it was asked for");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("it says its port");
        let said: Value = serde_json::from_str(&line).expect("one JSON line");
        Self { child, port: said["port"].as_u64().expect("a port") }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a gateway is given, and how it is started besides.
struct Given<'a> {
    openclaw: &'a Path,
    model: &'a Model,
    memory_mib: u64,
    ceiling_mib: u64,
    /// Lines of its `env`.
    environment: &'a str,
    /// Options of `gateway.mjs`, as TOML's strings, each with a comma before it.
    options: &'a str,
}

fn daemon_with(given: &Given<'_>) -> Daemon {
    Setup::new()
        .config(&format!(
            "[agents.openclaw]\n\
             command = [\"{openclaw}/bin/node\", \"{{examples}}/openclaw/gateway.mjs\", \
                        \"--port\", \"{{port}}\", \
                        \"--openclaw\", \"{openclaw}/node_modules/openclaw\"{options}]\n\
             memory = \"{memory_mib}MiB\"\n\
             memory_ceiling = \"{ceiling_mib}MiB\"\n\
             idle = {{ stop_after = \"10m\" }}\n\
             start = {{ ready_within = \"3m\" }}\n\
             stop = {{ grace = \"2s\" }}\n\
             [agents.openclaw.adapter]\n\
             kind = \"openai\"\n\
             url = \"http://127.0.0.1:{{port}}/v1\"\n\
             ready = \"/readyz\"\n\
             model = \"openclaw\"\n\
             headers = {{ authorization = \"Bearer {TOKEN}\" }}\n\
             [agents.openclaw.env]\n\
             OPENCLAW_GATEWAY_TOKEN = \"{TOKEN}\"\n\
             MODEL_URL = \"http://127.0.0.1:{port}/v1\"\n\
             {environment}\n",
            openclaw = given.openclaw.display(),
            port = given.model.port,
            memory_mib = given.memory_mib,
            ceiling_mib = given.ceiling_mib,
            environment = given.environment,
            options = given.options,
        ))
        .start()
}

/// Whether memory limits hold here; a test that cannot have them says so loudly.
fn has_memory_limits(daemon: &Daemon) -> bool {
    let doctor = daemon.cli(&["doctor", "--json"]).out;
    let doctor: Value = serde_json::from_str(&doctor).expect("one JSON value");
    let checks = doctor["checks"].as_array().expect("a list");
    let holds = checks.iter().any(|c| c["name"] == "memory limits" && c["state"] == "ok");
    if !holds {
        say("SKIPPED: no memory control groups can be made here");
    }
    holds
}

/// The message when it has ended, after as many starts as it takes.
fn ended(client: &Client, id: &str) -> Value {
    within(ANSWERED_WITHIN, "the message to end", || {
        let message = client.get(&format!("/v1/messages/{id}?wait=20s")).expect(200);
        let state = message["state"].as_str().unwrap_or_default().to_owned();
        matches!(state.as_str(), "answered" | "dead" | "cancelled").then_some(message)
    })
}

/// Each raise of the limit, oldest first, in MiB.
fn raises(client: &Client) -> Vec<(u64, u64)> {
    let journal = client.journal(SESSION);
    let mib = |row: &Value, name: &str| row["because"][name].as_u64().expect("bytes") / MIB;
    let raised = decisions(&journal, "memory_raised");
    raised.iter().map(|row| (mib(row, "from_bytes"), mib(row, "to_bytes"))).collect()
}

/// One message under too little memory; checks everything that must hold of its way to the answer,
/// and gives the deaths, oldest first.
fn climbs_until_it_answers(given: &Given<'_>) -> Option<Vec<Value>> {
    let daemon = daemon_with(given);
    if !has_memory_limits(&daemon) {
        return None;
    }
    let client = daemon.client();
    let sent_at = Instant::now();
    let id = client.submit(SESSION, "remember the word bluebell");
    let message = ended(&client, &id);
    let took = sent_at.elapsed();
    let why = daemon.cli(&["why", SESSION, "--json"]).json();
    let mut deaths = why["exits"].as_array().expect("a list").clone();
    deaths.reverse();
    tell(given, took, &deaths, &why);

    assert_eq!(message["state"], "answered", "{message}\n{}", daemon.cli(&["why", SESSION]).out);
    assert!(message["reply"].as_str().is_some_and(|text| text.contains("bluebell")), "{message}");
    let dead = daemon.count("SELECT count(*) FROM message WHERE state = 'dead'");
    assert_eq!((daemon.count("SELECT count(*) FROM message"), dead), (1, 0));
    let journal = client.journal(SESSION);
    assert_eq!(decisions(&journal, "turn_answered").len(), 1, "answered once: {journal:?}");

    assert!(!deaths.is_empty(), "it has enough with {} MiB", given.memory_mib);
    for death in &deaths {
        let verdict = (&death["verdict"], &death["confidence"]);
        assert_eq!(verdict, (&json!("oom_limit"), &json!("proved")), "{death}");
    }
    let starts = client.generation(SESSION);
    assert_eq!(starts, deaths.len() as u64 + 1, "no start but after a death: {why}");
    limit_was_doubled_after_each(&daemon, given, deaths.len());
    Some(deaths)
}

/// The journal, `why` as JSON and `why` as text tell the same story.
fn limit_was_doubled_after_each(daemon: &Daemon, given: &Given<'_>, deaths: usize) {
    let doubled = |step: usize| (given.memory_mib << step).min(given.ceiling_mib);
    let expected: Vec<_> = (0..deaths).map(|step| (doubled(step), doubled(step + 1))).collect();
    assert_eq!(raises(&daemon.client()), expected);

    let why = daemon.cli(&["why", SESSION, "--json"]).json();
    let exit = &why["last_exit"];
    let diagnosis = (&exit["diagnosis"]["verdict"], &exit["diagnosis"]["confidence"]);
    assert_eq!(diagnosis, (&json!("oom_limit"), &json!("proved")), "{exit}");
    assert_eq!(exit["evidence"]["memory_limit_bytes"], doubled(deaths - 1) * MIB, "{exit}");
    let memory = &why["memory"];
    assert_eq!(memory["limit_bytes"], doubled(deaths) * MIB, "{memory}");
    assert_eq!(memory["first_bytes"], given.memory_mib * MIB, "{memory}");
    assert_eq!(
        (&memory["because"], &memory["last_peak_is_censored"]),
        (&json!("oom_limit"), &json!(true))
    );

    let page = daemon.cli(&["why", SESSION]).ok();
    let (from, to) = expected[deaths - 1];
    let raise = format!("its memory limit goes from {from} MiB to {to} MiB for the next start");
    for words in ["oom_limit, proved: ", "cut off by the limit", raise.as_str()] {
        assert!(page.contains(words), "{words:?} is not in\n{page}");
    }
}

/// The figures, for who wants them (`--no-capture`).
fn tell(given: &Given<'_>, took: Duration, deaths: &[Value], why: &Value) {
    let seconds = |death: &Value| death["uptime_ms"].as_u64().unwrap_or_default() / 1_000;
    let lives: Vec<String> = deaths
        .iter()
        .map(|death| format!("{} after {} s, {}", death["verdict"], seconds(death), death["phase"]))
        .collect();
    let limit = why["memory"]["limit_bytes"].as_u64().unwrap_or_default() / MIB;
    let from = given.memory_mib;
    say(&format!("from {from} MiB to {limit} MiB in {took:.1?}; deaths: {lives:?}"));
}

/// A heap as of a big machine lets it die of the group's limit: with a heap that V8 itself fits to
/// the group, this version neither dies nor becomes ready, but reads its own program from the disk
/// again and again.
const BIG_HEAP: &str = "NODE_OPTIONS = \"--max-old-space-size=1024\"";

#[test]
fn openclaw_that_is_killed_before_it_is_ready_gets_twice_as_much_until_it_answers() {
    let Some(openclaw) = provisioned("openclaw") else { return };
    let model = Model::start();
    let given = Given {
        openclaw: &openclaw,
        model: &model,
        memory_mib: 160,
        ceiling_mib: 2_048,
        environment: BIG_HEAP,
        options: "",
    };
    let Some(deaths) = climbs_until_it_answers(&given) else { return };
    assert_eq!(deaths[0]["phase"], "starting", "{deaths:?}");
    assert_eq!(deaths[0]["message_in_flight"], Value::Null, "{deaths:?}");
}

/// A config that is JSON and no config: the launcher lets it through, OpenClaw itself refuses it.
#[test]
fn openclaw_that_refuses_its_config_is_told_from_one_that_has_too_little_memory() {
    let Some(openclaw) = provisioned("openclaw") else { return };
    let model = Model::start();
    let daemon = daemon_with(&Given {
        openclaw: &openclaw,
        model: &model,
        memory_mib: 1_024,
        ceiling_mib: 2_048,
        environment: "",
        options: ", \"--config\", \"{scratch}/refused.json\"",
    });
    let client = daemon.client();
    std::fs::write(daemon.folder().join("refused.json"), "{}\n").expect("the folder is ours");
    let id = client.submit(SESSION, "hello");
    let exit = within(Duration::from_secs(60), "OpenClaw to refuse its config", || {
        Some(client.why(SESSION)["last_exit"].clone()).filter(|exit| !exit.is_null())
    });
    assert_eq!(exit["evidence"]["end"], json!({ "how": "exited", "code": 78 }), "{exit}");
    let diagnosis = (&exit["diagnosis"]["verdict"], &exit["diagnosis"]["confidence"]);
    assert_eq!(diagnosis, (&json!("config_rejected"), &json!("likely")), "{exit}");
    assert_eq!(client.message(&id)["state"], "pending", "it waits for a better config");
    let session = client.session(SESSION);
    let state = (&session["phase"], &session["generation"]);
    assert_eq!(state, (&json!("tripped"), &json!(1)), "not started again at once: {session}");
    assert_eq!(raises(&client), [], "no limit is at fault");
    let page = daemon.cli(&["why", SESSION]).ok();
    assert!(page.contains("config_rejected, likely: "), "{page}");
}

#[test]
#[ignore = "takes minutes: cargo xtask provision openclaw-newest && \
            cargo test -p dormouse --test e2e_openclaw_memory -- --ignored --test-threads=1"]
fn the_newest_openclaw_is_killed_before_it_is_ready_and_answers_in_the_end() {
    let Some(openclaw) = provisioned("openclaw-newest") else { return };
    let model = Model::start();
    let given = Given {
        openclaw: &openclaw,
        model: &model,
        memory_mib: 512,
        ceiling_mib: 4_096,
        environment: "",
        options: "",
    };
    let Some(deaths) = climbs_until_it_answers(&given) else { return };
    assert_eq!(deaths[0]["phase"], "starting", "{deaths:?}");
}

#[test]
#[ignore = "takes minutes: cargo xtask provision openclaw-newest && \
            cargo test -p dormouse --test e2e_openclaw_memory -- --ignored --test-threads=1"]
fn the_newest_openclaw_that_is_killed_by_its_first_message_answers_that_message() {
    let Some(openclaw) = provisioned("openclaw-newest") else { return };
    let model = Model::start();
    let given = Given {
        openclaw: &openclaw,
        model: &model,
        memory_mib: 1_024,
        ceiling_mib: 4_096,
        environment: "",
        options: "",
    };
    let Some(deaths) = climbs_until_it_answers(&given) else { return };
    let last = deaths.last().expect("there is one");
    assert_ne!(last["message_in_flight"], Value::Null, "the message was in work: {deaths:?}");
}

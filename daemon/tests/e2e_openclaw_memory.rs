//! The real OpenClaw under less memory than it needs: it is killed, gets more, and answers.
//!
//! Owner: `cargo xtask ci` for the version that `cargo xtask provision` installs; the newest one
//! takes minutes and is asked for by name (see its test). Invariants: nothing is faked between the
//! kernel's kill and what `why` says of it; where no memory limit can be set the tests say aloud
//! that they are skipped. Absent: that OpenClaw remembers (`e2e_openclaw`), and agents that die in
//! other ways (`e2e_deaths`).

#[expect(dead_code, reason = "each test program uses a part of what they share")]
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::Daemon;
use support::http::decisions;
use support::openclaw::{
    Gateway, MIB, Model, daemon_with, deaths, ended, has_memory_limits, provisioned, raises,
};
use support::scratch::say;
use support::waiting::within;

const SESSION: &str = "openclaw/ann";
/// Of all starts together: each takes half a minute on a busy machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(420);

/// How much a gateway is given.
struct Given<'a> {
    openclaw: &'a Path,
    model: &'a Model,
    memory_mib: u64,
    ceiling_mib: u64,
    /// Lines of its `env`.
    environment: &'a str,
    /// `Gateway::template`.
    template: Option<&'a str>,
}

impl Given<'_> {
    fn start(&self) -> Daemon {
        let settings = format!(
            "memory = \"{}MiB\"\n\
             memory_ceiling = \"{}MiB\"\n\
             idle = {{ stop_after = \"10m\" }}\n\
             start = {{ ready_within = \"3m\" }}\n\
             stop = {{ grace = \"2s\" }}",
            self.memory_mib, self.ceiling_mib
        );
        daemon_with(&Gateway {
            installation: self.openclaw,
            package: "openclaw",
            model: self.model,
            ready: "/readyz",
            template: self.template,
            settings: &settings,
            environment: self.environment,
        })
    }
}

/// One message under too little memory; checks everything that must hold of its way to the answer,
/// and gives the deaths, oldest first.
fn climbs_until_it_answers(given: &Given<'_>) -> Option<Vec<Value>> {
    let daemon = given.start();
    if !has_memory_limits(&daemon) {
        return None;
    }
    let client = daemon.client();
    let sent_at = Instant::now();
    let id = client.submit(SESSION, "remember the word bluebell");
    let message = ended(&client, &id, ANSWERED_WITHIN);
    let took = sent_at.elapsed();
    let why = daemon.cli(&["why", SESSION, "--json"]).json();
    let deaths = deaths(&client, SESSION);
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
    assert_eq!(raises(&daemon.client(), SESSION), expected);

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
        template: None,
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
    let given = Given {
        openclaw: &openclaw,
        model: &model,
        memory_mib: 1_024,
        ceiling_mib: 2_048,
        environment: "",
        template: Some("{}\n"),
    };
    let daemon = given.start();
    let client = daemon.client();
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
    assert_eq!(raises(&client, SESSION), [], "no limit is at fault");
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
        template: None,
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
        template: None,
    };
    let Some(deaths) = climbs_until_it_answers(&given) else { return };
    let last = deaths.last().expect("there is one");
    assert_ne!(last["message_in_flight"], Value::Null, "the message was in work: {deaths:?}");
}

//! A new revision of an agent is tried by one session, and what is bad is not used.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use serde_json::{Value, json};
use support::{Daemon, Setup};

/// One process per turn, whose script is the whole revision.
fn agent(script: &str) -> String {
    let command = json!(["sh", "-c", script]);
    format!("[agents.a]\ncommand = {command}\nadapter = {{ kind = \"exec\" }}\n")
}

/// A long-lived agent: what it does before it is ready, and what it answers.
fn living(before: &str, answer: &str) -> String {
    let script = format!(
        "{before}\necho '{{\"ready\": true}}'\nwhile read -r line; do\n\
         turn=$(echo \"$line\" | sed 's/.*\"turn\": *\"\\([^\"]*\\)\".*/\\1/')\n\
         echo \"{{\\\"turn\\\": \\\"$turn\\\", \\\"done\\\": \\\"{answer}\\\"}}\"\ndone"
    );
    let command = json!(["sh", "-c", script]);
    format!("[agents.a]\ncommand = {command}\nadapter = {{ kind = \"jsonl\", ready = true }}\n")
}

fn started(config: &str) -> Daemon {
    Setup::new().config(config).start()
}

/// The rest of the file stays as it was.
fn edited(daemon: &mut Daemon, config: &str) {
    daemon.set_config(&format!("[server]\nlisten = \"127.0.0.1:0\"\n{config}"));
}

/// The daemon ends, the file changes, and the daemon starts.
fn restarted_with(daemon: &mut Daemon, config: &str) {
    assert!(daemon.terminate().success());
    edited(daemon, config);
    daemon.start_again();
}

fn shown(daemon: &Daemon) -> Value {
    daemon.client().get("/v1/agents").expect(200)[0].clone()
}

fn sleeps(daemon: &Daemon, session: &str) {
    daemon.cli(&["stop", session]).ok();
    support::until("it to sleep", || {
        let phase = daemon.client().get(&format!("/v1/sessions/{session}")).json();
        (phase["phase"] == "asleep").then_some(())
    });
}

#[test]
fn a_revision_that_cannot_start_is_tried_once_and_the_message_is_answered_by_the_good_one() {
    let mut daemon = started(&living("", "one"));
    assert_eq!(daemon.client().ask("a/x", "hello"), "one");
    assert_eq!(
        (&shown(&daemon)["revision"], &shown(&daemon)["rollout"]),
        (&json!(1), &Value::Null)
    );
    sleeps(&daemon, "a/x");

    restarted_with(&mut daemon, &living("echo no such voice >&2; exit 3", "two"));
    assert!(shown(&daemon)["rollout"].as_str().unwrap().contains("will be tried"));
    let client = daemon.client();
    assert_eq!(client.ask("a/x", "hello"), "one", "it never left the good revision");
    assert_eq!(client.ask("a/y", "hello"), "one", "and nobody else gets the bad one");
    assert_eq!(client.generation("a/y"), 1);
    let rollout = shown(&daemon)["rollout"].as_str().unwrap().to_owned();
    assert!(rollout.contains("revision 2 is bad") && rollout.contains("app_exit"), "{rollout}");
    let agents = daemon.cli(&["agents"]).ok();
    assert!(agents.contains("a: revision 2 is bad, and not used"), "{agents}");
    let why = daemon.cli(&["why", "a/x"]).ok();
    assert!(why.contains("it tries revision 2"), "{why}");

    restarted_with(&mut daemon, &living("", "three"));
    let client = daemon.client();
    sleeps(&daemon, "a/y");
    assert_eq!(client.ask("a/y", "hello"), "three", "the next one gets a trial of its own");
    assert_eq!(
        (&shown(&daemon)["revision"], &shown(&daemon)["rollout"]),
        (&json!(3), &Value::Null)
    );
}

#[test]
fn a_revision_that_starts_and_answers_with_an_error_is_not_used_either() {
    let mut daemon = started(&agent("echo one"));
    assert_eq!(daemon.client().ask("a/x", "hello"), "one\n");
    sleeps(&daemon, "a/x");
    restarted_with(&mut daemon, &agent("echo 'unknown model nope/none' >&2; exit 1"));
    let client = daemon.client();
    assert_eq!(client.ask("a/x", "hello"), "one\n");
    let rollout = shown(&daemon)["rollout"].as_str().unwrap().to_owned();
    assert!(rollout.contains("revision 2 is bad"), "{rollout}");
    assert!(rollout.contains("the others run revision 1"), "{rollout}");

    let rollout = |what: &str| daemon.cli(&["rollout", what, "a"]).ok();
    assert!(rollout("abort").contains("done"));
    assert!(rollout("abort").contains("nothing to do"));
    assert!(shown(&daemon)["rollout"].as_str().unwrap().contains("was given up by"));
    assert!(rollout("retry").contains("done"));
    assert!(shown(&daemon)["rollout"].as_str().unwrap().contains("will be tried"));
    let call = |path: &str| daemon.client().call("POST", path).send();
    call("/v1/agents/a/rollout/sing").error(400);
    call("/v1/agents/b/rollout/retry").error(404);
    let stranger = daemon.client_of("tom");
    stranger.call("POST", "/v1/agents/a/rollout/retry").send().error(403);
}

#[test]
fn a_change_of_what_is_live_makes_no_revision() {
    let mut daemon = started(&agent("echo one"));
    assert_eq!(daemon.client().ask("a/x", "hello"), "one\n");
    restarted_with(&mut daemon, &format!("{}turn.attempts = 1\n# a word\n", agent("echo one")));
    assert_eq!(daemon.client().ask("a/x", "hello"), "one\n");
    assert_eq!(
        (&shown(&daemon)["revision"], &shown(&daemon)["rollout"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(daemon.client().generation("a/x"), 1, "and the agent went on");
}

#[test]
fn an_edited_config_comes_into_force_and_a_wrong_one_changes_nothing() {
    let mut daemon = started(&living("", "one"));
    assert_eq!(daemon.client().ask("a/x", "hello"), "one");

    let wrong = format!("{}turn.atempts = 1\n", living("", "two"));
    edited(&mut daemon, &wrong);
    let refused = daemon.cli(&["config", "apply"]);
    assert_ne!(refused.code, Some(0));
    let told = format!("{}{}", refused.out, refused.err);
    assert!(told.contains("Did you mean `attempts`?"), "{told}");
    assert_eq!(daemon.client().ask("a/y", "hello"), "one", "the old one serves on");

    edited(&mut daemon, &living("", "two"));
    let applied = daemon.cli(&["config", "apply"]).ok();
    assert!(applied.contains("config 2 is in force"), "{applied}");
    let client = daemon.client();
    assert_eq!(client.ask("a/x", "hello"), "one", "an agent that is awake goes on as it is");
    sleeps(&daemon, "a/x");
    assert_eq!(client.ask("a/x", "hello"), "two");
    assert_eq!(client.ask("a/y", "hello"), "one", "until it is idle");
}

fn with_canary(config: &str) -> String {
    format!("{config}canary = {{ text = \"who are you?\", expects = \"agent\" }}\n")
}

fn rollout_becomes(daemon: &Daemon, words: &str) -> String {
    support::until(words, || {
        let rollout = shown(daemon)["rollout"].as_str().unwrap_or("in force").to_owned();
        rollout.contains(words).then_some(rollout)
    })
}

fn applied(daemon: &mut Daemon, config: &str) {
    edited(daemon, config);
    daemon.cli(&["config", "apply"]).ok();
}

#[test]
fn a_canary_turn_tries_a_revision_before_anybody_else_has_it() {
    let mut daemon = started(&with_canary(&living("", "agent one")));
    let client = daemon.client();
    assert_eq!(client.ask("a/x", "hello"), "agent one");
    sleeps(&daemon, "a/x");

    // Every probe is green, and every answer is wrong.
    applied(&mut daemon, &with_canary(&living("", "unknown model")));
    let rollout = rollout_becomes(&daemon, "revision 2 is bad");
    assert!(rollout.contains("does not contain \"agent\""), "{rollout}");
    assert_eq!(client.ask("a/x", "hello"), "agent one");
    let journal = client.journal("a/x");
    assert!(!journal.iter().any(|row| row.to_string().contains("tries revision")), "{journal:?}");

    applied(&mut daemon, &with_canary(&living("", "agent three")));
    rollout_becomes(&daemon, "in force");
    sleeps(&daemon, "a/x");
    assert_eq!(client.ask("a/x", "hello"), "agent three");

    // What it is asked again for is not asked of what runs still.
    let tried = daemon.path("tried");
    let fourth = format!("echo >> {tried}; test -e {tried}.may || exit 3");
    applied(&mut daemon, &with_canary(&living(&fourth, "agent four")));
    rollout_becomes(&daemon, "revision 4 is bad");
    let runs = || std::fs::read_to_string(&tried).unwrap().lines().count();
    assert_eq!(runs(), 1);
    daemon.touch("tried.may");
    daemon.cli(&["rollout", "retry", "a"]).ok();
    rollout_becomes(&daemon, "in force");
    assert_eq!((&shown(&daemon)["revision"], runs()), (&json!(4), 2));

    // Who could write to that session could decide what is good.
    daemon.client_of("tom").submission("a/canary", "agent").send().error(403);
}

#[test]
fn a_canary_turn_is_asked_after_a_start_too_and_once() {
    let mut daemon = started(&with_canary(&living("", "agent one")));
    assert_eq!(daemon.client().ask("a/x", "hello"), "agent one");
    let slow = format!("test -e {} || sleep 1", daemon.path("go"));
    restarted_with(&mut daemon, &with_canary(&living(&slow, "agent two")));
    daemon.kill();
    daemon.start_again();
    daemon.kill();
    daemon.touch("go");
    daemon.start_again();
    rollout_becomes(&daemon, "in force");
    assert_eq!(shown(&daemon)["revision"], 2);
    assert_eq!(daemon.count("SELECT count(*) FROM message WHERE session = 'a/canary'"), 1);
}

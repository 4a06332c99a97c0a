//! The config of a running daemon: watched, planned, applied, refused, held, taken back.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::processes::Process;
use support::{Daemon, Setup, until};

const LISTEN: &str = "[server]\nlisten = \"127.0.0.1:0\"\n";

fn setup() -> Daemon {
    Setup::new().scripted("scripted", &[], "").start()
}

fn file_of(daemon: &Daemon) -> PathBuf {
    daemon.folder().join("test.toml")
}

fn text_of(daemon: &Daemon) -> String {
    fs::read_to_string(file_of(daemon)).unwrap()
}

fn in_force(daemon: &Daemon) -> Value {
    daemon.client().get("/v1/config").expect(200)
}

/// Waits until the text is in force.
fn comes_into_force(daemon: &Daemon, text: &str) -> Value {
    until("the text to be in force", || {
        Some(in_force(daemon)).filter(|config| config["text"] == text)
    })
}

fn says(daemon: &Daemon, words: &str) {
    until(words, || daemon.log().contains(words).then_some(()));
}

fn post(daemon: &Daemon, what: &str, body: &Value) -> support::http::Response {
    daemon.client().post(&format!("/v1/config/{what}"), body)
}

#[test]
fn a_saved_file_comes_into_force_however_it_was_saved_and_nobody_is_interrupted() {
    let daemon = setup();
    let client = daemon.client();
    assert_eq!(client.ask("scripted/a", "count"), "turn 1 of life 1");
    let file = file_of(&daemon);
    let base = text_of(&daemon);
    let with = |number: u32| format!("{base}\n[limits]\nqueue_messages = {number}\n");

    fs::write(&file, with(11)).unwrap();
    assert_eq!(comes_into_force(&daemon, &with(11))["number"], 2);

    // As most editors do it.
    let beside = daemon.folder().join("beside");
    fs::write(&beside, with(12)).unwrap();
    fs::rename(&beside, &file).unwrap();
    comes_into_force(&daemon, &with(12));

    // As Kubernetes mounts a ConfigMap: a link to a folder that is a link itself.
    let folder = |name: &str, text: &str| {
        let folder = daemon.folder().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("test.toml"), text).unwrap();
    };
    let point_to = |name: &str| {
        let turned = daemon.folder().join("turned");
        std::os::unix::fs::symlink(name, &turned).unwrap();
        fs::rename(turned, daemon.folder().join("..data")).unwrap();
    };
    folder("v1", &with(13));
    point_to("v1");
    std::os::unix::fs::symlink("..data/test.toml", &beside).unwrap();
    fs::rename(&beside, &file).unwrap();
    comes_into_force(&daemon, &with(13));
    folder("v2", &with(14));
    point_to("v2");
    let now = comes_into_force(&daemon, &with(14));
    assert_eq!((&now["number"], &now["file"]), (&json!(5), &json!("same")));
    assert_eq!(now["by"], "the file changed");

    assert_eq!(client.ask("scripted/a", "count"), "turn 2 of life 1");
}

#[test]
fn a_setting_changed_in_the_middle_of_a_stream_leaves_every_byte_of_it() {
    let daemon = setup();
    let client = daemon.client();
    let base = text_of(&daemon);
    let id = client.submit("scripted/a", &format!("stream-until {}", daemon.path("enough")));
    daemon.turn_begins("stream-until");
    for number in 1..20 {
        let text =
            format!("{base}turn.attempts = {}\nstop.grace = \"{number}s\"\n", number % 5 + 1);
        let applied = post(&daemon, "apply", &json!({ "text": text })).expect(200);
        assert_eq!(applied["is_applied"], true, "{applied}");
    }
    daemon.touch("enough");
    let reply = client.reply(&id);
    let numbers: Vec<usize> = reply.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
    assert_eq!(
        (client.message(&id)["attempts"].clone(), client.generation("scripted/a")),
        (json!(1), 1)
    );
}

#[test]
fn comments_order_and_a_new_time_are_no_change() {
    let daemon = setup();
    let base = text_of(&daemon);
    let (head, agent) = base.split_once("[agents").unwrap();
    let other = format!("# written anew\n[agents{agent}\n\n{head}\n# the end\n");
    let plan = post(&daemon, "plan", &json!({ "text": other })).expect(200);
    assert_eq!(plan["changes"], json!([]));
    fs::write(file_of(&daemon), &base).unwrap();
    assert!(daemon.cli(&["config", "plan"]).ok().contains("No changes"));
    assert!(daemon.cli(&["config", "apply"]).ok().contains("Nothing to do"));
    assert_eq!(in_force(&daemon)["number"], 1);
}

#[test]
fn half_a_file_a_wrong_one_and_none_change_nothing() {
    let daemon = setup();
    let file = file_of(&daemon);
    let base = text_of(&daemon);
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 1 of life 1");

    // The first half is right by itself, and has no agent.
    let whole = format!("{LISTEN}\n[limits]\nqueue_messages = 9\n{}", &base[LISTEN.len()..]);
    let half = LISTEN.len() + 30;
    for end in half..half + 20 {
        fs::write(&file, &whole[..end]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    fs::write(&file, &whole).unwrap();
    comes_into_force(&daemon, &whole);
    let history = daemon.client().get("/v1/config/history").expect(200);
    assert_eq!(history.as_array().unwrap().len(), 2, "no half came into force: {history}");

    fs::write(&file, format!("{whole}\nvoice = 1\n")).unwrap();
    says(&daemon, "the config in force stays as it is");
    let now = in_force(&daemon);
    assert_eq!((&now["number"], &now["file"]), (&json!(2), &json!("wrong")));
    assert!(now["problem"].as_str().unwrap().contains("voice"), "{now}");
    let history = daemon.cli(&["config", "history"]).ok();
    assert!(history.contains("config 2 is in force and stays it"), "{history}");

    fs::write(&file, "").unwrap();
    says(&daemon, "is empty");
    // Whoever reads from it waits for a writer.
    fs::remove_file(&file).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&file).status().unwrap();
    assert!(made.success());
    assert_eq!(post(&daemon, "apply", &json!({})).error(422), "config_wrong");
    assert_eq!(in_force(&daemon)["file"], "wrong");
    fs::remove_file(&file).unwrap();
    says(&daemon, "the config file is gone");
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 2 of life 1");
    fs::write(&file, &base).unwrap();
    assert_eq!(comes_into_force(&daemon, &base)["number"], 3);
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 3 of life 1");
}

#[test]
fn a_hangup_reads_the_file_at_once() {
    let daemon = setup();
    let text = format!("{}\n[limits]\nqueue_messages = 3\n", text_of(&daemon));
    fs::write(file_of(&daemon), &text).unwrap();
    daemon.signal(Signal::HUP);
    // By whom is a race with the watcher, and no matter.
    comes_into_force(&daemon, &text);
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 1 of life 1");
}

#[test]
fn a_command_in_a_terminal_ends_with_it_unless_it_is_told_to_survive() {
    let mut daemon = Setup::built_in().prepare();
    daemon.start_again();
    daemon.signal(Signal::HUP);
    assert_eq!(daemon.has_ended(support::SOON).code(), Some(0));

    let mut daemon = Setup::built_in().through(&["nohup"]).prepare();
    daemon.start_again();
    daemon.signal(Signal::HUP);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.has_ended(support::SOON).code(), Some(0));
    assert!(!daemon.log().contains("SIGHUP"), "{}", daemon.log());
}

#[test]
fn an_operator_plans_applies_and_takes_back_and_a_base_that_moved_is_refused() {
    let daemon = setup();
    let base = text_of(&daemon);
    let with = |number: u32| format!("{base}\n[limits]\nqueue_messages = {number}\n");

    let plan = post(&daemon, "plan", &json!({"text": with(7)})).expect(200);
    assert_eq!(plan["changes"][0]["path"], "limits.queue_messages");
    assert_eq!((&plan["number"], &plan["is_applied"]), (&json!(1), &json!(false)));
    assert_eq!(in_force(&daemon)["number"], 1);

    let applied = post(&daemon, "apply", &json!({"text": with(7), "base": 1})).expect(200);
    assert_eq!((&applied["number"], &applied["is_applied"]), (&json!(2), &json!(true)));
    assert_eq!(text_of(&daemon), with(7), "the file says what is in force");
    let moved = post(&daemon, "apply", &json!({"text": with(8), "base": 1})).error(409);
    assert_eq!(moved, "config_moved");
    assert_eq!(text_of(&daemon), with(7), "and was not touched");
    let wrong = json!({"text": format!("{base}\nvoice = 1\n")});
    assert_eq!(post(&daemon, "apply", &wrong).error(422), "config_wrong");
    assert_eq!(post(&daemon, "plan", &wrong).error(422), "config_wrong");
    assert_eq!(post(&daemon, "apply", &json!({"text": "", "number": 1})).error(400), "bad_request");
    assert_eq!(text_of(&daemon), with(7));

    let beside = daemon.path("beside.toml");
    fs::write(&beside, with(9)).unwrap();
    let plan = daemon.cli(&["config", "plan", &beside]).ok();
    assert!(plan.contains("7 -> 9") && plan.contains("From config 2, in force"), "{plan}");
    assert_eq!(daemon.cli(&["config", "apply", "--base", "1"]).code, Some(7));
    // The watcher may have been faster.
    fs::write(file_of(&daemon), with(9)).unwrap();
    let applied = daemon.cli(&["config", "apply"]).ok();
    assert!(applied.contains("config 3 is in force"), "{applied}");
    let again = daemon.cli(&["config", "apply"]).ok();
    assert!(again.contains("Nothing to do"), "{again}");

    let back = daemon.cli(&["config", "rollback"]).ok();
    assert!(back.contains("config 4 is in force: 1 change"), "{back}");
    assert_eq!(text_of(&daemon), with(7));
    daemon.cli(&["config", "rollback", "1"]).ok();
    assert_eq!(text_of(&daemon), base);
    let history = daemon.cli(&["config", "history"]).ok();
    assert!(history.contains("rollback to 1, tester"), "{history}");
    assert_eq!(daemon.cli(&["config", "history", "3"]).ok().trim_end(), with(9).trim_end());
    assert_eq!(daemon.cli(&["config", "rollback", "99"]).code, Some(5));

    let stranger = daemon.client_of("tom");
    for what in ["plan", "apply", "rollback"] {
        stranger.post(&format!("/v1/config/{what}"), &json!({})).error(403);
    }
    stranger.get("/v1/config").error(403);
    stranger.get("/v1/config/history").error(403);
    stranger.get("/v1/config/history/1").error(403);
}

/// The process that took over; ended with the test.
struct Successor(Process);

impl Drop for Successor {
    fn drop(&mut self) {
        self.0.kill();
    }
}

#[test]
fn what_needs_a_restart_of_the_daemon_waits_and_apply_hands_over() {
    let daemon = setup();
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 1 of life 1");
    let base = text_of(&daemon);
    let text = format!("{base}\n[files]\nstore = \"blobs\"\n[limits]\nqueue_messages = 3\n");
    fs::write(file_of(&daemon), &text).unwrap();
    let now = comes_into_force(&daemon, &text);
    assert_eq!((&now["file"], &now["held"]), (&json!("changed"), &json!(["files.store"])));
    says(&daemon, "these wait for `dormouse config apply`");
    let blobs = daemon.folder().join("blobs");
    assert!(!blobs.exists(), "it is held");
    let plan = daemon.cli(&["config", "plan"]).ok();
    assert!(plan.contains("files.store") && !plan.contains("queue_messages"), "{plan}");

    let stages = daemon.cli(&["config", "apply", "--json"]).json_lines();
    let done = stages.last().unwrap();
    assert_eq!(done["stage"], "done", "{stages:?}");
    let pid = i32::try_from(done["pid"].as_i64().unwrap()).unwrap();
    let _successor = Successor(Process::of(pid).unwrap());
    assert!(blobs.exists());
    let now = in_force(&daemon);
    assert_eq!(
        (&now["number"], &now["file"], &now["held"]),
        (&json!(2), &json!("same"), &json!([]))
    );
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 2 of life 1");
}

#[test]
fn a_start_with_a_broken_file_goes_on_with_what_was_good() {
    let mut daemon = setup();
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 1 of life 1");
    assert!(daemon.terminate().success());
    let base = text_of(&daemon);
    fs::write(file_of(&daemon), "[agents.scripted\n").unwrap();
    daemon.start_again();
    says(&daemon, "the last good config is in force");
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 2 of life 1");
    assert_eq!(in_force(&daemon)["file"], "wrong");
    fs::write(file_of(&daemon), format!("{base}# mended\n")).unwrap();
    comes_into_force(&daemon, &format!("{base}# mended\n"));
}

#[test]
fn an_agent_comes_and_goes_with_the_file_and_its_messages_wait() {
    let daemon = setup();
    let base = text_of(&daemon);
    let other = base.replace("agents.scripted", "agents.other");
    let both = format!("{base}\n{}", &other[LISTEN.len()..]);
    fs::write(file_of(&daemon), &both).unwrap();
    daemon.cli(&["config", "apply"]);
    let client = daemon.client();
    assert_eq!(client.ask("other/a", "count"), "turn 1 of life 1");
    assert!(client.get("/metrics").text().contains("agent=\"other\""));
    let waiting = client.submit("other/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    fs::write(file_of(&daemon), &base).unwrap();
    daemon.cli(&["config", "apply"]);
    client.submission("other/b", "count").send().error(404);
    daemon.touch("go");
    assert_eq!(client.reply(&waiting), "waited", "a turn that runs is not lost with the config");
    fs::write(file_of(&daemon), &both).unwrap();
    daemon.cli(&["config", "apply"]).ok();
    assert!(client.ask("other/a", "count").starts_with("turn 3"));
}

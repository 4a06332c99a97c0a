//! A daemon that is told to end: turns finish, messages wait, and its exit code tells which.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use rustix::process::Signal;
use support::{Daemon, SOON, Setup, until};

/// `dormouse exit-codes`: turns were left to their bridges.
const LEFT_RUNNING: i32 = 12;

fn setup(drain_within: &str) -> Daemon {
    let setting = format!("drain_within = \"{drain_within}\"");
    Setup::new().config(&setting).scripted("scripted", &[], "").start()
}

fn is_draining(daemon: &Daemon) -> bool {
    let ready = daemon.call("GET", "/readyz").send();
    ready.status == 503 && ready.text().contains("draining")
}

#[track_caller]
fn told_to_end(daemon: &Daemon, signal: Signal) {
    daemon.signal(signal);
    until("the daemon to say that it is draining", || is_draining(daemon).then_some(()));
}

#[test]
fn a_turn_that_runs_is_answered_before_the_end_and_what_comes_meanwhile_after_the_next_start() {
    let mut daemon = setup("5m");
    let client = daemon.client();
    let stream = client.stream("scripted/busy", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    let queued = client.submit("scripted/busy", "behind it");
    told_to_end(&daemon, Signal::TERM);

    let mut sleeping = client.stream("scripted/asleep", "count");
    let told = sleeping.until(|event| event.data["state"] == "daemon_ending");
    let waits = told.message_id();
    let newcomer = client.submit("scripted/busy", "after the signal");
    assert!(daemon.turns_with("count").is_empty(), "nothing is started any more");
    daemon.touch("go");
    assert_eq!(stream.rest().end().data["reply"], "waited");
    assert_eq!(daemon.has_ended(SOON).code(), Some(0), "{}", daemon.log());
    assert_eq!(daemon.turns_with("behind it").len(), 0, "no turn begins any more");

    daemon.start_again();
    let client = daemon.client();
    assert_eq!(client.reply(&queued), "behind it");
    assert_eq!(client.reply(&newcomer), "after the signal");
    assert_eq!(client.reply(&waits), "turn 1 of life 1");
    assert_eq!(client.generation("scripted/busy"), 1, "its agent went on meanwhile");
}

#[test]
fn a_second_signal_leaves_the_turn_to_its_bridge_and_the_exit_code_says_so() {
    let mut daemon = setup("5m");
    let client = daemon.client();
    let id = client.submit("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    told_to_end(&daemon, Signal::TERM);
    let accepted_late = client.submit("scripted/b", "late");
    daemon.signal(Signal::INT);
    assert_eq!(daemon.has_ended(SOON).code(), Some(LEFT_RUNNING), "{}", daemon.log());
    assert!(daemon.log().contains("this turn goes on under its bridge"), "{}", daemon.log());

    daemon.touch("go");
    daemon.start_again();
    let client = daemon.client();
    assert_eq!(client.reply(&id), "waited");
    assert_eq!(client.reply(&accepted_late), "late");
    assert_eq!(client.message(&id)["attempts"], 1);
    assert_eq!(daemon.turns_with("wait").len(), 1, "it ran once");
    let journal = client.journal("scripted/a");
    assert!(support::http::decisions(&journal, "exited").is_empty(), "no crash: {journal:?}");
}

#[test]
fn a_turn_that_takes_longer_than_its_time_is_left_to_its_bridge() {
    let mut daemon = setup("300ms");
    let client = daemon.client();
    let id = client.submit("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    assert_eq!(daemon.terminate().code(), Some(LEFT_RUNNING));
    assert!(daemon.log().contains("drain_within is over"), "{}", daemon.log());
    daemon.start_again();
    daemon.touch("go");
    assert_eq!(daemon.client().reply(&id), "waited");
    assert_eq!(daemon.turns_with("wait").len(), 1, "it ran once");
}

#[test]
fn a_daemon_without_turns_ends_at_once_and_leaves_idle_agents_awake() {
    let mut daemon = setup("5m");
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 1 of life 1");
    assert_eq!(daemon.terminate().code(), Some(0));
    daemon.start_again();
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 2 of life 1");
}

#[test]
fn a_time_of_nothing_is_refused() {
    let mut daemon = Setup::new().prepare();
    daemon.set_config("[server]\nlisten = \"127.0.0.1:0\"\ndrain_within = \"0s\"\n");
    let printed = daemon.fails_to_start();
    assert!(printed.code.is_some_and(|code| code != 0), "{printed:?}");
    assert!(printed.err.contains("server.drain_within"), "{printed:?}");
}

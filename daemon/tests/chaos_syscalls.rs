//! The accept path under injected faults: the daemon is killed at each system call between a POST
//! and its answer, or its sync fails, and what the client was told must be what is on the disk.
//!
//! Owner: `cargo xtask ci`. Invariants: a fault counts only if it was seen to hit; a sweep ends
//! where the path does, at the first number that no call reaches any more. Where strace is missing
//! or may not attach, that is said aloud. Absent: agents; only accepting is looked at.

#[expect(dead_code, reason = "each test program uses a part of what they share")]
mod support;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::http::Client;
use support::scratch::say;
use support::waiting::within;
use support::{Daemon, SOON, Setup, until};

/// An agent that takes so long to start that nothing but the accept happens.
const SLEEPER: &str = r#"
[agents.sleeper]
driver = "fake"
fake = { start_takes_ms = 3600000 }
[limits]
messages_per_second = 100000
messages_burst = 100000
"#;

/// What the path from the request to the answer is made of: waking the engine, the store's log, its
/// sync, the answer.
const CALLS: [&str; 5] = ["fdatasync,fsync", "pwrite64", "write", "writev", "sendto"];
/// More than any call is made on one accept.
const NUMBERS_MAX: u32 = 40;

/// strace on a running daemon; every thread of it is stopped at the calls that it names.
struct Injection {
    strace: Child,
}

impl Injection {
    /// `None`: there is no strace here, or it may not attach.
    fn attach(daemon: &Daemon, call: &str, fault: &str) -> Option<Self> {
        let pid = daemon.pid();
        let strace = Command::new("strace")
            .args(["-f", "-q", "-p", &pid.to_string(), "-o", "/dev/null"])
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:{fault}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut strace = strace.ok()?;
        let attached = until("strace to attach, or to end", || {
            let has_ended = strace.try_wait().expect("it is a child").is_some();
            (has_ended || all_threads_are_traced(pid)).then_some(!has_ended)
        });
        attached.then_some(Self { strace })
    }

    fn detach(mut self) {
        // It may have ended with the daemon.
        drop(self.strace.kill());
        drop(self.strace.wait());
    }
}

fn all_threads_are_traced(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut statuses = tasks.map(|task| fs::read_to_string(task.path().join("status")));
    statuses.all(|status| status.is_ok_and(|status| !status.contains("TracerPid:\t0\n")))
}

fn post(client: &Client, key: &str) -> std::io::Result<(u16, Value)> {
    let call = client.call("POST", "/v1/sessions/sleeper/main/messages");
    let call = call.json(&json!({ "text": format!("message {key}") }));
    let answer = call.header("idempotency-key", key).try_send()?;
    Ok((answer.status, answer.json()))
}

fn started() -> Daemon {
    let mut daemon = Setup::new().config(SLEEPER).start();
    // The session exists and stands at its start, so that a later accept is only an accept.
    assert_eq!(post(&daemon.client(), "first").expect("an answer").0, 202);
    daemon.terminate();
    daemon.start_again();
    daemon
}

#[test]
fn a_death_at_any_system_call_of_the_accept_path_loses_nothing_and_doubles_nothing() {
    let mut daemon = started();
    let mut hits = 0;
    for call in CALLS {
        let mut of_call = 0;
        for number in 1..=NUMBERS_MAX {
            let key = format!("{call}-{number}");
            let fault = format!("signal=KILL:when={number}");
            let Some(injection) = Injection::attach(&daemon, call, &fault) else {
                say("SKIPPED: strace is missing or may not attach here; nothing was injected");
                return;
            };
            let told = post(&daemon.client(), &key);
            let died = dies_if_hit(&mut daemon, &told);
            injection.detach();
            if !died {
                break;
            }
            of_call += 1;
            daemon.start_again();
            said_is_stored(&daemon, &key, told.ok());
        }
        say(&format!("killed at {of_call} calls of {call}"));
        hits += of_call;
    }
    assert!(hits >= 3, "only {hits} faults hit: is this still the accept path?");
    assert_eq!(daemon.count("SELECT count(*) - count(DISTINCT idempotency_key) FROM message"), 0);
}

/// Whether the daemon was killed. An answer may have gone out before; then the signal is on its
/// way, or there was none.
fn dies_if_hit(daemon: &mut Daemon, told: &std::io::Result<(u16, Value)>) -> bool {
    if told.is_err() {
        daemon.has_ended(SOON);
        return true;
    }
    // A call after the answer may still be the one: the threads come to rest within this.
    let rest = Duration::from_millis(100);
    let deadline = std::time::Instant::now() + rest;
    while std::time::Instant::now() < deadline {
        if !daemon.is_running() {
            daemon.has_ended(SOON);
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn said_is_stored(daemon: &Daemon, key: &str, told: Option<(u16, Value)>) {
    let (status, body) = post(&daemon.client(), key).expect("the daemon is back");
    assert_eq!(status, 202, "{key}: {body}");
    let count = format!("SELECT count(*) FROM message WHERE idempotency_key = '{key}'");
    assert_eq!(daemon.count(&count), 1, "{key} is one message");
    if let Some((202, before)) = told {
        assert_eq!(before["message_id"], body["message_id"], "{key} was acknowledged before");
        assert_eq!(body["duplicate"], true, "{key} was on the disk when it was acknowledged");
    }
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_the_daemon_ends_with_the_reason() {
    let mut daemon = started();
    let Some(injection) = Injection::attach(&daemon, CALLS[0], "error=EIO") else {
        say("SKIPPED: strace is missing or may not attach here; nothing was injected");
        return;
    };
    for number in 0..3 {
        let told = post(&daemon.client(), &format!("eio-{number}"));
        assert!(!matches!(told, Ok((202, _))), "acknowledged without a sync: {told:?}");
    }
    let status = daemon.has_ended(SOON);
    injection.detach();
    assert!(!status.success(), "{status}");
    let log = daemon.log();
    assert!(log.contains("stopped, to lose nothing"), "{log}");
    daemon.start_again();
    let (status, _) = post(&daemon.client(), "eio-0").expect("the daemon is back");
    assert_eq!(status, 202);
    let kept = "SELECT count(*) FROM message WHERE idempotency_key = 'first'";
    within(SOON, "what was acknowledged before to be there", || {
        (daemon.count(kept) == 1).then_some(())
    });
}

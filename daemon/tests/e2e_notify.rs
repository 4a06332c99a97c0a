//! Who is told when a session is tripped or a message is given up: over HTTP, and by a command.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};
use support::{Daemon, SOON, Setup, until};

/// A webhook on this machine, for as long as the test's process lives.
struct Receiver {
    url: String,
    bodies: mpsc::Receiver<Value>,
}

impl Receiver {
    /// Refuses the first `refusals` requests with 503.
    fn start(refusals: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (sender, bodies) = mpsc::channel();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let status = if number < refusals { "503 Not Now" } else { "204 No Content" };
                // The test is over when nobody listens any more.
                if sender.send(answer(stream.unwrap(), status)).is_err() {
                    return;
                }
            }
        });
        Self { url, bodies }
    }

    fn next(&self) -> Value {
        self.bodies.recv_timeout(SOON).expect("a notification in time")
    }
}

fn answer(stream: TcpStream, status: &str) -> Value {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    reader.get_mut().write_all(head.as_bytes()).unwrap();
    serde_json::from_slice(&body).unwrap()
}

const TRIPS: &str = "[agents.trips]\ndriver = \"fake\"\nrestart = { intensity = 1 }\n\
                     fake = { die_on = \"boom\" }\n";
const BURIES: &str = "[agents.buries]\ndriver = \"fake\"\nturn = { attempts = 1 }\n\
                      fake = { reply = { fixed = \"well\" }, die_on = \"boom\" }\n";

fn with_webhook(url: &str, agent: &str) -> Daemon {
    Setup::new().config(&format!("[notify]\nwebhook = \"{url}\"\n{agent}")).start()
}

#[test]
fn a_tripped_session_is_told_until_somebody_takes_it_and_its_message_is_kept() {
    let receiver = Receiver::start(1);
    let daemon =
        Setup::new().config(&format!("[notify]\nwebhook = \"{}\"\n{TRIPS}", receiver.url)).start();
    let client = daemon.client();
    let id = client.submit("trips/a", "boom, and my secret words");
    let (refused, taken) = (receiver.next(), receiver.next());
    assert_eq!(refused, taken, "the same again, under the same id");
    assert_eq!(
        (&taken["event"], &taken["session"], &taken["failures"], &taken["cause"]),
        (&json!("session_tripped"), &json!("trips/a"), &json!(1), &json!("app_exit"))
    );
    assert_eq!(
        (&taken["confidence"], &taken["why"]),
        (&json!("proved"), &json!("dormouse why trips/a"))
    );
    let session = client.session("trips/a");
    assert_eq!((&session["phase"], &session["waiting"]), (&json!("tripped"), &json!(1)));
    assert_eq!(taken["next_try_at_ms"], session["next_start_at_ms"]);
    assert!(!taken.to_string().contains("secret"), "{taken}");

    let why = client.get(&format!("/v1/messages/{id}/why")).expect(200);
    let verdict = why["verdict"].as_str().unwrap();
    assert!(verdict.contains("one start is tried in "), "{verdict}");
    let metrics = until("the metrics to say that it was sent", || {
        let text = client.get("/metrics").text();
        let sent = "dormouse_notifications_total{target=\"webhook\",outcome=\"sent\"} 1";
        text.lines().any(|line| line == sent).then_some(text)
    });
    for line in [
        "dormouse_trips_total{agent=\"trips\"} 1",
        "dormouse_failures_total{agent=\"trips\"} 1",
        "dormouse_sessions{phase=\"tripped\"} 1",
        "dormouse_exits_total{agent=\"trips\",cause=\"app_exit\",confidence=\"proved\"} 1",
    ] {
        assert!(metrics.lines().any(|has| has == line), "{line} is not in\n{metrics}");
    }
}

/// Every session of it fails at its start, five of them in a row.
#[test]
fn an_agent_that_is_held_back_and_sessions_that_wait_for_the_budget_are_counted() {
    let daemon = Setup::new()
        .config(
            "[node]\nrestarts_per_minute = 1\n[agents.absent]\ncommand = [\"no-such-program\"]\n\
             adapter = { kind = \"jsonl\" }\n",
        )
        .start();
    let client = daemon.client();
    let gauge = |name: &str| -> i64 {
        let text = client.get("/metrics").text();
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    };
    let held_back = "dormouse_agent_held_back{agent=\"absent\"}";
    client.submit("absent/1", "hello");
    client.submit("absent/2", "hello");
    until("a session to wait for the budget", || {
        (gauge("dormouse_restarts_waiting") > 0).then_some(())
    });
    assert_eq!(gauge(held_back), 0, "two sessions are not the agent");
    for key in 3..=5 {
        client.submit(&format!("absent/{key}"), "hello");
    }
    until("the agent to be held back", || (gauge(held_back) == 1).then_some(()));
}

#[test]
fn a_dead_letter_is_handed_to_a_command_which_does_not_hold_up_the_agents() {
    let setup = Setup::new();
    let told = setup.folder().join("told");
    let script = format!("cat >> {0}; echo >> {0}; sleep 60 & exit 0", told.display());
    let daemon = setup
        .config(&format!("[notify]\ncommand = [\"sh\", \"-c\", \"{script}\"]\n{BURIES}"))
        .start();
    let client = daemon.client();
    let id = client.submit("buries/a", "boom, and my secret words");
    assert_eq!(client.ended(&id)["cause"], "poison_message");
    assert_eq!(client.ask("buries/a", "how are you?"), "well");
    let line = until("the command to be told", || {
        let text = fs::read_to_string(&told).unwrap_or_default();
        text.lines().next().filter(|_| text.ends_with('\n')).map(str::to_owned)
    });
    assert!(!line.contains("secret"), "{line}");
    let letter: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(letter["id"], format!("dead_letter:{id}"));
    assert_eq!(
        (&letter["cause"], &letter["death"], &letter["attempts"], &letter["confidence"]),
        (&json!("poison_message"), &json!("app_exit"), &json!(1), &json!("proved"))
    );
    let shown = client.get(&format!("/v1/dead-letters/{id}")).expect(200);
    assert_eq!(shown["last_life"]["verdict"], "app_exit", "{shown}");
    assert_eq!(shown["last_life"]["message_in_flight"], json!(id));
    let why = client.get(&format!("/v1/messages/{id}/why")).expect(200);
    assert_eq!(why["last_exit"]["message_in_flight"], json!(id), "of the life that had it: {why}");
    assert_eq!(why["last_exit"]["diagnosis"]["confidence"], "proved");
    let told = daemon.cli(&["why", &id]).ok();
    assert!(told.contains("Why the last life that had it ended\n  app_exit, proved: "), "{told}");
    let printed = daemon.cli(&["queue", "show", &id]);
    assert!(
        printed.out.contains("the last life that had it, #1, ended at attempt 1"),
        "{printed:?}"
    );
}

#[test]
fn a_receiver_that_never_answers_holds_up_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let daemon = with_webhook(&url, BURIES);
    let client = daemon.client();
    for _ in 0..3 {
        assert_eq!(client.ended(&client.submit("buries/a", "boom"))["state"], "dead");
    }
    let (_held_open, _) = silent.accept().unwrap();
    assert_eq!(client.ask("buries/a", "how are you?"), "well");
}

#[test]
fn a_webhook_that_cannot_be_called_is_refused_with_its_setting() {
    let daemon = Setup::new().config("[notify]\nwebhook = \"https://example.com/\"\n").prepare();
    let printed = daemon.fails_to_start();
    assert!(printed.err.contains("notify.webhook"), "{printed:?}");
}

//! Clocks on the real program: idle, stuck, start, stop. Limits are short here, and what is
//! measured is what the journal says it did, so that a busy machine makes a test slower and not
//! wrong.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::http::{Client, decisions};
use support::{Daemon, Setup, until, waiting};

/// What a loaded machine may add to a deadline before it acts on it.
const MARGIN_MS: u64 = 1_500;

fn setup(options: &[&str], settings: &str) -> Daemon {
    Setup::new().scripted("scripted", options, settings).start()
}

fn at_ms(row: &Value) -> u64 {
    row["at_ms"].as_u64().expect("each row has its time")
}

fn number(row: &Value, name: &str) -> u64 {
    row["because"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {row}"))
}

#[track_caller]
fn only<'a>(rows: &[&'a Value]) -> &'a Value {
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0]
}

#[track_caller]
fn is_about(measured_ms: u64, limit_ms: u64) {
    let fits = (limit_ms..limit_ms + MARGIN_MS).contains(&measured_ms);
    assert!(fits, "{measured_ms} ms is not {limit_ms} ms or a little more");
}

/// Lets time pass, where passing time is what is tested.
fn until_has_passed(since: Instant, span: Duration) {
    until("time to pass", || (since.elapsed() >= span).then_some(()));
}

#[test]
fn a_turn_longer_than_the_idle_limit_lives() {
    let daemon = setup(&[], "idle = { stop_after = \"500ms\" }");
    let client = daemon.client();
    assert_eq!(client.ask("scripted/a", "quiet 2000"), "quiet");
    client.phase_becomes("scripted/a", "asleep");
    let journal = client.journal("scripted/a");
    let answered = only(&decisions(&journal, "turn_answered"));
    assert!(number(answered, "took_ms") >= 2_000, "{answered}");
    let idle = only(&decisions(&journal, "was_idle"));
    assert!(number(idle, "idle_ms") >= 500);
    is_about(at_ms(idle) - at_ms(answered) + 1, 500);
    assert_eq!(client.generation("scripted/a"), 1);
}

#[test]
fn traffic_keeps_a_session_and_it_is_stopped_one_limit_after_the_last_of_it() {
    let (limit_ms, messages) = (1_500, 8);
    let daemon = setup(&[], "idle = { stop_after = \"1500ms\" }");
    let client = daemon.client();
    for n in 0..messages {
        let asked_at = Instant::now();
        assert_eq!(client.ask("scripted/a", &format!("number {n}")), format!("number {n}"));
        if n + 1 < messages {
            until_has_passed(asked_at, Duration::from_millis(limit_ms / 3));
        }
    }
    client.phase_becomes("scripted/a", "asleep");
    let journal = client.journal("scripted/a");
    assert_eq!(client.generation("scripted/a"), 1, "nothing stopped it in between");
    let ready = only(&decisions(&journal, "became_ready"));
    let idle = only(&decisions(&journal, "was_idle"));
    let answered = decisions(&journal, "turn_answered");
    assert_eq!(answered.len(), messages);
    let last = answered.last().expect("it was counted");
    assert!(at_ms(last) - at_ms(ready) > 2 * limit_ms, "the traffic outlasted the limit");
    is_about(number(idle, "idle_ms"), limit_ms);
    is_about(at_ms(idle) - at_ms(last) + 1, limit_ms);

    let exit = &client.why("scripted/a")["last_exit"];
    assert_eq!(exit["cause"], Value::Null, "an idle stop is nobody's failure: {exit}");
    assert_eq!(exit["evidence"]["asked_by"], "daemon");
    assert_eq!(client.ask("scripted/a", "count"), "turn 1 of life 2");
}

#[test]
fn a_stuck_turn_is_ended_tried_again_and_then_dead_lettered_and_later_ones_are_answered() {
    let daemon =
        setup(&[], "turn = { stuck_after = \"1s\", attempts = 2 }\nstop = { grace = \"1s\" }");
    let client = daemon.client();
    let stream = client.stream("scripted/a", "silent");
    let later = client.submit("scripted/a", "later");
    let seen = stream.rest();
    let states = seen.states();
    assert!(states.contains(&"slow") && states.contains(&"retrying"), "{states:?}");
    let slow = &seen.of("status").into_iter().find(|e| e.data["state"] == "slow").unwrap().data;
    assert!(slow["silent_ms"].as_u64() >= Some(500), "{slow}");
    let retrying = seen.of("status").into_iter().find(|e| e.data["state"] == "retrying").unwrap();
    assert_eq!(retrying.data["cause"], "turn_stuck");
    let end = seen.end();
    assert_eq!(end.name, "error");
    assert_eq!(end.data["error"]["code"], "attempts_exhausted", "{end:?}");

    assert_eq!(client.reply(&later), "later");
    let dead = client.message(&seen.message_id());
    assert_eq!((&dead["state"], &dead["attempts"]), (&json!("dead"), &json!(2)));
    let detail = dead["detail"].as_str().unwrap();
    assert!(detail.contains("no sign of progress"), "{detail}");

    let journal = client.journal("scripted/a");
    let stuck = decisions(&journal, "turn_stuck");
    assert_eq!(stuck.len(), 2);
    for row in stuck {
        is_about(number(row, "silent_ms"), 1_000);
    }
    let turns = daemon.turns_with("silent");
    let lives: Vec<_> = turns.iter().map(|line| (line.generation, line.attempt)).collect();
    assert_eq!(lives, [(1, 1), (2, 2)], "each attempt on an instance of its own");
    assert_eq!(daemon.turns_with("later")[0].generation, 3);
}

#[test]
fn a_turn_that_always_makes_progress_is_ended_when_the_whole_of_it_takes_too_long() {
    let daemon =
        setup(&[], "turn = { stuck_after = \"500ms\", within = \"1500ms\", attempts = 1 }");
    let client = daemon.client();
    let text = format!("stream-until {}", daemon.path("never"));
    let ended = client.ended(&client.submit("scripted/a", &text));
    assert_eq!(ended["state"], "dead");
    assert!(ended["detail"].as_str().unwrap().contains("longer than is allowed"), "{ended}");
    let journal = client.journal("scripted/a");
    let too_long = only(&decisions(&journal, "turn_too_long"));
    let started = only(&decisions(&journal, "turn_started"));
    is_about(at_ms(too_long) - at_ms(started) + 1, 1_500);
    assert!(decisions(&journal, "turn_stuck").is_empty());
}

#[test]
fn a_hold_covers_silence_for_as_long_as_it_lasts_and_no_longer() {
    let daemon =
        setup(&[], "turn = { stuck_after = \"600ms\", attempts = 1 }\nstop = { grace = \"1s\" }");
    let client = daemon.client();
    assert_eq!(client.ask("scripted/a", "hold 20s 2000"), "held");
    assert!(decisions(&client.journal("scripted/a"), "turn_stuck").is_empty());

    let ended = client.ended(&client.submit("scripted/b", "hold 1500ms 60000"));
    assert_eq!(ended["state"], "dead", "{ended}");
    let journal = client.journal("scripted/b");
    let taken = only(&decisions(&journal, "hold_taken"));
    assert_eq!(number(taken, "for_ms"), 1_500);
    let stuck = only(&decisions(&journal, "turn_stuck"));
    is_about(at_ms(stuck) - at_ms(taken) + 1, 1_500);
}

#[test]
fn a_hold_keeps_an_idle_session_awake_and_why_says_so() {
    let daemon = setup(&[], "idle = { stop_after = \"300ms\" }");
    let client = daemon.client();
    assert_eq!(client.ask("scripted/a", "keep 2s"), "kept");
    let why = client.why("scripted/a");
    assert_eq!(why["session"]["phase"], "awake");
    assert!(why["awake_because"].to_string().contains("a test"), "{why}");
    client.phase_becomes("scripted/a", "asleep");
    let journal = client.journal("scripted/a");
    let taken = only(&decisions(&journal, "hold_taken"));
    let idle = only(&decisions(&journal, "was_idle"));
    let measured = at_ms(idle) - at_ms(taken) + 1;
    assert!((2_000..2_300 + MARGIN_MS).contains(&measured), "{measured} ms");
}

#[test]
fn an_agent_that_is_not_ready_in_time_is_replaced_and_its_message_waits_for_one_that_is() {
    let setup = Setup::new();
    let go = setup.folder().join("go").display().to_string();
    let settings = "start = { ready_within = \"1s\" }\nstop = { grace = \"1s\" }";
    let daemon = setup.scripted("scripted", &["--ready-when", &go], settings).start();
    let client = daemon.client();
    let mut stream = client.stream("scripted/a", "patience");
    let seen = stream.until(|event| event.data["state"] == "waiting_to_restart");
    let last = &seen.events.last().unwrap().data;
    assert_eq!(last["cause"], "start_timeout");
    assert!(last["text"].as_str().unwrap().contains("did not become ready in time"), "{last}");

    let why = client.why("scripted/a");
    let journal = client.journal("scripted/a");
    let late = decisions(&journal, "not_ready_in_time");
    assert!(!late.is_empty());
    for row in &late {
        assert_eq!(number(row, "within_ms"), 1_000);
        let ordered = journal
            .iter()
            .rev()
            .find(|other| other["to"] == "starting" && other["generation"] == row["generation"]);
        is_about(at_ms(row) - at_ms(ordered.expect("it was started")) + 1, 1_000);
    }
    assert_eq!(why["last_exit"]["cause"], "start_timeout", "{why}");
    assert_eq!(client.message(&seen.message_id())["attempts"], 0, "no turn before it is ready");

    daemon.touch("go");
    assert_eq!(stream.rest().end().data["reply"], "patience");
}

#[test]
fn an_agent_that_dies_at_each_start_is_started_less_and_less_often_across_a_crash_of_the_daemon() {
    let mut daemon = setup(&["--die-at-start", "3"], "");
    let client = daemon.client();
    let id = client.submit("scripted/a", "hello");
    // After the second failure it waits one second, after the third four.
    let session = until("the third failure", || {
        let session = client.session("scripted/a");
        (session["phase"] == "backoff" && session["failures"] == 3).then_some(session)
    });
    let next_start_at_ms = session["next_start_at_ms"].as_u64().unwrap();
    assert_eq!(session["last_failure"], "app_exit");
    let why = daemon.cli(&["why", "scripted/a"]).ok();
    assert!(why.contains("failed 3 times in a row"), "{why}");
    assert!(why.contains("its next start is in ") && why.contains("1 message waits."), "{why}");
    assert_eq!(client.message(&id)["state"], "pending");

    daemon.kill();
    daemon.start_again();
    let client = daemon.client();
    let fourth = until("the fourth start", || {
        let journal = client.journal("scripted/a");
        journal.into_iter().find(|row| row["to"] == "starting" && row["generation"] == 4)
    });
    assert!(at_ms(&fourth) >= next_start_at_ms, "{fourth}, and not before {next_start_at_ms}");
    let starts = until("the fourth agent to run", || {
        let log = daemon.agent_log();
        let started = log.iter().filter(|line| line.what == "started");
        let starts: Vec<u64> = started.map(|line| line.at_ms).collect();
        (starts.len() == 4).then_some(starts)
    });
    assert!(starts[2] - starts[1] >= 1_000 && starts[3] - starts[2] >= 4_000, "{starts:?}");
    assert_eq!(client.message(&id)["state"], "pending", "its message is kept");
    let dropped = client.call("DELETE", &format!("/v1/messages/{id}")).send().expect(200);
    assert_eq!(dropped["outcome"], "accepted");
    assert_eq!(client.ended(&id)["state"], "cancelled");
}

#[test]
fn messages_while_starting_draining_and_stopping_are_answered_in_order_once_each() {
    let setup = Setup::new();
    let go = setup.folder().join("start").display().to_string();
    let options = ["--ready-when", go.as_str(), "--slow-exit", "700"];
    let daemon = setup.scripted("scripted", &options, "").start();
    let client = daemon.client();
    let session = "scripted/a";
    let mut ids = vec![client.submit(session, "one, which wakes it")];
    client.phase_becomes(session, "starting");
    ids.push(client.submit(session, "two, while it starts"));
    daemon.touch("start");
    client.reply(&ids[1]);

    ids.push(client.submit(session, &format!("wait {}", daemon.path("turn"))));
    daemon.turn_begins("wait");
    let stop = client.request(session, "stop");
    assert_eq!(stop["outcome"], "accepted");
    client.phase_becomes(session, "draining");
    ids.push(client.submit(session, "four, while it finishes three"));
    daemon.touch("turn");
    client.phase_becomes(session, "stopping");
    ids.push(client.submit(session, "five, while it stops"));
    let again = client.request(session, "stop");
    assert_eq!(
        (&again["outcome"], &again["because"]),
        (&json!("ignored"), &json!("already_stopping"))
    );

    for id in &ids {
        assert_eq!(client.ended(id)["state"], "answered");
        assert_eq!(client.ended(id)["attempts"], 1);
    }
    let turns: Vec<_> = daemon.agent_log().into_iter().filter(|line| line.what == "turn").collect();
    let order: Vec<&str> = turns.iter().map(|line| line.message_id()).collect();
    assert_eq!(order, ids);
    let lives: Vec<u64> = turns.iter().map(|line| line.generation).collect();
    assert_eq!(lives, [1, 1, 1, 2, 2]);
}

#[test]
fn a_stop_that_races_a_message_never_loses_it_and_never_cuts_it() {
    let limit_ms = 150_u64;
    let daemon = setup(&[], "idle = { stop_after = \"150ms\" }");
    let client = daemon.client();
    let rounds = 40;
    assert_eq!(client.ask("scripted/a", "first"), "first");
    for round in 0..rounds {
        let answered_at = Instant::now();
        // From 30 ms before the limit to 30 ms after it; two rounds far from it on either side.
        let wait_ms = match round {
            0 => limit_ms / 3,
            1 => limit_ms * 3,
            _ => limit_ms - 30 + 60 * round / rounds,
        };
        until_has_passed(answered_at, Duration::from_millis(wait_ms));
        let text = format!("race {round}.");
        assert_eq!(client.ask("scripted/a", &text), text);
    }
    for round in 0..rounds {
        assert_eq!(daemon.turns_with(&format!("race {round}.")).len(), 1, "round {round}");
    }
    let journal = client.journal("scripted/a");
    assert!(decisions(&journal, "turn_interrupted").is_empty());
    let lives = client.generation("scripted/a");
    assert!((2..rounds).contains(&lives), "both sides of the limit were hit: {lives} lives");
}

#[test]
fn a_poison_message_is_dead_lettered_with_evidence_and_the_rest_is_answered() {
    let daemon = setup(&[], "");
    let client = daemon.client();
    let before = client.submit("scripted/a", "before");
    let stream = client.stream("scripted/a", "crash 9");
    let after: Vec<String> =
        (0..3).map(|n| client.submit("scripted/a", &format!("after {n}"))).collect();
    assert_eq!(client.reply(&before), "before");
    let seen = stream.rest();
    let poison = seen.message_id();
    assert_eq!(seen.end().data["error"]["code"], "poison_message");
    for (n, id) in after.iter().enumerate() {
        assert_eq!(client.reply(id), format!("after {n}"));
        assert_eq!(client.message(id)["attempts"], 1);
    }
    let attempts: Vec<u64> = daemon.turns_with("crash").iter().map(|line| line.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    let dead = client.message(&poison);
    assert!(dead["detail"].as_str().unwrap().contains("after 3 attempts"), "{dead}");

    let rows = daemon.store();
    let mut exits = rows
        .prepare("SELECT cause, message_in_flight, evidence FROM exit ORDER BY generation")
        .unwrap();
    let exits: Vec<(String, String, String)> = exits
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .map(|row| row.unwrap())
        .collect();
    assert_eq!(exits.len(), 3, "{exits:?}");
    for (cause, in_flight, evidence) in &exits {
        assert_eq!((cause.as_str(), in_flight), ("app_exit", &poison));
        let evidence: Value = serde_json::from_str(evidence).unwrap();
        assert_eq!(evidence["end"], json!({ "how": "exited", "code": 9 }));
    }
    let why = daemon.cli(&["why", &poison]).ok();
    assert!(why.contains("exit code 9"), "{why}");
}

#[test]
fn a_crash_in_the_middle_of_a_reply_is_retried_and_two_attempts_are_never_joined() {
    let daemon = setup(&[], "");
    let seen = daemon.client().stream("scripted/a", "half 5").rest();
    let whole = "half of attempt 2, and the rest";
    assert_eq!(seen.end().data["reply"], whole);
    let of_attempt = |attempt: &str| -> String {
        let of_it = seen.of("delta").into_iter().filter(|event| {
            event.id.as_deref().is_some_and(|id| id.split('.').next() == Some(attempt))
        });
        of_it.map(|event| event.data["text"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of_attempt("1"), "half of attempt 1, ");
    assert_eq!(of_attempt("2"), whole);
    let states = seen.states();
    assert!(states.contains(&"retrying"), "{states:?}");
    let words: Vec<&str> =
        seen.of("status").iter().filter_map(|event| event.data["text"].as_str()).collect();
    assert!(words.contains(&"working, attempt 2"), "{words:?}");
}

#[test]
fn a_turn_that_must_not_be_repeated_is_given_up_after_one_crash_and_one_that_failed_is_not_tried() {
    let daemon = setup(&[], "turn = { retry = \"ask\" }");
    let client = daemon.client();
    let dead = client.ended(&client.submit("scripted/a", "crash 5"));
    assert_eq!((&dead["state"], &dead["cause"]), (&json!("dead"), &json!("ambiguous")));
    assert_eq!(daemon.turns_with("crash").len(), 1);
    let failed = client.ended(&client.submit("scripted/a", "fail-once no"));
    assert_eq!((&failed["state"], &failed["attempts"]), (&json!("dead"), &json!(1)));
    assert_eq!(client.ask("scripted/a", "and on"), "and on");
}

#[test]
fn an_agent_that_asks_for_another_try_gets_it_on_the_same_instance() {
    let daemon = setup(&[], "");
    let client = daemon.client();
    let seen = client.stream("scripted/a", "fail-once try me later").rest();
    assert_eq!(seen.end().data["reply"], "recovered");
    assert_eq!(seen.end().data["attempts"], 2);
    assert_eq!(client.generation("scripted/a"), 1);
}

/// A hundred first messages at once for a few sessions: one instance each.
#[test]
fn first_messages_that_come_at_once_start_one_instance() {
    let daemon = Setup::new()
        .scripted("scripted", &[], "")
        .config("[limits]\nmessages_per_second = 1000\nmessages_burst = 1000")
        .start();
    let client = daemon.client();
    let senders: Vec<_> = (0..10)
        .map(|sender| {
            let client: Client = client.clone();
            thread::spawn(move || {
                let submit = |n| client.submit("scripted/a", &format!("from {sender} {n}"));
                (0..10).map(submit).collect::<Vec<String>>()
            })
        })
        .collect();
    let ids: Vec<String> = senders.into_iter().flat_map(|one| one.join().unwrap()).collect();
    waiting::within(Duration::from_secs(60), "all to be answered", || {
        let query = "SELECT count(*) FROM message WHERE state = 'answered'";
        (daemon.count(query) == 100).then_some(())
    });
    assert_eq!(daemon.turns_with("from").len(), 100);
    assert_eq!(client.generation("scripted/a"), 1);
    let mut in_order = ids.clone();
    in_order.sort();
    let turns = daemon.turns_with("from");
    let order: Vec<&str> = turns.iter().map(|line| line.message_id()).collect();
    assert_eq!(order, in_order, "ids ascend as messages were accepted, and so do turns");
}

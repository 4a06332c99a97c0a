//! The whole way of a message on the real program: over HTTP and the command line, to every kind
//! of agent, with every answer that a client can get.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::http::{Client, decisions};
use support::{Daemon, Setup, until};

fn scripted() -> Setup {
    Setup::new().scripted("scripted", &[], "")
}

#[test]
fn the_built_in_config_answers_over_http_and_on_the_command_line() {
    let daemon = Setup::built_in().start();
    let client = daemon.client();

    let seen = client.stream("python/main", "x = 6\nprint(x * 7)").rest();
    let states = seen.states();
    let place = |state| states.iter().position(|has| *has == state);
    assert_eq!(place("accepted"), Some(0), "{states:?}");
    assert!(place("waking") < place("delivered") && place("waking").is_some(), "{states:?}");
    assert_eq!(seen.text(), "42\n");
    let done = seen.end();
    assert_eq!((done.name.as_str(), &done.data["reply"]), ("done", &json!("42\n")));
    assert_eq!(done.data["attempts"], 1);

    // The same instance, with what it was told before.
    let seen = client.stream("python/main", "print(x + 1)").rest();
    assert_eq!(seen.text(), "7\n");
    assert!(!seen.states().contains(&"waking"), "{:?}", seen.states());
    assert_eq!(client.generation("python/main"), 1);

    let printed = daemon.cli(&["send", "python/main", "print(x - 1)"]);
    assert_eq!(printed.ok().trim_end(), "5");
    let printed = daemon.cli_with_input(&["send", "python/main", "-"], "print(x, 'by input')");
    assert_eq!(printed.ok().trim_end(), "6 by input");
}

#[test]
fn a_message_is_accepted_at_once_and_can_be_waited_for() {
    let daemon = scripted().start();
    let client = daemon.client();
    let text = format!("wait {}", daemon.path("go"));
    let accepted = client.submission("scripted/a", &text).send().expect(202);
    assert_eq!((&accepted["state"], &accepted["position"]), (&json!("pending"), &json!(0)));
    assert_eq!(
        (&accepted["session"], &accepted["duplicate"]),
        (&json!("scripted/a"), &json!(false))
    );
    let id = accepted["message_id"].as_str().unwrap();
    let second = client.submission("scripted/a", "second").send().expect(202);
    assert_eq!(second["position"], 1);

    daemon.turn_begins("wait");
    let meanwhile = client.get(&format!("/v1/messages/{id}?wait=20ms")).expect(200);
    assert_eq!(meanwhile["state"], "leased", "a wait that is over says how it stands");
    let next = client.message(second["message_id"].as_str().unwrap());
    assert_eq!((&next["state"], &next["position"]), (&json!("pending"), &json!(1)));

    let waiting = thread::spawn({
        let (client, id) = (client.clone(), id.to_owned());
        move || client.get(&format!("/v1/messages/{id}?wait=30s")).expect(200)
    });
    daemon.touch("go");
    let message = waiting.join().unwrap();
    assert_eq!((&message["state"], &message["reply"]), (&json!("answered"), &json!("waited")));
    assert!(message["ended_at_ms"].as_u64() >= message["accepted_at_ms"].as_u64(), "{message}");
}

#[test]
fn a_broken_stream_goes_on_where_it_was_without_gap_or_repeat() {
    let daemon = scripted().start();
    let client = daemon.client();
    let text = format!("stream-until {}", daemon.path("enough"));
    let mut stream = client.stream("scripted/a", &text);
    let first = stream.until(|event| event.name == "delta" && event.data["text"] == "5 ");
    drop(stream);
    let id = first.message_id();

    let mut second = client.follow(&id, first.last_id());
    let middle = second.until(|event| event.name == "delta");
    drop(second);
    // A third one comes when all is over.
    daemon.touch("enough");
    client.reply(&id);
    let last = client.follow(&id, middle.last_id()).rest();
    let whole = last.end().data["reply"].as_str().unwrap().to_owned();
    assert_eq!(format!("{}{}{}", first.text(), middle.text(), last.text()), whole);
    assert!(whole.starts_with("0 1 2 3 4 5 6 "), "{whole}");

    let from_the_beginning = client.follow(&id, None).rest();
    assert_eq!(from_the_beginning.text(), whole);
    let nothing_missed = client.follow(&id, last.last_id().or(middle.last_id())).rest();
    assert_eq!((nothing_missed.text().as_str(), nothing_missed.events.len()), ("", 1));
}

#[test]
fn an_exec_agent_gets_the_text_on_its_input_and_its_exit_status_is_kept() {
    let daemon = Setup::new()
        .config("[agents.cat]\ncommand = [\"cat\"]\nadapter = { kind = \"exec\" }")
        .config(
            "[agents.fails]\ncommand = [\"sh\", \"-c\", \"cat; echo bad luck >&2; exit 3\"]\n\
             adapter = { kind = \"exec\" }",
        )
        .config(
            "[agents.session]\n\
             command = [\"sh\", \"-c\", \"printf '%s {key}' $DORMOUSE_SESSION\"]\n\
             adapter = { kind = \"exec\" }",
        )
        .start();
    let client = daemon.client();
    let text = "line one\n\tline \"two\" äöü €\n";
    assert_eq!(client.ask("cat/a", text), text);
    assert_eq!(client.ask("cat/a", "again"), "again");
    assert_eq!(client.generation("cat/a"), 1, "one instance serves many turns");
    assert_eq!(client.ask("session/some.key:1", "which?"), "session/some.key:1 some.key:1");

    let id = client.submit("fails/a", "hello");
    let failed = client.ended(&id);
    assert_eq!((&failed["state"], &failed["cause"]), (&json!("dead"), &json!("agent_error")));
    assert_eq!(failed["exit_code"], 3);
    assert!(failed["detail"].as_str().unwrap().contains("bad luck"), "{failed}");
}

#[test]
fn the_example_of_a_command_line_program_works_as_its_page_says() {
    let page = include_str!("../../examples/cli/README.md");
    let config = page.split("```toml").nth(1).and_then(|rest| rest.split("```").next());
    let daemon = Setup::new().config(config.expect("the page has a config")).start();
    let client = daemon.client();
    assert_eq!(client.ask("count/me", "three small words").trim(), "3");
    assert_eq!(client.ask("notes/me", "buy milk"), "1 note: buy milk\n");
    assert_eq!(client.ask("notes/me", "call Ada"), "2 notes: buy milk; call Ada\n");
}

#[test]
fn an_openai_agent_is_started_on_a_free_port_and_streams() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/openclaw/scripted_model.py");
    let daemon = Setup::new()
        .config(&format!(
            "[agents.model]\n\
             command = [{python:?}, {model:?}, \"--port\", \"{{port}}\", \"--delay-ms\", \"40\"]\n\
             adapter = {{ kind = \"openai\", url = \"http://127.0.0.1:{{port}}/v1\", \
             ready = \"/healthz\" }}",
            python = support::agents::python(),
        ))
        .start();
    let client = daemon.client();
    let seen = client.stream("model/a", "one two three four").rest();
    assert_eq!(seen.end().data["reply"], "You said: one two three four");
    assert_eq!(seen.text(), "You said: one two three four");
    assert!(seen.of("delta").len() > 1, "{:?}", seen.events);
}

#[test]
fn a_fake_agent_plays_its_script_from_the_config() {
    let daemon = Setup::new()
        .config(
            "[agents.fake]\ndriver = \"fake\"\n\
             fake = { reply = { fixed = \"hello from the script\" }, chunks = 3, \
                      die_on = \"boom\" }",
        )
        .start();
    let client = daemon.client();
    let seen = client.stream("fake/a", "hi").rest();
    assert_eq!(seen.text(), "hello from the script");
    assert_eq!(seen.of("delta").len(), 3);
    let dead = client.ended(&client.submit("fake/a", "boom"));
    assert_eq!((&dead["state"], &dead["attempts"]), (&json!("dead"), &json!(3)));
    assert_eq!(dead["cause"], "poison_message");
    let exits = client.why("fake/a");
    assert_eq!(exits["last_exit"]["cause"], "app_exit", "{exits}");
}

#[test]
fn every_command_shows_what_is_so_to_people_and_to_programs() {
    let daemon = scripted().start();
    let client = daemon.client();
    assert_eq!(client.ask("scripted/a", "garbage"), "tidy");
    let dead = client.ended(&client.submit("scripted/a", "fail no such luck"));
    let dead_id = dead["message_id"].as_str().unwrap();

    let text = daemon.cli(&["ps"]).ok();
    assert!(text.contains("scripted/a") && text.contains("awake"), "{text}");
    let rows = daemon.cli(&["ps", "--json"]).json();
    assert!(rows.to_string().contains("\"scripted/a\""), "{rows}");

    let text = daemon.cli(&["why", "scripted/a"]).ok();
    assert!(text.contains("scripted/a is awake"), "{text}");
    let why = daemon.cli(&["why", "scripted/a", "--json"]).json();
    assert_eq!(why["session"]["phase"], "awake");
    let text = daemon.cli(&["why", dead_id]).ok();
    assert!(text.contains("no such luck"), "{text}");

    let text = daemon.cli(&["logs", "scripted/a"]).ok();
    assert!(text.contains("no json"), "what an agent prints that is no frame is its log: {text}");
    assert!(text.ends_with('\n'), "a prompt comes on a line of its own: {text:?}");

    let text = daemon.cli(&["queue", "ls"]).ok();
    assert!(text.contains(dead_id) || text.contains("no such luck"), "{text}");
    let shown = daemon.cli(&["queue", "show", dead_id, "--json"]).json();
    assert!(shown.to_string().contains("fail no such luck"), "{shown}");
    let redriven = daemon.cli(&["queue", "redrive", dead_id, "--json"]).json();
    let new_id = redriven["message_id"].as_str().expect("a new message").to_owned();
    assert_ne!(new_id, dead_id);
    assert_eq!(client.ended(&new_id)["redrive_of"], dead_id);
    assert_eq!(client.message(dead_id)["redriven_as"], new_id.as_str());
    daemon.cli(&["queue", "drop", &new_id]).ok();

    let text = daemon.cli(&["agents"]).ok();
    assert!(text.contains("scripted") && text.contains("jsonl"), "{text}");
    let agents = daemon.cli(&["agents", "--json"]).json();
    assert!(agents.to_string().contains("\"scripted\""), "{agents}");

    let made = daemon.cli(&["keys", "create", "laptop", "--subject", "ann", "--json"]).json();
    let key = made["token"].as_str().expect("shown once").to_owned();
    assert_eq!(daemon.client().with_key(Some(&key)).get("/v1/sessions").status, 200);
    assert!(daemon.cli(&["keys", "ls"]).ok().contains("laptop"));
    daemon.cli(&["keys", "revoke", made["id"].as_str().unwrap()]).ok();
    assert_eq!(daemon.client().with_key(Some(&key)).get("/v1/sessions").error(401), "key_wrong");

    daemon.cli(&["stop", "scripted/a"]).ok();
    client.phase_becomes("scripted/a", "asleep");
    daemon.cli(&["wake", "scripted/a"]).ok();
    client.phase_becomes("scripted/a", "awake");
    daemon.cli(&["restart", "scripted/a"]).ok();
    until("a third life", || (client.generation("scripted/a") == 3).then_some(()));
}

#[test]
fn commands_that_fail_say_what_to_do_and_have_a_code_of_their_own() {
    let mut daemon = scripted().start();
    let unknown = daemon.cli(&["send", "nobody/a", "hello"]);
    assert!(unknown.code.is_some_and(|code| code != 0), "{unknown:?}");
    assert!(unknown.err.contains("dormouse agents"), "{unknown:?}");
    let failed = daemon.cli(&["send", "scripted/a", "fail out of ideas"]);
    assert!(failed.code.is_some_and(|code| code != 0 && code != unknown.code.unwrap()));
    assert!(failed.err.contains("out of ideas"), "{failed:?}");
    daemon.terminate();
    let nobody_there = daemon.cli(&["ps"]);
    assert!(nobody_there.code.is_some_and(|code| code != 0), "{nobody_there:?}");
    assert!(nobody_there.err.contains("dormouse up"), "{nobody_there:?}");
}

#[test]
fn two_subjects_do_not_see_each_others_sessions() {
    let daemon = scripted().start();
    let (ann, bob) = (daemon.client_of("ann"), daemon.client_of("bob"));
    let id = ann.submit("scripted/of-ann", "secret words");
    ann.reply(&id);

    for path in ["", "/journal", "/why", "/logs"] {
        let path = format!("/v1/sessions/scripted/of-ann{path}");
        assert_eq!(bob.get(&path).error(404), "not_found", "{path}");
        assert_eq!(ann.get(&path).status, 200, "{path}");
        assert_eq!(daemon.client().get(&path).status, 200, "{path}");
    }
    for path in ["", "/why"] {
        assert_eq!(bob.get(&format!("/v1/messages/{id}{path}")).error(404), "not_found");
    }
    let stream = bob.call("GET", &format!("/v1/messages/{id}"));
    assert_eq!(stream.header("accept", "text/event-stream").send().error(404), "not_found");
    for what in ["wake", "stop", "restart"] {
        let call = bob.call("POST", &format!("/v1/sessions/scripted/of-ann/{what}"));
        assert_eq!(call.send().error(404), "not_found");
    }
    assert_eq!(bob.call("DELETE", &format!("/v1/messages/{id}")).send().error(404), "not_found");
    let refused = bob.submission("scripted/of-ann", "hello").send();
    assert_eq!(refused.error(403), "not_your_session");

    let dead = ann.ended(&ann.submit("scripted/of-ann", "fail at once"));
    let dead = dead["message_id"].as_str().unwrap();
    let redrive = bob.call("POST", &format!("/v1/dead-letters/{dead}/redrive"));
    assert_eq!(redrive.send().error(404), "not_found");
    for path in ["/v1/sessions", "/v1/queue", "/v1/dead-letters"] {
        let page = bob.get(path).expect(200);
        assert_eq!(page["items"], json!([]), "{path}");
    }
    assert_eq!(ann.get("/v1/dead-letters").expect(200)["items"][0]["message_id"], dead);
    assert_eq!(ann.get("/v1/keys").error(403), "operator_needed");
    assert_eq!(ann.get("/metrics").error(403), "operator_needed");
}

#[test]
fn every_refusal_has_its_status_a_code_and_a_hint() {
    let daemon = scripted().start();
    let client = daemon.client();
    let messages = "/v1/sessions/scripted/a/messages";
    let refusal = |method: &str, path: &str, body: &[u8]| {
        let call = client.call(method, path).header("content-type", "application/json");
        let response = call.bytes(body.to_vec()).send();
        (response.status, response.error(response.status))
    };
    let expected: &[(u16, &str, &str, &str, &[u8])] = &[
        (400, "bad_request", "POST", messages, b"{}"),
        (400, "bad_request", "POST", messages, b"not json"),
        (400, "bad_request", "POST", messages, b"{\"text\": \"\"}"),
        (400, "bad_request", "POST", messages, b"{\"text\": \"x\", \"txet\": 1}"),
        (400, "bad_request", "POST", messages, b"{\"text\": \"\xff\"}"),
        (400, "bad_request", "POST", "/v1/sessions/scripted/a%20b/messages", b"{\"text\": \"x\"}"),
        (400, "bad_request", "GET", "/v1/messages/not-an-id", b""),
        (400, "bad_request", "GET", "/v1/sessions?limit=0", b""),
        (400, "bad_request", "GET", "/v1/sessions?colour=blue", b""),
        (404, "not_found", "GET", "/v1/messages/msg_00000000000000000000000000000001", b""),
        (404, "not_found", "GET", "/v1/sessions/scripted/never", b""),
        (404, "unknown_agent", "POST", "/v1/sessions/nobody/a/messages", b"{\"text\": \"x\"}"),
        (404, "no_such_path", "GET", "/v2/sessions", b""),
        (405, "wrong_method", "PUT", messages, b"{\"text\": \"x\"}"),
        (405, "wrong_method", "DELETE", "/v1/sessions", b""),
        (400, "bad_request", "POST", messages, b"{\"text\": \"x\", \"attachments\": [1]}"),
    ];
    for (status, code, method, path, body) in expected {
        let answered = refusal(method, path, body);
        assert_eq!(answered, (*status, (*code).to_owned()), "{method} {path} {body:?}");
    }
    let plain = client.call("POST", messages).header("content-type", "text/plain");
    assert_eq!(plain.bytes(b"{\"text\": \"x\"}".to_vec()).send().error(415), "json_needed");
    assert_eq!(client.call("POST", messages).send().error(415), "json_needed");

    let stranger = client.with_key(None).get("/v1/sessions");
    assert_eq!(stranger.error(401), "key_needed");
    assert_eq!(stranger.header("www-authenticate"), Some("Bearer"));
    let wrong = client.with_key(Some("dm_0123456789")).get("/v1/sessions");
    assert_eq!(wrong.error(401), "key_wrong");
    // None of it left anything behind.
    assert_eq!(daemon.count("SELECT count(*) FROM message"), 0);
    assert_eq!(daemon.count("SELECT count(*) FROM session"), 0);
}

#[test]
fn health_readiness_metrics_and_the_document_are_there() {
    let mut daemon = scripted().start();
    let anybody = daemon.client().with_key(None);
    assert_eq!(anybody.get("/healthz").status, 200);
    let ready = anybody.get("/readyz").expect(200);
    assert_eq!((&ready["ready"], &ready["reasons"]), (&json!(true), &json!([])));
    assert_eq!(anybody.get("/metrics").error(401), "key_needed");

    let client = daemon.client();
    client.ask("scripted/a", "hello");
    client.ended(&client.submit("scripted/a", "fail"));
    let metrics = client.get("/metrics");
    assert_eq!(metrics.status, 200);
    let kind = metrics.header("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = metrics.text();
    for line in [
        "dormouse_messages_accepted_total 2",
        "dormouse_messages_answered_total 1",
        "dormouse_messages_dead_total{cause=\"agent_error\"} 1",
        "dormouse_messages_waiting 0",
        "dormouse_starts_total{agent=\"scripted\"} 1",
        "dormouse_dead_letters_total{agent=\"scripted\",cause=\"agent_error\"} 1",
        "dormouse_sessions{phase=\"awake\"} 1",
        "dormouse_bridges_connected 1",
    ] {
        assert!(text.lines().any(|has| has == line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));

    let document = anybody.get("/openapi.json").expect(200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{document}");
    assert!(document["paths"]["/v1/sessions/{agent}/{key}/messages"]["post"].is_object());
    assert!(anybody.get("/").text().contains("dormouse send"));

    // While it ends it says so, to whoever still asks.
    let status = daemon.terminate();
    assert!(status.success(), "{status}");
}

fn submit_with_key(client: &Client, text: &str, key: &str) -> support::http::Response {
    client.submission("scripted/a", text).header("idempotency-key", key).send()
}

fn id_of(accepted: &Value) -> String {
    accepted["message_id"].as_str().expect("an id").to_owned()
}

#[test]
fn twenty_repeats_at_once_are_one_message() {
    let daemon = scripted().start();
    let client = daemon.client();
    let repeats: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            thread::spawn(move || submit_with_key(&client, "once", "the-key").expect(202))
        })
        .collect();
    let answers: Vec<Value> = repeats.into_iter().map(|one| one.join().unwrap()).collect();
    let first = id_of(&answers[0]);
    assert!(answers.iter().all(|answer| id_of(answer) == first), "{answers:?}");
    let new = answers.iter().filter(|answer| answer["duplicate"] == false).count();
    assert_eq!(new, 1, "{answers:?}");
    assert_eq!(client.reply(&first), "once");
    assert_eq!(daemon.turns_with("once").len(), 1);

    let again = submit_with_key(&client, "once", "the-key").expect(202);
    assert_eq!((id_of(&again), &again["state"]), (first.clone(), &json!("answered")));
    let other = submit_with_key(&client, "other", "the-key");
    assert_eq!(other.error(409), "idempotency_conflict");
    assert_eq!(other.json()["error"]["message_id"], first.as_str());
    assert_eq!(daemon.count("SELECT count(*) FROM message"), 1);
}

#[test]
fn a_repeat_after_a_crash_is_the_same_message() {
    let mut daemon = scripted().start();
    let first = id_of(&submit_with_key(&daemon.client(), "once", "the-key").expect(202));
    daemon.kill();
    daemon.start_again();
    let client = daemon.client();
    let again = submit_with_key(&client, "once", "the-key").expect(202);
    assert_eq!((id_of(&again), &again["duplicate"]), (first.clone(), &json!(true)));
    assert_eq!(submit_with_key(&client, "other", "the-key").error(409), "idempotency_conflict");
    assert_eq!(client.reply(&first), "once");
    assert_eq!(daemon.turns_with("once").len(), 1);
    assert_eq!(daemon.count("SELECT count(*) FROM message"), 1);
}

#[test]
fn messages_of_one_session_are_answered_in_order_one_at_a_time_by_one_instance() {
    let daemon = scripted().start();
    let client = daemon.client();
    let ids: Vec<String> =
        (0..20).map(|n| client.submit("scripted/a", &format!("number {n}"))).collect();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(client.reply(id), format!("number {n}"));
    }
    let turns = daemon.turns_with("number");
    let order: Vec<&str> = turns.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(order, (0..20).map(|n| format!("number {n}")).collect::<Vec<_>>());
    assert!(turns.iter().all(|line| line.generation == 1 && line.attempt == 1));
    let journal = client.journal("scripted/a");
    assert_eq!(decisions(&journal, "turn_answered").len(), 20);
}

#[test]
fn sessions_do_not_wait_for_each_other() {
    let daemon = scripted().start();
    let client = daemon.client();
    let busy = client.submit("scripted/busy", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    assert_eq!(client.ask("scripted/other", "hello"), "hello");
    assert_eq!(client.message(&busy)["state"], "leased");
    daemon.touch("go");
    assert_eq!(client.reply(&busy), "waited");
}

#[test]
fn a_client_that_goes_away_or_does_not_read_changes_nothing_for_its_message() {
    let daemon = scripted().start();
    let client = daemon.client();
    let mut gone = client.stream("scripted/a", "stream 20 10");
    let seen = gone.until(|event| event.name == "delta");
    drop(gone);
    let not_reading = client.stream("scripted/b", "big 8000000");
    let id = seen.message_id();
    assert_eq!(client.reply(&id).split(' ').count(), 21);
    until("the long reply to be stored", || {
        (daemon.count("SELECT count(*) FROM message WHERE state = 'answered'") == 2).then_some(())
    });
    not_reading.set_read_timeout(Duration::from_secs(30)).unwrap();
    let late = not_reading.rest();
    assert_eq!(late.text().len(), 8_000_000);
}

#[test]
fn secrets_are_granted_by_name_and_nothing_else_of_the_daemon_reaches_an_agent() {
    let setup = Setup::new()
        .scripted("scripted", &[], "secrets = [\"API_TOKEN\"]")
        .environment("API_TOKEN", "granted")
        .environment("OTHER_TOKEN", "not granted");
    let daemon: Daemon = setup.start();
    let client = daemon.client();
    assert_eq!(client.ask("scripted/a", "environ API_TOKEN"), "granted");
    assert_eq!(client.ask("scripted/a", "environ OTHER_TOKEN"), "(not set)");
    assert_eq!(client.ask("scripted/a", "environ DORMOUSE_LOG"), "(not set)");
    assert!(!daemon.log().contains("granted"));
}

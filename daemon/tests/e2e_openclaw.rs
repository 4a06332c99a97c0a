//! A real OpenClaw gateway as an agent, and the official OpenAI client in front of it.
//!
//! Owner: `cargo xtask ci`, after `cargo xtask provision` has installed both. The model behind
//! OpenClaw is `examples/openclaw/scripted_model.py`: it remembers nothing, so that an answer that
//! needs an earlier message proves that OpenClaw kept the conversation. Invariants: nothing is
//! faked between the client and the model; without the installed parts the test fails, unless
//! DORMOUSE_SKIP_OPENCLAW=1 says aloud that it is to be left out.

#[expect(dead_code, reason = "each test program uses a part of what they share")]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use support::agents::python;
use support::openclaw::{Gateway, Model, checkout, daemon_with, provisioned};
use support::waiting::within;
use support::{Daemon, Setup};

/// A start of the gateway takes up to half a minute on a busy machine.
const STEP_WITHIN: Duration = Duration::from_secs(120);
/// Between words: long enough that no buffer on the way makes one piece of two.
const WORD_EVERY_MS: u64 = 150;

fn openclaw_with(installation: &Path, model: &Model) -> Daemon {
    daemon_with(&Gateway {
        installation,
        package: "openclaw",
        model,
        ready: "/readyz",
        template: None,
        settings: "idle = { stop_after = \"4s\" }\nstart = { ready_within = \"2m\" }",
        environment: "",
    })
}

/// The reply to a message and its number of pieces; waits as long as a cold start may take.
fn ask(daemon: &Daemon, session: &str, text: &str) -> (String, usize) {
    let seen = daemon.client().stream(session, text).rest_within(STEP_WITHIN);
    assert_eq!(seen.end().name, "done", "{:?}", seen.end());
    (seen.text(), seen.of("delta").len())
}

#[test]
fn openclaw_wakes_answers_sleeps_and_remembers_after_its_sleep() {
    let Some(openclaw) = provisioned("openclaw") else { return };
    let model = Model::with_delay_ms(WORD_EVERY_MS);
    let daemon = openclaw_with(&openclaw, &model);
    let session = "openclaw/ann";

    let (reply, pieces) = ask(&daemon, session, "remember the word bluebell");
    assert!(reply.contains("bluebell"), "{reply}");
    assert!(pieces > 1, "the reply came in one piece");
    assert_eq!(daemon.client().generation(session), 1);

    let (reply, _) = ask(&daemon, session, "hello again");
    assert!(reply.contains("hello again"), "{reply}");
    assert_eq!(daemon.client().generation(session), 1, "the second message found it warm");

    within(STEP_WITHIN, "OpenClaw to be asleep", || {
        (daemon.client().session(session)["phase"] == "asleep").then_some(())
    });
    let (reply, _) = ask(&daemon, session, "which word?");
    assert!(reply.contains("bluebell"), "it forgot: {reply}");
    assert_eq!(daemon.client().generation(session), 2, "it was woken anew");
}

#[test]
fn openclaw_that_is_killed_in_the_middle_of_a_reply_answers_in_its_next_life() {
    let Some(openclaw) = provisioned("openclaw") else { return };
    let model = Model::with_delay_ms(WORD_EVERY_MS);
    let daemon = openclaw_with(&openclaw, &model);
    let client = daemon.client();
    let text = "a sentence of a good many words that takes its time to be said";
    let mut stream = client.stream("openclaw/ann", text);
    let before = stream.until_within(STEP_WITHIN, |event| event.name == "delta");
    let (_, _, agent) = daemon.instance_of("openclaw/ann");
    agent.kill();
    let seen = stream.rest_within(STEP_WITHIN);
    assert!(seen.states().contains(&"retrying"), "{:?}", seen.states());
    let message = client.message(&before.message_id());
    assert_eq!((&message["state"], &message["attempts"]), (&json!("answered"), &json!(2)));
    let reply = message["reply"].as_str().expect("it was answered");
    assert!(reply.starts_with("You said:") && reply.contains("takes its time"), "{reply}");
    assert_eq!(client.why("openclaw/ann")["last_exit"]["cause"], "killed_outside");
}

/// What the official client is told to do; it prints what it saw.
const CLIENT: &str = r#"
import json, sys
from openai import NotFoundError, OpenAI

client = OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], timeout=120, max_retries=0)
said = [{"role": "user", "content": "remember the word foxglove"}]
whole = client.chat.completions.create(model="openclaw", messages=said, user="bob")
asked = [{"role": "user", "content": "which word?"}]
chunks = list(client.chat.completions.create(
    model="openclaw", messages=asked, user="bob", stream=True))
try:
    client.chat.completions.create(model="nobody", messages=asked)
    missing = "answered"
except NotFoundError as error:
    missing = error.code
print(json.dumps({
    "models": [model.id for model in client.models.list()],
    "whole": whole.choices[0].message.content,
    "finish": whole.choices[0].finish_reason,
    "pieces": [chunk.choices[0].delta.content or "" for chunk in chunks],
    "last": chunks[-1].choices[0].finish_reason,
    "missing": missing,
}))
"#;

#[test]
fn the_official_client_talks_to_openclaw_unchanged() {
    let Some(openclaw) = provisioned("openclaw") else { return };
    let Some(client) = provisioned("openai-client") else { return };
    let model = Model::with_delay_ms(WORD_EVERY_MS);
    let daemon = openclaw_with(&openclaw, &model);
    let address = daemon.client().address;
    let output = Command::new(client.join("bin/python"))
        .args(["-c", CLIENT, &format!("http://{address}/v1"), daemon.operator_key()])
        .output()
        .expect("the client can be executed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON line");
    assert_eq!(seen["models"], json!(["openclaw"]));
    assert!(seen["whole"].as_str().expect("text").contains("foxglove"), "{seen}");
    assert_eq!(seen["finish"], "stop");
    let pieces = seen["pieces"].as_array().expect("a list");
    let text: String = pieces.iter().filter_map(|piece| piece.as_str()).collect();
    assert!(text.contains("foxglove"), "the second turn knows the first: {seen}");
    assert_eq!(seen["last"], "stop");
    assert_eq!(seen["missing"], "unknown_agent");
}

/// Everything that the client makes of answers and refusals, with an agent that starts at once.
#[test]
fn the_official_client_understands_every_answer_and_every_refusal() {
    let Some(official) = provisioned("openai-client") else { return };
    let script = checkout().join("examples/openclaw/scripted_model.py");
    let daemon = Setup::new()
        .config(&format!(
            "[agents.model]\n\
             command = [{:?}, {script:?}, \"--port\", \"{{port}}\", \"--delay-ms\", \"40\"]\n\
             [agents.model.adapter]\n\
             kind = \"openai\"\n\
             url = \"http://127.0.0.1:{{port}}/v1\"\n\
             ready = \"/healthz\"\n",
            python()
        ))
        .start();
    let mut command = support::cli::scrubbed(official.join("bin/python"), daemon.folder());
    command.arg(support::agents::program("openai_client.py"));
    command.arg(format!("http://{}/v1", daemon.client().address));
    command.args([daemon.operator_key(), "model", "of-the-client"]);
    let seen = support::cli::run(command, "").json();
    assert_eq!(seen["models"], json!(["model"]));
    assert_eq!(seen["whole"], "You said: say one two three");
    assert_eq!((&seen["role"], &seen["finish_reason"]), (&json!("assistant"), &json!("stop")));
    let pieces = seen["pieces"].as_array().expect("a list");
    let joined: String = pieces.iter().filter_map(|piece| piece.as_str()).collect();
    assert_eq!(joined, "You said: say four five six");
    assert!(pieces.len() > 1, "{pieces:?}");
    assert_eq!(seen["stream_finish_reason"], "stop");
    assert_eq!(seen["unknown_model"], json!({ "status": 404, "code": "unknown_agent" }));
    assert_eq!(seen["wrong_key"], json!({ "status": 401, "code": "key_wrong" }));
    assert_eq!(seen["two_answers"], json!({ "status": 422, "code": "unsupported" }));
    assert_eq!(seen["ids_of_one_key"], 1, "a repeat is the same message");
    assert_eq!(daemon.client().generation("model/of-the-client"), 1);
}

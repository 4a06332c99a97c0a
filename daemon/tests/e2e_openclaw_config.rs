//! The real OpenClaw and its config: what its own reload lets through, a canary turn does not.
//!
//! Its config is written by Dormouse (`render`), so that another text is another revision of the
//! agent. Owner: `cargo xtask ci` for the version that `cargo xtask provision` installs; what needs
//! the newest one is asked for by name. Invariants: nothing is faked between the file and the
//! answer; a part that is not installed fails the test, unless DORMOUSE_SKIP_OPENCLAW=1 says aloud
//! that it is to be left out. Absent: memory, conversations (`e2e_openclaw*`).

#[expect(dead_code, reason = "each test program uses a part of what they share")]
mod support;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::openclaw::{Model, ended, provisioned};
use support::processes::Process;
use support::waiting::within;
use support::{Daemon, Setup};

/// A start of the gateway takes up to half a minute on a busy machine.
const STEP_WITHIN: Duration = Duration::from_secs(180);
const TOKEN: &str = "only-for-this-test";

/// OpenClaw's config with this model, and a name for it to tell one from another.
fn template(model: &str, name: &str) -> Value {
    json!({
        "gateway": {
            "mode": "local", "bind": "loopback",
            "auth": {"mode": "token", "token": "{secret:OPENCLAW_TOKEN}"},
            "http": {"endpoints": {"chatCompletions": {"enabled": true}}},
        },
        "logging": {"level": "silent"},
        "update": {"checkOnStart": false},
        "models": {
            "mode": "replace",
            "providers": {"scripted": {
                "baseUrl": "{model_url}", "apiKey": "none", "api": "openai-completions",
                "models": [{
                    "id": "scripted", "name": name, "reasoning": false, "input": ["text"],
                    "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
                    "contextWindow": 128_000, "maxTokens": 4_096,
                }],
            }},
        },
        "agents": {"defaults": {"model": {"primary": model}, "heartbeat": {"every": "0m"}}},
    })
}

const RIGHT: &str = "scripted/scripted";

/// A daemon whose agent `openclaw` is the gateway itself, without a launcher.
struct Stage {
    daemon: Daemon,
    _model: Model,
    model_url: String,
}

impl Stage {
    fn start(installation: &Path) -> Self {
        let model = Model::start();
        let setup = Setup::new();
        let installation = installation.display();
        let setup = setup.config(&format!(
            "[agents.openclaw]\n\
             command = [\"{installation}/bin/node\", \
                        \"{installation}/node_modules/openclaw/openclaw.mjs\", \
                        \"gateway\", \"run\", \"--port\", \"{{port}}\"]\n\
             start.ready_within = \"2m\"\n\
             render = [{{ path = \".openclaw/openclaw.json\", from = \"openclaw.json\" }}, \
                       {{ path = \".tmp/port\", text = \"{{port}}\" }}]\n\
             canary = {{ text = \"remember the word canary\", expects = \"canary\" }}\n\
             [agents.openclaw.adapter]\n\
             kind = \"openai\"\n\
             url = \"http://127.0.0.1:{{port}}/v1\"\n\
             ready = \"/readyz\"\n\
             model = \"openclaw\"\n\
             headers = {{ authorization = \"Bearer {{secret:OPENCLAW_TOKEN}}\" }}\n\
             [agents.openclaw.env]\n\
             OPENCLAW_HOME = \"{{workspace}}\"\n\
             OPENCLAW_STATE_DIR = \"{{workspace}}/.openclaw\"\n\
             OPENCLAW_CONFIG_PATH = \"{{workspace}}/.openclaw/openclaw.json\"\n\
             TMPDIR = \"{{workspace}}/.tmp\"\n\
             OPENCLAW_CONFIG_READONLY = \"1\"\n\
             OPENCLAW_NO_RESPAWN = \"1\"\n\
             OPENCLAW_NO_AUTO_UPDATE = \"1\"\n\
             OPENCLAW_DISABLE_BONJOUR = \"1\"\n\
             OPENCLAW_SKIP_CHANNELS = \"1\"\n\
             OPENCLAW_EXEC_SHELL_SNAPSHOT = \"0\"\n"
        ));
        let model_url = model.url();
        let mut daemon = setup.environment("OPENCLAW_TOKEN", TOKEN).prepare();
        let first = written(&template(RIGHT, "one"), &model_url);
        fs::write(daemon.folder().join("openclaw.json"), first).unwrap();
        daemon.start_again();
        Self { daemon, _model: model, model_url }
    }

    /// Another config of OpenClaw comes into force, as an operator makes it.
    fn edited(&self, template: &Value) {
        let text = written(template, &self.model_url);
        fs::write(self.daemon.folder().join("openclaw.json"), text).unwrap();
        self.daemon.cli(&["config", "apply"]).ok();
    }

    fn answers(&self, session: &str, text: &str) -> String {
        let id = self.daemon.client().submit(session, text);
        self.reply(&id)
    }

    fn reply(&self, id: &str) -> String {
        let ended = ended(&self.daemon.client(), id, STEP_WITHIN);
        assert_eq!(ended["state"], "answered", "{ended}");
        ended["reply"].as_str().unwrap().to_owned()
    }

    fn rollout_becomes(&self, words: &str) -> String {
        within(STEP_WITHIN, words, || {
            let agents = self.daemon.client().get("/v1/agents").expect(200);
            let rollout = agents[0]["rollout"].as_str().unwrap_or("in force").to_owned();
            rollout.contains(words).then_some(rollout)
        })
    }

    /// The config as the session's gateway has it.
    fn config_of(&self, session: &str) -> PathBuf {
        let (_, _, gateway) = self.daemon.instance_of(session);
        let workspace = fs::read_link(format!("/proc/{}/cwd", gateway.pid)).unwrap();
        workspace.join(".openclaw/openclaw.json")
    }
}

fn written(template: &Value, model_url: &str) -> String {
    serde_json::to_string_pretty(template).unwrap().replace("{model_url}", model_url)
}

#[test]
fn a_wrong_model_and_an_unknown_key_are_found_by_the_canary_and_nobody_is_interrupted() {
    let Some(openclaw) = provisioned("openclaw") else { return };
    let stage = Stage::start(&openclaw);
    let ann = "openclaw/ann";
    assert!(stage.answers(ann, "remember the word bluebell").contains("bluebell"));

    // Valid by its schema; every probe stays green, and every message fails.
    stage.edited(&template("nope/none", "two"));
    let rollout = stage.rollout_becomes("revision 2 is bad");
    assert!(rollout.contains("the others run revision 1"), "{rollout}");
    assert!(stage.answers(ann, "which word?").contains("bluebell"));

    // What a running gateway ignores, and its next start dies of.
    let mut unknown = template(RIGHT, "three");
    unknown["voice"] = json!("loud");
    stage.edited(&unknown);
    let rollout = stage.rollout_becomes("revision 3 is bad");
    assert!(rollout.contains("app_exit") || rollout.contains("config_rejected"), "{rollout}");
    assert!(stage.answers(ann, "which word?").contains("bluebell"));
    assert_eq!(stage.daemon.client().generation(ann), 1, "it was never interrupted");

    // A new start of it gets what is good.
    stage.daemon.client().request(ann, "stop");
    stage.daemon.client().phase_becomes(ann, "asleep");
    assert!(stage.answers(ann, "which word?").contains("bluebell"));
    assert_eq!(stage.daemon.client().generation(ann), 2);

    stage.edited(&template(RIGHT, "four"));
    stage.rollout_becomes("in force");
}

/// Where it was told to listen.
fn port_of(gateway: &Process) -> u16 {
    let port = fs::read_to_string(format!("/proc/{}/cwd/.tmp/port", gateway.pid)).unwrap();
    port.parse().expect("a port")
}

#[test]
#[ignore = "waits for its own restarts, a minute and more: \
            cargo test -p dormouse --test e2e_openclaw_config -- --ignored --test-threads=1"]
fn messages_that_come_while_the_gateway_restarts_itself_wait_and_are_answered() {
    let Some(openclaw) = provisioned("openclaw") else { return };
    let stage = Stage::start(&openclaw);
    let ann = "openclaw/ann";
    assert!(stage.answers(ann, "hello").contains("hello"));
    for number in 0..3 {
        let (_, _, gateway) = stage.daemon.instance_of(ann);
        let port = port_of(&gateway);
        gateway.signal(Signal::USR1);
        // What it has taken before, it answers in words of its own.
        within(STEP_WITHIN, "its port to be closed", || {
            TcpStream::connect(("127.0.0.1", port)).is_err().then_some(())
        });
        let client = stage.daemon.client();
        let ids: Vec<String> =
            (0..4).map(|part| client.submit(ann, &format!("part {number} {part}"))).collect();
        for (part, id) in ids.iter().enumerate() {
            let reply = stage.reply(id);
            assert!(reply.contains(&format!("part {number} {part}")), "{reply}");
        }
    }
}

#[test]
#[ignore = "takes minutes: cargo xtask provision openclaw-newest && \
            cargo test -p dormouse --test e2e_openclaw_config -- --ignored --test-threads=1"]
fn openclaws_own_meta_brings_no_older_config_back() {
    let Some(openclaw) = provisioned("openclaw-newest") else { return };
    let stage = Stage::start(&openclaw);
    let ann = "openclaw/ann";
    assert!(stage.answers(ann, "hello").contains("hello"));
    let file = stage.config_of(ann);
    for name in ["two", "three"] {
        // As if OpenClaw, or one of its tools, had written the file in between.
        let mut own: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        own["meta"] = json!({ "lastTouchedVersion": "2026.9.6" });
        fs::write(&file, own.to_string()).unwrap();
        stage.edited(&template(RIGHT, name));
        stage.rollout_becomes("in force");
        stage.daemon.client().request(ann, "stop");
        stage.daemon.client().phase_becomes(ann, "asleep");
        assert!(stage.answers(ann, "hello again").contains("hello again"));
        let runs: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(runs["models"]["providers"]["scripted"]["models"][0]["name"], name, "{runs}");
        let beside = fs::read_dir(file.parent().unwrap()).unwrap().map(|entry| entry.unwrap());
        let names: Vec<_> = beside.map(|entry| entry.file_name().into_string().unwrap()).collect();
        assert!(!names.iter().any(|name| name.contains("clobbered")), "{names:?}");
    }
}

//! Real OpenClaw gateways as agents, with the scripted model of `examples/openclaw` behind them.
//!
//! Owner: `tests/e2e_openclaw*.rs`. Invariants: nothing is faked between the client and the model;
//! a part that is not installed fails the test, unless DORMOUSE_SKIP_OPENCLAW=1 says aloud that it
//! is to be left out; the model ends with the test. Absent: what is expected of them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::agents::python;
use super::http::{Client, decisions};
use super::scratch::say;
use super::waiting::within;
use super::{Daemon, Setup};

const TOKEN: &str = "only-for-this-test";
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn checkout() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("the crate is in the checkout").to_owned()
}

/// Where `cargo xtask provision PART` has put it.
pub(crate) fn provisioned(part: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folder = if part == "openai-client" { "venv" } else { part };
    let path = target.unwrap_or_else(|| checkout().join("target")).join("provision").join(folder);
    // The last thing that an installation writes.
    if path.join("provisioned.txt").exists() {
        return Some(path);
    }
    let is_left_out = std::env::var_os("DORMOUSE_SKIP_OPENCLAW").is_some_and(|value| value == "1");
    assert!(is_left_out, "{} is not whole: run `cargo xtask provision {part}`", path.display());
    say(&format!("SKIPPED: {part} is not installed, and DORMOUSE_SKIP_OPENCLAW=1"));
    None
}

/// The model server, ended with the test.
pub(crate) struct Model {
    child: Child,
    port: u64,
}

impl Model {
    pub(crate) fn start() -> Self {
        Self::with_delay_ms(0)
    }

    /// A pause before each word.
    pub(crate) fn with_delay_ms(delay_ms: u64) -> Self {
        let mut child = Command::new(python())
            .arg(checkout().join("examples/openclaw/scripted_model.py"))
            .args(["--delay-ms", &delay_ms.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python can be executed");
        let stdout = child.stdout.take().expect("it was asked for");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("it says its port");
        let said: Value = serde_json::from_str(&line).expect("one JSON line");
        Self { child, port: said["port"].as_u64().expect("a port") }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A gateway, and how it is started.
pub(crate) struct Gateway<'a> {
    /// What `provisioned` gave.
    pub(crate) installation: &'a Path,
    /// Its name among npm's packages.
    pub(crate) package: &'a str,
    pub(crate) model: &'a Model,
    /// The path that answers well when it is ready.
    pub(crate) ready: &'a str,
    /// A template of another text than the one that comes with the launcher.
    pub(crate) template: Option<&'a str>,
    /// Lines of the agent's settings.
    pub(crate) settings: &'a str,
    /// Lines of its `env`.
    pub(crate) environment: &'a str,
}

/// A daemon with the gateway as its agent `openclaw`.
pub(crate) fn daemon_with(gateway: &Gateway<'_>) -> Daemon {
    let setup = Setup::new();
    let template = setup.folder().join("template.json");
    let config = match gateway.template {
        None => String::new(),
        Some(text) => {
            std::fs::write(&template, text).expect("the test's folder can be written");
            format!(", \"--config\", {template:?}")
        }
    };
    setup
        .config(&format!(
            "[agents.openclaw]\n\
             command = [\"{installation}/bin/node\", \"{{examples}}/openclaw/gateway.mjs\", \
                        \"--port\", \"{{port}}\", \
                        \"--openclaw\", \"{installation}/node_modules/{package}\"{config}]\n\
             {settings}\n\
             [agents.openclaw.adapter]\n\
             kind = \"openai\"\n\
             url = \"http://127.0.0.1:{{port}}/v1\"\n\
             ready = \"{ready}\"\n\
             model = \"openclaw\"\n\
             headers = {{ authorization = \"Bearer {TOKEN}\" }}\n\
             [agents.openclaw.env]\n\
             OPENCLAW_GATEWAY_TOKEN = \"{TOKEN}\"\n\
             MODEL_URL = \"http://127.0.0.1:{port}/v1\"\n\
             {environment}\n",
            installation = gateway.installation.display(),
            package = gateway.package,
            ready = gateway.ready,
            settings = gateway.settings,
            port = gateway.model.port,
            environment = gateway.environment,
        ))
        .start()
}

/// Whether memory limits hold here; a test that cannot have them says so loudly.
pub(crate) fn has_memory_limits(daemon: &Daemon) -> bool {
    let doctor = daemon.cli(&["doctor", "--json"]).out;
    let doctor: Value = serde_json::from_str(&doctor).expect("one JSON value");
    let checks = doctor["checks"].as_array().expect("a list");
    let holds = checks.iter().any(|c| c["name"] == "memory limits" && c["state"] == "ok");
    if !holds {
        say("SKIPPED: no memory control groups can be made here");
    }
    holds
}

/// The message when it has ended, after as many starts as it takes.
#[track_caller]
pub(crate) fn ended(client: &Client, id: &str, limit: Duration) -> Value {
    within(limit, "the message to end", || {
        let message = client.get(&format!("/v1/messages/{id}?wait=20s")).expect(200);
        let state = message["state"].as_str().unwrap_or_default().to_owned();
        matches!(state.as_str(), "answered" | "dead" | "cancelled").then_some(message)
    })
}

/// The kept deaths, oldest first, as `why` tells them in short.
pub(crate) fn deaths(client: &Client, session: &str) -> Vec<Value> {
    let mut deaths = client.why(session)["exits"].as_array().expect("a list").clone();
    deaths.reverse();
    deaths
}

/// Each raise of the limit, oldest first, in MiB.
pub(crate) fn raises(client: &Client, session: &str) -> Vec<(u64, u64)> {
    let journal = client.journal(session);
    let mib = |row: &Value, name: &str| row["because"][name].as_u64().expect("bytes") / MIB;
    let raised = decisions(&journal, "memory_raised");
    raised.iter().map(|row| (mib(row, "from_bytes"), mib(row, "to_bytes"))).collect()
}

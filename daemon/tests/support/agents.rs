//! Agents of the tests, as parts of a config, and what they wrote down.
//!
//! Owner: `Setup`. Invariant: agents run under the system's own interpreter where there is one: a
//! version switcher in between costs more than the agent.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Where the programs of the test agents are.
pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agents").join(name)
}

pub(crate) fn python() -> &'static str {
    let of_the_system = "/usr/bin/python3";
    if Path::new(of_the_system).exists() { of_the_system } else { "python3" }
}

/// A list of texts as TOML writes it.
pub(crate) fn toml_list(texts: &[&str]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", quoted.join(", "))
}

/// A line that an agent wrote about itself.
#[derive(Debug, Clone)]
pub(crate) struct AgentLine {
    /// `started`, `turn`, `done` or `sigterm`.
    pub(crate) what: String,
    pub(crate) session: String,
    pub(crate) generation: u64,
    pub(crate) pid: i32,
    pub(crate) at_ms: u64,
    /// Of `turn` and `done`; else 0.
    pub(crate) attempt: u64,
    /// Of `turn`.
    pub(crate) text: String,
    /// Of `turn` and `done`: MESSAGE.ATTEMPT.
    pub(crate) turn: String,
}

impl AgentLine {
    fn parse(line: &str) -> Self {
        let line: Value = serde_json::from_str(line).expect("agents write whole lines");
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| line[name].as_u64().unwrap_or_default();
        Self {
            what: text("what"),
            session: text("session"),
            generation: number("generation"),
            pid: i32::try_from(number("pid")).expect("a process's number"),
            at_ms: number("at_ms"),
            attempt: number("attempt"),
            text: text("text"),
            turn: text("turn"),
        }
    }

    pub(crate) fn message_id(&self) -> &str {
        self.turn.split('.').next().unwrap_or_default()
    }
}

/// Everything that agents wrote so far, in order. A line that is being written is left out.
pub(crate) fn read_log(path: &Path) -> Vec<AgentLine> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    whole.lines().map(AgentLine::parse).collect()
}

//! An agent's table as it is written.
//!
//! Owner: `config::parse`. Invariant: field names are the settings' names. Absent: the bounds of
//! values; revisions (`revision`).

#![deny(unused_variables, reason = "a setting that is taken apart and not shown is forgotten")]

use std::collections::BTreeMap;

use dormouse_bridge::frames::HEAP_PERCENT_DEFAULT;
use dormouse_core::policy::AgentPolicy;
use dormouse_edge::driver::fake::FakeScript;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::files::{AgentFilesTable, InputTable};
use super::render::RenderTable;
use super::setting::{Live, NextStart, NextTurn, Setting, Table, Visitor, doc};
use super::units::{Percent, Size, Span};
use super::value::{Environment, Value, choice_of, object_of};

/// No agent in good health comes near, and one that forks without end is held before the machine
/// is full.
const PIDS_DEFAULT: u64 = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DriverKind {
    #[default]
    Process,
    Fake,
}

impl Value for DriverKind {
    const KIND: &'static str = "\"process\" or \"fake\"";
    fn schema() -> Json {
        choice_of(&[Self::Process, Self::Fake])
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum AdapterSetting {
    Exec {},
    Jsonl {
        #[serde(default)]
        ready: bool,
    },
    Openai {
        url: String,
        ready: Option<String>,
        model: Option<String>,
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
}

impl AdapterSetting {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            AdapterSetting::Exec {} => "exec",
            AdapterSetting::Jsonl { .. } => "jsonl",
            AdapterSetting::Openai { .. } => "openai",
        }
    }
}

impl Value for AdapterSetting {
    const KIND: &'static str = "table";
    const HIDDEN: &'static [&'static str] = &["/headers"];
    fn schema() -> Json {
        let kind = |name: &str| json!({"const": name});
        let openai = json!({
            "kind": kind("openai"), "url": {"type": "string", "pattern": "^http://"},
            "ready": String::schema(), "model": String::schema(),
            "headers": Environment::schema(),
        });
        json!({"oneOf": [
            object_of(json!({"kind": kind("exec")}), &["kind"]),
            object_of(json!({"kind": kind("jsonl"), "ready": bool::schema()}), &["kind"]),
            object_of(openai, &["kind", "url"]),
        ]})
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AgentTable {
    pub(super) driver: Setting<DriverKind, NextStart>,
    pub(super) command: Setting<Vec<String>, NextStart>,
    pub(super) adapter: Setting<Option<AdapterSetting>, NextStart>,
    pub(super) memory: Setting<Option<Size>, NextStart>,
    pub(super) memory_ceiling: Setting<Option<Size>, NextStart>,
    pub(super) heap: Setting<Percent, NextStart>,
    pub(super) pids: Setting<u64, NextStart>,
    pub(super) idle: IdleTable,
    pub(super) start: StartTable,
    pub(super) turn: TurnTable,
    pub(super) stop: StopTable,
    pub(super) restart: RestartTable,
    pub(super) inputs: Setting<Vec<InputTable>, NextTurn>,
    pub(super) files: AgentFilesTable,
    pub(super) env: Setting<Environment, NextStart>,
    pub(super) secrets: Setting<Vec<String>, NextStart>,
    pub(super) render: Setting<Vec<RenderTable>, NextStart>,
    pub(super) canary: CanaryTable,
    /// The part that the fake driver plays.
    pub(super) fake: Setting<Option<FakeScript>, NextStart>,
}

impl Default for AgentTable {
    fn default() -> Self {
        Self {
            driver: DriverKind::Process.into(),
            command: Vec::new().into(),
            adapter: None.into(),
            memory: None.into(),
            memory_ceiling: None.into(),
            heap: Percent(HEAP_PERCENT_DEFAULT).into(),
            pids: PIDS_DEFAULT.into(),
            idle: IdleTable::default(),
            start: StartTable::default(),
            turn: TurnTable::default(),
            stop: StopTable::default(),
            restart: RestartTable::default(),
            inputs: Vec::new().into(),
            files: AgentFilesTable::default(),
            env: Environment::default().into(),
            secrets: Vec::new().into(),
            render: Vec::new().into(),
            canary: CanaryTable::default(),
            fake: None.into(),
        }
    }
}

impl Table for AgentTable {
    fn visit(&self, visitor: &mut Visitor) {
        let AgentTable {
            driver,
            command,
            adapter,
            memory,
            memory_ceiling,
            heap,
            pids,
            idle,
            start,
            turn,
            stop,
            restart,
            inputs,
            files,
            env,
            secrets,
            render,
            canary,
            fake,
        } = self;
        visitor.setting("driver", driver, doc(words::DRIVER));
        let example = "[\"python3\", \"agent.py\"]";
        visitor.setting("command", command, doc(words::COMMAND).example(example));
        let example = "{ kind = \"exec\" }";
        visitor.setting("adapter", adapter, doc(words::ADAPTER).example(example));
        visitor.setting("memory", memory, doc(words::MEMORY).example("\"512MiB\""));
        let example = "\"2GiB\"";
        visitor.setting("memory_ceiling", memory_ceiling, doc(words::CEILING).example(example));
        visitor.setting("heap", heap, doc(words::HEAP));
        visitor.setting("pids", pids, doc(words::PIDS));
        visitor.table("idle", idle, "");
        visitor.table("start", start, "");
        visitor.table("turn", turn, "");
        visitor.table("stop", stop, "");
        visitor.table("restart", restart, words::RESTART);
        visitor.setting("inputs", inputs, doc(words::INPUTS));
        visitor.table("files", files, words::FILES);
        visitor.setting("env", env, doc(words::ENV));
        visitor.setting("secrets", secrets, doc(words::SECRETS));
        visitor.setting("render", render, doc(words::RENDER));
        visitor.table("canary", canary, words::CANARY);
        let example = "{ reply = \"count\", turn_takes_ms = 1000 }";
        visitor.setting("fake", fake, doc(words::FAKE).example(example));
    }
}

/// What the manual says, where it is long.
mod words {
    pub(super) const DRIVER: &str = "Where it runs: \"process\" (on this machine), or \"fake\" \
        (played by a script, for trying things out).";
    pub(super) const COMMAND: &str = "What to run: the program and its arguments. Required, but \
        not for the fake driver.";
    pub(super) const ADAPTER: &str = "How to talk to it. `exec`: one process per turn, text on \
        standard input, reply on standard output. `jsonl`: one process, JSON lines both ways; \
        with `ready = true` it says when it is. `openai`: OpenAI-compatible HTTP, with `url` (for \
        example \"http://127.0.0.1:{port}/v1\"), and `ready` (for example \"/healthz\"), `model` \
        and `headers` where it needs them. Required, but not for the fake driver.";
    pub(super) const MEMORY: &str = "The most memory that it and its children may use, where \
        control groups are there. Unlimited if absent.";
    pub(super) const CEILING: &str = "After a death that is proved to be for want of memory, the \
        next start of that session has twice as much, up to this; less again after a week in \
        which less was enough. Four times `memory` if absent.";
    pub(super) const HEAP: &str = "A runtime with a heap limit of its own guesses it; Node.js \
        takes half of `memory`, but 256MiB to 2GiB. To tell it, `{heap_mib}` in command and env \
        is this share of the limit in force, in MiB, and `{memory_mib}` the whole. For Node.js: \
        env = { NODE_OPTIONS = \"--max-old-space-size={heap_mib}\" }.";
    pub(super) const PIDS: &str = "The most processes and threads of it and its children, where \
        control groups are there.";
    pub(super) const RESTART: &str = "After `intensity` failures in a row a session is tripped: \
        its messages are kept, and one start is tried after five minutes, then ever less often, \
        up to an hour, until there is an answer.";
    pub(super) const INPUTS: &str = "Files that every session finds in its workspace before each \
        turn, read only as far as Dormouse goes: what is changed there is put back. `from` is a \
        folder (relative to this file) or s3://BUCKET/PREFIX; without it the files are the \
        session's own uploads, and only their presence is required. A message whose `required` \
        files are not there is given up as input_missing, and the agent is not asked. For \
        example [{ path = \"data\", from = \"./inputs\", required = [\"*.csv\"] }]. `etag = \
        \"opaque\"` for buckets whose entity tags are no MD5 of the contents (encrypted ones).";
    pub(super) const FILES: &str = "Checkpoints of the workspace, from which it is made anew where \
        it is lost.";
    pub(super) const ENV: &str = "Environment of the agent, besides PATH, LANG, HOME (its \
        workspace) and DORMOUSE_SESSION.";
    pub(super) const SECRETS: &str = "Names of secrets for its environment. Where the values come \
        from, [secrets] says; they never stand here. A secret that is only named as \
        {secret:NAME}, in `render` or in the adapter's headers, is not in the environment.";
    pub(super) const RENDER: &str = "Files that are written into its workspace before each start: \
        its own config, as a rule. The text stands in a file `from` (relative to this one) or in \
        `text`; besides the fields of `command`, {secret:NAME} is filled in, and in files called \
        *.json everything that is filled in is escaped for the inside of quotes. For example \
        [{ path = \".agent/config.json\", from = \"agent.json\", mode = \"0600\" }]. A changed \
        text is a new revision; what the agent itself writes there is gone with the next start. \
        These files are in no checkpoint.";
    pub(super) const CANARY: &str = "With a `text`, a new revision is tried by the session \
        AGENT/canary alone: it is asked this as soon as the config is in force, and the revision \
        is good once it has answered. Without, the next session that starts tries it.";
    pub(super) const FAKE: &str = "What an agent of the fake driver does, for trials; it \
        echoes if absent.";
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CanaryTable {
    pub(super) text: Setting<Option<String>, Live>,
    pub(super) expects: Setting<Option<String>, Live>,
}

impl Table for CanaryTable {
    fn visit(&self, visitor: &mut Visitor) {
        let CanaryTable { text, expects } = self;
        let words = "What a new revision is asked.";
        visitor.setting("text", text, doc(words).example("\"Answer with the word ready.\""));
        let words = "What its answer must contain; any answer will do if absent.";
        visitor.setting("expects", expects, doc(words).example("\"ready\""));
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IdleTable {
    pub(super) stop_after: Setting<Span, Live>,
}

impl Default for IdleTable {
    fn default() -> Self {
        Self { stop_after: Span(AgentPolicy::default().stop_after).into() }
    }
}

impl Table for IdleTable {
    fn visit(&self, visitor: &mut Visitor) {
        let IdleTable { stop_after } = self;
        let words = "Stopped when nothing has needed it for so long.";
        visitor.setting("stop_after", stop_after, doc(words));
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StartTable {
    pub(super) ready_within: Setting<Span, Live>,
}

impl Default for StartTable {
    fn default() -> Self {
        Self { ready_within: Span(AgentPolicy::default().ready_within).into() }
    }
}

impl Table for StartTable {
    fn visit(&self, visitor: &mut Visitor) {
        let StartTable { ready_within } = self;
        let words = "It must be ready so soon after its start.";
        visitor.setting("ready_within", ready_within, doc(words));
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TurnTable {
    pub(super) stuck_after: Setting<Span, Live>,
    /// Told to the bridge with the turn.
    pub(super) within: Setting<Span, Live>,
    pub(super) attempts: Setting<u32, Live>,
    pub(super) retry: Setting<Retry, Live>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Retry {
    Safe,
    Ask,
}

impl Value for Retry {
    const KIND: &'static str = "\"safe\" or \"ask\"";
    fn schema() -> Json {
        choice_of(&[Self::Safe, Self::Ask])
    }
}

impl Default for TurnTable {
    fn default() -> Self {
        let standard = AgentPolicy::default();
        Self {
            stuck_after: Span(standard.stuck_after).into(),
            within: Span(standard.turn_within).into(),
            attempts: standard.attempts.into(),
            retry: Retry::Safe.into(),
        }
    }
}

impl Table for TurnTable {
    fn visit(&self, visitor: &mut Visitor) {
        let TurnTable { stuck_after, within, attempts, retry } = self;
        let words = "A turn that shows no progress for so long is ended, and its agent replaced. \
                     A change that is longer helps a turn that runs; a shorter one is for the \
                     turns after it.";
        visitor.setting("stuck_after", stuck_after, doc(words));
        let words = "So is a turn that takes longer than this, whatever progress it shows; of a \
                     change, the same holds.";
        visitor.setting("within", within, doc(words));
        let words = "How often a message is tried: 1 to 5.";
        visitor.setting("attempts", attempts, doc(words));
        let words = "\"ask\" never repeats an interrupted turn by itself.";
        visitor.setting("retry", retry, doc(words));
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StopTable {
    pub(super) drain_within: Setting<Span, Live>,
    pub(super) grace: Setting<Span, Live>,
}

impl Default for StopTable {
    fn default() -> Self {
        let standard = AgentPolicy::default();
        Self {
            drain_within: Span(standard.drain_within).into(),
            grace: Span(standard.stop_grace).into(),
        }
    }
}

impl Table for StopTable {
    fn visit(&self, visitor: &mut Visitor) {
        let StopTable { drain_within, grace } = self;
        let words = "A stop lets the running turn go on for so long.";
        visitor.setting("drain_within", drain_within, doc(words));
        let words = "Then the agent has so long to end before it is killed.";
        visitor.setting("grace", grace, doc(words));
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RestartTable {
    pub(super) window: Setting<Span, Live>,
    pub(super) intensity: Setting<u32, Live>,
}

impl Default for RestartTable {
    fn default() -> Self {
        let breaker = AgentPolicy::default().breaker;
        Self { window: Span(breaker.window).into(), intensity: breaker.intensity.into() }
    }
}

impl Table for RestartTable {
    fn visit(&self, visitor: &mut Visitor) {
        let RestartTable { window, intensity } = self;
        let words = "A life at least this long (10m or more) begins the count anew.";
        visitor.setting("window", window, doc(words));
        let words = "Failures in a row that trip a session.";
        visitor.setting("intensity", intensity, doc(words));
    }
}

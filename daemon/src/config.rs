//! The config file: TOML in, typed settings out, or an error that names the line and what to do.
//!
//! Owner: read once at start. Invariants: an unknown key is refused; a value out of bounds is
//! refused; secrets have no place in it. `default.toml` is the manual, and a test holds it to the
//! defaults in the code.
//! Absent: reloading, revisions, secret values.

pub(crate) mod files;
mod notify;
mod policies;
mod prices;
mod suggestion;
pub(crate) mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_bridge::files::wire::CheckpointPolicy;
use dormouse_core::id::AgentName;
use dormouse_core::limits;
use dormouse_core::policy::{AgentPolicy, NodePolicy};
use dormouse_edge::driver::fake::FakeScript;
use files::{AgentFilesTable, FilesSetting, FilesTable, Input, InputTable, S3Setting, S3Table};
use notify::NotifyTable;
use policies::{breaker_of, heap_follows, heap_percent, memory_of, policy_of};
pub(crate) use prices::Prices;
use prices::{PricesTable, prices_of};
use serde::Deserialize;
use suggestion::with_suggestion;
use units::{Size, Span};

use crate::machine;
use crate::notify::Target;

pub(crate) const DEFAULT: &str = include_str!("config/default.toml");
const FILE_BYTES_MAX: u64 = 1 << 20;
/// No agent in good health comes near, and one that forks without end is held before the machine
/// is full.
const PIDS_DEFAULT: u64 = 1_024;
const FILE_NAME: &str = "dormouse.toml";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the config {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the config {path} is larger than 1 MiB")]
    TooLarge { path: PathBuf },
    #[error("the config {path} is wrong:\n{problem}")]
    Parse { path: PathBuf, problem: String },
    #[error("the config {path} is wrong: {setting}: {problem}")]
    Value { path: PathBuf, setting: String, problem: String },
}

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) prices: Option<Prices>,
    /// What running turns get when the daemon is told to end.
    pub(crate) drain_within: Duration,
    pub(crate) node: NodePolicy,
    pub(crate) orphan_limit: Duration,
    pub(crate) refuse_without_cgroup: bool,
    pub(crate) disk_floor_bytes: u64,
    pub(crate) gate: GateLimits,
    pub(crate) notify: Vec<Target>,
    pub(crate) files: FilesSetting,
    pub(crate) s3: S3Setting,
    pub(crate) agents: BTreeMap<AgentName, Agent>,
}

#[derive(Debug, Clone)]
pub(crate) struct GateLimits {
    pub(crate) messages_per_second: u32,
    pub(crate) messages_burst: u32,
    pub(crate) unauthenticated_per_second: u32,
    pub(crate) wrong_keys_per_minute: u32,
    pub(crate) connections: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) driver: DriverKind,
    pub(crate) command: Vec<String>,
    pub(crate) adapter: AdapterSetting,
    pub(crate) pids_limit: Option<u64>,
    /// Of the memory limit, what `{heap_mib}` stands for.
    pub(crate) heap_percent: u32,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) secrets: Vec<String>,
    pub(crate) inputs: Vec<Input>,
    pub(crate) checkpoint: CheckpointPolicy,
    pub(crate) policy: AgentPolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DriverKind {
    #[default]
    Process,
    Fake,
}

#[derive(Debug, Clone, Deserialize)]
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

/// The file as it is written. Field names are the setting's names.
#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    server: ServerTable,
    prices: PricesTable,
    node: NodeTable,
    limits: LimitsTable,
    notify: NotifyTable,
    files: FilesTable,
    s3: S3Table,
    agents: BTreeMap<String, AgentTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServerTable {
    listen: SocketAddr,
    drain_within: Span,
}

impl Default for ServerTable {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7766)),
            drain_within: Span(Duration::from_secs(5 * 60)),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodeTable {
    starts_at_once: usize,
    restarts_per_minute: usize,
    orphan_limit: Span,
    when_no_cgroup: WhenNoCgroup,
    disk_floor: Size,
}

#[derive(Debug, Deserialize, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum WhenNoCgroup {
    GoOn,
    Refuse,
}

impl Default for NodeTable {
    fn default() -> Self {
        Self {
            starts_at_once: NodePolicy::default().starts_at_once,
            restarts_per_minute: NodePolicy::default().restarts_per_minute,
            orphan_limit: Span(Duration::from_secs(10 * 60)),
            when_no_cgroup: WhenNoCgroup::GoOn,
            disk_floor: Size(64 << 20),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsTable {
    queue_messages: usize,
    queue_size: Size,
    messages_per_second: u32,
    messages_burst: u32,
    unauthenticated_per_second: u32,
    wrong_keys_per_minute: u32,
    connections: usize,
}

impl Default for LimitsTable {
    fn default() -> Self {
        Self {
            queue_messages: limits::QUEUE_MESSAGES_MAX,
            queue_size: Size(limits::QUEUE_BYTES_MAX),
            messages_per_second: 20,
            messages_burst: 60,
            unauthenticated_per_second: 5,
            wrong_keys_per_minute: 10,
            connections: 1024,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentTable {
    #[serde(default)]
    driver: DriverKind,
    #[serde(default)]
    command: Vec<String>,
    adapter: Option<AdapterSetting>,
    memory: Option<Size>,
    memory_ceiling: Option<Size>,
    heap: Option<String>,
    pids: Option<u64>,
    #[serde(default)]
    idle: IdleTable,
    #[serde(default)]
    start: StartTable,
    #[serde(default)]
    turn: TurnTable,
    #[serde(default)]
    stop: StopTable,
    #[serde(default)]
    restart: RestartTable,
    #[serde(default)]
    inputs: Vec<InputTable>,
    #[serde(default)]
    files: AgentFilesTable,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    secrets: Vec<String>,
    /// The part that the fake driver plays.
    #[serde(default)]
    fake: FakeScript,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct IdleTable {
    stop_after: Option<Span>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct StartTable {
    ready_within: Option<Span>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TurnTable {
    stuck_after: Option<Span>,
    within: Option<Span>,
    attempts: Option<u32>,
    retry: Option<Retry>,
}

#[derive(Debug, Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Retry {
    Safe,
    Ask,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RestartTable {
    window: Option<Span>,
    intensity: Option<u32>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct StopTable {
    drain_within: Option<Span>,
    grace: Option<Span>,
}

/// Scripts of the agents whose driver is `fake`.
pub(crate) type FakeScripts = BTreeMap<AgentName, FakeScript>;

/// The config in force, and where it came from.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) fake_scripts: FakeScripts,
    /// `None`: the text that is built in.
    pub(crate) path: Option<PathBuf>,
}

/// Reads the file that was named, else `dormouse.toml` beside the user, else the built-in text.
pub(crate) fn load(named: Option<&Path>) -> Result<Loaded, ConfigError> {
    let path = match named {
        Some(path) => Some(path.to_owned()),
        None => Some(PathBuf::from(FILE_NAME)).filter(|path| path.exists()),
    };
    let text = match &path {
        Some(path) => read(path)?,
        None => DEFAULT.to_owned(),
    };
    let shown = path.clone().unwrap_or_else(|| PathBuf::from("(built in)"));
    let (mut config, fake_scripts) = parse(&text, &shown)?;
    config.node.memory_max_bytes = machine::memory_max_bytes();
    if let Ok(listen) = std::env::var("DORMOUSE_LISTEN") {
        config.listen = listen.parse().map_err(|_| ConfigError::Value {
            path: PathBuf::from("environment"),
            setting: "DORMOUSE_LISTEN".to_owned(),
            problem: format!("'{listen}' is no address: write for example 127.0.0.1:7766"),
        })?;
    }
    Ok(Loaded { config, fake_scripts, path })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let wrap = |source| ConfigError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(wrap)?.len();
    if size > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(wrap)
}

pub(crate) fn parse(text: &str, path: &Path) -> Result<(Config, FakeScripts), ConfigError> {
    let file: File = toml::from_str(text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        problem: with_suggestion(&error.to_string()),
    })?;
    let wrong = |setting: String, problem: String| ConfigError::Value {
        path: path.to_owned(),
        setting,
        problem,
    };
    check_node(&file).map_err(|(setting, problem)| wrong(setting, problem))?;
    let prices = prices_of(file.prices).map_err(|(setting, problem)| wrong(setting, problem))?;
    let notify =
        notify::targets_of(file.notify).map_err(|(setting, problem)| wrong(setting, problem))?;
    // What is relative is relative to the file, or for the built-in text to where we are.
    let folder = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = folder.parent().unwrap_or(Path::new("/"));
    let files = files::files_of(file.files, folder);
    let files = files.map_err(|(setting, problem)| wrong(setting, problem))?;
    let s3 = files::s3_of(file.s3).map_err(|(setting, problem)| wrong(setting, problem))?;
    let mut agents = BTreeMap::new();
    let mut scripts = BTreeMap::new();
    for (name, table) in file.agents {
        let setting = format!("agents.{name}");
        let id =
            AgentName::new(&name).map_err(|error| wrong(setting.clone(), error.to_string()))?;
        scripts.insert(id.clone(), table.fake.clone());
        let agent = agent_of(table, folder)
            .map_err(|(key, problem)| wrong(format!("{setting}.{key}"), problem))?;
        agents.insert(id, agent);
    }
    let config = Config {
        listen: file.server.listen,
        drain_within: file.server.drain_within.0,
        prices,
        node: NodePolicy {
            starts_at_once: file.node.starts_at_once,
            restarts_per_minute: file.node.restarts_per_minute,
            queue_messages_max: file.limits.queue_messages,
            queue_bytes_max: file.limits.queue_size.0,
            memory_max_bytes: None,
        },
        orphan_limit: file.node.orphan_limit.0,
        refuse_without_cgroup: file.node.when_no_cgroup == WhenNoCgroup::Refuse,
        disk_floor_bytes: file.node.disk_floor.0,
        gate: GateLimits {
            messages_per_second: file.limits.messages_per_second,
            messages_burst: file.limits.messages_burst,
            unauthenticated_per_second: file.limits.unauthenticated_per_second,
            wrong_keys_per_minute: file.limits.wrong_keys_per_minute,
            connections: file.limits.connections,
        },
        notify,
        files,
        s3,
        agents,
    };
    Ok((config, scripts))
}

type Problem = (String, String);

fn problem(setting: &str, words: impl Into<String>) -> Problem {
    (setting.to_owned(), words.into())
}

fn check_node(file: &File) -> Result<(), Problem> {
    let at_least_one = [
        ("node.starts_at_once", file.node.starts_at_once),
        ("node.restarts_per_minute", file.node.restarts_per_minute),
        ("limits.queue_messages", file.limits.queue_messages),
        ("limits.connections", file.limits.connections),
        ("limits.messages_per_second", file.limits.messages_per_second as usize),
        ("limits.messages_burst", file.limits.messages_burst as usize),
        ("limits.unauthenticated_per_second", file.limits.unauthenticated_per_second as usize),
        ("limits.wrong_keys_per_minute", file.limits.wrong_keys_per_minute as usize),
    ];
    for (setting, value) in at_least_one {
        if value == 0 {
            return Err(problem(setting, "must be at least 1"));
        }
    }
    if file.server.drain_within.0.is_zero() {
        let words = "must be longer than 0: a second signal ends at once, where that is wanted";
        return Err(problem("server.drain_within", words));
    }
    if file.limits.queue_size.0 < limits::MESSAGE_BYTES_MAX as u64 {
        return Err(problem("limits.queue_size", "must hold at least one message of 1MiB"));
    }
    Ok(())
}

fn agent_of(table: AgentTable, folder: &Path) -> Result<Agent, Problem> {
    if table.driver == DriverKind::Process && table.command.is_empty() {
        let words = "is missing: what to run, for example [\"python3\", \"agent.py\"]";
        return Err(problem("command", words));
    }
    let adapter = match (table.adapter, table.driver) {
        (Some(adapter), _) => adapter,
        (None, DriverKind::Fake) => AdapterSetting::Exec {},
        (None, DriverKind::Process) => {
            return Err(problem(
                "adapter",
                "is missing: how to talk to it, for example { kind = \"exec\" }",
            ));
        }
    };
    if let AdapterSetting::Openai { url, .. } = &adapter
        && !url.starts_with("http://")
    {
        return Err(problem(
            "adapter.url",
            "must start with http:// (the agent runs beside its bridge)",
        ));
    }
    if table.pids == Some(0) {
        return Err(problem("pids", "must be at least 1"));
    }
    for name in table.secrets.iter().chain(table.env.keys()) {
        let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.is_empty() || !is_plain {
            let words = format!("'{name}' is no name of an environment variable");
            return Err(problem("env and secrets", words));
        }
    }
    let mut policy = policy_of(table.idle, table.start, table.turn, table.stop)?;
    policy.memory = memory_of(table.memory, table.memory_ceiling)?;
    policy.breaker = breaker_of(&table.restart)?;
    let inputs = files::inputs_of(table.inputs, folder)?;
    let (kept, checkpoint) = files::kept_of(table.files, &inputs, table.driver, &adapter)?;
    policy.files = kept;
    let texts = table.command.iter().chain(table.env.values());
    policy.heap_follows = heap_follows(texts, policy.memory)?;
    Ok(Agent {
        driver: table.driver,
        command: table.command,
        adapter,
        pids_limit: Some(table.pids.unwrap_or(PIDS_DEFAULT)),
        heap_percent: heap_percent(table.heap.as_deref())?,
        env: table.env,
        secrets: table.secrets,
        inputs,
        checkpoint,
        policy,
    })
}

#[cfg(test)]
mod tests {
    use dormouse_core::sizing::{CEILING_FACTOR, MemoryPolicy};

    use super::*;

    fn parsed(text: &str) -> Result<Config, String> {
        parse(text, Path::new("dormouse.toml")).map(|parsed| parsed.0).map_err(|e| e.to_string())
    }

    #[test]
    fn the_default_file_says_what_the_code_does() {
        let written = parsed(DEFAULT).unwrap();
        let silent = parsed(
            "[agents.python]\ncommand = [\"x\"]\nadapter = { kind = \"jsonl\", ready = true }",
        )
        .unwrap();
        let python = AgentName::new("python").unwrap();
        // The first limit is an example of a number; without one nothing is limited.
        let first = 512 << 20;
        let ceiling_bytes = Some(first * CEILING_FACTOR);
        let memory = MemoryPolicy { first_bytes: Some(first), ceiling_bytes };
        let expected = AgentPolicy { memory, ..silent.agents[&python].policy.clone() };
        assert_eq!(written.agents[&python].policy, expected);
        let limits = |config: &Config| {
            let agent = &config.agents[&python];
            (agent.pids_limit, agent.heap_percent, agent.checkpoint.clone())
        };
        assert_eq!(limits(&written), limits(&silent));
        assert_eq!(written.node, silent.node);
        assert_eq!(written.listen, silent.listen);
        assert_eq!((&written.files, &written.s3), (&silent.files, &silent.s3));
        assert_eq!(written.orphan_limit, silent.orphan_limit);
        assert_eq!(written.disk_floor_bytes, silent.disk_floor_bytes);
        assert_eq!(format!("{:?}", written.gate), format!("{:?}", silent.gate));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        let error = parsed("[server]\nlisen = \"127.0.0.1:1\"").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        assert!(error.contains("Did you mean `listen`?"), "{error}");
    }

    #[test]
    fn prices_are_named_with_the_file_and_the_line_where_they_make_no_sense() {
        let refused = |lines: &str| {
            let error = parsed(&format!("[node]\nstarts_at_once = 4\n[prices]\n{lines}"));
            error.unwrap_err()
        };
        for (lines, words) in [
            ("currency = \"USD\"\nmemory_gib_month = -3.5", ["line 5", "-3.5 is no price"]),
            ("memory_gib_mont = 3.5", ["line 4", "Did you mean `memory_gib_month`?"]),
            ("memory_gib_month = 3.5", ["prices.currency", "is missing"]),
        ] {
            let error = refused(lines);
            assert!(error.contains("the config dormouse.toml is wrong"), "{error}");
            words.iter().for_each(|words| assert!(error.contains(words), "{lines}: {error}"));
        }
        let written = parsed("[prices]\nmemory_gib_month = 3.50\ncurrency = \"USD\"").unwrap();
        assert!(written.prices.is_some());
        assert_eq!(parsed(DEFAULT).unwrap().prices, None);
        let manual = DEFAULT.replace("#   memory_gib_month", "memory_gib_month");
        let manual = manual.replace("#   currency", "currency").replace("# [prices]", "[prices]");
        assert_eq!(parsed(&manual).unwrap().prices, written.prices);
    }

    #[test]
    fn values_without_sense_name_their_setting() {
        let agent = |line: &str| {
            let head = "[agents.a]\ncommand = [\"x\"]\nadapter = { kind = \"exec\" }\n";
            parsed(&format!("{head}{line}")).unwrap_err()
        };
        for (line, words) in [
            ("turn = { attempts = 9 }", "agents.a.turn.attempts: must be 1 to 5"),
            ("idle = { stop_after = \"0s\" }", "agents.a.idle.stop_after"),
            ("idle = { stop_after = 30 }", "has no unit"),
            ("memory = \"1MB\"", "MiB"),
            ("memory = \"1KiB\"", "at least 4MiB"),
            ("memory_ceiling = \"1GiB\"", "needs memory beside it"),
            ("memory = \"1GiB\"\nmemory_ceiling = \"1MiB\"", "at least as much as memory"),
            ("restart = { window = \"1m\" }", "restart.window: must be at least 10m"),
            ("heap = \"75\"", "heap: '75' is no share"),
            ("heap = \"101%\"", "heap: '101%' is no share"),
            ("env = { O = \"{heap_mib}\" }", "needs memory"),
            ("env = { \"A=B\" = \"x\" }", "no name of an environment variable"),
        ] {
            let error = agent(line);
            assert!(error.contains(words), "{line}: {error}");
        }
        assert!(parsed("[agents.a]").unwrap_err().contains("agents.a.command: is missing"));
        assert!(parsed("[agents.\"A B\"]\ncommand=[\"x\"]").unwrap_err().contains("agent name"));
    }
}

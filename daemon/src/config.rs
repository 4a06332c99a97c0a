//! The config file: TOML in, typed settings out, or an error that names the line and what to do.
//!
//! Owner: `run` and `reload` put one into force. Invariants: an unknown key is refused; a value out
//! of bounds is refused; secrets have no place in it. `default.toml` is the manual, and a test
//! holds it to the defaults in the code.
//! Absent: what a change does (`plan`, `reload`), secret values.

mod agent;
mod error;
pub(crate) mod files;
mod flat;
mod held;
#[cfg(any(test, fuzzing))]
pub(crate) mod laws;
mod location;
mod notify;
pub(crate) mod plan;
mod policies;
mod prices;
#[cfg(test)]
mod reference;
pub(crate) mod render;
pub(crate) mod revision;
#[cfg(test)]
mod samples_test;
pub(crate) mod schema;
pub(crate) mod secrets;
pub(crate) mod setting;
mod suggestion;
mod tables;
pub(crate) mod units;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::CanaryTable;
pub(crate) use agent::{AdapterSetting, AgentTable, DriverKind};
use dormouse_bridge::files::wire::CheckpointPolicy;
use dormouse_core::id::AgentName;
use dormouse_core::limits;
use dormouse_core::policy::{AgentPolicy, NodePolicy};
use dormouse_edge::driver::fake::FakeScript;
pub(crate) use error::ConfigError;
use files::{FilesSetting, Input, S3Setting};
pub(crate) use flat::Effective;
use policies::{breaker_of, heap_follows, memory_of, policy_of};
pub(crate) use prices::Prices;
use prices::prices_of;
use render::Rendered;
use secrets::SecretsSetting;
pub(crate) use tables::File;
use tables::WhenNoCgroup;
pub(crate) use value::written;

use crate::machine;
use crate::notify::Target;

pub(crate) const DEFAULT: &str = include_str!("config/default.toml");
const FILE_BYTES_MAX: u64 = 1 << 20;
const FILE_NAME: &str = "dormouse.toml";
const BUILT_IN: &str = "(built in)";

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
    pub(crate) secrets: SecretsSetting,
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
    /// Those that stand in files and headers, and not in its environment.
    pub(crate) named_secrets: BTreeSet<String>,
    pub(crate) render: Vec<Rendered>,
    pub(crate) inputs: Vec<Input>,
    pub(crate) checkpoint: CheckpointPolicy,
    pub(crate) canary: Option<CanaryTurn>,
    pub(crate) policy: AgentPolicy,
}

/// What a new revision is asked before anybody else gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CanaryTurn {
    pub(crate) text: String,
    /// What the answer must contain.
    pub(crate) expects: Option<String>,
}

/// Scripts of the agents whose driver is `fake`.
pub(crate) type FakeScripts = BTreeMap<AgentName, FakeScript>;

/// A config as this machine has it, and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) fake_scripts: FakeScripts,
    /// The settings as they are written.
    pub(crate) file: File,
    /// Letter by letter.
    pub(crate) text: String,
    /// What is relative is relative to it.
    pub(crate) folder: PathBuf,
    /// `None`: the text that is built in.
    pub(crate) path: Option<PathBuf>,
    /// Files that were read beside it.
    pub(crate) templates: Vec<PathBuf>,
}

/// A text that was read, and is right.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// As it is written.
    pub(crate) file: File,
    /// What it comes to.
    pub(crate) config: Config,
    pub(crate) fake_scripts: FakeScripts,
    /// Files that were read beside it.
    pub(crate) templates: Vec<PathBuf>,
}

/// Reads the file that was named, else `dormouse.toml` beside the user, else the built-in text.
pub(crate) fn load(named: Option<&Path>) -> Result<Loaded, ConfigError> {
    let path = path_of(named);
    let text = read_text(path.as_deref())?;
    load_text(text, path)
}

/// A text that stands, or may come to stand, in the file at `path`.
pub(crate) fn load_text(text: String, path: Option<PathBuf>) -> Result<Loaded, ConfigError> {
    let named = path.as_deref().unwrap_or(Path::new(BUILT_IN));
    let Parsed { config, fake_scripts, file, templates } = parse_whole(&text, named)?;
    let folder = folder_of(named);
    on_this_machine(Loaded { config, fake_scripts, file, text, folder, path, templates })
}

/// What the environment and the machine say goes over what is written.
fn on_this_machine(mut loaded: Loaded) -> Result<Loaded, ConfigError> {
    loaded.config.node.memory_max_bytes = machine::memory_max_bytes();
    if let Ok(listen) = std::env::var("DORMOUSE_LISTEN") {
        loaded.config.listen =
            listen.parse().map_err(|_| ConfigError::Environment { value: listen.clone() })?;
    }
    Ok(loaded)
}

impl Loaded {
    /// With every setting that needs a restart of the daemon as it is in `before`.
    pub(crate) fn holding_back(self, before: &File) -> Result<Self, ConfigError> {
        let Loaded { file, text, folder, path, templates, .. } = self;
        let file = file.holding_back(before);
        let named = path.as_deref().unwrap_or(Path::new(BUILT_IN));
        let (config, fake_scripts) = config_of(file.clone(), &folder)
            .map_err(|problem| ConfigError::of_setting(problem, &text, named))?;
        on_this_machine(Self { config, fake_scripts, file, text, folder, path, templates })
    }
}

/// The file that is meant; `None`: the built-in text.
pub(crate) fn path_of(named: Option<&Path>) -> Option<PathBuf> {
    match named {
        Some(path) => Some(path.to_owned()),
        None => Some(PathBuf::from(FILE_NAME)).filter(|path| path.exists()),
    }
}

/// The file, or the built-in text; nothing of the environment or of the machine is in it.
pub(crate) fn read_and_parse(path: Option<&Path>) -> Result<Parsed, ConfigError> {
    parse_whole(&read_text(path)?, path.unwrap_or(Path::new(BUILT_IN)))
}

/// Whether it can be read more than once, and without waiting for anybody.
pub(crate) fn check_plain(path: Option<&Path>) -> Result<(), ConfigError> {
    let Some(path) = path else { return Ok(()) };
    let wrap = |source| ConfigError::Read { path: path.to_owned(), source };
    match std::fs::metadata(path).map_err(wrap)?.is_file() {
        true => Ok(()),
        false => Err(wrap(std::io::Error::other("it is no plain file"))),
    }
}

/// What stands in the file; `None`: the built-in text.
pub(crate) fn read_text(path: Option<&Path>) -> Result<String, ConfigError> {
    match path {
        Some(path) => text_of(read(path)?, path),
        None => Ok(DEFAULT.to_owned()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let wrap = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // What is no plain file does not say how long it is; one byte more tells that it is too long.
    let file = std::fs::File::open(path).map_err(wrap)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(wrap)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

fn text_of(bytes: Vec<u8>, path: &Path) -> Result<String, ConfigError> {
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        ConfigError::NotText { path: path.to_owned(), line }
    })
}

#[cfg(any(test, fuzzing))]
fn parse_bytes(bytes: &[u8], path: &Path) -> Result<Parsed, ConfigError> {
    parse_whole(&text_of(bytes.to_owned(), path)?, path)
}

#[cfg(test)]
pub(crate) fn parse(text: &str, path: &Path) -> Result<(Config, FakeScripts), ConfigError> {
    parse_whole(text, path).map(|parsed| (parsed.config, parsed.fake_scripts))
}

pub(crate) fn parse_whole(text: &str, path: &Path) -> Result<Parsed, ConfigError> {
    // Editors put a byte order mark there.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        // A file that is being written anew looks like that for a moment.
        return Err(ConfigError::Empty { path: path.to_owned() });
    }
    let mut file: File =
        toml::from_str(text).map_err(|error| ConfigError::of_parser(&error, text, path))?;
    let folder = folder_of(path);
    let wrong = |problem| ConfigError::of_setting(problem, text, path);
    let templates = file.read_templates(&folder).map_err(wrong)?;
    let (config, fake_scripts) = config_of(file.clone(), &folder).map_err(wrong)?;
    Ok(Parsed { file, config, fake_scripts, templates })
}

/// What is relative is relative to the file, or for the built-in text to where we are.
fn folder_of(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

fn config_of(file: File, folder: &Path) -> Result<(Config, FakeScripts), Problem> {
    check_node(&file)?;
    let prices = prices_of(file.prices)?;
    let notify = notify::targets_of(file.notify)?;
    let secrets = secrets::secrets_of(file.secrets, folder)?;
    let files = files::files_of(file.files, folder)?;
    let s3 = files::s3_of(file.s3)?;
    let mut agents = BTreeMap::new();
    let mut scripts = BTreeMap::new();
    for (name, table) in file.agents {
        let setting = location::joined("agents", &name);
        let id = AgentName::new(&name).map_err(|error| (setting.clone(), error.to_string()))?;
        scripts.insert(id.clone(), table.fake.clone().into_value().unwrap_or_default());
        let agent = agent_of(table, folder)
            .map_err(|(key, problem)| (format!("{setting}.{key}"), problem))?;
        agents.insert(id, agent);
    }
    let config = Config {
        listen: *file.server.listen,
        drain_within: file.server.drain_within.0,
        prices,
        node: NodePolicy {
            starts_at_once: *file.node.starts_at_once,
            restarts_per_minute: *file.node.restarts_per_minute,
            queue_messages_max: *file.limits.queue_messages,
            queue_bytes_max: file.limits.queue_size.0,
            memory_max_bytes: None,
        },
        orphan_limit: file.node.orphan_limit.0,
        refuse_without_cgroup: *file.node.when_no_cgroup == WhenNoCgroup::Refuse,
        disk_floor_bytes: file.node.disk_floor.0,
        gate: GateLimits {
            messages_per_second: *file.limits.messages_per_second,
            messages_burst: *file.limits.messages_burst,
            unauthenticated_per_second: *file.limits.unauthenticated_per_second,
            wrong_keys_per_minute: *file.limits.wrong_keys_per_minute,
            connections: *file.limits.connections,
        },
        notify,
        secrets,
        files,
        s3,
        agents,
    };
    Ok((config, scripts))
}

/// A setting, by its path, and what is wrong with it.
pub(crate) type Problem = (String, String);

fn problem(setting: &str, words: impl Into<String>) -> Problem {
    (setting.to_owned(), words.into())
}

fn check_node(file: &File) -> Result<(), Problem> {
    let at_least_one = [
        ("node.starts_at_once", *file.node.starts_at_once),
        ("node.restarts_per_minute", *file.node.restarts_per_minute),
        ("limits.queue_messages", *file.limits.queue_messages),
        ("limits.connections", *file.limits.connections),
        ("limits.messages_per_second", *file.limits.messages_per_second as usize),
        ("limits.messages_burst", *file.limits.messages_burst as usize),
        ("limits.unauthenticated_per_second", *file.limits.unauthenticated_per_second as usize),
        ("limits.wrong_keys_per_minute", *file.limits.wrong_keys_per_minute as usize),
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

/// What an agent's table comes to; relative folders are relative to `folder`.
pub(crate) fn agent_of(table: AgentTable, folder: &Path) -> Result<Agent, Problem> {
    let driver = *table.driver;
    let adapter = adapter_of(&table)?;
    if *table.pids == 0 {
        return Err(problem("pids", "must be at least 1"));
    }
    check_names(&table)?;
    let mut policy = policy_of(&table.idle, &table.start, &table.turn, &table.stop)?;
    policy.memory = memory_of(*table.memory, *table.memory_ceiling)?;
    policy.breaker = breaker_of(&table.restart)?;
    let inputs = files::inputs_of(table.inputs.into_value(), folder)?;
    let render = render::rendered_of(table.render.into_value(), &inputs)?;
    let named_secrets = named_secrets(&render, &adapter)?;
    let (kept, checkpoint) = files::kept_of(table.files, &inputs, driver, &adapter)?;
    policy.files = kept;
    let canary = canary_of(table.canary)?;
    policy.heap_follows = heap_follows(&table.command, &table.env.0, policy.memory)?;
    Ok(Agent {
        driver,
        command: table.command.into_value(),
        adapter,
        pids_limit: Some(*table.pids),
        heap_percent: table.heap.0,
        env: table.env.into_value().0,
        secrets: table.secrets.into_value(),
        named_secrets,
        render,
        inputs,
        checkpoint,
        canary,
        policy,
    })
}

fn named_secrets(
    render: &[Rendered],
    adapter: &AdapterSetting,
) -> Result<BTreeSet<String>, Problem> {
    let in_files = render.iter().map(|file| render::secrets_in(&file.text));
    let mut named = BTreeSet::new();
    for names in in_files.flatten() {
        named.extend(names);
    }
    if let AdapterSetting::Openai { headers, .. } = adapter {
        for (name, value) in headers {
            let names = render::secrets_in(value).map_err(|secret| {
                let setting = format!("adapter.headers.{}", location::quoted(name));
                problem(&setting, format!("{{secret:{secret}}} names no secret"))
            })?;
            named.extend(names);
        }
    }
    Ok(named)
}

fn canary_of(table: CanaryTable) -> Result<Option<CanaryTurn>, Problem> {
    let (text, expects) = (table.text.into_value(), table.expects.into_value());
    let too_long = |text: &String| text.len() > limits::MESSAGE_BYTES_MAX;
    match text {
        None if expects.is_some() => {
            Err(problem("canary.expects", "is of no use without canary.text, which is asked"))
        }
        None => Ok(None),
        Some(text) if text.trim().is_empty() => {
            Err(problem("canary.text", "is empty: what is a new revision to be asked?"))
        }
        Some(text) if too_long(&text) => {
            Err(problem("canary.text", "is longer than a message may be, 1MiB"))
        }
        Some(text) => Ok(Some(CanaryTurn { text, expects })),
    }
}

fn adapter_of(table: &AgentTable) -> Result<AdapterSetting, Problem> {
    if *table.driver == DriverKind::Process && table.command.is_empty() {
        let words = "is missing: what to run, for example [\"python3\", \"agent.py\"]";
        return Err(problem("command", words));
    }
    let adapter = match (table.adapter.as_ref(), *table.driver) {
        (Some(adapter), _) => adapter.clone(),
        (None, DriverKind::Fake) => AdapterSetting::Exec {},
        (None, DriverKind::Process) => {
            let words = "is missing: how to talk to it, for example { kind = \"exec\" }";
            return Err(problem("adapter", words));
        }
    };
    if let AdapterSetting::Openai { url, .. } = &adapter
        && !url.starts_with("http://")
    {
        let words = "must start with http:// (the agent runs beside its bridge)";
        return Err(problem("adapter.url", words));
    }
    Ok(adapter)
}

/// Of its environment and its secrets.
fn check_names(table: &AgentTable) -> Result<(), Problem> {
    let of_secrets = table.secrets.iter().enumerate();
    let of_secrets = of_secrets.map(|(index, name)| (format!("secrets[{index}]"), name));
    let of_env = table.env.0.keys().map(|name| (location::joined("env", name), name));
    for (setting, name) in of_secrets.chain(of_env) {
        let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.is_empty() || !is_plain {
            let words = format!("'{name}' is no name of an environment variable");
            return Err((setting, words));
        }
    }
    Ok(())
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
        let manual = DEFAULT.replace("# memory_gib_month =", "memory_gib_month =");
        let manual = manual.replace("# currency =", "currency =");
        assert_eq!(parsed(&manual).unwrap().prices, written.prices);
    }

    #[test]
    fn values_without_sense_name_their_setting_and_their_place() {
        let agent = |line: &str| {
            let head = "[agents.a]\ncommand = [\"x\"]\nadapter = { kind = \"exec\" }\n";
            parsed(&format!("{head}{line}")).unwrap_err()
        };
        for (line, words) in [
            (
                "turn = { attempts = 9 }",
                "line 4, column 21: agents.a.turn.attempts: must be 1 to 5",
            ),
            ("idle = { stop_after = \"0s\" }", "line 4, column 23: agents.a.idle.stop_after"),
            ("idle = { stop_after = 30 }", "agents.a.idle.stop_after: '30' has no unit"),
            ("memory = \"1MB\"", "line 4, column 10: agents.a.memory: '1MB' is no size"),
            ("memory = \"1KiB\"", "at least 4MiB"),
            ("memory_ceiling = \"1GiB\"", "needs memory beside it"),
            ("memory = \"1GiB\"\nmemory_ceiling = \"1MiB\"", "line 5, column 18: agents.a.mem"),
            ("restart = { window = \"1m\" }", "restart.window: must be at least 10m"),
            ("heap = \"75\"", "agents.a.heap: '75' is no share"),
            ("heap = \"101%\"", "agents.a.heap: '101%' is no share"),
            ("heap = 75", "agents.a.heap: '75' is no share"),
            ("env = { O = \"{heap_mib}\" }", "agents.a.env.O: {heap_mib} in it needs memory"),
            ("env = { \"A=B\" = \"x\" }", "agents.a.env.\"A=B\": 'A=B' is no name"),
            ("secrets = [\"K\", \"\"]", "line 4, column 17: agents.a.secrets[1]: '' is no name"),
            ("files.max_size = \"11GiB\"", "agents.a.files.max_size: must be 1 to 10GiB"),
            ("inputs = [{ path = \"/\", from = \"x\" }]", "column 20: agents.a.inputs[0].path"),
            ("pids = -1", "line 4, column 8: agents.a.pids: invalid value"),
            ("pids = 99999999999999999999", "line 4, column 8"),
            ("adapter.redy = 1", "line 4"),
        ] {
            let error = agent(line);
            assert!(error.contains(words), "{line}: {error}");
            assert!(error.contains(" at line "), "{line}: {error}");
        }
        let missing = parsed("# words\n[agents.a]").unwrap_err();
        assert!(missing.contains("line 2, column 9: agents.a.command: is missing"), "{missing}");
        let name = parsed("[agents.\"A B\"]\ncommand=[\"x\"]").unwrap_err();
        assert!(name.contains("line 1, column 9: agents.\"A B\": "), "{name}");
        assert!(name.contains("agent name"), "{name}");
    }

    #[test]
    fn an_unknown_key_is_named_wherever_it_stands() {
        let of_agent = |line: &str| format!("[agents.a]\ncommand = [\"x\"]\n{line}");
        for (text, words) in [
            (
                "servr.listen = \"x\"",
                "line 1, column 1: servr: unknown key. Did you mean `server`?",
            ),
            ("[node]\n[node.x]", "line 2, column 7: node.x: unknown key; known are starts_at"),
            (&of_agent("turn = { atempts = 1 }"), "column 10: agents.a.turn.atempts: unknown key."),
            (&of_agent("\"größe\" = 1"), "line 3, column 1: agents.a.\"größe\": unknown key"),
            (
                &of_agent("adapter = { kind = \"jsonl\", redy = true }"),
                "line 3, column 29: agents.a.adapter.redy: unknown key. Did you mean `ready`?",
            ),
            (
                &of_agent("adapter = { kind = \"jsonl\" }\n[[agents.a.inputs]]\npaht = \"x\""),
                "line 5, column 1: agents.a.inputs[0].paht: unknown key. Did you mean `path`?",
            ),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_no_config_at_all_is_refused_with_its_place() {
        let refused = |bytes: &[u8]| {
            parse_bytes(bytes, Path::new("dormouse.toml")).map(drop).unwrap_err().to_string()
        };
        for (text, words) in [
            ("", "is empty"),
            (" \r\n\u{a0}\n", "is empty"),
            ("\u{feff}", "is empty"),
            ("[server]\nlisten = \"127", "line 2, column"),
            ("[server]\nlisten = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:1\"", "line 3, column 1"),
            ("[server]\r\nlisten = 1\r\n", "line 2, column 10: server.listen: invalid type"),
            ("\u{feff}server = 1", "line 1, column 10: server: invalid type"),
        ] {
            let error = refused(text.as_bytes());
            assert!(error.contains(words), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
        let not_text = refused(b"[server]\n# \xff\n");
        assert!(not_text.contains("not UTF-8 text from line 2 on"), "{not_text}");
        let deep =
            [format!("a = {}", "[".repeat(100_000)), format!("a{} = 1", ".a".repeat(100_000))];
        for text in deep {
            assert!(refused(text.as_bytes()).contains("the config dormouse.toml is wrong"));
        }
        let long = format!("{} = \"{}\"", "k".repeat(9_999), "v".repeat(9_999));
        assert!(refused(long.as_bytes()).len() < 1_000);
        assert!(parsed("# nothing yet").unwrap().agents.is_empty(), "words say that it is meant");
    }

    #[test]
    fn a_file_may_be_1_mib_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dormouse.toml");
        let of_length = |length: u64| {
            std::fs::write(&path, "#".repeat(usize::try_from(length).unwrap())).unwrap();
            read_and_parse(Some(&path)).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(of_length(FILE_BYTES_MAX - 1), Ok(()));
        assert_eq!(of_length(FILE_BYTES_MAX), Ok(()));
        assert!(of_length(FILE_BYTES_MAX + 1).unwrap_err().contains("larger than 1 MiB"));
    }
}

//! `[files]`, `[s3]`, and an agent's `inputs` and `files`: where files come from, what is kept of
//! workspaces, and where.
//!
//! Owner: `config::parse`. Invariants: a place is a folder or s3://BUCKET/PREFIX and nothing else;
//! credentials are named, never written. Absent: reading either.

#![deny(unused_variables, reason = "a setting that is taken apart and not shown is forgotten")]

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_bridge::files::wire::CheckpointPolicy;
use dormouse_core::limits;
use dormouse_core::manifest::FilePath;
use dormouse_core::policy::FilesPolicy;
use dormouse_core::time::millis;
use dormouse_edge::files::objects::ObjectPlace;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::setting::{DaemonRestart, Live, NextStart, Setting, Table, Visitor, doc};
use super::units::{Size, Span};
use super::value::{Value, choice_of, object_of};
use super::{AdapterSetting, DriverKind, Problem, problem};

/// Where blobs are kept, or inputs come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FilesPlace {
    Folder(PathBuf),
    Objects(ObjectPlace),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilesSetting {
    /// `None`: in the data folder.
    pub(crate) store: Option<FilesPlace>,
    /// How long blobs that nobody names are kept.
    pub(crate) garbage_after: Duration,
}

/// The object store of the config: one for all places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct S3Setting {
    pub(crate) endpoint: Option<String>,
    pub(crate) region: String,
    pub(crate) allow_http: bool,
    /// Names of secrets.
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    pub(crate) session_token: String,
}

/// Something that every session of an agent is to find in its workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Input {
    /// Below the workspace; `None`: the workspace itself.
    pub(crate) path: Option<FilePath>,
    /// `None`: the session's own uploads, of which only the presence is required.
    pub(crate) from: Option<FilesPlace>,
    pub(crate) required: Vec<String>,
    /// The entity tags of its objects say nothing of their contents.
    pub(crate) has_opaque_etags: bool,
}

impl Input {
    /// Whether that file is, or may be, among what it puts there.
    pub(super) fn has(&self, path: &FilePath) -> bool {
        let Some(folder) = &self.path else { return true };
        let rest = path.as_str().strip_prefix(folder.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

const IN_THE_DATA_FOLDER: &str = "folder";
/// A checkpoint that is being made when a collection begins is committed long before.
const GARBAGE_AFTER_MIN: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FilesTable {
    store: Setting<String, DaemonRestart>,
    garbage_after: Setting<Span, Live>,
}

impl Default for FilesTable {
    fn default() -> Self {
        let garbage_after = Span(Duration::from_secs(24 * 60 * 60)).into();
        Self { store: IN_THE_DATA_FOLDER.to_owned().into(), garbage_after }
    }
}

impl Table for FilesTable {
    fn visit(&self, visitor: &mut Visitor) {
        let FilesTable { store, garbage_after } = self;
        let words = "\"folder\" (in the data folder), another folder, or \"s3://BUCKET/PREFIX\".";
        visitor.setting("store", store, doc(words));
        let words = "What no session names any more is removed after this (1h or more).";
        visitor.setting("garbage_after", garbage_after, doc(words));
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct S3Table {
    endpoint: Setting<Option<String>, DaemonRestart>,
    region: Setting<String, DaemonRestart>,
    allow_http: Setting<bool, DaemonRestart>,
    access_key_id: Setting<String, DaemonRestart>,
    secret_access_key: Setting<String, DaemonRestart>,
    session_token: Setting<String, DaemonRestart>,
}

impl Default for S3Table {
    fn default() -> Self {
        let text = |text: &str| text.to_owned().into();
        Self {
            endpoint: None.into(),
            region: text("us-east-1"),
            allow_http: false.into(),
            access_key_id: text("AWS_ACCESS_KEY_ID"),
            secret_access_key: text("AWS_SECRET_ACCESS_KEY"),
            session_token: text("AWS_SESSION_TOKEN"),
        }
    }
}

impl Table for S3Table {
    fn visit(&self, visitor: &mut Visitor) {
        let S3Table {
            endpoint,
            region,
            allow_http,
            access_key_id,
            secret_access_key,
            session_token,
        } = self;
        let words = "Of a compatible store; Amazon's own if absent.";
        let example = "\"https://minio.example:9000\"";
        visitor.setting("endpoint", endpoint, doc(words).example(example));
        visitor.setting("region", region, doc("Where the buckets are."));
        let words = "Whether an endpoint may be http://, where all can read along.";
        visitor.setting("allow_http", allow_http, doc(words));
        let words = "Name of the secret with the access key's id.";
        visitor.setting("access_key_id", access_key_id, doc(words));
        let words = "Name of the secret with the access key itself.";
        visitor.setting("secret_access_key", secret_access_key, doc(words));
        let words = "Name of the secret with the session token, where there is one.";
        visitor.setting("session_token", session_token, doc(words));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InputTable {
    path: String,
    from: Option<String>,
    #[serde(default)]
    required: Vec<String>,
    #[serde(default)]
    etag: Etag,
}

impl Value for Vec<InputTable> {
    const KIND: &'static str = "list of tables";
    fn schema() -> Json {
        let input = json!({
            "path": String::schema(), "from": String::schema(),
            "required": Vec::<String>::schema(), "etag": choice_of(&[Etag::Md5, Etag::Opaque]),
        });
        json!({"type": "array", "items": object_of(input, &["path"])})
    }
}

#[derive(Debug, Serialize, Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Etag {
    #[default]
    Md5,
    Opaque,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AgentFilesTable {
    checkpoint: Setting<Option<Checkpoint>, NextStart>,
    every: Setting<Option<Span>, NextStart>,
    /// The daemon's own count; the bridge is not told.
    keep: Setting<u64, Live>,
    max_files: Setting<u64, NextStart>,
    max_size: Setting<Size, NextStart>,
    exclude: Setting<Vec<String>, NextStart>,
}

#[derive(Debug, Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Checkpoint {
    Turn,
    Stop,
    Off,
}

impl Value for Checkpoint {
    const KIND: &'static str = "\"turn\", \"stop\" or \"off\"";
    fn schema() -> Json {
        choice_of(&[Self::Turn, Self::Stop, Self::Off])
    }
}

impl Default for AgentFilesTable {
    fn default() -> Self {
        let exclude: Vec<String> = EXCLUDED.iter().map(|pattern| (*pattern).to_owned()).collect();
        Self {
            checkpoint: None.into(),
            every: None.into(),
            keep: FilesPolicy::default().keep.into(),
            max_files: (limits::FILES_MAX as u64).into(),
            max_size: Size(limits::FILES_BYTES_MAX).into(),
            exclude: exclude.into(),
        }
    }
}

impl Table for AgentFilesTable {
    fn visit(&self, visitor: &mut Visitor) {
        let AgentFilesTable { checkpoint, every, keep, max_files, max_size, exclude } = self;
        let words = "After each \"turn\" (and at the end), only at the \"stop\" of the agent, or \
                     \"off\". If absent, \"turn\" for the adapters exec and jsonl and \"off\" for \
                     openai, whose programs have databases of their own open.";
        visitor.setting("checkpoint", checkpoint, doc(words).example("\"turn\""));
        let words = "One more by the clock, so often; none if absent.";
        visitor.setting("every", every, doc(words).example("\"15m\""));
        visitor.setting("keep", keep, doc("So many of the newest are kept."));
        let words = "The most files in one: 100000 or fewer.";
        visitor.setting("max_files", max_files, doc(words));
        visitor.setting("max_size", max_size, doc("The most bytes in one: 10GiB or less."));
        let words = "What matches is in none: a name at any depth, or a path from the workspace's \
                     root; * and ? stand for parts of a name.";
        visitor.setting("exclude", exclude, doc(words));
    }
}

/// What can be made again, or cannot be kept.
const EXCLUDED: &[&str] =
    &["node_modules", "__pycache__", ".venv", ".cache", "*.sock", "*.tmp", "lost+found"];

pub(super) fn files_of(table: FilesTable, folder: &Path) -> Result<FilesSetting, Problem> {
    let FilesTable { store, garbage_after } = table;
    let store = match store.as_str() {
        IN_THE_DATA_FOLDER => None,
        text => Some(place_of(text, folder).map_err(|words| problem("files.store", words))?),
    };
    if garbage_after.0 < GARBAGE_AFTER_MIN {
        return Err(problem("files.garbage_after", "must be at least 1h"));
    }
    Ok(FilesSetting { store, garbage_after: garbage_after.0 })
}

pub(super) fn s3_of(table: S3Table) -> Result<S3Setting, Problem> {
    let names = [
        ("s3.access_key_id", &table.access_key_id),
        ("s3.secret_access_key", &table.secret_access_key),
        ("s3.session_token", &table.session_token),
    ];
    for (setting, name) in names {
        let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.is_empty() || !is_plain {
            let words = "is the name of a secret (letters, digits, _), never its value";
            return Err(problem(setting, words));
        }
    }
    let S3Table { endpoint, region, allow_http, access_key_id, secret_access_key, session_token } =
        table;
    Ok(S3Setting {
        endpoint: endpoint.into_value(),
        region: region.into_value(),
        allow_http: *allow_http,
        access_key_id: access_key_id.into_value(),
        secret_access_key: secret_access_key.into_value(),
        session_token: session_token.into_value(),
    })
}

/// Relative folders are relative to the config's own.
fn place_of(text: &str, folder: &Path) -> Result<FilesPlace, String> {
    if text.starts_with("s3://") {
        return text.parse().map(FilesPlace::Objects).map_err(|error| format!("{error}"));
    }
    if text.is_empty() || text.contains("://") {
        return Err(format!("'{text}' is neither a folder nor s3://BUCKET/PREFIX"));
    }
    // Shown as it is written elsewhere: without the dots of "./inputs".
    Ok(FilesPlace::Folder(folder.join(text).components().collect()))
}

pub(super) fn inputs_of(tables: Vec<InputTable>, folder: &Path) -> Result<Vec<Input>, Problem> {
    let mut inputs: Vec<Input> = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let wrong = |key: &str, words| Err(problem(&format!("inputs[{index}].{key}"), words));
        let path = match table.path.trim_end_matches('/') {
            "." => None,
            text => match FilePath::new(text) {
                Ok(path) => Some(path),
                Err(error) => return wrong("path", format!("'{}': {error}", table.path)),
            },
        };
        let from = match table.from.as_deref().map(|text| place_of(text, folder)).transpose() {
            Ok(from) => from,
            Err(words) => return wrong("from", words),
        };
        if from.is_none() && table.required.is_empty() {
            let words = "is missing, and nothing is required: say where the files come from";
            return wrong("from", words.to_owned());
        }
        if table.required.iter().any(|pattern| pattern.trim().is_empty()) {
            return wrong("required", "has an empty pattern".to_owned());
        }
        let has_opaque_etags = table.etag == Etag::Opaque;
        let is_below = |one: &Option<FilePath>, other: &Option<FilePath>| match (one, other) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(one), Some(other)) => other
                .as_str()
                .strip_prefix(one.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        let is_taken = |other: &&Input| {
            other.from.is_some()
                && from.is_some()
                && (is_below(&other.path, &path) || is_below(&path, &other.path))
        };
        if let Some(other) = inputs.iter().find(is_taken) {
            let other = other.path.as_ref().map_or(".", FilePath::as_str);
            let words = format!("'{}' and '{other}' are one below the other", table.path);
            return wrong("path", words);
        }
        inputs.push(Input { path, from, required: table.required, has_opaque_etags });
    }
    Ok(inputs)
}

/// What the core is told, and what the bridge is.
pub(super) fn kept_of(
    table: AgentFilesTable,
    inputs: &[Input],
    driver: DriverKind,
    adapter: &AdapterSetting,
) -> Result<(FilesPolicy, CheckpointPolicy), Problem> {
    // A program that lives for long has its own databases open when a turn ends.
    let standard = match (driver, adapter) {
        (DriverKind::Fake, _) => Checkpoint::Off,
        (DriverKind::Process, AdapterSetting::Exec {} | AdapterSetting::Jsonl { .. }) => {
            Checkpoint::Turn
        }
        (DriverKind::Process, AdapterSetting::Openai { .. }) => Checkpoint::Off,
    };
    let when = table.checkpoint.unwrap_or(standard);
    let is_on = when != Checkpoint::Off;
    if driver == DriverKind::Fake && (is_on || !inputs.is_empty()) {
        return Err(problem("files", "the fake driver has no workspaces"));
    }
    let AgentFilesTable { checkpoint: _, every, keep, max_files, max_size, exclude } = table;
    if *keep == 0 {
        return Err(problem("files.keep", "must be at least 1"));
    }
    if every.as_ref().is_some_and(|every| every.0 < Duration::from_secs(1)) {
        return Err(problem("files.every", "must be at least 1s"));
    }
    let bounded = |setting: &str, value: u64, max: u64, shown: &dyn Display| {
        let words = || format!("must be 1 to {shown}");
        let is_fine = (1..=max).contains(&value);
        if is_fine { Ok(value) } else { Err(problem(setting, words())) }
    };
    let (files_max, bytes_max) = (limits::FILES_MAX as u64, limits::FILES_BYTES_MAX);
    let checkpoint = CheckpointPolicy {
        is_on,
        after_turn: when == Checkpoint::Turn,
        every_ms: every.filter(|_| is_on).map(|every| millis(every.0)),
        files_max: bounded("files.max_files", *max_files, files_max, &files_max)?,
        bytes_max: bounded("files.max_size", max_size.0, bytes_max, &Size(bytes_max))?,
        exclude: exclude.into_value(),
    };
    let keep = *keep;
    Ok((FilesPolicy { has_inputs: !inputs.is_empty(), is_kept: is_on, keep }, checkpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(toml: &str) -> Result<Vec<Input>, Problem> {
        #[derive(Deserialize)]
        struct Tables {
            inputs: Vec<InputTable>,
        }
        let tables: Tables = toml::from_str(toml).unwrap();
        inputs_of(tables.inputs, Path::new("/etc/dormouse"))
    }

    #[test]
    fn inputs_come_from_a_folder_beside_the_config_from_a_bucket_or_from_the_sender() {
        let read = inputs(
            "inputs = [{ path = \"data/\", from = \"inputs\", required = [\"*.csv\"] },\n\
             { path = \"models\", from = \"s3://bucket/models/\", etag = \"opaque\" },\n\
             { path = \".\", required = [\"job.json\"] }]",
        )
        .unwrap();
        let folder = FilesPlace::Folder("/etc/dormouse/inputs".into());
        assert_eq!(read[0].from, Some(folder));
        assert_eq!(read[0].path.as_ref().unwrap().as_str(), "data");
        let bucket = FilesPlace::Objects("s3://bucket/models".parse().unwrap());
        assert_eq!((read[1].from.clone(), read[1].has_opaque_etags), (Some(bucket), true));
        assert_eq!((read[2].path.clone(), read[2].from.clone()), (None, None));
    }

    #[test]
    fn an_input_without_sense_names_its_setting() {
        let setting = |toml: &str| inputs(toml).unwrap_err().0;
        assert_eq!(setting("inputs = [{ path = \"../x\", from = \"d\" }]"), "inputs[0].path");
        assert_eq!(setting("inputs = [{ path = \"/x\", from = \"d\" }]"), "inputs[0].path");
        assert_eq!(setting("inputs = [{ path = \"x\", from = \"gs://b\" }]"), "inputs[0].from");
        assert_eq!(setting("inputs = [{ path = \"x\" }]"), "inputs[0].from");
        let twice = "inputs = [{ path = \"x\", from = \"d\" }, { path = \"x/y\", from = \"e\" }]";
        assert_eq!(setting(twice), "inputs[1].path");
        assert_eq!(
            setting("inputs = [{ path = \"x\", required = [\" \"] }]"),
            "inputs[0].required"
        );
    }

    #[test]
    fn checkpoints_are_taken_after_turns_of_programs_that_a_turn_is_all_of() {
        let kept = |toml: &str, adapter: AdapterSetting| {
            let table: AgentFilesTable = toml::from_str(toml).unwrap();
            kept_of(table, &[], DriverKind::Process, &adapter)
        };
        assert!(!kept("checkpoint = \"off\"", AdapterSetting::Exec {}).unwrap().0.is_kept);
        let (policy, checkpoint) = kept("", AdapterSetting::Exec {}).unwrap();
        assert!(policy.is_kept && checkpoint.after_turn && policy.keep == 10);
        assert!(checkpoint.exclude.iter().any(|pattern| pattern == "node_modules"));
        let (url, ready, model, headers) = (String::new(), None, None, Default::default());
        let openai = || AdapterSetting::Openai {
            url: url.clone(),
            ready: ready.clone(),
            model: model.clone(),
            headers: std::collections::BTreeMap::clone(&headers),
        };
        assert!(!kept("", openai()).unwrap().0.is_kept);
        let (_, checkpoint) = kept("checkpoint = \"stop\"\nevery = \"5m\"", openai()).unwrap();
        assert_eq!((checkpoint.after_turn, checkpoint.every_ms), (false, Some(300_000)));
        for (toml, setting) in [
            ("keep = 0", "files.keep"),
            ("every = \"1ms\"", "files.every"),
            ("max_files = 0", "files.max_files"),
            ("max_size = \"1TiB\"", "files.max_size"),
        ] {
            let found = kept(toml, AdapterSetting::Exec {});
            assert_eq!(found.unwrap_err().0, setting, "{toml}");
        }
    }
}

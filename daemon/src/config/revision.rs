//! The part of an agent's table that makes a revision of it.
//!
//! Owner: whoever keeps revisions. Invariant: a revision is made of the settings that come into
//! force with a start, and of no other, so that today's live settings go with every revision.
//! Absent: where revisions are kept, and which are good.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::agent::AgentTable;
use super::flat::leaves_of;
use super::location::joined;
use super::setting::Effect;

/// Why a revision's part cannot be put into today's table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RevisionError {
    #[error("the revision has a setting that this version does not know: {path}")]
    UnknownSetting { path: String },
    #[error("the revision's settings are none of this version")]
    Form(#[source] serde_json::Error),
}

impl AgentTable {
    /// The settings that come into force with a start, canonical and with all defaults, nested as
    /// in the file: two tables with the same part run alike.
    pub(crate) fn revision_part(&self) -> Json {
        let mut part = Map::new();
        for (path, leaf) in leaves_of(self) {
            if leaf.effect == Effect::NextStart
                && let Some(value) = leaf.value
            {
                put(&mut part, &path, value);
            }
        }
        Json::Object(part)
    }

    /// This table with those settings of the part: an older revision with today's live settings.
    pub(crate) fn with_revision_part(&self, part: &Json) -> Result<AgentTable, RevisionError> {
        let mut table = Map::new();
        let mut known = BTreeSet::new();
        for (path, leaf) in leaves_of(self) {
            let value = match leaf.effect {
                Effect::NextStart => taken(part, &path).cloned(),
                Effect::Live | Effect::NextTurn | Effect::DaemonRestart => leaf.value,
            };
            if let Some(value) = value {
                put(&mut table, &path, value);
            }
            known.insert(path);
        }
        if let Some(path) = unknown_in(part, String::new(), &known) {
            return Err(RevisionError::UnknownSetting { path });
        }
        AgentTable::deserialize(Json::Object(table)).map_err(RevisionError::Form)
    }
}

/// At a path whose parts are separated by dots.
pub(super) fn put(object: &mut Map<String, Json>, path: &str, value: Json) {
    match path.split_once('.') {
        None => drop(object.insert(path.to_owned(), value)),
        Some((table, rest)) => {
            let table = object.entry(table).or_insert_with(|| Json::Object(Map::new()));
            let table = table.as_object_mut().expect("a table's name is no setting's");
            put(table, rest, value);
        }
    }
}

fn taken<'a>(part: &'a Json, path: &str) -> Option<&'a Json> {
    path.split('.').try_fold(part, |json, key| json.get(key))
}

/// The first path of the part that is neither a setting nor a table on the way to one.
fn unknown_in(part: &Json, path: String, known: &BTreeSet<String>) -> Option<String> {
    if known.contains(&path) {
        return None;
    }
    let below = format!("{path}.");
    let is_table = path.is_empty() || known.iter().any(|known| known.starts_with(&below));
    match part.as_object() {
        Some(entries) if is_table => {
            entries.iter().find_map(|(key, value)| unknown_in(value, joined(&path, key), known))
        }
        Some(_) | None => Some(path),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(toml: &str) -> AgentTable {
        toml::from_str(&format!("command = [\"x\"]\nadapter.kind = \"exec\"\n{toml}")).unwrap()
    }

    #[test]
    fn a_revision_is_what_comes_with_a_start_and_nothing_else() {
        let part =
            table("turn.attempts = 2\nfiles.exclude = []\nmemory = \"1024MiB\"").revision_part();
        let expected = json!({
            "driver": "process", "command": ["x"], "adapter": {"kind": "exec"},
            "memory": "1GiB", "heap": "75%", "pids": 1024, "env": {}, "secrets": [], "render": [],
            "files": {"max_files": 100_000, "max_size": "10GiB", "exclude": []},
        });
        assert_eq!(part, expected);
        let other =
            table("turn.attempts = 3\nfiles = { exclude = [], keep = 1 }\nmemory = \"1GiB\"");
        assert_eq!(other.revision_part(), part, "what is live makes no revision");
    }

    #[test]
    fn an_older_revision_runs_with_todays_live_settings() {
        let old = table("memory = \"1GiB\"\nenv = { A = \"1\" }\nturn.attempts = 1");
        let today = table(
            "memory_ceiling = \"2GiB\"\nmemory = \"64MiB\"\nturn.attempts = 5\n\
                           inputs = [{ path = \"d\", from = \"e\" }]",
        );
        let run = today.with_revision_part(&old.revision_part()).unwrap();
        assert_eq!(run.revision_part(), old.revision_part());
        assert_eq!((*run.turn.attempts, run.inputs.len()), (5, 1));
        assert!(run.memory_ceiling.is_none(), "today's ceiling is of today's revision");
        let same = today.with_revision_part(&today.revision_part()).unwrap();
        assert_eq!(format!("{same:?}"), format!("{today:?}"));
    }

    #[test]
    fn a_revision_that_this_version_cannot_run_is_refused_by_name() {
        let refused = |part: Json| table("").with_revision_part(&part).unwrap_err().to_string();
        assert!(refused(json!({"voice": "x"})).contains("voice"));
        assert!(refused(json!({"files": {"voice": 1}})).contains("files.voice"));
        assert!(refused(json!({"files": 1})).contains("files"));
        assert!(refused(json!([])).contains("does not know"));
        assert!(refused(json!({"pids": "many"})).contains("none of this version"));
    }
}

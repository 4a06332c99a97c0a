//! What a new config will do: each setting that changes, with its effect and whom it touches.
//!
//! Owner: a pure function of two configs. Invariants: the plan from a config to itself is empty;
//! applied to the one it gives the other, and flipped it leads back; nobody is interrupted but by
//! what says so in its type. Absent: carrying it out.

#[cfg(any(test, fuzzing))]
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::flat::{Effective, Entry};
use super::location::joined;
use super::setting::Effect;

/// The steps from one config to another, by path.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Plan {
    pub(crate) changes: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) path: String,
    pub(crate) of: ChangeOf,
    /// `None`: absent. A whole agent is an object of its settings by their paths.
    pub(crate) from: Option<Json>,
    pub(crate) to: Option<Json>,
    pub(crate) effect: Effect,
    /// The agents that notice, by name.
    pub(crate) agents: Vec<String>,
    /// JSON pointers of what is not shown of it: a text, or the values of an object.
    hidden: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChangeOf {
    Setting,
    /// Added, or removed.
    Agent,
}

/// Who is interrupted when a change is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Interrupts {
    Nobody,
    /// The daemon is started anew; turns go on under their bridges meanwhile.
    Daemon,
}

/// What stands for a value that is not shown.
const HIDDEN: &str = "(not shown)";
const HIDDEN_AND_CHANGED: &str = "(not shown, changed)";

pub(crate) fn plan(from: &Effective, to: &Effective) -> Plan {
    let mut changes = Vec::new();
    let names: BTreeSet<&String> = from.agents.union(&to.agents).collect();
    let stays: Vec<&String> = from.agents.intersection(&to.agents).collect();
    for name in names {
        if !stays.contains(&name) {
            changes.push(whole_agent(name, from, to));
        }
    }
    let is_of_another = |path: &str| {
        let mut whole = changes.iter().map(|change: &Change| format!("{}.", change.path));
        whole.any(|below| path.starts_with(&below))
    };
    let paths: BTreeSet<&String> = from.entries.keys().chain(to.entries.keys()).collect();
    let mut of_settings = Vec::new();
    for path in paths {
        let (one, other) = (from.entries.get(path), to.entries.get(path));
        let value = |entry: Option<&Entry>| entry.map(|entry| entry.value.clone());
        let Some(either) = one.or(other) else { continue };
        if value(one) == value(other) || is_of_another(path) {
            continue;
        }
        of_settings.push(Change {
            path: path.clone(),
            of: ChangeOf::Setting,
            from: value(one),
            to: value(other),
            effect: either.effect,
            agents: noticed_by(path, either.effect, &stays),
            hidden: either.hidden.iter().map(|pointer| (*pointer).to_owned()).collect(),
        });
    }
    changes.extend(of_settings);
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    Plan { changes }
}

/// An agent's own settings are noticed by it; those of the machine that instances are started
/// with, by all.
fn noticed_by(path: &str, effect: Effect, agents: &[&String]) -> Vec<String> {
    let is_its_own = |name: &&&String| path.starts_with(&format!("{}.", joined("agents", name)));
    match agents.iter().find(is_its_own) {
        Some(name) => vec![(**name).clone()],
        None if effect == Effect::NextStart => agents.iter().map(|name| (*name).clone()).collect(),
        None => Vec::new(),
    }
}

fn whole_agent(name: &str, from: &Effective, to: &Effective) -> Change {
    let whole = |effective: &Effective| {
        let settings = effective.of_agent(name);
        let settings = settings.map(|(path, entry)| (path.to_owned(), entry.value.clone()));
        let object: Map<String, Json> = settings.collect();
        effective.agents.contains(name).then_some(Json::Object(object))
    };
    let entries = from.of_agent(name).chain(to.of_agent(name));
    let pointers =
        entries.flat_map(|(path, entry)| entry.hidden.iter().map(move |at| format!("/{path}{at}")));
    let hidden: BTreeSet<String> = pointers.collect();
    Change {
        path: joined("agents", name),
        of: ChangeOf::Agent,
        from: whole(from),
        to: whole(to),
        effect: Effect::Live,
        agents: vec![name.to_owned()],
        hidden: hidden.into_iter().collect(),
    }
}

impl Plan {
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The way back.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn flip(self) -> Plan {
        let flipped = self.changes.into_iter().map(|change| Change {
            from: change.to,
            to: change.from,
            ..change
        });
        Plan { changes: flipped.collect() }
    }

    /// The settings after it.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn apply(&self, values: &mut BTreeMap<String, Json>) {
        for change in &self.changes {
            let below = |key: &String| format!("{}.{key}", change.path);
            match (change.of, &change.from, &change.to) {
                (ChangeOf::Setting, _, Some(value)) => {
                    values.insert(change.path.clone(), value.clone());
                }
                (ChangeOf::Setting, _, None) => drop(values.remove(&change.path)),
                (ChangeOf::Agent, _, Some(Json::Object(settings))) => {
                    let settings = settings.iter();
                    values.extend(settings.map(|(key, value)| (below(key), value.clone())));
                }
                (ChangeOf::Agent, Some(Json::Object(settings)), None) => {
                    settings.keys().for_each(|key| drop(values.remove(&below(key))));
                }
                (ChangeOf::Agent, _, _) => unreachable!("a whole agent is an object of settings"),
            }
        }
    }

    pub(crate) fn to_json(&self) -> Json {
        let changes: Vec<Json> = self.changes.iter().map(Change::to_json).collect();
        json!({"changes": changes, "interrupts": self.interrupts()})
    }

    pub(crate) fn interrupts(&self) -> Interrupts {
        let needs_it = |change: &Change| change.interrupts() == Interrupts::Daemon;
        if self.changes.iter().any(needs_it) { Interrupts::Daemon } else { Interrupts::Nobody }
    }
}

impl Change {
    pub(crate) fn interrupts(&self) -> Interrupts {
        match self.effect {
            Effect::Live | Effect::NextTurn | Effect::NextStart => Interrupts::Nobody,
            Effect::DaemonRestart => Interrupts::Daemon,
        }
    }

    /// From what to what, for everybody's eyes.
    fn shown(&self) -> (Option<Json>, Option<Json>) {
        let (mut from, mut to) = (self.from.clone(), self.to.clone());
        for pointer in &self.hidden {
            let at = |value: &Option<Json>| value.as_ref()?.pointer(pointer).cloned();
            let before = at(&self.from).unwrap_or_default();
            hide(&mut from, pointer, &before);
            hide(&mut to, pointer, &before);
        }
        (from, to)
    }

    /// Where no value is shown at all: what became of each key. `None`: values may be shown.
    fn keys_shown(&self) -> Option<Vec<String>> {
        let is_object = |value: &Option<Json>| value.as_ref().is_some_and(Json::is_object);
        if self.hidden != [""] || !(is_object(&self.from) || is_object(&self.to)) {
            return None;
        }
        let none = Map::new();
        let from = self.from.as_ref().and_then(Json::as_object).unwrap_or(&none);
        let to = self.to.as_ref().and_then(Json::as_object).unwrap_or(&none);
        let keys: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
        let words = keys.into_iter().filter_map(|key| match (from.get(key), to.get(key)) {
            (Some(one), Some(other)) if one == other => None,
            (Some(_), Some(_)) => Some(format!("{key} changed")),
            (None, _) => Some(format!("{key} added")),
            (Some(_), None) => Some(format!("{key} removed")),
        });
        Some(words.collect())
    }

    fn to_json(&self) -> Json {
        let (from, to) = self.shown();
        let mut shown = json!({
            "path": self.path, "of": self.of, "from": from, "to": to, "effect": self.effect,
            "agents": self.agents, "interrupts": self.interrupts(),
        });
        if let Some(keys) = self.keys_shown() {
            shown["keys"] = json!(keys);
        }
        shown
    }
}

fn hide(value: &mut Option<Json>, pointer: &str, before: &Json) {
    let cover = |value: &mut Json, before: Option<&Json>| {
        let is_changed = before.is_some_and(|before| before != value);
        *value = json!(if is_changed { HIDDEN_AND_CHANGED } else { HIDDEN });
    };
    match value.as_mut().and_then(|value| value.pointer_mut(pointer)) {
        Some(Json::Object(entries)) => {
            entries.iter_mut().for_each(|(key, value)| cover(value, before.get(key)));
        }
        Some(plain) => cover(plain, Some(before).filter(|before| !before.is_null())),
        None => {}
    }
}

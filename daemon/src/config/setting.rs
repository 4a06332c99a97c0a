//! A setting: its value, and in its type what a change of it comes to.
//!
//! ```text
//!  table ── visit (every field, by name) ──▶ Visitor ──▶ nodes ──▶ flat map · schema · pages
//! ```
//!
//! Owner: the tables of the config. Invariants: every leaf of every table is a `Setting`, so that
//! none is without an effect; a table is taken apart by name and without `..`, so that none is
//! left out. What is neither does not compile:
//!
//! ```compile_fail
//! struct Setting<T, E>(T, std::marker::PhantomData<E>);
//! struct Live;
//! fn setting<T, E>(_setting: &Setting<T, E>) {}
//! struct Table { attempts: Setting<u32, Live>, voice: Setting<String, Live> }
//! fn visit(table: &Table) {
//!     let Table { attempts } = table; // `voice` is new, and has not been thought of
//!     setting(attempts);
//! }
//! ```
//!
//! ```compile_fail
//! struct Setting<T, E>(T, std::marker::PhantomData<E>);
//! struct Live;
//! fn setting<T, E>(_setting: &Setting<T, E>) {}
//! struct Table { attempts: Setting<u32, Live>, voice: String }
//! fn visit(table: &Table) {
//!     let Table { attempts, voice } = table;
//!     setting(attempts);
//!     setting(voice); // without an effect
//! }
//! ```
//!
//! Absent: what is done for an effect.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};
use serde_json::Value as Json;

use super::value::Value;

/// What a change of a setting comes to, the gentlest first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Effect {
    /// In force for whatever comes next.
    Live,
    /// In force from each session's next turn.
    NextTurn,
    /// In force from each session's next start; it begins a new revision of the agent.
    NextStart,
    /// In force once the daemon has been started anew.
    DaemonRestart,
}

impl Effect {
    #[cfg(test)]
    pub(crate) const ALL: [Effect; 4] =
        [Effect::Live, Effect::NextTurn, Effect::NextStart, Effect::DaemonRestart];

    pub(crate) fn words(self) -> &'static str {
        match self {
            Effect::Live => "live",
            Effect::NextTurn => "next turn",
            Effect::NextStart => "next start of each session",
            Effect::DaemonRestart => "needs a restart of the daemon",
        }
    }
}

mod sealed {
    pub(crate) trait Sealed {}
}

/// An effect as a type.
pub(crate) trait HasEffect: sealed::Sealed {
    const EFFECT: Effect;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live;

impl sealed::Sealed for Live {}

impl HasEffect for Live {
    const EFFECT: Effect = Effect::Live;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextTurn;

impl sealed::Sealed for NextTurn {}

impl HasEffect for NextTurn {
    const EFFECT: Effect = Effect::NextTurn;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextStart;

impl sealed::Sealed for NextStart {}

impl HasEffect for NextStart {
    const EFFECT: Effect = Effect::NextStart;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DaemonRestart;

impl sealed::Sealed for DaemonRestart {}

impl HasEffect for DaemonRestart {
    const EFFECT: Effect = Effect::DaemonRestart;
}

/// A value that stands in the config; a change of it has the effect `E`.
pub(crate) struct Setting<T, E> {
    value: T,
    effect: PhantomData<E>,
}

impl<T, E> Setting<T, E> {
    pub(crate) fn into_value(self) -> T {
        self.value
    }
}

impl<T, E> From<T> for Setting<T, E> {
    fn from(value: T) -> Self {
        Self { value, effect: PhantomData }
    }
}

impl<T: Default, E> Default for Setting<T, E> {
    fn default() -> Self {
        T::default().into()
    }
}

impl<T: Clone, E> Clone for Setting<T, E> {
    fn clone(&self) -> Self {
        self.value.clone().into()
    }
}

impl<T: fmt::Debug, E> fmt::Debug for Setting<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T, E> Deref for Setting<T, E> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Serialize, E> Serialize for Setting<T, E> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>, E> Deserialize<'de> for Setting<T, E> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

/// What the manual says of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doc {
    pub(crate) words: &'static str,
    /// In TOML, where there is no default to show.
    pub(crate) example: Option<&'static str>,
}

pub(crate) const fn doc(words: &'static str) -> Doc {
    Doc { words, example: None }
}

impl Doc {
    pub(crate) const fn example(self, example: &'static str) -> Doc {
        Doc { example: Some(example), ..self }
    }
}

/// A table of the config.
pub(crate) trait Table: Default {
    /// Shows each field to the visitor. Take `self` apart by name, without `..`.
    fn visit(&self, visitor: &mut Visitor);
}

/// What was shown of a table.
#[derive(Debug)]
pub(crate) enum Node {
    Leaf(Leaf),
    Table {
        name: &'static str,
        words: &'static str,
        nodes: Vec<Node>,
    },
    Map {
        name: &'static str,
        words: &'static str,
        /// Of an entry in which nothing is set.
        standard: Vec<Node>,
        entries: BTreeMap<String, Vec<Node>>,
    },
}

/// One setting, with all that is known of it.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) name: &'static str,
    pub(crate) doc: Doc,
    pub(crate) effect: Effect,
    /// Canonical: units and defaults are written in one way. `None`: absent.
    pub(crate) value: Option<Json>,
    /// JSON pointers of what is not shown of it: a text, or the values of an object.
    pub(crate) hidden: &'static [&'static str],
    /// A few words, for people.
    pub(crate) kind: &'static str,
    pub(crate) schema: fn() -> Json,
}

/// Collects what a table shows of itself.
#[derive(Debug, Default)]
pub(crate) struct Visitor {
    nodes: Vec<Node>,
}

impl Visitor {
    pub(crate) fn setting<T: Value, E: HasEffect>(
        &mut self,
        name: &'static str,
        setting: &Setting<T, E>,
        doc: Doc,
    ) {
        self.nodes.push(Node::Leaf(Leaf {
            name,
            doc,
            effect: E::EFFECT,
            value: canonical(&setting.value),
            hidden: T::HIDDEN,
            kind: T::KIND,
            schema: T::schema,
        }));
    }

    pub(crate) fn table(&mut self, name: &'static str, table: &impl Table, words: &'static str) {
        self.nodes.push(Node::Table { name, words, nodes: nodes_of(table) });
    }

    pub(crate) fn map<T: Table>(
        &mut self,
        name: &'static str,
        map: &BTreeMap<String, T>,
        words: &'static str,
    ) {
        let standard = nodes_of(&T::default());
        let entries = map.iter().map(|(name, table)| (name.clone(), nodes_of(table))).collect();
        self.nodes.push(Node::Map { name, words, standard, entries });
    }
}

pub(crate) fn nodes_of(table: &impl Table) -> Vec<Node> {
    let mut visitor = Visitor::default();
    table.visit(&mut visitor);
    visitor.nodes
}

/// Without nulls: what is absent is not there.
fn canonical(value: &impl Serialize) -> Option<Json> {
    let json = serde_json::to_value(value).expect("every key in a setting is a text");
    without_nulls(json)
}

fn without_nulls(json: Json) -> Option<Json> {
    match json {
        Json::Null => None,
        Json::Object(entries) => {
            let kept = entries.into_iter();
            let kept = kept.filter_map(|(key, value)| Some((key, without_nulls(value)?)));
            Some(Json::Object(kept.collect()))
        }
        Json::Array(items) => {
            Some(Json::Array(items.into_iter().filter_map(without_nulls).collect()))
        }
        plain @ (Json::Bool(_) | Json::Number(_) | Json::String(_)) => Some(plain),
    }
}

//! All settings with their effective values, by their paths: what plans compare.
//!
//! Owner: whoever holds a config. Invariants: values are canonical, so that what means the same is
//! the same; what is absent and has no default is not there. Absent: order, comments and units of
//! the file.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::location::joined;
use super::setting::{Effect, Leaf, Node, Table, nodes_of};
use super::tables::File;

/// One setting in force.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) value: Json,
    pub(crate) effect: Effect,
    /// JSON pointers of what is not shown of it: a text, or the values of an object.
    pub(crate) hidden: &'static [&'static str],
}

/// A config as paths and values: "agents.python.turn.within" is "6h".
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Effective {
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) agents: BTreeSet<String>,
}

impl Effective {
    pub(crate) fn of(file: &File) -> Self {
        let mut effective = Self::default();
        for node in nodes_of(file) {
            match node {
                Node::Map { name, entries, .. } => {
                    for (entry, nodes) in entries {
                        effective.insert(&joined(name, &entry), nodes);
                        effective.agents.insert(entry);
                    }
                }
                plain @ (Node::Leaf(_) | Node::Table { .. }) => effective.insert("", vec![plain]),
            }
        }
        effective
    }

    fn insert(&mut self, path: &str, nodes: Vec<Node>) {
        for (path, leaf) in leaves(path, nodes) {
            let Leaf { effect, hidden, .. } = leaf;
            if let Some(value) = leaf.value {
                self.entries.insert(path, Entry { value, effect, hidden });
            }
        }
    }

    /// The settings below `agents.NAME`, without that.
    pub(crate) fn of_agent(&self, name: &str) -> impl Iterator<Item = (&str, &Entry)> {
        let below = format!("{}.", joined("agents", name));
        let entries = self.entries.iter();
        entries.filter_map(move |(path, entry)| Some((path.strip_prefix(&below)?, entry)))
    }
}

/// The settings of a table that has no map of tables, by their paths.
pub(super) fn leaves_of(table: &impl Table) -> Vec<(String, Leaf)> {
    leaves("", nodes_of(table))
}

/// In the order of the file; what is in maps is left out.
pub(super) fn leaves(path: &str, nodes: Vec<Node>) -> Vec<(String, Leaf)> {
    let mut found = Vec::new();
    for node in nodes {
        match node {
            Node::Leaf(leaf) => found.push((joined(path, leaf.name), leaf)),
            Node::Table { name, nodes, .. } => found.extend(leaves(&joined(path, name), nodes)),
            Node::Map { .. } => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn effective(toml: &str) -> Effective {
        Effective::of(&toml::from_str(toml).unwrap())
    }

    #[test]
    fn what_means_the_same_is_the_same() {
        let one =
            effective("[agents.a]\nturn = { within = \"60s\" }\n[node]\ndisk_floor = \"64MiB\"");
        let other =
            effective("# words\nnode.disk_floor = \"65536 KiB\"\nagents.a.turn.within = \"1m\"");
        assert_eq!(one, other);
        assert_eq!(one.entries["agents.a.turn.within"].value, json!("1m"));
        assert_eq!(one.entries["server.listen"].value, json!("127.0.0.1:7766"));
        assert!(!one.entries.contains_key("agents.a.memory"), "absent, without a default");
    }

    #[test]
    fn an_agents_settings_are_its_own() {
        let both = effective("[agents.a]\npids = 1\n[agents.a-b]\npids = 2");
        let pids = |name| both.of_agent(name).find(|(path, _)| *path == "pids").unwrap().1.clone();
        assert_eq!((pids("a").value, pids("a-b").value), (json!(1), json!(2)));
        assert_eq!(both.of_agent("a").count(), both.of_agent("a-b").count());
    }
}

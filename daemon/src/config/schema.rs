//! The settings as a JSON schema, for editors and other programs, and as a list, for people.
//!
//! Owner: the tables, which show themselves. Invariants: a key that it does not know is refused;
//! each setting says in `x-effect` what a change of it comes to. Absent: what is checked of several
//! settings together.

use serde_json::{Map, Value as Json, json};

use super::flat::leaves;
use super::setting::{Effect, Leaf, Node, nodes_of};
use super::tables::File;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// A JSON schema of the dialect above.
pub(crate) fn schema() -> Json {
    let mut schema = table(&nodes_of(&File::default()), "The config of Dormouse, dormouse.toml.");
    schema["$schema"] = json!(DIALECT);
    schema["title"] = json!("Dormouse config");
    schema
}

fn table(nodes: &[Node], words: &str) -> Json {
    let mut properties = Map::new();
    for node in nodes {
        match node {
            Node::Leaf(leaf) => drop(properties.insert(leaf.name.to_owned(), setting(leaf))),
            Node::Table { name, words, nodes } => {
                properties.insert((*name).to_owned(), table(nodes, words));
            }
            Node::Map { name, words, standard, entries: _ } => {
                let map = json!({
                    "type": "object", "description": words,
                    "propertyNames": {"pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"},
                    "additionalProperties": table(standard, ""),
                });
                properties.insert((*name).to_owned(), map);
            }
        }
    }
    let mut schema = json!({
        "type": "object", "additionalProperties": false, "properties": properties,
    });
    if !words.is_empty() {
        schema["description"] = json!(words);
    }
    schema
}

fn setting(leaf: &Leaf) -> Json {
    let mut schema = (leaf.schema)();
    schema["description"] = json!(leaf.doc.words);
    schema["x-effect"] = json!(leaf.effect);
    if let Some(standard) = &leaf.value {
        schema["default"] = standard.clone();
    }
    if let Some(example) = leaf.doc.example {
        schema["examples"] = json!([from_toml(example)]);
    }
    schema
}

/// A value as TOML has it.
fn from_toml(text: &str) -> Json {
    let table: Map<String, Json> =
        toml::from_str(&format!("value = {text}")).expect("a test reads every example");
    table["value"].clone()
}

/// A setting, for a list.
#[derive(Debug)]
pub(crate) struct Row {
    /// "agents.NAME.turn.within".
    pub(crate) path: String,
    pub(crate) kind: &'static str,
    /// `None`: absent.
    pub(crate) standard: Option<Json>,
    pub(crate) effect: Effect,
}

/// All settings, in the order of the manual.
pub(crate) fn rows() -> Vec<Row> {
    let mut found = Vec::new();
    for node in nodes_of(&File::default()) {
        match node {
            Node::Map { name, standard, .. } => {
                found.extend(leaves(&format!("{name}.NAME"), standard));
            }
            plain @ (Node::Leaf(_) | Node::Table { .. }) => {
                found.extend(leaves("", vec![plain]));
            }
        }
    }
    let row = |(path, leaf): (String, Leaf)| Row {
        path,
        kind: leaf.kind,
        standard: leaf.value,
        effect: leaf.effect,
    };
    found.into_iter().map(row).collect()
}

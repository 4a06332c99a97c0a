//! The values that settings have: how each is named to people, and what it is in a JSON schema.
//!
//! Owner: `setting`. Invariant: what serde takes of a value, its schema describes. Absent: the
//! bounds that a table checks once it is read whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use dormouse_edge::driver::fake::FakeScript;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::location::quoted;
use super::units::{Percent, Size, Span};

/// What may stand in a setting.
pub(crate) trait Value: Serialize {
    /// A few words, for people.
    const KIND: &'static str;
    /// JSON pointers of what is not shown of it: a text, or the values of an object.
    const HIDDEN: &'static [&'static str] = &[];
    /// A schema that takes this and nothing else.
    fn schema() -> Json;
}

impl<T: Value> Value for Option<T> {
    const KIND: &'static str = T::KIND;
    const HIDDEN: &'static [&'static str] = T::HIDDEN;
    fn schema() -> Json {
        T::schema()
    }
}

impl Value for bool {
    const KIND: &'static str = "true or false";
    fn schema() -> Json {
        json!({"type": "boolean"})
    }
}

impl Value for String {
    const KIND: &'static str = "text";
    fn schema() -> Json {
        json!({"type": "string"})
    }
}

impl Value for Vec<String> {
    const KIND: &'static str = "list of texts";
    fn schema() -> Json {
        json!({"type": "array", "items": {"type": "string"}})
    }
}

impl Value for u32 {
    const KIND: &'static str = "number";
    fn schema() -> Json {
        json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
    }
}

impl Value for u64 {
    const KIND: &'static str = "number";
    fn schema() -> Json {
        json!({"type": "integer", "minimum": 0})
    }
}

impl Value for usize {
    const KIND: &'static str = "number";
    fn schema() -> Json {
        json!({"type": "integer", "minimum": 0})
    }
}

impl Value for SocketAddr {
    const KIND: &'static str = "address";
    fn schema() -> Json {
        json!({"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.%]+\]|[0-9.]+):[0-9]+$"})
    }
}

impl Value for Span {
    const KIND: &'static str = "duration";
    fn schema() -> Json {
        json!({"type": "string", "pattern": r"^\s*([0-9]+(ms|s|m|min|h|d)\s*)+$"})
    }
}

impl Value for Size {
    const KIND: &'static str = "size";
    fn schema() -> Json {
        json!({"type": "string", "pattern": r"^\s*[0-9]+\s*(B|KiB|MiB|GiB|TiB)\s*$"})
    }
}

impl Value for Percent {
    const KIND: &'static str = "percentage";
    fn schema() -> Json {
        json!({"type": "string", "pattern": "^[0-9]+%$"})
    }
}

/// Names with texts that are not for everybody's eyes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Environment(pub(crate) BTreeMap<String, String>);

impl Value for Environment {
    const KIND: &'static str = "table of texts";
    const HIDDEN: &'static [&'static str] = &[""];
    fn schema() -> Json {
        json!({"type": "object", "additionalProperties": {"type": "string"}})
    }
}

/// A value, as a person would write it in the file.
pub(crate) fn written(value: &Json) -> String {
    let all = |texts: Vec<String>| texts.join(", ");
    match value {
        Json::Array(items) => format!("[{}]", all(items.iter().map(written).collect())),
        Json::Object(entries) if entries.is_empty() => "{}".to_owned(),
        Json::Object(entries) => {
            let entry =
                |(key, value): (&String, &Json)| format!("{} = {}", quoted(key), written(value));
            format!("{{ {} }}", all(entries.iter().map(entry).collect()))
        }
        plain @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_)) => {
            plain.to_string()
        }
    }
}

/// A text that is not for everybody's eyes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PrivateText(pub(crate) String);

impl Value for PrivateText {
    const KIND: &'static str = "text";
    const HIDDEN: &'static [&'static str] = &[""];
    fn schema() -> Json {
        String::schema()
    }
}

/// One of a few words.
pub(crate) fn choice_of(choices: &[impl Serialize]) -> Json {
    json!({"enum": choices})
}

/// An object with these keys and no other.
pub(crate) fn object_of(properties: Json, required: &[&str]) -> Json {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": required,
    })
}

impl Value for FakeScript {
    const KIND: &'static str = "table";
    fn schema() -> Json {
        let text = || String::schema();
        let (ms, flag) = (|| u64::schema(), || bool::schema());
        let code = || json!({"type": "integer", "minimum": i32::MIN, "maximum": i32::MAX});
        let kind = |name: &str| json!({"const": name});
        let reply = json!({"oneOf": [
            {"enum": ["echo", "count"]},
            object_of(json!({"fixed": text()}), &["fixed"]),
        ]});
        let exit = json!({"oneOf": [
            object_of(json!({"kind": kind("exited"), "code": code()}), &["kind", "code"]),
            object_of(json!({"kind": kind("signaled"), "signal": code()}), &["kind", "signal"]),
            object_of(json!({"kind": kind("out_of_memory")}), &["kind"]),
            object_of(json!({"kind": kind("bridge_lost")}), &["kind"]),
        ]});
        let properties = json!({
            "refuse_start": text(), "start_takes_ms": ms(), "never_attaches": flag(),
            "ready_after_ms": ms(), "never_ready": flag(), "reply": reply,
            "turn_takes_ms": ms(), "chunks": u32::schema(), "chunk_every_ms": ms(),
            "die_on": text(), "hang_turn_on": text(), "fail_on": text(),
            "fail_is_retryable": flag(), "lose_line_on": text(), "hold_on": text(),
            "hold_for_ms": ms(), "run_for_ms": ms(), "oom_at_ms": ms(), "exit": exit,
            "stop_takes_ms": ms(), "ignores_stop": flag(), "log": text(),
        });
        object_of(properties, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_of_a_script_has_every_key_of_it() {
        let script = serde_json::to_value(FakeScript::default()).unwrap();
        let schema = FakeScript::schema();
        let keys = |json: &Json| json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&schema["properties"]), keys(&script));
    }
}

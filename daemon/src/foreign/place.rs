//! A value in a foreign document, together with the path to it.
//!
//! Owner: the readers (`ecs`, `docker`, `kubernetes`). Invariants: what is absent or null is
//! absent; what has another type than expected is absent too, and named in the gaps; every fact
//! carries its path. Absent: what the values mean.

use std::cell::RefCell;

use dormouse_core::diagnosis::facts::Fact;
use dormouse_core::time::Wall;
use serde_json::Value;

use super::time;

/// More gaps than this say nothing new.
const GAPS_MAX: usize = 30;
const GAP_CHARACTERS_MAX: usize = 300;
/// Of one list, no more is read: the newest a thousand ends are history enough.
const ITEMS_MAX: usize = 2_000;

/// What could not be read, and why. In the order of reading, each once.
#[derive(Debug, Default)]
pub(crate) struct Gaps(RefCell<Vec<String>>);

impl Gaps {
    pub(crate) fn add(&self, gap: impl Into<String>) {
        let gap: String = gap.into();
        let gap = match gap.char_indices().nth(GAP_CHARACTERS_MAX) {
            Some((end, _)) => format!("{}…", &gap[..end]),
            None => gap,
        };
        let mut gaps = self.0.borrow_mut();
        if gaps.len() < GAPS_MAX && !gaps.contains(&gap) {
            gaps.push(gap);
        }
    }

    pub(crate) fn into_list(self) -> Vec<String> {
        self.0.into_inner()
    }
}

/// A place that may hold nothing.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    source: &'a str,
    path: String,
    value: Option<&'a Value>,
    gaps: &'a Gaps,
}

impl<'a> Place<'a> {
    pub(super) fn new(
        source: &'a str,
        path: impl Into<String>,
        value: &'a Value,
        gaps: &'a Gaps,
    ) -> Self {
        Self { source, path: path.into(), value: Some(value), gaps }
    }

    /// One key deeper.
    pub(super) fn key(&self, key: &str) -> Place<'a> {
        let path = match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        };
        let value = self.value.and_then(|value| value.get(key)).filter(|value| !value.is_null());
        Place { source: self.source, path, value, gaps: self.gaps }
    }

    /// Several keys deeper: "State.Health.Status".
    pub(super) fn at(&self, keys: &str) -> Place<'a> {
        keys.split('.').fold(self.clone(), |place, key| place.key(key))
    }

    pub(super) fn items(&self) -> Vec<Place<'a>> {
        let Some(value) = self.value else { return Vec::new() };
        let Value::Array(items) = value else {
            self.wrong_type("a list");
            return Vec::new();
        };
        if items.len() > ITEMS_MAX {
            let (path, count) = (self.name(), items.len());
            self.gaps
                .add(format!("of the {count} items of {path}, the first {ITEMS_MAX} were read"));
        }
        let item = |(index, value): (usize, &'a Value)| Place {
            source: self.source,
            path: format!("{}[{index}]", self.path),
            value: Some(value),
            gaps: self.gaps,
        };
        items.iter().take(ITEMS_MAX).enumerate().map(item).collect()
    }

    pub(super) fn exists(&self) -> bool {
        self.value.is_some()
    }

    /// Nothing for an empty text.
    pub(super) fn text(&self) -> Option<&'a str> {
        match self.value? {
            Value::String(text) => (!text.is_empty()).then_some(text.as_str()),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => {
                self.wrong_type("a text");
                None
            }
        }
    }

    /// A whole number, also where it is written as text.
    pub(super) fn integer(&self) -> Option<i64> {
        let read = match self.value? {
            Value::Number(number) => number.as_i64().or_else(|| {
                let number = number.as_f64().filter(|number| number.fract() == 0.0)?;
                (number.abs() < 9.0e15).then_some(number as i64)
            }),
            Value::String(text) => text.trim().parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        if read.is_none() {
            self.wrong_type("a whole number");
        }
        read
    }

    /// As processes end: anything from -2^31 to 2^31.
    pub(super) fn exit_code(&self) -> Option<i32> {
        let code = self.integer()?;
        let read = i32::try_from(code).ok();
        if read.is_none() {
            self.wrong_type("an exit code");
        }
        read
    }

    pub(super) fn truth(&self) -> Option<bool> {
        let read = self.value?.as_bool();
        if read.is_none() {
            self.wrong_type("true or false");
        }
        read
    }

    /// Nothing for "never", as Docker writes it, and then no gap either.
    pub(super) fn time(&self) -> Option<Wall> {
        let read = match self.value? {
            Value::String(text) if text.starts_with("0001-01-01") || text.is_empty() => {
                return None;
            }
            Value::String(text) => time::of_text(text),
            Value::Number(number) => number.as_f64().and_then(time::of_seconds),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        if read.is_none() {
            self.wrong_type("a time");
        }
        read
    }

    pub(super) fn fact(&self) -> Fact {
        match self.value {
            Some(Value::String(text)) => Fact::new(self.source, &self.path, text),
            // A whole subtree is never shown: it may be long, and hold what is secret.
            Some(Value::Array(_)) => Fact::new(self.source, &self.path, "[…]"),
            Some(Value::Object(_)) => Fact::new(self.source, &self.path, "{…}"),
            Some(value) => Fact::new(self.source, &self.path, value),
            None => Fact::new(self.source, &self.path, "absent"),
        }
    }

    /// The fact of this place in other words.
    pub(super) fn fact_of(&self, value: impl std::fmt::Display) -> Fact {
        Fact::new(self.source, &self.path, value)
    }

    pub(super) fn name(&self) -> String {
        format!("{} {}", self.source, self.path)
    }

    pub(super) fn gaps(&self) -> &'a Gaps {
        self.gaps
    }

    fn wrong_type(&self, wanted: &str) {
        self.gaps.add(format!("{} is not {wanted}, and was not read", self.name()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrong_types_are_absent_and_named_and_nulls_only_absent() {
        let value = json!({"a": {"b": [1, "2", 3.0, 2.5, true]}, "n": null, "t": 5, "e": ""});
        let gaps = Gaps::default();
        let root = Place::new("doc", "", &value, &gaps);
        assert_eq!(root.key("n").text(), None);
        assert_eq!(root.at("a.x.y").time(), None);
        assert_eq!(root.key("e").text(), None);
        assert!(gaps.0.borrow().is_empty());
        let numbers: Vec<_> = root.at("a.b").items().iter().map(Place::integer).collect();
        assert_eq!(numbers, [Some(1), Some(2), Some(3), None, None]);
        assert_eq!(root.key("t").text(), None);
        assert_eq!(
            gaps.into_list(),
            [
                "doc a.b[3] is not a whole number, and was not read",
                "doc a.b[4] is not a whole number, and was not read",
                "doc t is not a text, and was not read",
            ]
        );
    }

    #[test]
    fn gaps_are_bounded_in_number_and_length() {
        let gaps = Gaps::default();
        for number in 0..1_000 {
            gaps.add(format!("{number} {}", "ü".repeat(1_000)));
        }
        let list = gaps.into_list();
        assert_eq!((list.len(), list[0].chars().count()), (GAPS_MAX, GAP_CHARACTERS_MAX + 1));
    }
}

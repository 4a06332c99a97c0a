//! Where something stands in the text of a config: settings to lines and columns, and back.
//!
//! Owner: the config's errors. Invariants: lines and columns count from one, columns in characters,
//! as editors show them; of a setting that is not written the nearest table around it is named.
//! Absent: judging the text.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// Of the byte `offset`.
pub(super) fn place_at(text: &str, offset: usize) -> Place {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    Place {
        line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

/// A key as it stands in a path: quoted where it could be taken for something else.
pub(super) fn quoted(key: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(is_plain) { key.to_owned() } else { format!("{key:?}") }
}

/// A key below a path.
pub(super) fn joined(path: &str, key: &str) -> String {
    let key = quoted(key);
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// Of a setting that is no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Key,
    Value,
}

/// Where the setting stands: its value, or else the nearest that is written of the path to it.
/// `None`: nothing of it is.
pub(super) fn offset_of(text: &str, setting: &str, part: Part) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut found = None;
    search(root.get_ref(), "", &mut |path, key, value| {
        let rest = setting.strip_prefix(path);
        let is_on_the_way =
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        if is_on_the_way {
            let is_of_key = part == Part::Key || value.get_ref().is_table();
            let key = key.filter(|_| is_of_key);
            found = Some(key.unwrap_or_else(|| value.span()).start);
        }
    });
    found
}

/// The setting whose key or value is at the byte `offset`.
pub(super) fn setting_at(text: &str, offset: usize) -> Option<String> {
    let root = DeTable::parse(text).ok()?;
    let mut found = None;
    search(root.get_ref(), "", &mut |path, key, value| {
        let is_key = key.is_some_and(|key| key.contains(&offset));
        if is_key || value.span().contains(&offset) {
            found = Some(path.to_owned());
        }
    });
    found
}

/// Shows every key and item with its path, what is above first.
fn search(
    table: &DeTable<'_>,
    path: &str,
    show: &mut impl FnMut(&str, Option<Range<usize>>, &Spanned<DeValue<'_>>),
) {
    for (key, value) in table {
        let path = joined(path, key.get_ref());
        show(&path, Some(key.span()), value);
        search_value(value, &path, show);
    }
}

fn search_value(
    value: &Spanned<DeValue<'_>>,
    path: &str,
    show: &mut impl FnMut(&str, Option<Range<usize>>, &Spanned<DeValue<'_>>),
) {
    match value.get_ref() {
        DeValue::Table(table) => search(table, path, show),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                show(&path, None, item);
                search_value(item, &path, show);
            }
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[server]\nlisten = \"é\"\n\n[agents.a]\nturn = { attempts = 9 }\n\
                        env = { \"A.B\" = \"x\" }\n[[agents.a.inputs]]\npath = \"p\"\n\
                        [agents.a.inputs.x]\ny = 1\n[agents.b.turn]\nretry = \"no\"\n";

    #[test]
    fn a_setting_is_found_by_its_path_and_its_path_by_its_place() {
        for (setting, written) in [
            ("server.listen", "\"é\""),
            ("agents.a.turn.attempts", "9"),
            ("agents.a.env.\"A.B\"", "\"x\""),
            ("agents.a.inputs[0].path", "\"p\""),
            ("agents.a.inputs[0].x.y", "1"),
            ("agents.b.turn.retry", "\"no\""),
        ] {
            let offset = offset_of(TEXT, setting, Part::Value).unwrap();
            assert!(TEXT[offset..].starts_with(written), "{setting}: {}", &TEXT[offset..]);
            assert_eq!(setting_at(TEXT, offset).as_deref(), Some(setting));
        }
    }

    #[test]
    fn of_what_is_not_written_the_nearest_table_is_named() {
        let at = |setting: &str| {
            offset_of(TEXT, setting, Part::Value).map(|offset| place_at(TEXT, offset))
        };
        assert_eq!(at("agents.a.command"), Some(Place { line: 4, column: 9 }));
        assert_eq!(at("agents.b.turn.attempts"), Some(Place { line: 11, column: 11 }));
        assert_eq!(at("agents.ab"), at("agents"), "a name that begins alike is another");
        assert_eq!(at("prices.currency"), None);
    }

    #[test]
    fn columns_count_characters() {
        let text = "a = \"ééé\" x";
        let offset = text.find('x').unwrap();
        assert_eq!(place_at(text, offset), Place { line: 1, column: 11 });
        assert_eq!(place_at(text, 1_000).line, 1);
        assert_eq!(place_at("a\r\nb", 3), Place { line: 2, column: 1 });
    }
}

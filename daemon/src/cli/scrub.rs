//! Foreign text made safe to show: what an agent wrote must not drive the reader's terminal.
//!
//! Invariants: the result has no control character but, in a reply, new lines and tabs; and no
//! character that reorders what stands around it (Unicode bidirectional controls, "Trojan Source").
//! Absent: any judgement of the words.

use std::borrow::Cow;

/// For tables, status lines and evidence: one line, where control characters are seen as `\n`,
/// `\u{1b}` and so on.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            hostile if is_hostile(hostile) => shown.extend(hostile.escape_unicode()),
            harmless => shown.push(harmless),
        }
    }
    Cow::Owned(shown)
}

/// For replies on a terminal: new lines and tabs stay, other control characters go.
pub(crate) fn reply(text: &str) -> Cow<'_, str> {
    let stays = |character: char| matches!(character, '\n' | '\t') || !is_hostile(character);
    if text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().filter(|character| stays(*character)).collect())
}

/// For JSON on its way out: hostile characters, which stand inside of strings only, in JSON's own
/// escapes. It stays the same document.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    let stays = |character: char| character == '\n' || !is_hostile(character);
    if text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    let escaped = |character: char| {
        if stays(character) {
            character.to_string()
        } else {
            format!("\\u{:04x}", u32::from(character))
        }
    };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// At most `characters_max` of them, and whether that was all.
pub(crate) fn shortened(text: &str, characters_max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(characters_max) {
        None => Cow::Borrowed(text),
        Some(_) => {
            let kept: String = text.chars().take(characters_max.saturating_sub(1)).collect();
            Cow::Owned(format!("{kept}…"))
        }
    }
}

fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_character_is_gone_from_both_forms() {
        let every: String = (0..=0x2fff_u32).filter_map(char::from_u32).collect();
        assert!(!line(&every).chars().any(is_hostile));
        let rest: String = reply(&every).chars().filter(|c| is_hostile(*c)).collect();
        assert_eq!(rest, "\t\n");
    }

    #[test]
    fn harmless_text_is_not_touched() {
        let text = "grüße 🐭 — 日本語";
        assert!(matches!(line(text), Cow::Borrowed(_)));
        assert!(matches!(reply("a\n\tb"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({"a": "\u{1b}[2J\u{9b}\u{7f}\u{202e}\n ü"});
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let shown = json(&pretty);
        assert!(!shown.chars().any(|c| is_hostile(c) && c != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn shortening_counts_characters_and_says_so() {
        assert_eq!(shortened("grüße", 5), "grüße");
        assert_eq!(shortened("grüße!", 5), "grüß…");
    }
}

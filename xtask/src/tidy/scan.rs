//! A light look at Rust source: what is code, what is comment, what is text in quotes.
//!
//! Owner: `tidy`. Invariants: the two masks have the length of the source, so an offset means the
//! same place in all three; newlines stay in both. Absent: a parser; macros are not expanded, and
//! a brace inside a const generic argument of a signature is taken for the body.

use std::ops::Range;

#[derive(Debug)]
pub(crate) struct Scan {
    /// The source with comments and quoted text blanked.
    pub(crate) code: String,
    /// The source with all but comments blanked.
    pub(crate) comments: String,
    /// What stands between quotes, by offset, without the quotes.
    pub(crate) literals: Vec<Range<usize>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// From the keyword to the closing brace, both included.
    pub(crate) range: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Quoted,
}

impl Scan {
    pub(crate) fn new(source: &str) -> Scan {
        let bytes = source.as_bytes();
        let mut kinds = vec![Kind::Code; bytes.len()];
        let mut literals = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (kind, end) = piece(source, at);
            kinds[at..end].fill(kind);
            if kind == Kind::Quoted {
                literals.push(inside_of_quotes(&source[at..end], at));
            }
            at = end;
        }
        Scan {
            code: masked(source, &kinds, Kind::Code),
            comments: masked(source, &kinds, Kind::Comment),
            literals,
        }
    }

    /// Functions with a body, outer before inner.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for start in words(&self.code, "fn") {
            let after = self.code[start + 2..].trim_start();
            // `fn(u8) -> u8` is a type.
            if after.is_empty() || after.starts_with('(') {
                continue;
            }
            let name = after.split(|c: char| !is_word(c)).next().unwrap_or_default().to_string();
            if let Some(end) = item_end(&self.code, start)
                && self.code[..end].ends_with('}')
            {
                functions.push(Function { name, range: start..end });
            }
        }
        functions
    }

    /// Attributes with their offsets, as text without white space: `#[cfg(test)]`.
    pub(crate) fn attributes(&self) -> Vec<(Range<usize>, String)> {
        let mut attributes = Vec::new();
        for (start, _) in self.code.match_indices('#') {
            let rest = self.code[start + 1..].trim_start_matches('!');
            if !rest.starts_with('[') {
                continue;
            }
            let open = self.code.len() - rest.len();
            if let Some(end) = closing(&self.code, open) {
                let text = self.code[start..end].split_whitespace().collect();
                attributes.push((start..end, text));
            }
        }
        attributes
    }

    /// What is compiled for tests only: items under `#[cfg(test)]`, or the whole file.
    pub(crate) fn test_ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (range, text) in self.attributes() {
            if text == "#![cfg(test)]" {
                return std::iter::once(0..self.code.len()).collect();
            }
            let nested = ranges.last().is_some_and(|last| range.start < last.end);
            if is_test_condition(&text) && !nested {
                let end = item_end(&self.code, range.end).unwrap_or(self.code.len());
                ranges.push(range.start..end);
            }
        }
        ranges
    }

    /// Names of modules declared as `#[cfg(test)] mod name;`.
    pub(crate) fn test_module_files(&self) -> Vec<String> {
        let declared = self.test_ranges().into_iter().filter_map(|range| {
            let item = self.code[range].rsplit(']').next()?.trim().strip_suffix(';')?;
            let (_, name) = item.rsplit_once("mod ")?;
            Some(name.trim().to_string())
        });
        declared.collect()
    }
}

fn is_test_condition(attribute: &str) -> bool {
    attribute == "#[cfg(test)]" || attribute.starts_with("#[cfg(all(test,")
}

/// The piece that starts here: its kind and its end.
fn piece(source: &str, at: usize) -> (Kind, usize) {
    let rest = &source[at..];
    let starts_word = !source[..at].ends_with(is_word);
    if rest.starts_with("//") {
        (Kind::Comment, at + rest.find('\n').unwrap_or(rest.len()))
    } else if rest.starts_with("/*") {
        (Kind::Comment, at + block_comment_len(rest))
    } else if rest.starts_with('"') {
        (Kind::Quoted, at + quoted_len(rest, '"'))
    } else if rest.starts_with('\'') {
        match char_literal_len(rest) {
            Some(len) => (Kind::Quoted, at + len),
            None => (Kind::Code, at + 1),
        }
    } else if starts_word && let Some(len) = raw_string_len(rest) {
        (Kind::Quoted, at + len)
    } else {
        (Kind::Code, at + code_len(rest))
    }
}

/// A whole word, or everything up to where a word, a comment or a quote may begin.
fn code_len(rest: &str) -> usize {
    let may_begin = |c: char| is_word(c) || matches!(c, '/' | '"' | '\'');
    let end = if rest.starts_with(is_word) {
        rest.find(|c| !is_word(c))
    } else {
        rest.char_indices().skip(1).find(|(_, c)| may_begin(*c)).map(|(at, _)| at)
    };
    end.unwrap_or(rest.len())
}

fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + 1;
        }
    }
    rest.len()
}

/// None for a lifetime or a label.
fn char_literal_len(rest: &str) -> Option<usize> {
    let mut chars = rest.chars().skip(1);
    let first = chars.next()?;
    let is_literal = first == '\\' || chars.next() == Some('\'');
    is_literal.then(|| quoted_len(rest, '\''))
}

fn raw_string_len(rest: &str) -> Option<usize> {
    let marked = rest.strip_prefix("br").or_else(|| rest.strip_prefix("cr"));
    let marked = marked.or_else(|| rest.strip_prefix('r'))?;
    let hashes = marked.len() - marked.trim_start_matches('#').len();
    // `r#match` is a raw identifier.
    let body = marked[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let body_len = body.find(&close).map_or(body.len(), |at| at + close.len());
    Some(rest.len() - body.len() + body_len)
}

fn inside_of_quotes(literal: &str, at: usize) -> Range<usize> {
    let quote = if literal.starts_with('\'') { '\'' } else { '"' };
    let open = literal.find(quote).map_or(0, |found| found + 1);
    let close = literal.rfind(quote).filter(|close| *close >= open).unwrap_or(literal.len());
    at + open..at + close
}

fn masked(source: &str, kinds: &[Kind], kept: Kind) -> String {
    let keep = |(byte, kind): (u8, &Kind)| {
        if *kind == kept || byte == b'\n' { byte } else { b' ' }
    };
    let bytes = source.bytes().zip(kinds).map(keep).collect();
    String::from_utf8(bytes).expect("pieces end between characters, so whole ones are blanked")
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Offsets of a whole word.
pub(crate) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        !text[..*at].ends_with(is_word) && !text[at + word.len()..].starts_with(is_word)
    })
}

/// The end of the item that starts here: its `;` or the brace that closes its body. An attribute
/// in between belongs to the item.
fn item_end(code: &str, start: usize) -> Option<usize> {
    let mut at = start;
    while let Some(found) = code[at..].find(['(', '[', '{', ';', '}']) {
        at += found;
        match code.as_bytes()[at] {
            b';' => return Some(at + 1),
            b'{' => return closing(code, at),
            b'}' => return None,
            _ => at = closing(code, at)?,
        }
    }
    None
}

/// The offset after the bracket that closes the one at `open`.
fn closing(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The line of an offset, counted from 1.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].bytes().filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(source: &str) -> String {
        Scan::new(source).code
    }

    #[test]
    fn comments_and_quoted_text_are_blanked_and_offsets_stay() {
        let source = "let a = \"x{\"; // { é\nlet b = '{'; /* { /* } */ */ done";
        let scan = Scan::new(source);
        assert_eq!(scan.code.len(), source.len());
        assert_eq!(scan.comments.len(), source.len());
        assert!(!scan.code.contains('{') && scan.code.ends_with("done"), "{}", scan.code);
        assert!(scan.comments.contains("// { é") && scan.comments.contains("/* } */ */"));
    }

    #[test]
    fn raw_strings_end_at_their_own_hashes() {
        assert_eq!(code("r#\"a \" } \"#;x").trim(), ";x");
        assert_eq!(code("br\"}\";x").trim(), ";x");
        assert_eq!(code("r#match;x"), "r#match;x");
    }

    #[test]
    fn an_escaped_quote_does_not_end_a_literal() {
        assert_eq!(code(r#""a\"}" x"#).trim(), "x");
        assert_eq!(code(r"'\'' x").trim(), "x");
        assert_eq!(code(r#"b'"' x"#).replace(' ', ""), "bx");
    }

    #[test]
    fn lifetimes_and_labels_are_code() {
        let source = "fn f<'a>(x: &'a str) { 'outer: loop { break 'outer } }";
        assert_eq!(code(source), source);
    }

    #[test]
    fn literals_are_found_without_their_quotes() {
        let source = "f(\"one\", r#\"two\"#, 'c')";
        let found: Vec<_> = Scan::new(source).literals;
        let found: Vec<&str> = found.into_iter().map(|range| &source[range]).collect();
        assert_eq!(found, ["one", "two", "c"]);
    }

    #[test]
    fn functions_are_found_with_their_bodies_and_types_are_not() {
        let source = "trait T { fn no_body(&self); }\ntype F = fn(u8);\n\
            fn one(a: [u8; 3]) -> [u8; 2]\n{\n fn inner() {}\n}\n";
        let scan = Scan::new(source);
        let functions = scan.functions();
        let names: Vec<&str> = functions.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["one", "inner"]);
        assert!(source[functions[0].range.clone()].ends_with("inner() {}\n}"));
    }

    #[test]
    fn only_items_for_tests_are_test_ranges() {
        let source = "#[cfg(test)]\nmod testing;\nfn a() {}\n#[cfg(test)]\n#[path = \"t.rs\"]\n\
            mod tests { #[cfg(test)] fn x() {} }\nfn b() {}\n";
        let scan = Scan::new(source);
        let ranges = scan.test_ranges();
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        assert_eq!(&source[ranges[0].clone()], "#[cfg(test)]\nmod testing;");
        assert!(source[ranges[1].clone()].ends_with("fn x() {} }"));
        assert_eq!(scan.test_module_files(), ["testing"]);
    }

    #[test]
    fn a_file_wide_test_condition_covers_the_file() {
        let source = "//! Tests.\n#![cfg(test)]\nfn a() {}\n";
        let ranges = Scan::new(source).test_ranges();
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0], 0..source.len());
    }

    #[test]
    fn words_are_whole_words() {
        assert_eq!(words("fn fnord my_fn fn", "fn").collect::<Vec<_>>(), [0, 15]);
    }
}

//! The rules for one Rust file, and the sizes that are counted over several.
//!
//! Owner: `tidy`. Invariants: each rule names a line and what to do; comments and quoted text are
//! told apart from code (`scan`), so this file may quote what it forbids.
//! Absent: what clippy and rustfmt already refuse.

use super::Violation;
use super::scan::{Scan, line_of, words};

pub(crate) const COLUMNS_MAX: usize = 100;
pub(crate) const FUNCTION_LINES_MAX: usize = 70;
pub(crate) const FILE_LINES_MAX: usize = 500;

/// A part of core that is read, and counted, by itself.
pub(crate) struct Room {
    pub(crate) name: &'static str,
    pub(crate) modules: &'static [&'static str],
    pub(crate) lines_max: usize,
}

/// The first one has whatever no other one names.
pub(crate) const CORE_ROOMS: &[Room] = &[
    Room { name: "machine", modules: &[], lines_max: 4_500 },
    Room {
        name: "policies",
        modules: &[
            "agent_breaker",
            "backoff",
            "breaker",
            "hold",
            "policy",
            "queue",
            "rollout",
            "sizing",
            "start_budget",
            "watchdog",
        ],
        lines_max: 1_500,
    },
    Room {
        name: "vocabulary",
        modules: &["cause", "evidence", "id", "journal", "limits", "record", "time"],
        lines_max: 2_000,
    },
    Room { name: "diagnosis", modules: &["diagnosis"], lines_max: 1_500 },
    Room { name: "files", modules: &["manifest"], lines_max: 1_000 },
];

const LEFTOVERS: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];

/// What the core may not even name: the world, and whatever differs from run to run.
const NOT_IN_CORE: &[&str] = &[
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "rand",
    "tokio",
    "async",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
];

/// One file with what the rules need to know about it.
#[derive(Debug)]
pub(crate) struct RustFile<'a> {
    /// Relative to the root, with `/`.
    pub(crate) path: &'a str,
    pub(crate) source: &'a str,
    pub(crate) scan: Scan,
    /// Compiled for tests only: an integration test, a benchmark, or a `#[cfg(test)] mod`.
    pub(crate) test_only: bool,
}

impl RustFile<'_> {
    pub(crate) fn check(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        self.check_lines(&mut violations);
        self.check_functions(&mut violations);
        self.check_attributes(&mut violations);
        self.check_comments(&mut violations);
        if self.path.starts_with("core/src/") {
            self.check_purity(&mut violations);
        }
        let lines = self.non_test_lines();
        if lines > FILE_LINES_MAX {
            let what = format!("{lines} non-test lines, at most {FILE_LINES_MAX}: split the file");
            violations.push(self.violation(1, "file-length", what));
        }
        violations
    }

    /// Lines outside of items under `#[cfg(test)]`.
    pub(crate) fn non_test_lines(&self) -> usize {
        if self.test_only {
            return 0;
        }
        let test_lines: usize = self
            .scan
            .test_ranges()
            .into_iter()
            .map(|range| self.source[range].bytes().filter(|byte| *byte == b'\n').count() + 1)
            .sum();
        self.source.lines().count().saturating_sub(test_lines)
    }

    fn check_lines(&self, violations: &mut Vec<Violation>) {
        if !self.source.starts_with("//!") {
            let what = "the first line must be `//!`: purpose, owner, invariants, what is absent";
            violations.push(self.violation(1, "file-header", what));
        }
        for (index, line) in self.source.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                let what = format!("{columns} columns, at most {COLUMNS_MAX}: break the line");
                violations.push(self.violation(index + 1, "line-length", what));
            }
            if line.ends_with([' ', '\t', '\r']) {
                let what = "white space at the end of the line: remove it";
                violations.push(self.violation(index + 1, "white-space", what));
            }
            if line.contains('\t') {
                let what = "a tab: indent with spaces, write \\t inside quotes";
                violations.push(self.violation(index + 1, "white-space", what));
            }
        }
    }

    fn check_functions(&self, violations: &mut Vec<Violation>) {
        for function in self.scan.functions() {
            let lines = self.source[function.range.clone()].lines().count();
            if lines > FUNCTION_LINES_MAX {
                let what = format!(
                    "`{}` has {lines} lines, at most {FUNCTION_LINES_MAX}: split it",
                    function.name
                );
                let first = line_of(self.source, function.range.start);
                violations.push(self.violation(first, "function-length", what));
            }
        }
    }

    fn check_attributes(&self, violations: &mut Vec<Violation>) {
        for (range, text) in self.scan.attributes() {
            if words(&text, "allow").any(|at| text[at..].starts_with("allow(")) {
                let line = line_of(self.source, range.start);
                let what = "allow() outlives its reason: use #[expect(lint, reason = \"…\")]";
                violations.push(self.violation(line, "no-allow", what));
            }
        }
        for at in words(&self.scan.code, "todo") {
            if self.scan.code[at..].starts_with("todo!") {
                let line = line_of(self.source, at);
                let what = "half-built work lives in docs/NEXT.md: finish it or take it out";
                violations.push(self.violation(line, "no-leftovers", what));
            }
        }
    }

    fn check_comments(&self, violations: &mut Vec<Violation>) {
        for (index, comment) in self.scan.comments.lines().enumerate() {
            violations.extend(check_comment(self.path, index + 1, comment.trim()));
        }
    }

    fn check_purity(&self, violations: &mut Vec<Violation>) {
        for word in NOT_IN_CORE {
            for at in words(&self.scan.code, word) {
                let line = line_of(self.source, at);
                let what = format!(
                    "`{word}` in core: time, randomness and the world come as arguments of events"
                );
                violations.push(self.violation(line, "core-purity", what));
            }
        }
    }

    fn violation(&self, line: usize, rule: &'static str, what: impl Into<String>) -> Violation {
        Violation::new(self.path, line, rule, what)
    }
}

/// The rules for a comment line of any language.
pub(crate) fn check_comment(path: &str, line: usize, comment: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for leftover in LEFTOVERS {
        if words(comment, leftover).next().is_some() {
            let what = format!("{leftover}: do it, or write it up in docs/NEXT.md");
            violations.push(Violation::new(path, line, "no-leftovers", what));
        }
    }
    if has_date(comment) {
        let what = "a date in a comment: history is in the log, say what is true now";
        violations.push(Violation::new(path, line, "no-dates", what));
    }
    violations
}

/// A year and a month of this century with a dash between.
fn has_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.windows(7).enumerate().any(|(at, window)| {
        let is_start = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        let digits = [0, 1, 2, 3, 5, 6].iter().all(|index| window[*index].is_ascii_digit());
        is_start && digits && window.starts_with(b"20") && window[4] == b'-'
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "//! A file.\n";

    fn rules_at(path: &str, body: &str) -> Vec<String> {
        let source = format!("{HEADER}{body}");
        let scan = Scan::new(&source);
        let file = RustFile { path, source: &source, scan, test_only: false };
        let seen = file.check();
        seen.into_iter().map(|violation| format!("{}:{}", violation.line, violation.rule)).collect()
    }

    fn rules(body: &str) -> Vec<String> {
        rules_at("edge/src/lib.rs", body)
    }

    fn function_of(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2))
    }

    #[test]
    fn a_clean_file_has_no_violation() {
        assert_eq!(rules("fn f() {}\n"), Vec::<String>::new());
    }

    #[test]
    fn a_file_without_a_header_is_refused() {
        let source = "fn f() {}\n";
        let file = RustFile { path: "a.rs", source, scan: Scan::new(source), test_only: true };
        assert_eq!(file.check()[0].rule, "file-header");
    }

    #[test]
    fn a_line_may_have_100_columns_and_not_101() {
        let line = |columns: usize| format!("// {}\n", "é".repeat(columns - 3));
        assert_eq!(rules(&line(100)), Vec::<String>::new());
        assert_eq!(rules(&line(101)), ["2:line-length"]);
    }

    #[test]
    fn white_space_at_the_end_and_tabs_are_refused() {
        assert_eq!(rules("fn f() {} \n"), ["2:white-space"]);
        assert_eq!(rules("fn f() {\n\tg();\n}\n"), ["3:white-space"]);
        assert_eq!(rules("fn f() {}\r\n"), Vec::<String>::new(), "git decides on line ends");
    }

    #[test]
    fn a_function_may_have_70_lines_and_not_71() {
        assert_eq!(rules(&function_of(70)), Vec::<String>::new());
        assert_eq!(rules(&function_of(71)), ["2:function-length"]);
    }

    #[test]
    fn a_file_may_have_500_lines_beside_its_tests() {
        let code = "const A: u8 = 1;\n";
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", code.repeat(600));
        assert_eq!(rules(&(code.repeat(499) + &tests)), Vec::<String>::new());
        assert_eq!(rules(&(code.repeat(500) + &tests)), ["1:file-length"]);
    }

    #[test]
    fn code_after_a_test_item_is_counted() {
        let early = format!("#[cfg(test)]\nmod testing;\n{}", "const A: u8 = 1;\n".repeat(500));
        assert_eq!(rules(&early), ["1:file-length"]);
    }

    #[test]
    fn allow_attributes_are_refused_in_every_form() {
        assert_eq!(rules("#[allow(dead_code)]\nfn f() {}\n"), ["2:no-allow"]);
        assert_eq!(rules("#![ allow (dead_code)]\n"), ["2:no-allow"]);
        assert_eq!(rules("#[cfg_attr(test, allow(dead_code))]\nfn f() {}\n"), ["2:no-allow"]);
        let clean = "#[expect(dead_code, reason = \"#[allow(x)]\")]\nfn f() { allow(1) }\n";
        assert_eq!(rules(clean), Vec::<String>::new());
    }

    #[test]
    fn leftovers_are_refused_in_comments_and_fine_in_text() {
        assert_eq!(rules("// TODO: more\n"), ["2:no-leftovers"]);
        assert_eq!(rules("/* a\n FIXME */\n"), ["3:no-leftovers"]);
        assert_eq!(rules("fn f() { todo!() }\n"), ["2:no-leftovers"]);
        assert_eq!(rules("const A: &str = \"TODO\"; // TODOS\n"), Vec::<String>::new());
    }

    #[test]
    fn dates_are_refused_in_comments() {
        assert_eq!(rules("// since 2026-03\n"), ["2:no-dates"]);
        assert_eq!(rules("// RFC 3339, like \"2026\", 1.2026-03\n"), ["2:no-dates"]);
        let clean = "// 12026-03 and 2026 - 03 and v2026-03\nconst A: &str = \"2026-03-01\";\n";
        assert_eq!(rules(clean), Vec::<String>::new());
    }

    #[test]
    fn core_names_no_clock_no_chance_and_no_world() {
        let path = "core/src/session.rs";
        assert_eq!(rules_at(path, "use std::time::Instant;\n"), ["2:core-purity"]);
        assert_eq!(rules_at(path, "use std::collections::HashMap;\n"), ["2:core-purity"]);
        assert_eq!(rules_at(path, "// no HashMap\nconst A: &str = \"Instant\";\n"), [""; 0]);
        assert_eq!(rules_at(path, "use std::fs;\n"), ["2:core-purity"]);
        assert_eq!(rules_at(path, "let process = hold.process;\n"), [""; 0]);
        assert_eq!(rules("use std::time::Instant;\n"), [""; 0], "other crates may");
    }
}

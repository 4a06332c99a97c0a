//! The rules for pages: causes, decisions, links; and for text files of every kind.
//!
//! Owner: `tidy`. Invariants: the codes in core and the pages in docs/causes are the same set;
//! decisions are numbered 0001, 0002, … without gaps. Absent: links to the web and to headings.

use std::collections::BTreeSet;

use super::Violation;
use super::rust_file::check_comment;
use super::scan::{Scan, line_of};

pub(crate) const CAUSE_SOURCE: &str = "core/src/cause.rs";
pub(crate) const CAUSE_PAGES: &str = "docs/causes/";
pub(crate) const DECISIONS: &str = "docs/adr/";
const CAUSE_HEADINGS: &[&str] = &["Symptom", "Evidence", "What Dormouse does", "What you do"];

/// In two halves, so that this file may pass its own rule.
const WORKPLACE: &str = concat!("/wo", "rk/");

/// The codes with their lines: the quoted words in the body of `fn code`.
pub(crate) fn cause_codes(source: &str) -> Vec<(String, usize)> {
    let scan = Scan::new(source);
    let functions = scan.functions();
    let Some(function) = functions.iter().find(|function| function.name == "code") else {
        return Vec::new();
    };
    let inside = scan.literals.iter().filter(|literal| {
        function.range.start <= literal.start && literal.end <= function.range.end
    });
    inside
        .map(|literal| (source[literal.clone()].to_string(), line_of(source, literal.start)))
        .collect()
}

/// `pages` are the names of the files in docs/causes.
pub(crate) fn check_causes(source: Option<&str>, pages: &BTreeSet<String>) -> Vec<Violation> {
    let codes = cause_codes(source.unwrap_or_default());
    if codes.is_empty() {
        let what = "no `fn code` with quoted cause codes found: keep them here, tidy reads them";
        return vec![Violation::new(CAUSE_SOURCE, 1, "cause-pages", what)];
    }
    let mut violations = Vec::new();
    let mut expected = BTreeSet::from(["README.md".to_string()]);
    for (code, line) in codes {
        let page = format!("{code}.md");
        if !pages.contains(&page) {
            let what = format!("cause {code:?} has no page: write {CAUSE_PAGES}{page}");
            violations.push(Violation::new(CAUSE_SOURCE, line, "cause-pages", what));
        }
        if !expected.insert(page) {
            let what = format!("two causes have the code {code:?}: name them apart");
            violations.push(Violation::new(CAUSE_SOURCE, line, "cause-pages", what));
        }
    }
    for page in pages.difference(&expected) {
        let what = format!("no cause has this code: remove the page or add it to {CAUSE_SOURCE}");
        let path = format!("{CAUSE_PAGES}{page}");
        violations.push(Violation::new(&path, 1, "cause-pages", what));
    }
    violations
}

pub(crate) fn check_cause_headings(path: &str, source: &str) -> Vec<Violation> {
    let headings: Vec<&str> = source
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim())
        .collect();
    let missing = CAUSE_HEADINGS.iter().filter(|heading| !headings.contains(heading));
    missing
        .map(|heading| {
            let what = format!("the heading \"{heading}\" is missing: each cause page has it");
            Violation::new(path, 1, "cause-pages", what)
        })
        .collect()
}

/// `names` are the names of the files in docs/adr.
pub(crate) fn check_decisions(names: &BTreeSet<String>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut expected = 1;
    for name in names.iter().filter(|name| *name != "README.md") {
        let path = format!("{DECISIONS}{name}");
        let Some(number) = decision_number(name) else {
            let what = "the name must be NNNN-title-in-lower-case.md";
            violations.push(Violation::new(&path, 1, "decisions", what));
            continue;
        };
        if number != expected {
            let what = format!("number {number:04}, expected {expected:04}: no gaps, no doubles");
            violations.push(Violation::new(&path, 1, "decisions", what));
        }
        expected = number + 1;
    }
    violations
}

fn decision_number(name: &str) -> Option<u32> {
    let (number, title) = name.strip_suffix(".md")?.split_once('-')?;
    let title_is_plain = !title.is_empty()
        && title.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let number_is_plain = number.len() == 4 && number.chars().all(|c| c.is_ascii_digit());
    (title_is_plain && number_is_plain).then(|| number.parse().ok())?
}

/// `exists` answers for a path relative to the root, which may be a folder.
pub(crate) fn check_links(
    path: &str,
    source: &str,
    exists: &dyn Fn(&str) -> bool,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (line, target) in links(source) {
        let is_elsewhere = target.contains("://") || target.starts_with("mailto:");
        let file = target.split(['#', '?']).next().unwrap_or_default();
        if is_elsewhere || file.is_empty() {
            continue;
        }
        let resolved = resolve(path, file);
        if !resolved.as_deref().is_some_and(exists) {
            let what = format!("the link to {target:?} leads nowhere: correct it");
            violations.push(Violation::new(path, line, "links", what));
        }
    }
    violations
}

/// Targets of `[text](target)` and `[label]: target` outside of code.
fn links(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fence: Option<&str> = None;
    for (index, line) in source.lines().enumerate() {
        let start = line.trim_start();
        let marker = ["```", "~~~"].into_iter().find(|marker| start.starts_with(marker));
        match (fence, marker) {
            (None, Some(marker)) => fence = Some(marker),
            (Some(open), Some(marker)) if open == marker => fence = None,
            (Some(_), _) => {}
            (None, None) => {
                let targets = line_links(&without_inline_code(line));
                found.extend(targets.into_iter().map(|target| (index + 1, target)));
            }
        }
    }
    found
}

fn line_links(line: &str) -> Vec<String> {
    let mut raw: Vec<&str> =
        line.split("](").skip(1).map(|rest| rest.split(')').next().unwrap_or_default()).collect();
    if line.starts_with('[')
        && let Some((_, target)) = line.split_once("]: ")
    {
        raw.push(target);
    }
    let first_words = raw.into_iter().filter_map(|target| target.split_whitespace().next());
    first_words.map(|target| target.trim_matches(['<', '>']).to_string()).collect()
}

fn without_inline_code(line: &str) -> String {
    line.split('`').enumerate().filter(|(index, _)| index % 2 == 0).map(|(_, part)| part).collect()
}

/// Relative to the root; None when it leaves the tree.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    if !target.starts_with('/') {
        parts.extend(from.split('/'));
        parts.pop();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Rules for every text file: no path of one machine; in `#` languages no leftovers in comments.
pub(crate) fn check_text(path: &str, source: &str) -> Vec<Violation> {
    let has_hash_comments = [".toml", ".py", ".yml", ".yaml", ".ci/run", ".sh", "Dockerfile"]
        .iter()
        .any(|suffix| path.ends_with(suffix));
    let mut violations = Vec::new();
    for (index, line) in source.lines().enumerate() {
        if names_workplace(line) {
            let what = "a path of one machine: make it relative to the root";
            violations.push(Violation::new(path, index + 1, "no-machine-paths", what));
        }
        if has_hash_comments && let Some((_, comment)) = line.split_once('#') {
            violations.extend(check_comment(path, index + 1, comment));
        }
    }
    violations
}

fn names_workplace(line: &str) -> bool {
    let is_absolute =
        |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.~})]/".contains(c));
    line.match_indices(WORKPLACE).any(|(at, _)| is_absolute(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAUSES: &str = "impl Cause {\n fn code(&self) -> &'static str {\n  match self {\n   \
        A => \"agent_oom\",\n   B => \"stuck\",\n  }\n }\n fn other() { \"no_code\" }\n}\n";

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn shown(violations: Vec<Violation>) -> Vec<String> {
        violations.iter().map(|seen| format!("{}:{}", seen.path, seen.line)).collect()
    }

    #[test]
    fn codes_are_the_quoted_words_of_one_function() {
        let expected = [("agent_oom".to_string(), 4), ("stuck".to_string(), 5)];
        assert_eq!(cause_codes(CAUSES), expected);
    }

    #[test]
    fn every_cause_has_a_page_and_every_page_a_cause() {
        let both = names(&["README.md", "agent_oom.md", "stuck.md"]);
        assert_eq!(shown(check_causes(Some(CAUSES), &both)), [""; 0]);
        let one = names(&["agent_oom.md", "gone.md"]);
        let seen = shown(check_causes(Some(CAUSES), &one));
        assert_eq!(seen, ["core/src/cause.rs:5", "docs/causes/gone.md:1"]);
    }

    #[test]
    fn two_causes_do_not_share_a_code() {
        let doubled = CAUSES.replace("stuck", "agent_oom");
        let seen = shown(check_causes(Some(&doubled), &names(&["agent_oom.md"])));
        assert_eq!(seen, ["core/src/cause.rs:5"]);
    }

    #[test]
    fn a_tree_without_cause_codes_is_refused() {
        assert_eq!(shown(check_causes(None, &names(&[]))), ["core/src/cause.rs:1"]);
        assert_eq!(shown(check_causes(Some("fn a() {}"), &names(&[]))), ["core/src/cause.rs:1"]);
    }

    #[test]
    fn a_cause_page_has_its_four_headings() {
        let page = "# agent_oom\n## Symptom\n## Evidence\n## What Dormouse does\n## What you do\n";
        assert_eq!(shown(check_cause_headings("p.md", page)), [""; 0]);
        let seen = check_cause_headings("p.md", &page.replace("## Evidence", "Evidence"));
        assert_eq!(seen.len(), 1);
        assert!(seen[0].to_string().contains("\"Evidence\""), "{}", seen[0]);
    }

    #[test]
    fn decisions_are_numbered_without_gaps() {
        let clean = names(&["0001-one-loop.md", "0002-sqlite-3.md", "README.md"]);
        assert_eq!(shown(check_decisions(&clean)), [""; 0]);
        let gap = names(&["0001-a.md", "0003-b.md", "0004-c.md"]);
        assert_eq!(shown(check_decisions(&gap)), ["docs/adr/0003-b.md:1"]);
        let double = names(&["0001-a.md", "0001-b.md", "0002-c.md"]);
        assert_eq!(shown(check_decisions(&double)), ["docs/adr/0001-b.md:1"]);
        let misnamed = names(&["0001-a.md", "2-b.md", "0002-Big.md", "notes.txt"]);
        assert_eq!(check_decisions(&misnamed).len(), 3);
    }

    #[test]
    fn links_lead_somewhere() {
        let exists = |path: &str| ["docs/a.md", "README.md", "docs"].contains(&path);
        let check = |page: &str| shown(check_links("docs/b.md", page, &exists));
        let clean = "[a](a.md) [up](../README.md#top) [web](https://x.y/z) [here](#part)\n\
            [root](/docs/a.md) ![t](a.md \"title\") [d](../docs/)\n[l]: a.md\n";
        assert_eq!(check(clean), [""; 0]);
        assert_eq!(check("fine\n[x](b/a.md)\n"), ["docs/b.md:2"]);
        assert_eq!(check("[l]: gone.md\n"), ["docs/b.md:1"]);
        assert_eq!(check("[x](../../outside.md)\n"), ["docs/b.md:1"]);
    }

    #[test]
    fn links_inside_code_are_not_links() {
        let page = "`[x](gone.md)`\n```\n[x](gone.md)\n```\n    text [y](gone.md)\n";
        assert_eq!(shown(check_links("a.md", page, &|_| false)), ["a.md:5"]);
    }

    #[test]
    fn a_path_of_one_machine_is_refused_everywhere() {
        let bad = format!("see {WORKPLACE}main\n");
        assert_eq!(shown(check_text("README.md", &bad)), ["README.md:1"]);
        let clean = format!("./target{WORKPLACE}x /workspace/ https://a.b{WORKPLACE}\n");
        assert_eq!(shown(check_text("README.md", &clean)), [""; 0]);
    }

    #[test]
    fn comments_of_hash_languages_are_held_to_the_same_rules() {
        assert_eq!(shown(check_text("a.py", "x = 1  # TODO more\n")), ["a.py:1"]);
        assert_eq!(shown(check_text("a.toml", "a = \"TODO\"\n")), [""; 0]);
        assert_eq!(shown(check_text("a.md", "# TODO\n")), [""; 0]);
    }
}

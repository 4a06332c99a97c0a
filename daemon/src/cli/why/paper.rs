//! Headed sections on a terminal, or as Markdown for a report.
//!
//! Invariants: every foreign word is escaped here, so that no caller can forget it; in Markdown
//! what is not a sentence stands in a fence that nothing inside can close. Absent: what is said.

use super::super::scrub;
use super::super::table::aligned;
use super::super::terminal::Tone;

#[derive(Debug)]
pub(crate) struct Section {
    heading: String,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Sentences(Vec<String>),
    Bullets(Vec<String>),
    Table(Vec<[String; 4]>),
    /// A line that introduces, and lines that somebody else wrote.
    Quote(String, Vec<String>),
    Diff(Vec<String>),
}

impl Section {
    pub(crate) fn new(heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), parts: Vec::new() }
    }

    pub(crate) fn sentences(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.parts.push(Part::Sentences(lines.into_iter().collect()));
        self
    }

    pub(crate) fn bullets(mut self, items: impl IntoIterator<Item = String>) -> Self {
        self.parts.push(Part::Bullets(items.into_iter().collect()));
        self
    }

    /// Rows whose columns line up.
    pub(crate) fn table(mut self, rows: impl IntoIterator<Item = [String; 4]>) -> Self {
        self.parts.push(Part::Table(rows.into_iter().collect()));
        self
    }

    /// Named facts, one per line, their values lined up.
    pub(crate) fn facts(self, facts: Facts) -> Self {
        let rows = facts.0.into_iter();
        self.table(rows.map(|(name, value)| [name, value, String::new(), String::new()]))
    }

    pub(crate) fn quote(mut self, head: String, lines: Vec<String>) -> Self {
        self.parts.push(Part::Quote(head, lines));
        self
    }

    pub(crate) fn diff(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.parts.push(Part::Diff(lines.into_iter().collect()));
        self
    }

    fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| match part {
            Part::Sentences(lines) | Part::Bullets(lines) | Part::Diff(lines) => lines.is_empty(),
            Part::Table(rows) => rows.is_empty(),
            Part::Quote(head, lines) => head.is_empty() && lines.is_empty(),
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Facts(Vec<(String, String)>);

impl Facts {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    pub(crate) fn maybe(&mut self, name: &str, value: Option<String>) {
        self.0.extend(value.map(|value| (name.to_owned(), value)));
    }
}

/// For a terminal. Sections without content are left out.
pub(crate) fn text(
    title: &str,
    sections: &[Section],
    toned: &dyn Fn(Tone, &str) -> String,
) -> String {
    let mut lines = vec![toned(Tone::Bold, &scrub::line(title))];
    for section in sections.iter().filter(|section| !section.is_empty()) {
        lines.push(String::new());
        lines.push(toned(Tone::Bold, &scrub::line(&section.heading)));
        let body = section.parts.iter().flat_map(text_lines);
        lines.extend(body.map(|line| format!("  {line}").trim_end().to_owned()));
    }
    lines.join("\n")
}

fn text_lines(part: &Part) -> Vec<String> {
    let escaped = |line: &String| scrub::line(line).into_owned();
    match part {
        Part::Sentences(lines) => lines.iter().map(escaped).collect(),
        Part::Bullets(items) => items.iter().map(|item| format!("- {}", escaped(item))).collect(),
        Part::Table(rows) => aligned(rows),
        Part::Diff(lines) => lines.iter().map(|line| format!("  {}", escaped(line))).collect(),
        Part::Quote(head, lines) => {
            let quoted = lines.iter().map(|line| format!("  │ {}", escaped(line)));
            std::iter::once(escaped(head)).chain(quoted).collect()
        }
    }
}

/// For a report.
pub(crate) fn markdown(title: &str, sections: &[Section]) -> String {
    let mut blocks = vec![format!("# {}", prose(title))];
    for section in sections.iter().filter(|section| !section.is_empty()) {
        blocks.push(format!("## {}", prose(&section.heading)));
        blocks.extend(section.parts.iter().flat_map(markdown_blocks));
    }
    blocks.join("\n\n")
}

fn markdown_blocks(part: &Part) -> Vec<String> {
    let escaped = |line: &String| scrub::line(line).into_owned();
    let blocks = match part {
        Part::Sentences(lines) => lines.iter().map(|line| prose(line)).collect(),
        Part::Bullets(items) => {
            vec![items.iter().map(|item| format!("- {}", prose(item))).collect::<Vec<_>>()]
                .into_iter()
                .map(|items| items.join("\n"))
                .collect()
        }
        Part::Table(rows) => vec![fenced("text", &aligned(rows))],
        Part::Diff(lines) => {
            vec![fenced("diff", &lines.iter().map(escaped).collect::<Vec<_>>())]
        }
        Part::Quote(head, lines) if lines.is_empty() => vec![prose(head)],
        Part::Quote(head, lines) => {
            let lines: Vec<String> = lines.iter().map(escaped).collect();
            vec![prose(head), fenced("text", &lines)]
        }
    };
    blocks.into_iter().filter(|block| !block.is_empty()).collect()
}

/// Longer than every run of backticks inside.
fn fenced(kind: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let longest = lines.iter().flat_map(|line| line.split(|c| c != '`')).map(str::len).max();
    let fence = "`".repeat(longest.unwrap_or(0).max(2) + 1);
    format!("{fence}{kind}\n{}\n{fence}", lines.join("\n"))
}

/// A sentence in which nothing is markup.
fn prose(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 8);
    for character in scrub::line(text).chars() {
        if matches!(character, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#') {
            shown.push('\\');
        }
        shown.push(character);
    }
    shown
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn sections() -> Vec<Section> {
        let mut facts = Facts::default();
        facts.add("cause", "oom_limit");
        facts.add("first error", "a `b`");
        vec![
            Section::new("Cause").sentences(["it [died]\u{7}".to_owned()]).facts(facts),
            Section::new("Empty").bullets([]),
            Section::new("Log").quote("its last lines".to_owned(), vec!["```".to_owned()]),
            Section::new("Do").diff([" [a]".to_owned(), "+memory = \"1GiB\"".to_owned()]),
        ]
    }

    #[test]
    fn a_terminal_gets_text() {
        let shown = text("a/k died\u{1b}[2J", &sections(), &|_, text| text.to_owned());
        expect![[r#"
            a/k died\u{1b}[2J

            Cause
              it [died]\u{7}
              cause        oom_limit
              first error  a `b`

            Log
              its last lines
                │ ```

            Do
                 [a]
                +memory = "1GiB""#]]
        .assert_eq(&shown);
    }

    #[test]
    fn a_report_gets_markdown_that_no_word_of_an_agent_can_break() {
        expect![[r#"
            # a/k

            ## Cause

            it \[died\]\\u{7}

            ```text
            cause        oom_limit
            first error  a `b`
            ```

            ## Log

            its last lines

            ````text
            ```
            ````

            ## Do

            ```diff
             [a]
            +memory = "1GiB"
            ```"#]]
        .assert_eq(&markdown("a/k", &sections()));
    }
}

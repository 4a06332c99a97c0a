//! The manual (`default.toml`) and the reference page (docs/config.md), made from the tables.
//!
//! Owner: the tables. Invariant: both files are what this makes of the code; to write them anew,
//! `UPDATE=1 cargo nextest run -p dormouse config::reference`. Absent: what the words say.

use std::fmt::Write;
use std::path::Path;

use super::flat::leaves;
use super::setting::{Effect, Leaf, Node, nodes_of};
use super::tables::File;
use super::value::written;

const COLUMNS: usize = 118;

const MANUAL_HEAD: [&str; 3] = [
    "The configuration of Dormouse, with every setting and its default.",
    "`dormouse up` and `dormouse serve` read the file that --config names, else dormouse.toml in \
     the current folder, else this text, which is built into the program. Copy what you want to \
     change; a file need not be complete. Durations and sizes carry their units (500ms, 30s, 5m, \
     1h30m; 64KiB, 512MiB, 2GiB). A key that is not known is refused.",
    "`dormouse config check` says whether a file is right, `dormouse config plan` what it would \
     change. A running daemon sees that the file has changed, and puts it into force; what is \
     wrong changes nothing.",
];

/// The agent of the manual, which comes with the program.
const EXAMPLE: &str = r#"
[agents.python]
command = ["python3", "{examples}/python/executor.py"]
adapter = { kind = "jsonl", ready = true }
memory = "512MiB"
memory_ceiling = "2GiB"
files.checkpoint = "turn"
"#;

const PAGE_HEAD: &str = "\
# Settings

Every setting of `dormouse.toml`, made from the code. The same, as a file to copy from, is
[default.toml](../daemon/src/config/default.toml); for programs, `dormouse config schema --json`
prints a JSON schema with the effect of each setting in `x-effect`.

A file need not be complete. Durations and sizes carry their units (`500ms`, `30s`, `5m`, `1h30m`;
`64KiB`, `512MiB`, `2GiB`). A key that is not known is refused, with the line it stands in.
`dormouse config check` says whether a file is right, and `dormouse config plan` what it would
change.

A running daemon sees that its file has changed, and puts it into force; no request fails, no turn
ends, nothing is started anew. What is wrong, or gone, changes nothing: the daemon says so, and goes
on with what was good, even over a start. What needs a restart of the daemon waits for `dormouse
config apply`. `dormouse config history` lists what was in force, and `dormouse config rollback`
goes back. [Changing the config](operations.md#changing-the-config) has the rest.

What makes an agent another one (its command, environment, memory and the like) is a revision: one
session tries it, and one that does not start, or answers with an error, is not used. With `canary`
it is tried at once, by a question of yours. `dormouse agents` tells which revision is in force;
`dormouse rollout` pauses, aborts and retries.

## What a change comes to

| effect | meaning |
|---|---|
";

fn meaning(effect: Effect) -> &'static str {
    match effect {
        Effect::Live => "In force for whatever comes next. Nothing is started anew.",
        Effect::NextTurn => "In force from each session's next turn. Nothing is started anew.",
        Effect::NextStart => {
            "In force from each session's next start. Nobody is interrupted; of an agent, it is \
             the beginning of a new revision."
        }
        Effect::DaemonRestart => "In force once the daemon has been started anew.",
    }
}

/// `words`, each line behind `# `.
fn comment(words: &str) -> String {
    let (mut text, mut line) = (String::new(), String::from("#"));
    for word in words.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            writeln!(text, "{line}").unwrap();
            line = String::from("#");
        }
        write!(line, " {word}").unwrap();
    }
    text + &line + "\n"
}

fn line_of(path: &str, leaf: &Leaf) -> String {
    match (&leaf.value, leaf.doc.example) {
        (Some(value), _) => format!("{path} = {}\n", written(value)),
        (None, Some(example)) => format!("# {path} = {example}\n"),
        (None, None) => panic!("{path} has neither a value nor an example"),
    }
}

fn manual_of(path: &str, nodes: &[Node]) -> String {
    let mut text = String::new();
    for node in nodes {
        match node {
            Node::Leaf(leaf) => {
                text += &comment(leaf.doc.words);
                text += &line_of(&format!("{path}{}", leaf.name), leaf);
            }
            Node::Table { name, words, nodes } => {
                if !words.is_empty() {
                    text += &comment(words);
                }
                text += &manual_of(&format!("{path}{name}."), nodes);
            }
            Node::Map { .. } => panic!("only the file has a map of tables"),
        }
    }
    text
}

fn manual() -> String {
    let file: File = toml::from_str(EXAMPLE).unwrap();
    let mut text = MANUAL_HEAD.map(comment).join("#\n");
    for node in nodes_of(&file) {
        match node {
            Node::Leaf(leaf) => panic!("{} stands in no table", leaf.name),
            Node::Table { name, words, nodes } => {
                text += &format!("\n{}[{name}]\n{}", comment(words), manual_of("", &nodes));
            }
            Node::Map { name, words, entries, .. } => {
                for (entry, nodes) in entries {
                    let words = comment(words);
                    text += &format!("\n{words}[{name}.{entry}]\n{}", manual_of("", &nodes));
                }
            }
        }
    }
    text
}

fn rows_of(nodes: Vec<Node>) -> String {
    let mut text = "| setting | value | default | effect | |\n|---|---|---|---|---|\n".to_owned();
    for (path, leaf) in leaves("", nodes) {
        let standard = leaf.value.as_ref().map(|value| format!("`{}`", written(value)));
        let standard = standard.unwrap_or_else(|| "–".to_owned());
        let (words, kind) = (leaf.doc.words.replace('|', "\\|"), leaf.kind);
        let effect = leaf.effect.words();
        writeln!(text, "| `{path}` | {kind} | {standard} | {effect} | {words} |").unwrap();
    }
    text
}

/// What is said of tables in a table, above the rows.
fn paragraphs(nodes: &[Node]) -> String {
    let mut text = String::new();
    for node in nodes {
        if let Node::Table { name, words, .. } = node
            && !words.is_empty()
        {
            writeln!(text, "`{name}`: {words}\n").unwrap();
        }
    }
    text
}

fn page() -> String {
    let mut text = PAGE_HEAD.to_owned();
    for effect in Effect::ALL {
        writeln!(text, "| {} | {} |", effect.words(), meaning(effect)).unwrap();
    }
    for node in nodes_of(&File::default()) {
        let (heading, words, nodes) = match node {
            Node::Leaf(leaf) => panic!("{} stands in no table", leaf.name),
            Node::Table { name, words, nodes } => (name.to_owned(), words, nodes),
            Node::Map { name, words, standard, .. } => (format!("{name}.NAME"), words, standard),
        };
        let more = paragraphs(&nodes);
        text += &format!("\n## `[{heading}]`\n\n{words}\n\n{more}{}", rows_of(nodes));
    }
    text
}

/// The file is the text; with `UPDATE=1` it is made so.
fn check(path: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let is_other = |(_, (one, other)): &(usize, (&str, &str))| one != other;
    let found = written.lines().zip(text.lines()).enumerate().find(is_other);
    let hint = "UPDATE=1 cargo nextest run -p dormouse config::reference";
    assert!(written == text, "{} differs: {found:?}; write it anew: {hint}", path.display());
}

#[test]
fn the_manual_is_made_from_the_code() {
    check("src/config/default.toml", &manual());
}

#[test]
fn the_reference_page_is_made_from_the_code() {
    check("../docs/config.md", &page());
}

#[test]
fn every_setting_that_the_manual_leaves_out_can_be_written_as_it_shows() {
    let file: File = toml::from_str(EXAMPLE).unwrap();
    let shown = manual();
    let shown =
        shown.replace("\n# fake = ", "\nfake = ").replace("\n# files.every", "\nfiles.every");
    let settings = [
        "memory_gib_month",
        "currency",
        "webhook",
        "command",
        "folder",
        "endpoint",
        "canary.text",
        "canary.expects",
    ];
    let uncommented = settings
        .iter()
        .fold(shown, |text, name| text.replace(&format!("\n# {name} = "), &format!("\n{name} = ")));
    let nothing_is_left =
        |nodes: Vec<Node>| leaves("", nodes).into_iter().all(|(_, leaf)| leaf.value.is_some());
    let written: File = toml::from_str(&uncommented).unwrap();
    assert!(nothing_is_left(nodes_of(&written)), "an example of the manual was not read");
    assert!(!nothing_is_left(nodes_of(&file)));
    for node in nodes_of(&written) {
        if let Node::Map { entries, .. } = node {
            assert!(entries.into_values().all(nothing_is_left));
        }
    }
}

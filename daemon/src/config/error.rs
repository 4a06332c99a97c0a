//! What is wrong with a config: file, line, column, setting, and what it was probably meant to be.
//!
//! Owner: `config::load` and `config::parse`. Invariants: it is one line; what it names is written
//! as in the file; the line that is wrong, which may hold more than is to be seen in a log, is kept
//! apart. Absent: more than the first thing that is wrong.

use std::path::{Path, PathBuf};

use super::Problem;
use super::location::{self, Part, Place};
use super::suggestion::nearest;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the config {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the config {path} is larger than 1 MiB")]
    TooLarge { path: PathBuf },
    #[error("the config {path} is empty; a comment in it says that this is meant")]
    Empty { path: PathBuf },
    #[error("the config {path} is not UTF-8 text from line {line} on")]
    NotText { path: PathBuf, line: usize },
    #[error(transparent)]
    Wrong(#[from] Box<Wrong>),
    #[error("DORMOUSE_LISTEN is wrong: {value:?} is no address: write for example 127.0.0.1:7766")]
    Environment { value: String },
}

/// Of a setting's path, and of what is said of it.
const WORDS_CHARACTERS_MAX: usize = 300;

/// Something that is written and cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error(
    "the config {} is wrong{}: {}{problem}",
    path.display(),
    at(.place.as_ref()),
    before(.setting.as_deref())
)]
pub(crate) struct Wrong {
    pub(crate) path: PathBuf,
    /// `None`: nothing of it is written.
    pub(crate) place: Option<Place>,
    /// `None`: it is no TOML.
    pub(crate) setting: Option<String>,
    pub(crate) problem: String,
    /// The line it stands in, for who may read the file.
    pub(crate) line: Option<String>,
}

fn at(place: Option<&Place>) -> String {
    place.map(|at| format!(" at line {}, column {}", at.line, at.column)).unwrap_or_default()
}

fn before(setting: Option<&str>) -> String {
    setting.map(|setting| format!("{setting}: ")).unwrap_or_default()
}

impl ConfigError {
    /// What the parser says.
    pub(super) fn of_parser(error: &toml::de::Error, text: &str, path: &Path) -> Self {
        let mut offset = error.span().map(|span| span.start);
        let mut setting = offset.and_then(|offset| location::setting_at(text, offset));
        let mut problem = error.message().trim_end().replace('\n', ", ");
        if let Some(unknown) = Unknown::of(error.message()) {
            let around = setting.unwrap_or_default();
            let last = location::quoted(unknown.key);
            let is_named = around == last || around.ends_with(&format!(".{last}"));
            let named = if is_named { around } else { location::joined(&around, unknown.key) };
            offset = location::offset_of(text, &named, Part::Key).or(offset);
            setting = Some(named);
            problem = unknown.problem();
        }
        Self::wrong(path, text, offset, setting, problem)
    }

    /// What is said of a setting once all are read.
    pub(super) fn of_setting((setting, problem): Problem, text: &str, path: &Path) -> Self {
        let offset = location::offset_of(text, &setting, Part::Value);
        Self::wrong(path, text, offset, Some(setting), problem)
    }

    fn wrong(
        path: &Path,
        text: &str,
        offset: Option<usize>,
        setting: Option<String>,
        problem: String,
    ) -> Self {
        let problem = on_one_line(&problem);
        let setting = setting.map(|setting| on_one_line(&setting));
        let place = offset.map(|offset| location::place_at(text, offset));
        let line = place.and_then(|place| text.lines().nth(place.line - 1));
        let line = line.map(|line| on_one_line(line.trim()));
        Self::Wrong(Box::new(Wrong { path: path.to_owned(), place, setting, problem, line }))
    }
}

/// What was written stands in it, and may be more than one line, or a very long one.
fn on_one_line(text: &str) -> String {
    let mut line = String::new();
    for (index, character) in text.chars().enumerate() {
        match character {
            _ if index == WORDS_CHARACTERS_MAX => return line + "…",
            control if control.is_control() => line.extend(control.escape_default()),
            plain => line.push(plain),
        }
    }
    line
}

/// The parser's words on a key that it does not know.
struct Unknown<'a> {
    key: &'a str,
    known: Vec<&'a str>,
}

impl<'a> Unknown<'a> {
    fn of(message: &'a str) -> Option<Self> {
        let (_, after) = message.split_once("unknown field `")?;
        let (key, expected) = after.split_once('`')?;
        Some(Self { key, known: expected.split('`').skip(1).step_by(2).collect() })
    }

    fn problem(&self) -> String {
        match nearest(self.key, &self.known) {
            Some(known) => format!("unknown key. Did you mean `{known}`?"),
            None if self.known.is_empty() => "unknown key; none is known here".to_owned(),
            None => format!("unknown key; known are {}", self.known.join(", ")),
        }
    }
}

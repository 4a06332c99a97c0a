//! The rules of the tree, as a chore and as a test.
//!
//! Owner: this file walks the tree and collects; `rust_file`, `manifests` and `pages` hold the
//! rules and see only text. Invariants: every violation names file, line, rule and what to do;
//! nothing is written. Absent: what rustfmt, clippy and the compiler check already.

mod manifests;
mod pages;
mod rust_file;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::{CommandResult, UsageError, root, terminal};
use pages::{CAUSE_PAGES, CAUSE_SOURCE, DECISIONS};
use rust_file::{CORE_ROOMS, Room, RustFile};
use scan::Scan;

/// Folders that no one writes by hand.
const SKIPPED_FOLDERS: &[&str] = &[".git", "target", "node_modules", "__pycache__", ".venv"];
const SKIPPED_PATHS: &[&str] = &["fuzz/corpus", "fuzz/artifacts", "fuzz/seeds"];

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    path: String,
    line: usize,
    rule: &'static str,
    what: String,
}

impl Violation {
    fn new(path: &str, line: usize, rule: &'static str, what: impl Into<String>) -> Violation {
        Violation { path: path.to_string(), line, rule, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.path, self.line, self.rule, self.what)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TidyError {
    #[error("cannot list {}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

pub(crate) fn command(arguments: &[String]) -> CommandResult {
    if let Some(unknown) = arguments.first() {
        return Err(UsageError::new("tidy", format!("tidy takes no {unknown:?}")).into());
    }
    let violations = check_tree(&root())?;
    for violation in &violations {
        terminal::say(&violation.to_string());
    }
    if violations.is_empty() {
        terminal::say("tidy: nothing to do");
        return Ok(ExitCode::SUCCESS);
    }
    terminal::complain(&format!("tidy: {} to put right", violations.len()));
    Ok(ExitCode::FAILURE)
}

/// Every violation in the tree, by path and line.
pub(crate) fn check_tree(root: &Path) -> Result<Vec<Violation>, TidyError> {
    let mut tree = Tree::default();
    tree.read_folder(root, "")?;
    let mut violations = check_rust_files(&tree.texts);
    for (path, source) in &tree.texts {
        violations.extend(pages::check_text(path, source));
        if path.ends_with("Cargo.toml") {
            violations.extend(manifests::check_manifest(path, source));
        }
        if path.ends_with(".md") {
            violations.extend(pages::check_links(path, source, &|path| tree.has(path)));
        }
        if path.starts_with(CAUSE_PAGES) && !path.ends_with("/README.md") {
            violations.extend(pages::check_cause_headings(path, source));
        }
    }
    let causes = tree.texts.get(CAUSE_SOURCE).map(String::as_str);
    violations.extend(pages::check_causes(causes, &tree.names_in(CAUSE_PAGES)));
    violations.extend(pages::check_decisions(&tree.names_in(DECISIONS)));
    violations.sort_by(|one, other| (&one.path, one.line).cmp(&(&other.path, other.line)));
    Ok(violations)
}

fn check_rust_files(texts: &BTreeMap<String, String>) -> Vec<Violation> {
    let is_rust = |(path, _): &(&String, &String)| path.ends_with(".rs");
    let mut files: Vec<RustFile<'_>> = texts
        .iter()
        .filter(is_rust)
        .map(|(path, source)| RustFile { path, source, scan: Scan::new(source), test_only: false })
        .collect();
    let test_modules: BTreeSet<String> = files.iter().flat_map(test_module_paths).collect();
    for file in &mut files {
        file.test_only = is_test_path(file.path, &test_modules);
    }
    let mut violations: Vec<Violation> = files.iter().flat_map(RustFile::check).collect();
    for room in CORE_ROOMS {
        let lines: usize = files
            .iter()
            .filter(|file| room_of(file.path).is_some_and(|found| found.name == room.name))
            .map(RustFile::non_test_lines)
            .sum();
        if lines > room.lines_max {
            let Room { name, lines_max, .. } = room;
            let what =
                format!("the {name} of core has {lines} non-test lines, at most {lines_max}");
            violations.push(Violation::new("core/src/lib.rs", 1, "core-size", what));
        }
    }
    violations
}

/// The room of core that a file is in, by its module's name; `None`: it is not of core.
fn room_of(path: &str) -> Option<&'static Room> {
    let module = path.strip_prefix("core/src/")?.trim_end_matches(".rs").split('/').next()?;
    let room = CORE_ROOMS.iter().find(|room| room.modules.contains(&module));
    // A new module is part of the machine until it is said to be something else.
    Some(room.unwrap_or(&CORE_ROOMS[0]))
}

/// Where the `#[cfg(test)] mod name;` of a file live, without the extension.
fn test_module_paths(file: &RustFile<'_>) -> Vec<String> {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", file.path));
    let stem = name.trim_end_matches(".rs");
    let folder = match stem {
        "lib" | "main" | "mod" => folder.to_string(),
        _ => format!("{folder}/{stem}"),
    };
    let modules = file.scan.test_module_files();
    modules.into_iter().map(|module| format!("{folder}/{module}")).collect()
}

fn is_test_path(path: &str, test_modules: &BTreeSet<String>) -> bool {
    let in_test_folder = path.split('/').any(|part| ["tests", "benches", "fuzz"].contains(&part));
    in_test_folder
        || test_modules.iter().any(|module| {
            let rest = path.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
}

/// The files of the tree by their path relative to the root, with `/`.
#[derive(Debug, Default)]
struct Tree {
    /// Files that are text.
    texts: BTreeMap<String, String>,
    /// Files that are not text, and folders.
    others: BTreeSet<String>,
}

impl Tree {
    fn read_folder(&mut self, root: &Path, folder: &str) -> Result<(), TidyError> {
        let absolute = root.join(folder);
        let listed = |source| TidyError::List { path: absolute.clone(), source };
        for entry in fs::read_dir(&absolute).map_err(listed)? {
            let entry = entry.map_err(listed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            let kind = entry.file_type().map_err(listed)?;
            let skipped =
                SKIPPED_FOLDERS.contains(&name.as_str()) || SKIPPED_PATHS.contains(&path.as_str());
            if kind.is_dir() && !skipped {
                self.read_folder(root, &path)?;
                self.others.insert(path);
            } else if kind.is_file() {
                self.read_file(root, path)?;
            }
        }
        Ok(())
    }

    fn read_file(&mut self, root: &Path, path: String) -> Result<(), TidyError> {
        let absolute = root.join(&path);
        let bytes =
            fs::read(&absolute).map_err(|source| TidyError::Read { path: absolute, source })?;
        match String::from_utf8(bytes) {
            Ok(text) => {
                self.texts.insert(path, text);
            }
            Err(_) => {
                self.others.insert(path);
            }
        }
        Ok(())
    }

    fn has(&self, path: &str) -> bool {
        path.is_empty() || self.texts.contains_key(path) || self.others.contains(path)
    }

    /// Names of the files right inside a folder, given with its last `/`.
    fn names_in(&self, folder: &str) -> BTreeSet<String> {
        let names = self.texts.keys().filter_map(|path| path.strip_prefix(folder));
        names.filter(|name| !name.contains('/')).map(str::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let violations = check_tree(&root()).expect("the tree can be read");
        let shown: Vec<String> = violations.iter().map(Violation::to_string).collect();
        assert!(shown.is_empty(), "{}", shown.join("\n"));
    }

    fn texts(files: &[(&str, String)]) -> BTreeMap<String, String> {
        files.iter().map(|(path, text)| (path.to_string(), text.clone())).collect()
    }

    #[test]
    fn each_room_of_core_has_a_budget() {
        let file = |lines: usize| format!("//! A.\n{}", "const A: u8 = 1;\n".repeat(lines - 1));
        let mut files: BTreeMap<String, String> =
            (0..9).map(|index| (format!("core/src/f{index}.rs"), file(500))).collect();
        files.insert("core/src/queue.rs".to_string(), file(500));
        assert_eq!(check_rust_files(&files), []);
        files.insert("core/src/one_more.rs".to_string(), "//! One line.\n".to_string());
        let seen = check_rust_files(&files);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].rule, "core-size");
        assert!(seen[0].what.starts_with("the machine of core"), "{seen:?}");
    }

    #[test]
    fn files_of_test_modules_are_not_counted() {
        let long = format!("//! A.\n{}", "const A: u8 = 1;\n".repeat(600));
        let parent = "//! A.\n#[cfg(test)]\nmod stories;\n".to_string();
        let declared = texts(&[
            ("core/src/session.rs", parent),
            ("core/src/session/stories.rs", long.clone()),
        ]);
        assert_eq!(check_rust_files(&declared), []);
        let in_tests = texts(&[("edge/tests/long.rs", long.clone())]);
        assert_eq!(check_rust_files(&in_tests), []);
        let undeclared = texts(&[("core/src/session/stories.rs", long)]);
        assert_eq!(check_rust_files(&undeclared)[0].rule, "file-length");
    }

    #[test]
    fn a_violation_is_shown_as_file_line_rule_and_what_to_do() {
        let violation = Violation::new("core/src/lib.rs", 7, "line-length", "break the line");
        assert_eq!(violation.to_string(), "core/src/lib.rs:7: [line-length] break the line");
    }

    #[test]
    fn a_folder_that_cannot_be_listed_is_an_error() {
        let error = check_tree(Path::new("no/such/folder")).expect_err("there is no such folder");
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}

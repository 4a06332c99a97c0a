//! What this machine has: cargo, the host's name, optional tools, the targets of the workspace.
//!
//! Owner: the chores that ask. Absent: installing anything; `.ci/run` does that.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::process::{CommandLine, RunError};
use crate::root;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolchainError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("`rustc -vV` names no host: is the toolchain whole? try `rustup show`")]
    NoHost,
    #[error("`cargo metadata` failed: run it to see why")]
    MetadataFailed,
    #[error("`cargo metadata` printed something unexpected")]
    MetadataShape(#[source] serde_json::Error),
}

/// An integration test: its package and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TestTarget {
    pub(crate) package: String,
    pub(crate) name: String,
}

/// The cargo that started us, or the one on the path.
pub(crate) fn cargo(arguments: &[&str]) -> CommandLine {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string());
    CommandLine::new(&program, arguments, root())
}

/// The triple that Rust builds for by default.
pub(crate) fn host_triple() -> Result<String, ToolchainError> {
    let printed = CommandLine::new("rustc", &["-vV"], root()).output()?.unwrap_or_default();
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_string).ok_or(ToolchainError::NoHost)
}

/// `program` runs and succeeds with these arguments.
pub(crate) fn is_there(program: &str, arguments: &[&str]) -> bool {
    let answer = CommandLine::new(program, arguments, root()).output();
    answer.is_ok_and(|output| output.is_some())
}

pub(crate) fn has_npm() -> bool {
    is_there("npm", &["--version"])
}

/// All integration tests of the workspace.
pub(crate) fn test_targets() -> Result<Vec<TestTarget>, ToolchainError> {
    let arguments = ["metadata", "--no-deps", "--locked", "--format-version", "1"];
    let printed = cargo(&arguments).output()?.ok_or(ToolchainError::MetadataFailed)?;
    let metadata = serde_json::from_str(&printed).map_err(ToolchainError::MetadataShape)?;
    Ok(targets_of_kind_test(&metadata))
}

fn targets_of_kind_test(metadata: &Value) -> Vec<TestTarget> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        for target in list(&package["targets"]) {
            if list(&target["kind"]).contains(&Value::from("test")) {
                let package = text(&package["name"]);
                found.push(TestTarget { package, name: text(&target["name"]) });
            }
        }
    }
    found
}

/// Where cargo puts what it builds in this tree.
pub(crate) fn target_folder(root: &Path) -> PathBuf {
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_a_triple() {
        let host = host_triple().expect("rustc built this test");
        assert!(host.split('-').count() >= 3, "{host}");
    }

    #[test]
    fn a_program_that_fails_or_is_missing_is_not_there() {
        assert!(is_there("rustc", &["--version"]));
        assert!(!is_there("rustc", &["--no-such-flag"]));
        assert!(!is_there("no-such-program", &[]));
    }

    #[test]
    fn integration_tests_are_found_by_kind() {
        let metadata = serde_json::json!({"packages": [
            {"name": "one", "targets": [
                {"kind": ["lib"], "name": "one"}, {"kind": ["test"], "name": "e2e_one"}]},
            {"name": "two", "targets": [{"kind": ["test"], "name": "chaos_two"}]},
        ]});
        let target = |package: &str, name: &str| TestTarget {
            package: package.to_string(),
            name: name.to_string(),
        };
        let expected = [target("one", "e2e_one"), target("two", "chaos_two")];
        assert_eq!(targets_of_kind_test(&metadata), expected);
    }

    #[test]
    fn the_tests_of_this_crate_are_among_the_targets() {
        let targets = test_targets().expect("cargo built this test");
        assert!(targets.iter().any(|target| target.name == "e2e_xtask"), "{targets:?}");
    }
}

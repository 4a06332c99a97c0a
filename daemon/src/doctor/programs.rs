//! The programs that agents need: those of the config, and those of the examples.
//!
//! Invariant: a program that hangs is given up after a few seconds and ended. Absent: installing.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Check;
use crate::agents::{Agents, find_program};
use crate::config::Loaded;
use crate::in_force::{Current, InForce};

const VERSION_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const VERSION_BYTES_MAX: u64 = 1024;

pub(super) fn configured_agents(loaded: Loaded, data: &Path) -> Vec<Check> {
    let in_force = InForce::new(Current::nowhere(loaded));
    let agents = Agents::new(in_force.clone(), data);
    let check = |(name, agent): (&dormouse_core::id::AgentName, _)| {
        let lacks = agents.lacks(agent);
        let title = format!("agent {name}");
        if lacks.is_empty() {
            return Check::ok(&title, "its program and its secrets are there");
        }
        let fix =
            format!("install or grant what it lacks, or take [agents.{name}] out of the config");
        Check::warn(&title, lacks.join("; "), fix)
    };
    in_force.now().config().agents.iter().map(check).collect()
}

/// What each example needs, whether or not the config has it.
pub(super) fn example_agents() -> Vec<Check> {
    vec![
        program("python3", "the example agent python", "apt-get install python3"),
        program("node", "the example agent openclaw", "install Node.js 22 or newer"),
        program("openclaw", "the example agent openclaw", "npm install -g openclaw"),
        program("claude", "Claude Code", "npm install -g @anthropic-ai/claude-code"),
    ]
}

fn program(name: &str, needed_by: &str, install: &str) -> Check {
    let Some(path) = find_program(name) else {
        let fact = format!("not in PATH; {needed_by} needs it");
        return Check::warn(name, fact, format!("to use that agent: {install}"));
    };
    match version(&path) {
        Ok(version) => Check::ok(name, format!("{version} ({})", path.display())),
        Err(why) => {
            let fact = format!("{} {why}; {needed_by} needs it", path.display());
            Check::warn(name, fact, format!("try `{name} --version`, then: {install}"))
        }
    }
}

/// The first line that the program prints when it is asked for its version.
fn version(path: &Path) -> Result<String, String> {
    let mut child = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot be executed: {error}"))?;
    let status = wait(&mut child)?;
    let mut text = String::new();
    if let Some(output) = child.stdout.take() {
        let read = output.take(VERSION_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|error| format!("does not say its version: {error}"))?;
    }
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) if status.success() => Ok(line.to_owned()),
        _ => Err(format!("does not say its version ({status})")),
    }
}

fn wait(child: &mut Child) -> Result<std::process::ExitStatus, String> {
    let until = Instant::now() + VERSION_WITHIN;
    let lost = |error: std::io::Error| format!("cannot be waited for: {error}");
    loop {
        if let Some(status) = child.try_wait().map_err(lost)? {
            return Ok(status);
        }
        if Instant::now() >= until {
            child.kill().and_then(|()| child.wait()).map_err(lost)?;
            return Err(format!("did not say its version within {} s", VERSION_WITHIN.as_secs()));
        }
        // There is no wait with an end in the standard library.
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::super::State;
    use super::*;

    fn script(folder: &Path, body: &str) -> PathBuf {
        let path = folder.join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_version_is_the_first_line_of_a_program_that_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(version(&script(folder.path(), "echo v1.2; echo more")).unwrap(), "v1.2");
        let failed = version(&script(folder.path(), "echo v1.2; exit 3")).unwrap_err();
        assert!(failed.contains("exit status: 3"), "{failed}");
        assert!(version(&script(folder.path(), "true")).is_err());
        assert!(version(Path::new("/nowhere")).unwrap_err().contains("cannot be executed"));
    }

    #[test]
    fn a_missing_program_says_what_needs_it() {
        let check = program("no-such-program", "nobody", "nothing");
        assert_eq!(check.state, State::Warn);
        assert!(check.fact.contains("not in PATH"));
    }
}

//! The agents that benchmarks run: the same one in three languages, and a direct line to it.
//!
//! Owner: `wake`, `relay`, `crash`, `bridge`. Invariants: the agent that runs bare and the one that
//! runs under the daemon are the same command; times that an agent tells are of the clock that the
//! benchmark reads. Absent: agents that do any work.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::json;

use super::error::BenchError;
use super::machine::{has_program, monotonic_nanos, python};
use crate::process::CommandLine;
use crate::root;

const RUST: &str = include_str!("agents/clock.rs");
const PYTHON: &str = include_str!("agents/clock.py");
const NODE: &str = include_str!("agents/clock.js");

/// An agent that can run on this machine.
#[derive(Debug, Clone)]
pub(super) struct AgentProgram {
    /// Its name in configs and tables.
    pub(super) name: &'static str,
    pub(super) command: Vec<String>,
}

/// What an agent says when a turn reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) process: u32,
    /// Its first instruction that could read the clock.
    pub(super) began_at: u64,
    /// It had read the turn's line.
    pub(super) read_at: u64,
}

impl Told {
    pub(super) fn parse(text: &str) -> Result<Told, BenchError> {
        let mut numbers = text.split(' ').map(|number| number.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        let told = (|| {
            let process = u32::try_from(next()?).ok()?;
            Some(Told { process, began_at: next()?, read_at: next()? })
        })();
        told.ok_or_else(|| BenchError::Agent { said: text.to_string() })
    }
}

/// Compiles and writes the agents into `folder`. The static one is always there; others need their
/// interpreter.
pub(super) fn prepare(folder: &Path) -> Result<Vec<AgentProgram>, BenchError> {
    fs::create_dir_all(folder).map_err(BenchError::file("make", folder))?;
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    for (name, text) in [("clock.rs", RUST), ("clock.py", PYTHON), ("clock.js", NODE)] {
        fs::write(path(name), text).map_err(BenchError::file("write", &folder.join(name)))?;
    }
    let (source, binary) = (path("clock.rs"), path("clock"));
    let options = ["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cpanic=abort"];
    let arguments = [&options[..], &["-o", &binary, &source]].concat();
    let compile = CommandLine::new("rustc", &arguments, root());
    if !compile.run(&mut |_| ())?.success() {
        return Err(BenchError::CommandFailed { command: compile.to_string() });
    }
    let mut agents = vec![AgentProgram { name: "static", command: vec![binary] }];
    if let Some(python) = python() {
        let command = vec![python.to_string(), path("clock.py")];
        agents.push(AgentProgram { name: "python", command });
    }
    if has_program("node", "--version") {
        let command = vec!["node".to_string(), path("clock.js")];
        agents.push(AgentProgram { name: "node", command });
    }
    Ok(agents)
}

impl AgentProgram {
    /// Its table in a config.
    pub(super) fn table(&self) -> String {
        let command: Vec<String> = self.command.iter().map(|part| format!("{part:?}")).collect();
        format!(
            "[agents.{}]\ncommand = [{}]\nadapter = {{ kind = \"jsonl\", ready = true }}\n\
             idle = {{ stop_after = \"1h\" }}\n",
            self.name,
            command.join(", ")
        )
    }

    /// As a line that one would type.
    pub(super) fn shown(&self) -> String {
        self.command.join(" ")
    }
}

/// An agent on two pipes, without anything in between.
#[derive(Debug)]
pub(super) struct BareAgent {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    turns: u64,
    /// From just before the process was made until its ready line was read.
    pub(super) ready_after_nanos: u64,
}

impl BareAgent {
    pub(super) fn start(program: &AgentProgram) -> Result<BareAgent, BenchError> {
        let begun_at = monotonic_nanos();
        let mut child = Command::new(&program.command[0])
            .args(&program.command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::file("start", Path::new(&program.command[0])))?;
        let input = child.stdin.take().expect("it was asked to be a pipe");
        let output = BufReader::new(child.stdout.take().expect("it was asked to be a pipe"));
        let mut agent = BareAgent { child, input, output, turns: 0, ready_after_nanos: 0 };
        let line = agent.read_line()?;
        agent.ready_after_nanos = monotonic_nanos() - begun_at;
        let ready: serde_json::Value = serde_json::from_str(&line)?;
        if ready == json!({"ready": true}) {
            Ok(agent)
        } else {
            Err(BenchError::Agent { said: line })
        }
    }

    /// Sends a turn, and gives what the agent tells and how long the first piece took to come.
    pub(super) fn turn(&mut self, text: &str) -> Result<(Told, u64, u64), BenchError> {
        self.turns += 1;
        let turn = format!("msg_bare{}.1", self.turns);
        let frame = json!({"turn": turn, "session": "a/b", "text": text, "attempt": 1});
        let begun_at = monotonic_nanos();
        self.input
            .write_all(format!("{frame}\n").as_bytes())
            .map_err(BenchError::system("a pipe"))?;
        let first = self.read_line()?;
        let took = monotonic_nanos() - begun_at;
        let delta: serde_json::Value = serde_json::from_str(&first)?;
        let told = Told::parse(delta["delta"].as_str().unwrap_or(&first))?;
        let last: serde_json::Value = serde_json::from_str(&self.read_line()?)?;
        match last["done"].as_str() {
            Some(_) => Ok((told, begun_at, took)),
            None => Err(BenchError::Agent { said: last.to_string() }),
        }
    }

    fn read_line(&mut self) -> Result<String, BenchError> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(BenchError::system("a pipe"))?;
        Ok(line)
    }

    /// `kill -9`, and waits until it is gone.
    pub(super) fn kill(mut self) -> Result<(), BenchError> {
        self.child.kill().map_err(BenchError::system("to kill an agent"))?;
        self.child.wait().map_err(BenchError::system("to wait for an agent"))?;
        Ok(())
    }
}

impl Drop for BareAgent {
    fn drop(&mut self) {
        // Ended already when all went well; else the error on its way says what is wrong.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_tells_its_times() {
        let folder = std::env::temp_dir().join(format!("bench-agents-{}", std::process::id()));
        let agents = prepare(&folder).expect("rustc is there");
        for program in &agents {
            let before = monotonic_nanos();
            let mut agent = BareAgent::start(program).expect("it can run");
            let (first, _, took) = agent.turn("hello").expect("it answers");
            let (second, _, _) = agent.turn("again").expect("it answers again");
            assert!(before < first.began_at && first.began_at < first.read_at, "{first:?}");
            assert!(first.read_at < second.read_at && second.began_at == first.began_at);
            assert!(agent.ready_after_nanos > 0 && took > 0);
            assert_eq!(first.process, agent.child.id(), "{}", program.name);
            agent.kill().expect("it runs");
        }
        fs::remove_dir_all(&folder).expect("it was made here");
    }

    #[test]
    fn other_words_are_refused() {
        let told = Told { process: 1, began_at: 2, read_at: 3 };
        assert_eq!(Told::parse("1 2 3").expect("three numbers"), told);
        assert!(Told::parse("1 2").is_err());
        assert!(Told::parse("hello").is_err());
    }
}

//! The program's commands as a person at a terminal uses them.
//!
//! Owner: `Daemon::cli`. Invariant: nothing of the tester's own environment reaches the command.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// The program under test.
pub(crate) fn program() -> &'static str {
    env!("CARGO_BIN_EXE_dormouse")
}

/// The program with an environment of its own.
pub(crate) fn command(home: &Path) -> Command {
    scrubbed(program(), home)
}

/// Any program with that environment.
pub(crate) fn scrubbed(name: impl AsRef<OsStr>, home: &Path) -> Command {
    let mut command = Command::new(name);
    command.env_clear().env("HOME", home).env("LANG", "C.UTF-8").env("RUST_BACKTRACE", "1");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.current_dir(home);
    command
}

#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Printed {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error} in {out}"))
    }

    /// One JSON value a line, as streaming commands print them.
    #[track_caller]
    pub(crate) fn json_lines(self) -> Vec<Value> {
        let out = self.ok();
        let parse = |line| serde_json::from_str(line);
        out.lines().map(|line| parse(line).unwrap_or_else(|e| panic!("{e} in {line}"))).collect()
    }
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(mut command: Command, input: &str) -> Printed {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program can be executed");
    let mut stdin = child.stdin.take().expect("it is piped");
    // A command that does not read its input may be gone already.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Printed { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

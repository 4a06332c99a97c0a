//! Children: started without input, their output passed on line by line while it is read.
//!
//! Owner: whoever runs one. Invariants: a child has a time limit; at the limit it is killed and
//! that is an error; the environment changes only by what the command line names.
//! Absent: shells, input, and children of children, which are left to their own parents.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::terminal;

#[derive(Debug, Clone)]
pub(crate) struct CommandLine {
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) folder: PathBuf,
    pub(crate) limit: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("cannot start `{command}`")]
    Start { command: String, source: io::Error },
    #[error("cannot wait for `{command}`")]
    Wait { command: String, source: io::Error },
    #[error("`{command}` had not ended its output after {} s and was killed", limit.as_secs())]
    TooLong { command: String, limit: Duration },
}

/// A line of a child with its line end, from one of its two outputs.
enum Line {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

impl CommandLine {
    pub(crate) fn new(program: &str, arguments: &[&str], folder: PathBuf) -> CommandLine {
        CommandLine {
            program: program.to_string(),
            arguments: arguments.iter().map(|argument| argument.to_string()).collect(),
            environment: Vec::new(),
            folder,
            limit: Duration::from_secs(600),
        }
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> CommandLine {
        self.environment.push((name.to_string(), value.to_string()));
        self
    }

    pub(crate) fn limit(mut self, limit: Duration) -> CommandLine {
        self.limit = limit;
        self
    }

    /// Runs to the end; `on_line` sees every line of both outputs, without colours.
    pub(crate) fn run(&self, on_line: &mut dyn FnMut(&str)) -> Result<ExitStatus, RunError> {
        let mut child = self.command().spawn().map_err(|source| self.start_error(source))?;
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
        let stderr = child.stderr.take().expect("stderr was asked to be a pipe");
        let to_stdout = sender.clone();
        thread::spawn(move || forward(stdout, Line::Stdout, to_stdout));
        thread::spawn(move || forward(stderr, Line::Stderr, sender));
        let deadline = Instant::now() + self.limit;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Line::Stdout(bytes)) => {
                    terminal::pass_on_to_stdout(&bytes);
                    on_line(&plain(&bytes));
                }
                Ok(Line::Stderr(bytes)) => {
                    terminal::pass_on_to_stderr(&bytes);
                    on_line(&plain(&bytes));
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return Err(self.kill(&mut child)),
            }
        }
        child.wait().map_err(|source| self.wait_error(source))
    }

    /// Runs to the end and gives what it wrote to stdout; None when it failed.
    pub(crate) fn output(&self) -> Result<Option<String>, RunError> {
        let output = self.command().output().map_err(|source| self.start_error(source))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(output.status.success().then_some(text))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn kill(&self, child: &mut Child) -> RunError {
        // It may have ended just now with its output still held open by a child of its own.
        match child.kill().and_then(|()| child.wait()) {
            Ok(_) => RunError::TooLong { command: self.to_string(), limit: self.limit },
            Err(source) => self.wait_error(source),
        }
    }

    fn start_error(&self, source: io::Error) -> RunError {
        RunError::Start { command: self.to_string(), source }
    }

    fn wait_error(&self, source: io::Error) -> RunError {
        RunError::Wait { command: self.to_string(), source }
    }
}

/// As one would type it; what has blanks is quoted.
impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.environment {
            write!(f, "{name}={} ", quoted(value))?;
        }
        f.write_str(&quoted(&self.program))?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {}", quoted(argument)))
    }
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn forward(source: impl Read, wrap: fn(Vec<u8>) -> Line, lines: Sender<Line>) {
    let mut reader = BufReader::new(source);
    loop {
        let mut bytes = Vec::new();
        match reader.read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return, // a pipe that cannot be read has ended too
            Ok(_) if lines.send(wrap(bytes)).is_err() => return, // the run was given up
            Ok(_) => {}
        }
    }
}

/// Text without the escape sequences for colours, without the line end.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.trim_end();
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> CommandLine {
        CommandLine::new("sh", &["-c", script], PathBuf::from("."))
    }

    #[test]
    fn lines_of_both_outputs_are_seen_and_the_status_is_kept() {
        let mut seen = Vec::new();
        let command =
            shell("echo one; echo $GREETING >&2; printf three; exit 3").env("GREETING", "two");
        let status = command.run(&mut |line| seen.push(line.to_string())).expect("sh is there");
        assert_eq!(status.code(), Some(3));
        seen.sort();
        assert_eq!(seen, ["one", "three", "two"]);
    }

    #[test]
    fn a_child_gets_no_input() {
        let status = shell("read line").run(&mut |_| ()).expect("sh is there");
        assert_eq!(status.code(), Some(1), "read sees the end at once");
    }

    #[test]
    fn a_child_past_its_limit_is_killed_and_that_is_an_error() {
        let started = Instant::now();
        let command = shell("exec sleep 60").limit(Duration::from_millis(50));
        let error = command.run(&mut |_| ()).expect_err("60 s are past 50 ms");
        assert!(matches!(error, RunError::TooLong { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_missing_program_is_named() {
        let command = CommandLine::new("no-such-program", &["a b"], PathBuf::from("."));
        let error = command.run(&mut |_| ()).expect_err("there is no such program");
        assert_eq!(error.to_string(), "cannot start `no-such-program 'a b'`");
    }

    #[test]
    fn output_of_a_failed_command_is_none() {
        assert_eq!(shell("echo x").output().expect("sh is there").as_deref(), Some("x\n"));
        assert_eq!(shell("echo x; exit 1").output().expect("sh is there"), None);
    }

    #[test]
    fn colours_are_taken_off_what_is_read() {
        assert_eq!(plain(b"\x1b[31;1m Summary\x1b[0m [1s] \x1b[1m4\x1b[0m\r\n"), " Summary [1s] 4");
        assert_eq!(plain(b"plain [x]\n"), "plain [x]");
    }

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let command = CommandLine::new("cargo", &["run", "-E", "not (a)", ""], PathBuf::from("."));
        assert_eq!(command.env("A", "b c").to_string(), "A='b c' cargo run -E 'not (a)' ''");
    }
}

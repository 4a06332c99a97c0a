//! The program's manners where no daemon is needed: closed pipes, odd arguments, odd environments.
//!
//! Invariant: nothing of the tester's own environment reaches the program. Absent: conversations
//! with a daemon.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output, Stdio};

/// A port that nobody can listen at.
const NOBODY: &str = "http://127.0.0.1:1";

/// Without any environment, HOME too.
fn dormouse(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn a_reader_that_went_away_ends_it_quietly_and_well() {
    for arguments in [&["completions", "bash"][..], &["--help"], &["help", "exit-codes"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = dormouse(arguments);
        command.stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_behind_the_output_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = dormouse(&["exit-codes"]);
    command.stdout(full).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(10));
    assert!(String::from_utf8(output.stderr).unwrap().contains("No space left"));
}

#[test]
fn an_argument_that_is_no_text_is_one_line_and_code_2() {
    let mut command = dormouse(&["send", "python"]);
    command.arg(OsStr::from_bytes(b"\xff\xfe"));
    let (code, out, err) = run(command);
    assert_eq!((code, out.as_str(), err.lines().count()), (2, "", 1), "{err}");
}

#[test]
fn nobody_there_is_code_3_and_says_how_to_start_one_even_without_a_home() {
    let (code, out, err) = run(dormouse(&["--url", NOBODY, "ps"]));
    assert_eq!((code, out.as_str()), (3, ""));
    let first = "error: no dormouse answers at http://127.0.0.1:1; start one with `dormouse up`";
    assert_eq!(err.lines().next(), Some(first));
}

#[test]
fn for_programs_the_error_is_json_and_colours_never_come_into_a_pipe() {
    let (code, _, err) = run(dormouse(&["--json", "--url", NOBODY, "why", "python"]));
    let value: serde_json::Value = serde_json::from_str(&err).unwrap();
    assert_eq!(
        (value["exit_code"].as_i64(), value["error"]["code"].as_str()),
        (Some(i64::from(code)), Some("unreachable"),)
    );
    let (_, out, err) = run(dormouse(&["--url", NOBODY, "doctor"]));
    assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'), "{out}{err}");
}

#[test]
fn what_this_version_cannot_do_is_said_and_has_its_code() {
    let https = run(dormouse(&["--url", "https://127.0.0.1:1", "ps"]));
    assert_eq!(https.0, 8);
    assert!(https.2.contains("https:// is not supported"), "{}", https.2);
}

#[test]
fn a_mistyped_command_is_code_2_and_names_the_nearest() {
    let (code, out, err) = run(dormouse(&["sned", "python", "hi"]));
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("'send'"), "{err}");
}

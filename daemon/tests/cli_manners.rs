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

#[test]
fn a_config_is_checked_and_planned_without_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let right = file("right.toml", "# nothing yet\n");
    let live = file("live.toml", "[limits]\nconnections = 7\n");
    let restart = file("restart.toml", "[server]\nlisten = \"127.0.0.1:1\"\n");
    let wrong = file("wrong.toml", "[server]\r\nlisen = \"127.0.0.1:1\"\r\n");
    let missing = folder.path().join("missing.toml");

    let (code, out, err) = run(dormouse(&["config", "check", &right]));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("right.toml is right; no agents"), "{out}");
    let (code, out, err) = run(dormouse(&["config", "check", &wrong]));
    assert_eq!((code, out.as_str()), (2, ""));
    for words in
        ["wrong.toml is wrong at line 2, column 1: server.lisen: ", "Did you mean `listen`"]
    {
        assert!(err.contains(words), "{err}");
    }
    let (code, _, err) = run(dormouse(&["--json", "--config", &wrong, "config", "plan"]));
    let error: serde_json::Value = serde_json::from_str(&err).unwrap();
    assert_eq!((code, &error["error"]["at"]["line"]), (2, &serde_json::json!(2)));
    let (code, _, err) = run(dormouse(&["config", "check", missing.to_str().unwrap()]));
    assert_eq!(code, 10, "{err}");

    for (from, to, words, code_if_asked) in [
        (&right, &right, "No changes", 0),
        (&right, &live, "1 change; nobody is interrupted", 11),
        (&live, &restart, "needs a restart of the daemon", 11),
    ] {
        let (code, out, _) = run(dormouse(&["config", "plan", to, "--from", from]));
        assert!(code == 0 && out.contains(words), "{code} {out}");
        let (code, _, _) = run(dormouse(&["config", "plan", to, "--from", from, "--exit-code"]));
        assert_eq!(code, code_if_asked);
    }
    let (_, out, _) = run(dormouse(&["config", "plan", &restart, "--from", &live, "--json"]));
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(plan["changes"][0]["path"], "limits.connections");
    assert_eq!(plan["changes"][1]["effect"], "daemon_restart");
    assert_eq!(plan["interrupts"], "daemon");
}

#[test]
fn the_schema_of_the_config_names_the_effect_of_each_setting() {
    let (code, out, _) = run(dormouse(&["config", "schema", "--json"]));
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    let agent = &schema["properties"]["agents"]["additionalProperties"]["properties"];
    let effect = &agent["turn"]["properties"]["within"]["x-effect"];
    assert_eq!((code, effect), (0, &serde_json::json!("live")));
    assert_eq!(schema["properties"]["server"]["properties"]["listen"]["default"], "127.0.0.1:7766");
    let (code, out, _) = run(dormouse(&["config", "schema"]));
    assert!(code == 0 && out.contains("agents.NAME.turn.within"), "{out}");
}

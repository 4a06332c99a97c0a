//! The program itself: exit codes and words for wrong command lines.
//!
//! Absent: the chores; their parts have unit tests, and `cargo xtask ci` runs them.

use std::process::{Command, Output};

fn xtask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).output().expect("xtask is built")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("xtask writes UTF-8")
}

#[test]
fn without_a_chore_it_lists_them_and_exits_with_2() {
    let output = xtask(&[]);
    assert_eq!(output.status.code(), Some(2));
    let words = text(&output.stderr);
    assert!(words.contains("usage: cargo xtask CHORE") && words.contains("\n  tidy "), "{words}");
}

#[test]
fn asked_for_help_it_exits_with_0() {
    for arguments in [&["--help"][..], &["fuzz", "--help"]] {
        let output = xtask(arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("usage: cargo xtask"), "{arguments:?}");
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_shows_the_right_one() {
    for arguments in [&["tidi"][..], &["tidy", "now"], &["ci", "lint"], &["fuzz", "--seconds"]] {
        let output = xtask(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("usage: cargo xtask"), "{arguments:?}");
    }
}

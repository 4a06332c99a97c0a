//! A disk that fails to sync, once: the store stops for good (FAULTS F5, I21).
//!
//! The failure is injected by strace into a child, which is this test binary running one ignored
//! test. Where strace is missing or may not trace, the test says so and is skipped.

use std::path::Path;
use std::process::{Command, Output};

use dormouse_core::command::Write;
use dormouse_store::{CommitError, ReadError, Store};

use crate::support::*;

const FOLDER: &str = "DORMOUSE_TEST_SYNC_FOLDER";

#[test]
#[ignore = "runs only as the traced child of the test below"]
fn traced_child() {
    let folder = std::env::var(FOLDER).unwrap();
    let mut store = Store::open(Path::new(&folder)).unwrap();
    for n in 1..=100_u64 {
        let mut batch = store.batch();
        batch.apply(&Write::InsertMessage(message(n, "python/main", "text"))).unwrap();
        match batch.commit() {
            Ok(()) => say(&format!("acknowledged {n}")),
            Err(error) => {
                assert!(matches!(error, CommitError::Failed { .. }), "{error}");
                say(&format!("failed {n}"));
                break;
            }
        }
    }
    assert!(store.is_halted());
    let mut batch = store.batch();
    assert!(batch.apply(&Write::InsertMessage(message(500, "python/main", "text"))).is_err());
    drop(batch);
    assert!(matches!(store.live_sessions().unwrap_err(), ReadError::Halted));
    say("stopped for good");
}

/// Runs the child; its `nth` sync, counted from the first, fails with EIO. Others succeed.
fn run_with_failing_sync(folder: &Path, nth: u32) -> Option<Output> {
    let inject = format!("inject=fsync,fdatasync:error=EIO:when={nth}");
    Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", &inject])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "sync_failure::traced_child"])
        .env(FOLDER, folder)
        .output()
        .ok()
}

#[test]
fn after_one_failed_sync_nothing_is_acknowledged_and_what_was_is_kept() {
    let can_trace = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    if !can_trace.is_ok_and(|output| output.status.success()) {
        say("skipped: strace is missing or may not trace");
        return;
    }
    let mut failed_at = Vec::new();
    for nth in [8, 12, 30] {
        let (folder, store) = store_with_session();
        drop(store);
        let output = run_with_failing_sync(folder.path(), nth).unwrap();
        let words = String::from_utf8_lossy(&output.stdout);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}\n{problem}");
        assert!(words.contains("stopped for good"), "{words}");
        let number = |line: &str, prefix: &str| line.split_once(prefix)?.1.parse::<u64>().ok();
        let acknowledged =
            words.lines().filter_map(|line| number(line, "acknowledged ")).max().unwrap_or(0);
        let failed = words.lines().find_map(|line| number(line, "failed ")).unwrap();
        assert_eq!(failed, acknowledged + 1, "{words}");
        failed_at.push(failed);
        // The next life finds at least what was acknowledged, and perhaps the one in doubt.
        let mut store = Store::open(folder.path()).unwrap();
        let found = store.live_sessions().unwrap();
        let found = found.first().map_or(0, |stored| stored.deliveries.len() as u64);
        assert!((acknowledged..=failed).contains(&found), "{found}, acknowledged {acknowledged}");
    }
    assert!(failed_at.is_sorted() && failed_at[0] < failed_at[2], "{failed_at:?}");
}

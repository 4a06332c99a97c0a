//! Opening: folder and file modes, the lock, versions, damage; and opening again.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dormouse_core::command::Write;
use dormouse_store::{OpenError, Reader, Store};
use rusqlite::Connection;

use crate::support::*;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn shell(folder: &Path) -> Connection {
    Connection::open(folder.join("dormouse.db")).unwrap()
}

#[test]
fn the_folder_and_its_files_are_the_owners_alone() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("deep").join("data");
    let mut store = Store::open(&folder).unwrap();
    commit(&mut store, &[Write::PutSession(sleeping("python/main"))]);
    assert_eq!(mode(&folder), 0o700);
    for file in ["dormouse.db", "dormouse.db-wal", "dormouse.db-shm", "lock"] {
        assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
    }
    assert_eq!(store.folder(), folder);
    assert!(store.free_bytes().unwrap() > 0);
}

#[test]
fn a_second_dormouse_is_refused_with_the_pid_of_the_first() {
    let (folder, store) = store_with_session();
    let refused = Store::open(folder.path()).unwrap_err();
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
    let words = refused.to_string();
    assert!(
        words.contains(&format!("another dormouse (pid {}) uses", std::process::id())),
        "{words}"
    );
    assert!(words.contains(folder.path().to_str().unwrap()), "{words}");
    drop(store);
    Store::open(folder.path()).unwrap();
}

#[test]
fn a_newer_schema_is_refused_by_writer_and_reader() {
    let (folder, store) = store_with_session();
    drop(store);
    shell(folder.path()).pragma_update(None, "user_version", 99).unwrap();
    for refused in
        [Store::open(folder.path()).unwrap_err(), Reader::open(folder.path()).unwrap_err()]
    {
        let is_newer = matches!(refused, OpenError::Newer { found: 99, .. });
        assert!(is_newer, "{refused}");
        assert!(refused.to_string().contains("newer dormouse"), "{refused}");
    }
}

#[test]
fn an_edited_migration_is_refused() {
    let (folder, store) = store_with_session();
    drop(store);
    let edit = "UPDATE meta SET value = 'x' WHERE key = 'migration_0001'";
    assert_eq!(shell(folder.path()).execute(edit, []).unwrap(), 1);
    let refused = Store::open(folder.path()).unwrap_err();
    assert!(matches!(refused, OpenError::MigrationChanged { version: 1, .. }), "{refused}");
}

#[test]
fn a_file_that_is_no_database_of_ours_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dormouse.db");
    let text = "not a database ".repeat(1_000);
    std::fs::write(&path, &text).unwrap();
    let refused = Store::open(folder.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Database { .. }), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

    std::fs::remove_file(&path).unwrap();
    shell(folder.path()).execute_batch("CREATE TABLE recipe (name TEXT)").unwrap();
    let refused = Store::open(folder.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
}

#[test]
fn a_reader_needs_a_database_and_says_what_makes_one() {
    let folder = tempfile::tempdir().unwrap();
    let refused = Reader::open(folder.path()).unwrap_err();
    assert!(matches!(refused, OpenError::NoDatabase { .. }), "{refused}");
    assert!(refused.to_string().contains("dormouse up"), "{refused}");
    assert!(!folder.path().join("dormouse.db").exists(), "a reader makes nothing");
}

#[test]
fn a_reader_reads_with_and_without_a_living_writer() {
    let (folder, store) = store_with_session();
    let id = session_id("python/main");
    let beside = reader(folder.path());
    assert!(beside.session(&id).unwrap().is_some());
    drop(store);
    assert!(beside.session(&id).unwrap().is_some());
    assert!(reader(folder.path()).session(&id).unwrap().is_some());
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let (folder, mut store) = store_with_session();
    commit(
        &mut store,
        &[
            Write::PutSession(draining("python/two")),
            Write::InsertMessage(keyed(1, "python/main", "k")),
            Write::InsertMessage(message(2, "python/two", "two")),
            lease(2, 1),
        ],
    );
    let before = (
        store.live_sessions().unwrap(),
        store.newest_message_id().unwrap(),
        reader(folder.path()).counts().unwrap(),
    );
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    let after = (
        store.live_sessions().unwrap(),
        store.newest_message_id().unwrap(),
        reader(folder.path()).counts().unwrap(),
    );
    assert_eq!(before, after);
    assert_eq!(before.0.len(), 2);
}

#[test]
fn a_folder_whose_name_looks_like_an_address_is_a_folder() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("file:data?mode=memory");
    let mut store = Store::open(&folder).unwrap();
    commit(&mut store, &[Write::PutSession(sleeping("python/main"))]);
    assert!(folder.join("dormouse.db").exists());
    assert_eq!(reader(&folder).counts().unwrap().sessions, 1);
}

//! Pages, filters, cursors and totals of a reader; API keys; the integrity check.

use dormouse_core::command::Write;
use dormouse_core::id::AgentName;
use dormouse_core::journal::Because;
use dormouse_core::record::{MessageRecord, SessionRecord};
use dormouse_core::session::phase::Phase;
use dormouse_core::time::Wall;
use dormouse_store::{
    AgentSessions, ApplyError, KeyRecord, MessageFilter, ReadError, Reader, SessionFilter, Store,
};
use rusqlite::Connection;

use crate::support::*;

/// Ten sessions `echo/0` … `python/9`, odd ones of ben and of python, those from 6 on awake.
fn ten_sessions() -> (tempfile::TempDir, Store, Reader) {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    let put = |n: usize| {
        let (agent, owner) = if n % 2 == 1 { ("python", "ben") } else { ("echo", "ann") };
        let phase = if n >= 6 { Phase::Awake } else { Phase::Asleep };
        let record = sleeping(&format!("{agent}/{n}"));
        Write::PutSession(SessionRecord { phase, subject: subject(owner), ..record })
    };
    commit(&mut store, &(0..10).map(put).collect::<Vec<_>>());
    let reader = reader(folder.path());
    (folder, store, reader)
}

fn keys_of(reader: &Reader, filter: &SessionFilter, limit: u32) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut before = None;
    loop {
        let page = reader.sessions(filter, before.as_deref(), limit).unwrap();
        let keys = page.items.iter().map(|view| view.record.id.key().to_owned());
        pages.push(keys.collect());
        before = page.next;
        if before.is_none() {
            return pages;
        }
    }
}

#[test]
fn sessions_come_in_pages_from_new_to_old_and_filtered() {
    let (_folder, _store, reader) = ten_sessions();
    let all = SessionFilter::default();
    assert_eq!(
        keys_of(&reader, &all, 4),
        [vec!["9", "8", "7", "6"], vec!["5", "4", "3", "2"], vec!["1", "0"]]
    );
    let of_ben = SessionFilter { subject: Some(subject("ben")), ..all.clone() };
    assert_eq!(keys_of(&reader, &of_ben, 10), [["9", "7", "5", "3", "1"]]);
    let of_echo = SessionFilter { agent: Some(AgentName::new("echo").unwrap()), ..all.clone() };
    assert_eq!(keys_of(&reader, &of_echo, 10), [["8", "6", "4", "2", "0"]]);
    let awake = SessionFilter { phase: Some(Phase::Awake), ..all.clone() };
    assert_eq!(keys_of(&reader, &awake, 10), [["9", "8", "7", "6"]]);
    let asleep = SessionFilter { phase: Some(Phase::Asleep), ..of_ben.clone() };
    assert_eq!(keys_of(&reader, &asleep, 10), [["5", "3", "1"]]);
    let error = reader.sessions(&all, Some("python/9"), 10).unwrap_err();
    assert!(matches!(error, ReadError::NotACursor), "{error}");
}

#[test]
fn totals_follow_every_change() {
    let (_folder, mut store, reader) = ten_sessions();
    let insert = |n| Write::InsertMessage(message(n, "python/9", "text"));
    commit(&mut store, &[insert(1), insert(2), insert(3), insert(4), insert(5)]);
    let cancel = Write::CancelMessage { message: message_id(5), at: Wall(1), by: subject("ann") };
    commit(&mut store, &[lease(1, 1), answer(1, 1, "r"), bury(2), lease(3, 1), cancel]);
    let counts = reader.counts().unwrap();
    assert_eq!((counts.pending, counts.leased, counts.answered), (1, 1, 1));
    assert_eq!((counts.dead, counts.cancelled), (1, 1));
    assert_eq!((counts.waiting(), counts.accepted(), counts.sessions), (2, 5, 10));
    assert_eq!(counts.sessions_by_phase[Phase::Asleep as usize], 6);
    assert_eq!(counts.sessions_by_phase[Phase::Awake as usize], 4);
    let by_agent = reader.sessions_by_agent().unwrap();
    assert_eq!(by_agent["python"], AgentSessions { sessions: 5, awake: 2 });
    assert_eq!(by_agent.len(), 2);
    let last = session_id("python/9");
    assert_eq!(reader.session(&last).unwrap().unwrap().waiting, 2);
    assert_eq!(reader.sessions(&SessionFilter::default(), None, 1).unwrap().items[0].waiting, 2);
}

#[test]
fn queues_and_dead_letters_come_newest_first_with_positions_and_texts() {
    let (_folder, mut store, reader) = ten_sessions();
    let of = |n, session: &str, owner: &str| {
        let record = message(n, session, &format!("text {n}"));
        Write::InsertMessage(MessageRecord { subject: subject(owner), ..record })
    };
    commit(
        &mut store,
        &[
            of(1, "python/9", "ben"),
            of(2, "echo/8", "ann"),
            of(3, "python/9", "ben"),
            of(4, "python/9", "ann"),
            of(5, "echo/8", "ann"),
            of(6, "echo/8", "ann"),
            lease(1, 1),
            bury(2),
            bury(6),
        ],
    );
    let shown = |filter: &MessageFilter, before: Option<u64>, limit| {
        let items = reader.queue(filter, before.map(message_id), limit).unwrap();
        let row = |item: &dormouse_store::QueuedView| (item.text.clone(), item.message.position);
        items.iter().map(row).collect::<Vec<_>>()
    };
    let row = |n, position| (format!("text {n}"), Some(position));
    let all = MessageFilter::default();
    assert_eq!(shown(&all, None, 10), [row(5, 0), row(4, 2), row(3, 1), row(1, 0)]);
    assert_eq!(shown(&all, None, 2), [row(5, 0), row(4, 2)]);
    assert_eq!(shown(&all, Some(4), 2), [row(3, 1), row(1, 0)]);
    assert_eq!(shown(&all, Some(999), 1), [row(5, 0)], "a cursor need not exist");
    let of_ben = MessageFilter { subject: Some(subject("ben")), ..all.clone() };
    assert_eq!(shown(&of_ben, None, 10), [row(3, 1), row(1, 0)]);
    let of_echo = MessageFilter { session: Some(session_id("echo/8")), ..all.clone() };
    assert_eq!(shown(&of_echo, None, 10), [row(5, 0)]);
    let letters = |filter: &MessageFilter, before| {
        let items = reader.dead_letters(filter, before, 10).unwrap();
        items.into_iter().map(|item| (item.message.id, item.text)).collect::<Vec<_>>()
    };
    let letter = |n: u64| (message_id(n), format!("text {n}"));
    assert_eq!(letters(&all, None), [letter(6), letter(2)]);
    assert_eq!(letters(&all, Some(message_id(6))), [letter(2)]);
    assert_eq!(letters(&of_ben, None), []);
    let (at, by) = (Wall(1), subject("ann"));
    commit(&mut store, &[Write::DropDeadLetter { message: message_id(6), at, by }]);
    assert_eq!(letters(&all, None), [letter(2)]);
    assert_eq!(reader.message_text(message_id(6)).unwrap().as_deref(), Some("text 6"));
    assert_eq!(reader.message_text(message_id(7)).unwrap(), None);
    assert_eq!(reader.message(message_id(7)).unwrap(), None);
}

#[test]
fn a_journal_is_read_in_pages() {
    let (folder, mut store) = store_with_session();
    let note = |n| Write::InsertDecision(decision("python/main", Because::WasIdle { idle_ms: n }));
    commit(&mut store, &(1..=5).map(note).collect::<Vec<_>>());
    let (reader, id) = (reader(folder.path()), session_id("python/main"));
    let numbers = |before, limit| {
        let rows = reader.journal(&id, before, limit).unwrap();
        rows.into_iter().map(|row| row.0).collect::<Vec<_>>()
    };
    assert_eq!(numbers(None, 2), [5, 4]);
    assert_eq!(numbers(Some(4), 10), [3, 2, 1]);
    assert_eq!(numbers(Some(1), 10), [0; 0]);
}

fn key(id: &str, hash: &str, scopes: &[&str]) -> KeyRecord {
    KeyRecord {
        id: id.to_owned(),
        name: format!("the name of {id}"),
        hash: hash.to_owned(),
        subject: subject("ann"),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        created_at: Wall(7),
        revoked_at: None,
    }
}

#[test]
fn keys_are_found_by_their_digest_until_they_are_revoked() {
    let (folder, mut store) = store_with_session();
    let reader = reader(folder.path());
    let (one, two) = (key("key_1", "aa", &["operator", "other"]), key("key_2", "bb", &[]));
    let mut batch = store.batch();
    batch.insert_key(&one).unwrap();
    batch.insert_key(&two).unwrap();
    batch.commit().unwrap();
    assert_eq!(reader.keys().unwrap(), [one.clone(), two.clone()]);
    assert_eq!(reader.key_by_hash("aa").unwrap(), Some(one.clone()));
    assert_eq!(reader.key_by_hash("cc").unwrap(), None);
    let mut batch = store.batch();
    assert!(batch.revoke_key("key_1", Wall(9)).unwrap());
    assert!(!batch.revoke_key("key_1", Wall(10)).unwrap(), "it was revoked before");
    assert!(!batch.revoke_key("key_3", Wall(10)).unwrap(), "there is none");
    batch.commit().unwrap();
    assert_eq!(reader.key_by_hash("aa").unwrap(), None);
    assert_eq!(reader.keys().unwrap(), [KeyRecord { revoked_at: Some(Wall(9)), ..one }, two]);
}

#[test]
fn a_digest_belongs_to_one_key() {
    let (_folder, mut store) = store_with_session();
    let mut batch = store.batch();
    batch.insert_key(&key("key_1", "aa", &[])).unwrap();
    let error = batch.insert_key(&key("key_2", "aa", &[])).unwrap_err();
    assert!(matches!(error, ApplyError::Invariant { .. }), "{error}");
}

#[test]
fn the_integrity_check_names_what_is_wrong() {
    let (folder, mut store) = store_with_session();
    let insert = |n| Write::InsertMessage(message(n, "python/main", "text"));
    commit(&mut store, &[insert(1), insert(2), insert(3), lease(1, 1), answer(1, 1, "r")]);
    assert_eq!(reader(folder.path()).integrity_check().unwrap(), [""; 0]);
    drop(store);
    let spoil = |sql: &str, expected: &str| {
        let copy = tempfile::tempdir().unwrap();
        let path = copy.path().join("dormouse.db");
        std::fs::copy(folder.path().join("dormouse.db"), &path).unwrap();
        let shell = Connection::open(&path).unwrap();
        shell.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
        let problems = reader(copy.path()).integrity_check().unwrap();
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{sql}: {problems:?}");
    };
    spoil("DELETE FROM session", "3 messages belong to a session that has no row");
    spoil("DELETE FROM message_text WHERE seq = 2", "1 messages have no text");
    spoil("UPDATE message SET state = 'asleep' WHERE seq = 2", "does not fit their end");
    spoil("DELETE FROM message_reply", "answered without one");
    spoil("UPDATE message SET leased_generation = 1 WHERE seq = 2", "are not leased and have");
    spoil("UPDATE message SET id = 'msg_0' WHERE seq = 3", "not in the order of their ids");
    spoil("UPDATE tally SET messages = 7 WHERE state = 'pending'", "pending, tallied as 7");
}

#[test]
fn a_damaged_page_is_reported() {
    let (folder, mut store) = store_with_session();
    let insert = |n| Write::InsertMessage(message(n, "python/main", &"text".repeat(500)));
    commit(&mut store, &(1..200).map(insert).collect::<Vec<_>>());
    drop(store);
    let path = folder.path().join("dormouse.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4_096 * 4_096;
    bytes[middle..middle + 16].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let problems = reader(folder.path()).integrity_check();
    let is_reported = match &problems {
        Ok(problems) => !problems.is_empty(),
        Err(error) => matches!(error, ReadError::Failed { .. }),
    };
    assert!(is_reported, "{problems:?}");
}

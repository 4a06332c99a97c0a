//! Databases that released versions wrote, kept as files: this version opens each and finds all
//! that is in it.
//!
//! `cargo nextest run -p dormouse-store --run-ignored only make_fixture` writes the file of the
//! current schema anew; that is done once, in the change that adds the schema's migration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dormouse_core::cause::Cause;
use dormouse_core::command::Write;
use dormouse_core::id::{AgentName, Generation, RevisionNumber};
use dormouse_core::journal::Because;
use dormouse_core::manifest::{ContentId, FileKind, Manifest, Sha256Hash};
use dormouse_core::record::{
    CheckpointRecord, FilesRecord, MessageRecord, MessageState, SessionRecord, UploadRecord,
};
use dormouse_core::rollout::{Failure, Rollout, Standing};
use dormouse_core::time::Wall;
use dormouse_store::{KeyRecord, Store};

use crate::support::*;

fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/v{version}.db"))
}

fn key() -> KeyRecord {
    KeyRecord {
        id: "key_1".to_owned(),
        name: "laptop".to_owned(),
        hash: "ab".repeat(32),
        subject: subject("ann"),
        scopes: vec!["operator".to_owned()],
        created_at: Wall(1),
        revoked_at: None,
    }
}

fn upload(number: u64) -> UploadRecord {
    let content = ContentId::Sha256(Sha256Hash::of(b"a,b"));
    UploadRecord {
        session: session_id("openclaw/tom"),
        number,
        path: "data/a.csv".parse().unwrap(),
        file: Some(FileKind::File { bytes: 3, content, is_executable: false }),
        at: Wall(4),
        by: subject("ann"),
    }
}

fn checkpoint() -> CheckpointRecord {
    CheckpointRecord {
        session: session_id("openclaw/tom"),
        number: 1,
        manifest: Manifest::default().digest(),
        uploads: 2,
        files: 0,
        bytes: 0,
        at: Wall(5),
        generation: Generation(1),
        turn: Some(turn(2, 1)),
    }
}

/// Something in every table, and a message in every state.
fn contents() -> Vec<Write> {
    let anew =
        MessageRecord { redrive_of: Some(message_id(3)), ..message(6, "python/main", "anew") };
    vec![
        Write::PutSession(sleeping("python/main")),
        Write::PutSession(draining("openclaw/tom")),
        Write::InsertMessage(keyed(1, "python/main", "key 1")),
        Write::InsertMessage(message(2, "python/main", "print(6 * 7)")),
        Write::InsertMessage(message(3, "python/main", "crash")),
        Write::InsertMessage(message(4, "openclaw/tom", "never mind")),
        Write::InsertMessage(message(5, "openclaw/tom", "leased")),
        Write::InsertMessage(anew),
        lease(2, 1),
        answer(2, 1, "42"),
        bury(3),
        Write::MarkRedriven { message: message_id(3), new_id: message_id(6) },
        Write::CancelMessage { message: message_id(4), at: Wall(9), by: subject("operator") },
        lease(5, 1),
        Write::InsertUpload(upload(1)),
        Write::InsertCheckpoint { record: checkpoint(), keep: 5 },
        Write::InsertUpload(upload(3)),
        Write::InsertExit(exit("openclaw/tom", 7)),
        Write::InsertDecision(decision("python/main", Because::TurnStarted { turn: turn(2, 1) })),
        Write::PutRollout { agent: agent(), rollout: rollout() },
    ]
}

fn agent() -> AgentName {
    AgentName::new("openclaw").unwrap()
}

/// Every field in use.
fn rollout() -> Rollout {
    let session = session_id("openclaw/tom");
    let (generation, at) = (Generation(7), Wall(1_700_000_005_000));
    let (cause, detail) = (Cause::AppExit, "exit code 1".to_owned());
    Rollout {
        wanted: RevisionNumber(3),
        good: Some(RevisionNumber(2)),
        previous: Some(RevisionNumber(1)),
        standing: Standing::Bad { why: Failure { cause, detail, session, generation, at } },
        is_paused: true,
    }
}

#[test]
#[ignore = "writes the committed file; run it by hand when a schema is added"]
fn make_fixture() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    let mut batch = store.batch();
    for write in contents() {
        batch.apply(&write).unwrap();
    }
    batch.insert_key(&key()).unwrap();
    batch.commit().unwrap();
    drop(store);
    assert!(!folder.path().join("dormouse.db-wal").exists(), "closing empties the log");
    std::fs::copy(folder.path().join("dormouse.db"), fixture(4)).unwrap();
}

#[test]
fn a_database_of_schema_1_opens_with_all_that_is_in_it() {
    // What a session has learned of its memory is kept since schema 2.
    let files = FilesRecord::default();
    opens(1, SessionRecord { memory: None, files, revision: None, ..draining("openclaw/tom") });
}

#[test]
fn a_database_of_schema_2_opens_with_all_that_is_in_it() {
    // Files are known since schema 3.
    let files = FilesRecord::default();
    opens(2, SessionRecord { files, revision: None, ..draining("openclaw/tom") });
}

#[test]
fn a_database_of_schema_3_opens_with_all_that_is_in_it() {
    // Revisions are counted since schema 4.
    let folder = opens(3, SessionRecord { revision: None, ..draining("openclaw/tom") });
    let files = reader(folder.path()).files(&session_id("openclaw/tom")).unwrap().unwrap();
    assert_eq!((files.uploads, files.restore), (vec![upload(3)], Some(checkpoint())));
}

#[test]
fn a_database_of_schema_4_opens_with_all_that_is_in_it() {
    let folder = opens(4, draining("openclaw/tom"));
    let rollouts = reader(folder.path()).rollouts().unwrap();
    assert_eq!(rollouts, BTreeMap::from([(agent(), rollout())]));
}

fn opens(version: u32, expected_tom: SessionRecord) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(version), folder.path().join("dormouse.db")).unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    let reader = reader(folder.path());
    assert_eq!(reader.integrity_check().unwrap(), [""; 0]);

    let (tom, main) = (session_id("openclaw/tom"), session_id("python/main"));
    let live = store.live_sessions().unwrap();
    let records: Vec<_> = live.iter().map(|stored| stored.record.clone()).collect();
    assert_eq!(records, [expected_tom, sleeping("python/main")]);
    let leased = live[0].deliveries[0];
    assert_eq!((leased.message, leased.leased_to), (message_id(5), Some(Generation(1))));
    let waiting: Vec<_> = live[1].deliveries.iter().map(|delivery| delivery.message).collect();
    assert_eq!(waiting, [message_id(1), message_id(6)]);
    assert_eq!(store.newest_message_id().unwrap(), Some(message_id(6)));
    let prior = store.batch().find_prior(&subject("ann"), "key 1").unwrap().unwrap();
    assert_eq!((prior.id, prior.digest.as_str()), (message_id(1), "digest of 1"));

    let view = |n| reader.message(message_id(n)).unwrap().unwrap();
    assert_eq!((view(2).state, view(2).reply.as_deref()), (MessageState::Answered, Some("42")));
    assert_eq!(
        (view(3).cause, view(3).redriven_as),
        (Some(Cause::AttemptsExhausted), Some(message_id(6)))
    );
    assert_eq!(
        (view(4).state, view(4).ended_by),
        (MessageState::Cancelled, Some(subject("operator")))
    );
    assert_eq!(view(6).redrive_of, Some(message_id(3)));
    assert_eq!(reader.message_text(message_id(2)).unwrap().as_deref(), Some("print(6 * 7)"));
    assert_eq!(reader.exits(&tom, 10).unwrap(), [exit("openclaw/tom", 7)]);
    let because = Because::TurnStarted { turn: turn(2, 1) };
    assert_eq!(reader.journal(&main, None, 10).unwrap(), [(1, decision("python/main", because))]);
    assert_eq!(reader.keys().unwrap(), [key()]);
    let counts = reader.counts().unwrap();
    assert_eq!((counts.pending, counts.leased, counts.answered), (2, 1, 1));
    assert_eq!((counts.dead, counts.cancelled, counts.sessions), (1, 1, 2));
    // And it is written to as any other.
    commit(
        &mut store,
        &[answer(5, 1, "done"), Write::InsertMessage(message(7, "python/main", ""))],
    );
    folder
}

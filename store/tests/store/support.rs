//! Records to write, and short ways to write them.

use std::path::Path;

use dormouse_core::cause::Cause;
use dormouse_core::command::Write;
use dormouse_core::diagnosis::own::diagnose_exit;
use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::id::{Generation, MessageId, RevisionNumber, SessionId, Subject, TurnId};
use dormouse_core::journal::{Because, Decision};
use dormouse_core::record::{
    Circumstances, ExitRecord, FilesRecord, Idempotency, MessageRecord, SessionRecord, StopReason,
};
use dormouse_core::session::phase::Phase;
use dormouse_core::sizing::LearnedMemory;
use dormouse_core::time::Wall;
use dormouse_store::{Reader, Store};

/// To whoever reads the test's output.
#[expect(clippy::print_stdout, reason = "a skipped test says so, a traced child reports")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

pub(crate) fn session_id(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

pub(crate) fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

pub(crate) fn sleeping(name: &str) -> SessionRecord {
    SessionRecord {
        id: session_id(name),
        subject: subject("ann"),
        created_at: Wall(1_700_000_000_000),
        phase: Phase::Asleep,
        generation: Generation(0),
        failures: 0,
        backoff_until: None,
        stop: None,
        wake_wanted: false,
        start_took_ms: None,
        last_failure: None,
        memory: None,
        files: Default::default(),
        revision: None,
    }
}

/// Every column in use.
pub(crate) fn draining(name: &str) -> SessionRecord {
    SessionRecord {
        phase: Phase::Draining,
        generation: Generation(7),
        revision: Some(RevisionNumber(3)),
        failures: 3,
        backoff_until: Some(Wall(1_700_000_009_000)),
        stop: Some(StopReason::OperatorRestart),
        wake_wanted: true,
        start_took_ms: Some(1_234),
        last_failure: Some(Cause::OomLimit),
        memory: Some(LearnedMemory {
            limit_bytes: 1 << 30,
            because: Cause::OomLimit,
            since: Wall(1_700_000_004_000),
            peak_survived_bytes: 1 << 29,
        }),
        files: FilesRecord { uploads: 3, checkpoints: 1, restore: 1, floor: 2, lineage: 0 },
        ..sleeping(name)
    }
}

pub(crate) fn message_id(n: u64) -> MessageId {
    MessageId((1_700_000_000_000_u128 << 64) + u128::from(n))
}

pub(crate) fn turn(n: u64, attempt: u32) -> TurnId {
    TurnId { message: message_id(n), attempt }
}

pub(crate) fn message(n: u64, session: &str, text: &str) -> MessageRecord {
    MessageRecord {
        id: message_id(n),
        session: session_id(session),
        subject: subject("ann"),
        text: text.to_owned(),
        accepted_at: Wall(1_700_000_000_000 + n),
        idempotency: None,
        redrive_of: None,
    }
}

pub(crate) fn keyed(n: u64, session: &str, key: &str) -> MessageRecord {
    let idempotency = Idempotency { key: key.to_owned(), digest: format!("digest of {n}") };
    MessageRecord { idempotency: Some(idempotency), ..message(n, session, "keyed") }
}

pub(crate) fn lease(n: u64, attempt: u32) -> Write {
    let at = Wall(1_700_000_001_000 + n);
    Write::LeaseDelivery { turn: turn(n, attempt), generation: Generation(1), at }
}

pub(crate) fn answer(n: u64, attempt: u32, text: &str) -> Write {
    Write::AnswerMessage {
        turn: turn(n, attempt),
        generation: Generation(1),
        at: Wall(1_700_000_002_000 + n),
        text: text.to_owned(),
        exit_code: Some(0),
    }
}

pub(crate) fn bury(n: u64) -> Write {
    Write::BuryMessage {
        message: message_id(n),
        at: Wall(1_700_000_003_000 + n),
        cause: Cause::AttemptsExhausted,
        detail: "exit code 134, three times".to_owned(),
        exit_code: Some(134),
    }
}

pub(crate) fn exit(session: &str, generation: u64) -> ExitRecord {
    let evidence = Evidence {
        asked_by: Some(AskedBy::Signal),
        grace_ran_out: true,
        uptime_ms: Some(4_000),
        oom_kills: Some(1),
        memory_peak_bytes: Some(1 << 30),
        memory_limit_bytes: Some(u64::MAX),
        log_tail: "heap out of memory\n\u{1b}[31m\0 \u{fffd}".to_owned(),
        ..Evidence::bare(End::Signaled { signal: 9 })
    };
    ExitRecord {
        session: session_id(session),
        generation: Generation(generation),
        at: Wall(1_700_000_004_000 + generation),
        phase: Phase::Awake,
        cause: Some(Cause::OomLimit),
        message_in_flight: Some(message_id(1)),
        diagnosis: diagnose_exit(&evidence, &Circumstances::default()),
        circumstances: Circumstances::default(),
        evidence,
    }
}

pub(crate) fn decision(session: &str, because: Because) -> Decision {
    Decision {
        session: session_id(session),
        generation: Generation(1),
        at: Wall(1_700_000_005_000),
        from: Phase::Starting,
        to: Phase::Awake,
        because,
    }
}

/// One batch, committed.
pub(crate) fn commit(store: &mut Store, writes: &[Write]) {
    let mut batch = store.batch();
    for write in writes {
        batch.apply(write).unwrap();
    }
    batch.commit().unwrap();
}

pub(crate) fn reader(folder: &Path) -> Reader {
    Reader::open(folder).unwrap()
}

/// A store with the sleeping session `python/main` in it, and its folder.
pub(crate) fn store_with_session() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    commit(&mut store, &[Write::PutSession(sleeping("python/main"))]);
    (folder, store)
}

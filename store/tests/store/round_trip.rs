//! Every write, seen again by the engine and by a reader; and what a write may not do.

use dormouse_core::cause::Cause;
use dormouse_core::command::Write;
use dormouse_core::event::{DeadLetter, PriorMessage};
use dormouse_core::evidence::{End, Evidence};
use dormouse_core::id::Generation;
use dormouse_core::journal::{Because, ExitSummary};
use dormouse_core::record::{Circumstances, Delivery, MessageState, SessionRecord, StoredSession};
use dormouse_core::session::phase::Phase;
use dormouse_core::time::Wall;
use dormouse_store::{ApplyError, CommitError, ReadError, Store};

use crate::support::*;

#[test]
fn a_session_comes_back_as_it_was_put_and_put_again() {
    let (folder, mut store) = store_with_session();
    let id = session_id("python/main");
    assert!(store.live_sessions().unwrap().is_empty(), "a sleeping session is not live");
    for record in [
        draining("python/main"),
        SessionRecord {
            phase: Phase::Backoff,
            stop: None,
            backoff_until: Some(Wall(5)),
            ..draining("python/main")
        },
    ] {
        commit(&mut store, &[Write::PutSession(record.clone())]);
        let expected = StoredSession { record: record.clone(), deliveries: Vec::new() };
        assert_eq!(store.batch().session(&id).unwrap(), Some(expected.clone()));
        assert_eq!(store.live_sessions().unwrap(), [expected]);
        let view = reader(folder.path()).session(&id).unwrap().unwrap();
        assert_eq!((view.record, view.waiting, view.last_exit), (record, 0, None));
    }
    assert_eq!(store.batch().session(&session_id("python/other")).unwrap(), None);
    assert_eq!(reader(folder.path()).session(&session_id("python/other")).unwrap(), None);
}

#[test]
fn every_phase_and_every_wish_to_wake_makes_a_session_live_but_sleep_alone() {
    let (_folder, mut store) = store_with_session();
    for phase in Phase::ALL {
        for wake_wanted in [false, true] {
            let record = SessionRecord { phase, wake_wanted, ..sleeping("python/main") };
            commit(&mut store, &[Write::PutSession(record)]);
            let is_live = phase != Phase::Asleep || wake_wanted;
            assert_eq!(store.live_sessions().unwrap().len(), usize::from(is_live), "{phase}");
        }
    }
}

#[test]
fn a_message_goes_from_pending_over_leased_to_answered() {
    let (folder, mut store) = store_with_session();
    let id = session_id("python/main");
    let text = "line one\nline two \0 with a zero byte and an emoji \u{1f42d}";
    commit(&mut store, &[Write::InsertMessage(message(1, "python/main", text))]);
    let delivery = Delivery {
        message: message_id(1),
        bytes: u32::try_from(text.len()).unwrap(),
        attempts: 0,
        excused: 0,
        leased_to: None,
        not_before: None,
    };
    assert_eq!(store.live_sessions().unwrap()[0].deliveries, [delivery]);
    assert_eq!(store.batch().message_text(message_id(1)).unwrap().as_deref(), Some(text));
    assert_eq!(store.newest_message_id().unwrap(), Some(message_id(1)));

    commit(&mut store, &[lease(1, 1)]);
    let leased = Delivery { attempts: 1, leased_to: Some(Generation(1)), ..delivery };
    assert_eq!(store.batch().session(&id).unwrap().unwrap().deliveries, [leased]);

    let not_before = Some(Wall(1_700_000_099_000));
    commit(&mut store, &[Write::ReturnDelivery { message: message_id(1), excused: 1, not_before }]);
    let returned = Delivery { attempts: 1, excused: 1, not_before, ..delivery };
    assert_eq!(store.batch().session(&id).unwrap().unwrap().deliveries, [returned]);

    commit(&mut store, &[lease(1, 2)]);
    let again = Delivery { attempts: 2, excused: 1, leased_to: Some(Generation(1)), ..delivery };
    assert_eq!(store.batch().session(&id).unwrap().unwrap().deliveries, [again]);

    commit(&mut store, &[answer(1, 2, "42\0")]);
    assert_eq!(store.batch().session(&id).unwrap().unwrap().deliveries, []);
    assert!(store.live_sessions().unwrap().is_empty());
    let view = reader(folder.path()).message(message_id(1)).unwrap().unwrap();
    assert_eq!(view.state, MessageState::Answered);
    assert_eq!((view.attempts, view.excused, view.position), (2, 1, None));
    assert_eq!((view.reply.as_deref(), view.exit_code), (Some("42\0"), Some(0)));
    assert_eq!(view.accepted_at, Wall(1_700_000_000_001));
    assert_eq!(view.ended_at, Some(Wall(1_700_000_002_001)));
    assert_eq!((&view.session, &view.subject), (&id, &subject("ann")));
    assert_eq!((view.cause, view.detail, view.not_before), (None, None, None));
}

#[test]
fn a_dead_letter_keeps_its_cause_and_says_what_became_of_it() {
    let (folder, mut store) = store_with_session();
    let record = message(1, "python/main", "crash me");
    commit(&mut store, &[Write::InsertMessage(record.clone()), lease(1, 1), bury(1)]);
    let mut expected = DeadLetter {
        id: message_id(1),
        session: record.session.clone(),
        subject: record.subject.clone(),
        text: record.text.clone(),
        redriven_as: None,
    };
    assert_eq!(store.batch().dead_letter(message_id(1)).unwrap(), Some(expected.clone()));
    let view = reader(folder.path()).message(message_id(1)).unwrap().unwrap();
    assert_eq!(view.state, MessageState::Dead);
    assert_eq!(view.cause, Some(Cause::AttemptsExhausted));
    assert_eq!(view.detail.as_deref(), Some("exit code 134, three times"));
    assert_eq!((view.exit_code, view.ended_at), (Some(134), Some(Wall(1_700_000_003_001))));

    let mut anew = message(2, "python/main", "crash me");
    anew.redrive_of = Some(message_id(1));
    let mark = Write::MarkRedriven { message: message_id(1), new_id: message_id(2) };
    commit(&mut store, &[Write::InsertMessage(anew), mark]);
    expected.redriven_as = Some(message_id(2));
    assert_eq!(store.batch().dead_letter(message_id(1)).unwrap(), Some(expected));
    let reader = reader(folder.path());
    assert_eq!(reader.message(message_id(1)).unwrap().unwrap().redriven_as, Some(message_id(2)));
    assert_eq!(reader.message(message_id(2)).unwrap().unwrap().redrive_of, Some(message_id(1)));
    assert_eq!(store.batch().dead_letter(message_id(2)).unwrap(), None, "it is pending");

    let (at, by) = (Wall(77), subject("operator"));
    commit(&mut store, &[Write::DropDeadLetter { message: message_id(1), at, by: by.clone() }]);
    assert_eq!(store.batch().dead_letter(message_id(1)).unwrap(), None);
    let view = reader.message(message_id(1)).unwrap().unwrap();
    assert_eq!(view.state, MessageState::Dead, "it stays dead");
    assert_eq!((view.dropped_at, view.ended_by), (Some(at), Some(by)));
}

#[test]
fn pending_messages_can_be_cancelled_and_buried_too() {
    let (folder, mut store) = store_with_session();
    let (at, by) = (Wall(5), subject("operator"));
    commit(
        &mut store,
        &[
            Write::InsertMessage(message(1, "python/main", "one")),
            Write::InsertMessage(message(2, "python/main", "two")),
            Write::CancelMessage { message: message_id(1), at, by: by.clone() },
            bury(2),
        ],
    );
    let reader = reader(folder.path());
    let view = reader.message(message_id(1)).unwrap().unwrap();
    assert_eq!((view.state, view.ended_at), (MessageState::Cancelled, Some(at)));
    assert_eq!(view.ended_by, Some(by));
    assert_eq!(reader.message(message_id(2)).unwrap().unwrap().state, MessageState::Dead);
    let counts = reader.counts().unwrap();
    assert_eq!((counts.dead, counts.cancelled, counts.waiting()), (1, 1, 0));
}

#[test]
fn exits_and_decisions_of_every_kind_come_back_word_for_word() {
    let (folder, mut store) = store_with_session();
    let because = [
        Because::MessagesWait { waiting: 2 },
        Because::StopRequested { by: subject("a@b.c") },
        Because::TurnFailed {
            turn: turn(1, 2),
            cause: Cause::AgentError,
            message: "quote \" newline \n zero \0 \u{1f42d}".to_owned(),
            retry_at: Some(Wall(u64::MAX)),
        },
        Because::DrainTimeUp { turn: None },
        Because::Exited {
            summary: ExitSummary::of(&Evidence::bare(End::BridgeLost), None, None),
            failures: 1,
            restart_at: None,
        },
    ];
    let bare = dormouse_core::record::ExitRecord {
        cause: None,
        message_in_flight: None,
        evidence: Evidence::bare(End::NeverLaunched),
        circumstances: Circumstances { attempt: Some(2), lived_ms: 7, ..Circumstances::default() },
        ..exit("python/main", 2)
    };
    let mut writes =
        vec![Write::InsertExit(exit("python/main", 1)), Write::InsertExit(bare.clone())];
    let decisions = because.map(|because| decision("python/main", because));
    writes.extend(decisions.iter().cloned().map(Write::InsertDecision));
    commit(&mut store, &writes);
    let (reader, id) = (reader(folder.path()), session_id("python/main"));
    assert_eq!(reader.exits(&id, 10).unwrap(), [bare, exit("python/main", 1)]);
    let journal = reader.journal(&id, None, 10).unwrap();
    let (numbers, found): (Vec<i64>, Vec<_>) = journal.into_iter().unzip();
    assert_eq!(numbers, [5, 4, 3, 2, 1]);
    assert_eq!(found, decisions.into_iter().rev().collect::<Vec<_>>());
    let last_exit = reader.session(&id).unwrap().unwrap().last_exit.unwrap();
    assert_eq!((last_exit.generation, last_exit.cause), (Generation(2), None));
}

#[test]
fn a_key_names_its_first_message_in_the_batch_after_it_and_after_a_restart() {
    let (folder, mut store) = store_with_session();
    let (ann, ben) = (subject("ann"), subject("ben"));
    let expected = PriorMessage { id: message_id(1), digest: "digest of 1".to_owned() };
    let mut batch = store.batch();
    assert_eq!(batch.find_prior(&ann, "k").unwrap(), None);
    batch.apply(&Write::InsertMessage(keyed(1, "python/main", "k"))).unwrap();
    assert_eq!(batch.find_prior(&ann, "k").unwrap(), Some(expected.clone()));
    batch.commit().unwrap();
    assert_eq!(store.batch().find_prior(&ann, "k").unwrap(), Some(expected.clone()));
    assert_eq!(store.batch().find_prior(&ben, "k").unwrap(), None, "keys are each sender's own");
    assert_eq!(store.batch().find_prior(&ann, "K").unwrap(), None);
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    assert_eq!(store.batch().find_prior(&ann, "k").unwrap(), Some(expected));
}

#[test]
fn a_dropped_batch_leaves_nothing_behind() {
    let (folder, mut store) = store_with_session();
    let mut batch = store.batch();
    batch.apply(&Write::InsertMessage(keyed(1, "python/main", "k"))).unwrap();
    batch.apply(&Write::PutSession(draining("python/two"))).unwrap();
    drop(batch);
    assert!(store.live_sessions().unwrap().is_empty());
    assert_eq!(store.newest_message_id().unwrap(), None);
    assert_eq!(store.batch().find_prior(&subject("ann"), "k").unwrap(), None);
    assert_eq!(reader(folder.path()).counts().unwrap().accepted(), 0);
    // The same ids are free again.
    commit(&mut store, &[Write::InsertMessage(keyed(1, "python/main", "k"))]);
    assert_eq!(reader(folder.path()).counts().unwrap().pending, 1);
}

#[test]
fn a_batch_that_wrote_nothing_begins_and_syncs_nothing() {
    let (folder, mut store) = store_with_session();
    let log = folder.path().join("dormouse.db-wal");
    let before = std::fs::metadata(&log).unwrap();
    let mut batch = store.batch();
    assert!(batch.session(&session_id("python/main")).unwrap().is_some());
    // Another writer could begin now: nothing holds the write lock.
    let other = rusqlite::Connection::open(folder.path().join("dormouse.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE; ROLLBACK").unwrap();
    batch.commit().unwrap();
    let after = std::fs::metadata(&log).unwrap();
    assert_eq!(before.len(), after.len());
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
}

/// Applies the last write to a store that had the others, and expects a contradiction.
fn contradiction(before: &[Write], last: Write) {
    let (folder, mut store) = store_with_session();
    commit(&mut store, before);
    let counts = reader(folder.path()).counts().unwrap();
    let mut batch = store.batch();
    let error = batch.apply(&last).unwrap_err();
    assert!(matches!(error, ApplyError::Invariant { .. }), "{last:?}: {error}");
    drop(batch);
    assert!(store.is_halted());
    assert_eq!(reader(folder.path()).counts().unwrap(), counts, "nothing of it is stored");
}

#[test]
fn the_last_states_absorb() {
    let insert = || Write::InsertMessage(message(1, "python/main", "one"));
    let cancel =
        || Write::CancelMessage { message: message_id(1), at: Wall(1), by: subject("operator") };
    let ends = [
        vec![insert(), lease(1, 1), answer(1, 1, "done")],
        vec![insert(), lease(1, 1), bury(1)],
        vec![insert(), cancel()],
    ];
    for ended in ends {
        contradiction(&ended, lease(1, 2));
        contradiction(&ended, answer(1, 1, "again"));
        contradiction(&ended, bury(1));
        contradiction(&ended, cancel());
        let back = Write::ReturnDelivery { message: message_id(1), excused: 0, not_before: None };
        contradiction(&ended, back);
    }
}

#[test]
fn only_a_pending_message_is_leased_and_only_by_the_next_attempt() {
    let insert = || Write::InsertMessage(message(1, "python/main", "one"));
    contradiction(&[insert(), lease(1, 1)], lease(1, 2));
    contradiction(&[insert()], lease(1, 2));
    contradiction(&[insert()], lease(2, 1));
    let give_back =
        |excused| Write::ReturnDelivery { message: message_id(1), excused, not_before: None };
    contradiction(&[insert()], give_back(0));
    contradiction(&[insert(), lease(1, 1)], give_back(2));
}

#[test]
fn only_the_generation_and_the_attempt_that_hold_the_lease_can_answer() {
    let before = [Write::InsertMessage(message(1, "python/main", "one")), lease(1, 1)];
    contradiction(&before, answer(1, 2, "of another attempt"));
    contradiction(
        &before,
        Write::AnswerMessage {
            turn: turn(1, 1),
            generation: Generation(2),
            at: Wall(1),
            text: "of another generation".to_owned(),
            exit_code: None,
        },
    );
    contradiction(&before[..1], answer(1, 0, "never asked"));
}

#[test]
fn a_session_keeps_its_owner_and_its_generation_never_falls() {
    let put = |change: fn(&mut SessionRecord)| {
        let mut record = draining("python/main");
        change(&mut record);
        Write::PutSession(record)
    };
    let before = [put(|_record| {})];
    contradiction(&before, put(|record| record.generation = Generation(6)));
    contradiction(&before, put(|record| record.subject = subject("ben")));
    contradiction(&before, put(|record| record.created_at = Wall(1)));
}

#[test]
fn ids_ascend_and_an_instance_ends_once() {
    let insert = |n| Write::InsertMessage(message(n, "python/main", "one"));
    contradiction(&[insert(5)], insert(5));
    contradiction(&[insert(5)], insert(4));
    let ended = || Write::InsertExit(exit("python/main", 1));
    contradiction(&[ended()], ended());
}

#[test]
fn only_open_dead_letters_are_redriven_or_dropped() {
    let insert = || Write::InsertMessage(message(1, "python/main", "one"));
    let mark = || Write::MarkRedriven { message: message_id(1), new_id: message_id(2) };
    let dropped =
        || Write::DropDeadLetter { message: message_id(1), at: Wall(1), by: subject("operator") };
    contradiction(&[insert()], mark());
    contradiction(&[insert()], dropped());
    contradiction(&[insert(), bury(1), mark()], mark());
    contradiction(&[insert(), bury(1), dropped()], dropped());
    contradiction(&[insert(), bury(1), dropped()], mark());
}

#[test]
fn a_message_whose_session_was_never_put_fails_the_commit() {
    let (_folder, mut store) = store_with_session();
    let mut batch = store.batch();
    batch.apply(&Write::InsertMessage(message(1, "python/nobody", "one"))).unwrap();
    let error = batch.commit().unwrap_err();
    assert!(matches!(error, CommitError::Failed { .. }), "{error}");
    assert!(store.is_halted());
}

#[test]
fn the_session_may_be_put_after_its_first_message() {
    let (_folder, mut store) = store_with_session();
    commit(
        &mut store,
        &[
            Write::InsertMessage(message(1, "python/new", "one")),
            Write::InsertDecision(decision("python/new", Because::DrainFinished)),
            Write::PutSession(sleeping("python/new")),
        ],
    );
    assert_eq!(store.live_sessions().unwrap().len(), 1);
}

#[test]
fn after_a_contradiction_nothing_succeeds_any_more() {
    let (_folder, mut store) = store_with_session();
    store.batch().apply(&lease(1, 1)).unwrap_err();
    let mut batch = store.batch();
    let put = Write::PutSession(sleeping("python/two"));
    assert!(matches!(batch.apply(&put).unwrap_err(), ApplyError::Halted));
    let read = batch.session(&session_id("python/main")).unwrap_err();
    assert!(matches!(read, ReadError::Halted), "{read}");
    drop(batch);
    assert!(matches!(store.batch().commit().unwrap_err(), CommitError::Halted));
    assert!(matches!(store.live_sessions().unwrap_err(), ReadError::Halted));
    assert!(matches!(store.newest_message_id().unwrap_err(), ReadError::Halted));
    assert!(matches!(store.checkpoint_if_due().unwrap_err(), CommitError::Halted));
    store.prune(Wall(1)).unwrap_err();
}

#[test]
#[should_panic(expected = "can only be dropped")]
fn a_batch_in_which_a_write_failed_cannot_be_committed() {
    let (_folder, mut store) = store_with_session();
    let mut batch = store.batch();
    batch.apply(&lease(1, 1)).unwrap_err();
    drop(batch.commit());
}

#[test]
fn journal_and_exits_are_bounded_per_session_and_keep_the_newest() {
    let (folder, mut store) = store_with_session();
    commit(&mut store, &[Write::PutSession(sleeping("python/two"))]);
    let note = |name| Write::InsertDecision(decision(name, Because::DrainFinished));
    let mut batch = store.batch();
    batch.apply(&note("python/two")).unwrap();
    for n in 1..=2_350 {
        batch.apply(&note("python/main")).unwrap();
        if n <= 130 {
            batch.apply(&Write::InsertExit(exit("python/main", n))).unwrap();
        }
    }
    batch.commit().unwrap();
    let (reader, id) = (reader(folder.path()), session_id("python/main"));
    let journal = reader.journal(&id, None, 5_000).unwrap();
    assert!((1_000..1_100).contains(&journal.len()), "{}", journal.len());
    assert_eq!(journal.first().map(|row| row.0), Some(2_350));
    assert_eq!(reader.journal(&session_id("python/two"), None, 10).unwrap().len(), 1);
    let exits = reader.exits(&id, 1_000).unwrap();
    let generations: Vec<u64> = exits.iter().map(|exit| exit.generation.0).collect();
    assert_eq!(generations, (31..=130).rev().collect::<Vec<_>>());
}

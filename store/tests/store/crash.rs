//! Images that a crash may leave: of each step of a random run, every 512-byte sector is either
//! as before the step or as after it. Each image must open, and hold each batch whole or not at
//! all: all that were acknowledged before the step, and perhaps the step's own.

use std::path::{Path, PathBuf};

use dormouse_core::command::Write;
use dormouse_core::journal::Because;
use dormouse_store::{OpenError, Reader, Store};

use crate::support::*;

const SECTOR: usize = 512;
const LOG_HEADER: usize = 32;
const FILES: [&str; 2] = ["dormouse.db", "dormouse.db-wal"];

/// Repeatable and even enough (the finaliser of splitmix64).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let n = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (n ^ (n >> 31)) % sides
    }
}

/// The files as they are on disk.
fn image(folder: &Path) -> [Vec<u8>; 2] {
    FILES.map(|file| std::fs::read(folder.join(file)).unwrap_or_default())
}

/// Each sector from one of the two, and a length of one of the two.
fn torn(before: &[u8], after: &[u8], dice: &mut Dice) -> Vec<u8> {
    let end = if dice.roll(2) == 0 { before.len() } else { after.len() };
    let keep_before = dice.roll(5);
    let mut mixed = Vec::with_capacity(end);
    for first in (0..end).step_by(SECTOR) {
        let last = end.min(first + SECTOR);
        let (one, other) =
            if dice.roll(4) < keep_before { (before, after) } else { (after, before) };
        let source = if one.len() >= last { one } else { other };
        match source.get(first..last) {
            Some(sector) => mixed.extend_from_slice(sector),
            // Neither is that long in one piece: a hole, as file systems leave them.
            None => mixed.resize(last, 0),
        }
    }
    mixed
}

fn write_image(folder: &Path, files: [Vec<u8>; 2]) {
    for (file, bytes) in FILES.iter().zip(files) {
        std::fs::write(folder.join(file), bytes).unwrap();
    }
}

/// How many batches there are. Panics where one is there in part.
fn batches_in(folder: &Path, all: &[Batch]) -> usize {
    let mut store = Store::open(folder).unwrap();
    let reader = Reader::open(folder).unwrap();
    assert_eq!(reader.integrity_check().unwrap(), [""; 0]);
    let (id, journal_max) = (session_id("python/main"), 100_000);
    let journal = reader.journal(&id, None, journal_max).unwrap().len();
    // Each batch has one decision, so the decisions count the batches.
    let (present, absent) = all.split_at(journal);
    for batch in present {
        for n in batch.messages.clone() {
            let text = store.batch().message_text(message_id(n)).unwrap();
            assert_eq!(text, Some(text_of(n)), "message {n} of a batch that is there");
            let prior = store.batch().find_prior(&subject("ann"), &format!("key {n}")).unwrap();
            assert_eq!(prior.map(|prior| prior.id), Some(message_id(n)));
        }
    }
    for batch in absent {
        for n in batch.messages.clone() {
            assert_eq!(reader.message(message_id(n)).unwrap(), None, "message {n} of no batch");
        }
    }
    let accepted: u64 = present.iter().map(|batch| batch.messages.clone().count() as u64).sum();
    assert_eq!(reader.counts().unwrap().accepted(), accepted);
    // And it goes on from there.
    let next = present.last().map_or(1, |batch| batch.messages.end);
    commit(&mut store, &[Write::InsertMessage(message(next, "python/main", "after the crash"))]);
    present.len()
}

#[derive(Debug)]
struct Batch {
    messages: std::ops::Range<u64>,
}

fn text_of(n: u64) -> String {
    format!("{n} ").repeat(n as usize % 700)
}

fn commit_batch(store: &mut Store, batch: &Batch) {
    let mut writes = vec![Write::InsertDecision(decision("python/main", Because::DrainFinished))];
    for n in batch.messages.clone() {
        let mut record = keyed(n, "python/main", &format!("key {n}"));
        record.text = text_of(n);
        writes.push(Write::InsertMessage(record));
        match n % 3 {
            0 => writes.extend([lease(n, 1), answer(n, 1, &text_of(n + 1))]),
            1 => writes.push(lease(n, 1)),
            _other => {}
        }
    }
    commit(store, &writes);
}

fn memory_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

#[test]
fn whatever_sectors_a_crash_loses_each_batch_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir_in(memory_folder()).unwrap();
    let crashed = tempfile::tempdir_in(memory_folder()).unwrap();
    let mut dice = Dice(20);
    let mut all: Vec<Batch> = Vec::new();
    let mut store = Store::open(folder.path()).unwrap();
    commit(&mut store, &[Write::PutSession(sleeping("python/main"))]);
    let (mut own_was_there, mut own_was_not) = (0, 0);
    for _step in 0..60 {
        let before = image(folder.path());
        let acknowledged = all.len();
        if dice.roll(6) == 0 {
            checkpoint(folder.path());
        } else {
            let first = all.last().map_or(1, |batch| batch.messages.end);
            all.push(Batch { messages: first..first + dice.roll(20) });
            commit_batch(&mut store, all.last().unwrap());
        }
        let after = image(folder.path());
        // A log that starts over has its new header synced before a frame is overwritten.
        let header = after[1].len().min(LOG_HEADER);
        let mut between = before.clone();
        between[1].resize(before[1].len().max(header), 0);
        between[1][..header].copy_from_slice(&after[1][..header]);
        let moments = [(&before, &between), (&between, &after), (&between, &after)];
        for (one, other) in moments {
            let files = [0, 1].map(|file| torn(&one[file], &other[file], &mut dice));
            write_image(crashed.path(), files);
            let present = batches_in(crashed.path(), &all);
            assert!(present >= acknowledged, "an acknowledged batch is gone");
            own_was_there += usize::from(present > acknowledged);
            own_was_not += usize::from(present == acknowledged);
        }
    }
    assert!(own_was_there > 10 && own_was_not > 10, "{own_was_there} {own_was_not}");
}

/// What the store does when its log has grown, from beside it, as the log here never grows enough.
fn checkpoint(folder: &Path) {
    let beside = rusqlite::Connection::open(folder.join("dormouse.db")).unwrap();
    beside.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_row| Ok(())).unwrap();
}

#[test]
fn a_log_cut_at_any_byte_keeps_every_batch_before_the_cut() {
    let folder = tempfile::tempdir_in(memory_folder()).unwrap();
    let crashed = tempfile::tempdir_in(memory_folder()).unwrap();
    let mut dice = Dice(21);
    let mut store = Store::open(folder.path()).unwrap();
    commit(&mut store, &[Write::PutSession(sleeping("python/main"))]);
    let mut all: Vec<Batch> = Vec::new();
    let mut lengths = Vec::new();
    for _batch in 0..20 {
        let first = all.last().map_or(1, |batch| batch.messages.end);
        all.push(Batch { messages: first..first + 1 + dice.roll(10) });
        commit_batch(&mut store, all.last().unwrap());
        lengths.push(image(folder.path())[1].len());
    }
    let [database, log] = image(folder.path());
    let start = image(folder.path())[1].len().min(lengths[0]);
    for _cut in 0..60 {
        let cut = start + dice.roll((log.len() - start) as u64) as usize;
        write_image(crashed.path(), [database.clone(), log[..cut].to_vec()]);
        let whole = lengths.iter().filter(|length| **length <= cut).count();
        assert_eq!(batches_in(crashed.path(), &all), whole, "cut at {cut}");
    }
}

#[test]
fn a_log_with_a_hole_before_accepted_work_is_refused_and_not_cut_short() {
    let (folder, mut store) = store_with_session();
    for n in 1..=5 {
        commit(&mut store, &[Write::InsertMessage(message(n, "python/main", "text"))]);
    }
    let [database, mut log] = image(folder.path());
    let crashed = tempfile::tempdir().unwrap();
    write_image(crashed.path(), [database.clone(), log.clone()]);
    drop(Store::open(crashed.path()).unwrap());

    let middle = log.len() / 2;
    log[middle] ^= 1;
    write_image(crashed.path(), [database, log.clone()]);
    let refused = Store::open(crashed.path()).unwrap_err();
    assert!(matches!(refused, OpenError::LogDamaged { .. }), "{refused}");
    assert_eq!(image(crashed.path())[1], log, "nothing of it was thrown away");
}

//! A disk without room: nothing of the batch is stored, what was there stays, and when there is
//! room again the same store goes on (FAULTS F6).

use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_core::command::Write;
use dormouse_store::{ApplyError, CommitError, Store};

use crate::support::*;

/// A file system of some megabytes that goes away when dropped.
struct SmallDisk {
    folder: PathBuf,
    _parent: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where this user may not mount.
    fn mount(megabytes: u32) -> Option<Self> {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("disk");
        std::fs::create_dir(&folder).unwrap();
        let size = format!("size={megabytes}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).output();
        let is_mounted = mounted.is_ok_and(|output| output.status.success());
        is_mounted.then_some(Self { folder, _parent: parent })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("--lazy").arg(&self.folder).status();
        assert!(done.is_ok_and(|status| status.success()), "{}", self.folder.display());
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Stored,
    FullAtApply,
    FullAtCommit,
}

fn insert(store: &mut Store, first: u64, count: u64, text: &str) -> Outcome {
    let mut batch = store.batch();
    for n in first..first + count {
        match batch.apply(&Write::InsertMessage(message(n, "python/main", text))) {
            Ok(()) => {}
            Err(ApplyError::Full { .. }) => return Outcome::FullAtApply,
            Err(error) => panic!("{error}"),
        }
    }
    match batch.commit() {
        Ok(()) => Outcome::Stored,
        Err(CommitError::Full { .. }) => Outcome::FullAtCommit,
        Err(error) => panic!("{error}"),
    }
}

/// Fills the disk with batches until one does not fit; says how many messages are stored.
fn fill(store: &mut Store, per_batch: u64, text: &str) -> (u64, Outcome) {
    let mut stored = store.newest_message_id().unwrap().map_or(0, |id| id.0 as u64);
    loop {
        match insert(store, stored + 1, per_batch, text) {
            Outcome::Stored => stored += per_batch,
            full => return (stored, full),
        }
    }
}

fn check(folder: &Path, stored: u64) {
    let reader = reader(folder);
    assert_eq!(reader.counts().unwrap().pending, stored);
    assert_eq!(reader.integrity_check().unwrap(), [""; 0]);
}

#[test]
fn a_full_disk_is_reported_loses_nothing_and_is_got_over_without_opening_again() {
    let Some(disk) = SmallDisk::mount(4) else {
        say("skipped: this user may not mount a small file system");
        return;
    };
    let ballast = disk.folder.join("ballast");
    let folder = disk.folder.join("data");
    std::fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let mut store = Store::open(&folder).unwrap();
    commit(&mut store, &[Write::PutSession(sleeping("python/main"))]);
    let (stored, full) = fill(&mut store, 10, &"x".repeat(2_000));
    assert_eq!(full, Outcome::FullAtCommit);
    assert!(stored > 0 && !store.is_halted());
    check(&folder, stored);
    // It stays full, and says so each time.
    assert_ne!(insert(&mut store, stored + 1, 10, &"x".repeat(2_000)), Outcome::Stored);
    store.checkpoint_if_due().unwrap();
    check(&folder, stored);

    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(insert(&mut store, stored + 1, 10, &"x".repeat(2_000)), Outcome::Stored);
    check(&folder, stored + 10);
    drop(store);
    let mut store = Store::open(&folder).unwrap();
    check(&folder, stored + 10);
    assert_eq!(store.live_sessions().unwrap()[0].deliveries.len() as u64, stored + 10);
}

#[test]
fn a_batch_larger_than_memory_meets_the_full_disk_before_its_commit() {
    let Some(disk) = SmallDisk::mount(24) else {
        say("skipped: this user may not mount a small file system");
        return;
    };
    let folder = disk.folder.join("data");
    let ballast = disk.folder.join("ballast");
    std::fs::write(&ballast, vec![0; 16 << 20]).unwrap();
    let mut store = Store::open(&folder).unwrap();
    commit(&mut store, &[Write::PutSession(sleeping("python/main"))]);
    assert_eq!(insert(&mut store, 1, 5, "short"), Outcome::Stored);
    // SQLite's cache spills into the log long before 64 MiB.
    assert_eq!(insert(&mut store, 6, 64, &"x".repeat(1 << 20)), Outcome::FullAtApply);
    assert!(!store.is_halted());
    check(&folder, 5);
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(insert(&mut store, 6, 5, "short"), Outcome::Stored);
    check(&folder, 10);
}

#[test]
fn a_disk_that_is_full_before_anything_is_there_is_an_error_with_words() {
    let Some(disk) = SmallDisk::mount(1) else {
        say("skipped: this user may not mount a small file system");
        return;
    };
    let room = rustix::fs::statvfs(&disk.folder).unwrap();
    let free = room.f_bavail * room.f_frsize;
    std::fs::write(disk.folder.join("ballast"), vec![0; free as usize - (16 << 10)]).unwrap();
    let error = Store::open(&disk.folder.join("data")).unwrap_err();
    let words = error.to_string();
    assert!(words.contains("dormouse.db"), "{words}");
}

//! The data folder: can it be written, how much room is there, does it lock, how fast is a sync.
//!
//! Invariant: what is tried happens in a file that is gone afterwards; a folder that does not exist
//! is not made, its nearest parent stands in for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::journal::human_span;
use rustix::fs::{FlockOperation, fcntl_lock, fstatfs, fstatvfs};

use super::Check;
use crate::cli::human_size;

const FOLDER: &str = "data folder";
const FREE: &str = "free space";
const LOCKS: &str = "locks";
const SYNC: &str = "sync speed";
/// A log, a workspace and a store want to grow.
const FREE_BYTES_COMFORTABLE: u64 = 1 << 30;
/// Each accepted message waits for one; slower than this, people notice.
const SYNC_COMFORTABLE: Duration = Duration::from_millis(50);
const SYNC_BYTES: usize = 4096;
const SYNCS: usize = 5;

pub(super) fn checks(data: &Path, floor_bytes: Option<u64>) -> Vec<Check> {
    let place = nearest_existing(data);
    let (path, file) = match probe_file(&place) {
        Ok(probe) => probe,
        Err(error) => {
            let fact = format!("{} cannot be written: {error}", place.display());
            let fix = "give this user the right to write there, or name another with --data FOLDER";
            return vec![Check::fail(FOLDER, fact, fix)];
        }
    };
    let checks = vec![
        writable(data, &place),
        free_space(&file, floor_bytes),
        locks(&file),
        sync_speed(&file),
    ];
    match std::fs::remove_file(&path) {
        Ok(()) => checks,
        Err(error) => {
            let fact = format!("{} cannot be removed: {error}", path.display());
            let fix = "look at the rights of its folder, then remove it by hand";
            checks.into_iter().chain([Check::fail(FOLDER, fact, fix)]).collect()
        }
    }
}

fn nearest_existing(folder: &Path) -> PathBuf {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists());
    existing.unwrap_or(Path::new("/")).to_owned()
}

fn probe_file(folder: &Path) -> io::Result<(PathBuf, File)> {
    let path = folder.join(format!(".dormouse-doctor-{}", std::process::id()));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((path, file))
}

fn writable(data: &Path, place: &Path) -> Check {
    let shown = data.display();
    if data == place {
        Check::ok(FOLDER, format!("{shown} can be written"))
    } else {
        Check::ok(FOLDER, format!("{shown} is made at the first start"))
    }
}

fn free_space(file: &File, floor_bytes: Option<u64>) -> Check {
    let free_bytes = match fstatvfs(file) {
        Ok(room) => room.f_bavail.saturating_mul(room.f_frsize),
        Err(error) => {
            let fix = "look at the file system of the data folder (df)";
            return Check::warn(FREE, format!("it is not known: {error}"), fix);
        }
    };
    judge_free_space(free_bytes, floor_bytes)
}

fn judge_free_space(free_bytes: u64, floor_bytes: Option<u64>) -> Check {
    let fact = format!("{} free", human_size(free_bytes));
    let fix = "make room there, or name another folder with --data FOLDER";
    match floor_bytes {
        Some(floor) if free_bytes < floor => {
            let fact = format!("{fact}; messages are refused below {}", human_size(floor));
            Check::fail(FREE, fact, fix)
        }
        _ if free_bytes < FREE_BYTES_COMFORTABLE => Check::warn(FREE, fact, fix),
        _ => Check::ok(FREE, fact),
    }
}

/// The store takes a lock on a whole file (flock) and, in SQLite, on ranges (fcntl).
fn locks(file: &File) -> Check {
    let kind = file_system(file);
    let locked = rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
        .and_then(|()| rustix::fs::flock(file, FlockOperation::Unlock))
        .and_then(|()| fcntl_lock(file, FlockOperation::NonBlockingLockExclusive))
        .and_then(|()| fcntl_lock(file, FlockOperation::Unlock));
    match (locked, kind) {
        (Err(error), _) => {
            let fix = "name a folder on a local file system with --data FOLDER";
            Check::fail(LOCKS, format!("the file system does not lock: {error}"), fix)
        }
        (Ok(()), Some(network)) => {
            let fact = format!("the file system is {network}: its locks may not hold");
            let fix = "name a folder on a local file system with --data FOLDER";
            Check::warn(LOCKS, fact, fix)
        }
        (Ok(()), None) => Check::ok(LOCKS, "the file system locks files"),
    }
}

/// The name of a file system whose locks and syncs depend on another machine or program.
fn file_system(file: &File) -> Option<&'static str> {
    // Source: linux/magic.h, and the headers of those that are not in it.
    let known = [
        (0x6969, "NFS"),
        (0x517b, "SMB"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB 2"),
        (0x0102_1997, "9p"),
        (0x6573_5546, "FUSE"),
        (0x00c3_6400, "Ceph"),
        (0x0bd0_0bd0, "Lustre"),
    ];
    // Only the lower 32 bits are the number; its type differs between machines.
    let magic = (fstatfs(file).ok()?.f_type as u64) & 0xffff_ffff;
    known.into_iter().find(|(number, _)| *number == magic).map(|(_, name)| name)
}

/// The median of a few, since the first may have to allocate.
fn sync_speed(file: &File) -> Check {
    let mut spans = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let started = Instant::now();
        let mut target = file;
        if let Err(error) = target.write_all(&[0; SYNC_BYTES]).and_then(|()| file.sync_data()) {
            let fix = "look at the disk and its log; a message counts only once it is synced";
            return Check::fail(SYNC, format!("a write cannot be synced: {error}"), fix);
        }
        spans.push(started.elapsed());
    }
    spans.sort();
    judge_sync(spans[SYNCS / 2])
}

fn judge_sync(span: Duration) -> Check {
    let shown = match span.as_micros() {
        micros @ 0..10_000 => format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100),
        _ => human_span(span),
    };
    let fact = format!("{shown} for 4 KiB; each accepted message waits for one");
    match span <= SYNC_COMFORTABLE {
        true => Check::ok(SYNC, fact),
        false => Check::warn(SYNC, fact, "put the data folder on a faster disk"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn states(checks: &[Check]) -> Vec<(&str, State)> {
        checks.iter().map(|check| (check.name.as_str(), check.state)).collect()
    }

    #[test]
    fn a_folder_that_is_none_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let checks = checks(&file.join("data"), None);
        assert_eq!(states(&checks), [(FOLDER, State::Fail)]);
        assert!(checks[0].fact.contains("Not a directory"), "{}", checks[0].fact);
    }

    #[test]
    fn free_space_is_judged_at_both_of_its_bounds() {
        let floor = Some(64 << 20);
        let state = |bytes: u64| judge_free_space(bytes, floor).state;
        assert_eq!(state((64 << 20) - 1), State::Fail);
        assert_eq!(state(64 << 20), State::Warn);
        assert_eq!(state(FREE_BYTES_COMFORTABLE - 1), State::Warn);
        assert_eq!(state(FREE_BYTES_COMFORTABLE), State::Ok);
        assert_eq!(judge_free_space(0, None).state, State::Warn);
    }

    #[test]
    fn a_slow_disk_is_told_and_a_fast_one_measured_finely() {
        let quick = judge_sync(Duration::from_micros(340));
        assert_eq!((quick.state, &quick.fact[..6]), (State::Ok, "0.3 ms"));
        assert_eq!(judge_sync(Duration::from_millis(51)).state, State::Warn);
    }
}

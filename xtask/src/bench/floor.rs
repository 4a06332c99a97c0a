//! The raw floor of durable accepts: one thread appends what a group would need and syncs it.
//!
//! Owner: `accept` runs it inside every pair. Invariants: each acknowledged KiB was appended and
//! `fdatasync` returned before it is counted; the file is on the same file system as the daemon's.
//! Absent: indexes, HTTP, anything that a real acceptance needs besides.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::BenchError;

pub(super) const MESSAGE_BYTES: usize = 1 << 10;

#[derive(Debug)]
pub(super) struct Floor {
    pub(super) acks: u64,
    pub(super) elapsed: Duration,
    /// Of one append with its sync; ascending, in nanoseconds.
    pub(super) latencies: Vec<u64>,
}

impl Floor {
    pub(super) fn acks_per_second(&self) -> f64 {
        self.acks as f64 / self.elapsed.as_secs_f64()
    }
}

/// Groups of `group` messages, one after the other, for `span`.
pub(super) fn run(folder: &Path, group: usize, span: Duration) -> Result<Floor, BenchError> {
    let path = folder.join("floor");
    let mut file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .open(&path)
        .map_err(BenchError::file("make", &path))?;
    let bytes = vec![b'x'; group * MESSAGE_BYTES];
    let (mut acks, mut latencies) = (0, Vec::new());
    let started_at = Instant::now();
    while started_at.elapsed() < span {
        let begun_at = Instant::now();
        file.write_all(&bytes).map_err(BenchError::file("append to", &path))?;
        file.sync_data().map_err(BenchError::file("sync", &path))?;
        acks += group as u64;
        latencies.push(u64::try_from(begun_at.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    let elapsed = started_at.elapsed();
    fs::remove_file(&path).map_err(BenchError::file("remove", &path))?;
    latencies.sort_unstable();
    Ok(Floor { acks, elapsed, latencies })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_groups_are_counted_and_the_file_is_removed() {
        let folder = std::env::temp_dir().join(format!("bench-floor-{}", std::process::id()));
        fs::create_dir(&folder).expect("the name is free");
        let floor = run(&folder, 16, Duration::from_millis(20)).expect("the disk takes it");
        assert_eq!(floor.acks, 16 * floor.latencies.len() as u64);
        assert!(floor.elapsed >= Duration::from_millis(20));
        fs::remove_dir(&folder).expect("nothing is left in it");
    }
}

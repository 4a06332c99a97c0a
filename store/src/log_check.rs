//! A look at the write-ahead log before SQLite reads it: is what is broken only the torn tail?
//!
//! ```text
//!  header │ frame frame commit │ frame frame commit │ frame fra
//!         └─ a batch, synced ─┘   ▲                  └ torn by a crash: SQLite cuts it off,
//!                                 │                    and nobody was told that it is there
//!                                 └ broken here, and a later batch follows: accepted work
//!                                   would vanish, so refuse
//! ```
//!
//! SQLite stops at the first frame whose checksum is wrong and forgets the rest. That is right for
//! the batch that was being written when the machine died. But a batch is synced before the next
//! one's first byte is written, so a broken frame with a later batch behind it was once whole: the
//! disk lost it, and with it everything behind (FAULTS F9).
//!
//! Owner: `Store::open`, which also makes the log start over each time, so that no leavings of one
//! crash lie behind the work of the next life. Invariants: nothing is changed; a log that SQLite
//! would use to its end is never refused. Source of the format: sqlite.org/fileformat2.html,
//! section 4.
//! Absent: damage in the last batch, which looks like a torn tail.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::error::OpenError;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// Of the disks that have the smallest.
const SECTOR_BYTES: u64 = 512;
/// The header's first word; its last bit says in which order checksums read the words.
const MAGIC: u32 = 0x377f_0682;

/// What the scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Nothing of it counts, or all of it does up to a torn tail.
    Whole,
    /// The number of the broken frame, from 1.
    Damaged { frame: u64 },
}

/// Refuses a log whose damage would silently drop batches that were acknowledged.
pub(crate) fn check_log(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::ReadLog { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(source)),
    };
    match scan(&mut BufReader::with_capacity(1 << 20, file)).map_err(failed)? {
        Found::Whole => Ok(()),
        Found::Damaged { frame } => Err(OpenError::LogDamaged { path: path.to_owned(), frame }),
    }
}

fn scan(log: &mut impl Read) -> io::Result<Found> {
    let mut header = [0; HEADER_BYTES];
    if !read_whole(log, &mut header)? {
        return Ok(Found::Whole);
    }
    let page_bytes = word(&header, 8) as usize;
    let is_big_endian = match word(&header, 0) {
        MAGIC => false,
        magic if magic == MAGIC | 1 => true,
        _other => return Ok(Found::Whole),
    };
    let sum = Checksum { is_big_endian, sums: (0, 0) }.over(&header[..24]);
    let is_page_size = page_bytes.is_power_of_two() && (512..=65_536).contains(&page_bytes);
    if !is_page_size || sum.sums != (word(&header, 24), word(&header, 28)) {
        // The header is synced before the first frame, so no frame counts.
        return Ok(Found::Whole);
    }
    Frames { log, salts: [word(&header, 16), word(&header, 20)], page_bytes, sum }.judge()
}

struct Frames<'log, R> {
    log: &'log mut R,
    salts: [u32; 2],
    page_bytes: usize,
    sum: Checksum,
}

impl<R: Read> Frames<'_, R> {
    fn judge(mut self) -> io::Result<Found> {
        let mut buffer = vec![0; FRAME_HEADER_BYTES + self.page_bytes];
        let mut number = 0;
        let mut broken = None;
        let mut is_commit_behind = false;
        while read_whole(self.log, &mut buffer)? {
            number += 1;
            let (header, page) = buffer.split_at(FRAME_HEADER_BYTES);
            // Frames of an earlier round of the log have other salts; the first ends this round.
            // But the damage may be in the salts themselves, so the scan goes on behind it.
            let is_of_this_round = [word(header, 8), word(header, 12)] == self.salts;
            // A mark in another sector than the salts may be of the round before.
            let is_commit = word(header, 4) != 0 && !self.is_split(number);
            let Some(frame) = broken else {
                let sum = self.sum.over(&header[..8]).over(page);
                let is_whole = is_of_this_round
                    && sum.sums == (word(header, 16), word(header, 20))
                    && word(header, 0) != 0;
                self.sum = sum;
                if !is_whole {
                    broken = Some(number);
                    // Its own commit mark cannot be trusted, but if it is one, it ends a batch.
                    is_commit_behind = is_of_this_round && is_commit;
                }
                continue;
            };
            if is_of_this_round {
                if is_commit_behind {
                    return Ok(Found::Damaged { frame });
                }
                is_commit_behind = is_commit;
            }
        }
        Ok(Found::Whole)
    }

    /// The disk may have written the commit mark of this frame without its salts, or them without
    /// it: a sector is the most that is written whole.
    fn is_split(&self, number: u64) -> bool {
        let frame_bytes = (FRAME_HEADER_BYTES + self.page_bytes) as u64;
        let starts_at = HEADER_BYTES as u64 + (number - 1) * frame_bytes;
        (starts_at + 4) / SECTOR_BYTES != (starts_at + 15) / SECTOR_BYTES
    }
}

/// The log's own running checksum.
#[derive(Debug, Clone, Copy)]
struct Checksum {
    is_big_endian: bool,
    sums: (u32, u32),
}

impl Checksum {
    /// Of a multiple of eight bytes.
    fn over(mut self, bytes: &[u8]) -> Self {
        for pair in bytes.chunks_exact(8) {
            let (first, second) = pair.split_at(4);
            self.sums.0 = self.sums.0.wrapping_add(self.read(first)).wrapping_add(self.sums.1);
            self.sums.1 = self.sums.1.wrapping_add(self.read(second)).wrapping_add(self.sums.0);
        }
        self
    }

    fn read(&self, bytes: &[u8]) -> u32 {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }
}

fn word(bytes: &[u8], place: usize) -> u32 {
    u32::from_be_bytes([bytes[place], bytes[place + 1], bytes[place + 2], bytes[place + 3]])
}

/// `false`: the log ends before the buffer is full.
fn read_whole(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    /// A log of four batches of three pages or more each, and the length after each batch.
    fn log() -> (Vec<u8>, Vec<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join("test.db")).unwrap();
        let set = "PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0;";
        connection.execute_batch(set).unwrap();
        connection.execute_batch("CREATE TABLE t (text TEXT)").unwrap();
        let path = folder.path().join("test.db-wal");
        let mut lengths = Vec::new();
        for _batch in 0..4 {
            connection.execute("INSERT INTO t VALUES (?1)", ["x".repeat(10_000)]).unwrap();
            lengths.push(std::fs::metadata(&path).unwrap().len() as usize);
        }
        (std::fs::read(&path).unwrap(), lengths)
    }

    fn found(log: &[u8]) -> Found {
        scan(&mut &log[..]).unwrap()
    }

    #[test]
    fn a_whole_log_and_every_cut_of_it_pass() {
        let (log, _lengths) = log();
        assert_eq!(found(&log), Found::Whole);
        for cut in (0..log.len()).step_by(97) {
            assert_eq!(found(&log[..cut]), Found::Whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_changed_byte_is_damage_where_a_later_batch_follows_and_a_torn_tail_where_none_does() {
        let (log, lengths) = log();
        for place in (HEADER_BYTES..log.len()).step_by(89) {
            let mut spoilt = log.clone();
            spoilt[place] ^= 0x10;
            let frame = (place - HEADER_BYTES) / (FRAME_HEADER_BYTES + 4_096) + 1;
            let in_last_batch = place >= lengths[2];
            let expected =
                if in_last_batch { Found::Whole } else { Found::Damaged { frame: frame as u64 } };
            let found = found(&spoilt);
            // With spoilt salts a commit mark looks like an earlier round's: the end of the last
            // batch but one is then not seen.
            let in_frame = (place - HEADER_BYTES) % (FRAME_HEADER_BYTES + 4_096);
            let in_last_frame_before =
                (lengths[2] - FRAME_HEADER_BYTES - 4_096..lengths[2]).contains(&place);
            let is_hidden = in_last_frame_before && (8..16).contains(&in_frame);
            let expected = if is_hidden { Found::Whole } else { expected };
            assert_eq!(found, expected, "byte {place}");
        }
    }

    #[test]
    fn frames_of_an_earlier_round_behind_the_end_are_no_damage() {
        let (log, lengths) = log();
        let mut mixed = log[..lengths[1]].to_vec();
        let mut rest = log[lengths[1]..].to_vec();
        for frame in rest.chunks_mut(FRAME_HEADER_BYTES + 4_096) {
            frame[8] ^= 0xff;
        }
        mixed.extend(rest);
        assert_eq!(found(&mixed), Found::Whole);
    }

    #[test]
    fn what_is_no_log_passes_as_sqlite_ignores_it() {
        assert_eq!(found(b""), Found::Whole);
        assert_eq!(found(&[0; 10_000]), Found::Whole);
        let (mut log, _lengths) = log();
        log[9] ^= 1;
        assert_eq!(found(&log), Found::Whole, "its header is not whole");
    }
}

//! Files as a stream of blobs.
//!
//! Owner: `checkpoint`, in a thread that may wait for the disk. Invariants: what is announced under
//! a hash has that hash and that size, or the stream breaks off before it is complete; memory is
//! bounded by a few pieces. Absent: which blobs, and the connection.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_core::manifest::{ContentId, FilePath, Sha256Hash};
use hyper::body::Bytes;
use tokio::sync::mpsc;

use crate::files::beneath::Folder;
use crate::files::digest::Digester;
use crate::files::stream::blob_head;
use crate::files::workspace::FolderCache;

const PIECE_BYTES: usize = 256 << 10;
/// A blob of at most this size is proved before anything of it is sent.
const PROVED_FIRST_MAX: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) hash: Sha256Hash,
    pub(crate) bytes: u64,
    /// Where these bytes were seen.
    pub(crate) path: FilePath,
}

#[derive(Debug)]
enum SendProblem {
    /// The file is not what it was; nothing of it was sent.
    Changed,
    /// … and some of it was: the stream cannot go on.
    ChangedOnTheWay,
    /// Nobody takes the rest.
    NobodyListens,
}

/// Sends them all; gives the files that are not any more what they were.
pub(crate) fn send(
    root: &Folder,
    blobs: &[Blob],
    pieces: &mpsc::Sender<io::Result<Bytes>>,
    sent_bytes: &AtomicU64,
) -> Vec<FilePath> {
    let mut changed = Vec::new();
    let mut folders = FolderCache::new(root);
    let mut out = Out { pieces, sent_bytes, waiting: Vec::with_capacity(PIECE_BYTES) };
    for blob in blobs {
        match send_one(&mut folders, blob, &mut out) {
            Ok(()) => {}
            Err(SendProblem::Changed) => changed.push(blob.path.clone()),
            Err(SendProblem::ChangedOnTheWay) => {
                changed.push(blob.path.clone());
                let error = io::Error::other("a file changed while it was sent");
                // Whoever does not listen any more has no need of it.
                let _told = pieces.blocking_send(Err(error));
                return changed;
            }
            Err(SendProblem::NobodyListens) => return changed,
        }
    }
    let _sent = out.flush();
    changed
}

fn send_one(
    folders: &mut FolderCache<'_>,
    blob: &Blob,
    out: &mut Out<'_>,
) -> Result<(), SendProblem> {
    // Whatever is the matter with it, it is not the file that the scan has read.
    let folder = folders.of(&blob.path).ok().flatten().ok_or(SendProblem::Changed)?;
    let file = folder.open_file(blob.path.name()).map_err(|_| SendProblem::Changed)?;
    let mut file = File::from(file);
    let announced = ContentId::Sha256(blob.hash);
    if blob.bytes <= PROVED_FIRST_MAX {
        let mut bytes = Vec::with_capacity(usize::try_from(blob.bytes).unwrap_or_default() + 1);
        let read = file.take(blob.bytes + 1).read_to_end(&mut bytes);
        let is_same = read.is_ok() && bytes.len() as u64 == blob.bytes;
        if !is_same || ContentId::Sha256(Sha256Hash::of(&bytes)) != announced {
            return Err(SendProblem::Changed);
        }
        out.write(&blob_head(&blob.hash, blob.bytes))?;
        return out.write(&bytes);
    }
    out.write(&blob_head(&blob.hash, blob.bytes))?;
    let mut digester = Digester::sha256();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut left = blob.bytes;
    // The last piece is held back until the whole is proved.
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = file.read(&mut buffer[..wanted]);
        let read = read.ok().filter(|read| *read > 0).ok_or(SendProblem::ChangedOnTheWay)?;
        digester.update(&buffer[..read]);
        left -= read as u64;
        if left > 0 {
            out.write(&buffer[..read])?;
            continue;
        }
        if !digester.confirms(&announced) {
            return Err(SendProblem::ChangedOnTheWay);
        }
        return out.write(&buffer[..read]);
    }
    Ok(())
}

/// Small things go out together.
#[derive(Debug)]
struct Out<'a> {
    pieces: &'a mpsc::Sender<io::Result<Bytes>>,
    sent_bytes: &'a AtomicU64,
    waiting: Vec<u8>,
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SendProblem> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PIECE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), SendProblem> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.waiting, Vec::with_capacity(PIECE_BYTES));
        let length = piece.len() as u64;
        let sent = self.pieces.blocking_send(Ok(piece.into()));
        self.sent_bytes.fetch_add(length, Ordering::Relaxed);
        sent.map_err(|_| SendProblem::NobodyListens)
    }
}

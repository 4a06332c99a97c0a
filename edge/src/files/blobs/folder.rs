//! Blobs in a folder of this machine.
//!
//! ```text
//!  BLOBS/ab/cdef…                a blob: whole, and its hash was right when it was written
//!  BLOBS/writing/BATCH/NUMBER    being written; cleared away at the next start
//! ```
//!
//! Owner: `blobs`. Invariants: a blob's bytes are durable before it gets its name, and its name is
//! before a commit returns; a name is given, offered and taken away under one lock, so that
//! collection never races with the others. A blob's age is its file's modification time: offering
//! it makes it young again. Absent: a second owner of the folder.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use dormouse_core::manifest::Sha256Hash;
use futures_util::{Stream, StreamExt as _};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};
use sha2::Digest as _;
use tokio::task::JoinHandle;

use super::{BlobError, Bound, Collected, Measured, OpenBlob, hash_at, place_of};
use crate::files::reading::{Begun, blocking, pieces as boxed};

/// Gathered before a thread is asked to write.
const WRITE_BYTES: usize = 1 << 20;

/// Up to so many files or folders are synced one by one; more of them, by one call for all.
const SYNC_ONE_BY_ONE_MAX: usize = 4;

const WRITING: &str = "writing";

#[derive(Debug)]
pub(super) struct BlobFolder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Held for single calls of the kernel only.
    names: Mutex<()>,
    batches: AtomicU64,
}

impl BlobFolder {
    pub(super) async fn open(root: PathBuf) -> Result<Self, BlobError> {
        blocking(move || {
            make_folder(&root)?;
            let writing = root.join(WRITING);
            match fs::remove_dir_all(&writing) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("cleared", &writing)(error));
                }
                Ok(()) | Err(_) => make_folder(&writing)?,
            }
            let (names, batches) = (Mutex::new(()), AtomicU64::new(0));
            Ok(Self { shared: Arc::new(Shared { root, names, batches }) })
        })
        .await
    }

    pub(super) async fn missing(
        &self,
        hashes: &[Sha256Hash],
    ) -> Result<Vec<Sha256Hash>, BlobError> {
        let (shared, mut hashes) = (Arc::clone(&self.shared), hashes.to_vec());
        blocking(move || {
            let mut failure = None;
            hashes.retain(|hash| {
                let path = shared.path(hash);
                match shared.touch(&path) {
                    Ok(()) => false,
                    Err(rustix::io::Errno::NOENT) => true,
                    Err(error) => {
                        failure.get_or_insert_with(|| failed("touched", &path)(error.into()));
                        true
                    }
                }
            });
            failure.map_or(Ok(hashes), Err)
        })
        .await
    }

    pub(super) async fn begin_batch(&self) -> Result<FolderBatch, BlobError> {
        let shared = Arc::clone(&self.shared);
        let number = shared.batches.fetch_add(1, Ordering::Relaxed);
        blocking(move || {
            let folder = shared.root.join(WRITING).join(number.to_string());
            make_folder(&folder)?;
            Ok(FolderBatch { shared, folder, written: Vec::new(), files: 0 })
        })
        .await
    }

    pub(super) async fn put_hashed(
        &self,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send,
        max: u64,
    ) -> Result<(Sha256Hash, u64), BlobError> {
        let mut batch = self.begin_batch().await?;
        let kept = batch.write(Bound::AtMost(max), None, pieces).await?;
        batch.commit().await?;
        Ok(kept)
    }

    pub(super) async fn get(&self, hash: Sha256Hash) -> Result<OpenBlob, BlobError> {
        let path = self.shared.path(&hash);
        let opened = path.clone();
        let begun = blocking(move || {
            let file = File::open(&opened)?;
            let bytes = file.metadata()?.len();
            Begun::new(file, bytes)
        });
        let begun = begun.await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BlobError::NotThere(hash),
            _ => failed("read", &path)(error),
        })?;
        let bytes = begun.bytes;
        let pieces = begun.stream().map(move |piece| piece.map_err(failed("read", &path)));
        Ok(OpenBlob { bytes, pieces: boxed(pieces) })
    }

    pub(super) async fn collect_garbage(
        &self,
        referenced: impl Fn(&Sha256Hash) -> bool + Send + Sync,
        not_younger_than: SystemTime,
    ) -> Result<Collected, BlobError> {
        let shared = Arc::clone(&self.shared);
        let (old, young) = blocking(move || shared.older_than(not_younger_than)).await?;
        let all = old.len() as u64 + young;
        let unnamed: Vec<Sha256Hash> = old.into_iter().filter(|hash| !referenced(hash)).collect();
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut collected = Collected::default();
            for hash in unnamed {
                if let Some(bytes) = shared.remove_if_older(&hash, not_younger_than)? {
                    collected.removed += 1;
                    collected.removed_bytes += bytes;
                }
            }
            collected.kept = all - collected.removed;
            Ok(collected)
        })
        .await
    }
}

impl Shared {
    fn path(&self, hash: &Sha256Hash) -> PathBuf {
        self.root.join(place_of(hash))
    }

    fn touch(&self, path: &Path) -> rustix::io::Result<()> {
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        touch(path)
    }

    /// The candidates, and how many others there are. What is not named like a blob is left alone.
    fn older_than(&self, limit: SystemTime) -> Result<(Vec<Sha256Hash>, u64), BlobError> {
        let (mut old, mut young) = (Vec::new(), 0);
        for folder in read_folder(&self.root)? {
            let Some(prefix) = folder.to_str().filter(|name| name.len() == 2) else { continue };
            let path = self.root.join(prefix);
            for name in read_folder(&path)? {
                let hash = name.to_str().and_then(|name| hash_at(prefix, name));
                let Some(hash) = hash else { continue };
                let file = path.join(&name);
                let metadata = fs::symlink_metadata(&file).map_err(failed("looked at", &file))?;
                let modified = metadata.modified().map_err(failed("looked at", &file))?;
                if modified < limit {
                    old.push(hash);
                } else {
                    young += 1;
                }
            }
        }
        Ok((old, young))
    }

    /// Looks again, under the lock: it may have been offered or put since.
    fn remove_if_older(
        &self,
        hash: &Sha256Hash,
        limit: SystemTime,
    ) -> Result<Option<u64>, BlobError> {
        let path = self.path(hash);
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            // Another collection was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("looked at", &path)(error)),
        };
        let modified = metadata.modified().map_err(failed("looked at", &path))?;
        if modified >= limit {
            return Ok(None);
        }
        fs::remove_file(&path).map_err(failed("removed", &path))?;
        Ok(Some(metadata.len()))
    }

    /// All or, where the machine fails meanwhile, any of them; each whole.
    fn publish(&self, folder: &Path, written: &[Written]) -> Result<(), BlobError> {
        sync_files(folder, written)?;
        let mut folders = BTreeSet::new();
        for Written { file, hash } in written {
            let (from, to) = (folder.join(file), self.path(hash));
            let above = to.parent().expect("a blob lies in a folder").to_owned();
            if !folders.contains(&above) {
                make_folder(&above)?;
                folders.insert(above);
            }
            // Its age counts from now, not from when its first byte arrived.
            touch(&from).map_err(|error| failed("touched", &from)(error.into()))?;
            let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            fs::rename(&from, &to).map_err(failed("named", &to))?;
        }
        // Some of them may be new.
        folders.insert(self.root.clone());
        if folders.len() > SYNC_ONE_BY_ONE_MAX {
            return sync_file_system(&self.root);
        }
        folders.iter().try_for_each(|folder| sync_path(folder))
    }
}

#[derive(Debug)]
struct Written {
    file: String,
    hash: Sha256Hash,
}

#[derive(Debug)]
pub(super) struct FolderBatch {
    shared: Arc<Shared>,
    folder: PathBuf,
    written: Vec<Written>,
    /// Begun, with those that were refused.
    files: u64,
}

impl FolderBatch {
    pub(super) async fn put(
        &mut self,
        hash: Sha256Hash,
        bytes: u64,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<(), BlobError> {
        self.write(Bound::Announced(bytes), Some(hash), pieces).await.map(drop)
    }

    async fn write(
        &mut self,
        bound: Bound,
        expected: Option<Sha256Hash>,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<(Sha256Hash, u64), BlobError> {
        let file = self.files.to_string();
        self.files += 1;
        let path = self.folder.join(&file);
        let kept = Writer::new(path).write_all(bound, expected, pieces).await?;
        self.written.push(Written { file, hash: kept.0 });
        Ok(kept)
    }

    pub(super) async fn commit(mut self) -> Result<u64, BlobError> {
        let written = std::mem::take(&mut self.written);
        let count = written.len() as u64;
        let (shared, folder) = (Arc::clone(&self.shared), self.folder.clone());
        blocking(move || shared.publish(&folder, &written)).await?;
        Ok(count)
    }
}

impl Drop for FolderBatch {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.folder);
        let clear = move || {
            if let Err(error) = fs::remove_dir_all(&folder) {
                // Nobody is harmed but the disk, and the next start clears it.
                tracing::warn!(%error, folder = %folder.display(), "a batch was not cleared away");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(clear)),
            Err(_) => clear(),
        }
    }
}

/// Writes one file: while a thread writes some pieces, the next ones are gathered.
struct Writer {
    path: PathBuf,
    under_way: Option<JoinHandle<Result<(File, Measured), BlobError>>>,
}

impl Writer {
    fn new(path: PathBuf) -> Self {
        Self { path, under_way: None }
    }

    async fn write_all(
        mut self,
        bound: Bound,
        expected: Option<Sha256Hash>,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<(Sha256Hash, u64), BlobError> {
        let mut pieces = std::pin::pin!(pieces);
        let (mut gathered, mut gathered_bytes) = (Vec::new(), 0);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(BlobError::Sender)?;
            gathered_bytes += piece.len();
            gathered.push(piece);
            if gathered_bytes >= WRITE_BYTES {
                self.hand_over(bound, std::mem::take(&mut gathered)).await?;
                gathered_bytes = 0;
            }
        }
        self.hand_over(bound, gathered).await?;
        let (_file, measured) = self.arrived().await?.expect("handed over just now");
        measured.finish(expected)
    }

    async fn arrived(&mut self) -> Result<Option<(File, Measured)>, BlobError> {
        let Some(under_way) = self.under_way.take() else { return Ok(None) };
        match under_way.await {
            Ok(written) => written.map(Some),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn hand_over(&mut self, bound: Bound, pieces: Vec<Bytes>) -> Result<(), BlobError> {
        let (open, path) = (self.arrived().await?, self.path.clone());
        self.under_way = Some(tokio::task::spawn_blocking(move || {
            let (mut file, mut measured) = match open {
                Some(open) => open,
                None => {
                    let mut options = OpenOptions::new();
                    let options = options.write(true).create_new(true).mode(0o600);
                    let file = options.open(&path).map_err(failed("made", &path))?;
                    (file, Measured::new(bound))
                }
            };
            for piece in pieces {
                measured.count(&piece)?;
                measured.hasher.update(&piece);
                file.write_all(&piece).map_err(failed("written", &path))?;
            }
            Ok((file, measured))
        }));
        Ok(())
    }
}

fn touch(path: &Path) -> rustix::io::Result<()> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn make_folder(folder: &Path) -> Result<(), BlobError> {
    make_private(folder).map_err(failed("made", folder))
}

pub(super) fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn read_folder(folder: &Path) -> Result<Vec<std::ffi::OsString>, BlobError> {
    let entries = fs::read_dir(folder).map_err(failed("listed", folder))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    names.collect::<io::Result<_>>().map_err(failed("listed", folder))
}

fn sync_files(folder: &Path, written: &[Written]) -> Result<(), BlobError> {
    if written.len() > SYNC_ONE_BY_ONE_MAX {
        return sync_file_system(folder);
    }
    written.iter().try_for_each(|written| sync_path(&folder.join(&written.file)))
}

fn sync_path(path: &Path) -> Result<(), BlobError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("synced", path))
}

fn sync_file_system(folder: &Path) -> Result<(), BlobError> {
    let file = File::open(folder).map_err(failed("synced", folder))?;
    rustix::fs::syncfs(&file).map_err(|error| failed("synced", folder)(error.into()))
}

pub(super) fn failed(
    doing: &'static str,
    path: &Path,
) -> impl Fn(io::Error) -> BlobError + Send + use<> {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            BlobError::NoRoom { path: path.clone() }
        }
        _ => BlobError::Io { doing, path: path.clone(), source },
    }
}

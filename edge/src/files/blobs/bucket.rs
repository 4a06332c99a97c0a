//! Blobs in a bucket.
//!
//! ```text
//!  PREFIX/blobs/ab/cdef…     an object: whole, and its hash was right when it was sent
//!  SPOOL/NUMBER              a large upload whose hash is not known yet; without a name at once
//! ```
//!
//! Owner: `blobs`. Invariants: a blob's bytes were hashed before its object is completed; the
//! memory of all uploads together is bounded; an object store cannot touch, so what was offered
//! lately is remembered by `lately`. Absent: a second owner of the prefix.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use dormouse_core::manifest::Sha256Hash;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use sha2::Digest as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::lately::Lately;
use super::{BlobError, Bound, Collected, Measured, OpenBlob, hash_at, place_of};
use crate::files::objects::{Bucket, ObjectError};
use crate::files::reading::{Begun, blocking, pieces as boxed};

/// Larger blobs are sent in parts of this size.
const PART_BYTES: usize = 8 << 20;
/// Sent at a time, of one batch.
const UPLOADS_MAX: usize = 16;
const PARTS_AT_A_TIME: usize = 4;
/// Of all batches together.
const MEMORY_KIB: usize = 64 << 10;
const ASKED_AT_A_TIME: usize = 32;

#[derive(Debug, Clone)]
pub(super) struct BlobBucket(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bucket: Bucket,
    /// Ends in `blobs/`.
    prefix: String,
    spool: PathBuf,
    spooled: AtomicU64,
    lately: Lately,
    memory: Arc<Semaphore>,
}

impl BlobBucket {
    pub(super) async fn open(
        bucket: Bucket,
        prefix: &str,
        spool: PathBuf,
    ) -> Result<Self, BlobError> {
        let folder = spool.clone();
        let made = blocking(move || {
            // What is in it has no owner any more.
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            super::folder::make_private(&folder)
        });
        made.await.map_err(|error| spool_error(&spool, error))?;
        let slash = if prefix.is_empty() || prefix.ends_with('/') { "" } else { "/" };
        Ok(Self(Arc::new(Shared {
            bucket,
            prefix: format!("{prefix}{slash}blobs/"),
            spool,
            spooled: AtomicU64::new(0),
            lately: Lately::new(),
            memory: Arc::new(Semaphore::new(MEMORY_KIB)),
        })))
    }

    fn key(&self, hash: &Sha256Hash) -> String {
        format!("{}{}", self.0.prefix, place_of(hash))
    }

    pub(super) async fn missing(
        &self,
        hashes: &[Sha256Hash],
    ) -> Result<Vec<Sha256Hash>, BlobError> {
        let asked = stream::iter(hashes.to_vec()).map(|hash| async move {
            let is_there =
                self.0.lately.offer(&hash) && self.0.bucket.head(&self.key(&hash)).await?.is_some();
            Ok::<_, BlobError>((!is_there).then_some(hash))
        });
        let asked = asked.buffered(ASKED_AT_A_TIME);
        asked.try_filter_map(|missing| async move { Ok(missing) }).try_collect().await
    }

    pub(super) fn begin_batch(&self) -> BucketBatch {
        BucketBatch { blobs: self.clone(), uploads: JoinSet::new(), stored: 0, failure: None }
    }

    pub(super) async fn get(&self, hash: Sha256Hash) -> Result<OpenBlob, BlobError> {
        match self.0.bucket.get(&self.key(&hash), None).await {
            Ok(object) => {
                let pieces = boxed(object.pieces.map_err(BlobError::from));
                Ok(OpenBlob { bytes: object.bytes, pieces })
            }
            Err(ObjectError::Gone { .. }) => Err(BlobError::NotThere(hash)),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn put_hashed(
        &self,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send,
        max: u64,
    ) -> Result<(Sha256Hash, u64), BlobError> {
        let mut pieces = std::pin::pin!(pieces);
        let mut measured = Measured::new(Bound::AtMost(max));
        let _memory = self.memory(PART_BYTES).await;
        let (mut gathered, mut spool) = (Vec::new(), None);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(BlobError::Sender)?;
            measured.count(&piece)?;
            measured.hasher.update(&piece);
            gathered.extend_from_slice(&piece);
            if gathered.len() >= PART_BYTES {
                let full = std::mem::take(&mut gathered);
                spool = Some(self.spool(spool, full).await?);
            }
        }
        let (hash, bytes) = measured.finish(None)?;
        let Some(file) = spool else {
            self.put_whole(hash, gathered.into()).await?;
            return Ok((hash, bytes));
        };
        let mut file = self.spool(Some(file), gathered).await?;
        let begun = blocking(move || {
            file.rewind()?;
            Begun::new(file, bytes)
        });
        let begun = begun.await.map_err(|error| spool_error(&self.0.spool, error))?;
        self.put_parts(hash, bytes, std::pin::pin!(begun.stream())).await?;
        Ok((hash, bytes))
    }

    /// Onto the disk, where a file without a name goes with its handle.
    async fn spool(&self, file: Option<File>, bytes: Vec<u8>) -> Result<File, BlobError> {
        let number = self.0.spooled.fetch_add(1, Ordering::Relaxed);
        let path = self.0.spool.join(number.to_string());
        let write = move || {
            let mut file = match file {
                Some(file) => file,
                None => {
                    let mut options = OpenOptions::new();
                    let options = options.read(true).write(true).create_new(true).mode(0o600);
                    let file = options.open(&path)?;
                    fs::remove_file(&path)?;
                    file
                }
            };
            file.write_all(&bytes)?;
            Ok(file)
        };
        blocking(write).await.map_err(|error| spool_error(&self.0.spool, error))
    }

    async fn memory(&self, bytes: usize) -> OwnedSemaphorePermit {
        let kib = bytes.div_ceil(1 << 10).clamp(1, MEMORY_KIB);
        let kib = u32::try_from(kib).expect("the bound fits");
        let acquired = Arc::clone(&self.0.memory).acquire_many_owned(kib).await;
        acquired.expect("it is never closed")
    }

    async fn put_whole(&self, hash: Sha256Hash, body: Bytes) -> Result<(), BlobError> {
        self.0.lately.put(&hash).await;
        self.0.bucket.put(&self.key(&hash), body, Some(hash)).await?;
        // Its age counts from now.
        self.0.lately.put(&hash).await;
        Ok(())
    }

    async fn put_parts(
        &self,
        hash: Sha256Hash,
        bytes: u64,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
    ) -> Result<(), BlobError> {
        self.0.lately.put(&hash).await;
        let upload = self.0.bucket.begin_upload(&self.key(&hash)).await?;
        let sent = async {
            let mut measured = Measured::new(Bound::Announced(bytes));
            let parts = cut(pieces, &mut measured)
                .map(|(number, part)| {
                    let upload = upload.clone();
                    async move {
                        let part = part?;
                        let _memory = self.memory(part.len()).await;
                        Ok::<_, BlobError>(upload.put_part(number, part).await?)
                    }
                })
                .buffered(PARTS_AT_A_TIME)
                .try_collect()
                .await?;
            measured.finish(Some(hash))?;
            Ok(upload.complete(parts).await?)
        };
        let sent: Result<(), BlobError> = sent.await;
        if sent.is_err() {
            upload.give_up().await;
        }
        self.0.lately.put(&hash).await;
        sent
    }

    pub(super) async fn collect_garbage(
        &self,
        referenced: impl Fn(&Sha256Hash) -> bool + Send + Sync,
        not_younger_than: SystemTime,
    ) -> Result<Collected, BlobError> {
        let mut collected = Collected::default();
        let mut after: Option<String> = None;
        loop {
            let page = self.0.bucket.list_page(&self.0.prefix, after.as_deref()).await?;
            let mut unnamed = Vec::new();
            for object in page.objects {
                let place = object.key.strip_prefix(&self.0.prefix);
                let place = place.and_then(|place| place.split_once('/'));
                let Some(hash) = place.and_then(|(folder, name)| hash_at(folder, name)) else {
                    continue;
                };
                let is_old = object.modified.is_some_and(|modified| modified < not_younger_than);
                if is_old && !referenced(&hash) {
                    unnamed.push((hash, object.bytes));
                } else {
                    collected.kept += 1;
                }
            }
            let removals = stream::iter(unnamed)
                .map(|(hash, bytes)| self.remove(hash, bytes, not_younger_than))
                .buffer_unordered(UPLOADS_MAX);
            let removed: Vec<Option<u64>> = removals.try_collect().await?;
            collected.removed += removed.iter().flatten().count() as u64;
            collected.removed_bytes += removed.iter().flatten().sum::<u64>();
            collected.kept += removed.iter().filter(|bytes| bytes.is_none()).count() as u64;
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        self.0.lately.forget_before(not_younger_than);
        Ok(collected)
    }

    async fn remove(
        &self,
        hash: Sha256Hash,
        bytes: u64,
        limit: SystemTime,
    ) -> Result<Option<u64>, BlobError> {
        if !self.0.lately.begin_removal(&hash, limit) {
            return Ok(None);
        }
        let ending = EndRemoval { blobs: self, hash };
        let removed = self.0.bucket.remove(&self.key(&hash)).await;
        drop(ending);
        removed?;
        Ok(Some(bytes))
    }
}

/// However the removal ends, those who wait for it go on.
struct EndRemoval<'a> {
    blobs: &'a BlobBucket,
    hash: Sha256Hash,
}

impl Drop for EndRemoval<'_> {
    fn drop(&mut self) {
        self.blobs.0.lately.end_removal(&self.hash);
    }
}

/// Parts of equal size, numbered from 1, measured as they are cut.
fn cut<'a>(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'a,
    measured: &'a mut Measured,
) -> impl Stream<Item = (usize, Result<Bytes, BlobError>)> + Send + 'a {
    stream::unfold((pieces, Bytes::new(), measured, 0), |state| async move {
        let (mut pieces, mut rest, measured, number) = state;
        if number == usize::MAX {
            return None;
        }
        let mut part = Vec::with_capacity(PART_BYTES);
        while part.len() < PART_BYTES {
            if rest.is_empty() {
                let counted = match pieces.next().await {
                    Some(Ok(piece)) => measured.count(&piece).map(|()| piece),
                    Some(Err(error)) => Err(BlobError::Sender(error)),
                    None => break,
                };
                match counted {
                    Ok(piece) => rest = piece,
                    Err(error) => {
                        return Some(((0, Err(error)), (pieces, rest, measured, usize::MAX)));
                    }
                }
                measured.hasher.update(&rest);
            }
            let taken = rest.split_to(rest.len().min(PART_BYTES - part.len()));
            part.extend_from_slice(&taken);
        }
        let number = number + 1;
        (!part.is_empty()).then(|| ((number, Ok(part.into())), (pieces, rest, measured, number)))
    })
}

fn spool_error(spool: &std::path::Path, error: io::Error) -> BlobError {
    super::folder::failed("written", spool)(error)
}

#[derive(Debug)]
pub(super) struct BucketBatch {
    blobs: BlobBucket,
    uploads: JoinSet<Result<(), BlobError>>,
    stored: u64,
    /// Of one that was on its way when others came: told at the commit.
    failure: Option<BlobError>,
}

impl BucketBatch {
    pub(super) async fn put(
        &mut self,
        hash: Sha256Hash,
        bytes: u64,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<(), BlobError> {
        let mut pieces = std::pin::pin!(pieces);
        if bytes > PART_BYTES as u64 {
            self.blobs.put_parts(hash, bytes, pieces).await?;
            self.stored += 1;
            return Ok(());
        }
        let bytes_now = usize::try_from(bytes).expect("it is smaller than a part");
        let memory = self.blobs.memory(bytes_now).await;
        let mut measured = Measured::new(Bound::Announced(bytes));
        let mut body = Vec::with_capacity(bytes_now);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(BlobError::Sender)?;
            measured.count(&piece)?;
            measured.hasher.update(&piece);
            body.extend_from_slice(&piece);
        }
        measured.finish(Some(hash))?;
        while self.uploads.len() >= UPLOADS_MAX {
            self.one_ended().await;
        }
        let blobs = self.blobs.clone();
        self.uploads.spawn(async move {
            let put = blobs.put_whole(hash, body.into()).await;
            drop(memory);
            put
        });
        Ok(())
    }

    async fn one_ended(&mut self) {
        match self.uploads.join_next().await {
            Some(Ok(Ok(()))) => self.stored += 1,
            Some(Ok(Err(error))) => {
                self.failure.get_or_insert(error);
            }
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => {}
        }
    }

    pub(super) async fn commit(mut self) -> Result<u64, BlobError> {
        while !self.uploads.is_empty() {
            self.one_ended().await;
        }
        self.failure.map_or(Ok(self.stored), Err)
    }
}

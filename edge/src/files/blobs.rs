//! Blobs: bytes under the SHA-256 that they have. Uploads and checkpoints are made of them.
//!
//! ```text
//!  missing ─▶ begin_batch ─▶ put, put, … ─▶ commit ─▶ (a manifest that names them is committed)
//!     └ what is there is safe for the grace time         └ and so is what was just put
//!  collect_garbage: whatever nobody names, and nobody was offered within the grace time
//! ```
//!
//! Owner: one process owns a store. Invariants: under a hash lie bytes that had this hash when they
//! were written, whole and durable before anybody is told so; a blob that is named, or was offered
//! or put within the grace time, is never removed. Absent: who names which blob; and whether the
//! bytes are still what they were: readers check that, and `verify`.

#[cfg(feature = "s3")]
mod bucket;
mod folder;
#[cfg(feature = "s3")]
mod lately;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use dormouse_core::manifest::Sha256Hash;
use futures_util::{Stream, TryStreamExt as _};
use sha2::{Digest as _, Sha256};

#[cfg(feature = "s3")]
use super::objects::{Bucket, ObjectError};
use super::reading::PieceStream;

/// Why blobs could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("there is no room left for {}: make some, then try again", path.display())]
    NoRoom { path: PathBuf },
    #[error("{} could not be {doing}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The sender's fault. Nothing of it was kept.
    #[error("bytes that were sent as {expected} have the hash {found}")]
    WrongHash { expected: Sha256Hash, found: Sha256Hash },
    /// The sender's fault. Nothing of it was kept.
    #[error("{found} bytes were sent where {expected} were announced")]
    WrongLength { expected: u64, found: u64 },
    #[error("more than {max} bytes were sent")]
    TooLarge { max: u64 },
    #[error("what was being sent broke off")]
    Sender(#[source] io::Error),
    #[error("the blob {0} is not there")]
    NotThere(Sha256Hash),
    #[cfg(feature = "s3")]
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

impl BlobError {
    /// Whether the same may succeed a little later without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            BlobError::Sender(_) => true,
            BlobError::NoRoom { .. }
            | BlobError::Io { .. }
            | BlobError::WrongHash { .. }
            | BlobError::WrongLength { .. }
            | BlobError::TooLarge { .. }
            | BlobError::NotThere(_) => false,
            #[cfg(feature = "s3")]
            BlobError::Objects(error) => error.is_retryable(),
        }
    }

    /// Whether the place where blobs are kept is to blame: it is away, or not as it should be.
    pub fn is_places_fault(&self) -> bool {
        match self {
            BlobError::Io { .. } => true,
            #[cfg(feature = "s3")]
            BlobError::Objects(_) => true,
            BlobError::NoRoom { .. }
            | BlobError::WrongHash { .. }
            | BlobError::WrongLength { .. }
            | BlobError::TooLarge { .. }
            | BlobError::Sender(_)
            | BlobError::NotThere(_) => false,
        }
    }

    /// Whether the bytes that were sent are to blame, and not the store.
    pub fn is_senders_fault(&self) -> bool {
        matches!(
            self,
            BlobError::WrongHash { .. }
                | BlobError::WrongLength { .. }
                | BlobError::TooLarge { .. }
                | BlobError::Sender(_)
        )
    }
}

/// A blob that is being read.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct OpenBlob {
    pub bytes: u64,
    pub pieces: PieceStream<BlobError>,
}

/// What lies under a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Whole { bytes: u64 },
    Damaged { found: Sha256Hash },
    NotThere,
}

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    pub removed: u64,
    pub removed_bytes: u64,
    pub kept: u64,
}

#[derive(Debug)]
enum Place {
    Folder(folder::BlobFolder),
    #[cfg(feature = "s3")]
    Bucket(bucket::BlobBucket),
}

/// Where blobs are kept. Clones share it.
#[derive(Debug, Clone)]
pub struct BlobStore {
    place: std::sync::Arc<Place>,
}

impl BlobStore {
    /// Makes the folder that is missing, and clears away what an earlier owner left half written.
    pub async fn in_folder(folder: &Path) -> Result<Self, BlobError> {
        let place = Place::Folder(folder::BlobFolder::open(folder.to_owned()).await?);
        Ok(Self { place: place.into() })
    }

    /// Keys are `PREFIX/blobs/ab/cdef…`. `spool` is a folder for uploads that are too large for the
    /// memory and whose hash is not known before.
    #[cfg(feature = "s3")]
    pub async fn in_bucket(bucket: Bucket, prefix: &str, spool: &Path) -> Result<Self, BlobError> {
        let bucket = bucket::BlobBucket::open(bucket, prefix, spool.to_owned()).await?;
        Ok(Self { place: Place::Bucket(bucket).into() })
    }

    /// Which of them are not there, in their order. Those that are there are safe from collection
    /// for the grace time.
    pub async fn missing(&self, hashes: &[Sha256Hash]) -> Result<Vec<Sha256Hash>, BlobError> {
        match &*self.place {
            Place::Folder(folder) => folder.missing(hashes).await,
            #[cfg(feature = "s3")]
            Place::Bucket(bucket) => bucket.missing(hashes).await,
        }
    }

    pub async fn begin_batch(&self) -> Result<Batch, BlobError> {
        Ok(match &*self.place {
            Place::Folder(folder) => Batch(Inner::Folder(folder.begin_batch().await?)),
            #[cfg(feature = "s3")]
            Place::Bucket(bucket) => Batch(Inner::Bucket(bucket.begin_batch())),
        })
    }

    /// Keeps bytes whose hash is not known yet; durable once it returns.
    pub async fn put_stream_hashed(
        &self,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send,
        max_bytes: u64,
    ) -> Result<(Sha256Hash, u64), BlobError> {
        match &*self.place {
            Place::Folder(folder) => folder.put_hashed(pieces, max_bytes).await,
            #[cfg(feature = "s3")]
            Place::Bucket(bucket) => bucket.put_hashed(pieces, max_bytes).await,
        }
    }

    pub async fn get(&self, hash: &Sha256Hash) -> Result<OpenBlob, BlobError> {
        match &*self.place {
            Place::Folder(folder) => folder.get(*hash).await,
            #[cfg(feature = "s3")]
            Place::Bucket(bucket) => bucket.get(*hash).await,
        }
    }

    /// Removes what nobody names and nobody was offered since `not_younger_than`. Who names what is
    /// asked once for each candidate, in between: a manifest may be committed meanwhile if its
    /// blobs were put or offered after `not_younger_than`.
    pub async fn collect_garbage(
        &self,
        referenced: impl Fn(&Sha256Hash) -> bool + Send + Sync,
        not_younger_than: SystemTime,
    ) -> Result<Collected, BlobError> {
        match &*self.place {
            Place::Folder(folder) => folder.collect_garbage(referenced, not_younger_than).await,
            #[cfg(feature = "s3")]
            Place::Bucket(bucket) => bucket.collect_garbage(referenced, not_younger_than).await,
        }
    }

    /// Reads it all and compares.
    pub async fn verify(&self, hash: &Sha256Hash) -> Result<Verdict, BlobError> {
        let OpenBlob { mut pieces, .. } = match self.get(hash).await {
            Ok(blob) => blob,
            Err(BlobError::NotThere(_)) => return Ok(Verdict::NotThere),
            Err(error) => return Err(error),
        };
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        while let Some(piece) = pieces.try_next().await? {
            hasher.update(&piece);
            bytes += piece.len() as u64;
        }
        let found = Sha256Hash(hasher.finalize().into());
        Ok(if found == *hash { Verdict::Whole { bytes } } else { Verdict::Damaged { found } })
    }
}

/// Blobs that become durable together. Dropped without `commit`, a batch leaves none of them in a
/// folder; in a bucket some may stay, whole, for the next collection.
#[derive(Debug)]
pub struct Batch(Inner);

#[derive(Debug)]
enum Inner {
    Folder(folder::FolderBatch),
    #[cfg(feature = "s3")]
    Bucket(bucket::BucketBatch),
}

impl Batch {
    /// Takes `bytes` bytes that have this hash. After an error the batch can go on without them.
    pub async fn put(
        &mut self,
        hash: Sha256Hash,
        bytes: u64,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<(), BlobError> {
        match &mut self.0 {
            Inner::Folder(batch) => batch.put(hash, bytes, pieces).await,
            #[cfg(feature = "s3")]
            Inner::Bucket(batch) => batch.put(hash, bytes, pieces).await,
        }
    }

    /// How many blobs were stored. Returns once all of them are durable.
    pub async fn commit(self) -> Result<u64, BlobError> {
        match self.0 {
            Inner::Folder(batch) => batch.commit().await,
            #[cfg(feature = "s3")]
            Inner::Bucket(batch) => batch.commit().await,
        }
    }
}

/// `ab/cdef…`.
fn place_of(hash: &Sha256Hash) -> String {
    let digits = hash.to_string();
    format!("{}/{}", &digits[..2], &digits[2..])
}

/// The inverse of [`place_of`]; `None` for what is not ours.
fn hash_at(folder: &str, name: &str) -> Option<Sha256Hash> {
    (folder.len() == 2).then(|| format!("{folder}{name}").parse().ok()).flatten()
}

/// Counts and hashes what passes.
struct Measured {
    hasher: Sha256,
    bytes: u64,
    max: Bound,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    Announced(u64),
    AtMost(u64),
}

impl Measured {
    fn new(max: Bound) -> Self {
        Self { hasher: Sha256::new(), bytes: 0, max }
    }

    /// Before the hash is asked for: the length alone refuses what is too long at once.
    fn count(&mut self, piece: &[u8]) -> Result<(), BlobError> {
        self.bytes += piece.len() as u64;
        match self.max {
            Bound::Announced(expected) if self.bytes > expected => {
                Err(BlobError::WrongLength { expected, found: self.bytes })
            }
            Bound::AtMost(max) if self.bytes > max => Err(BlobError::TooLarge { max }),
            Bound::Announced(_) | Bound::AtMost(_) => Ok(()),
        }
    }

    fn finish(self, expected_hash: Option<Sha256Hash>) -> Result<(Sha256Hash, u64), BlobError> {
        if let Bound::Announced(expected) = self.max
            && self.bytes != expected
        {
            return Err(BlobError::WrongLength { expected, found: self.bytes });
        }
        let found = Sha256Hash(self.hasher.finalize().into());
        match expected_hash {
            Some(expected) if expected != found => Err(BlobError::WrongHash { expected, found }),
            Some(_) | None => Ok((found, self.bytes)),
        }
    }
}

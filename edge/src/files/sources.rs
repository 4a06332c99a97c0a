//! Where an agent's inputs come from: a folder of this machine, or a place in a bucket.
//!
//! ```text
//!  list(source) ─▶ entries, paths below the source ─▶ (a manifest) ─▶ open(source, path, version)
//! ```
//!
//! Owner: the daemon lists before a turn and opens for whoever may read. Invariants: a listing is
//! whole or an error that names the entry; what is opened is the version that was listed, or an
//! error that says so; nothing outside of a source is read. An unchanged folder costs no reading.
//! Absent: where in a workspace an input lies; writing.

#[cfg(feature = "s3")]
mod bucket;
mod folder;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;

use dormouse_core::limits;
use dormouse_core::manifest::{ContentId, FileEntry, FilePath, PathError};

#[cfg(feature = "s3")]
use super::objects::{Bucket, ObjectError};
use super::reading::PieceStream;

/// One place that inputs come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Absolute.
    Folder(PathBuf),
    /// `prefix` is empty or ends in `/`.
    #[cfg(feature = "s3")]
    Objects { bucket: Bucket, prefix: String },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Folder(path) => write!(f, "{}", path.display()),
            #[cfg(feature = "s3")]
            Source::Objects { bucket, prefix } => write!(f, "s3://{}/{prefix}", bucket.name()),
        }
    }
}

/// Why inputs could not be listed or read. Each names the entry.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{0} is no folder, or is not there")]
    NoFolder(PathBuf),
    #[error("{place}{name:?} cannot be a file of a workspace: {why}")]
    Name { place: String, name: String, why: PathError },
    #[error("{0} is a link that leads out of the folder, or nowhere")]
    LinkLeadsOut(String),
    #[error("{0} is neither a file nor a folder")]
    Special(String),
    #[error("{0} leads back to a folder that it is in")]
    Loop(String),
    #[error("there are more than {} files in {place}", limits::FILES_MAX)]
    TooMany { place: String },
    #[error("{0} changed since it was listed")]
    Changed(String),
    #[error("{0} vanished since it was listed")]
    Gone(String),
    #[error("{0} has no version that the object store names")]
    NoVersion(String),
    #[error("{name} could not be {doing}")]
    Io {
        doing: &'static str,
        name: String,
        #[source]
        source: io::Error,
    },
    #[cfg(feature = "s3")]
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

impl SourceError {
    /// Whether the same may succeed a little later; for what changed, after another listing.
    pub fn is_retryable(&self) -> bool {
        match self {
            SourceError::Changed(_) => true,
            SourceError::NoFolder(_)
            | SourceError::Name { .. }
            | SourceError::LinkLeadsOut(_)
            | SourceError::Special(_)
            | SourceError::Loop(_)
            | SourceError::TooMany { .. }
            | SourceError::Gone(_)
            | SourceError::NoVersion(_)
            | SourceError::Io { .. } => false,
            #[cfg(feature = "s3")]
            SourceError::Objects(error) => error.is_retryable(),
        }
    }

    /// Whether the listing is to blame, and a new one helps.
    pub fn needs_new_listing(&self) -> bool {
        match self {
            SourceError::Changed(_) | SourceError::Gone(_) => true,
            #[cfg(feature = "s3")]
            SourceError::Objects(error) => error.needs_new_listing(),
            _ => false,
        }
    }
}

/// Lists and opens. Remembers the hashes of files that did not change.
#[derive(Debug, Default)]
pub struct Sources {
    known: folder::KnownFiles,
}

impl Sources {
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything below the source, in the order of the paths, which are relative to it.
    pub async fn list(&self, source: &Source) -> Result<Vec<FileEntry>, SourceError> {
        match source {
            Source::Folder(root) => self.known.list(root.clone()).await,
            #[cfg(feature = "s3")]
            Source::Objects { bucket, prefix } => bucket::list(bucket, prefix).await,
        }
    }

    /// The pieces of a file as it was listed. A file of this machine is known by its size here; its
    /// hash is checked by whoever gets it.
    pub async fn open(
        &self,
        source: &Source,
        path: &FilePath,
        content: &ContentId,
        bytes: u64,
    ) -> Result<PieceStream<SourceError>, SourceError> {
        match source {
            Source::Folder(root) => folder::open(root.clone(), path.clone(), content, bytes).await,
            #[cfg(feature = "s3")]
            Source::Objects { bucket, prefix } => {
                bucket::open(bucket, prefix, path, content, bytes).await
            }
        }
    }
}

//! Removing blobs that nobody names any more.
//!
//! Owner: a task of the daemon. Invariants: what a row names, and what a manifest that a row names
//! names in turn, stays; so does everything younger than the config's `garbage_after`, since a
//! checkpoint's blobs are there before its row. A manifest that cannot be read stops the
//! collection: what it names is not known. Absent: which rows there are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dormouse_core::manifest::Sha256Hash;
use dormouse_edge::files::blobs::{BlobError, Collected};

use super::Files;
use super::tree::{TreeError, blob_of};
use crate::report;

const FIRST_AFTER: Duration = Duration::from_secs(10 * 60);
const EVERY: Duration = Duration::from_secs(6 * 60 * 60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum GarbageError {
    #[error("what must stay is not known")]
    Named(#[from] TreeError),
    #[error("the store of files could not be cleared")]
    Blobs(#[from] BlobError),
}

/// For as long as the daemon lives.
pub(crate) async fn collect_now_and_then(files: Arc<Files>) {
    tokio::time::sleep(FIRST_AFTER).await;
    loop {
        match files.collect_garbage().await {
            Ok(Collected { removed: 0, .. }) => {}
            Ok(Collected { removed, removed_bytes, kept }) => {
                tracing::info!(removed, removed_bytes, kept, "blobs that nobody names are gone");
            }
            Err(error) => {
                let error = report::chain(&error);
                tracing::warn!(%error, "no blobs were removed, or not all");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

impl Files {
    pub(crate) async fn collect_garbage(&self) -> Result<Collected, GarbageError> {
        // Taken before the rows are read: what is put or offered after it is too young to go.
        let now = SystemTime::now();
        let not_younger_than = now.checked_sub(self.in_force.now().config().files.garbage_after);
        let not_younger_than = not_younger_than.unwrap_or(SystemTime::UNIX_EPOCH);
        let named = self.named().await?;
        let is_named = |hash: &Sha256Hash| named.contains(hash);
        Ok(self.blobs().collect_garbage(is_named, not_younger_than).await?)
    }

    async fn named(&self) -> Result<BTreeSet<Sha256Hash>, TreeError> {
        let read = self.readers.read(|reader| reader.referenced_blobs()).await;
        let referenced = read.map_err(|_| TreeError::Store)?;
        let mut named = referenced.uploads;
        for digest in referenced.manifests {
            named.insert(digest.0);
            for entry in self.manifest(digest).await?.entries() {
                named.extend(blob_of(&entry.kind).map(|blob| blob.0));
            }
        }
        Ok(named)
    }
}

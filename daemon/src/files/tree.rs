//! The files of one session as the store has them: the newest checkpoint, and what was uploaded
//! since.
//!
//! Owner: `Files`. Invariant: a tree is of one moment of the store. Absent: inputs, and what an
//! agent has made of it since its last checkpoint.

use std::collections::BTreeMap;

use dormouse_core::id::SessionId;
use dormouse_core::manifest::{
    ContentId, FileEntry, FileKind, FilePath, Manifest, ManifestDigest, ParseManifestError,
};
use dormouse_edge::files::blobs::BlobError;
use dormouse_store::FilesView;
use futures_util::TryStreamExt as _;

use super::Files;
use crate::api::problem::Problem;

/// The canonical form of the largest workspace, which is one line for each file.
const MANIFEST_BYTES_MAX: u64 = 512 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("the store could not be read")]
    Store,
    #[error("the list of files {digest} could not be read")]
    Blob {
        digest: ManifestDigest,
        #[source]
        source: BlobError,
    },
    #[error("the list of files {digest} is larger than any can be")]
    TooLarge { digest: ManifestDigest },
    #[error("the list of files {digest} is damaged")]
    Damaged {
        digest: ManifestDigest,
        #[source]
        source: Option<ParseManifestError>,
    },
}

impl TreeError {
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            TreeError::Store => true,
            TreeError::Blob { source, .. } => source.is_retryable(),
            TreeError::TooLarge { .. } | TreeError::Damaged { .. } => false,
        }
    }
}

impl From<TreeError> for Problem {
    fn from(error: TreeError) -> Self {
        tracing::error!(error = %crate::report::chain(&error), "files could not be listed");
        match error {
            TreeError::Blob { source, .. } if source.is_places_fault() => {
                Problem::files_unavailable()
            }
            TreeError::Store
            | TreeError::Blob { .. }
            | TreeError::TooLarge { .. }
            | TreeError::Damaged { .. } => Problem::internal(),
        }
    }
}

/// Who a file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    Checkpoint(u64),
    Upload(u64),
}

/// Sorted by path.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) files: BTreeMap<FilePath, (FileKind, Since)>,
}

impl Tree {
    pub(crate) fn entries(&self) -> Vec<FileEntry> {
        let entry = |(path, (kind, _)): (&FilePath, &(FileKind, Since))| FileEntry {
            path: path.clone(),
            kind: kind.clone(),
        };
        self.files.iter().map(entry).collect()
    }
}

impl Files {
    /// `None`: there is no such session.
    pub(crate) async fn view(&self, session: &SessionId) -> Result<Option<FilesView>, TreeError> {
        let id = session.clone();
        // The reader has logged what it was.
        self.readers.read(move |reader| reader.files(&id)).await.map_err(|_| TreeError::Store)
    }

    pub(crate) async fn manifest(&self, digest: ManifestDigest) -> Result<Manifest, TreeError> {
        let failed = |source| TreeError::Blob { digest, source };
        let mut blob = self.blobs().get(&digest.0).await.map_err(failed)?;
        if blob.bytes > MANIFEST_BYTES_MAX {
            return Err(TreeError::TooLarge { digest });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.bytes).unwrap_or(0));
        while let Some(piece) = blob.pieces.try_next().await.map_err(failed)? {
            bytes.extend_from_slice(&piece);
        }
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| TreeError::Damaged { digest, source: None })?;
        let damaged = |source| TreeError::Damaged { digest, source };
        let manifest = Manifest::parse(&text).map_err(|error| damaged(Some(error)))?;
        if manifest.digest() == digest { Ok(manifest) } else { Err(damaged(None)) }
    }

    /// What the next instance finds if it finds nothing: the checkpoint, with the uploads on top.
    pub(crate) async fn tree(&self, view: &FilesView) -> Result<Tree, TreeError> {
        let mut tree = Tree::default();
        if let Some(checkpoint) = &view.restore {
            let since = Since::Checkpoint(checkpoint.number);
            for entry in self.manifest(checkpoint.manifest).await?.into_entries() {
                tree.files.insert(entry.path, (entry.kind, since));
            }
        }
        for upload in &view.uploads {
            match &upload.file {
                Some(kind) => {
                    let kept = (kind.clone(), Since::Upload(upload.number));
                    tree.files.insert(upload.path.clone(), kept);
                }
                None => drop(tree.files.remove(&upload.path)),
            }
        }
        Ok(tree)
    }
}

/// The blob of a file that is kept here.
pub(crate) fn blob_of(kind: &FileKind) -> Option<(dormouse_core::manifest::Sha256Hash, u64)> {
    match kind {
        FileKind::File { bytes, content: ContentId::Sha256(hash), .. } => Some((*hash, *bytes)),
        FileKind::File { content: ContentId::Etag(_), .. }
        | FileKind::Link { .. }
        | FileKind::Folder => None,
    }
}

//! What an agent's inputs are now, and whether what is required is there.
//!
//! Owner: `Files`; asked before each turn. Invariants: a listing is whole or a problem; a required
//! pattern that nothing matches is `input_missing`, whatever else is there. Absent: bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_core::cause::Cause;
use dormouse_core::event::FilesProblem;
use dormouse_core::id::SessionId;
use dormouse_core::manifest::{
    ContentId, FileEntry, FileKind, FilePath, Manifest, ManifestDigest, PathError,
};
use dormouse_edge::files::fetch::Origin;
use dormouse_edge::files::required::missing_required;
use dormouse_edge::files::sources::{Source, SourceError};

use super::Files;
use crate::config::files::{FilesPlace, Input};
use crate::report;

/// Beside the true entity tag, so that nobody takes it for an MD5.
const OPAQUE: &str = "opaque-";

/// The inputs of one session as they were listed.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) digest: ManifestDigest,
    pub(crate) manifest: Manifest,
    origins: BTreeMap<FilePath, Origin>,
}

impl Listed {
    /// `None`: no such input.
    pub(crate) fn origin(&self, path: &FilePath) -> Option<&Origin> {
        self.origins.get(path)
    }
}

impl Files {
    /// Whether the inputs of this version are the ones that were listed last.
    pub(crate) fn listed_as(
        &self,
        session: &SessionId,
        inputs: ManifestDigest,
    ) -> Option<Arc<Listed>> {
        self.listed().get(session).filter(|listed| listed.digest == inputs).cloned()
    }

    pub(crate) async fn list(&self, session: &SessionId) -> Result<ManifestDigest, FilesProblem> {
        let current = self.in_force.now();
        let inputs = current.agent(session.agent()).map_or(&[][..], |agent| &agent.inputs);
        let mut entries = Vec::new();
        let mut origins = BTreeMap::new();
        let mut missing = Vec::new();
        for input in inputs {
            let source = input.from.as_ref().map(|place| self.asked_source(place)).transpose()?;
            let found = match &source {
                Some(source) => self.of_source(source).await?,
                None => self.of_session(session, input.path.as_ref()).await?,
            };
            let place = input.path.as_ref().map_or(".", FilePath::as_str);
            for pattern in missing_required(&input.required, &found) {
                missing.push(format!("{place}/{pattern}"));
            }
            let Some(source) = &source else { continue };
            for entry in found {
                let (entry, origin) = placed(input, source, entry)?;
                origins.insert(entry.path.clone(), origin);
                entries.push(entry);
            }
        }
        if !missing.is_empty() {
            let message = format!("nothing matches {}", missing.join(", "));
            return Err(FilesProblem { cause: Cause::InputMissing, message, retryable: false });
        }
        let manifest = Manifest::new(entries).map_err(|error| refused(error.to_string()))?;
        let digest = manifest.digest();
        let listed = Arc::new(Listed { digest, manifest, origins });
        self.listed().insert(session.clone(), listed);
        Ok(digest)
    }

    fn asked_source(&self, place: &FilesPlace) -> Result<Arc<Source>, FilesProblem> {
        self.source(place).map_err(|error| refused(report::chain(&error)))
    }

    async fn of_source(&self, source: &Arc<Source>) -> Result<Vec<FileEntry>, FilesProblem> {
        self.fetcher.sources.list(source).await.map_err(|error| {
            let cause = match &error {
                SourceError::NoFolder(_) => Cause::InputMissing,
                _other => Cause::SyncFailed,
            };
            let retryable = error.is_retryable() || error.needs_new_listing();
            FilesProblem { cause, message: report::chain(&error), retryable }
        })
    }

    /// The session's own files below `path`, by paths from there.
    async fn of_session(
        &self,
        session: &SessionId,
        path: Option<&FilePath>,
    ) -> Result<Vec<FileEntry>, FilesProblem> {
        let failed = |error: super::tree::TreeError| FilesProblem {
            cause: Cause::SyncFailed,
            message: report::chain(&error),
            retryable: error.is_retryable(),
        };
        let Some(view) = self.view(session).await.map_err(failed)? else { return Ok(Vec::new()) };
        let tree = self.tree(&view).await.map_err(failed)?;
        let below = |entry: FileEntry| match path {
            None => Some(entry),
            Some(path) => {
                let rest = entry.path.as_str().strip_prefix(path.as_str())?.strip_prefix('/')?;
                Some(FileEntry { path: FilePath::new(rest).ok()?, kind: entry.kind })
            }
        };
        Ok(tree.entries().into_iter().filter_map(below).collect())
    }
}

fn refused(message: String) -> FilesProblem {
    FilesProblem { cause: Cause::SyncFailed, message, retryable: false }
}

/// The entry where the workspace has it, and where its bytes are.
fn placed(
    input: &Input,
    source: &Arc<Source>,
    entry: FileEntry,
) -> Result<(FileEntry, Origin), FilesProblem> {
    let FileEntry { path: below, mut kind } = entry;
    let wrong = |error: PathError| refused(format!("{below}: {error}"));
    let path = match &input.path {
        Some(folder) => folder.join(below.as_str()).map_err(wrong)?,
        None => below.clone(),
    };
    let origin = match &mut kind {
        FileKind::File { content, .. } => {
            let true_content = content.clone();
            if let ContentId::Etag(etag) = content
                && input.has_opaque_etags
            {
                let marked = ContentId::etag(&format!("{OPAQUE}{etag}"));
                *content =
                    marked.ok_or_else(|| refused(format!("{below}: its tag is too long")))?;
            }
            Origin::Input { source: Arc::clone(source), path: below, content: true_content }
        }
        FileKind::Link { .. } | FileKind::Folder => {
            Origin::Nowhere { why: format!("{below} has no bytes") }
        }
    };
    Ok((FileEntry { path, kind }, origin))
}

//! Inputs below a prefix of a bucket.
//!
//! Owner: `sources`. Invariants: a listing has every page; a key that cannot be a file of a
//! workspace fails it by name; an object is opened in the version that was listed. Absent: hashes:
//! an object is known by its store's version.

use dormouse_core::limits;
use dormouse_core::manifest::{ContentId, FileEntry, FileKind, FilePath};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::SourceError;
use crate::files::objects::{Bucket, Listed};
use crate::files::reading::{PieceStream, pieces};

/// Servers that leave versions out of a listing are asked for so many at a time.
const HEADS_AT_A_TIME: usize = 16;

pub(super) async fn list(bucket: &Bucket, prefix: &str) -> Result<Vec<FileEntry>, SourceError> {
    let place = format!("s3://{}/", bucket.name());
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = bucket.list_page(prefix, after.as_deref()).await?;
        for object in page.objects {
            let Some(below) = object.key.strip_prefix(prefix) else { continue };
            // What consoles make to show a folder.
            if below.is_empty() || below.ends_with('/') && object.bytes == 0 {
                continue;
            }
            let path = FilePath::new(below).map_err(|why| SourceError::Name {
                place: place.clone(),
                name: object.key.clone(),
                why,
            })?;
            found.push((path, object));
        }
        if found.len() > limits::FILES_MAX {
            return Err(SourceError::TooMany { place: format!("{place}{prefix}") });
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let entries = stream::iter(found)
        .map(|(path, object)| entry(bucket, path, object))
        .buffered(HEADS_AT_A_TIME);
    let mut entries: Vec<FileEntry> = entries.try_collect().await?;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

async fn entry(bucket: &Bucket, path: FilePath, object: Listed) -> Result<FileEntry, SourceError> {
    let (bytes, content) = match object.etag.as_deref().and_then(ContentId::etag) {
        Some(content) => (object.bytes, content),
        None => match bucket.head(&object.key).await? {
            Some((bytes, Some(content))) => (bytes, content),
            Some((_, None)) => return Err(SourceError::NoVersion(object.key)),
            None => return Err(SourceError::Gone(object.key)),
        },
    };
    let kind = FileKind::File { bytes, content, is_executable: false };
    Ok(FileEntry { path, kind })
}

pub(super) async fn open(
    bucket: &Bucket,
    prefix: &str,
    path: &FilePath,
    content: &ContentId,
    bytes: u64,
) -> Result<PieceStream<SourceError>, SourceError> {
    let key = format!("{prefix}{path}");
    let object = bucket.get(&key, Some(content)).await?;
    if object.bytes != bytes {
        return Err(SourceError::Changed(key));
    }
    Ok(pieces(object.pieces.map_err(SourceError::from)))
}

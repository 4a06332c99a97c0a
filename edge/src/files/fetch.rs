//! Many files at once, as one stream of pieces.
//!
//! ```text
//!  wanted[0..n] ─▶ so many open at a time ─▶ pieces, in the order in which they arrive
//!                                            each file: data, data, …, then end or failed
//! ```
//!
//! Owner: the daemon frames the pieces for a bridge. Invariants: nothing is read that nobody asks
//! for: the stream runs only while it is polled, and holds at most a piece of each open file; each
//! wanted file ends once, by an end or a failure; a failure is one file's own. Absent: tasks, and
//! hashes.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_bridge::files::stream as wire;
use dormouse_core::manifest::{ContentId, FilePath, Sha256Hash};
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};

use super::blobs::{BlobError, BlobStore};
use super::reading::PieceStream;
use super::sources::{Source, SourceError, Sources};

/// Open at a time.
pub const OPEN_FILES_MAX: usize = 16;

/// Where a wanted file is.
#[derive(Debug, Clone)]
pub enum Origin {
    Blob(Sha256Hash),
    Input {
        source: Arc<Source>,
        path: FilePath,
        content: ContentId,
    },
    /// Nobody has it: it fails with this reason.
    Nowhere {
        why: String,
    },
}

#[derive(Debug, Clone)]
pub struct Wanted {
    pub origin: Origin,
    /// As it was listed.
    pub bytes: u64,
}

/// A piece of the file at `index` of what was wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub index: u32,
    pub kind: PieceKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceKind {
    /// Never empty.
    Data(Bytes),
    End,
    Failed {
        is_retryable: bool,
        message: String,
    },
}

impl Piece {
    /// As it travels to a bridge: to be sent one after the other. Data is not copied.
    pub fn framed(self) -> [Bytes; 2] {
        let index = self.index;
        match self.kind {
            PieceKind::Data(data) => {
                let bytes = u32::try_from(data.len()).expect("a piece was read at once");
                [Bytes::copy_from_slice(&wire::piece_head(index, bytes)), data]
            }
            PieceKind::End => [Bytes::copy_from_slice(&wire::file_end(index)), Bytes::new()],
            PieceKind::Failed { is_retryable, message } => {
                [wire::file_failure(index, is_retryable, &message).into(), Bytes::new()]
            }
        }
    }
}

/// What files are fetched from.
#[derive(Debug, Clone)]
pub struct Fetcher {
    pub blobs: BlobStore,
    pub sources: Arc<Sources>,
}

impl Fetcher {
    pub fn fetch(&self, wanted: Vec<Wanted>) -> impl Stream<Item = Piece> + Send + 'static {
        let fetcher = self.clone();
        let files = (0..).zip(wanted).map(move |(index, wanted): (u32, _)| {
            let fetcher = fetcher.clone();
            stream::once(async move { fetcher.open(index, wanted).await }).flatten().boxed()
        });
        stream::iter(files).flatten_unordered(OPEN_FILES_MAX)
    }

    async fn open(self, index: u32, wanted: Wanted) -> BoxStream<'static, Piece> {
        let Wanted { origin, bytes } = wanted;
        match origin {
            Origin::Blob(hash) => match self.blobs.get(&hash).await {
                Ok(blob) if blob.bytes == bytes => pieces_of(index, blob.pieces),
                Ok(blob) => {
                    let message = format!("the blob {hash} has {} bytes, not {bytes}", blob.bytes);
                    failed(index, false, message)
                }
                Err(error) => failed(index, error.is_retryable(), in_full(&error)),
            },
            Origin::Input { source, path, content } => {
                match self.sources.open(&source, &path, &content, bytes).await {
                    Ok(pieces) => pieces_of(index, pieces),
                    Err(error) => failed(index, error.is_retryable(), in_full(&error)),
                }
            }
            Origin::Nowhere { why } => failed(index, false, why),
        }
    }
}

/// An error that says whether it passes.
trait Fault: std::error::Error + Sized + Send + 'static {
    fn passes(&self) -> bool;
}

impl Fault for BlobError {
    fn passes(&self) -> bool {
        self.is_retryable()
    }
}

impl Fault for SourceError {
    fn passes(&self) -> bool {
        self.is_retryable()
    }
}

fn pieces_of<E: Fault>(index: u32, pieces: PieceStream<E>) -> BoxStream<'static, Piece> {
    let rest = stream::unfold(Some(pieces), move |pieces| async move {
        let mut pieces = pieces?;
        match pieces.next().await {
            Some(Ok(data)) => Some((PieceKind::Data(data), Some(pieces))),
            Some(Err(error)) => {
                let (is_retryable, message) = (error.passes(), in_full(&error));
                Some((PieceKind::Failed { is_retryable, message }, None))
            }
            None => Some((PieceKind::End, None)),
        }
    });
    rest.map(move |kind| Piece { index, kind }).boxed()
}

fn failed(index: u32, is_retryable: bool, message: String) -> BoxStream<'static, Piece> {
    let kind = PieceKind::Failed { is_retryable, message };
    stream::iter([Piece { index, kind }]).boxed()
}

/// With what is behind it.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use dormouse_bridge::files::stream::{FetchDecoder, FetchEvent};

    use super::*;

    #[test]
    fn framed_pieces_are_read_by_a_bridge_as_they_were() {
        let data = PieceKind::Data(Bytes::from_static(b"some bytes"));
        let message = "in/x vanished since it was listed".to_owned();
        let lost = PieceKind::Failed { is_retryable: true, message: message.clone() };
        let pieces = [(2, data), (2, PieceKind::End), (0, lost)];
        let framed = pieces.map(|(index, kind)| Piece { index, kind }.framed().concat()).concat();
        let (mut decoder, mut input) = (FetchDecoder::new(3), &framed[..]);
        let mut heard = Vec::new();
        while let Some(event) = decoder.next(&mut input).unwrap() {
            heard.push(event);
        }
        let expected = [
            FetchEvent::Bytes { index: 2, bytes: b"some bytes" },
            FetchEvent::End { index: 2 },
            FetchEvent::Failed { index: 0, is_retryable: true, words: message },
        ];
        assert_eq!(heard, expected);
    }
}

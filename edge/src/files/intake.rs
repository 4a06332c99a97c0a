//! Blobs as a bridge sends them, many in one stream, into the store.
//!
//! Owner: the daemon, for the body of one request. Invariants: all of them become durable together,
//! or an error comes out; what was received is not copied on its way. Absent: who may send.

use std::io;
use std::pin::Pin;

use bytes::{Buf as _, Bytes};
use dormouse_bridge::files::stream::{BlobDecoder, BlobEvent, StreamError};
use dormouse_core::manifest::Sha256Hash;
use futures_util::{Stream, TryStreamExt as _, stream};

use super::blobs::{BlobError, BlobStore};

/// How many were stored. After an error none of a folder's batch is; and the rest of the body was
/// not read.
pub async fn store_blobs(
    store: &BlobStore,
    body: impl Stream<Item = io::Result<Bytes>> + Send,
) -> Result<u64, BlobError> {
    let mut batch = store.begin_batch().await?;
    let mut intake =
        Intake { body: std::pin::pin!(body), rest: Bytes::new(), decoder: BlobDecoder::default() };
    while let Some((hash, bytes)) = intake.begin().await.map_err(BlobError::Sender)? {
        let pieces = stream::try_unfold(&mut intake, |intake| async move {
            let piece = intake.piece().await?;
            Ok(piece.map(|piece| (piece, intake)))
        });
        batch.put(hash, bytes, pieces).await?;
    }
    batch.commit().await
}

struct Intake<'a, S> {
    body: Pin<&'a mut S>,
    rest: Bytes,
    decoder: BlobDecoder,
}

enum Heard {
    Begin(Sha256Hash, u64),
    Piece(Bytes),
    End,
    /// The body is over.
    Over,
}

impl<S: Stream<Item = io::Result<Bytes>> + Send> Intake<'_, S> {
    /// The next blob, if there is one.
    async fn begin(&mut self) -> io::Result<Option<(Sha256Hash, u64)>> {
        match self.next().await? {
            Heard::Begin(hash, bytes) => Ok(Some((hash, bytes))),
            Heard::Over => Ok(None),
            Heard::Piece(_) | Heard::End => Err(wrong(StreamError::BrokeOff)),
        }
    }

    /// The next piece of the blob that begun.
    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        match self.next().await? {
            Heard::Piece(piece) => Ok(Some(piece)),
            Heard::End => Ok(None),
            Heard::Begin(..) | Heard::Over => Err(wrong(StreamError::BrokeOff)),
        }
    }

    async fn next(&mut self) -> io::Result<Heard> {
        loop {
            let mut input = &self.rest[..];
            let heard = match self.decoder.next(&mut input).map_err(wrong)? {
                Some(BlobEvent::Begin { hash, bytes }) => Some(Heard::Begin(hash, bytes)),
                Some(BlobEvent::Bytes(bytes)) => Some(Heard::Piece(self.rest.slice_ref(bytes))),
                Some(BlobEvent::End) => Some(Heard::End),
                None => None,
            };
            let read = self.rest.len() - input.len();
            self.rest.advance(read);
            if let Some(heard) = heard {
                return Ok(heard);
            }
            match self.body.try_next().await? {
                Some(more) => self.rest = more,
                None => {
                    self.decoder.finish().map_err(wrong)?;
                    return Ok(Heard::Over);
                }
            }
        }
    }
}

fn wrong(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use dormouse_bridge::files::stream::blob_head;

    use super::*;
    use crate::files::blobs::Verdict;
    use crate::testing::ScratchFolder;

    fn framed(contents: &[Vec<u8>]) -> Vec<u8> {
        let mut framed = Vec::new();
        for content in contents {
            framed.extend(blob_head(&Sha256Hash::of(content), content.len() as u64));
            framed.extend(content);
        }
        framed
    }

    fn body(framed: &[u8], cut: usize) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let pieces: Vec<_> =
            framed.chunks(cut).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces)
    }

    fn contents() -> Vec<Vec<u8>> {
        [0, 1, 39, 40, 41, 5_000, 0].map(|size| vec![b'x'; size]).to_vec()
    }

    #[tokio::test]
    async fn blobs_are_stored_wherever_their_stream_is_cut() {
        let contents = contents();
        let framed = framed(&contents);
        for cut in [1, 7, 40, 41, 1_000, framed.len()] {
            let scratch = ScratchFolder::new();
            let store = BlobStore::in_folder(scratch.path()).await.unwrap();
            assert_eq!(store_blobs(&store, body(&framed, cut)).await.unwrap(), 7);
            for content in &contents {
                let verdict = store.verify(&Sha256Hash::of(content)).await.unwrap();
                assert_eq!(verdict, Verdict::Whole { bytes: content.len() as u64 });
            }
        }
        let scratch = ScratchFolder::new();
        let store = BlobStore::in_folder(scratch.path()).await.unwrap();
        assert_eq!(store_blobs(&store, body(&[], 1)).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_or_lies_stores_nothing() {
        let contents = contents();
        let whole = framed(&contents);
        let scratch = ScratchFolder::new();
        let store = BlobStore::in_folder(scratch.path()).await.unwrap();
        for end in [1, 39, 41, 80, whole.len() - 1] {
            let error = store_blobs(&store, body(&whole[..end], 1_000)).await.unwrap_err();
            assert!(error.is_senders_fault(), "{end}: {error}");
        }
        let mut lie = whole;
        let last = lie.len() - 41;
        lie[last] ^= 1;
        let error = store_blobs(&store, body(&lie, 1_000)).await.unwrap_err();
        assert!(matches!(error, BlobError::WrongHash { .. }), "{error}");
        let hashes: Vec<_> = contents.iter().map(|content| Sha256Hash::of(content)).collect();
        assert_eq!(store.missing(&hashes).await.unwrap(), hashes);
    }
}

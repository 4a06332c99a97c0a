//! A stream of blobs from a bridge, taken apart as it comes.
//!
//! Owner: `bridges`. Invariants: nothing of a blob is held but the piece that just came; a blob's
//! pieces end where its head said, or with an error. Absent: hashing and keeping.

use std::io;

use axum::body::BodyDataStream;
use axum::body::Bytes;
use dormouse_bridge::files::stream::{BlobDecoder, BlobEvent};
use dormouse_core::manifest::Sha256Hash;
use futures_util::TryStreamExt as _;
use futures_util::stream::{Stream, unfold};

pub(crate) struct IncomingBlobs {
    body: BodyDataStream,
    decoder: BlobDecoder,
    rest: Bytes,
}

enum Said {
    Begin { hash: Sha256Hash, bytes: u64 },
    Piece(Bytes),
    End,
}

impl IncomingBlobs {
    pub(crate) fn new(body: BodyDataStream) -> Self {
        Self { body, decoder: BlobDecoder::default(), rest: Bytes::new() }
    }

    /// The head of the next blob; `None`: that was all.
    pub(crate) async fn next_head(&mut self) -> io::Result<Option<(Sha256Hash, u64)>> {
        match self.next().await? {
            None => Ok(None),
            Some(Said::Begin { hash, bytes }) => Ok(Some((hash, bytes))),
            Some(Said::Piece(_) | Said::End) => {
                Err(io::Error::other("the blob before was not read to its end"))
            }
        }
    }

    /// The bytes of the blob whose head was just read.
    pub(crate) fn pieces(&mut self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        unfold(Some(self), |blobs| async {
            let blobs = blobs?;
            match blobs.next().await {
                Ok(Some(Said::Piece(piece))) => Some((Ok(piece), Some(blobs))),
                Ok(Some(Said::End)) => None,
                Ok(Some(Said::Begin { .. }) | None) => {
                    Some((Err(io::ErrorKind::UnexpectedEof.into()), None))
                }
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn next(&mut self) -> io::Result<Option<Said>> {
        loop {
            let mut input = &self.rest[..];
            let event = self.decoder.next(&mut input).map_err(io::Error::other)?;
            let taken = self.rest.len() - input.len();
            let said = match event {
                Some(BlobEvent::Begin { hash, bytes }) => Some(Said::Begin { hash, bytes }),
                Some(BlobEvent::Bytes(bytes)) => {
                    Some(Said::Piece(self.rest.slice(taken - bytes.len()..taken)))
                }
                Some(BlobEvent::End) => Some(Said::End),
                None => None,
            };
            drop(self.rest.split_to(taken));
            if said.is_some() {
                return Ok(said);
            }
            match self.body.try_next().await.map_err(io::Error::other)? {
                Some(chunk) => self.rest = chunk,
                None => {
                    self.decoder.finish().map_err(io::Error::other)?;
                    return Ok(None);
                }
            }
        }
    }
}

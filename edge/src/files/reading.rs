//! A file's bytes as a stream, read off the threads that serve everybody.
//!
//! Owner: whoever opened the file. Invariants: at most one piece is in memory for each stream; a
//! small file costs one visit to the blocking threads; a stream ends after the promised bytes or
//! with an error. Absent: who may read what.

use std::fs::File;
use std::io::{self, Read as _};
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;

/// Pieces of a file or of an object, in order.
pub type PieceStream<E> = Pin<Box<dyn Stream<Item = Result<Bytes, E>> + Send>>;

/// Read at once. Large enough that the visit to another thread does not count.
pub(super) const PIECE_BYTES: usize = 512 << 10;

/// `work` on a thread that may block. A panic there is a panic here.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A file of which the first piece is read already.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) bytes: u64,
    first: Bytes,
    /// Not read yet.
    left: u64,
    file: File,
}

impl Begun {
    /// Blocks. `bytes` is what the file has, and what is going to be read.
    pub(super) fn new(mut file: File, bytes: u64) -> io::Result<Self> {
        let first = read_piece(&mut file, bytes)?;
        let left = bytes - first.len() as u64;
        Ok(Self { bytes, first, left, file })
    }

    pub(super) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(Some(self), |state| async move {
            let Some(Self { bytes, first, left, mut file }) = state else { return Ok(None) };
            if left == 0 {
                return Ok((!first.is_empty()).then_some((first, None)));
            }
            if !first.is_empty() {
                return Ok(Some((first, Some(Self { bytes, first: Bytes::new(), left, file }))));
            }
            let (file, piece) = blocking(move || {
                let piece = read_piece(&mut file, left);
                (file, piece)
            })
            .await;
            let piece = piece?;
            let left = left - piece.len() as u64;
            let next = (left > 0).then_some(Self { bytes, first, left, file });
            Ok(Some((piece, next)))
        })
    }
}

/// Fails where the file ends too early.
fn read_piece(file: &mut File, left: u64) -> io::Result<Bytes> {
    let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
    let mut piece = Vec::with_capacity(wanted);
    file.take(wanted as u64).read_to_end(&mut piece)?;
    if piece.len() < wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(piece.into())
}

/// Boxes a stream whose errors become others.
pub(super) fn pieces<E: 'static>(
    stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> PieceStream<E> {
    Box::pin(stream)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;
    use crate::testing::ScratchFolder;

    async fn read(scratch: &ScratchFolder, bytes: u64) -> io::Result<Vec<Bytes>> {
        let file = File::open(scratch.path().join("file"))?;
        let begun = blocking(move || Begun::new(file, bytes)).await?;
        begun.stream().try_collect().await
    }

    #[tokio::test]
    async fn a_file_comes_whole_in_bounded_pieces() {
        let scratch = ScratchFolder::new();
        for size in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7] {
            let content: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
            std::fs::write(scratch.path().join("file"), &content).unwrap();
            let pieces = read(&scratch, size as u64).await.unwrap();
            assert!(pieces.iter().all(|piece| (1..=PIECE_BYTES).contains(&piece.len())));
            assert_eq!(pieces.concat(), content, "{size}");
        }
    }

    #[tokio::test]
    async fn a_file_that_ends_too_early_is_an_error_and_one_that_grew_is_cut() {
        let scratch = ScratchFolder::new();
        std::fs::write(scratch.path().join("file"), vec![7; PIECE_BYTES + 10]).unwrap();
        let error = read(&scratch, PIECE_BYTES as u64 + 11).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let pieces = read(&scratch, PIECE_BYTES as u64 + 9).await.unwrap();
        assert_eq!(pieces.concat().len(), PIECE_BYTES + 9);
    }
}

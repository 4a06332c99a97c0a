//! The two streams of file contents, as bytes: those that a workspace gets, and those it gives.
//!
//! ```text
//!  fetch:  [index u32][0][length u32][bytes]        a piece of that file; several, in order
//!          [index u32][1]                           that file is complete
//!          [index u32][2][retryable u8][length u16][words]   it failed
//!  blobs:  [SHA-256, 32 bytes][length u64][bytes] … one after the other
//! ```
//!
//! Numbers are big-endian. Owner: this file is the contract; both sides use it. Invariants: a
//! decoder holds no more than one head or one failure's words, however long a piece is: what it
//! gives borrows from what it was given. Absent: whether the bytes are the right ones.

use std::mem;

use dormouse_core::limits;
use dormouse_core::manifest::Sha256Hash;

const PIECE: u8 = 0;
const END: u8 = 1;
const FAILED: u8 = 2;

/// The longest words of a failure that are sent.
pub const FAILURE_BYTES_MAX: usize = 4 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("the stream of files has an unknown tag {0}")]
    Tag(u8),
    #[error("the stream of files names file {index} of {files}")]
    Index { index: u32, files: u32 },
    #[error("a failure in the stream of files is not text")]
    NotText,
    #[error("a blob of {0} bytes is larger than any workspace")]
    TooLarge(u64),
    #[error("the stream of files broke off")]
    BrokeOff,
}

/// Put before the bytes of a piece.
pub fn piece_head(index: u32, bytes: u32) -> [u8; 9] {
    let mut head = [0; 9];
    head[..4].copy_from_slice(&index.to_be_bytes());
    head[4] = PIECE;
    head[5..].copy_from_slice(&bytes.to_be_bytes());
    head
}

pub fn file_end(index: u32) -> [u8; 5] {
    let mut end = [END; 5];
    end[..4].copy_from_slice(&index.to_be_bytes());
    end
}

/// Words beyond [`FAILURE_BYTES_MAX`] are cut.
pub fn file_failure(index: u32, is_retryable: bool, words: &str) -> Vec<u8> {
    let words = &words[..words.floor_char_boundary(FAILURE_BYTES_MAX)];
    let length = u16::try_from(words.len()).expect("the bound on words fits two bytes");
    let mut failure = Vec::with_capacity(8 + words.len());
    failure.extend(index.to_be_bytes());
    failure.extend([FAILED, u8::from(is_retryable)]);
    failure.extend(length.to_be_bytes());
    failure.extend(words.as_bytes());
    failure
}

/// Put before the bytes of a blob.
pub fn blob_head(hash: &Sha256Hash, bytes: u64) -> [u8; 40] {
    let mut head = [0; 40];
    head[..32].copy_from_slice(&hash.0);
    head[32..].copy_from_slice(&bytes.to_be_bytes());
    head
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchEvent<'a> {
    Bytes { index: u32, bytes: &'a [u8] },
    End { index: u32 },
    Failed { index: u32, is_retryable: bool, words: String },
}

/// Reads the stream of a fetch as it comes.
#[derive(Debug)]
pub struct FetchDecoder {
    files: u32,
    head: Head<9>,
    state: FetchState,
}

#[derive(Debug)]
enum FetchState {
    Head,
    Piece { index: u32, left: usize },
    Words { index: u32, is_retryable: bool, left: usize, words: Vec<u8> },
}

impl FetchDecoder {
    /// For the answer to a request for so many files.
    pub fn new(files: u32) -> Self {
        Self { files, head: Head::default(), state: FetchState::Head }
    }

    /// The next event in `input`, whose read part is cut off; `None`: more bytes are needed.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<FetchEvent<'a>>, StreamError> {
        loop {
            match &mut self.state {
                FetchState::Head => match self.read_head(input)? {
                    Some(event) => return Ok(Some(event)),
                    None if matches!(self.state, FetchState::Head) => return Ok(None),
                    None => {}
                },
                FetchState::Piece { left: 0, .. } => self.state = FetchState::Head,
                FetchState::Piece { .. } if input.is_empty() => return Ok(None),
                FetchState::Piece { index, left } => {
                    let bytes = take(input, *left);
                    *left -= bytes.len();
                    return Ok(Some(FetchEvent::Bytes { index: *index, bytes }));
                }
                FetchState::Words { index, is_retryable, left, words } => {
                    let bytes = take(input, *left);
                    *left -= bytes.len();
                    words.extend_from_slice(bytes);
                    if *left > 0 {
                        return Ok(None);
                    }
                    let (index, is_retryable) = (*index, *is_retryable);
                    let words = String::from_utf8(mem::take(words));
                    let words = words.map_err(|_| StreamError::NotText)?;
                    self.state = FetchState::Head;
                    return Ok(Some(FetchEvent::Failed { index, is_retryable, words }));
                }
            }
        }
    }

    /// Reads on in the head of a frame, and goes to what follows it.
    fn read_head(&mut self, input: &mut &[u8]) -> Result<Option<FetchEvent<'static>>, StreamError> {
        let Some(&[i0, i1, i2, i3, tag]) = self.head.read::<5>(input) else { return Ok(None) };
        let index = u32::from_be_bytes([i0, i1, i2, i3]);
        if index >= self.files {
            return Err(StreamError::Index { index, files: self.files });
        }
        match tag {
            PIECE => {
                let Some(&[.., a, b, c, d]) = self.head.read::<9>(input) else { return Ok(None) };
                let left = u32::from_be_bytes([a, b, c, d]) as usize;
                self.state = FetchState::Piece { index, left };
            }
            END => {
                self.head.clear();
                return Ok(Some(FetchEvent::End { index }));
            }
            FAILED => {
                let Some(&[.., retryable, a, b]) = self.head.read::<8>(input) else {
                    return Ok(None);
                };
                let (is_retryable, left) =
                    (retryable != 0, usize::from(u16::from_be_bytes([a, b])));
                self.state = FetchState::Words { index, is_retryable, left, words: Vec::new() };
            }
            other => return Err(StreamError::Tag(other)),
        }
        self.head.clear();
        Ok(None)
    }

    /// To be asked at the end of the stream.
    pub fn finish(&self) -> Result<(), StreamError> {
        match &self.state {
            FetchState::Head if self.head.is_empty() => Ok(()),
            FetchState::Piece { left: 0, .. } => Ok(()),
            _ => Err(StreamError::BrokeOff),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobEvent<'a> {
    Begin { hash: Sha256Hash, bytes: u64 },
    Bytes(&'a [u8]),
    End,
}

/// Reads a stream of blobs as it comes.
#[derive(Debug, Default)]
pub struct BlobDecoder {
    head: Head<40>,
    /// Of the blob whose head was read.
    left: Option<u64>,
}

impl BlobDecoder {
    /// The next event in `input`, whose read part is cut off; `None`: more bytes are needed.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<BlobEvent<'a>>, StreamError> {
        let Some(left) = self.left else {
            let Some(head) = self.head.read::<40>(input) else { return Ok(None) };
            let (hash, length) = head.split_at(32);
            let hash = Sha256Hash(hash.try_into().expect("a head was split after 32 of 40"));
            let bytes = u64::from_be_bytes(length.try_into().expect("8 of 40 are left"));
            self.head.clear();
            if bytes > limits::FILES_BYTES_MAX {
                return Err(StreamError::TooLarge(bytes));
            }
            self.left = Some(bytes);
            return Ok(Some(BlobEvent::Begin { hash, bytes }));
        };
        if left == 0 {
            self.left = None;
            return Ok(Some(BlobEvent::End));
        }
        if input.is_empty() {
            return Ok(None);
        }
        let bytes = take(input, usize::try_from(left).unwrap_or(usize::MAX));
        self.left = Some(left - bytes.len() as u64);
        Ok(Some(BlobEvent::Bytes(bytes)))
    }

    /// To be asked at the end of the stream, after `next` had nothing more.
    pub fn finish(&self) -> Result<(), StreamError> {
        match self.left.is_none() && self.head.is_empty() {
            true => Ok(()),
            false => Err(StreamError::BrokeOff),
        }
    }
}

/// Cuts off the first `max` bytes, or all.
fn take<'a>(input: &mut &'a [u8], max: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(max.min(input.len()));
    *input = rest;
    taken
}

/// The first bytes of something, however they come apart.
#[derive(Debug)]
struct Head<const MAX: usize> {
    bytes: [u8; MAX],
    filled: usize,
}

impl<const MAX: usize> Default for Head<MAX> {
    fn default() -> Self {
        Self { bytes: [0; MAX], filled: 0 }
    }
}

impl<const MAX: usize> Head<MAX> {
    /// Its first `N` bytes, once they are there.
    fn read<const N: usize>(&mut self, input: &mut &[u8]) -> Option<&[u8; N]> {
        let missing = N.saturating_sub(self.filled);
        let taken = take(input, missing);
        self.bytes[self.filled..self.filled + taken.len()].copy_from_slice(taken);
        self.filled += taken.len();
        if self.filled < N { None } else { self.bytes.first_chunk() }
    }

    fn is_empty(&self) -> bool {
        self.filled == 0
    }

    fn clear(&mut self) {
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Said {
        Bytes(u32, Vec<u8>),
        End(u32),
        Failed(u32, bool, String),
    }

    fn said() -> impl Strategy<Value = Said> {
        let bytes = prop::collection::vec(any::<u8>(), 1..20);
        prop_oneof![
            (0u32..9, bytes).prop_map(|(index, bytes)| Said::Bytes(index, bytes)),
            (0u32..9).prop_map(Said::End),
            (0u32..9, any::<bool>(), ".{0,9}").prop_map(|(i, r, w)| Said::Failed(i, r, w)),
        ]
    }

    fn encode(said: &[Said]) -> Vec<u8> {
        let mut stream = Vec::new();
        for one in said {
            match one {
                Said::Bytes(index, bytes) => {
                    stream.extend(piece_head(*index, u32::try_from(bytes.len()).unwrap()));
                    stream.extend(bytes);
                }
                Said::End(index) => stream.extend(file_end(*index)),
                Said::Failed(index, retryable, words) => {
                    stream.extend(file_failure(*index, *retryable, words));
                }
            }
        }
        stream
    }

    /// Joins what came of one file in a row: how pieces are cut means nothing.
    fn add(heard: &mut Vec<Said>, event: FetchEvent<'_>) {
        match event {
            FetchEvent::Bytes { index, bytes } => match heard.last_mut() {
                Some(Said::Bytes(last, all)) if *last == index => all.extend(bytes),
                _ => heard.push(Said::Bytes(index, bytes.to_vec())),
            },
            FetchEvent::End { index } => heard.push(Said::End(index)),
            FetchEvent::Failed { index, is_retryable, words } => {
                heard.push(Said::Failed(index, is_retryable, words));
            }
        }
    }

    fn joined(said: &[Said]) -> Vec<Said> {
        let mut joined = Vec::new();
        for one in said {
            match (joined.last_mut(), one) {
                (Some(Said::Bytes(last, all)), Said::Bytes(index, bytes)) if last == index => {
                    all.extend(bytes);
                }
                _ => joined.push(one.clone()),
            }
        }
        joined
    }

    proptest! {
        #[test]
        fn a_fetch_is_read_as_it_was_written_wherever_it_is_cut(
            all in prop::collection::vec(said(), 0..12),
            cut in 1usize..30,
        ) {
            let stream = encode(&all);
            let mut decoder = FetchDecoder::new(9);
            let mut heard = Vec::new();
            for mut input in stream.chunks(cut) {
                while let Some(event) = decoder.next(&mut input).unwrap() {
                    add(&mut heard, event);
                }
                prop_assert!(input.is_empty());
            }
            prop_assert_eq!(heard, joined(&all));
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn a_fetch_that_is_cut_short_is_never_taken_for_a_whole_one(
            all in prop::collection::vec(said(), 1..6),
            cut in 1usize..8,
        ) {
            let stream = encode(&all);
            let last = encode(&all[all.len() - 1..]).len();
            let mut input = &stream[..stream.len() - cut.min(last - 1)];
            let mut decoder = FetchDecoder::new(9);
            while decoder.next(&mut input).unwrap().is_some() {}
            prop_assert_eq!(decoder.finish(), Err(StreamError::BrokeOff));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic_or_hang(
            stream in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let (mut fetch, mut blobs) = (FetchDecoder::new(3), BlobDecoder::default());
            let mut input = &stream[..];
            while let Ok(Some(_)) = fetch.next(&mut input) {}
            let mut input = &stream[..];
            while let Ok(Some(_)) = blobs.next(&mut input) {}
        }

        #[test]
        fn blobs_are_read_as_they_were_written_wherever_they_are_cut(
            all in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6),
            cut in 1usize..50,
        ) {
            let mut stream = Vec::new();
            for bytes in &all {
                stream.extend(blob_head(&Sha256Hash::of(bytes), bytes.len() as u64));
                stream.extend(bytes);
            }
            let mut decoder = BlobDecoder::default();
            let mut heard: Vec<Vec<u8>> = Vec::new();
            let mut ended = 0;
            for mut input in stream.chunks(cut) {
                while let Some(event) = decoder.next(&mut input).unwrap() {
                    match event {
                        BlobEvent::Begin { hash, bytes } => {
                            prop_assert_eq!(hash, Sha256Hash::of(&all[heard.len()]));
                            prop_assert_eq!(bytes, all[heard.len()].len() as u64);
                            heard.push(Vec::new());
                        }
                        BlobEvent::Bytes(bytes) => heard.last_mut().unwrap().extend(bytes),
                        BlobEvent::End => ended += 1,
                    }
                }
            }
            prop_assert_eq!(ended, all.len());
            prop_assert_eq!(heard, all);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn what_no_sender_says_is_refused() {
        let next = |stream: &[u8]| FetchDecoder::new(2).next(&mut &*stream).map(|_| ());
        assert_eq!(next(&[0, 0, 0, 0, 7]), Err(StreamError::Tag(7)));
        assert_eq!(next(&[0, 0, 0, 2, 1]), Err(StreamError::Index { index: 2, files: 2 }));
        assert_eq!(next(&[0, 0, 0, 1, 2, 1, 0, 1, 0xff]), Err(StreamError::NotText));
        let head = blob_head(&Sha256Hash([0; 32]), u64::MAX);
        let refused = BlobDecoder::default().next(&mut &head[..]).map(|_| ());
        assert_eq!(refused, Err(StreamError::TooLarge(u64::MAX)));
    }

    #[test]
    fn a_blob_that_is_cut_short_is_never_taken_for_a_whole_one() {
        let mut stream = blob_head(&Sha256Hash::of(b"abc"), 3).to_vec();
        stream.extend(b"ab");
        for cut in 1..=stream.len() {
            let mut decoder = BlobDecoder::default();
            let mut input = &stream[..cut];
            while decoder.next(&mut input).unwrap().is_some() {}
            assert_eq!(decoder.finish(), Err(StreamError::BrokeOff), "after {cut} bytes");
        }
    }

    #[test]
    fn the_words_of_a_failure_are_cut_between_characters() {
        let stream = file_failure(0, true, &"ä".repeat(FAILURE_BYTES_MAX));
        let event = FetchDecoder::new(1).next(&mut &stream[..]).unwrap();
        let Some(FetchEvent::Failed { words, .. }) = event else { panic!("{event:?}") };
        assert_eq!(words.len(), FAILURE_BYTES_MAX);
    }
}

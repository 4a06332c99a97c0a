//! The two streams of files: the same bytes say the same however they are cut into reads, and
//! nothing that is said is longer than what came.

#![no_main]

use dormouse_bridge::files::stream::{
    BlobDecoder, BlobEvent, FetchDecoder, FetchEvent, StreamError,
};
use libfuzzer_sys::fuzz_target;

const FILES: u32 = 3;

/// What was said, with pieces of the same file put together, and how it ended.
type Heard = (Vec<(String, Vec<u8>)>, Result<(), StreamError>);

fn say(heard: &mut Vec<(String, Vec<u8>)>, what: String, bytes: &[u8]) {
    match heard.last_mut() {
        Some((last, before)) if *last == what && !bytes.is_empty() => before.extend(bytes),
        _ => heard.push((what, bytes.to_vec())),
    }
}

fn fetched<'a>(reads: impl Iterator<Item = &'a [u8]>) -> Heard {
    let (mut decoder, mut heard) = (FetchDecoder::new(FILES), Vec::new());
    for mut read in reads {
        loop {
            match decoder.next(&mut read) {
                Ok(None) => break,
                Ok(Some(FetchEvent::Bytes { index, bytes })) => {
                    say(&mut heard, format!("bytes of {index}"), bytes);
                }
                Ok(Some(FetchEvent::End { index })) => say(&mut heard, format!("end {index}"), b""),
                Ok(Some(FetchEvent::Failed { index, is_retryable, words })) => {
                    let what = format!("failed {index} {is_retryable}");
                    say(&mut heard, what, words.as_bytes());
                }
                Err(error) => return (heard, Err(error)),
            }
        }
        assert!(read.is_empty(), "it asks for more only when it has read all");
    }
    (heard, decoder.finish())
}

fn stored<'a>(reads: impl Iterator<Item = &'a [u8]>) -> Heard {
    let (mut decoder, mut heard) = (BlobDecoder::default(), Vec::new());
    for mut read in reads {
        loop {
            match decoder.next(&mut read) {
                Ok(None) => break,
                Ok(Some(BlobEvent::Bytes(bytes))) => say(&mut heard, "bytes".to_owned(), bytes),
                Ok(Some(event)) => say(&mut heard, format!("{event:?}"), b""),
                Err(error) => return (heard, Err(error)),
            }
        }
        assert!(read.is_empty(), "it asks for more only when it has read all");
    }
    (heard, decoder.finish())
}

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let size = usize::from(*size) + 1;
    assert_eq!(fetched([bytes].into_iter()), fetched(bytes.chunks(size)));
    assert_eq!(stored([bytes].into_iter()), stored(bytes.chunks(size)));
});

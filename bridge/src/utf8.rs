//! Bytes to text as they come, without tearing a character that two reads share.
//!
//! Owner: whoever streams an agent's output as text. Invariant: the pieces together are what
//! `String::from_utf8_lossy` makes of all the bytes. Absent: IO.

/// The longest start of a character that is not whole yet.
const UNFINISHED_BYTES_MAX: usize = 3;

#[derive(Debug, Default)]
pub(crate) struct Utf8Stream {
    /// The first bytes of a character whose rest has not come yet.
    unfinished: Vec<u8>,
}

impl Utf8Stream {
    /// The text that `bytes` completes; bytes that are no text become U+FFFD.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let joined: Vec<u8>;
        let mut rest = if self.unfinished.is_empty() {
            bytes
        } else {
            joined = [self.unfinished.as_slice(), bytes].concat();
            self.unfinished.clear();
            &joined
        };
        let mut text = String::with_capacity(rest.len());
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(invalid_bytes) = error.error_len() else {
                        debug_assert!(after.len() <= UNFINISHED_BYTES_MAX);
                        self.unfinished.extend_from_slice(after);
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[invalid_bytes..];
                }
            }
        }
    }

    /// What is left when no more bytes come.
    pub(crate) fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.unfinished).into_owned();
        self.unfinished.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_in_two_reads_comes_out_whole() {
        let mut stream = Utf8Stream::default();
        let bytes = "a🦦b".as_bytes();
        assert_eq!(stream.push(&bytes[..3]), "a");
        assert_eq!(stream.push(&bytes[3..]), "🦦b");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn a_character_cut_off_by_the_end_is_replaced() {
        let mut stream = Utf8Stream::default();
        assert_eq!(stream.push(&"🦦".as_bytes()[..2]), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_lossy_text_of_the_whole(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..6),
                    "\\PC{0,3}".prop_map(String::into_bytes),
                ],
                0..8,
            ),
        ) {
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            for piece in &pieces {
                text.push_str(&stream.push(piece));
            }
            text.push_str(&stream.finish());
            let whole = pieces.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole).into_owned());
        }
    }
}

//! The text of one turn as it grows, and what becomes of more than a reply holds.
//!
//! ```text
//!  │◀────────── head ──────────▶│◀── held ──▶│        all of it is the reply
//!  │◀────────── head ──────────▶│ marker │◀ tail ▶│   the reply; the file has all of it
//! ```
//!
//! Owner: `turn` has one, for the turn that runs. Invariants: the head is only added to, and every
//! answer made here begins with it, so that it may be streamed; an answer has at most
//! [`REPLY_BYTES_MAX`]; of what is left out of it nothing but the tail is in memory; a file that
//! cannot be written changes the marker's words and nothing else.
//! Absent: what was sent of it (`turn`), and what an agent means by it (`adapter`).

use std::path::Path;

use dormouse_core::cause::Cause;
use dormouse_core::event::TurnOutcome;
use dormouse_core::id::TurnId;
use dormouse_core::limits::REPLY_BYTES_MAX;

use crate::output_file::{OutputFile, Place};
use crate::utf8::Utf8Stream;

/// What is printed is written for a file as often as for a reader, and each reply goes through the
/// store and to whoever waits: more than anybody reads, and little for both.
const PRINTED_HEAD_BYTES_MAX: usize = 1 << 20;
/// What an agent says that it frames by itself is meant as its reply.
const FRAMED_HEAD_BYTES_MAX: usize = REPLY_BYTES_MAX - HELD_BYTES_MAX;
/// Kept back after the head until it is known whether more comes.
const HELD_BYTES_MAX: usize = 8 << 10;
/// A program says at its end how it went.
const TAIL_BYTES_MAX: usize = 4 << 10;
/// The file's name, its sizes, and what the system said.
const MARKER_BYTES_MAX: usize = 1 << 10;

const _: () = assert!(TAIL_BYTES_MAX + MARKER_BYTES_MAX <= HELD_BYTES_MAX);
const _: () = assert!(PRINTED_HEAD_BYTES_MAX + HELD_BYTES_MAX <= REPLY_BYTES_MAX);

#[derive(Debug)]
pub(crate) struct Reply {
    head: String,
    head_bytes_max: usize,
    /// What comes after the head: all of it, or after a cut the last of it.
    held: String,
    is_cut: bool,
    decoder: Utf8Stream,
    /// The bytes that a program printed, until they are in the file.
    printed: Vec<u8>,
    excess: Excess,
}

/// What becomes of more than a reply holds.
#[derive(Debug)]
enum Excess {
    Refused,
    WouldBeAt(Place),
    IsIn(OutputFile),
}

/// The text has grown beyond what a reply may have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReplyTooLarge;

impl ReplyTooLarge {
    pub(crate) fn outcome(&self) -> TurnOutcome {
        TurnOutcome::Failed {
            cause: Cause::ReplyTooLarge,
            message: format!("the reply is longer than {REPLY_BYTES_MAX} bytes"),
            retryable: false,
            exit_code: None,
        }
    }
}

impl Reply {
    /// Of what a program prints.
    pub(crate) fn printed(workspace: &Path, turn: TurnId) -> Self {
        Self::new(PRINTED_HEAD_BYTES_MAX, Excess::WouldBeAt(Place::of(workspace, turn)))
    }

    /// Of texts that an agent frames.
    pub(crate) fn framed(workspace: &Path, turn: TurnId) -> Self {
        Self::new(FRAMED_HEAD_BYTES_MAX, Excess::WouldBeAt(Place::of(workspace, turn)))
    }

    /// Of a service: what is too long is refused, and with it whoever goes on and on.
    pub(crate) fn refusing() -> Self {
        Self::new(FRAMED_HEAD_BYTES_MAX, Excess::Refused)
    }

    fn new(head_bytes_max: usize, excess: Excess) -> Self {
        Self {
            head: String::new(),
            head_bytes_max,
            held: String::new(),
            is_cut: false,
            decoder: Utf8Stream::default(),
            printed: Vec::new(),
            excess,
        }
    }

    /// What every answer begins with.
    pub(crate) fn head(&self) -> &str {
        &self.head
    }

    /// Where there is more than the reply has, once that is so.
    pub(crate) fn words_of_the_whole(&self) -> Option<String> {
        match &self.excess {
            Excess::IsIn(file) => Some(file.words()),
            Excess::WouldBeAt(_) | Excess::Refused => None,
        }
    }

    pub(crate) fn take_bytes(&mut self, bytes: &[u8]) {
        match &mut self.excess {
            Excess::IsIn(file) => file.write(bytes),
            Excess::WouldBeAt(_) | Excess::Refused => self.printed.extend_from_slice(bytes),
        }
        let text = self.decoder.push(bytes);
        self.take_printed_text(&text);
    }

    fn take_printed_text(&mut self, text: &str) {
        let is_beyond = !self.fits(text);
        self.add(text);
        if is_beyond && let Excess::WouldBeAt(place) = &self.excess {
            let mut file = OutputFile::create(place);
            file.write(&std::mem::take(&mut self.printed));
            self.excess = Excess::IsIn(file);
        }
    }

    pub(crate) fn take_text(&mut self, text: &str) -> Result<(), ReplyTooLarge> {
        if !self.fits(text) {
            if let Excess::WouldBeAt(place) = &self.excess {
                let mut file = OutputFile::create(place);
                file.write(self.head.as_bytes());
                file.write(self.held.as_bytes());
                self.excess = Excess::IsIn(file);
            }
            let Excess::IsIn(file) = &mut self.excess else { return Err(ReplyTooLarge) };
            file.write(text.as_bytes());
        }
        self.add(text);
        Ok(())
    }

    fn fits(&self, text: &str) -> bool {
        let bytes = self.head.len() + self.held.len() + text.len();
        !self.is_cut && bytes <= self.head_bytes_max + HELD_BYTES_MAX
    }

    fn add(&mut self, text: &str) {
        self.is_cut |= !self.fits(text);
        // Once something was kept back, nothing that comes after it goes before it.
        let room = self.head_bytes_max.saturating_sub(self.head.len());
        let is_open = self.held.is_empty() && self.head.len() < self.head_bytes_max;
        let room = if is_open { text.floor_char_boundary(room) } else { 0 };
        let (of_head, rest) = text.split_at(room);
        self.head.push_str(of_head);
        if self.is_cut {
            let surplus = rest.len().saturating_sub(TAIL_BYTES_MAX);
            if surplus > 0 {
                // All that was held is beyond the tail now.
                self.held.clear();
            }
            self.held.push_str(&rest[rest.ceil_char_boundary(surplus)..]);
            let surplus = self.held.len().saturating_sub(TAIL_BYTES_MAX);
            self.held.drain(..self.held.ceil_char_boundary(surplus));
        } else {
            self.held.push_str(rest);
        }
    }

    /// The text as the whole answer. Nothing is left here.
    pub(crate) fn finish(&mut self) -> String {
        let last_text = self.decoder.finish();
        self.take_printed_text(&last_text);
        let mut answer = std::mem::take(&mut self.head);
        if let Some(words) = self.words_of_the_whole() {
            let line_end = if answer.ends_with('\n') { "" } else { "\n" };
            let tail_bytes = self.held.len();
            let marker = format!(
                "{line_end}[output truncated: {words}; its last {tail_bytes} bytes follow]\n"
            );
            debug_assert!(marker.len() <= MARKER_BYTES_MAX);
            answer.push_str(&marker);
        }
        answer.push_str(&std::mem::take(&mut self.held));
        answer
    }

    /// The answer that this text is, whatever came before it.
    pub(crate) fn finish_with(&mut self, text: String) -> Result<String, ReplyTooLarge> {
        if text.len() <= REPLY_BYTES_MAX {
            return Ok(text);
        }
        let mut excess = std::mem::replace(&mut self.excess, Excess::Refused);
        if let Excess::IsIn(file) = &mut excess {
            file.empty();
        }
        let mut other = Self::new(self.head_bytes_max, excess);
        other.take_text(&text)?;
        Ok(other.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use dormouse_core::id::MessageId;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Scratch;

    const NAME: &str = "output-msg_00000000000000000000000000000001.1.txt";
    const PRINTED_BYTES_MAX: usize = PRINTED_HEAD_BYTES_MAX + HELD_BYTES_MAX;

    fn turn() -> TurnId {
        TurnId { message: MessageId(1), attempt: 1 }
    }

    fn marker(bytes: usize, tail_bytes: usize) -> String {
        format!(
            "\n[output truncated: {bytes} bytes in all, the whole is in {NAME}; \
             its last {tail_bytes} bytes follow]\n"
        )
    }

    #[test]
    fn what_fits_is_the_reply_and_no_file_is_made() {
        let scratch = Scratch::new();
        let mut reply = Reply::printed(scratch.path(), turn());
        let all = "x".repeat(PRINTED_BYTES_MAX);
        for piece in all.as_bytes().chunks(10_000) {
            reply.take_bytes(piece);
        }
        assert_eq!(reply.head().len(), PRINTED_HEAD_BYTES_MAX);
        assert!(reply.finish() == all);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_byte_more_is_cut_and_the_file_has_all_of_it() {
        let scratch = Scratch::new();
        let mut reply = Reply::printed(scratch.path(), turn());
        let all = "x".repeat(PRINTED_BYTES_MAX);
        reply.take_bytes(all.as_bytes());
        assert_eq!(reply.words_of_the_whole(), None);
        reply.take_bytes(b"!");
        let words = reply.words_of_the_whole().unwrap();
        assert_eq!(words, format!("1056769 bytes in all, the whole is in {NAME}"));
        let marker = marker(PRINTED_BYTES_MAX + 1, TAIL_BYTES_MAX);
        let (head, tail) = (&all[..PRINTED_HEAD_BYTES_MAX], &all[..TAIL_BYTES_MAX - 1]);
        assert!(reply.finish() == format!("{head}{marker}{tail}!"));
        assert!(fs::read_to_string(scratch.path().join(NAME)).unwrap() == format!("{all}!"));
    }

    #[test]
    fn the_tail_is_the_very_last_however_it_came() {
        let scratch = Scratch::new();
        let mut reply = Reply::printed(scratch.path(), turn());
        reply.take_bytes("x".repeat(PRINTED_HEAD_BYTES_MAX).as_bytes());
        reply.take_bytes(b"held");
        // More than a tail, and not to be cut where a tail would begin.
        let last = "é".repeat(HELD_BYTES_MAX) + "!";
        reply.take_bytes(last.as_bytes());
        let answer = reply.finish();
        let (_, tail) = answer.split_once(" bytes follow]\n").unwrap();
        assert!(last.ends_with(tail) && tail.len() == TAIL_BYTES_MAX - 1, "{}", tail.len());
    }

    #[test]
    fn the_last_incomplete_character_can_be_what_is_too_much() {
        let scratch = Scratch::new();
        let mut reply = Reply::printed(scratch.path(), turn());
        let mut all = vec![b'x'; PRINTED_BYTES_MAX - 1];
        all.push(0xf0);
        reply.take_bytes(&all);
        let answer = reply.finish();
        assert!(answer.ends_with("x\u{fffd}"));
        assert!(answer.contains(&marker(PRINTED_BYTES_MAX, TAIL_BYTES_MAX)));
        assert!(fs::read(scratch.path().join(NAME)).unwrap() == all);
    }

    #[test]
    fn framed_texts_are_whole_up_to_the_bound_of_all_replies() {
        let scratch = Scratch::new();
        let mut reply = Reply::framed(scratch.path(), turn());
        let half = "x".repeat(REPLY_BYTES_MAX / 2);
        for _ in 0..2 {
            assert_eq!(reply.take_text(&half), Ok(()));
        }
        assert_eq!(reply.take_text("12345"), Ok(()));
        let answer = reply.finish();
        assert!(answer.len() <= REPLY_BYTES_MAX && answer.ends_with("x12345"));
        assert!(answer.contains(&marker(REPLY_BYTES_MAX + 5, TAIL_BYTES_MAX)));
        let file = fs::read_to_string(scratch.path().join(NAME)).unwrap();
        assert!(file == format!("{half}{half}12345"));
    }

    #[test]
    fn a_last_text_that_is_too_long_is_cut_and_takes_the_place_of_the_deltas_in_the_file() {
        let scratch = Scratch::new();
        let mut reply = Reply::framed(scratch.path(), turn());
        let text = "y".repeat(REPLY_BYTES_MAX + 1);
        reply.take_text(&format!("draft{text}")).unwrap();
        let answer = reply.finish_with(text.clone()).unwrap();
        assert!(answer.starts_with("yyy") && answer.len() <= REPLY_BYTES_MAX);
        assert!(fs::read_to_string(scratch.path().join(NAME)).unwrap() == text);
        let short = Reply::framed(scratch.path(), turn()).finish_with("short".into());
        assert_eq!(short, Ok("short".into()));
    }

    #[test]
    fn a_service_that_goes_on_and_on_is_refused() {
        let mut reply = Reply::refusing();
        let half = "x".repeat(REPLY_BYTES_MAX / 2);
        assert_eq!(reply.take_text(&half), Ok(()));
        assert_eq!(reply.take_text(&half), Ok(()));
        assert_eq!(reply.take_text("x"), Err(ReplyTooLarge));
        assert_eq!(reply.words_of_the_whole(), None);
    }

    #[test]
    fn without_a_file_the_reply_is_there_all_the_same() {
        let scratch = Scratch::new();
        let mut reply = Reply::printed(&scratch.path().join("gone"), turn());
        reply.take_bytes(&vec![b'x'; 2 * PRINTED_BYTES_MAX]);
        let answer = reply.finish();
        assert!(answer.contains("could not keep: No such file or directory"));
        assert!(answer.starts_with("xxx") && answer.ends_with("xxx"));
        assert!(reply.printed.is_empty(), "what no file takes is not kept in memory");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_answer_begins_with_every_head_there_was_and_the_file_has_all_bytes(
            pieces in prop::collection::vec((0usize..12_000, 0u8..4), 0..12),
        ) {
            let scratch = Scratch::new();
            let mut reply = Reply::printed(scratch.path(), turn());
            reply.head_bytes_max = 20_000;
            let (mut all, mut heads) = (Vec::new(), Vec::new());
            for (size, kind) in pieces {
                let unit: &[u8] = [b"x\n".as_slice(), "é".as_bytes(), "🦦".as_bytes(), b"\xff\xf0"]
                    [usize::from(kind)];
                let piece = unit.iter().copied().cycle().take(size).collect::<Vec<u8>>();
                reply.take_bytes(&piece);
                prop_assert!(reply.printed.len() <= 20_000 + HELD_BYTES_MAX);
                prop_assert!(reply.held.len() <= HELD_BYTES_MAX);
                all.extend_from_slice(&piece);
                heads.push(reply.head().to_owned());
            }
            let answer = reply.finish();
            prop_assert!(heads.iter().all(|head| answer.starts_with(head.as_str())));
            let whole = String::from_utf8_lossy(&all);
            match fs::read(scratch.path().join(NAME)) {
                Ok(file) => {
                    prop_assert!(file == all && whole.len() > 20_000 + HELD_BYTES_MAX);
                    let (head, tail) = answer.split_once("[output truncated: ").unwrap();
                    let head = head.strip_suffix('\n').unwrap();
                    let tail = tail.split_once(" bytes follow]\n").unwrap().1;
                    prop_assert!(whole.starts_with(head) && whole.ends_with(tail));
                    prop_assert!(head.len() > 20_000 - 4 && tail.len() > TAIL_BYTES_MAX - 4);
                }
                Err(_none) => prop_assert_eq!(answer, whole),
            }
        }
    }
}

//! Turns of one instance: the running one's text so far, finished ones until they are acknowledged,
//! and what of both the daemon has yet to be told.
//!
//! ```text
//!  (new) ── begin ─▶ running ── end ─▶ kept ── acknowledge ─▶ past
//!                       └── abandon ──────────────────────────▶ past
//! ```
//!
//! Owner: `instance`. Invariants: a turn id begins once; the text so far is the only buffer, so a
//! daemon that is slow or away costs no memory beyond it; deltas of one turn have no gap; `ended`
//! comes after the deltas. Absent: what the text says, how much of it there may be (`reply`), the
//! network, files.

use std::collections::VecDeque;

use dormouse_core::event::TurnOutcome;
use dormouse_core::id::TurnId;
use dormouse_core::limits::DELTA_BYTES_MAX;

use crate::files::wire::FilesReport;
use crate::frames::FromBridge;
use crate::reply::{Reply, ReplyTooLarge};

/// Finished turns that may wait for their acknowledgement; a daemon sends the next turn only after
/// it has the last one's result on disk, so more than one means that something is wrong with it.
const KEPT_MAX: usize = 16;
/// Ids of turns that are over, so that a late repeat is not run again.
const PAST_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub(crate) struct Turns {
    running: Option<Running>,
    kept: VecDeque<Kept>,
    past: VecDeque<TurnId>,
}

#[derive(Debug)]
struct Running {
    turn: TurnId,
    reply: Reply,
    /// How much of the reply's head the daemon was sent over this connection.
    sent_bytes: usize,
}

#[derive(Debug)]
struct Kept {
    turn: TurnId,
    outcome: TurnOutcome,
    /// How much of the answer is sent as deltas already; all of it when there is nothing to stream.
    sent_bytes: usize,
    is_ended_sent: bool,
    /// Its files are being kept: its end is told after that.
    waits_for_files: bool,
    files: Option<FilesReport>,
}

/// What a `turn` frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    New,
    /// Runs or is kept: what is known of it is sent again.
    Repeat,
    /// Was acknowledged or given up; it is not run again.
    Past,
    /// Another turn runs, or too many results wait: the daemon must not do this.
    Busy,
}

impl Turns {
    pub(crate) fn running(&self) -> Option<TurnId> {
        self.running.as_ref().map(|running| running.turn)
    }

    pub(crate) fn held(&self) -> Vec<TurnId> {
        self.kept.iter().map(|kept| kept.turn).chain(self.running()).collect()
    }

    pub(crate) fn offer(&mut self, turn: TurnId) -> Offer {
        if let Some(running) = self.running.as_mut().filter(|running| running.turn == turn) {
            running.sent_bytes = 0;
            return Offer::Repeat;
        }
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.turn == turn) {
            kept.tell_the_end_only();
            return Offer::Repeat;
        }
        if self.past.contains(&turn) {
            return Offer::Past;
        }
        match self.running.is_some() || self.kept.len() >= KEPT_MAX {
            true => Offer::Busy,
            false => Offer::New,
        }
    }

    /// Only after `offer` said that it is new.
    pub(crate) fn begin(&mut self, turn: TurnId, reply: Reply) {
        assert!(self.running.is_none(), "one turn runs at a time");
        self.running = Some(Running { turn, reply, sent_bytes: 0 });
    }

    /// Adds to the running turn's text.
    pub(crate) fn append(&mut self, text: &str) -> Result<(), ReplyTooLarge> {
        let Some(running) = &mut self.running else { return Ok(()) };
        running.reply.take_text(text)
    }

    /// Adds what the running turn's program printed.
    pub(crate) fn append_printed(&mut self, bytes: &[u8]) {
        if let Some(running) = &mut self.running {
            running.reply.take_bytes(bytes);
        }
    }

    /// Where all is that the running turn said, if that is more than a reply holds.
    pub(crate) fn words_of_the_whole(&self) -> Option<String> {
        self.running.as_ref().and_then(|running| running.reply.words_of_the_whole())
    }

    /// The running turn's text as it is, taken as the whole answer.
    pub(crate) fn answer_with_text(&mut self, exit_code: Option<i32>) -> TurnOutcome {
        let text = self.running.as_mut().map(|running| running.reply.finish());
        TurnOutcome::Answered { text: text.unwrap_or_default(), exit_code }
    }

    /// This text as the running turn's whole answer, whatever it said before.
    pub(crate) fn answer_with(&mut self, text: String, exit_code: Option<i32>) -> TurnOutcome {
        let text = match &mut self.running {
            Some(running) => running.reply.finish_with(text),
            None => Ok(text),
        };
        match text {
            Ok(text) => TurnOutcome::Answered { text, exit_code },
            Err(too_large) => too_large.outcome(),
        }
    }

    /// The running turn has ended. What it streamed so far is streamed to its end if it is the
    /// beginning of the answer, and left alone if it is not.
    pub(crate) fn end(&mut self, outcome: TurnOutcome) -> Option<(TurnId, &TurnOutcome)> {
        let Running { turn, reply, sent_bytes } = self.running.take()?;
        let answer = answer_text(&outcome);
        // An emptied head is one that `answer_with_text` moved into the outcome.
        let is_streamed = reply.head().is_empty() || answer.starts_with(reply.head());
        let sent_bytes = if is_streamed { sent_bytes } else { answer.len() };
        self.kept.push_back(Kept {
            turn,
            outcome,
            sent_bytes,
            is_ended_sent: false,
            waits_for_files: false,
            files: None,
        });
        self.kept.back().map(|kept| (kept.turn, &kept.outcome))
    }

    /// The end of that turn is not told before its files are settled.
    pub(crate) fn wait_for_files(&mut self, turn: TurnId) {
        self.kept.iter_mut().filter(|kept| kept.turn == turn).for_each(|kept| {
            kept.waits_for_files = true;
        });
    }

    /// Some turn's end is not told for that reason.
    pub(crate) fn wait_for_files_now(&self) -> bool {
        self.kept.iter().any(|kept| kept.waits_for_files)
    }

    /// What became of the files of all turns that wait for that.
    pub(crate) fn settle_files(&mut self, files: &FilesReport) {
        for kept in self.kept.iter_mut().filter(|kept| kept.waits_for_files) {
            kept.waits_for_files = false;
            kept.files = Some(files.clone());
        }
    }

    /// The running turn has no outcome: whoever ran it is gone.
    pub(crate) fn abandon_running(&mut self) -> Option<TurnId> {
        let turn = self.running.take()?.turn;
        self.remember_as_past(turn);
        Some(turn)
    }

    /// The daemon has the result on disk. `false` if there was none.
    pub(crate) fn acknowledge(&mut self, turn: TurnId) -> bool {
        let Some(at) = self.kept.iter().position(|kept| kept.turn == turn) else { return false };
        self.kept.remove(at);
        self.remember_as_past(turn);
        true
    }

    fn remember_as_past(&mut self, turn: TurnId) {
        if self.past.len() == PAST_MAX {
            self.past.pop_front();
        }
        self.past.push_back(turn);
    }

    /// A new connection: all that is known is to be told anew.
    pub(crate) fn retell(&mut self) {
        if let Some(running) = &mut self.running {
            running.sent_bytes = 0;
        }
        self.kept.iter_mut().for_each(Kept::tell_the_end_only);
    }

    pub(crate) fn has_news(&self) -> bool {
        self.kept.iter().any(Kept::is_to_be_told)
            || self.running.as_ref().is_some_and(|it| it.sent_bytes < it.reply.head().len())
    }

    /// The next frame that the daemon has to be sent; it counts as sent.
    pub(crate) fn next_frame(&mut self) -> Option<FromBridge> {
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.is_to_be_told()) {
            let answer = answer_text(&kept.outcome);
            if let Some(delta) = next_delta(kept.turn, answer, &mut kept.sent_bytes) {
                return Some(delta);
            }
            kept.is_ended_sent = true;
            return Some(FromBridge::Ended {
                turn: kept.turn,
                outcome: kept.outcome.clone(),
                files: kept.files.clone(),
            });
        }
        let running = self.running.as_mut()?;
        next_delta(running.turn, running.reply.head(), &mut running.sent_bytes)
    }
}

impl Kept {
    fn is_to_be_told(&self) -> bool {
        !self.is_ended_sent && !self.waits_for_files
    }

    fn tell_the_end_only(&mut self) {
        self.sent_bytes = answer_text(&self.outcome).len();
        self.is_ended_sent = false;
    }
}

fn answer_text(outcome: &TurnOutcome) -> &str {
    match outcome {
        TurnOutcome::Answered { text, .. } => text,
        TurnOutcome::Failed { .. } => "",
    }
}

fn next_delta(turn: TurnId, text: &str, sent_bytes: &mut usize) -> Option<FromBridge> {
    let rest = text.get(*sent_bytes..).filter(|rest| !rest.is_empty())?;
    let piece = &rest[..rest.floor_char_boundary(DELTA_BYTES_MAX)];
    let offset = *sent_bytes as u64;
    *sent_bytes += piece.len();
    Some(FromBridge::Delta { turn, offset, text: piece.to_string() })
}

#[cfg(test)]
mod tests {
    use dormouse_core::id::MessageId;
    use proptest::prelude::*;

    use super::*;

    fn turn(number: u128) -> TurnId {
        TurnId { message: MessageId(number), attempt: 1 }
    }

    fn answer(text: &str) -> TurnOutcome {
        TurnOutcome::Answered { text: text.into(), exit_code: None }
    }

    /// Everything there is to send, in short.
    fn told(turns: &mut Turns) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(frame) = turns.next_frame() {
            told.push(match frame {
                FromBridge::Delta { offset, text, .. } => format!("{offset}+{text}"),
                FromBridge::Ended { outcome, .. } => format!("ended {}", answer_text(&outcome)),
                other => format!("{other:?}"),
            });
        }
        assert!(!turns.has_news());
        told
    }

    fn running(pieces: &[&str]) -> Turns {
        let mut turns = Turns::default();
        assert_eq!(turns.offer(turn(1)), Offer::New);
        turns.begin(turn(1), Reply::refusing());
        for piece in pieces {
            turns.append(piece).unwrap();
        }
        turns
    }

    #[test]
    fn text_that_waits_is_sent_as_one_delta() {
        let mut turns = running(&["a", "b", "c"]);
        assert_eq!(told(&mut turns), ["0+abc"]);
        turns.append("d").unwrap();
        assert_eq!(told(&mut turns), ["3+d"]);
    }

    #[test]
    fn an_answer_that_goes_on_from_the_deltas_sends_its_rest_and_then_the_end() {
        let mut turns = running(&["ab"]);
        assert_eq!(told(&mut turns), ["0+ab"]);
        turns.end(answer("abcd"));
        assert_eq!(told(&mut turns), ["2+cd", "ended abcd"]);
    }

    #[test]
    fn an_answer_without_deltas_is_streamed_too() {
        let mut turns = running(&[]);
        turns.end(answer("all"));
        assert_eq!(told(&mut turns), ["0+all", "ended all"]);
    }

    #[test]
    fn an_answer_unlike_the_deltas_replaces_them() {
        let mut turns = running(&["draft"]);
        assert_eq!(told(&mut turns), ["0+draft"]);
        turns.append(" more").unwrap();
        turns.end(answer("final"));
        assert_eq!(told(&mut turns), ["ended final"]);
    }

    #[test]
    fn the_text_so_far_as_answer_loses_nothing_that_was_not_sent_yet() {
        let mut turns = running(&["ab"]);
        assert_eq!(told(&mut turns), ["0+ab"]);
        turns.append("c").unwrap();
        let outcome = turns.answer_with_text(Some(0));
        turns.end(outcome);
        assert_eq!(told(&mut turns), ["2+c", "ended abc"]);
    }

    #[test]
    fn an_end_that_waits_for_its_files_is_told_with_them() {
        let mut turns = running(&["a"]);
        turns.end(answer("a"));
        turns.wait_for_files(turn(1));
        assert!(!turns.has_news() && turns.next_frame().is_none());
        assert_eq!(turns.offer(turn(1)), Offer::Repeat);
        assert!(!turns.has_news());
        let report = FilesReport { checkpoint: Some(3), ..FilesReport::default() };
        turns.settle_files(&report);
        let outcome = answer("a");
        let ended = FromBridge::Ended { turn: turn(1), outcome, files: Some(report) };
        assert_eq!(turns.next_frame(), Some(ended));
    }

    #[test]
    fn a_new_connection_hears_the_running_text_from_the_start_and_kept_results() {
        let mut turns = running(&["one"]);
        turns.end(answer("one"));
        assert_eq!(told(&mut turns).len(), 2);
        assert_eq!(turns.offer(turn(2)), Offer::New);
        turns.begin(turn(2), Reply::refusing());
        turns.append("tw").unwrap();
        assert_eq!(told(&mut turns), ["0+tw"]);
        turns.retell();
        assert_eq!(turns.held(), [turn(1), turn(2)]);
        assert_eq!(told(&mut turns), ["ended one", "0+tw"]);
    }

    #[test]
    fn a_turn_id_is_new_only_once() {
        let mut turns = running(&["x"]);
        assert_eq!(turns.offer(turn(2)), Offer::Busy);
        assert_eq!(told(&mut turns), ["0+x"]);
        assert_eq!(turns.offer(turn(1)), Offer::Repeat);
        assert_eq!(told(&mut turns), ["0+x"]);
        turns.end(answer("x"));
        assert_eq!(told(&mut turns), ["ended x"]);
        assert_eq!(turns.offer(turn(1)), Offer::Repeat);
        assert_eq!(told(&mut turns), ["ended x"]);
        assert!(turns.acknowledge(turn(1)));
        assert!(!turns.acknowledge(turn(1)));
        assert_eq!(turns.offer(turn(1)), Offer::Past);
        assert!(turns.held().is_empty());
    }

    #[test]
    fn an_abandoned_turn_has_no_end_and_is_past() {
        let mut turns = running(&["half"]);
        assert_eq!(turns.abandon_running(), Some(turn(1)));
        assert!(told(&mut turns).is_empty());
        assert_eq!(turns.offer(turn(1)), Offer::Past);
    }

    #[test]
    fn an_answer_that_was_cut_goes_on_from_what_was_streamed() {
        let scratch = crate::testing::Scratch::new();
        let mut turns = Turns::default();
        turns.begin(turn(1), Reply::printed(scratch.path(), turn(1)));
        let mut heard = String::new();
        for _ in 0..200 {
            turns.append_printed(&"0123456789abcde\n".repeat(1_000).into_bytes());
            while let Some(FromBridge::Delta { offset, text, .. }) = turns.next_frame() {
                assert_eq!(offset, heard.len() as u64);
                heard.push_str(&text);
            }
        }
        assert!(turns.words_of_the_whole().is_some());
        let outcome = turns.answer_with_text(Some(0));
        turns.end(outcome.clone());
        while let Some(FromBridge::Delta { offset, text, .. }) = turns.next_frame() {
            assert_eq!(offset, heard.len() as u64);
            heard.push_str(&text);
        }
        assert!(heard == answer_text(&outcome) && heard.contains("3200000 bytes in all"));
    }

    #[test]
    fn results_that_nobody_acknowledges_are_bounded() {
        let mut turns = Turns::default();
        for number in 0..KEPT_MAX as u128 {
            assert_eq!(turns.offer(turn(number)), Offer::New);
            turns.begin(turn(number), Reply::refusing());
            turns.end(answer("x"));
        }
        assert_eq!(turns.offer(turn(KEPT_MAX as u128)), Offer::Busy);
    }

    proptest! {
        #[test]
        fn deltas_join_without_gap_and_stay_within_their_bound(
            steps in prop::collection::vec((0usize..40_000, any::<bool>(), any::<bool>()), 1..12),
        ) {
            let mut turns = running(&[]);
            let mut whole = String::new();
            let mut heard = String::new();
            let hear = |turns: &mut Turns, heard: &mut String| {
                while let Some(frame) = turns.next_frame() {
                    let FromBridge::Delta { offset, text, .. } = frame else { break };
                    assert!(text.len() <= DELTA_BYTES_MAX);
                    assert_eq!(offset, heard.len() as u64);
                    heard.push_str(&text);
                }
            };
            for (size, is_heard, is_new_connection) in steps {
                let piece = "aé🦦".repeat(size / 7);
                turns.append(&piece).unwrap();
                whole.push_str(&piece);
                if is_new_connection {
                    turns.retell();
                    heard.clear();
                }
                if is_heard {
                    hear(&mut turns, &mut heard);
                }
            }
            turns.end(answer(&whole));
            hear(&mut turns, &mut heard);
            prop_assert_eq!(heard, whole);
        }
    }
}

//! What a fake agent is told to do, as plain data that stands in a config.
//!
//! Owner: the config of an agent with `driver = "fake"`. Invariants: every field has a default, and
//! the default agent is ready at once and echoes; texts are looked for in the message as they are.
//! Absent: time other than milliseconds.

use dormouse_core::diagnosis::facts::first_error_line;
use dormouse_core::evidence::{End, Evidence, OomVictim};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FakeScript {
    /// Starting fails with these words.
    pub refuse_start: Option<String>,
    /// From the start order until its bridge dials.
    pub start_takes_ms: u64,
    /// Its bridge never dials.
    pub never_attaches: bool,
    /// From the launch until it is ready.
    pub ready_after_ms: u64,
    pub never_ready: bool,

    pub reply: FakeReply,
    /// From the turn's arrival to the first piece of the reply, or to whatever else the turn comes
    /// to.
    pub turn_takes_ms: u64,
    /// Pieces that the reply is streamed in; 0 streams nothing, the reply then comes whole at the
    /// end.
    pub chunks: u32,
    /// Between two pieces.
    pub chunk_every_ms: u64,

    /// A message with this text in it: the agent ends as `exit` says.
    pub die_on: Option<String>,
    /// … no word comes of this turn any more.
    pub hang_turn_on: Option<String>,
    /// … the turn fails; `fail_is_retryable` is what the agent says of it.
    pub fail_on: Option<String>,
    pub fail_is_retryable: bool,
    /// … the connection breaks before the turn is worked on, and comes back.
    pub lose_line_on: Option<String>,
    /// … a hold of this length is taken when the turn arrives.
    pub hold_on: Option<String>,
    pub hold_for_ms: u64,

    /// From the launch until it ends by itself, as `exit` says.
    pub run_for_ms: Option<u64>,
    /// From the launch until the kernel kills it for its memory.
    pub oom_at_ms: Option<u64>,
    pub exit: FakeExit,
    /// From a stop to the end.
    pub stop_takes_ms: u64,
    /// The stop grace runs out, and it is killed.
    pub ignores_stop: bool,
    /// The log tail of its evidence.
    pub log: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FakeReply {
    /// The message's text.
    #[default]
    Echo,
    /// How many turns this instance has begun: 1, 2, …
    Count,
    Fixed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FakeExit {
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    /// Killed by the kernel for its memory.
    OutOfMemory,
    /// The bridge goes too, without a word.
    BridgeLost,
}

impl Default for FakeScript {
    fn default() -> Self {
        Self {
            refuse_start: None,
            start_takes_ms: 0,
            never_attaches: false,
            ready_after_ms: 0,
            never_ready: false,
            reply: FakeReply::Echo,
            turn_takes_ms: 0,
            chunks: 1,
            chunk_every_ms: 0,
            die_on: None,
            hang_turn_on: None,
            fail_on: None,
            fail_is_retryable: false,
            lose_line_on: None,
            hold_on: None,
            hold_for_ms: 60_000,
            run_for_ms: None,
            oom_at_ms: None,
            exit: FakeExit::Exited { code: 1 },
            stop_takes_ms: 0,
            ignores_stop: false,
            log: String::new(),
        }
    }
}

/// What comes of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Answer,
    Fail,
    Hang,
    Die,
}

impl FakeScript {
    pub(super) fn fate_of(&self, text: &str) -> Fate {
        if contains(text, self.die_on.as_deref()) {
            Fate::Die
        } else if contains(text, self.hang_turn_on.as_deref()) {
            Fate::Hang
        } else if contains(text, self.fail_on.as_deref()) {
            Fate::Fail
        } else {
            Fate::Answer
        }
    }

    pub(super) fn loses_line_on(&self, text: &str) -> bool {
        contains(text, self.lose_line_on.as_deref())
    }

    pub(super) fn holds_on(&self, text: &str) -> bool {
        contains(text, self.hold_on.as_deref())
    }

    pub(super) fn reply_to(&self, text: &str, turns_begun: u64) -> String {
        match &self.reply {
            FakeReply::Echo => text.to_owned(),
            FakeReply::Count => turns_begun.to_string(),
            FakeReply::Fixed(reply) => reply.clone(),
        }
    }

    /// The reply in `chunks` pieces of about equal length; never cut inside a character.
    pub(super) fn pieces_of(&self, reply: &str) -> Vec<String> {
        let count = usize::try_from(self.chunks).unwrap_or(usize::MAX).min(reply.len());
        let cut = |piece: usize| reply.floor_char_boundary(reply.len() * piece / count);
        let pieces = (0..count).map(|piece| reply[cut(piece)..cut(piece + 1)].to_owned());
        pieces.filter(|piece| !piece.is_empty()).collect()
    }

    /// What the bridge would have seen; `None` if it is not there to see anything.
    pub(super) fn evidence_of_exit(
        &self,
        exit: FakeExit,
        memory_limit: Option<u64>,
    ) -> Option<Evidence> {
        let end = match exit {
            FakeExit::Exited { code } => End::Exited { code },
            FakeExit::Signaled { signal } => End::Signaled { signal },
            FakeExit::OutOfMemory => End::Signaled { signal: 9 },
            FakeExit::BridgeLost => return None,
        };
        let is_oom = exit == FakeExit::OutOfMemory;
        Some(Evidence {
            oom_kills: Some(u64::from(is_oom)),
            oom_victim: is_oom.then_some(OomVictim::Main),
            memory_peak_bytes: memory_limit.filter(|_| is_oom),
            memory_limit_bytes: memory_limit,
            first_error: first_error_line(&self.log).map(str::to_owned),
            log_tail: self.log.clone(),
            ..Evidence::bare(end)
        })
    }
}

fn contains(text: &str, wanted: Option<&str>) -> bool {
    wanted.is_some_and(|wanted| text.contains(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> Result<FakeScript, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn every_field_has_a_default_and_an_unknown_one_is_named() {
        assert_eq!(parsed("{}").unwrap(), FakeScript::default());
        let error = parsed(r#"{"dye_on": "x"}"#).unwrap_err().to_string();
        assert!(error.contains("dye_on"), "{error}");
    }

    #[test]
    fn replies_and_exits_have_short_spellings() {
        let script =
            parsed(r#"{"reply": {"fixed": "hi"}, "exit": {"kind": "signaled", "signal": 6}}"#);
        let script = script.unwrap();
        assert_eq!(script.reply, FakeReply::Fixed("hi".into()));
        assert_eq!(script.exit, FakeExit::Signaled { signal: 6 });
        assert_eq!(parsed(r#"{"reply": "count"}"#).unwrap().reply, FakeReply::Count);
        let oom = parsed(r#"{"exit": {"kind": "out_of_memory"}}"#).unwrap().exit;
        assert_eq!(oom, FakeExit::OutOfMemory);
    }

    #[test]
    fn pieces_make_up_the_reply_and_cut_no_character() {
        for reply in ["", "a", "hello", "äöü€𝄞", &"x".repeat(1000)] {
            for chunks in [0, 1, 2, 3, 7, 2000] {
                let script = FakeScript { chunks, ..FakeScript::default() };
                let pieces = script.pieces_of(reply);
                assert!(pieces.len() <= chunks as usize);
                let whole = if chunks == 0 { "" } else { reply };
                assert_eq!(pieces.concat(), whole);
            }
        }
        let script = FakeScript { chunks: 5, ..FakeScript::default() };
        assert_eq!(script.pieces_of("hello").len(), 5);
    }
}

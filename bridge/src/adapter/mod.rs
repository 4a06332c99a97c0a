//! How to talk to one kind of agent: one file per kind.
//!
//! | adapter | process | a turn |
//! |---|---|---|
//! | `exec` | one per turn | text on standard input, reply on standard output |
//! | `jsonl` | one for the instance | a line in, lines out |
//! | `openai` | one for the instance | `POST …/chat/completions` on loopback |
//!
//! Owner: `instance` holds the one adapter of its launch. Invariant: adapters judge what an agent
//! says and never act on it themselves. Absent: processes, turns' texts, the daemon.

pub(crate) mod exec;
pub(crate) mod http;
pub(crate) mod jsonl;
pub(crate) mod openai;

use dormouse_core::cause::Cause;
use dormouse_core::event::TurnOutcome;

/// Words of an agent in a failure's message are cut at this.
pub(crate) const MESSAGE_BYTES_MAX: usize = 2 << 10;

#[derive(Debug)]
pub(crate) enum Agent {
    Exec(exec::Exec),
    Jsonl(jsonl::Jsonl),
    Openai(openai::Openai),
}

/// A failed turn without an exit code.
pub(crate) fn failed(cause: Cause, message: impl Into<String>, retryable: bool) -> TurnOutcome {
    TurnOutcome::Failed { cause, message: message.into(), retryable, exit_code: None }
}

/// The beginning of a text, whole characters only.
pub(crate) fn excerpt(text: &str, bytes_max: usize) -> String {
    match text.len() > bytes_max {
        true => format!("{} …", &text[..text.floor_char_boundary(bytes_max)]),
        false => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_cut_between_characters() {
        assert_eq!(excerpt("abc", 3), "abc");
        assert_eq!(excerpt("aé", 2), "a …");
    }
}

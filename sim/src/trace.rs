//! What happened in one run: always as a hash, and on request as lines for people.
//!
//! Owner: `World` notes every action, every event with its effects, and every fault. Invariant: two
//! runs of one seed have the same hash, or something in core or sim depends on more than the seed.
//! A line carries the core's `Decision` rows in the form in which the journal of a real daemon
//! keeps them. Absent: files (`replay` reads and writes them).

use std::fmt::{self, Write as _};

use dormouse_core::command::{Effects, Write};
use dormouse_core::id::SessionId;
use dormouse_core::journal::Decision;

#[derive(Debug)]
pub(crate) struct Trace {
    hash: Fnv,
    lines: Option<Vec<Line>>,
}

/// One step as it is kept for people.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) at_ms: u64,
    pub(crate) session: Option<SessionId>,
    pub(crate) what: String,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) effects: Vec<String>,
}

impl Trace {
    pub(crate) fn hashed() -> Self {
        Self { hash: Fnv::default(), lines: None }
    }

    pub(crate) fn recorded() -> Self {
        Self { hash: Fnv::default(), lines: Some(Vec::new()) }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.0
    }

    pub(crate) fn lines(&self) -> &[Line] {
        self.lines.as_deref().unwrap_or_default()
    }

    /// Something in the world.
    pub(crate) fn note(&mut self, at_ms: u64, session: Option<&SessionId>, what: fmt::Arguments) {
        self.hash_text(at_ms, what);
        if let Some(lines) = &mut self.lines {
            lines.push(Line {
                at_ms,
                session: session.cloned(),
                what: what.to_string(),
                decisions: Vec::new(),
                effects: Vec::new(),
            });
        }
    }

    /// The core was handed something, and this is what it said.
    pub(crate) fn handled(
        &mut self,
        at_ms: u64,
        session: Option<&SessionId>,
        event: fmt::Arguments,
        effects: &Effects,
    ) {
        self.hash_text(at_ms, event);
        self.hash_text(at_ms, format_args!("{effects:?}"));
        if let Some(lines) = &mut self.lines {
            let decisions = effects.writes.iter().filter_map(|write| match write {
                Write::InsertDecision(decision) => Some(decision.clone()),
                _other => None,
            });
            lines.push(Line {
                at_ms,
                session: session.cloned(),
                what: event.to_string(),
                decisions: decisions.collect(),
                effects: texts_of(effects),
            });
        }
    }

    fn hash_text(&mut self, at_ms: u64, text: fmt::Arguments) {
        self.hash.word(at_ms);
        self.hash.write_fmt(text).expect("a hash takes every text");
    }
}

fn texts_of(effects: &Effects) -> Vec<String> {
    let writes = effects.writes.iter().filter_map(|write| match write {
        Write::InsertDecision(_) => None,
        other => Some(format!("write {other:?}")),
    });
    let answers = effects.answers.iter().map(|answer| format!("answer {answer:?}"));
    let notices = effects.notices.iter().map(|notice| format!("notice {notice:?}"));
    let commands = effects.commands.iter().map(|command| format!("command {command:?}"));
    let stale = (effects.stale > 0).then(|| "dropped: stale".to_owned());
    writes.chain(answers).chain(notices).chain(commands).chain(stale).collect()
}

/// FNV-1a over eight bytes at a time; only equality matters.
#[derive(Debug)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut chunks = text.as_bytes().chunks_exact(8);
        for chunk in &mut chunks {
            self.word(u64::from_le_bytes(chunk.try_into().expect("a chunk of eight is eight")));
        }
        for byte in chunks.remainder() {
            self.word(u64::from(*byte));
        }
        Ok(())
    }
}

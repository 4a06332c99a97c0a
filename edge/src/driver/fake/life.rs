//! The life of a fake instance, as a machine: a frame or a moment in, frames out.
//!
//! ```text
//!  not launched ─ welcome with launch ─▶ starting ─ ready_after ─▶ ready ⇄ (turn)
//!                                                                    │ exit, stop
//!                                          over ◀─ release ─ exited ◀┘
//! ```
//!
//! Owner: `fake::bridge`, one per instance. Invariants: as of a real bridge: a turn id is worked on
//! once, its result is kept until it is acknowledged, and the exit is the last word. Absent: lines,
//! and waiting.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_bridge::frames::{FromBridge, ToBridge};
use dormouse_core::cause::Cause;
use dormouse_core::event::{AgentState, TurnOutcome};
use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::id::TurnId;
use tokio::time::Instant;

use super::script::{FakeExit, FakeScript, Fate};

const HOLD_NAME: &str = "fake";

#[derive(Debug)]
pub(super) struct Life {
    script: FakeScript,
    memory_limit: Option<u64>,
    launched_at: Option<Instant>,
    is_ready: bool,
    turns_begun: u64,
    running: Option<Running>,
    stopping: Option<Stopping>,
    kept: BTreeMap<TurnId, TurnOutcome>,
    exit: Option<Evidence>,
}

#[derive(Debug)]
struct Running {
    turn: TurnId,
    fate: Fate,
    reply: String,
    pieces: Vec<String>,
    sent: usize,
    offset: u64,
    /// When the next step is due; `None`: never.
    due: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Stopping {
    due: Instant,
    by_force: bool,
}

/// What a frame or a moment leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    Say(Vec<FromBridge>),
    /// The connection breaks, as scripted.
    LoseLine,
    /// The bridge is gone without a word, as scripted.
    Vanish,
    /// Over in peace: refused, or released.
    End,
}

impl Then {
    fn nothing() -> Self {
        Then::Say(Vec::new())
    }
}

impl Life {
    pub(super) fn new(script: FakeScript, memory_limit: Option<u64>) -> Self {
        Self {
            script,
            memory_limit,
            launched_at: None,
            is_ready: false,
            turns_begun: 0,
            running: None,
            stopping: None,
            kept: BTreeMap::new(),
            exit: None,
        }
    }

    pub(super) fn agent(&self) -> AgentState {
        match (self.launched_at, self.is_ready) {
            (None, _) => AgentState::NotLaunched,
            (Some(_), false) => AgentState::Starting,
            (Some(_), true) => AgentState::Ready,
        }
    }

    pub(super) fn held(&self) -> Vec<TurnId> {
        let running = self.running.as_ref().map(|running| running.turn);
        self.kept.keys().copied().chain(running).collect()
    }

    /// What nobody took while it was there to be taken.
    pub(super) fn into_leftovers(self) -> (Vec<(TurnId, TurnOutcome)>, Option<Evidence>) {
        (self.kept.into_iter().collect(), self.exit)
    }

    pub(super) fn on_frame(&mut self, frame: ToBridge, now: Instant) -> Then {
        match frame {
            ToBridge::Welcome { launch } => {
                if launch.is_some() && self.launched_at.is_none() {
                    self.launched_at = Some(now);
                }
                Then::Say(self.repeated())
            }
            // Nothing is worked on here, so that everything is there at once.
            ToBridge::Sync { version, .. } => Then::Say(vec![FromBridge::Synced { version }]),
            ToBridge::Launch { .. } => {
                self.launched_at.get_or_insert(now);
                Then::nothing()
            }
            ToBridge::Refused { .. } | ToBridge::Release => Then::End,
            ToBridge::Turn { turn, text } => self.begin(turn, &text, now),
            ToBridge::Acknowledge { turn } => {
                self.kept.remove(&turn);
                Then::nothing()
            }
            ToBridge::Stop { grace_ms } => self.stop(Duration::from_millis(grace_ms), now),
        }
    }

    /// The moment at which `on_time` has something to do.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.exit.is_some() {
            return None;
        }
        let stop = self.stopping.map(|stopping| stopping.due);
        let turn = self.running.as_ref().and_then(|running| running.due);
        let times = [self.dies_at(), self.oom_at(), self.ready_at(), turn, stop];
        times.into_iter().flatten().min()
    }

    pub(super) fn on_time(&mut self, now: Instant) -> Then {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.exit.is_some() {
            return Then::nothing();
        }
        if let Some(stopping) = self.stopping.filter(|stopping| stopping.due <= now) {
            return self.stopped(stopping, now);
        }
        if is_due(self.oom_at()) {
            return self.end(FakeExit::OutOfMemory, now);
        }
        if is_due(self.dies_at()) {
            return self.end(self.script.exit, now);
        }
        if is_due(self.ready_at()) {
            self.is_ready = true;
            return Then::Say(vec![FromBridge::Ready]);
        }
        if is_due(self.running.as_ref().and_then(|running| running.due)) {
            return self.step(now);
        }
        Then::nothing()
    }

    fn after_launch(&self, span_ms: u64) -> Option<Instant> {
        self.launched_at.map(|at| at + Duration::from_millis(span_ms))
    }

    fn dies_at(&self) -> Option<Instant> {
        self.script.run_for_ms.and_then(|span_ms| self.after_launch(span_ms))
    }

    fn oom_at(&self) -> Option<Instant> {
        self.script.oom_at_ms.and_then(|span_ms| self.after_launch(span_ms))
    }

    fn ready_at(&self) -> Option<Instant> {
        let will_be = !self.is_ready && !self.script.never_ready;
        self.after_launch(self.script.ready_after_ms).filter(|_| will_be)
    }

    fn repeated(&self) -> Vec<FromBridge> {
        let ended = |(turn, outcome): (&TurnId, &TurnOutcome)| FromBridge::Ended {
            turn: *turn,
            outcome: outcome.clone(),
            files: None,
        };
        let exited =
            self.exit.iter().map(|evidence| FromBridge::Exited { evidence: evidence.clone() });
        self.kept.iter().map(ended).chain(exited).collect()
    }

    fn begin(&mut self, turn: TurnId, text: &str, now: Instant) -> Then {
        if let Some(outcome) = self.kept.get(&turn) {
            return Then::Say(vec![FromBridge::Ended {
                turn,
                outcome: outcome.clone(),
                files: None,
            }]);
        }
        let is_known = self.running.as_ref().is_some_and(|running| running.turn == turn);
        if is_known || self.exit.is_some() {
            return Then::nothing();
        }
        self.turns_begun += 1;
        let reply = self.script.reply_to(text, self.turns_begun);
        let fate = self.script.fate_of(text);
        let due = now + Duration::from_millis(self.script.turn_takes_ms);
        self.running = Some(Running {
            turn,
            fate,
            pieces: self.script.pieces_of(&reply),
            reply,
            sent: 0,
            offset: 0,
            due: Some(due).filter(|_| fate != Fate::Hang),
        });
        if self.script.loses_line_on(text) {
            return Then::LoseLine;
        }
        if self.script.holds_on(text) {
            let for_ms = self.script.hold_for_ms;
            return Then::Say(vec![FromBridge::Hold { name: HOLD_NAME.into(), for_ms }]);
        }
        Then::nothing()
    }

    fn step(&mut self, now: Instant) -> Then {
        let Some(running) = &mut self.running else { return Then::nothing() };
        let (turn, exit) = (running.turn, self.script.exit);
        match running.fate {
            Fate::Hang => return Then::nothing(),
            Fate::Die => return self.end(exit, now),
            Fate::Fail => {
                let outcome = TurnOutcome::Failed {
                    cause: Cause::AgentError,
                    message: "the script says that this turn fails".into(),
                    retryable: self.script.fail_is_retryable,
                    exit_code: None,
                };
                return Then::Say(vec![self.finish(turn, outcome)]);
            }
            Fate::Answer => {}
        }
        if let Some(text) = running.pieces.get(running.sent).cloned() {
            let offset = running.offset;
            running.sent += 1;
            running.offset += text.len() as u64;
            let pause =
                if running.sent < running.pieces.len() { self.script.chunk_every_ms } else { 0 };
            running.due = Some(now + Duration::from_millis(pause));
            return Then::Say(vec![FromBridge::Delta { turn, offset, text }]);
        }
        let outcome =
            TurnOutcome::Answered { text: std::mem::take(&mut running.reply), exit_code: None };
        Then::Say(vec![self.finish(turn, outcome)])
    }

    fn finish(&mut self, turn: TurnId, outcome: TurnOutcome) -> FromBridge {
        self.running = None;
        self.kept.insert(turn, outcome.clone());
        FromBridge::Ended { turn, outcome, files: None }
    }

    fn stop(&mut self, grace: Duration, now: Instant) -> Then {
        if self.exit.is_some() || self.stopping.is_some() {
            return Then::nothing();
        }
        let takes = Duration::from_millis(self.script.stop_takes_ms);
        let by_force = self.script.ignores_stop || takes > grace;
        let due = now + if by_force { grace } else { takes };
        self.stopping = Some(Stopping { due, by_force });
        Then::nothing()
    }

    fn stopped(&mut self, stopping: Stopping, now: Instant) -> Then {
        let end = match (self.launched_at, stopping.by_force) {
            (None, _) => End::NeverLaunched,
            (Some(_), true) => End::Signaled { signal: 9 },
            (Some(_), false) => End::Exited { code: 0 },
        };
        let grace_ran_out = stopping.by_force && self.launched_at.is_some();
        let evidence = Evidence {
            asked_by: Some(AskedBy::Daemon),
            grace_ran_out,
            log_tail: self.script.log.clone(),
            memory_limit_bytes: self.memory_limit,
            ..Evidence::bare(end)
        };
        self.exited(evidence, now)
    }

    fn end(&mut self, exit: FakeExit, now: Instant) -> Then {
        match self.script.evidence_of_exit(exit, self.memory_limit) {
            Some(evidence) => self.exited(evidence, now),
            None => Then::Vanish,
        }
    }

    fn exited(&mut self, mut evidence: Evidence, now: Instant) -> Then {
        evidence.uptime_ms =
            self.launched_at.map(|at| dormouse_core::time::millis(now.duration_since(at)));
        self.running = None;
        self.exit = Some(evidence.clone());
        Then::Say(vec![FromBridge::Exited { evidence }])
    }
}

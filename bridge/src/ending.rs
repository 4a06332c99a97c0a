//! From the wish to stop, or the agent's own end, to the last word.
//!
//! Owner: `instance`, whose second half this is. Invariants: facts are gathered before anything is
//! let go of; `exit.json` is there before `exited` is said; who asked first is who asked; a group
//! that cannot be proven empty is killed again and again, and nothing is said meanwhile.
//! Absent: what an end means for the session, which is the core's.

use std::time::Duration;

use dormouse_core::diagnosis::signal_name;
use dormouse_core::event::TurnOutcome;
use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::time::millis;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::adapter::Agent;
use crate::adapter::exec::ExecTurn;
use crate::adapter::openai::SETTLE_SPAN;
use crate::child::FromPipes;
use crate::counters::{Cgroup, Counters};
use crate::instance::{Instance, LineState};
use crate::log::first_error;
use crate::oom::Settled;
use crate::reaper::{self, Ended, ExitStatus, Left};

/// For stops that nobody sent a grace with.
pub(crate) const OWN_STOP_GRACE: Duration = Duration::from_secs(10);
/// How long a bridge that was asked to end by a signal waits for its release.
const LINGER_AFTER_SIGNAL: Duration = Duration::from_secs(10);
const KILL_PAUSE_MIN: Duration = Duration::from_millis(5);
const KILL_PAUSE_MAX: Duration = Duration::from_millis(200);
const READ_BYTES: usize = 16 << 10;
/// More than two pipes hold, unless somebody who outlived the writer goes on filling them.
const READ_REST_BYTES_MAX: usize = 8 << 20;

#[derive(Debug)]
pub(crate) enum Phase {
    NotLaunched,
    Starting,
    Ready,
    Clearing(Clearing),
    Over { evidence: Evidence, since: Instant },
    Refused(Kills),
    Left,
}

/// Nothing of the agent is to live any more.
#[derive(Debug)]
pub(crate) struct Clearing {
    /// How the agent's process ended; not known before it has.
    end: Option<End>,
    kills: Kills,
    /// Proven that nothing lives; only an answer on its way through a socket is waited for.
    hear_out_until: Option<Instant>,
}

/// When to kill again what did not die yet.
#[derive(Debug)]
pub(crate) struct Kills {
    next_at: Instant,
    pause: Duration,
}

impl Kills {
    fn begin() -> Self {
        Self { next_at: Instant::now(), pause: KILL_PAUSE_MIN }
    }

    fn again(&mut self) {
        self.next_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(KILL_PAUSE_MAX);
    }
}

#[derive(Debug)]
pub(crate) struct Stop {
    asked_by: AskedBy,
    kill_at: Instant,
    grace_ran_out: bool,
}

impl Instance {
    /// Asks the agent to end, and sets when it is made to.
    pub(crate) fn begin_stop(&mut self, asked_by: AskedBy, grace: Duration) {
        let now = Instant::now();
        let kill_at = now + grace.min(FAR_AWAY);
        if let Some(stop) = &mut self.stop {
            stop.kill_at = stop.kill_at.min(kill_at);
            return;
        }
        if !matches!(self.phase, Phase::NotLaunched | Phase::Starting | Phase::Ready) {
            return;
        }
        self.stop = Some(Stop { asked_by, kill_at, grace_ran_out: false });
        self.log.note(&format!("stopping, asked by {asked_by:?}, grace {grace:?}"));
        match &self.process {
            Some(process) => {
                process.signal_group(Signal::TERM);
                // A stopped process hears nothing before it goes on.
                process.signal_group(Signal::CONT);
            }
            None if matches!(self.phase, Phase::NotLaunched) => {
                self.clear(Some(End::NeverLaunched));
            }
            None => self.clear(Some(END_OF_EXEC)),
        }
    }

    pub(crate) fn on_refused(&mut self, why: &str) {
        self.log.note(&format!("refused by the daemon: {why}"));
        self.phase = Phase::Refused(Kills::begin());
        self.kill_again();
    }

    pub(crate) fn on_release(&mut self) {
        match self.phase {
            Phase::Over { .. } => self.phase = Phase::Left,
            _ => self.log.note("ignored a release: the instance is not over"),
        }
    }

    /// Nothing is left to do.
    pub(crate) fn has_left(&self) -> bool {
        matches!(self.phase, Phase::Left)
    }

    // ---- clocks ----

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let look_at_oom = self.oom.next_look();
        let settling = match &self.agent {
            Some(Agent::Openai(openai)) => openai.settling.as_ref().map(|(at, _)| *at),
            _ => None,
        };
        let by_phase = match &self.phase {
            Phase::NotLaunched | Phase::Starting | Phase::Ready => {
                self.stop.as_ref().map(|stop| stop.kill_at)
            }
            Phase::Clearing(Clearing { hear_out_until: Some(until), .. }) => Some(*until),
            Phase::Clearing(Clearing { kills, .. }) | Phase::Refused(kills) => Some(kills.next_at),
            Phase::Over { .. } | Phase::Left => None,
        };
        [settling, by_phase, self.orphaned_at(), look_at_oom, self.checkpoint_at()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) fn on_deadline(&mut self) {
        let now = Instant::now();
        self.settle(now);
        if self.oom.next_look().is_some_and(|at| at <= now) {
            self.look_at_oom();
        }
        if self.checkpoint_at().is_some_and(|at| at <= now) {
            self.checkpoint_by_clock();
        }
        if self.orphaned_at().is_some_and(|at| at <= now) {
            match self.phase {
                Phase::Over { .. } => self.phase = Phase::Left,
                _ => self.begin_stop(AskedBy::OrphanLimit, OWN_STOP_GRACE),
            }
        }
        match &self.phase {
            Phase::NotLaunched | Phase::Starting | Phase::Ready => {
                if let Some(stop) = self.stop.as_mut().filter(|stop| stop.kill_at <= now) {
                    stop.grace_ran_out = true;
                    self.log.note("the grace ran out: killing");
                    self.clear(matches!(self.agent, Some(Agent::Exec(_))).then_some(END_OF_EXEC));
                }
            }
            Phase::Clearing(clearing) => match clearing.hear_out_until {
                Some(until) if until <= now => self.conclude(),
                Some(_) => {}
                None if clearing.kills.next_at <= now => self.kill_again(),
                None => {}
            },
            Phase::Refused(kills) if kills.next_at <= now => self.kill_again(),
            Phase::Refused(_) | Phase::Over { .. } | Phase::Left => {}
        }
    }

    /// When the bridge has been on its own for too long for what it is doing.
    fn orphaned_at(&self) -> Option<Instant> {
        let by_line = match self.line {
            LineState::Welcomed => None,
            LineState::Alone { since, .. } => Some(since + self.orphan_limit),
        };
        match &self.phase {
            Phase::NotLaunched | Phase::Starting | Phase::Ready if self.stop.is_none() => by_line,
            // It ends by itself, in good time.
            Phase::Over { .. } if self.files.is_ending() => None,
            Phase::Over { since, .. } => {
                let asked_by = self.stop.as_ref().map(|stop| stop.asked_by);
                let linger = match (asked_by, self.line) {
                    (Some(AskedBy::Signal), LineState::Alone { .. }) => Duration::ZERO,
                    (Some(AskedBy::Signal), _) => LINGER_AFTER_SIGNAL.min(self.orphan_limit),
                    _ => self.orphan_limit,
                };
                Some(by_line.map_or(*since + linger, |by_line| by_line.min(*since + linger)))
            }
            _ => None,
        }
    }

    /// A connection broke a while ago and the agent lives: the broken connection is the outcome.
    fn settle(&mut self, now: Instant) {
        let Some(Agent::Openai(openai)) = &mut self.agent else { return };
        if let Some((_, outcome)) = openai.settling.take_if(|(at, _)| *at <= now) {
            self.finish_turn(outcome);
        }
    }

    // ---- children ----

    /// Some child ended.
    pub(crate) fn on_children(&mut self) {
        let mut ended = Vec::new();
        reaper::reap(&mut ended);
        ended.into_iter().for_each(|ended| self.on_child_ended(ended));
        if matches!(self.phase, Phase::Clearing(_) | Phase::Refused(_)) {
            self.kill_again();
        }
    }

    fn on_child_ended(&mut self, ended: Ended) {
        if self.process.as_ref().is_none_or(|process| process.pid != ended.pid) {
            return;
        }
        let memory = self.settle_oom(ended);
        if matches!(self.agent, Some(Agent::Exec(_))) {
            return self.on_exec_turn_ended(ended, memory);
        }
        self.memory = Some(memory);
        let end = ended.status.into_end();
        let words = match ended.status {
            ExitStatus::Code(code) => format!("with exit code {code}"),
            ExitStatus::Signal(signal) => format!("by {}", signal_name(signal)),
        };
        self.log.note(&format!("the agent ended {words}"));
        match &mut self.phase {
            Phase::Clearing(clearing) => clearing.end = clearing.end.take().or(Some(end)),
            Phase::Refused(_) => {}
            _ => self.clear(Some(end)),
        }
    }

    /// The kills in the life of the process that has just ended, and whom they hit. Asked before
    /// anything else is ended, so that others of the group have no time to be counted.
    fn settle_oom(&mut self, ended: Ended) -> Settled {
        let counters = self.cgroup.as_ref().map(Cgroup::counters).unwrap_or_default();
        let was_killed_here = matches!(self.phase, Phase::Clearing(_) | Phase::Refused(_));
        self.oom.settle(counters, ended.pid, &ended.status.into_end(), was_killed_here)
    }

    fn on_exec_turn_ended(&mut self, ended: Ended, memory: Settled) {
        reaper::kill_group(ended.pid);
        self.read_rest();
        self.process = None;
        self.log.finish_streams();
        let Some(Agent::Exec(exec)) = &mut self.agent else { return };
        if let Some(turn) = exec.turn.take() {
            match self.exec_outcome(&turn, ended.status, memory) {
                Some(outcome) => self.finish_turn(outcome),
                None => self.abandon_running_turn(),
            }
        }
        if self.stop.is_some() && matches!(self.phase, Phase::Ready) {
            self.clear(Some(END_OF_EXEC));
        }
    }

    /// `None` if the turn was cut short by a stop: whoever asked for that knows what it means.
    fn exec_outcome(
        &mut self,
        turn: &ExecTurn,
        status: ExitStatus,
        memory: Settled,
    ) -> Option<TurnOutcome> {
        match turn.failure(status, memory, self.turns.words_of_the_whole()) {
            None => Some(self.turns.answer_with_text(Some(0))),
            Some(_) if self.stop.is_some() => None,
            failure => failure,
        }
    }

    fn abandon_running_turn(&mut self) {
        if let Some(turn) = self.turns.abandon_running() {
            self.log.note(&format!("turn {turn} has no end"));
        }
    }

    /// What the ended process left in its pipes.
    fn read_rest(&mut self) {
        let mut buffer = vec![0; READ_BYTES];
        let mut bytes_left = READ_REST_BYTES_MAX;
        while let Some(from_pipes) =
            self.process.as_mut().and_then(|process| process.read_rest(&mut buffer))
        {
            let bytes = match from_pipes {
                FromPipes::Output(bytes) => {
                    self.on_output(&buffer[..bytes]);
                    bytes
                }
                FromPipes::Errors(bytes) => {
                    self.on_errors(&buffer[..bytes]);
                    bytes
                }
            };
            bytes_left = bytes_left.saturating_sub(bytes);
            if bytes_left == 0 {
                return self.log.note("left unread what others still write to the agent's pipes");
            }
        }
    }

    // ---- clearing ----

    /// Makes sure that nothing of the agent lives, then says how it ended.
    pub(crate) fn clear(&mut self, end: Option<End>) {
        if end.is_none() {
            // The last moment at which SIGKILL would be the kernel's.
            self.look_at_oom();
        }
        let kills = Kills::begin();
        self.phase = Phase::Clearing(Clearing { end, kills, hear_out_until: None });
        self.kill_again();
    }

    fn kill_again(&mut self) {
        let mut ended = Vec::new();
        let left = reaper::kill_everything(self.cgroup.as_ref(), &mut ended);
        ended.into_iter().for_each(|ended| self.on_child_ended(ended));
        match (&mut self.phase, left) {
            (Phase::Clearing(Clearing { kills, .. }) | Phase::Refused(kills), Left::Something) => {
                kills.again();
            }
            (Phase::Refused(_), Left::Nothing) => self.phase = Phase::Left,
            (Phase::Clearing(clearing), Left::Nothing) => {
                let until = Instant::now() + SETTLE_SPAN;
                clearing.hear_out_until.get_or_insert(until);
                self.conclude_if_heard_out();
            }
            _ => {}
        }
    }

    /// An answer that the agent gave with its last breath is read to its end first. Its sockets are
    /// closed, so that this is quick.
    pub(crate) fn conclude_if_heard_out(&mut self) {
        let Phase::Clearing(Clearing { hear_out_until: Some(_), .. }) = self.phase else { return };
        let is_talking = matches!(&self.agent, Some(Agent::Openai(openai))
            if openai.settling.is_none() && self.turns.running().is_some());
        if !is_talking {
            self.conclude();
        }
    }

    fn conclude(&mut self) {
        let counters = self.cgroup.as_ref().map(Cgroup::counters).unwrap_or_default();
        self.read_rest();
        match &mut self.agent {
            Some(Agent::Jsonl(jsonl)) => {
                let mut said = Vec::new();
                jsonl.finish(&mut said);
                let noise_lines = jsonl.noise_lines;
                said.into_iter().for_each(|said| self.on_said(said));
                if noise_lines > 0 {
                    let note = format!("the agent wrote {noise_lines} lines that are no frames");
                    self.log.note(&note);
                }
            }
            Some(Agent::Openai(openai)) => openai.stop_talking(),
            Some(Agent::Exec(_)) | None => {}
        }
        self.log.finish_streams();
        self.abandon_running_turn();
        let evidence = self.evidence(counters);
        if let Err(error) = self.folder.write_exit(&evidence) {
            self.log.note(&crate::words(&error));
        }
        self.process = None;
        self.keep_files_of_the_end(self.stop.as_ref().map(|stop| stop.kill_at));
        self.phase = Phase::Over { evidence, since: Instant::now() };
    }

    fn evidence(&mut self, counters: Counters) -> Evidence {
        let end = match &mut self.phase {
            Phase::Clearing(clearing) => clearing.end.take(),
            _ => None,
        };
        // The kernel says that there is no child only after it gave out every child's status.
        let end = end.expect("the agent's own end is seen before the end of all children");
        let log_tail = self.log.tail();
        let started_at = self.process.as_ref().map(|process| process.started_at);
        let started_at = started_at.or(self.launched_at);
        Evidence {
            end,
            asked_by: self.stop.as_ref().map(|stop| stop.asked_by),
            grace_ran_out: self.stop.as_ref().is_some_and(|stop| stop.grace_ran_out),
            uptime_ms: started_at.map(|at| millis(at.elapsed())),
            oom_kills: counters.oom_kills_since(&self.counters_at_launch),
            oom_victim: self.memory.and_then(|memory| memory.victim),
            machine_oom: self.memory.and_then(|memory| memory.machine_oom),
            pids_refused: counters.pids_refused_since(&self.counters_at_launch),
            memory_peak_bytes: counters.memory_peak_bytes,
            memory_limit_bytes: counters.memory_limit_bytes,
            first_error: first_error(&log_tail),
            log_tail,
        }
    }
}

/// An instance of `exec` has no process that could end otherwise.
const END_OF_EXEC: End = End::Exited { code: 0 };
/// For graces that no clock can hold.
pub(crate) const FAR_AWAY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

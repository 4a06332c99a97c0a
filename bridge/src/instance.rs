//! One instance: what its bridge knows and does, told of one thing at a time.
//!
//! ```text
//!  NotLaunched ─ welcome with launch ─▶ Starting ─ ready ─▶ Ready
//!       │                                  │                  │      the agent ended, or it
//!       └──────────── stop ────────────────┴──────────────────┴───▶ is to end now
//!                                                                          │
//!    Left ◀─ release · orphan limit ── Over ◀─ nothing lives any more ── Clearing
//!      ▲                                                                   ▲
//!      └──────────────── nothing lives any more ── Refused ◀── refused ── (any)
//! ```
//!
//! Owner: `run` owns the one [`Instance`] and calls it from its one loop; `launch` holds its way
//! into life, `ending` the way from a stop to the last word. Invariants: the agent is executed
//! once; a turn is begun once; `Over` is reached only when nothing of the agent lives, and `exited`
//! is said only then. Absent: the connection, sleeping, and any decision about a next life.

use std::time::Duration;

use dormouse_core::cause::Cause;
use dormouse_core::event::{AgentState, TurnOutcome};
use dormouse_core::evidence::AskedBy;
use dormouse_core::id::{BootId, InstanceId, TurnId};
use tokio::time::Instant;

use crate::adapter::exec::{Exec, ExecTurn, not_executed, turn_environment};
use crate::adapter::jsonl::{Said, turn_line};
use crate::adapter::openai::{HttpSaid, SETTLE_SPAN};
use crate::adapter::{Agent, failed};
use crate::child::{FromPipes, Process};
use crate::counters::{Cgroup, Counters};
use crate::ending::{Phase, Stop};
use crate::files::desk::{Desk, FromFiles, SyncOrder};
use crate::frames::{FRAME_BYTES_MAX, FromBridge, Hello, Launch, PROTOCOL_VERSION, ToBridge};
use crate::hold::Holds;
use crate::log::{Log, Stream};
use crate::oom::{OomWatch, Settled};
use crate::reply::Reply;
use crate::rundir::{RunFolder, Spec};
use crate::turn::{Offer, Turns};

/// How long a bridge waits for a daemon before it was ever told how long.
const ORPHAN_LIMIT_BEFORE_LAUNCH: Duration = Duration::from_secs(30);
/// Turns' lines that an agent has not read yet.
const INPUT_WAITING_BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) folder: RunFolder,
    pub(crate) spec: Spec,
    boot: BootId,
    pub(crate) log: Log,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) phase: Phase,
    /// With its templates filled in.
    pub(crate) launch: Option<Launch>,
    pub(crate) agent: Option<Agent>,
    /// The agent's; for `exec`, the running turn's.
    pub(crate) process: Option<Process>,
    pub(crate) launched_at: Option<Instant>,
    pub(crate) was_ready: bool,
    pub(crate) counters_at_launch: Counters,
    pub(crate) oom: OomWatch,
    /// Known from the end of the agent's own process on.
    pub(crate) memory: Option<Settled>,
    pub(crate) turns: Turns,
    holds: Holds,
    pub(crate) files: Desk,
    told: Told,
    pub(crate) line: LineState,
    pub(crate) stop: Option<Stop>,
    pub(crate) orphan_limit: Duration,
}

/// What the daemon was told over this connection.
#[derive(Debug, Default)]
struct Told {
    is_ready: bool,
    is_exited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineState {
    Welcomed,
    /// No welcome since then. A failure to get one is noted once.
    Alone {
        since: Instant,
        is_noted: bool,
    },
}

/// Something that the agent did.
#[derive(Debug)]
pub(crate) enum FromAgent {
    Pipes(FromPipes),
    Http(HttpSaid),
    /// The kernel tells that memory runs out, so many times before it counted a kill.
    OutOfMemory(u64),
    /// Not the agent, but what is done for its files.
    Files(FromFiles),
}

impl Instance {
    pub(crate) fn new(folder: RunFolder, spec: Spec, boot: BootId, log: Log) -> Self {
        let id = InstanceId { session: spec.session.clone(), generation: spec.generation };
        Self {
            files: Desk::new(id, spec.token.clone()),
            cgroup: spec.cgroup.clone().map(Cgroup::new),
            folder,
            spec,
            boot,
            log,
            phase: Phase::NotLaunched,
            launch: None,
            agent: None,
            process: None,
            launched_at: None,
            was_ready: false,
            counters_at_launch: Counters::default(),
            oom: OomWatch::default(),
            memory: None,
            turns: Turns::default(),
            holds: Holds::default(),
            told: Told::default(),
            line: LineState::Alone { since: Instant::now(), is_noted: false },
            stop: None,
            orphan_limit: ORPHAN_LIMIT_BEFORE_LAUNCH,
        }
    }

    pub(crate) fn hello(&self) -> FromBridge {
        let agent = match (self.launched_at, self.was_ready) {
            (None, _) => AgentState::NotLaunched,
            (Some(_), false) => AgentState::Starting,
            (Some(_), true) => AgentState::Ready,
        };
        FromBridge::Hello(Hello {
            version: PROTOCOL_VERSION,
            session: self.spec.session.clone(),
            generation: self.spec.generation,
            boot: self.boot,
            token: self.spec.token.clone(),
            agent,
            held: self.turns.held(),
            applied: self.files.applied(),
        })
    }

    // ---- the daemon ----

    pub(crate) fn on_frame(&mut self, frame: ToBridge) {
        let is_welcomed = self.line == LineState::Welcomed;
        match frame {
            ToBridge::Welcome { launch } => self.on_welcome(launch),
            ToBridge::Refused { why } => self.on_refused(&why),
            _ if !is_welcomed => self.log.note("dropped a frame that came before the welcome"),
            ToBridge::Sync { version, files, workspace } => {
                self.on_sync(SyncOrder { version, files, workspace });
            }
            ToBridge::Launch { launch } => self.on_launch_frame(launch),
            ToBridge::Turn { turn, text } => self.on_turn(turn, &text),
            ToBridge::Acknowledge { turn } => self.on_acknowledge(turn),
            ToBridge::Stop { grace_ms } => {
                self.begin_stop(AskedBy::Daemon, Duration::from_millis(grace_ms));
            }
            ToBridge::Release => self.on_release(),
        }
    }

    fn on_welcome(&mut self, launch: Option<Launch>) {
        self.line = LineState::Welcomed;
        self.told = Told::default();
        self.turns.retell();
        self.holds.retell(Instant::now());
        self.files.retell();
        self.files.try_again();
        self.log.note("welcomed by the daemon");
        if let Some(launch) = launch {
            self.on_launch_frame(launch);
        }
    }

    fn on_launch_frame(&mut self, launch: Launch) {
        match self.phase {
            Phase::NotLaunched => self.on_launch(launch),
            _ => self.log.note("ignored a second launch"),
        }
    }

    pub(crate) fn on_line_down(&mut self, why: &str) {
        match &mut self.line {
            LineState::Welcomed => {
                self.line = LineState::Alone { since: Instant::now(), is_noted: true };
            }
            LineState::Alone { is_noted: true, .. } => return,
            LineState::Alone { is_noted, .. } => *is_noted = true,
        }
        self.log.note(&format!("no line to the daemon: {why}"));
    }

    fn on_acknowledge(&mut self, turn: TurnId) {
        if !self.turns.acknowledge(turn) {
            return self.log.note(&format!("no result of turn {turn} to acknowledge"));
        }
        if let Err(error) = self.folder.remove_result(turn) {
            self.log.note(&crate::words(&error));
        }
    }

    pub(crate) fn has_news(&self) -> bool {
        self.line == LineState::Welcomed
            && (self.owes_ready()
                || self.owes_exited()
                || self.holds.has_news()
                || self.files.has_news()
                || self.turns.has_news())
    }

    fn owes_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready) && !self.told.is_ready
    }

    fn owes_exited(&self) -> bool {
        matches!(self.phase, Phase::Over { .. }) && !self.told.is_exited && !self.files.is_ending()
    }

    /// The next frame that the daemon has to be sent; it counts as sent. `exited` is the last.
    pub(crate) fn next_frame(&mut self) -> Option<FromBridge> {
        if self.line != LineState::Welcomed {
            return None;
        }
        if self.owes_ready() {
            self.told.is_ready = true;
            return Some(FromBridge::Ready);
        }
        let news = self.files.next_frame().or_else(|| self.turns.next_frame());
        let news = news.or_else(|| self.holds.next_frame(Instant::now()));
        let owes_exited = self.owes_exited();
        match &self.phase {
            Phase::Over { evidence, .. } if news.is_none() && owes_exited => {
                self.told.is_exited = true;
                Some(FromBridge::Exited { evidence: evidence.clone() })
            }
            _ => news,
        }
    }

    // ---- turns ----

    fn on_turn(&mut self, turn: TurnId, text: &str) {
        let offer = self.turns.offer(turn);
        match offer {
            Offer::Repeat => {}
            Offer::New if matches!(self.phase, Phase::Ready) && self.stop.is_none() => {
                self.turns.begin(turn, self.reply_of(turn));
                self.start_turn(turn, text);
            }
            Offer::New => self.log.note(&format!("dropped turn {turn}: the agent is not ready")),
            Offer::Past | Offer::Busy => {
                self.log.note(&format!("dropped turn {turn}: {offer:?}"));
            }
        }
    }

    fn reply_of(&self, turn: TurnId) -> Reply {
        match (&self.agent, &self.launch) {
            (Some(Agent::Exec(_)), Some(launch)) => Reply::printed(&launch.workspace, turn),
            (Some(Agent::Jsonl(_)), Some(launch)) => Reply::framed(&launch.workspace, turn),
            _ => Reply::refusing(),
        }
    }

    fn start_turn(&mut self, turn: TurnId, text: &str) {
        let session = self.spec.session.clone();
        match (&mut self.agent, &mut self.process) {
            (Some(Agent::Exec(_)), _) => self.start_exec_turn(turn, text),
            (Some(Agent::Jsonl(_)), Some(process)) => {
                let line = turn_line(&session, turn, text);
                let is_room = process.input_waiting_bytes() + line.len() <= INPUT_WAITING_BYTES_MAX;
                if !is_room || !process.queue_input(&line) {
                    let message = "the agent does not read its standard input";
                    self.finish_turn(failed(Cause::ProtocolFault, message, true));
                }
            }
            (Some(Agent::Openai(openai)), _) => openai.start_turn(&session, text),
            (Some(Agent::Jsonl(_)) | None, _) => {}
        }
    }

    fn start_exec_turn(&mut self, turn: TurnId, text: &str) {
        self.oom.begin(self.cgroup.as_ref().map(Cgroup::counters).unwrap_or_default());
        let environment = turn_environment(&self.spec.session, turn);
        match self.spawn(&environment, true) {
            Ok(mut process) => {
                process.queue_input(text.as_bytes());
                process.close_input();
                self.process = Some(process);
                let turn = Some(ExecTurn::default());
                self.agent = Some(Agent::Exec(Exec { turn }));
            }
            Err(error) => self.finish_turn(not_executed(&error)),
        }
    }

    pub(crate) fn finish_turn(&mut self, outcome: TurnOutcome) {
        let Some((turn, outcome)) = self.turns.end(outcome) else { return };
        let how = match outcome {
            TurnOutcome::Answered { text, .. } => format!("answered with {} bytes", text.len()),
            TurnOutcome::Failed { cause, .. } => format!("failed: {cause}"),
        };
        self.log.note(&format!("turn {turn} {how}"));
        if let Err(error) = self.folder.write_result(turn, outcome) {
            self.log.note(&crate::words(&error));
        }
        self.keep_files_of(turn);
    }

    fn answer_with_text(&mut self, exit_code: Option<i32>) {
        let outcome = self.turns.answer_with_text(exit_code);
        self.finish_turn(outcome);
    }

    /// Adds to the running turn's text, or ends the turn where that may not get so long.
    pub(crate) fn add_text(&mut self, text: &str) {
        let Err(too_large) = self.turns.append(text) else { return };
        if let Some(Agent::Openai(openai)) = &mut self.agent {
            openai.stop_talking();
        }
        self.finish_turn(too_large.outcome());
    }

    // ---- the agent ----

    /// The next thing that the agent does; never ends while there can be none. Loses nothing when
    /// dropped.
    pub(crate) async fn next(&mut self, buffer: &mut [u8]) -> FromAgent {
        let Self { process, agent, oom, files, .. } = self;
        let pipes = async {
            match process {
                Some(process) => process.next(buffer).await,
                None => std::future::pending().await,
            }
        };
        let http = async {
            match agent {
                Some(Agent::Openai(openai)) => openai.next().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            from_pipes = pipes => FromAgent::Pipes(from_pipes),
            said = http => FromAgent::Http(said),
            times = oom.next() => FromAgent::OutOfMemory(times),
            did = files.next() => FromAgent::Files(did),
        }
    }

    pub(crate) fn on_out_of_memory(&mut self, times: u64) {
        let process = self.process.as_ref().map(|process| process.pid);
        if let Some(cgroup) = &self.cgroup {
            self.oom.on_told(times, cgroup, process);
        }
    }

    /// Learns which kills did not hit the agent's own process, while that can be seen.
    pub(crate) fn look_at_oom(&mut self) {
        let process = self.process.as_ref().map(|process| process.pid);
        if let Some(cgroup) = &self.cgroup {
            self.oom.look(cgroup, process);
        }
    }

    pub(crate) fn on_output(&mut self, bytes: &[u8]) {
        match &mut self.agent {
            Some(Agent::Exec(Exec { turn: Some(_) })) => self.turns.append_printed(bytes),
            Some(Agent::Exec(_)) => {}
            Some(Agent::Jsonl(jsonl)) => {
                let mut said = Vec::new();
                jsonl.push(bytes, &mut said);
                said.into_iter().for_each(|said| self.on_said(said));
            }
            Some(Agent::Openai(_)) | None => self.log.feed_out(bytes),
        }
    }

    pub(crate) fn on_errors(&mut self, bytes: &[u8]) {
        if let Some(Agent::Exec(Exec { turn: Some(turn) })) = &mut self.agent {
            turn.take_errors(bytes);
        }
        self.log.feed_err(bytes);
    }

    pub(crate) fn on_said(&mut self, said: Said) {
        match said {
            Said::Ready => self.on_ready(),
            Said::Delta { turn, .. } | Said::Done { turn, .. } | Said::Error { turn, .. }
                if self.turns.running().is_none_or(|running| running.to_string() != turn) =>
            {
                self.on_stray_frame();
            }
            Said::Delta { text, .. } => self.add_text(&text),
            Said::Done { text, exit_code, .. } if text.is_empty() => {
                self.answer_with_text(exit_code);
            }
            Said::Done { text, exit_code, .. } => {
                let outcome = self.turns.answer_with(text, exit_code);
                self.finish_turn(outcome);
            }
            Said::Error { message, retryable, exit_code, .. } => {
                let cause = Cause::AgentError;
                self.finish_turn(TurnOutcome::Failed { cause, message, retryable, exit_code });
            }
            Said::Hold { name, for_ms } => {
                if self.holds.take(&name, for_ms, Instant::now()).is_err() {
                    self.log.note("dropped a hold: there are too many");
                }
            }
            Said::Noise(line) => self.log.line(Stream::Out, &line),
            Said::Overlong(head) => {
                self.log.line(Stream::Out, &head);
                self.log.note("dropped a line that is longer than any frame may be");
                let message =
                    format!("the agent wrote a line of more than {FRAME_BYTES_MAX} bytes");
                self.finish_turn(failed(Cause::ReplyTooLarge, message, false));
            }
        }
    }

    fn on_ready(&mut self) {
        if matches!(self.phase, Phase::Starting) && self.stop.is_none() {
            self.become_ready();
        }
    }

    /// Counted; noted at the 1st, 2nd, 4th, 8th … so that no agent floods its own log with them.
    fn on_stray_frame(&mut self) {
        let Some(Agent::Jsonl(jsonl)) = &mut self.agent else { return };
        jsonl.stray_frames += 1;
        let count = jsonl.stray_frames;
        if count.is_power_of_two() {
            self.log
                .note(&format!("dropped a frame for a turn that does not run ({count} so far)"));
        }
    }

    pub(crate) fn on_http(&mut self, said: HttpSaid) {
        match said {
            HttpSaid::Ready => self.on_ready(),
            HttpSaid::Note(note) => self.log.note(&note),
            HttpSaid::Text(text) => self.add_text(&text),
            HttpSaid::Done => self.answer_with_text(None),
            HttpSaid::Failed(outcome) => self.finish_turn(outcome),
            HttpSaid::Broken(outcome) => {
                if let Some(Agent::Openai(openai)) = &mut self.agent {
                    openai.settling = Some((Instant::now() + SETTLE_SPAN, outcome));
                }
            }
        }
        self.conclude_if_heard_out();
    }
}

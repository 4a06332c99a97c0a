//! The world of a story: one daemon with its store, a clock, and what was said so far.
//!
//! Owner: one story. Invariants: after every event the store is checked, and a daemon that came up
//! at that moment would know the same; a deadline is handled at its time, and none is left behind;
//! each life of the daemon has a monotonic clock of its own. Absent: parsing (`steps`), wording
//! (`print`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_core::command::{Command, Effects};
use dormouse_core::event::Event;
use dormouse_core::id::{AgentName, InstanceId, RequestId, SessionId, TurnId};
use dormouse_core::policy::{AgentPolicy, AgentSetup, NodePolicy};
use dormouse_core::supervisor::Supervisor;
use dormouse_core::time::{Monotonic, Now, Wall};

use crate::model::Store;
use crate::print;
use crate::words::span_text;

/// Some moment; nothing may depend on which.
const WALL_AT_BEGIN: u64 = 1_500_000_000_000;

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) agents: BTreeMap<AgentName, AgentSetup>,
    /// Out of the config for now.
    pub(crate) taken_out: BTreeMap<AgentName, AgentSetup>,
    pub(crate) node: NodePolicy,
    supervisor: Option<Supervisor>,
    elapsed: Duration,
    wall_offset_ms: i64,
    lives: u64,
    requests: u64,
    /// The newest look at inputs that was ordered.
    pub(crate) look: u64,
    /// What of each turn's text was said so far.
    said: BTreeMap<TurnId, u64>,
    focus: Option<SessionId>,
    has_many_sessions: bool,
    pub(crate) is_printed: bool,
    transcript: String,
}

impl World {
    pub(crate) fn new(story: &str) -> Self {
        let named = story.split([' ', '\n', ',', '·']).filter_map(|word| word.split('#').next());
        let sessions: BTreeSet<SessionId> = named.filter_map(|word| word.parse().ok()).collect();
        Self {
            store: Store::default(),
            agents: [("a".parse().unwrap(), AgentSetup::only(AgentPolicy::default()))].into(),
            taken_out: BTreeMap::new(),
            node: NodePolicy::default(),
            supervisor: None,
            elapsed: Duration::ZERO,
            wall_offset_ms: 0,
            lives: 1,
            requests: 0,
            look: 0,
            said: BTreeMap::new(),
            focus: None,
            has_many_sessions: sessions.len() > 1,
            is_printed: true,
            transcript: String::new(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        let wall = WALL_AT_BEGIN.checked_add_signed(self.wall_offset_ms).unwrap();
        // Each life of the daemon begins its own monotonic time, here far from the last one's.
        let monotonic = Monotonic(self.lives * 1_000_000_007) + self.elapsed;
        Now { monotonic, wall: Wall(wall) + self.elapsed }
    }

    pub(crate) fn note_step(&mut self, step: &str) {
        if self.is_printed {
            let at = span_text(self.elapsed);
            self.transcript.push_str(&format!("{at:<11} {step}\n"));
        }
    }

    pub(crate) fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    pub(crate) fn focus_on(&mut self, session: &SessionId) {
        self.focus = Some(session.clone());
    }

    /// The newest instance of the session that was named last.
    pub(crate) fn instance(&self) -> InstanceId {
        let session = self.focus.clone().expect("a session was named before");
        let generation = self
            .store
            .sessions
            .get(&session)
            .map_or_else(Default::default, |record| record.generation);
        InstanceId { session, generation }
    }

    /// Where the next piece of a turn's text starts.
    pub(crate) fn say(&mut self, turn: TurnId, at: Option<u64>, text: &str) -> u64 {
        let said = self.said.entry(turn).or_default();
        let offset = at.unwrap_or(*said);
        *said = (*said).max(offset + text.len() as u64);
        offset
    }

    /// Hands an event over as the engine does: the session is loaded, the effects are committed,
    /// and what is due by then is handled.
    pub(crate) fn handle(&mut self, event: Event) {
        self.hand_over(event);
        self.handle_due();
    }

    fn hand_over(&mut self, event: Event) {
        let now = self.now();
        self.ensure_daemon();
        let supervisor = self.supervisor.as_mut().expect("it was just ensured");
        if let Some(id) = event.session()
            && !supervisor.is_loaded(id)
            && let Some(stored) = self.store.stored(id)
        {
            supervisor.load(now, stored);
        }
        let mut effects = Effects::default();
        supervisor.handle(now, event.clone(), &mut effects);
        for command in &effects.commands {
            if let Command::ListInputs { look, .. } = command {
                self.look = *look;
            }
        }
        self.store.commit(&event, &effects);
        self.store.check_rebuilt(supervisor, now, &self.agents);
        self.print(&effects);
    }

    fn handle_due(&mut self) {
        for _ in 0..100 {
            if self.next_deadline().is_none_or(|at| at > self.now().monotonic) {
                return;
            }
            self.hand_over(Event::DeadlinePassed);
        }
        panic!(
            "a deadline comes back for ever at {}\n{}",
            span_text(self.elapsed),
            self.transcript
        );
    }

    fn next_deadline(&self) -> Option<Monotonic> {
        self.supervisor.as_ref()?.next_deadline()
    }

    /// Time goes by, and the daemon wakes at each of its deadlines.
    pub(crate) fn pass(&mut self, span: Duration) {
        let until = self.elapsed + span;
        loop {
            let now = self.now().monotonic;
            let left = until - self.elapsed;
            let Some(at) = self.next_deadline().filter(|at| at.since(now) <= left) else { break };
            self.elapsed += at.since(now);
            let before = self.transcript.len();
            self.handle_due();
            if self.transcript.len() > before {
                let at = span_text(self.elapsed);
                self.transcript.insert_str(before, &format!("{at:<11} …\n"));
            }
        }
        self.elapsed = until;
    }

    /// Time goes by, and nothing runs: a machine that was suspended.
    pub(crate) fn stand_still(&mut self, span: Duration) {
        self.elapsed += span;
        self.handle_due();
    }

    pub(crate) fn move_wall_clock(&mut self, by: Duration, is_back: bool) {
        let millis = i64::try_from(by.as_millis()).unwrap();
        self.wall_offset_ms += if is_back { -millis } else { millis };
        self.handle_due();
    }

    /// Everything in memory is lost; a new daemon knows what was written.
    pub(crate) fn restart_daemon(&mut self) {
        self.lives += 1;
        let now = self.now();
        let mut effects = Effects::default();
        let supervisor =
            self.store.recover(now, self.node.clone(), self.agents.clone(), &mut effects);
        self.store.commit(&Event::DeadlinePassed, &effects);
        self.store.check_rebuilt(&supervisor, now, &self.agents);
        self.supervisor = Some(supervisor);
        self.print(&effects);
        self.handle_due();
    }

    /// What SIGTERM comes down to for the core.
    pub(crate) fn drain(&mut self) {
        self.ensure_daemon();
        let mut effects = Effects::default();
        self.supervisor.as_mut().expect("it was just made sure").drain(&mut effects);
        assert!(effects.writes.is_empty(), "a drain is in memory only");
        self.print(&effects);
    }

    /// The first event of a story ends its settings.
    fn ensure_daemon(&mut self) {
        let (node, agents) = (&self.node, &self.agents);
        self.supervisor
            .get_or_insert_with(|| Supervisor::new(node.clone(), agents.clone(), BTreeMap::new()));
    }

    fn print(&mut self, effects: &Effects) {
        if !self.is_printed {
            return;
        }
        let text = print::effects(effects, self.now().wall, self.has_many_sessions);
        for line in text.lines() {
            self.transcript.push_str(&print::wrapped(line));
        }
    }

    pub(crate) fn end(mut self) -> String {
        self.transcript.push_str(&print::stand(&self.store));
        self.transcript
    }
}

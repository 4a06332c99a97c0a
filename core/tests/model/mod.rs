//! A store in memory: what every `Write` of the core means, and what is true of it at any moment.
//!
//! Owner: the tests of `core` that play whole lives. Invariants: a write that contradicts what is
//! kept is a failed test; answered, dead and cancelled are absorbing; a message belongs to a stored
//! session; what is kept is enough to build the same supervisor anew.
//! Absent: durability. What is applied is as good as on disk.

mod files;

use std::collections::BTreeMap;

use dormouse_core::cause::Cause;
use dormouse_core::command::{Answer, Command, Effects, Write};
use dormouse_core::event::{DeadLetter, Event, PriorMessage};
use dormouse_core::id::{AgentName, Generation, MessageId, SessionId, Subject};
use dormouse_core::journal::Decision;
use dormouse_core::policy::{AgentSetup, NodePolicy};
use dormouse_core::queue::Queue;
use dormouse_core::record::{
    Delivery, ExitRecord, MessageRecord, MessageState, SessionRecord, StoredSession,
};
use dormouse_core::rollout::Rollout;
use dormouse_core::session::phase::Phase;
use dormouse_core::supervisor::Supervisor;
use dormouse_core::time::{Now, Wall};

use files::FilesBooks;

#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) sessions: BTreeMap<SessionId, SessionRecord>,
    pub(crate) messages: BTreeMap<MessageId, Kept>,
    /// Where the journal says that each session is.
    journal: BTreeMap<SessionId, Phase>,
    exits: BTreeMap<(SessionId, Generation), ExitRecord>,
    /// The newest upload of each session.
    uploads: BTreeMap<SessionId, u64>,
    pub(crate) rollouts: BTreeMap<AgentName, Rollout>,
    files: FilesBooks,
}

/// One message with all that became of it.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) record: MessageRecord,
    pub(crate) state: MessageState,
    pub(crate) attempts: u32,
    excused: u32,
    leased_to: Option<Generation>,
    not_before: Option<Wall>,
    pub(crate) reply: Option<String>,
    pub(crate) cause: Option<Cause>,
    redriven_as: Option<MessageId>,
    was_dropped: bool,
}

impl Kept {
    fn delivery(&self) -> Option<Delivery> {
        matches!(self.state, MessageState::Pending | MessageState::Leased).then(|| Delivery {
            message: self.record.id,
            bytes: u32::try_from(self.record.text.len()).unwrap(),
            attempts: self.attempts,
            excused: self.excused,
            leased_to: self.leased_to,
            not_before: self.not_before,
        })
    }

    fn end(&mut self, state: MessageState) {
        assert!(
            matches!(self.state, MessageState::Pending | MessageState::Leased),
            "{} has ended before: {:?}, now {state:?}",
            self.record.id,
            self.state
        );
        self.state = state;
        self.leased_to = None;
        self.not_before = None;
    }
}

impl Store {
    /// One transaction, and what may be asked of every one of them.
    pub(crate) fn commit(&mut self, event: &Event, effects: &Effects) {
        for write in &effects.writes {
            self.apply(write);
        }
        let all_belong =
            self.messages.values().all(|kept| self.sessions.contains_key(&kept.record.session))
                && self.journal.keys().all(|session| self.sessions.contains_key(session));
        assert!(all_belong, "{event:?} wrote something for a session without a row");
        for (session, phase) in &self.journal {
            assert_eq!(
                self.sessions[session].phase, *phase,
                "the journal knows where {session} is"
            );
        }
        for (session, newest) in &self.uploads {
            assert_eq!(
                self.sessions[session].files.uploads, *newest,
                "{session} counts its uploads"
            );
        }
        self.check_answers(event, effects);
        for command in &effects.commands {
            self.check_command(command);
        }
        let Self { files, sessions, .. } = self;
        files.hear(event);
        files.check(effects, |instance| sessions[&instance.session].files.uploads);
    }

    fn check_answers(&self, event: &Event, effects: &Effects) {
        let asked = match event {
            Event::MessageSubmitted { request, .. }
            | Event::SessionRequested { request, .. }
            | Event::RedriveRequested { request, .. }
            | Event::DropRequested { request, .. }
            | Event::UploadSubmitted { request, .. }
            | Event::RestoreRequested { request, .. }
            | Event::CheckpointOffered { request, .. }
            | Event::Configured { request, .. }
            | Event::RolloutRequested { request, .. } => vec![*request],
            Event::InstanceStarted { .. }
            | Event::InstanceStartFailed { .. }
            | Event::BridgeAttached { .. }
            | Event::BridgeDetached { .. }
            | Event::InstanceReady { .. }
            | Event::TurnProgressed { .. }
            | Event::TurnEnded { .. }
            | Event::HoldTaken { .. }
            | Event::InputsListed { .. }
            | Event::FilesProgressed { .. }
            | Event::FilesSynced { .. }
            | Event::FilesSyncFailed { .. }
            | Event::InstanceExited { .. }
            | Event::DeadlinePassed => vec![],
        };
        let answered: Vec<_> = effects.answers.iter().map(|answer| answer.0).collect();
        assert_eq!(answered, asked, "each request is answered exactly once: {event:?}");
        for (_, answer) in &effects.answers {
            if let Answer::Accepted { message, .. } | Answer::Duplicate { message } = answer {
                assert!(self.messages.contains_key(message), "{message} is accepted, not stored");
            }
        }
        for notice in &effects.notices {
            assert!(self.messages.contains_key(&notice.message), "{notice:?} is about nothing");
        }
    }

    /// What is ordered of an instance is on disk before.
    fn check_command(&self, command: &Command) {
        match command {
            Command::StartInstance { instance, .. } => {
                let record = &self.sessions[&instance.session];
                assert_eq!(record.generation, instance.generation, "started as written");
                assert_eq!(record.phase, Phase::Starting, "{instance}");
            }
            Command::DeliverTurn { instance, turn } => {
                let kept = &self.messages[&turn.message];
                assert_eq!(kept.leased_to, Some(instance.generation), "{turn}");
                assert_eq!(kept.attempts, turn.attempt, "{turn}");
            }
            Command::ListInputs { .. }
            | Command::SyncFiles { .. }
            | Command::LaunchAgent { .. }
            | Command::AdmitBridge { .. }
            | Command::RefuseBridge { .. }
            | Command::AcknowledgeTurn { .. }
            | Command::StopInstance { .. }
            | Command::KillInstance { .. }
            | Command::ReleaseInstance { .. } => {}
        }
    }

    fn apply(&mut self, write: &Write) {
        match write {
            Write::PutSession(record) => self.put_session(record),
            Write::PutRollout { agent, rollout } => {
                self.rollouts.insert(agent.clone(), rollout.clone());
            }
            // Numbers without a gap.
            Write::InsertUpload(record) => {
                let newest = self.uploads.entry(record.session.clone()).or_default();
                *newest += 1;
                assert_eq!(record.number, *newest, "{}", record.session);
            }
            Write::InsertCheckpoint { record, keep: _ } => {
                let row = &self.sessions[&record.session];
                assert_eq!(record.number, row.files.checkpoints + 1, "{}", record.session);
                assert_eq!(record.generation, row.generation, "only the newest life takes one");
            }
            Write::InsertMessage(record) => self.insert_message(record),
            Write::LeaseDelivery { turn, generation, at: _ } => {
                let kept = self.messages.get_mut(&turn.message).expect("leased, so it was stored");
                assert_eq!(kept.state, MessageState::Pending, "{turn}");
                assert_eq!(kept.attempts + 1, turn.attempt, "{turn}");
                kept.attempts = turn.attempt;
                kept.state = MessageState::Leased;
                kept.leased_to = Some(*generation);
                kept.not_before = None;
                self.check_order(turn.message);
            }
            Write::ReturnDelivery { message, excused, not_before } => {
                let kept = self.leased(*message);
                assert!(kept.excused <= *excused && *excused <= kept.attempts, "{message}");
                kept.state = MessageState::Pending;
                kept.excused = *excused;
                kept.leased_to = None;
                kept.not_before = *not_before;
            }
            Write::AnswerMessage { turn, generation, at: _, text, exit_code: _ } => {
                let kept = self.leased(turn.message);
                assert_eq!((kept.attempts, kept.leased_to), (turn.attempt, Some(*generation)));
                kept.end(MessageState::Answered);
                kept.reply = Some(text.clone());
            }
            Write::BuryMessage { message, cause, .. } => {
                let kept = self.messages.get_mut(message).expect("buried, so it was stored");
                kept.end(MessageState::Dead);
                kept.cause = Some(*cause);
            }
            Write::CancelMessage { message, .. } => {
                let kept = self.messages.get_mut(message).expect("cancelled, so it was stored");
                kept.end(MessageState::Cancelled);
            }
            Write::MarkRedriven { message, new_id } => {
                let kept = self.dead(*message);
                assert_eq!(kept.redriven_as.replace(*new_id), None, "{message} is redriven once");
            }
            Write::DropDeadLetter { message, .. } => self.dead(*message).was_dropped = true,
            Write::InsertExit(exit) => {
                let key = (exit.session.clone(), exit.generation);
                let before = self.exits.insert(key, exit.clone());
                assert_eq!(before, None, "an instance ends once");
            }
            Write::InsertDecision(decision) => self.insert_decision(decision),
        }
    }

    fn put_session(&mut self, record: &SessionRecord) {
        if let Some(before) = self.sessions.insert(record.id.clone(), record.clone()) {
            assert!(before.generation <= record.generation, "a generation only rises");
            assert_eq!(
                (before.subject, before.created_at),
                (record.subject.clone(), record.created_at),
                "whose it is and its beginning stay"
            );
        }
    }

    fn insert_message(&mut self, record: &MessageRecord) {
        let newest = self.messages.last_key_value().map(|newest| *newest.0);
        assert!(newest < Some(record.id), "the order of ids is the order of acceptance");
        let kept = Kept {
            record: record.clone(),
            state: MessageState::Pending,
            attempts: 0,
            excused: 0,
            leased_to: None,
            not_before: None,
            reply: None,
            cause: None,
            redriven_as: None,
            was_dropped: false,
        };
        self.messages.insert(record.id, kept);
    }

    /// A turn begins only when everything before it has ended, and no other turn runs.
    fn check_order(&self, message: MessageId) {
        let session = &self.messages[&message].record.session;
        let earlier = self.messages.range(..message);
        let unended = earlier
            .filter(|(_, kept)| kept.record.session == *session)
            .find(|(_, kept)| kept.delivery().is_some());
        assert!(unended.is_none(), "{message} overtakes {unended:?}");
    }

    fn insert_decision(&mut self, decision: &Decision) {
        let Decision { session, from, to, because, .. } = decision;
        let known = self.journal.insert(session.clone(), *to).unwrap_or(Phase::Asleep);
        assert_eq!(known, *from, "{session} goes on from where it was: {because}");
        assert!(from == to || from.may_become(*to), "{session}: {from} → {to}");
    }

    fn leased(&mut self, message: MessageId) -> &mut Kept {
        let kept = self.messages.get_mut(&message).expect("leased, so it was stored");
        assert_eq!(kept.state, MessageState::Leased, "{message}");
        kept
    }

    fn dead(&mut self, message: MessageId) -> &mut Kept {
        let kept = self.messages.get_mut(&message).expect("dead, so it was stored");
        assert_eq!(kept.state, MessageState::Dead, "{message}");
        kept
    }

    /// What a daemon finds of one session.
    pub(crate) fn stored(&self, session: &SessionId) -> Option<StoredSession> {
        let record = self.sessions.get(session)?.clone();
        let of_session = self.messages.values().filter(|kept| kept.record.session == *session);
        Some(StoredSession { record, deliveries: of_session.filter_map(Kept::delivery).collect() })
    }

    /// A new daemon's supervisor. Those that were not dormant are recovered, oldest message first.
    pub(crate) fn recover(
        &self,
        now: Now,
        node: NodePolicy,
        agents: BTreeMap<AgentName, AgentSetup>,
        effects: &mut Effects,
    ) -> Supervisor {
        let mut supervisor = Supervisor::new(node, agents, self.rollouts.clone());
        let mut awake: Vec<StoredSession> =
            self.sessions.keys().filter_map(|id| self.stored(id)).filter(is_needed).collect();
        let oldest = |stored: &StoredSession| stored.deliveries.first().map(|head| head.message);
        awake.sort_by_key(|stored| (oldest(stored).is_none(), oldest(stored)));
        for stored in awake {
            supervisor.recover(now, stored, effects);
        }
        supervisor
    }

    /// A daemon that came up now would know the same as the one that runs (FAULTS I22).
    pub(crate) fn check_rebuilt(
        &self,
        running: &Supervisor,
        now: Now,
        agents: &BTreeMap<AgentName, AgentSetup>,
    ) {
        let no_starts = NodePolicy { starts_at_once: 0, ..NodePolicy::default() };
        let rebuilt = self.recover(now, no_starts, agents.clone(), &mut Effects::default());
        for (id, record) in &self.sessions {
            let queue = Queue::restored(self.stored(id).expect("it has a row").deliveries);
            for supervisor in [running, &rebuilt] {
                match supervisor.session(id) {
                    Some(session) => {
                        assert_eq!(session.record(), *record, "{id}");
                        assert_eq!(*session.queue(), queue, "{id}");
                    }
                    None => assert!(
                        record.phase == Phase::Asleep && queue.is_empty() && !record.wake_wanted,
                        "{id} may not be forgotten: {record:?}"
                    ),
                }
            }
        }
        for (name, rollout) in running.rollouts() {
            let kept = self.rollouts.get(name);
            let first = Rollout::first(rollout.wanted);
            assert_eq!(kept.unwrap_or(&first), rollout, "{name}");
        }
        for session in running.sessions() {
            assert!(self.sessions.contains_key(session.id()), "{} has no row", session.id());
        }
    }

    /// What the engine looks up for a submission: the message that came under the same key before.
    pub(crate) fn prior(&self, subject: &Subject, key: &str) -> Option<PriorMessage> {
        self.messages.values().find_map(|kept| {
            let idempotency = kept.record.idempotency.as_ref()?;
            let is_same = kept.record.subject == *subject && idempotency.key == key;
            is_same.then(|| PriorMessage { id: kept.record.id, digest: idempotency.digest.clone() })
        })
    }

    /// What the engine looks up for a redrive.
    pub(crate) fn dead_letter(&self, message: MessageId) -> Option<DeadLetter> {
        let kept = self.messages.get(&message)?;
        self.is_dead(message).then(|| DeadLetter {
            id: message,
            session: kept.record.session.clone(),
            subject: kept.record.subject.clone(),
            text: kept.record.text.clone(),
            redriven_as: kept.redriven_as,
        })
    }

    pub(crate) fn is_dead(&self, message: MessageId) -> bool {
        let kept = self.messages.get(&message);
        kept.is_some_and(|kept| kept.state == MessageState::Dead && !kept.was_dropped)
    }
}

fn is_needed(stored: &StoredSession) -> bool {
    stored.record.phase != Phase::Asleep
        || stored.record.wake_wanted
        || !stored.deliveries.is_empty()
}

//! The model of the store: the core's writes as plain tables, with every rule that a write must
//! keep.
//!
//! ```text
//!  handle ─▶ working ──── commit ───▶ durable
//!               ▲                        │
//!               └──── crash, rollback ───┘   through the codec
//! ```
//!
//! Owner: `World`. `working` is what the open batch has made of `durable`; the engine reads it, as
//! a real engine reads its own open transaction. Invariants: terminal states are absorbing,
//! attempts count up, generations never go back; a write against these is a violation and not an
//! error to handle. Absent: SQL, files, fsync (the store's own tests have those), rows that age
//! out.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_core::command::Write;
use dormouse_core::event::{DeadLetter, PriorMessage};
use dormouse_core::id::{AgentName, Generation, InstanceId, MessageId, SessionId, Subject, TurnId};
use dormouse_core::journal::Decision;
use dormouse_core::limits;
use dormouse_core::manifest::ManifestDigest;
use dormouse_core::record::{
    CheckpointRecord, Delivery, ExitRecord, MessageRecord, MessageState, SessionRecord,
    StoredSession, UploadRecord,
};
use dormouse_core::rollout::Rollout;
use dormouse_core::session::phase::Phase;
use dormouse_core::time::Wall;

use crate::violation::{Checked, Invariant};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MessageRow {
    pub(crate) record: MessageRecord,
    pub(crate) state: MessageState,
    pub(crate) delivery: Delivery,
    /// The turn that answered it, its generation and text.
    pub(crate) answer: Option<(TurnId, Generation, String)>,
    pub(crate) redriven_as: Option<MessageId>,
    pub(crate) is_off_the_list: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    pub(crate) sessions: BTreeMap<SessionId, SessionRecord>,
    pub(crate) messages: BTreeMap<MessageId, MessageRow>,
    /// Pending and leased ones per session.
    queues: BTreeMap<SessionId, BTreeSet<MessageId>>,
    keys: BTreeMap<(Subject, String), MessageId>,
    pub(crate) exits: BTreeSet<InstanceId>,
    /// Rows of the journal per session.
    pub(crate) decisions: BTreeMap<SessionId, u64>,
    uploads: BTreeMap<SessionId, u64>,
    pub(crate) rollouts: BTreeMap<AgentName, Rollout>,
    pub(crate) checkpoints: BTreeMap<(SessionId, u64), ManifestDigest>,
    /// Since the last pass through the codec.
    fresh_exits: Vec<ExitRecord>,
    fresh_decisions: Vec<Decision>,
    fresh_messages: Vec<MessageId>,
}

impl Tables {
    pub(crate) fn apply(&mut self, write: &Write) -> Checked {
        match write {
            Write::PutSession(record) => self.put_session(record),
            Write::InsertMessage(record) => self.insert_message(record),
            Write::LeaseDelivery { turn, generation, at: _ } => self.lease(*turn, *generation),
            Write::ReturnDelivery { message, excused, not_before } => {
                let row = self.row(*message, &[MessageState::Leased])?;
                let delivery = &mut row.delivery;
                Invariant::BoundedAttempts
                    .check((delivery.excused..=delivery.attempts).contains(excused), || {
                        format!("{message}: {excused} excused attempts after {delivery:?}")
                    })?;
                delivery.excused = *excused;
                delivery.not_before = *not_before;
                delivery.leased_to = None;
                row.state = MessageState::Pending;
                Ok(())
            }
            Write::AnswerMessage { turn, generation, at: _, text, exit_code: _ } => {
                let row = self.row(turn.message, &[MessageState::Leased])?;
                let leased = (row.delivery.attempts, row.delivery.leased_to);
                Invariant::Conservation
                    .check(leased == (turn.attempt, Some(*generation)), || {
                        format!("{turn} of generation {generation} answered, leased is {leased:?}")
                    })?;
                row.answer = Some((*turn, *generation, text.clone()));
                self.end(turn.message, MessageState::Answered)
            }
            Write::BuryMessage { message, .. } => {
                self.row(*message, &[MessageState::Leased, MessageState::Pending])?;
                self.end(*message, MessageState::Dead)
            }
            Write::CancelMessage { message, .. } => {
                self.row(*message, &[MessageState::Pending])?;
                self.end(*message, MessageState::Cancelled)
            }
            Write::MarkRedriven { message, new_id } => {
                let row = self.row(*message, &[MessageState::Dead])?;
                let before = row.redriven_as.replace(*new_id);
                Invariant::Conservation
                    .check(before.is_none(), || format!("{message} was redriven twice"))
            }
            Write::DropDeadLetter { message, .. } => {
                self.row(*message, &[MessageState::Dead])?.is_off_the_list = true;
                Ok(())
            }
            Write::InsertUpload(record) => self.insert_upload(record),
            Write::InsertCheckpoint { record, keep } => self.insert_checkpoint(record, *keep),
            Write::InsertExit(exit) => self.insert_exit(exit),
            Write::PutRollout { agent, rollout } => {
                self.rollouts.insert(agent.clone(), rollout.clone());
                Ok(())
            }
            Write::InsertDecision(decision) => {
                let (from, to) = (decision.from, decision.to);
                Invariant::Cause.check(from == to || from.may_become(to), || {
                    format!("{}: decided to go from {from} to {to}", decision.session)
                })?;
                *self.decisions.entry(decision.session.clone()).or_default() += 1;
                self.fresh_decisions.push(decision.clone());
                Ok(())
            }
        }
    }

    fn insert_upload(&mut self, record: &UploadRecord) -> Checked {
        let newest = self.uploads.entry(record.session.clone()).or_default();
        *newest += 1;
        let (number, expected) = (record.number, *newest);
        Invariant::Conservation.check(number == expected, || {
            format!("upload {number} of {} is number {expected}", record.session)
        })
    }

    fn insert_checkpoint(&mut self, record: &CheckpointRecord, keep: u64) -> Checked {
        let session = record.session.clone();
        let before = self.checkpoints.insert((session.clone(), record.number), record.manifest);
        self.checkpoints.retain(|(of, number), _| *of != session || number + keep > record.number);
        Invariant::Conservation.check(before.is_none(), || {
            format!("checkpoint {} of {session} is there twice", record.number)
        })
    }

    fn put_session(&mut self, record: &SessionRecord) -> Checked {
        if let Some(before) = self.sessions.get(&record.id) {
            let is_later = before.generation <= record.generation;
            Invariant::OneLiveInstance.check(is_later, || {
                let (was, is) = (before.generation, record.generation);
                format!("{}: generation {was} became {is}", record.id)
            })?;
            let is_same =
                before.subject == record.subject && before.created_at == record.created_at;
            Invariant::Recovery
                .check(is_same, || format!("{}: its owner or birth changed", record.id))?;
        }
        self.sessions.insert(record.id.clone(), record.clone());
        Ok(())
    }

    fn insert_message(&mut self, record: &MessageRecord) -> Checked {
        let id = record.id;
        let newest = self.messages.last_key_value().map(|row| *row.0);
        Invariant::SessionOrder
            .check(newest.is_none_or(|newest| newest < id), || format!("{id} after {newest:?}"))?;
        let delivery = Delivery {
            message: id,
            bytes: u32::try_from(record.text.len()).expect("the simulated texts are short"),
            attempts: 0,
            excused: 0,
            leased_to: None,
            not_before: None,
        };
        if let Some(idempotency) = &record.idempotency {
            let claim = (record.subject.clone(), idempotency.key.clone());
            if let Some(prior) = self.keys.insert(claim, id) {
                let remembered = self.is_remembered(prior, record.accepted_at);
                Invariant::IdempotentAccept
                    .check(!remembered, || format!("{prior} and {id} have one key"))?;
            }
        }
        self.queues.entry(record.session.clone()).or_default().insert(id);
        self.fresh_messages.push(id);
        let row = MessageRow {
            record: record.clone(),
            state: MessageState::Pending,
            delivery,
            answer: None,
            redriven_as: None,
            is_off_the_list: false,
        };
        self.messages.insert(id, row);
        Ok(())
    }

    fn lease(&mut self, turn: TurnId, generation: Generation) -> Checked {
        let row = self.row(turn.message, &[MessageState::Pending])?;
        row.state = MessageState::Leased;
        row.delivery.attempts += 1;
        row.delivery.leased_to = Some(generation);
        row.delivery.not_before = None;
        let (attempts, session) = (row.delivery.attempts, row.record.session.clone());
        Invariant::BoundedAttempts
            .check(attempts == turn.attempt, || format!("{turn} is leased as {attempts}"))?;
        let head = self.queues.get(&session).and_then(BTreeSet::first).copied();
        Invariant::SessionOrder.check(head == Some(turn.message), || {
            format!("{turn} is leased while {head:?} is the head")
        })?;
        let newest = self.sessions.get(&session).map(|record| record.generation);
        Invariant::OneLiveInstance.check(newest == Some(generation), || {
            format!("{turn} is leased to {generation}, the newest is {newest:?}")
        })
    }

    fn insert_exit(&mut self, exit: &ExitRecord) -> Checked {
        let instance = InstanceId { session: exit.session.clone(), generation: exit.generation };
        let is_first = self.exits.insert(instance);
        self.fresh_exits.push(exit.clone());
        Invariant::Cause
            .check(is_first, || format!("{} #{} exited twice", exit.session, exit.generation))
    }

    /// A message that must be in one of `states`.
    fn row(&mut self, id: MessageId, states: &[MessageState]) -> Checked<&mut MessageRow> {
        match self.messages.get_mut(&id) {
            Some(row) if states.contains(&row.state) => Ok(row),
            Some(row) => Err(Invariant::Conservation
                .broken(format!("{id} is {:?}, and was written as one of {states:?}", row.state))),
            None => Err(Invariant::Conservation.broken(format!("{id} was never inserted"))),
        }
    }

    fn end(&mut self, id: MessageId, state: MessageState) -> Checked {
        let row = self.row(id, &[MessageState::Leased, MessageState::Pending])?;
        row.state = state;
        row.delivery.leased_to = None;
        let session = row.record.session.clone();
        self.queues.entry(session).or_default().remove(&id);
        Ok(())
    }

    fn is_remembered(&self, id: MessageId, now: Wall) -> bool {
        self.messages
            .get(&id)
            .is_some_and(|row| row.record.accepted_at.until(now) < limits::IDEMPOTENCY_WINDOW)
    }

    /// The message that this key stands for.
    pub(crate) fn prior(&self, subject: &Subject, key: &str, now: Wall) -> Option<PriorMessage> {
        let id = *self.keys.get(&(subject.clone(), key.to_owned()))?;
        let digest = self.messages.get(&id)?.record.idempotency.as_ref()?.digest.clone();
        self.is_remembered(id, now).then_some(PriorMessage { id, digest })
    }

    pub(crate) fn forget_keys(&mut self) {
        self.keys.clear();
    }

    pub(crate) fn forget_pauses(&mut self, now: Wall) {
        for record in self.sessions.values_mut() {
            record.backoff_until = record.backoff_until.map(|_| now);
        }
    }

    pub(crate) fn forget_wakes(&mut self) {
        self.sessions.values_mut().for_each(|record| record.wake_wanted = false);
    }

    /// A dead letter that is still on the list.
    pub(crate) fn dead_letter(&self, id: MessageId) -> Option<DeadLetter> {
        let row = self.messages.get(&id)?;
        let is_listed = row.state == MessageState::Dead && !row.is_off_the_list;
        is_listed.then(|| DeadLetter {
            id,
            session: row.record.session.clone(),
            subject: row.record.subject.clone(),
            text: row.record.text.clone(),
            redriven_as: row.redriven_as,
        })
    }

    pub(crate) fn queue(&self, session: &SessionId) -> impl Iterator<Item = &MessageRow> {
        let ids = self.queues.get(session).into_iter().flatten();
        ids.map(|id| self.messages.get(id).expect("the queue lists messages that are here"))
    }

    pub(crate) fn stored(&self, session: &SessionId) -> Option<StoredSession> {
        let record = self.sessions.get(session)?.clone();
        let deliveries = self.queue(session).map(|row| row.delivery).collect();
        Some(StoredSession { record, deliveries })
    }

    /// Those that need to be in memory.
    pub(crate) fn awake_sessions(&self) -> Vec<SessionId> {
        let is_wanted = |record: &&SessionRecord| {
            record.phase != Phase::Asleep
                || record.wake_wanted
                || self.queue(&record.id).next().is_some()
        };
        self.sessions.values().filter(is_wanted).map(|record| record.id.clone()).collect()
    }

    /// What a restart makes of the records: each is written out and read back.
    pub(crate) fn pass_through_codec(&mut self) -> Checked {
        for record in self.sessions.values_mut() {
            *record = recoded(record)?;
        }
        for rollout in self.rollouts.values_mut() {
            *rollout = recoded(rollout)?;
        }
        let queued: Vec<MessageId> = self.queues.values().flatten().copied().collect();
        for id in queued {
            let row = self.row(id, &[MessageState::Pending, MessageState::Leased])?;
            row.delivery = recoded(&row.delivery)?;
            row.state = recoded(&row.state)?;
        }
        for id in std::mem::take(&mut self.fresh_messages) {
            let row = self.messages.get_mut(&id).expect("fresh messages were inserted");
            row.record = recoded(&row.record)?;
        }
        for exit in std::mem::take(&mut self.fresh_exits) {
            recoded(&exit)?;
        }
        for decision in std::mem::take(&mut self.fresh_decisions) {
            recoded(&decision)?;
        }
        Ok(())
    }
}

fn recoded<T>(record: &T) -> Checked<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let lost = |error: String| Invariant::Recovery.broken(format!("{record:?}: {error}"));
    let text = serde_json::to_string(record).map_err(|error| lost(error.to_string()))?;
    let back: T = serde_json::from_str(&text).map_err(|error| lost(error.to_string()))?;
    if back == *record { Ok(back) } else { Err(lost(format!("came back as {back:?}"))) }
}

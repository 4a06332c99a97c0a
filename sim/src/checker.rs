//! The judge: what the daemon says and does, against what is on disk and what the agents really
//! did.
//!
//! Owner: `World`, which calls it after each commit, at each answer, notice and command, and
//! whenever an agent begins, says or ends something. Invariants: it never asks the core what it
//! thinks; it keeps its own books from what left the core and was committed. A violation names one
//! of the invariants of the design. Absent: phases, pauses and stops (`checker::sessions`); rules
//! that a single write breaks (`store`).

mod clocks;
mod files;
mod pauses;
mod revisions;
mod rollout;
mod sessions;
mod starts;

use std::collections::{BTreeMap, BTreeSet};

use dormouse_core::command::{Answer, News, Notice, Refusal, RequestOutcome};
use dormouse_core::event::TurnOutcome;
use dormouse_core::id::{AgentName, Generation, InstanceId, MessageId, SessionId, Subject, TurnId};
use dormouse_core::policy::NodePolicy;
use dormouse_core::record::MessageState;
use dormouse_core::supervisor::Supervisor;
use dormouse_core::time::Now;

use crate::clients::Asked;
use crate::engine::NewMessage;
use crate::store::{MessageRow, Tables};
use crate::swarm::Config;
use crate::violation::{Checked, Invariant};
use files::FilesBooks;
use revisions::RevisionBooks;
use sessions::Watch;

#[derive(Debug)]
pub(crate) struct Checker {
    node: NodePolicy,
    accepted: BTreeSet<MessageId>,
    turns: BTreeMap<TurnId, Said>,
    newest_executed: BTreeMap<SessionId, MessageId>,
    heard: BTreeMap<MessageId, Heard>,
    watches: BTreeMap<SessionId, Watch>,
    /// By agent: sessions whose start failed since one was ready.
    failed_starts: BTreeMap<AgentName, BTreeSet<SessionId>>,
    /// Starts of sessions that failed before, of this daemon.
    restarts: Vec<u64>,
    wall_clock_moves: u64,
    /// Sessions whose bridge has said all that it had to say.
    in_touch: BTreeSet<SessionId>,
    /// Steps that were committed.
    steps: u64,
    files: FilesBooks,
    revisions: RevisionBooks,
}

/// What an agent really said in a turn.
#[derive(Debug)]
struct Said {
    generation: Generation,
    text: String,
    outcome: Option<TurnOutcome>,
}

/// What a sender who listens has heard of a message.
#[derive(Debug, Default)]
struct Heard {
    epoch: u64,
    attempt: u32,
    bytes: u64,
    has_ended: bool,
}

impl Checker {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            node: config.node.clone(),
            accepted: BTreeSet::new(),
            turns: BTreeMap::new(),
            newest_executed: BTreeMap::new(),
            heard: BTreeMap::new(),
            watches: BTreeMap::new(),
            failed_starts: BTreeMap::new(),
            restarts: Vec::new(),
            wall_clock_moves: 0,
            in_touch: BTreeSet::new(),
            steps: 0,
            files: FilesBooks::default(),
            revisions: RevisionBooks::default(),
        }
    }

    /// A turn is about to be executed by an agent.
    pub(crate) fn executed(
        &mut self,
        turn: TurnId,
        instance: &InstanceId,
        durable: &Tables,
    ) -> Checked {
        let row = row(durable, turn.message, Invariant::BoundedAttempts)?;
        let leased = (row.state, row.delivery.attempts, row.delivery.leased_to);
        let wanted = (MessageState::Leased, turn.attempt, Some(instance.generation));
        Invariant::BoundedAttempts.check(leased == wanted, || {
            format!("{turn} reached {instance}, and on disk it is {leased:?}")
        })?;
        let head = durable.queue(&instance.session).next().map(|row| row.record.id);
        Invariant::SessionOrder.check(head == Some(turn.message), || {
            format!("{turn} reached {instance} while {head:?} is not done")
        })?;
        let newest = self.newest_executed.insert(instance.session.clone(), turn.message);
        Invariant::SessionOrder
            .check(newest.is_none_or(|newest| newest <= turn.message), || {
                format!("{turn} reached {instance} after {newest:?}")
            })?;
        let said = Said { generation: instance.generation, text: String::new(), outcome: None };
        let before = self.turns.insert(turn, said);
        Invariant::BoundedAttempts
            .check(before.is_none(), || format!("{turn} was executed twice, now by {instance}"))
    }

    /// The agent has said `text` so far.
    pub(crate) fn said(&mut self, turn: TurnId, text: &str) {
        if let Some(said) = self.turns.get_mut(&turn) {
            text.clone_into(&mut said.text);
        }
    }

    pub(crate) fn ended(&mut self, turn: TurnId, outcome: &TurnOutcome) {
        if let Some(said) = self.turns.get_mut(&turn) {
            said.outcome = Some(outcome.clone());
        }
    }

    /// The core claims that the agent ended this turn so.
    fn check_outcome(&self, turn: TurnId, generation: Generation, text: &str) -> Checked {
        let said = self.turns.get(&turn);
        let is_true = said.is_some_and(|said| {
            let answered = match &said.outcome {
                Some(TurnOutcome::Answered { text, .. }) => Some(text.as_str()),
                Some(TurnOutcome::Failed { .. }) | None => None,
            };
            said.generation == generation && answered == Some(text)
        });
        Invariant::ReplyIntegrity
            .check(is_true, || format!("{turn} is answered with {text:?}; the agent: {said:?}"))
    }

    pub(crate) fn answered(&mut self, asked: &Asked, answer: &Answer, durable: &Tables) -> Checked {
        let is_honest = match (asked, answer) {
            (Asked::Submit { new, .. }, Answer::Accepted { message, .. }) => {
                let row = row(durable, *message, Invariant::DurableAccept)?;
                let is_first = self.accepted.insert(*message);
                is_first && is_row_of(row, new)
            }
            (Asked::Submit { new, .. }, Answer::Duplicate { message }) => {
                let row = row(durable, *message, Invariant::DurableAccept)?;
                row.record.idempotency.is_some() && row.record.idempotency == new.idempotency
            }
            (Asked::Submit { new, .. }, Answer::Refused(refusal)) => {
                self.is_honest_refusal(new, refusal, durable)
            }
            (Asked::Redrive { dead }, Answer::Accepted { message, .. }) => {
                let row = row(durable, *message, Invariant::DurableAccept)?;
                let dead_row = durable.messages.get(dead);
                self.accepted.insert(*message)
                    && row.record.redrive_of == Some(*dead)
                    && dead_row.is_some_and(|dead| dead.redriven_as == Some(*message))
            }
            (Asked::Redrive { dead }, Answer::Duplicate { message }) => {
                durable.messages.get(dead).is_some_and(|row| row.redriven_as == Some(*message))
            }
            (Asked::Redrive { .. }, Answer::Refused(_)) => true,
            (Asked::Drop { message }, Answer::Requested(outcome)) => {
                let row = row(durable, *message, Invariant::DurableAccept)?;
                is_honest_drop(row, *outcome)
            }
            (Asked::Session, Answer::Requested(_)) => true,
            (Asked::Session, Answer::Refused(refusal)) => *refusal == Refusal::UnknownAgent,
            (Asked::Drop { .. }, Answer::Refused(refusal)) => *refusal == Refusal::UnknownAgent,
            (Asked::Configure, Answer::Configured) => true,
            (Asked::Steer { agent }, Answer::Requested(outcome)) => {
                let is_denied = matches!(outcome, RequestOutcome::Denied(_));
                self.may_be_configured(agent.as_str(), !is_denied)
            }
            (Asked::Upload, Answer::Uploaded { .. }) => true,
            (Asked::Upload, Answer::Refused(refusal)) => {
                matches!(refusal, Refusal::UnknownAgent | Refusal::NotYourSession)
            }
            (Asked::Offer, Answer::CheckpointMade { .. }) => true,
            (Asked::Offer, Answer::Refused(refusal)) => {
                matches!(refusal, Refusal::PastLife | Refusal::OtherLineage | Refusal::NotWhole)
            }
            (Asked::Submit { .. } | Asked::Redrive { .. }, Answer::Requested(_))
            | (
                Asked::Session | Asked::Drop { .. },
                Answer::Accepted { .. } | Answer::Duplicate { .. },
            )
            | (_, Answer::Uploaded { .. } | Answer::CheckpointMade { .. } | Answer::Configured)
            | (Asked::Upload | Asked::Offer | Asked::Configure | Asked::Steer { .. }, _) => false,
        };
        Invariant::HonestAnswer.check(is_honest, || format!("{asked:?} was answered {answer:?}"))
    }

    fn is_honest_refusal(&self, new: &NewMessage, refusal: &Refusal, durable: &Tables) -> bool {
        match refusal {
            Refusal::UnknownAgent => self.may_be_configured(new.session.agent(), false),
            Refusal::NotYourSession => {
                let owner = durable.sessions.get(&new.session).map(|record| &record.subject);
                !new.is_operator && owner.is_some_and(|owner| *owner != new.subject)
            }
            Refusal::IdempotencyConflict { message } => {
                let row = durable.messages.get(message);
                let prior = row.and_then(|row| row.record.idempotency.as_ref());
                prior
                    .zip(new.idempotency.as_ref())
                    .is_some_and(|(prior, now)| prior.key == now.key && prior.digest != now.digest)
            }
            Refusal::PastLife | Refusal::OtherLineage | Refusal::NotWhole => false,
            Refusal::QueueFull { messages, bytes } => {
                let bytes = bytes + new.text.len() as u64;
                *messages >= self.node.queue_messages_max || bytes > self.node.queue_bytes_max
            }
        }
    }

    /// A sender who listens to a message hears this.
    pub(crate) fn noticed(&mut self, notice: &Notice, durable: &Tables, epoch: u64) -> Checked {
        let id = notice.message;
        let row = row(durable, id, Invariant::HonestAnswer)?;
        let heard = self.heard.entry(id).or_default();
        Invariant::OneOutcome.check(!heard.has_ended, || {
            format!("after the last word of {id}: {:?}", notice.news)
        })?;
        if heard.epoch != epoch {
            (heard.epoch, heard.bytes) = (epoch, 0);
        }
        let end = match &notice.news {
            News::Delta { attempt, offset, text } => {
                let turn = TurnId { message: id, attempt: *attempt };
                return heard_piece(heard, self.turns.get(&turn), turn, *offset, text);
            }
            News::Answered { attempt, text, .. } => {
                let turn = TurnId { message: id, attempt: *attempt };
                let answer = row.answer.as_ref().map(|(turn, _, text)| (*turn, text));
                Invariant::ReplyIntegrity.check(answer == Some((turn, text)), || {
                    format!("{turn} is said to be answered {text:?}, on disk is {answer:?}")
                })?;
                MessageState::Answered
            }
            News::Dead { .. } => MessageState::Dead,
            News::Cancelled => MessageState::Cancelled,
            News::Queued { .. }
            | News::Waking { .. }
            | News::InLine { .. }
            | News::Syncing { .. }
            | News::Delivered { .. }
            | News::Slow { .. }
            | News::Retrying { .. }
            | News::WaitingToRestart { .. }
            | News::DaemonEnding => return Ok(()),
        };
        heard.has_ended = true;
        Invariant::OneOutcome.check(row.state == end, || {
            format!("{id} is said to be {end:?}, on disk it is {:?}", row.state)
        })
    }

    /// The bridge is told that it may forget the result.
    pub(crate) fn acknowledged(&self, turn: TurnId, durable: &Tables) -> Checked {
        let row = row(durable, turn.message, Invariant::BoundedAttempts)?;
        let is_open = row.state == MessageState::Leased && row.delivery.attempts == turn.attempt;
        Invariant::DurableAccept
            .check(!is_open, || format!("{turn} is acknowledged, and on disk it still runs"))
    }

    /// After a commit: what the core has in memory is what is on disk, session by session.
    pub(crate) fn compare(
        &self,
        running: &Supervisor,
        durable: &Tables,
        only: Option<&BTreeSet<SessionId>>,
        now: Option<Now>,
    ) -> Checked {
        let Some(now) = now else { return Ok(()) };
        let mut fresh = self.rebuilt_supervisor(durable);
        self.compare_rollouts(running, &fresh, durable)?;
        let ids: Vec<&SessionId> = match only {
            Some(ids) => ids.iter().collect(),
            None => durable.sessions.keys().collect(),
        };
        let wanted = durable.awake_sessions();
        for id in ids {
            self.check_books(id, durable)?;
            let is_wanted = wanted.contains(id);
            Invariant::Recovery.check(running.is_loaded(id) == is_wanted, || {
                format!("{id} is loaded: {}, by its records: {is_wanted}", running.is_loaded(id))
            })?;
            let (Some(session), Some(stored)) = (running.session(id), durable.stored(id)) else {
                continue;
            };
            Invariant::Recovery.check(session.record() == stored.record, || {
                format!("running {:?}, on disk {:?}", session.record(), stored.record)
            })?;
            fresh.load(now, stored);
            let again = fresh.session(id).expect("the session was just loaded");
            let is_same = again.queue() == session.queue()
                && again.turn() == session.turn()
                && again.record() == session.record();
            Invariant::Recovery.check(is_same, || {
                format!("running {:?}, loaded anew {:?}", session.queue(), again.queue())
            })?;
        }
        Ok(())
    }

    /// Everything has ended: the books are closed.
    pub(crate) fn check_end(&self, durable: &Tables) -> Checked {
        for id in durable.sessions.keys() {
            self.check_books(id, durable)?;
        }
        self.check_wakes()?;
        for id in &self.accepted {
            let row = row(durable, *id, Invariant::DurableAccept)?;
            let has_ended = !matches!(row.state, MessageState::Pending | MessageState::Leased);
            Invariant::Liveness.check(has_ended, || format!("{id} is {:?}", row.state))?;
        }
        let mut by_key: BTreeMap<(&Subject, &str), &MessageRow> = BTreeMap::new();
        for row in durable.messages.values() {
            let Some(claim) = &row.record.idempotency else { continue };
            if let Some(prior) = by_key.insert((&row.record.subject, &claim.key), row) {
                let age = prior.record.accepted_at.until(row.record.accepted_at);
                let day = std::time::Duration::from_secs(24 * 60 * 60);
                Invariant::IdempotentAccept.check(age >= day, || {
                    format!("{} and {} have one key", prior.record.id, row.record.id)
                })?;
            }
        }
        Ok(())
    }
}

fn row(durable: &Tables, id: MessageId, or_else: Invariant) -> Checked<&MessageRow> {
    durable.messages.get(&id).ok_or_else(|| or_else.broken(format!("{id} is not on disk")))
}

fn is_row_of(row: &MessageRow, new: &NewMessage) -> bool {
    let record = &row.record;
    record.session == new.session
        && record.subject == new.subject
        && record.text == new.text
        && record.idempotency == new.idempotency
}

fn is_honest_drop(row: &MessageRow, outcome: RequestOutcome) -> bool {
    match outcome {
        RequestOutcome::Accepted { .. } => {
            row.state == MessageState::Cancelled || row.is_off_the_list
        }
        RequestOutcome::Ignored(_) => {
            !matches!(row.state, MessageState::Pending | MessageState::Leased)
        }
        RequestOutcome::Denied(_) => true,
    }
}

/// A piece of a reply joins what was heard before, and is what the agent said there.
fn heard_piece(
    heard: &mut Heard,
    said: Option<&Said>,
    turn: TurnId,
    offset: u64,
    text: &str,
) -> Checked {
    if turn.attempt > heard.attempt {
        (heard.attempt, heard.bytes) = (turn.attempt, 0);
    }
    let joins = turn.attempt == heard.attempt && offset == heard.bytes && !text.is_empty();
    Invariant::ReplyIntegrity.check(joins, || {
        format!("{turn}: a piece at {offset} after {} bytes of {}", heard.bytes, heard.attempt)
    })?;
    let end = offset + text.len() as u64;
    heard.bytes = end;
    let place = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
    let truth = said.zip(place).and_then(|(said, (start, end))| said.text.get(start..end));
    Invariant::ReplyIntegrity
        .check(truth == Some(text), || format!("{turn}: heard {text:?}, the agent said {truth:?}"))
}

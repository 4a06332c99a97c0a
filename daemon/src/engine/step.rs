//! What one batch does with an event or a request, inside of its transaction.
//!
//! Owner: the engine, for as long as a batch is built. Invariant: a write is applied to the open
//! transaction before the next event is handled. Absent: the commit, and what follows it.

use dormouse_core::command::{Command, Write};
use dormouse_core::event::{Event, RolloutRequest, Submission};
use dormouse_core::id::{AgentName, MessageId, RequestId, SessionId, Subject};
use dormouse_core::supervisor::Supervisor;
use dormouse_core::time::Now;
use dormouse_store::Batch;

use crate::engine::EngineError;
use crate::engine::mint::Mint;
use crate::engine::pending::Pending;
use crate::engine::request::{Ask, ConfigChange, KeyChange, Reply, Request, Verdict};
use crate::in_force::InForce;

/// The loop's hands on one batch.
pub(super) struct Step<'a, 'store> {
    pub(super) now: Now,
    pub(super) in_force: &'a InForce,
    pub(super) supervisor: &'a mut Supervisor,
    pub(super) mint: &'a mut Mint,
    pub(super) next_request: &'a mut u64,
    pub(super) batch: &'a mut Batch<'store>,
    pub(super) pending: &'a mut Pending,
}

impl Step<'_, '_> {
    pub(super) fn handle(&mut self, event: Event) -> Result<(), EngineError> {
        if let Some(id) = event.session()
            && !self.supervisor.is_loaded(id)
            && let Some(stored) = self.batch.session(id).map_err(EngineError::Read)?
        {
            self.supervisor.load(self.now, stored);
        }
        let commands_before = self.pending.effects.commands.len();
        self.supervisor.handle(self.now, event, &mut self.pending.effects);
        // Applied at once, so that the next event of this batch sees them in the open transaction.
        apply_all(self.batch, self.pending)?;
        self.add_texts(commands_before)
    }

    fn add_texts(&mut self, commands_before: usize) -> Result<(), EngineError> {
        for command in &self.pending.effects.commands[commands_before..] {
            if let Command::DeliverTurn { turn, .. } = command {
                let text = self.batch.message_text(turn.message).map_err(EngineError::Read)?;
                let text = text.expect("a delivered message is in the store");
                self.pending.texts.insert(*turn, text);
            }
        }
        Ok(())
    }

    pub(super) fn request(&mut self, request: Request, has_room: bool) -> Result<(), EngineError> {
        match request {
            // The engine itself heeds these.
            Request::Drain { .. } | Request::End => Ok(()),
            Request::Key { change, reply } => self.key_change(change, reply),
            Request::Explain { session, reply } => {
                let verdict = self.explain(&session);
                self.pending.replies.push((reply, verdict));
                Ok(())
            }
            Request::Submit { mut submission, ask } => {
                if !has_room {
                    self.pending.replies.push((ask.reply, Verdict::StoreFull));
                    return Ok(());
                }
                submission.prior = self.prior(&submission)?;
                submission.id = self.mint.message(self.now.wall);
                let request = self.remember(ask);
                self.handle(Event::MessageSubmitted { request, submission })
            }
            Request::Session { session, what, by, ask } => {
                let request = self.remember(ask);
                self.handle(Event::SessionRequested { request, session, what, by })
            }
            Request::Upload { ask, .. } | Request::Checkpoint { ask, .. } if !has_room => {
                self.pending.replies.push((ask.reply, Verdict::StoreFull));
                Ok(())
            }
            Request::Upload { upload, ask } => {
                let request = self.remember(ask);
                self.handle(Event::UploadSubmitted { request, upload })
            }
            Request::Checkpoint { instance, offer, ask } => {
                let request = self.remember(ask);
                self.handle(Event::CheckpointOffered { request, instance, offer })
            }
            Request::Restore { session, checkpoint, by, ask } => {
                let request = self.remember(ask);
                self.handle(Event::RestoreRequested { request, session, checkpoint, by })
            }
            Request::Rollout { agent, what, by, ask } => self.steer_rollout(agent, what, by, ask),
            // Whatever the floor: it may be what is to be changed.
            Request::Configure { change, ask } => self.configure(*change, ask),
            Request::Redrive { message, by, ask } => self.redrive(message, by, ask, has_room),
            Request::Drop { session, message, is_dead, by, ask } => {
                let request = self.remember(ask);
                self.handle(Event::DropRequested { request, session, message, is_dead, by })
            }
        }
    }

    /// Kept, and in force with the commit.
    fn configure(&mut self, change: ConfigChange, ask: Ask) -> Result<(), EngineError> {
        let ConfigChange { current, revisions } = change;
        for revision in &revisions {
            self.batch.insert_revision(revision).map_err(EngineError::Apply)?;
        }
        self.batch.insert_config(&current.record()).map_err(EngineError::Apply)?;
        let (request, setup) = (self.remember(ask), Box::new(current.setup()));
        self.handle(Event::Configured { request, setup })?;
        self.ask_canaries(&current, &format!("config {}", current.number))?;
        self.pending.config = Some(Box::new(current));
        Ok(())
    }

    /// Who lets a revision go on, or wants it tried again, wants its canary asked.
    fn steer_rollout(
        &mut self,
        agent: AgentName,
        what: RolloutRequest,
        by: Subject,
        ask: Ask,
    ) -> Result<(), EngineError> {
        let request = self.remember(ask);
        self.handle(Event::RolloutRequested { request, agent, what, by })?;
        match what {
            RolloutRequest::Resume | RolloutRequest::Retry => {
                let current = self.in_force.now();
                self.ask_canaries(&current, &format!("at {} ms", self.now.wall.0))
            }
            RolloutRequest::Pause | RolloutRequest::Abort => Ok(()),
        }
    }

    fn explain(&self, session: &SessionId) -> Verdict {
        let Some(session) = self.supervisor.session(session) else { return Verdict::NotFound };
        let holds = session.holds(self.now.monotonic).map(str::to_owned).collect();
        Verdict::Explained { turn: session.turn(), holds }
    }

    pub(super) fn prior(
        &mut self,
        submission: &Submission,
    ) -> Result<Option<dormouse_core::event::PriorMessage>, EngineError> {
        let Some(idempotency) = &submission.idempotency else { return Ok(None) };
        self.batch.find_prior(&submission.subject, &idempotency.key).map_err(EngineError::Read)
    }

    fn redrive(
        &mut self,
        message: MessageId,
        by: Subject,
        ask: Ask,
        has_room: bool,
    ) -> Result<(), EngineError> {
        if !has_room {
            self.pending.replies.push((ask.reply, Verdict::StoreFull));
            return Ok(());
        }
        let Some(dead) = self.batch.dead_letter(message).map_err(EngineError::Read)? else {
            self.pending.replies.push((ask.reply, Verdict::NotFound));
            return Ok(());
        };
        let new_id = self.mint.message(self.now.wall);
        let request = self.remember(ask);
        self.handle(Event::RedriveRequested { request, dead, new_id, by })
    }

    fn key_change(&mut self, change: KeyChange, reply: Reply) -> Result<(), EngineError> {
        let done = match change {
            KeyChange::Insert(key) => {
                self.batch.insert_key(&key).map_err(EngineError::Apply)?;
                true
            }
            KeyChange::Revoke(id) => {
                self.batch.revoke_key(&id, self.now.wall).map_err(EngineError::Apply)?
            }
        };
        let verdict = if done { Verdict::Done } else { Verdict::NotFound };
        self.pending.replies.push((reply, verdict));
        Ok(())
    }

    pub(super) fn remember(&mut self, ask: Ask) -> RequestId {
        *self.next_request += 1;
        let request = RequestId(*self.next_request);
        self.pending.waiting.insert(request, ask);
        request
    }
}

/// Sessions come first: where a message is there before the row of its session, SQLite looks
/// through all messages for more of that session as the row comes.
pub(super) fn apply_all(batch: &mut Batch<'_>, pending: &mut Pending) -> Result<(), EngineError> {
    let Pending { effects, outcomes, .. } = pending;
    effects.writes.iter().for_each(|write| outcomes.note(write));
    let is_session = |write: &&Write| matches!(write, Write::PutSession(_));
    let sessions = effects.writes.iter().filter(is_session);
    let others = effects.writes.iter().filter(|write| !is_session(write));
    for write in sessions.chain(others) {
        batch.apply(write).map_err(EngineError::Apply)?;
    }
    effects.writes.clear();
    Ok(())
}

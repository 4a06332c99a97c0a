//! Messages in, turns, replies out.
//!
//! Owner: `Session`. Invariants: a turn starts only on a ready, attached instance in `Awake`, one
//! at a time, head first; its attempt is written in the batch whose commit precedes its delivery;
//! reply and queue acknowledgement are one write.
//! Absent: what an exit means for a running turn (`exit`).

use std::time::Duration;

use crate::backoff;
use crate::cause::Cause;
use crate::command::{
    Answer, Command, DeniedBecause, IgnoredBecause, News, Refusal, RequestOutcome, Write,
};
use crate::event::{Attachment, DeadLetter, Submission, TurnOutcome};
use crate::hold::Taken;
use crate::id::{MessageId, RequestId, Subject, TurnId};
use crate::journal::{Because, RevisionChange, count};
use crate::limits;
use crate::policy::RetrySafety;
use crate::queue::AfterFailure;
use crate::record::{MessageRecord, StopReason};
use crate::session::phase::Phase;
use crate::session::{Context, Session, Turn};
use crate::time::{Monotonic, millis};
use crate::watchdog::Verdict;

impl Session {
    pub(super) fn submit(&mut self, request: RequestId, new: Submission, ctx: &mut Context<'_>) {
        if let Some(refusal) = self.refusal(&new, ctx) {
            ctx.effects.answer(request, Answer::Refused(refusal));
            return;
        }
        if let Some(prior) = new.prior {
            ctx.effects.answer(request, Answer::Duplicate { message: prior.id });
            return;
        }
        let attachments = new.attachments;
        let record = MessageRecord {
            id: new.id,
            session: new.session,
            subject: new.subject,
            text: new.text,
            accepted_at: ctx.now.wall,
            idempotency: new.idempotency,
            redrive_of: None,
        };
        self.accept(request, record, attachments, ctx);
    }

    fn refusal(&self, new: &Submission, ctx: &Context<'_>) -> Option<Refusal> {
        if new.subject != self.subject && !new.is_operator {
            return Some(Refusal::NotYourSession);
        }
        match (&new.prior, &new.idempotency) {
            (Some(prior), Some(now)) if prior.digest == now.digest => None,
            (Some(prior), _) => Some(Refusal::IdempotencyConflict { message: prior.id }),
            (None, _) if !ctx.is_configured => Some(Refusal::UnknownAgent),
            (None, _) => None,
        }
    }

    /// Queues and answers; returns whether there was room.
    fn accept(
        &mut self,
        request: RequestId,
        record: MessageRecord,
        attachments: Vec<Attachment>,
        ctx: &mut Context<'_>,
    ) -> bool {
        let message = record.id;
        let sender = record.subject.clone();
        let bytes = u32::try_from(record.text.len()).expect("the gate bounds a message's size");
        let (messages_max, bytes_max) = (ctx.node.queue_messages_max, ctx.node.queue_bytes_max);
        match self.queue.accept(message, bytes, messages_max, bytes_max) {
            Err(full) => {
                let refusal = Refusal::QueueFull { messages: full.messages, bytes: full.bytes };
                ctx.effects.answer(request, Answer::Refused(refusal));
                false
            }
            Ok(position) => {
                self.dirty |= !self.is_stored;
                ctx.effects.write(Write::InsertMessage(record));
                ctx.effects.answer(request, Answer::Accepted { message, position });
                for Attachment { path, file } in attachments {
                    self.keep_upload(path, Some(file), sender.clone(), ctx);
                }
                self.arrived(message, position, ctx);
                true
            }
        }
    }

    fn arrived(&mut self, message: MessageId, position: usize, ctx: &mut Context<'_>) {
        if self.phase == Phase::Awake {
            self.touch(ctx.now.monotonic);
        }
        if ctx.is_draining {
            ctx.effects.tell(message, News::DaemonEnding);
            return;
        }
        match self.phase {
            // The supervisor starts it, or puts it in line, and says so.
            Phase::Asleep => {}
            Phase::Starting => {
                let estimate = self.start_took.or(ctx.start_estimate);
                ctx.effects.tell(message, News::Waking { estimate });
            }
            Phase::Awake => {
                if position > 0 {
                    ctx.effects.tell(message, News::Queued { ahead: position });
                }
                self.deliver_next(ctx);
            }
            Phase::Draining | Phase::Stopping => {
                ctx.effects.tell(message, News::Queued { ahead: position });
            }
            Phase::Backoff | Phase::Tripped => {
                let due = self.backoff.expect("backoff has an end");
                ctx.effects.tell(message, self.waiting_to_restart(due));
            }
        }
    }

    /// Hands the head to the agent, if all that a turn needs is there.
    pub(super) fn deliver_next(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        if ctx.is_draining {
            // The store keeps when the next try is due; here nobody is to be woken for it.
            self.retry.take_if(|at| now >= *at);
            return;
        }
        let instance = self.instance();
        let is_free = self.phase == Phase::Awake
            && instance.link.is_attached()
            && instance.turn.is_none()
            && self.retry.is_none_or(|at| now >= at);
        let may_begin = is_free && !self.queue.is_empty() && !self.makes_place(ctx);
        if !may_begin || !self.files_are_in_place(ctx) {
            return;
        }
        self.use_files(ctx);
        let generation = self.generation;
        let turn = self.queue.lease_head(generation).expect("the queue is not empty");
        self.retry = None;
        self.instance_mut().turn = Some(Turn::new(turn, now, Some(ctx.policy)));
        ctx.effects.write(Write::LeaseDelivery { turn, generation, at: ctx.now.wall });
        self.note(Because::TurnStarted { turn }, ctx);
        ctx.effects.command(Command::DeliverTurn { instance: self.instance_id(), turn });
        ctx.effects.tell(turn.message, News::Delivered { attempt: turn.attempt });
    }

    pub(super) fn turn_progressed(
        &mut self,
        turn: TurnId,
        offset: u64,
        text: String,
        ctx: &mut Context<'_>,
    ) {
        let now = ctx.now.monotonic;
        let instance = self.instance_mut();
        let Some(running) = instance.turn.as_mut().filter(|running| running.id == turn) else {
            ctx.effects.stale += 1;
            return;
        };
        running.clock.progress(now);
        running.slow_was_told = false;
        instance.last_activity = now;
        let Some(fresh) = fresh_part(running.bytes, offset, text) else {
            ctx.effects.stale += 1;
            return;
        };
        if fresh.is_empty() {
            return;
        }
        let offset = running.bytes;
        running.bytes += fresh.len() as u64;
        ctx.effects.tell(turn.message, News::Delta { attempt: turn.attempt, offset, text: fresh });
    }

    pub(super) fn turn_ended(&mut self, turn: TurnId, outcome: TurnOutcome, ctx: &mut Context<'_>) {
        // Whatever it is, the bridge may forget it: this batch settles it, or an earlier one has.
        ctx.effects.command(Command::AcknowledgeTurn { instance: self.instance_id(), turn });
        let now = ctx.now.monotonic;
        let instance = self.instance_mut();
        let Some(running) = instance.turn.take_if(|running| running.id == turn) else {
            ctx.effects.stale += 1;
            return;
        };
        instance.last_activity = now;
        let took = now.since(running.clock.started_at());
        let failed_trial = self.turn_ended_in_trial(&outcome, ctx);
        let has_outgrown_it = match outcome {
            TurnOutcome::Answered { text, exit_code } => {
                self.answered(turn, text, exit_code, took, ctx);
                false
            }
            TurnOutcome::Failed { cause, message, .. } if failed_trial && ctx.canary.is_none() => {
                self.note_failure(turn, cause, &message, Some(ctx.now.wall), ctx);
                self.attempt_was_cut_short(turn, cause, None, ctx);
                false
            }
            TurnOutcome::Failed { cause, message, retryable, exit_code } => {
                self.turn_failed(turn, cause, message, retryable, exit_code, ctx)
            }
        };
        match self.phase {
            Phase::Awake if failed_trial => {
                let change = RevisionChange::Outdated { revision: ctx.revision };
                let because = Because::Revision { change };
                self.begin_stop(StopReason::Revision, because, ctx);
            }
            Phase::Awake if has_outgrown_it => {
                self.begin_stop(StopReason::Resize, Because::MemoryOutgrown, ctx);
            }
            Phase::Awake => self.deliver_next(ctx),
            Phase::Draining => {
                let reason = self.drain_reason();
                self.begin_stop(reason, Because::DrainFinished, ctx);
            }
            Phase::Stopping => {}
            Phase::Asleep | Phase::Starting | Phase::Backoff | Phase::Tripped => {
                unreachable!("{}: {turn} ran while {}", self.id, self.phase)
            }
        }
    }

    fn answered(
        &mut self,
        turn: TurnId,
        text: String,
        exit_code: Option<i32>,
        took: Duration,
        ctx: &mut Context<'_>,
    ) {
        self.queue.finish(turn);
        if self.failures > 0 {
            self.failures = 0;
            self.last_failure = None;
            self.dirty = true;
        }
        let bytes = text.len() as u64;
        let generation = self.generation;
        let (attempt, at) = (turn.attempt, ctx.now.wall);
        ctx.effects.tell(turn.message, News::Answered { attempt, text: text.clone(), exit_code });
        ctx.effects.write(Write::AnswerMessage { turn, generation, at, text, exit_code });
        self.note(Because::TurnAnswered { turn, took_ms: millis(took), bytes }, ctx);
    }

    /// The agent lives and says that this turn failed. `true`: the next instance has more memory.
    fn turn_failed(
        &mut self,
        turn: TurnId,
        cause: Cause,
        message: String,
        retryable: bool,
        exit_code: Option<i32>,
        ctx: &mut Context<'_>,
    ) -> bool {
        let has_more_memory = self.size_after_turn(cause, ctx);
        let may_repeat = retryable && ctx.policy.retry == RetrySafety::Safe;
        if !may_repeat {
            self.queue.finish(turn);
            self.note_failure(turn, cause, &message, None, ctx);
            self.bury(turn, cause, message, exit_code, ctx);
            return has_more_memory;
        }
        if has_more_memory {
            self.note_failure(turn, cause, &message, Some(ctx.now.wall), ctx);
            self.attempt_was_cut_short(turn, cause, None, ctx);
            return true;
        }
        let pause = backoff::pause_after(turn.attempt.saturating_add(1), &self.id);
        let retry_at = ctx.now.wall + pause;
        match self.queue.fail(turn, ctx.policy.attempts, Some(retry_at)) {
            AfterFailure::Exhausted { attempts } => {
                self.note_failure(turn, cause, &message, None, ctx);
                let detail = last_of(attempts, &message);
                self.bury(turn, Cause::AttemptsExhausted, detail, exit_code, ctx);
            }
            AfterFailure::Again { attempts, excused } => {
                self.retry = Some(ctx.now.monotonic + pause);
                self.note_failure(turn, cause, &message, Some(retry_at), ctx);
                let not_before = Some(retry_at);
                ctx.effects.write(Write::ReturnDelivery {
                    message: turn.message,
                    excused,
                    not_before,
                });
                let next = News::Retrying { attempt: attempts + 1, at: retry_at, cause };
                ctx.effects.tell(turn.message, next);
            }
        }
        false
    }

    fn note_failure(
        &mut self,
        turn: TurnId,
        cause: Cause,
        message: &str,
        retry_at: Option<crate::time::Wall>,
        ctx: &mut Context<'_>,
    ) {
        let message = excerpt(message);
        self.note(Because::TurnFailed { turn, cause, message, retry_at }, ctx);
    }

    /// Dead-letters a message that was taken out of the queue.
    pub(super) fn bury(
        &mut self,
        turn: TurnId,
        cause: Cause,
        detail: String,
        exit_code: Option<i32>,
        ctx: &mut Context<'_>,
    ) {
        let (message, attempts) = (turn.message, turn.attempt);
        self.note(Because::MessageBuried { message, cause, attempts }, ctx);
        ctx.effects.tell(message, News::Dead { cause, detail: detail.clone() });
        let at = ctx.now.wall;
        ctx.effects.write(Write::BuryMessage { message, at, cause, detail, exit_code });
    }

    pub(super) fn hold_taken(&mut self, name: &str, lasts: Duration, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        let instance = self.instance_mut();
        instance.last_activity = now;
        if let Some(turn) = instance.turn.as_mut() {
            turn.clock.progress(now);
        }
        match instance.holds.take(now, name, lasts) {
            Taken::New { lasts } => {
                let because = Because::HoldTaken { name: name.to_owned(), for_ms: millis(lasts) };
                self.note(because, ctx);
            }
            Taken::Renewed => {}
            Taken::Refused => ctx.effects.stale += 1,
        }
    }

    /// A deadline in `Awake`: whichever of its clocks is due.
    pub(super) fn awake_deadline(&mut self, ctx: &mut Context<'_>) {
        if self.give_up_bridge(ctx) {
            return;
        }
        if self.turn().is_some() {
            self.turn_deadline(ctx);
        } else if self.queue.is_empty() {
            self.idle_deadline(ctx);
        } else if !self.give_up_files(ctx) {
            self.deliver_next(ctx);
        }
    }

    fn turn_deadline(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        let instance = self.instance_mut();
        let held_until = instance.silent_until(now, ctx.policy);
        let turn = instance.turn.as_mut().expect("called while a turn runs");
        let id = turn.id;
        let limits = turn.limits(ctx.policy);
        match turn.clock.verdict(now, limits, held_until) {
            Verdict::Fine => {}
            Verdict::Slow { silent } => {
                if !std::mem::replace(&mut turn.slow_was_told, true) {
                    ctx.effects.tell(id.message, News::Slow { silent });
                }
            }
            Verdict::Stuck { silent } => {
                let because = Because::TurnStuck { turn: id, silent_ms: millis(silent) };
                self.begin_stop(StopReason::TurnStuck, because, ctx);
            }
            Verdict::TooLong => {
                let within_ms = millis(limits.whole_within);
                let because = Because::TurnTooLong { turn: id, within_ms };
                self.begin_stop(StopReason::TurnTooLong, because, ctx);
            }
        }
    }

    pub(super) fn redrive(
        &mut self,
        request: RequestId,
        dead: DeadLetter,
        new_id: MessageId,
        by: Subject,
        ctx: &mut Context<'_>,
    ) {
        if let Some(message) = dead.redriven_as {
            ctx.effects.answer(request, Answer::Duplicate { message });
            return;
        }
        if !ctx.is_configured {
            ctx.effects.answer(request, Answer::Refused(Refusal::UnknownAgent));
            return;
        }
        let record = MessageRecord {
            id: new_id,
            session: dead.session,
            subject: dead.subject,
            text: dead.text,
            accepted_at: ctx.now.wall,
            idempotency: None,
            redrive_of: Some(dead.id),
        };
        // What was attached is in the workspace since then, or was deleted there.
        if self.accept(request, record, Vec::new(), ctx) {
            ctx.effects.write(Write::MarkRedriven { message: dead.id, new_id });
            self.note(Because::MessageRedriven { dead: dead.id, message: new_id, by }, ctx);
        }
    }

    pub(super) fn drop_message(
        &mut self,
        request: RequestId,
        message: MessageId,
        is_dead: bool,
        by: Subject,
        ctx: &mut Context<'_>,
    ) {
        let at = ctx.now.wall;
        let is_leased = self.turn().is_some_and(|turn| turn.message == message);
        let was_head = self.queue.head().is_some_and(|head| head.message == message);
        let outcome = if is_dead {
            ctx.effects.write(Write::DropDeadLetter { message, at, by: by.clone() });
            RequestOutcome::Accepted { waiting: self.queue.len() }
        } else if is_leased {
            RequestOutcome::Denied(DeniedBecause::InFlight)
        } else if self.queue.remove_pending(message) {
            ctx.effects.write(Write::CancelMessage { message, at, by: by.clone() });
            ctx.effects.tell(message, News::Cancelled);
            RequestOutcome::Accepted { waiting: self.queue.len() }
        } else {
            RequestOutcome::Ignored(IgnoredBecause::AlreadyEnded)
        };
        if matches!(outcome, RequestOutcome::Accepted { .. }) {
            self.note(Because::MessageDropped { message, by }, ctx);
        }
        ctx.effects.answer(request, Answer::Requested(outcome));
        if was_head && !is_leased && !is_dead {
            self.retry = None;
            if self.phase == Phase::Awake {
                // What was looked at for that message may be old for the next.
                self.instance_mut().files.start_over();
                self.deliver_next(ctx);
            }
        }
    }

    pub(super) fn touch(&mut self, now: Monotonic) {
        self.instance_mut().last_activity = now;
    }
}

/// What of a delta is new; `None` if there is a gap before it, or if the reply gets too long.
fn fresh_part(known: u64, offset: u64, mut text: String) -> Option<String> {
    let end = offset.checked_add(text.len() as u64)?;
    if offset > known || end > limits::REPLY_BYTES_MAX as u64 {
        return None;
    }
    if end <= known {
        return Some(String::new());
    }
    let seen = usize::try_from(known - offset).ok()?;
    if !text.is_char_boundary(seen) {
        return None;
    }
    Some(text.split_off(seen))
}

/// What a dead letter says of a message that was tried as often as is allowed.
pub(super) fn last_of(attempts: u32, last: &str) -> String {
    format!("after {}; the last: {last}", count(u64::from(attempts), "attempt", "attempts"))
}

/// Short enough for a journal row.
fn excerpt(message: &str) -> String {
    const BYTES_MAX: usize = 500;
    let end = message.floor_char_boundary(BYTES_MAX);
    if end < message.len() { format!("{}…", &message[..end]) } else { message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_are_joined_without_gap_or_repeat() {
        let fresh = |known, offset, text: &str| fresh_part(known, offset, text.to_owned());
        assert_eq!(fresh(3, 3, "new").as_deref(), Some("new"));
        assert_eq!(fresh(3, 0, "oldnew").as_deref(), Some("new"));
        assert_eq!(fresh(3, 0, "old").as_deref(), Some(""));
        assert_eq!(fresh(3, 4, "gap"), None);
        assert_eq!(fresh(1, 0, "é"), None, "inside a character");
        assert_eq!(fresh(0, u64::MAX, "x"), None);
    }
}

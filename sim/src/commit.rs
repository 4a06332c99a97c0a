//! The commit of a batch and what may follow it, with a crash point between any two steps.
//!
//! ```text
//!  open batch ─┬─▶ crash: all of it is lost             `recovery`
//!              ├─▶ full: undone, its requests refused   `recovery`
//!              └─▶ durable ─▶ judged ─▶ crash · answers ─▶ notices ─▶ some commands · crash · all
//! ```
//!
//! Owner: `World`. Invariant: nothing of a batch leaves before all of it is durable.
//! Absent: what the core decides (`engine`), what becomes of a command (`hub`, `driver`).

use std::collections::BTreeSet;

use dormouse_core::command::Write;
use dormouse_core::event::Event;
use dormouse_core::id::SessionId;

use crate::bridge::Bridge;
use crate::engine::Batch;
use crate::fault::Fault;
use crate::sabotage::Sabotage;
use crate::violation::Checked;
use crate::world::World;

impl World {
    pub(crate) fn engine_commits(&mut self, epoch: u64) -> Checked {
        if self.engine.epoch != epoch {
            return Ok(());
        }
        let Some(batch) = self.engine.open.take() else { return Ok(()) };
        let crash_in_recovery = batch.taken_over.is_some() && self.fires(Fault::CrashInRecovery);
        if crash_in_recovery || self.fires(Fault::CrashBeforeCommit) {
            return self.crash();
        }
        if self.fires(Fault::StoreFull) {
            return self.roll_back(batch);
        }
        self.commit(&batch)?;
        if self.fires(Fault::CrashAfterCommit) {
            return self.crash();
        }
        if !self.is_sabotaged(Sabotage::EngineAnswersFirst) {
            self.release_answers(&batch)?;
        }
        if self.is_sabotaged(Sabotage::EngineAnswersTwice) {
            self.release_answers(&batch)?;
        }
        self.release_notices(&batch)?;
        let commands: usize = batch.steps.iter().map(|step| step.effects.commands.len()).sum();
        if commands > 0 && self.fires(Fault::CrashBetweenCommands) {
            let carried_out = self.rng.index(commands);
            self.release_commands(&batch, carried_out)?;
            return self.crash();
        }
        self.release_commands(&batch, usize::MAX)?;
        self.arm_engine();
        Ok(())
    }

    fn commit(&mut self, batch: &Batch) -> Checked {
        self.figures.commits += 1;
        let loss = self.draw_loss();
        for write in batch.steps.iter().flat_map(|step| &step.effects.writes) {
            if loss.is_some_and(|is_lost| is_lost(write)) {
                continue;
            }
            self.durable.apply(write)?;
        }
        let in_touch = self.in_touch_at(batch.begun_at_ms);
        self.checker.begin_batch();
        if let Some(setups) = &batch.taken_over {
            self.checker.configured(setups);
        }
        for step in &batch.steps {
            self.checker.committed(step, &in_touch)?;
        }
        self.check_kept(batch)?;
        if batch.has_caught_up {
            self.checker.check_overdue(batch.begun_at_ms, self.engine.is_draining)?;
        }
        let everything = batch.taken_over.is_some() || self.figures.commits.is_multiple_of(32);
        let touched = if everything { None } else { Some(touched_by(batch)) };
        self.checker.compare(
            &self.engine.supervisor,
            &self.durable,
            touched.as_ref(),
            batch.steps.last().map(|step| step.now),
        )
    }

    /// Sessions whose bridge was welcomed so long before `at` that all it said then has arrived.
    fn in_touch_at(&self, at: u64) -> BTreeSet<SessionId> {
        let travel_ms = self.config.latency_ms_max;
        let is_in_touch = |bridge: &&Bridge| {
            let is_whole = bridge.link.is_some_and(|link| self.is_whole(link));
            is_whole && bridge.welcomed_at.is_some_and(|since| since + travel_ms < at)
        };
        let in_touch = self.bridges.values().filter(is_in_touch);
        in_touch.map(|bridge| bridge.instance.session.clone()).collect()
    }

    /// Everything that waits for the batch is told.
    pub(crate) fn release_answers(&mut self, batch: &Batch) -> Checked {
        for step in &batch.steps {
            for (request, answer) in &step.effects.answers {
                self.answered(*request, answer)?;
            }
        }
        for request in &batch.refused {
            self.not_found(*request);
        }
        Ok(())
    }

    pub(crate) fn release_notices(&mut self, batch: &Batch) -> Checked {
        for step in &batch.steps {
            for notice in &step.effects.notices {
                self.checker.noticed(notice, &self.durable, self.engine.epoch)?;
            }
        }
        Ok(())
    }

    /// Carries out the first `count` commands of the batch.
    pub(crate) fn release_commands(&mut self, batch: &Batch, count: usize) -> Checked {
        let commands = batch.steps.iter().flat_map(|step| &step.effects.commands);
        for command in commands.take(count) {
            self.carry_out(command)?;
        }
        Ok(())
    }
}

/// Sessions that a batch changed.
fn touched_by(batch: &Batch) -> BTreeSet<SessionId> {
    let mut touched = BTreeSet::new();
    for step in &batch.steps {
        touched.extend(step.event.as_ref().and_then(Event::session).cloned());
        touched.extend(step.effects.writes.iter().filter_map(|write| match write {
            Write::PutSession(record) => Some(record.id.clone()),
            _other => None,
        }));
    }
    touched
}

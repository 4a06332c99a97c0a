//! The process dies and comes back; the disk refuses a commit and the process goes on.
//!
//! ```text
//!  crash ─▶ records through the codec ───────────────┐
//!  commit failed ─▶ refuse its requests, cut bridges ┴▶ new Supervisor ─▶ recover ─▶ commit, list
//! ```
//!
//! Owner: `World`. Invariants: nothing but the store and the driver's list survives. An instance is
//! called gone only if the store believed in it before the list was asked for, the list does not
//! show it, and its bridge has not said hello since: each of the three is needed, or a living agent
//! gets a twin. An instance is called of the past by what the store says when the list arrives, not
//! by what was expected when it was asked for, or what was just started is killed.
//! Absent: judgement; `checker` compares.

use std::collections::BTreeSet;

use dormouse_core::command::{Effects, Write};
use dormouse_core::id::InstanceId;
use dormouse_core::policy::NodePolicy;
use dormouse_core::supervisor::Supervisor;

use crate::engine::{Batch, Input};
use crate::fault::Fault;
use crate::sabotage::Sabotage;
use crate::violation::{Checked, Invariant};
use crate::world::{Action, World};

/// Which writes a sabotaged commit leaves out.
type Loss = fn(&Write) -> bool;

impl World {
    /// The process is gone, at whatever it was doing.
    pub(crate) fn crash(&mut self) -> Checked {
        self.trace.note(self.now, None, format_args!("the daemon crashes"));
        self.engine.forget();
        self.engine.is_up = false;
        self.engine.is_draining = false;
        self.engine.inbox.clear();
        self.working = self.durable.clone();
        self.driver_loses_its_daemon();
        self.close_all_links(true);
        self.clients_lose_their_daemon();
        let down_ms = if self.fires(Fault::LongDowntime) {
            self.rng.spread(60_000, 1_200_000)
        } else {
            self.rng.spread(5, 5_000)
        };
        self.plan(self.now + down_ms, Action::EngineReturns);
        Ok(())
    }

    /// SIGTERM: what runs may end, within a time.
    pub(crate) fn drain(&mut self) {
        self.engine.is_draining = true;
        // Who waits is told so; here nobody needs the words.
        self.engine.supervisor.drain(&mut Effects::default());
        let budget_ms = self.rng.spread(1, 300_000);
        let life = self.engine.life;
        self.plan(self.now + budget_ms, Action::DrainEnds { life });
    }

    /// The time is over; what still runs goes on under its bridges.
    pub(crate) fn drain_ends(&mut self, life: u64) -> Checked {
        if self.engine.life != life || !self.engine.is_up {
            return Ok(());
        }
        self.crash()
    }

    pub(crate) fn engine_returns(&mut self) -> Checked {
        self.durable.pass_through_codec()?;
        if self.is_sabotaged(Sabotage::StoreForgetsKeys) {
            self.durable.forget_keys();
        }
        if self.is_sabotaged(Sabotage::StoreForgetsPause) {
            self.durable.forget_pauses(self.read_clocks().wall);
        }
        if self.is_sabotaged(Sabotage::StoreForgetsWakes) {
            self.durable.forget_wakes();
        }
        self.durable.forget_of_rollouts(self.sabotage);
        self.working = self.durable.clone();
        self.engine.is_up = true;
        self.engine.life += 1;
        let age = i64::try_from(self.rng.spread(1, 1 << 40)).expect("40 bits fit");
        self.engine.zero_at = i64::try_from(self.now).expect("a run is short") - age;
        self.engine.newest_message =
            self.durable.messages.last_key_value().map_or(0, |newest| newest.0.0);
        self.revisions.put_back();
        if self.fires(Fault::AgentUnconfigured) {
            self.take_out();
        }
        self.rebuild()
    }

    /// The disk did not take the batch; the process lives and starts again from the store.
    pub(crate) fn roll_back(&mut self, batch: Batch) -> Checked {
        self.trace.note(self.now, None, format_args!("the commit fails"));
        if self.is_sabotaged(Sabotage::EngineTellsRolledBack) {
            self.release_notices(&batch)?;
        }
        self.engine.forget();
        self.working = self.durable.clone();
        let answers = batch.steps.iter().flat_map(|step| &step.effects.answers);
        let requests: Vec<_> = answers.map(|answer| answer.0).chain(batch.refused).collect();
        for request in requests {
            self.client_is_refused(request);
        }
        self.close_all_links(false);
        if !self.config.keeps_inbox {
            self.engine.inbox.retain(|input| !matches!(input, Input::Happened(_, Some(_))));
        }
        self.rebuild()
    }

    /// A new supervisor from the store alone, and then a look at what really runs.
    pub(crate) fn rebuild(&mut self) -> Checked {
        let now = self.read_clocks();
        self.checker.rebuilt(self.now, now.wall);
        let node: NodePolicy = self.config.node.clone();
        let setups = self.revisions.setups();
        self.engine.supervisor =
            Supervisor::new(node, setups.clone(), self.durable.rollouts.clone());
        if self.engine.is_draining {
            self.engine.supervisor.drain(&mut Effects::default());
        }
        let mut batch = Batch { taken_over: Some(setups), ..Batch::default() };
        let mut effects = Effects::default();
        self.engine.supervisor.note_rollouts(&mut effects);
        self.take_step(None, now, effects, &mut batch)?;
        for id in self.durable.awake_sessions() {
            let mut stored = self.durable.stored(&id).expect("a session that was listed is there");
            if self.is_sabotaged(Sabotage::StoreReversesQueue) {
                stored
                    .deliveries
                    .sort_by_key(|row| (row.leased_to.is_none(), u128::MAX - row.message.0));
            }
            if stored.record.phase.has_instance() {
                let generation = stored.record.generation;
                self.engine.suspects.insert(InstanceId { session: id.clone(), generation });
            }
            let mut effects = Effects::default();
            self.engine.supervisor.recover(now, stored, &mut effects);
            self.trace.handled(self.now, Some(&id), format_args!("taken over"), &effects);
            self.take_step(None, now, effects, &mut batch)?;
        }
        self.engine.is_listing = true;
        let epoch = self.engine.epoch;
        let list_ms = self.config.latency_ms_max;
        self.plan_soon(list_ms, Action::DriverLists { epoch });
        self.open_batch(batch)
    }

    /// The driver looks at what exists.
    pub(crate) fn driver_lists(&mut self, epoch: u64) -> Checked {
        if self.engine.epoch != epoch || !self.engine.is_up {
            return Ok(());
        }
        if self.fires(Fault::ListFails) {
            // Unknown is not gone.
            if self.rng.chance(500) {
                self.plan(self.now + 1_000, Action::DriverLists { epoch });
            } else {
                self.engine.is_listing = false;
                self.engine.suspects.clear();
            }
            return Ok(());
        }
        let listed = self.instances_that_exist();
        let after = self.rng.spread(1, 3_000);
        self.plan(self.now + after, Action::DriverAnswers { epoch, listed });
        Ok(())
    }

    /// What the driver saw a moment ago. Much may have happened since.
    pub(crate) fn driver_answers(&mut self, epoch: u64, listed: &BTreeSet<InstanceId>) -> Checked {
        if self.engine.epoch != epoch || !self.engine.is_up {
            return Ok(());
        }
        self.engine.is_listing = false;
        let expected = std::mem::take(&mut self.engine.suspects);
        for instance in expected.difference(listed) {
            if !self.is_sabotaged(Sabotage::DriverHidesExits) {
                self.push_input(Input::Gone(instance.clone()));
            }
        }
        let kills_news = self.is_sabotaged(Sabotage::EngineKillsTheUnexpected);
        for instance in listed.difference(&expected) {
            let is_past = self.is_of_the_past(instance);
            if is_past || kills_news {
                Invariant::Cause.check(is_past, || format!("{instance} is killed, unasked"))?;
                self.kill(instance.clone());
            }
        }
        self.arm_engine();
        Ok(())
    }

    /// What the daemon has started since it asked for the list is not of the past.
    fn is_of_the_past(&self, instance: &InstanceId) -> bool {
        let record = self.durable.sessions.get(&instance.session);
        !record.is_some_and(|record| {
            record.phase.has_instance() && record.generation == instance.generation
        })
    }

    /// For a sabotaged store: what this commit is going to lose.
    pub(crate) fn draw_loss(&mut self) -> Option<Loss> {
        let loss: Loss = match self.sabotage? {
            Sabotage::StoreLosesMessage => |write| matches!(write, Write::InsertMessage(_)),
            Sabotage::StoreLosesAnswer => |write| matches!(write, Write::AnswerMessage { .. }),
            Sabotage::StoreLosesDecision => |write| matches!(write, Write::InsertDecision(_)),
            Sabotage::StoreLosesExit => |write| matches!(write, Write::InsertExit(_)),
            Sabotage::StoreLosesRollout => |write| matches!(write, Write::PutRollout { .. }),
            _other => return None,
        };
        self.rng.chance(300).then_some(loss)
    }
}

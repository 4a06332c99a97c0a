//! The model of a driver: starts, lists, kills and watches instances, each in its own time, and
//! forgets when the daemon dies.
//!
//! Owner: `World`. Invariants: an instance is reported as exited only when nothing of it lives; a
//! start that exists is not made twice; what a bridge left on disk is reported for it. Tasks of the
//! daemon's process (a start half done, a report on its way) die with it, except for a start that
//! the machine had already taken on. Absent: the driver trait, processes, containers.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_core::event::Event;
use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::id::InstanceId;

use crate::bridge::{Bridge, BridgeId};
use crate::engine::Input;
use crate::fault::Fault;
use crate::sabotage::Sabotage;
use crate::violation::{Checked, Invariant};
use crate::world::{Action, World};

#[derive(Debug, Default)]
pub(crate) struct Driver {
    /// Starts under way, each with its ticket.
    starting: BTreeMap<InstanceId, u64>,
    /// Starts whose daemon is gone and which take place all the same.
    adrift: BTreeSet<u64>,
    tickets: u64,
    /// Everything that ever existed here.
    existed: BTreeSet<InstanceId>,
    /// What bridges left on disk when they ended without having been heard.
    left: BTreeMap<InstanceId, Evidence>,
    /// Said that it is over: nothing more is reported of it.
    released: BTreeSet<InstanceId>,
}

impl Driver {
    pub(crate) fn is_idle(&self) -> bool {
        self.starting.is_empty() && self.adrift.is_empty()
    }

    /// The exit is on disk.
    pub(crate) fn forget(&mut self, instance: &InstanceId) {
        self.left.remove(instance);
        self.released.insert(instance.clone());
    }

    pub(crate) fn leave_report(&mut self, instance: InstanceId, evidence: Evidence) {
        self.left.insert(instance, evidence);
    }

    /// Of an instance that is not there (any more).
    pub(crate) fn evidence_of_the_gone(&self, instance: &InstanceId) -> Evidence {
        if let Some(left) = self.left.get(instance) {
            return left.clone();
        }
        Evidence::bare(match self.existed.contains(instance) {
            true => End::BridgeLost,
            false => End::NeverLaunched,
        })
    }
}

impl World {
    pub(crate) fn start(&mut self, instance: InstanceId) -> Checked {
        self.check_start(&instance)?;
        let exists = self.bridge_of(&instance).is_some();
        if exists || self.driver.starting.contains_key(&instance) {
            return Ok(());
        }
        if self.fires(Fault::StartFails) {
            let error = "no place for it".to_owned();
            self.report(Event::InstanceStartFailed { instance, error });
            return Ok(());
        }
        let ticket = self.driver.tickets;
        self.driver.tickets += 1;
        self.driver.starting.insert(instance.clone(), ticket);
        let start_ms =
            if self.fires(Fault::StartSlow) { self.rng.spread(500, 200_000) } else { 200 };
        let after = self.rng.spread(1, start_ms);
        self.plan(self.now + after, Action::DriverCreates { instance, ticket });
        Ok(())
    }

    /// A start leaves the daemon only when its generation is on disk.
    fn check_start(&self, instance: &InstanceId) -> Checked {
        let record = self.durable.sessions.get(&instance.session);
        let is_durable = record.is_some_and(|record| record.generation >= instance.generation);
        Invariant::BoundedAttempts
            .check(is_durable, || format!("{instance} is started before that is on disk"))
    }

    pub(crate) fn driver_creates(&mut self, instance: InstanceId, ticket: u64) -> Checked {
        let is_adrift = self.driver.adrift.remove(&ticket);
        if !is_adrift {
            if self.driver.starting.get(&instance) != Some(&ticket) {
                return Ok(());
            }
            self.driver.starting.remove(&instance);
        }
        self.driver.existed.insert(instance.clone());
        self.make_bridge(instance.clone(), is_adrift);
        if self.is_sabotaged(Sabotage::DriverStartsTwo) {
            self.make_bridge(instance.clone(), is_adrift);
        }
        if !is_adrift {
            self.report(Event::InstanceStarted { instance: instance.clone() });
        }
        if self.is_sabotaged(Sabotage::DriverReportsTheLiving) && self.rng.chance(300) {
            let at = self.now + self.rng.spread(100, 30_000);
            let evidence = Evidence::bare(End::BridgeLost);
            let event = Event::InstanceExited { instance, evidence };
            self.plan(at, Action::DriverReports { life: self.engine.life, event });
        }
        Ok(())
    }

    pub(crate) fn kill(&mut self, instance: InstanceId) {
        let kill_ms = if self.fires(Fault::KillLate) { 40_000 } else { 100 };
        let life = self.engine.life;
        self.plan_soon(kill_ms, Action::DriverKills { life, instance });
    }

    pub(crate) fn driver_kills(&mut self, life: u64, instance: InstanceId) -> Checked {
        if !self.engine.is_up || self.engine.life != life {
            return Ok(());
        }
        if self.fires(Fault::KillFails) {
            return Ok(());
        }
        self.driver.starting.remove(&instance);
        let mut evidence = self.driver.evidence_of_the_gone(&instance);
        while let Some(id) = self.bridge_of(&instance) {
            let reported = self.end_bridge(id);
            evidence = reported.unwrap_or(Evidence::bare(End::BridgeLost));
        }
        evidence.asked_by = evidence.asked_by.or(Some(AskedBy::Driver));
        self.report_exit(instance, evidence);
        Ok(())
    }

    /// A bridge ended by itself. What is left of its instance is killed before it is reported.
    pub(crate) fn driver_notices(&mut self, life: u64, instance: InstanceId) -> Checked {
        if !self.engine.is_up || self.engine.life != life {
            return Ok(());
        }
        if let Some(id) = self.bridge_of(&instance) {
            let is_alive = self.bridges.get(&id).is_some_and(|bridge| !bridge.is_dead);
            if is_alive {
                return Ok(());
            }
            self.end_bridge(id);
        }
        if !self.driver.released.contains(&instance) {
            let evidence = self.driver.evidence_of_the_gone(&instance);
            self.report_exit(instance, evidence);
        }
        Ok(())
    }

    fn report_exit(&mut self, instance: InstanceId, evidence: Evidence) {
        if self.is_sabotaged(Sabotage::DriverHidesExits) {
            return;
        }
        let event = Event::InstanceExited { instance, evidence };
        if self.fires(Fault::ReportRepeated) {
            self.report(event.clone());
        }
        self.report(event);
    }

    fn report(&mut self, event: Event) {
        let report_ms = if self.fires(Fault::ReportLate) { 30_000 } else { 20 };
        let life = self.engine.life;
        self.plan_soon(report_ms, Action::DriverReports { life, event });
    }

    pub(crate) fn driver_reports(&mut self, life: u64, event: Event) -> Checked {
        if self.engine.is_up && self.engine.life == life {
            self.push_input(Input::Happened(event, None));
        }
        Ok(())
    }

    /// Every instance that the machine shows. Bridges that died without anybody looking are cleared
    /// away first.
    pub(crate) fn instances_that_exist(&mut self) -> BTreeSet<InstanceId> {
        let dead = self.bridges.iter().filter(|(_, bridge)| bridge.is_dead);
        let dead: Vec<BridgeId> = dead.map(|(id, _)| *id).collect();
        for id in dead {
            self.end_bridge(id);
        }
        let running = self.bridges.values().map(|bridge| bridge.instance.clone());
        running.chain(self.driver.starting.keys().cloned()).collect()
    }

    /// The daemon's process took its unfinished starts with it, but for those that were past
    /// recall.
    pub(crate) fn driver_loses_its_daemon(&mut self) {
        for ticket in std::mem::take(&mut self.driver.starting).into_values() {
            if self.fires(Fault::StartLate) {
                self.driver.adrift.insert(ticket);
            }
        }
    }

    pub(crate) fn bridge_of(&self, instance: &InstanceId) -> Option<BridgeId> {
        let fits = |(_, bridge): &(&BridgeId, &Bridge)| bridge.instance == *instance;
        self.bridges.iter().find(fits).map(|(id, _)| *id)
    }
}

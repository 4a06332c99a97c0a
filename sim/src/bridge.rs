//! The model of a bridge: what it keeps, what it says again after a reconnect, and what it does
//! with each frame.
//!
//! ```text
//!  connect ─▶ hello ─▶ (welcome) ─▶ results, text so far, holds, exit ─▶ frames … ─▶ lost ┐
//!     ▲                   └ launch ─▶ agent                                               │
//!     └───────────────────────────────────────────────────────────────────────────────────┘
//!  released, refused, orphaned ─▶ gone
//! ```
//!
//! Owner: `World`. Invariants: a turn id is executed once; a result is kept until it is
//! acknowledged, an exit until it is released; nothing is said before the welcome; the holds in
//! force are said again, or a daemon that came back would stop an agent that had asked to stay.
//! Absent: adapters, files, processes; what the agent does (`agent`).

use std::collections::{BTreeMap, BTreeSet};

use dormouse_core::event::{AgentState, TurnOutcome};
use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::id::{BootId, InstanceId, RevisionNumber, TurnId};
use dormouse_core::manifest::FilesVersion;

use crate::agent::{AgentEnd, Run};
use crate::fault::Fault;
use crate::hub::{Down, LinkId, Up};
use crate::revisions::Broken;
use crate::sabotage::Sabotage;
use crate::violation::{Checked, Invariant};
use crate::world::{Action, World};

pub(crate) type BridgeId = u64;

#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) instance: InstanceId,
    boot: BootId,
    pub(crate) link: Option<LinkId>,
    pub(crate) welcomed_at: Option<u64>,
    /// The hello said that the agent is ready.
    told_ready: bool,
    tries: u32,
    /// Without a welcome since; the orphan limit counts from here.
    alone_since: Option<u64>,
    /// Killed from outside; its agent may go on until the driver clears it away.
    pub(crate) is_dead: bool,
    pub(crate) was_launched: bool,
    /// Since it was told to execute one.
    pub(crate) revision: RevisionNumber,
    /// What is wrong with the revision that it was told to execute.
    pub(crate) broken: Option<Broken>,
    pub(crate) was_ready: bool,
    pub(crate) is_gone: bool,
    pub(crate) launched_at: u64,
    pub(crate) ignores_stop: bool,
    pub(crate) is_stopping: bool,
    pub(crate) run: Option<Run>,
    /// What the run before this one said.
    pub(crate) previous_text: String,
    pub(crate) results: BTreeMap<TurnId, TurnOutcome>,
    executed: BTreeSet<TurnId>,
    pub(crate) holds: BTreeMap<String, u64>,
    pub(crate) exit: Option<Evidence>,
    /// What its workspace is being brought to.
    pub(crate) syncing: Option<FilesVersion>,
    /// What it was brought to in this life.
    pub(crate) applied: Option<FilesVersion>,
}

impl Bridge {
    pub(crate) fn agent_lives(&self) -> bool {
        self.was_launched && !self.is_gone
    }

    /// Some process of it runs. Where neither does, a folder may be left for the next list to find.
    pub(crate) fn lives(&self) -> bool {
        !self.is_dead || self.agent_lives()
    }

    pub(crate) fn takes_work(&self) -> bool {
        self.was_ready && self.agent_lives()
    }

    fn agent_state(&self) -> AgentState {
        match (self.was_launched, self.was_ready) {
            (false, _) => AgentState::NotLaunched,
            (true, false) => AgentState::Starting,
            (true, true) => AgentState::Ready,
        }
    }

    fn held(&self) -> Vec<TurnId> {
        let running = self.run.iter().map(|run| run.turn);
        running.chain(self.results.keys().copied()).collect()
    }
}

impl World {
    pub(crate) fn make_bridge(&mut self, instance: InstanceId, is_adrift: bool) {
        let id = self.fresh_id();
        let boot = u128::from(self.rng.next()) << 64 | u128::from(id);
        let bridge = Bridge {
            instance,
            boot: BootId(boot),
            link: None,
            welcomed_at: None,
            told_ready: false,
            tries: 0,
            alone_since: Some(self.now),
            is_dead: false,
            was_launched: false,
            revision: RevisionNumber::FIRST,
            broken: None,
            was_ready: false,
            is_gone: false,
            launched_at: 0,
            ignores_stop: false,
            is_stopping: false,
            run: None,
            previous_text: String::new(),
            results: BTreeMap::new(),
            executed: BTreeSet::new(),
            holds: BTreeMap::new(),
            exit: None,
            syncing: None,
            applied: None,
        };
        self.bridges.insert(id, bridge);
        // One that was started for a daemon that is gone takes its time to appear.
        let connect_ms = if is_adrift { self.rng.spread(1, 10_000) } else { 50 };
        self.plan_soon(connect_ms, Action::BridgeConnects { bridge: id });
        self.await_daemon(id);
    }

    /// From now on it counts as alone.
    fn await_daemon(&mut self, id: BridgeId) {
        let since = self.now;
        let Some(bridge) = self.bridges.get_mut(&id) else { return };
        bridge.alone_since = Some(since);
        let at = since + self.config.orphan_limit_ms;
        self.plan(at, Action::OrphanLimit { bridge: id, since });
    }

    pub(crate) fn bridge_connects(&mut self, id: BridgeId) -> Checked {
        let Some(bridge) = self.bridges.get(&id) else { return Ok(()) };
        if bridge.is_dead || bridge.link.is_some() {
            return Ok(());
        }
        let tries = bridge.tries;
        let (instance, boot) = (bridge.instance.clone(), bridge.boot);
        let network_down = tries > 0 && self.fires(Fault::NetworkDown);
        if network_down || !self.engine.is_up {
            let pause_ms = match network_down {
                true => self.rng.spread(1_000, 120_000),
                false => self.rng.spread(50, 200 << tries.min(7)),
            };
            let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
            bridge.tries += 1;
            self.plan(self.now + pause_ms, Action::BridgeConnects { bridge: id });
            return Ok(());
        }
        let link = self.open_link(id, instance, boot);
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        bridge.link = Some(link);
        bridge.told_ready = bridge.was_ready;
        let hello = Up::Hello { agent: bridge.agent_state(), held: bridge.held() };
        self.send_up(link, hello);
        if self.fires(Fault::LinkFlaps) {
            let soon_ms = self.config.latency_ms_max;
            self.plan_soon(soon_ms, Action::LinkLostAtBridge { link });
            self.plan_soon(60_000, Action::LinkLostAtDaemon { link });
        }
        if self.is_sabotaged(Sabotage::DriverStartsTwo) {
            self.launch(id, RevisionNumber::FIRST)?;
        }
        Ok(())
    }

    /// Something for the daemon; if there is none to hear it, it is in what is said after the next
    /// welcome.
    pub(crate) fn say(&mut self, id: BridgeId, frame: Up) {
        let Some(bridge) = self.bridges.get(&id).filter(|bridge| bridge.welcomed_at.is_some())
        else {
            return;
        };
        if let Some(link) = bridge.link {
            self.send_up(link, frame);
        }
    }

    pub(crate) fn bridge_loses_link(&mut self, id: BridgeId, link: LinkId) {
        let Some(bridge) = self.bridges.get_mut(&id).filter(|bridge| bridge.link == Some(link))
        else {
            return;
        };
        let was_welcomed = bridge.welcomed_at.take().is_some();
        bridge.link = None;
        bridge.tries += 1;
        if bridge.is_dead {
            return;
        }
        if was_welcomed {
            self.await_daemon(id);
        }
        let pause_ms = self.rng.spread(1, 1_000);
        self.plan_soon(pause_ms, Action::BridgeConnects { bridge: id });
    }

    pub(crate) fn bridge_hears(&mut self, id: BridgeId, frame: Down) -> Checked {
        let now = self.now;
        let Some(bridge) = self.bridges.get_mut(&id).filter(|bridge| !bridge.is_dead) else {
            return Ok(());
        };
        match frame {
            Down::Welcome { launch } => {
                let is_first = bridge.welcomed_at.is_none();
                bridge.welcomed_at.get_or_insert(now);
                bridge.alone_since = None;
                bridge.tries = 0;
                if let Some(revision) = launch {
                    self.launch(id, self.as_executed(revision))?;
                }
                if is_first {
                    self.say_again(id);
                    self.repeat_work(id)?;
                }
            }
            Down::Sync { version } => self.begin_sync(id, version),
            Down::Launch { revision } => self.launch(id, self.as_executed(revision))?,
            Down::Turn { turn, text } => self.take_turn(id, turn, &text)?,
            Down::Acknowledge { turn } => {
                bridge.results.remove(&turn);
            }
            Down::Stop { grace_ms } => self.stop_agent(id, grace_ms),
            Down::Refused => {
                let instance = bridge.instance.clone();
                self.end_bridge(id);
                self.let_driver_notice(instance);
            }
            Down::Release => {
                self.check_release(id)?;
                self.end_bridge(id);
            }
        }
        Ok(())
    }

    fn as_executed(&self, revision: RevisionNumber) -> RevisionNumber {
        match self.is_sabotaged(Sabotage::BridgeRunsTheFirst) {
            true => RevisionNumber::FIRST,
            false => revision,
        }
    }

    /// After the welcome: everything that the daemon may not have, in the order in which it came
    /// about.
    fn say_again(&mut self, id: BridgeId) {
        let now = self.now;
        let Some(bridge) = self.bridges.get(&id) else { return };
        let mut frames = Vec::new();
        let mut counted = Vec::new();
        frames.extend(bridge.applied.map(|version| Up::Synced { version }));
        if bridge.was_ready && !bridge.told_ready {
            frames.push(Up::Ready);
        }
        for (turn, outcome) in &bridge.results {
            frames.push(Up::Ended { turn: *turn, outcome: outcome.clone() });
            counted.push(Fault::ResultReplayed);
        }
        if let Some(run) = bridge.run.as_ref().filter(|run| !run.text.is_empty()) {
            frames.push(Up::Delta { turn: run.turn, offset: 0, text: run.text.clone() });
            counted.push(Fault::TextReplayed);
        }
        let forgets_holds = self.is_sabotaged(Sabotage::BridgeForgetsHolds);
        let holds = bridge.holds.iter().filter(|hold| *hold.1 > now && !forgets_holds);
        for (name, until) in holds {
            frames.push(Up::Hold { name: name.clone(), for_ms: until - now });
            counted.push(Fault::HoldReplayed);
        }
        if let Some(evidence) = &bridge.exit {
            frames.push(Up::Exited { evidence: evidence.clone() });
            counted.push(Fault::ExitReplayed);
        }
        counted.into_iter().for_each(|fault| self.faults.count(fault));
        frames.into_iter().for_each(|frame| self.say(id, frame));
    }

    /// Only if sabotaged: what is finished is done again.
    fn repeat_work(&mut self, id: BridgeId) -> Checked {
        if !self.is_sabotaged(Sabotage::BridgeRepeats) {
            return Ok(());
        }
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        let Some(turn) = bridge.results.keys().next().copied() else { return Ok(()) };
        bridge.executed.remove(&turn);
        self.take_turn(id, turn, "once more")
    }

    fn take_turn(&mut self, id: BridgeId, turn: TurnId, text: &str) -> Checked {
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        if bridge.exit.is_some() || bridge.is_stopping {
            return Ok(());
        }
        Invariant::ReadyBeforeWork.check(bridge.takes_work(), || {
            format!("{turn} reached {} before its agent was ready", bridge.instance)
        })?;
        if !bridge.executed.insert(turn) {
            let kept = bridge.results.get(&turn).cloned();
            self.faults.count(Fault::TurnRepeated);
            if let Some(outcome) = kept {
                self.say(id, Up::Ended { turn, outcome });
            }
            return Ok(());
        }
        let bridge = self.bridges.get(&id).expect("the bridge was just seen");
        let running = bridge.run.as_ref().map(|run| run.turn);
        let instance = bridge.instance.clone();
        Invariant::SessionOrder.check(running.is_none(), || {
            format!("{turn} reached {instance} while {running:?} runs there")
        })?;
        self.checker.executed(turn, &instance, &self.durable)?;
        let workspace = self.files.workspaces.get(&instance.session).copied();
        self.checker.check_files(turn, &instance, workspace)?;
        self.begin_turn(id, turn, text);
        Ok(())
    }

    /// Asks the agent to end; what it does then is up to it.
    fn stop_agent(&mut self, id: BridgeId, grace_ms: u64) {
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        if bridge.exit.is_some() || std::mem::replace(&mut bridge.is_stopping, true) {
            return;
        }
        let ignores_stop = bridge.ignores_stop;
        if !bridge.was_launched {
            self.end_unlaunched(id, AskedBy::Daemon);
            return;
        }
        let (after_ms, end) = match ignores_stop {
            true => (grace_ms, AgentEnd::killed_after_grace()),
            false => {
                let soon_ms = self.rng.between(0, grace_ms.min(1_500));
                (soon_ms, AgentEnd::asked(End::Exited { code: 0 }, AskedBy::Daemon))
            }
        };
        self.plan(self.now + after_ms, Action::AgentEnds { bridge: id, end });
    }

    fn end_unlaunched(&mut self, id: BridgeId, asked_by: AskedBy) {
        let evidence = Evidence { asked_by: Some(asked_by), ..Evidence::bare(End::NeverLaunched) };
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        bridge.exit = Some(evidence.clone());
        self.say(id, Up::Exited { evidence });
    }

    /// SIGKILL from outside: its agent is alone until the driver looks.
    pub(crate) fn kill_bridge(&mut self, id: BridgeId) {
        let Some(bridge) = self.bridges.get_mut(&id).filter(|bridge| !bridge.is_dead) else {
            return;
        };
        bridge.is_dead = true;
        bridge.welcomed_at = None;
        let (link, instance) = (bridge.link.take(), bridge.instance.clone());
        if let Some(link) = link {
            self.close_at_bridge(link);
        }
        self.let_driver_notice(instance);
    }

    /// SIGTERM from outside.
    pub(crate) fn signal_bridge(&mut self, id: BridgeId) {
        let Some(bridge) = self.bridges.get(&id) else { return };
        if bridge.is_dead || bridge.exit.is_some() {
            return;
        }
        if !bridge.was_launched {
            self.end_unlaunched(id, AskedBy::Signal);
            return;
        }
        let end = AgentEnd::asked(End::Signaled { signal: 15 }, AskedBy::Signal);
        self.plan_soon(1_000, Action::AgentEnds { bridge: id, end });
    }

    /// Nobody came back for it: it stops its agent, leaves its report on disk, and ends.
    pub(crate) fn orphan_limit(&mut self, id: BridgeId, since: u64) -> Checked {
        let Some(bridge) = self.bridges.get(&id) else { return Ok(()) };
        if bridge.is_dead || bridge.alone_since != Some(since) {
            return Ok(());
        }
        self.faults.count(Fault::OrphanLimitReached);
        let end = match bridge.was_launched {
            true => End::Signaled { signal: 15 },
            false => End::NeverLaunched,
        };
        let asked_by = Some(AskedBy::OrphanLimit);
        let mut evidence = Evidence { asked_by, ..Evidence::bare(end) };
        if let Some(exit) = &bridge.exit {
            evidence = exit.clone();
        }
        let instance = bridge.instance.clone();
        self.driver.leave_report(instance.clone(), evidence);
        self.end_bridge(id);
        self.let_driver_notice(instance);
        Ok(())
    }

    fn let_driver_notice(&mut self, instance: InstanceId) {
        let life = self.engine.life;
        self.plan_soon(2_000, Action::DriverNotices { life, instance });
    }

    /// Nothing of the instance lives after this. Returns what the bridge knew of its agent's end.
    pub(crate) fn end_bridge(&mut self, id: BridgeId) -> Option<Evidence> {
        let bridge = self.bridges.remove(&id)?;
        if let Some(link) = bridge.link {
            self.close_at_bridge(link);
        }
        bridge.exit
    }
}

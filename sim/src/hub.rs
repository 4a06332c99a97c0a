//! Connections between bridges and the daemon: order within each, no order between two, and cuts
//! that nobody announces.
//!
//! ```text
//!  bridge ── hello ──▶ hub ── BridgeAttached ──▶ engine
//!         ◀─ welcome ─     ◀─ AdmitBridge ─────
//!  a link is open at each end on its own, and each end notices a cut in its own time
//! ```
//!
//! Owner: `World`. Invariants: frames of a link arrive in order or not at all; what is said on a
//! link reaches the engine between its hello and its end; when a bridge comes back before its old
//! link is known to be lost, the old one ends first (else a late `BridgeDetached` would take the
//! new link away). Absent: sockets, tokens, WebSocket.

use dormouse_core::command::Command;
use dormouse_core::event::{AgentState, Event, FilesProblem, FilesProgress, TurnOutcome};
use dormouse_core::evidence::Evidence;
use dormouse_core::id::{BootId, InstanceId, RevisionNumber, TurnId};
use dormouse_core::manifest::FilesVersion;

use crate::bridge::BridgeId;
use crate::engine::Input;
use crate::fault::Fault;
use crate::violation::{Checked, Invariant};
use crate::world::{Action, World};

pub(crate) type LinkId = u64;

/// From a bridge.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    Hello { agent: AgentState, held: Vec<TurnId> },
    Ready,
    Delta { turn: TurnId, offset: u64, text: String },
    Ended { turn: TurnId, outcome: TurnOutcome },
    Hold { name: String, for_ms: u64 },
    Syncing { progress: FilesProgress },
    Synced { version: FilesVersion },
    SyncFailed { version: FilesVersion, problem: FilesProblem },
    Exited { evidence: Evidence },
}

/// To a bridge.
#[derive(Debug, Clone)]
pub(crate) enum Down {
    Welcome { launch: Option<RevisionNumber> },
    Sync { version: FilesVersion },
    Launch { revision: RevisionNumber },
    Refused,
    Turn { turn: TurnId, text: String },
    Acknowledge { turn: TurnId },
    Stop { grace_ms: u64 },
    Release,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) bridge: BridgeId,
    instance: InstanceId,
    boot: BootId,
    /// Nothing gets through any more, whoever knows it.
    is_cut: bool,
    is_open_at_daemon: bool,
    is_open_at_bridge: bool,
    has_said_hello: bool,
    is_admitted: bool,
    last_up_at: u64,
    last_down_at: u64,
}

impl World {
    /// A bridge's attempt to connect succeeded.
    pub(crate) fn open_link(
        &mut self,
        bridge: BridgeId,
        instance: InstanceId,
        boot: BootId,
    ) -> LinkId {
        let id = self.fresh_id();
        let link = Link {
            bridge,
            instance,
            boot,
            is_cut: false,
            is_open_at_daemon: true,
            is_open_at_bridge: true,
            has_said_hello: false,
            is_admitted: false,
            last_up_at: self.now,
            last_down_at: self.now,
        };
        self.links.insert(id, link);
        id
    }

    pub(crate) fn send_up(&mut self, id: LinkId, frame: Up) {
        self.maybe_cut(id);
        let after = self.rng.between(1, self.config.latency_ms_max);
        let now = self.now;
        let Some(link) = self.links.get_mut(&id).filter(|link| link.is_open_at_bridge) else {
            return;
        };
        link.last_up_at = link.last_up_at.max(now + after);
        let at = link.last_up_at;
        self.plan(at, Action::FrameUp { link: id, frame });
    }

    fn send_down(&mut self, id: LinkId, frame: Down) {
        self.maybe_cut(id);
        if matches!(frame, Down::Turn { .. }) {
            // Where a loss has the most to break.
            self.maybe_cut(id);
        }
        let after = self.rng.between(1, self.config.latency_ms_max);
        let now = self.now;
        let Some(link) = self.links.get_mut(&id).filter(|link| link.is_open_at_daemon) else {
            return;
        };
        link.last_down_at = link.last_down_at.max(now + after);
        let at = link.last_down_at;
        self.plan(at, Action::FrameDown { link: id, frame });
    }

    fn maybe_cut(&mut self, id: LinkId) {
        if !self.fires(Fault::LinkCut) {
            return;
        }
        let is_slow = self.fires(Fault::LinkHalfOpen);
        let Some(link) = self.links.get_mut(&id) else { return };
        link.is_cut = true;
        let daemon_ms = if is_slow { 60_000 } else { 500 };
        let bridge_ms = self.rng.spread(1, 1_000);
        self.plan_soon(bridge_ms, Action::LinkLostAtBridge { link: id });
        self.plan_soon(daemon_ms, Action::LinkLostAtDaemon { link: id });
    }

    pub(crate) fn frame_up_arrives(&mut self, id: LinkId, frame: Up) -> Checked {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        if link.is_cut || !link.is_open_at_daemon || !self.engine.is_up {
            self.faults.count(Fault::FrameUpLost);
            return Ok(());
        }
        if matches!(frame, Up::Hello { .. }) {
            link.has_said_hello = true;
            let (instance, boot) = (link.instance.clone(), link.boot);
            self.end_older_links(id, &instance, boot);
            self.engine.greeted.insert(instance);
        }
        let link = self.links.get(&id).expect("the link was just seen");
        let event = event_of(frame, link.instance.clone(), link.boot);
        self.push_input(Input::Happened(event, Some(id)));
        Ok(())
    }

    /// The same bridge is back on a new link before the loss of its old one was noticed.
    fn end_older_links(&mut self, newest: LinkId, instance: &InstanceId, boot: BootId) {
        let is_older = |(id, link): &(&LinkId, &Link)| {
            **id < newest && link.instance == *instance && link.boot == boot
        };
        let older: Vec<LinkId> = self.links.iter().filter(is_older).map(|(id, _)| *id).collect();
        for id in older {
            self.end_at_daemon(id);
        }
    }

    fn end_at_daemon(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.is_open_at_daemon) else {
            return;
        };
        link.is_open_at_daemon = false;
        if link.has_said_hello {
            let (instance, boot) = (link.instance.clone(), link.boot);
            let event = Event::BridgeDetached { instance, boot };
            self.push_input(Input::Happened(event, Some(id)));
        }
        self.drop_closed_link(id);
    }

    fn drop_closed_link(&mut self, id: LinkId) {
        if self
            .links
            .get(&id)
            .is_some_and(|link| !link.is_open_at_daemon && !link.is_open_at_bridge)
        {
            self.links.remove(&id);
        }
    }

    pub(crate) fn frame_down_arrives(&mut self, id: LinkId, frame: Down) -> Checked {
        let Some(link) = self.links.get(&id) else { return Ok(()) };
        if link.is_cut || !link.is_open_at_bridge {
            self.faults.count(Fault::FrameDownLost);
            return Ok(());
        }
        let bridge = link.bridge;
        self.bridge_hears(bridge, frame)
    }

    pub(crate) fn link_lost_at_daemon(&mut self, id: LinkId) -> Checked {
        self.end_at_daemon(id);
        Ok(())
    }

    pub(crate) fn link_lost_at_bridge(&mut self, id: LinkId) -> Checked {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.is_open_at_bridge) else {
            return Ok(());
        };
        link.is_open_at_bridge = false;
        let bridge = link.bridge;
        self.drop_closed_link(id);
        self.bridge_loses_link(bridge, id);
        Ok(())
    }

    /// The bridge is gone, and the daemon notices in its own time.
    pub(crate) fn close_at_bridge(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.is_open_at_bridge = false;
            self.drop_closed_link(id);
            self.plan_soon(200, Action::LinkLostAtDaemon { link: id });
        }
    }

    /// The daemon is gone, or cuts everybody off. What it had sent may still arrive.
    pub(crate) fn close_all_links(&mut self, is_crash: bool) {
        let open = self.links.iter().filter(|(_, link)| link.is_open_at_daemon);
        let open: Vec<LinkId> = open.map(|(id, _)| *id).collect();
        for id in open {
            let link = self.links.get_mut(&id).expect("the link was just listed");
            link.is_open_at_daemon = false;
            if !is_crash && self.config.keeps_inbox && link.has_said_hello {
                let event =
                    Event::BridgeDetached { instance: link.instance.clone(), boot: link.boot };
                self.engine.inbox.push_back(Input::Happened(event, Some(id)));
            }
            self.drop_closed_link(id);
            self.plan_soon(100, Action::LinkLostAtBridge { link: id });
        }
    }

    /// Nothing has happened to the link so far.
    pub(crate) fn is_whole(&self, id: LinkId) -> bool {
        self.links
            .get(&id)
            .is_some_and(|link| !link.is_cut && link.is_open_at_daemon && link.is_open_at_bridge)
    }

    /// Does what the core said, after the commit.
    pub(crate) fn carry_out(&mut self, command: &Command) -> Checked {
        match command {
            Command::StartInstance { instance, .. } => self.start(instance.clone())?,
            Command::KillInstance { instance } => self.kill(instance.clone()),
            Command::AdmitBridge { instance, boot, launch } => {
                if let Some(id) = self.link_of(instance, Some(*boot)) {
                    let link = self.links.get_mut(&id).expect("the link was just found");
                    link.is_admitted = true;
                    self.send_down(id, Down::Welcome { launch: *launch });
                }
            }
            Command::RefuseBridge { instance, boot, why: _ } => {
                if let Some(id) = self.link_of(instance, Some(*boot)) {
                    self.send_down(id, Down::Refused);
                }
            }
            Command::ListInputs { instance, look } => self.list_inputs(instance.clone(), *look),
            Command::SyncFiles { instance, version } => {
                self.tell_bridge(instance, Down::Sync { version: *version });
            }
            Command::LaunchAgent { instance, revision } => {
                self.tell_bridge(instance, Down::Launch { revision: *revision });
            }
            Command::DeliverTurn { instance, turn } => {
                let row = self.durable.messages.get(&turn.message);
                let text = row.map(|row| row.record.text.clone()).unwrap_or_default();
                self.tell_bridge(instance, Down::Turn { turn: *turn, text });
            }
            Command::AcknowledgeTurn { instance, turn } => {
                self.checker.acknowledged(*turn, &self.durable)?;
                self.tell_bridge(instance, Down::Acknowledge { turn: *turn });
            }
            Command::StopInstance { instance, grace } => {
                let grace_ms = dormouse_core::time::millis(*grace);
                self.tell_bridge(instance, Down::Stop { grace_ms });
            }
            Command::ReleaseInstance { instance } => {
                self.checker.released(instance, &self.durable)?;
                self.tell_bridge(instance, Down::Release);
                self.driver.forget(instance);
            }
        }
        Ok(())
    }

    fn tell_bridge(&mut self, instance: &InstanceId, frame: Down) {
        if let Some(id) = self.link_of(instance, None) {
            self.send_down(id, frame);
        }
    }

    /// The newest link of this bridge; without a boot, the newest that was admitted.
    fn link_of(&self, instance: &InstanceId, boot: Option<BootId>) -> Option<LinkId> {
        let fits = |(_, link): &(&LinkId, &Link)| {
            link.instance == *instance
                && link.is_open_at_daemon
                && link.has_said_hello
                && boot.map_or(link.is_admitted, |boot| link.boot == boot)
        };
        self.links.iter().rev().find(fits).map(|(id, _)| *id)
    }

    /// No frame for a bridge that lives may be about a session that never started it.
    pub(crate) fn check_release(&self, bridge: BridgeId) -> Checked {
        let Some(bridge) = self.bridges.get(&bridge) else { return Ok(()) };
        Invariant::OneLiveInstance.check(!bridge.agent_lives(), || {
            format!("{} is released while its agent lives", bridge.instance)
        })
    }
}

fn event_of(frame: Up, instance: InstanceId, boot: BootId) -> Event {
    match frame {
        Up::Hello { agent, held } => Event::BridgeAttached { instance, boot, agent, held },
        Up::Ready => Event::InstanceReady { instance },
        Up::Delta { turn, offset, text } => Event::TurnProgressed { instance, turn, offset, text },
        Up::Ended { turn, outcome } => Event::TurnEnded { instance, turn, outcome },
        Up::Hold { name, for_ms } => Event::HoldTaken { instance, name, for_ms },
        Up::Syncing { progress } => Event::FilesProgressed { instance, progress },
        Up::Synced { version } => Event::FilesSynced { instance, version },
        Up::SyncFailed { version, problem } => {
            Event::FilesSyncFailed { instance, version, problem }
        }
        Up::Exited { evidence } => Event::InstanceExited { instance, evidence },
    }
}

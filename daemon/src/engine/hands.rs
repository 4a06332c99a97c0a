//! Carries out the core's commands: frames to bridges, verbs to drivers.
//!
//! Owner: the engine calls `act` after each commit. Invariants: every command may be repeated or
//! lost (DESIGN 3); a driver's verb that fails is logged and, where the core waits for its outcome,
//! reported as an event; "unknown" is never reported as gone. Absent: retries (the core's deadlines
//! repeat what matters).

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_bridge::frames::ToBridge;
use dormouse_bridge::rundir::Dial;
use dormouse_core::command::Command;
use dormouse_core::event::Event;
use dormouse_core::evidence::{End, Evidence};
use dormouse_core::id::{BootId, InstanceId, RevisionNumber, SessionId, TurnId};
use dormouse_core::time::millis;
use dormouse_edge::driver::{Driver, FoundState, StartOrder, WhenNotEnforceable};
use dormouse_edge::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::launching::Launching;
use crate::agents::Agents;
use crate::config::DriverKind;
use crate::files::Files;
use crate::in_force::InForce;
use crate::report;

/// The drivers of this node, and the lines to the bridges.
#[derive(Debug)]
pub(crate) struct Drivers {
    pub(crate) process: Arc<dyn Driver>,
    pub(crate) fake: Arc<dyn Driver>,
    pub(crate) registry: Registry,
    pub(crate) agents: Agents,
    pub(crate) in_force: InForce,
    /// Where bridges fetch files.
    pub(crate) files_dial: Dial,
}

impl Drivers {
    /// The driver of a session's agent.
    pub(crate) fn of(&self, session: &SessionId) -> &Arc<dyn Driver> {
        match self.agents.driver_of(session) {
            DriverKind::Process => &self.process,
            DriverKind::Fake => &self.fake,
        }
    }

    pub(crate) fn connected_bridges(&self) -> usize {
        self.registry.connected()
    }
}

pub(crate) struct Hands {
    drivers: Arc<Drivers>,
    files: Arc<Files>,
    events: mpsc::Sender<Event>,
    runtime: Handle,
}

impl Hands {
    pub(crate) fn new(
        drivers: Arc<Drivers>,
        files: Arc<Files>,
        events: mpsc::Sender<Event>,
        runtime: Handle,
    ) -> Self {
        Self { drivers, files, events, runtime }
    }

    pub(crate) fn disconnect_bridges(&self) {
        self.drivers.registry.disconnect_all();
    }

    /// Before anything is decided: what is only shown.
    pub(crate) fn hear(&self, event: &Event) {
        self.files.hear(event);
    }

    /// `texts` has the text of every turn that the batch delivers.
    pub(crate) fn act(&self, command: Command, texts: &mut BTreeMap<TurnId, String>) {
        match command {
            Command::StartInstance { instance, revision, memory_limit_bytes } => {
                self.start(instance, revision, memory_limit_bytes);
            }
            Command::AdmitBridge { instance, boot, launch: Some(revision) } => {
                self.launch(instance, revision, Some(boot));
            }
            Command::AdmitBridge { instance, boot, launch: None } => {
                self.to_boot(&instance, boot, ToBridge::Welcome { launch: None });
            }
            Command::RefuseBridge { instance, boot, why } => {
                self.to_boot(&instance, boot, ToBridge::Refused { why: why.to_owned() });
            }
            Command::ListInputs { instance, look } => self.list_inputs(instance, look),
            Command::SyncFiles { instance, version } => {
                let workspace = self.drivers.of(&instance.session).workspace_of(&instance.session);
                let files = self.drivers.files_dial.clone();
                self.to_bridge(&instance, ToBridge::Sync { version, files, workspace });
            }
            Command::LaunchAgent { instance, revision } => self.launch(instance, revision, None),
            Command::DeliverTurn { instance, turn } => {
                let text = texts.remove(&turn).expect("the engine adds each delivered text");
                self.to_bridge(&instance, ToBridge::Turn { turn, text });
            }
            Command::AcknowledgeTurn { instance, turn } => {
                self.to_bridge(&instance, ToBridge::Acknowledge { turn });
            }
            Command::StopInstance { instance, grace } => {
                self.to_bridge(&instance, ToBridge::Stop { grace_ms: millis(grace) });
            }
            Command::KillInstance { instance } => self.kill(instance),
            Command::ReleaseInstance { instance } => self.release(instance),
        }
    }

    /// A bridge that is away gets what it needs when it comes back: commands are derived anew then.
    fn to_bridge(&self, instance: &InstanceId, frame: ToBridge) {
        if !self.drivers.registry.send(instance, frame) {
            tracing::debug!(%instance, "its bridge is away");
        }
    }

    fn to_boot(&self, instance: &InstanceId, boot: BootId, frame: ToBridge) {
        if !self.drivers.registry.send_to_boot(instance, boot, frame) {
            tracing::debug!(%instance, "its bridge is away");
        }
    }

    fn launch(&self, instance: InstanceId, revision: RevisionNumber, welcomes: Option<BootId>) {
        let (drivers, events) = (Arc::clone(&self.drivers), self.events.clone());
        let launching = Launching { drivers, instance, revision, welcomes, events };
        if launching.must_fetch() {
            // This daemon did not order its start, and does not know yet what was asked for then.
            self.runtime.spawn(launching.fetch_and_give());
            return;
        }
        match launching.made() {
            Ok(launch) => launching.send(launch),
            Err(error) => drop(self.runtime.spawn(launching.refuse(error))),
        }
    }

    fn list_inputs(&self, instance: InstanceId, look: u64) {
        let files = Arc::clone(&self.files);
        let events = self.events.clone();
        self.runtime.spawn(async move {
            let outcome = files.list(&instance.session).await;
            drop(events.send(Event::InputsListed { instance, look, outcome }).await);
        });
    }

    fn start(
        &self,
        instance: InstanceId,
        revision: RevisionNumber,
        memory_limit_bytes: Option<u64>,
    ) {
        let current = self.drivers.in_force.now();
        let agent = current.agent_in(instance.session.agent(), revision);
        let order = StartOrder {
            instance: instance.clone(),
            memory_limit_bytes,
            pids_limit: agent.and_then(|agent| agent.pids_limit),
            when_not_enforceable: match current.config().refuse_without_cgroup {
                true => WhenNotEnforceable::Refuse,
                false => WhenNotEnforceable::GoOnUnlimited,
            },
        };
        let (drivers, events) = (Arc::clone(&self.drivers), self.events.clone());
        self.runtime.spawn(async move {
            let fetched = drivers.agents.fetch(&instance, revision).await;
            let started = match fetched.map_err(|error| report::chain(&error)) {
                Ok(()) => {
                    let started = drivers.of(&instance.session).start(order).await;
                    started.map_err(|error| report::chain(&error))
                }
                Err(error) => Err(error),
            };
            let event = match started {
                Ok(()) => Event::InstanceStarted { instance },
                Err(error) => {
                    tracing::warn!(%instance, %error, "could not be started");
                    Event::InstanceStartFailed { instance, error }
                }
            };
            // The engine ends before its channel does only when the process is about to.
            drop(events.send(event).await);
        });
    }

    fn kill(&self, instance: InstanceId) {
        let driver = Arc::clone(self.drivers.of(&instance.session));
        self.runtime.spawn(async move {
            if let Err(error) = driver.kill(&instance).await {
                let error = report::chain(&error);
                tracing::warn!(%instance, %error, "could not be killed yet");
            }
        });
    }

    fn release(&self, instance: InstanceId) {
        self.files.forget(&instance);
        self.drivers.agents.secrets().forget(&instance);
        self.to_bridge(&instance, ToBridge::Release);
        let driver = Arc::clone(self.drivers.of(&instance.session));
        self.runtime.spawn(async move {
            if let Err(error) = driver.release(&instance).await {
                tracing::warn!(%instance, error = %report::chain(&error), "left something behind");
            }
        });
    }

    /// After a start: `expected` have an instance in the store. What the drivers know of them is
    /// reported; what they do not know of them never ran; what they have beyond them is ended and
    /// removed.
    pub(crate) fn reconcile(&self, expected: Vec<InstanceId>) {
        let drivers = Arc::clone(&self.drivers);
        let events = self.events.clone();
        self.runtime.spawn(async move {
            for kind in [DriverKind::Process, DriverKind::Fake] {
                let of_kind =
                    |instance: &&InstanceId| drivers.agents.driver_of(&instance.session) == kind;
                let expected: Vec<InstanceId> = expected.iter().filter(of_kind).cloned().collect();
                let driver = match kind {
                    DriverKind::Process => &drivers.process,
                    DriverKind::Fake => &drivers.fake,
                };
                reconcile_with(driver, expected, &events).await;
            }
        });
    }
}

async fn reconcile_with(
    driver: &Arc<dyn Driver>,
    expected: Vec<InstanceId>,
    events: &mpsc::Sender<Event>,
) {
    let listing = match driver.list().await {
        Ok(listing) => listing,
        Err(error) => {
            // Unknown is not gone: the core's deadlines will kill what does not come back by
            // itself.
            tracing::error!(error = %report::chain(&error), "cannot list what runs");
            return;
        }
    };
    for unreadable in &listing.unreadable {
        tracing::error!(
            folder = %unreadable.folder.display(),
            error = %unreadable.error,
            "an instance's folder cannot be read; it is left alone"
        );
    }
    let is_unreadable = |instance: &InstanceId| {
        listing
            .unreadable
            .iter()
            .any(|one| one.name == dormouse_edge::paths::instance_name(instance))
    };
    let missing: Vec<InstanceId> = expected
        .iter()
        .filter(|instance| !listing.found.iter().any(|found| found.instance == **instance))
        .filter(|instance| !is_unreadable(instance))
        .cloned()
        .collect();
    for instance in missing {
        drop(events.send(vanished(instance)).await);
    }
    for found in listing.found {
        let is_expected = expected.contains(&found.instance);
        if !is_expected && found.state == FoundState::Alive {
            tracing::warn!(instance = %found.instance, "nobody expects it any more; it is ended");
            if let Err(error) = driver.kill(&found.instance).await {
                tracing::warn!(error = %report::chain(&error), "could not be killed yet");
            }
        }
        for event in found.into_events() {
            drop(events.send(event).await);
        }
    }
}

/// An instance that the drivers do not know: it never ran, or it ended long ago.
fn vanished(instance: InstanceId) -> Event {
    Event::InstanceExited { instance, evidence: Evidence::bare(End::NeverLaunched) }
}

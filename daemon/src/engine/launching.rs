//! Hands an agent's launch to its bridge, once its secrets are there.
//!
//! Owner: `Hands`. Invariants: what has to be asked for is asked for off the engine's thread; a
//! bridge that cannot get a launch is refused, and that is the whole of its life, with the reason.
//! Absent: what a launch contains (`agents`).

use std::sync::Arc;

use dormouse_bridge::frames::{Launch, Secret, ToBridge};
use dormouse_core::event::Event;
use dormouse_core::evidence::{End, Evidence};
use dormouse_core::id::{BootId, InstanceId, RevisionNumber};
use tokio::sync::mpsc;

use super::hands::Drivers;
use crate::report;

/// One launch on its way to one bridge.
#[derive(Debug)]
pub(super) struct Launching {
    pub(super) drivers: Arc<Drivers>,
    pub(super) instance: InstanceId,
    pub(super) revision: RevisionNumber,
    /// The bridge that is welcomed with it; `None`: it was welcomed before its files were there.
    pub(super) welcomes: Option<BootId>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Launching {
    /// Whether this has to wait for a command.
    pub(super) fn must_fetch(&self) -> bool {
        self.drivers.agents.must_fetch(&self.instance, self.revision)
    }

    pub(super) async fn fetch_and_give(self) {
        match self.drivers.agents.fetch(&self.instance, self.revision).await {
            Ok(()) => self.give().await,
            Err(error) => self.refuse(report::chain(&error)).await,
        }
    }

    /// `None`: it cannot be made, and the bridge is to be refused with this.
    pub(super) fn made(&self) -> Result<Launch, String> {
        let driver = self.drivers.of(&self.instance.session);
        let workspace = driver.workspace_of(&self.instance.session);
        let launch = self.drivers.agents.launch(&self.instance, self.revision, workspace);
        let mut launch = launch.map_err(|error| report::chain(&error))?;
        // Last, so that no config takes an agent's processes out of the driver's sight.
        let marks = driver.environment_of(&self.instance).into_iter();
        launch.env.extend(marks.map(|(name, value)| (name, Secret(value))));
        Ok(launch)
    }

    async fn give(self) {
        match self.made() {
            Ok(launch) => self.send(launch),
            Err(error) => self.refuse(error).await,
        }
    }

    pub(super) fn send(&self, launch: Launch) {
        self.to_bridge(match self.welcomes {
            Some(_) => ToBridge::Welcome { launch: Some(launch) },
            None => ToBridge::Launch { launch },
        });
    }

    /// A refused bridge executes nothing, so that this is the whole of its life.
    pub(super) async fn refuse(self, error: String) {
        self.to_bridge(ToBridge::Refused { why: "its agent cannot be launched".to_owned() });
        let evidence = Evidence::bare(End::LaunchFailed { error });
        let exited = Event::InstanceExited { instance: self.instance, evidence };
        // The engine ends before its channel does only when the process is about to.
        drop(self.events.send(exited).await);
    }

    fn to_bridge(&self, frame: ToBridge) {
        let registry = &self.drivers.registry;
        let is_there = match self.welcomes {
            Some(boot) => registry.send_to_boot(&self.instance, boot, frame),
            None => registry.send(&self.instance, frame),
        };
        if !is_there {
            tracing::debug!(instance = %self.instance, "its bridge is away");
        }
    }
}

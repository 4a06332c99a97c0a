//! The config in force: one value, replaced whole, that everybody reads when they act.
//!
//! ```text
//!  start, reload ─▶ engine: revisions and history on disk ─▶ InForce::replace ─▶ orders go out
//! ```
//!
//! Owner: the engine replaces it between the commit and what follows from it, so that what is on
//! disk, what is decided and what is done agree. Invariant: who looks once sees one config, whole.
//! Absent: reading files (`reload`), what the core needs of it (`Revisions::setups`).

use std::sync::Arc;

use dormouse_core::event::Setup;
use dormouse_core::id::{AgentName, RevisionNumber};
use dormouse_core::time::Wall;

use dormouse_store::ConfigRecord;
use tokio::sync::watch;

use crate::config::{Agent, Config, Loaded};
use crate::revisions::Revisions;

/// A config, the agents' revisions under it, and since when it is in force.
#[derive(Debug)]
pub(crate) struct Current {
    /// In the history, from 1.
    pub(crate) number: u64,
    pub(crate) at: Wall,
    /// Who put it into force, in words.
    pub(crate) by: String,
    pub(crate) loaded: Loaded,
    pub(crate) revisions: Revisions,
}

impl Current {
    /// For who looks at a config that nobody goes by.
    pub(crate) fn nowhere(loaded: Loaded) -> Self {
        let (at, by, revisions) = (Wall(0), String::new(), Revisions::default());
        Self { number: 0, at, by, loaded, revisions }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.loaded.config
    }

    pub(crate) fn agent(&self, name: &str) -> Option<&Agent> {
        self.config().agents.get(name)
    }

    /// The agent as that revision has it.
    pub(crate) fn agent_in(&self, name: &str, revision: RevisionNumber) -> Option<&Agent> {
        self.revisions.agent(name, revision)
    }

    pub(crate) fn agent_names(&self) -> impl Iterator<Item = &AgentName> {
        self.config().agents.keys()
    }

    /// For the history.
    pub(crate) fn record(&self) -> ConfigRecord {
        let Current { number, at, by, loaded, .. } = self;
        ConfigRecord { number: *number, at: *at, by: by.clone(), text: loaded.text.clone() }
    }

    /// For the core.
    pub(crate) fn setup(&self) -> Setup {
        Setup { node: self.config().node.clone(), agents: self.revisions.setups() }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct InForce(Arc<watch::Sender<Arc<Current>>>);

impl InForce {
    pub(crate) fn new(current: Current) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(current))))
    }

    pub(crate) fn now(&self) -> Arc<Current> {
        Arc::clone(&self.0.borrow())
    }

    pub(crate) fn replace(&self, current: Current) {
        self.0.send_replace(Arc::new(current));
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Current>> {
        self.0.subscribe()
    }
}

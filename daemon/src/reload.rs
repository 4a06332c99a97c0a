//! From an edited config to the one in force, in the running process.
//!
//! ```text
//!  file changed (watch) ─┐
//!  SIGHUP ───────────────┼▶ read, check ─▶ plan ─▶ engine: on disk, in force ─▶ the rest follows
//!  operator (api) ───────┘    └ wrong: said, and nothing changes
//! ```
//!
//! Owner: one per node. Invariants: one change at a time; what is wrong changes nothing; what needs
//! a restart of the daemon is never half applied: it waits, or all of it waits with it; whoever is
//! told that a config is in force is told the truth. Absent: what a change comes to
//! (`config::plan`), which revision is good (`core`), a hand-over (`handover`).

pub(crate) mod watch;
mod written;

use std::path::PathBuf;
use std::sync::Arc;

use dormouse_core::time::Wall;
use dormouse_edge::driver::fake::FakeDriver;
use dormouse_store::ConfigRecord;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::api::{Problem, Readers};
use crate::config::plan::{Interrupts, Plan, plan};
use crate::config::{self, ConfigError, Effective, Loaded};
use crate::engine::clock::wall_now;
use crate::engine::request::{AskError, ConfigChange, Gateway, Request, Verdict};
use crate::files::{self, Files};
use crate::gate::Gate;
use crate::in_force::{Current, InForce};
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::report;
use crate::revisions::Revisions;

/// What a change touches beside the engine.
pub(crate) struct ReloadParts {
    pub(crate) in_force: InForce,
    pub(crate) gateway: Gateway,
    pub(crate) readers: Readers,
    pub(crate) files: Arc<Files>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) notifier: Notifier,
    pub(crate) fake: Arc<FakeDriver>,
}

pub(crate) struct Reload {
    parts: ReloadParts,
    one_at_a_time: Mutex<()>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Files(#[from] files::OpenError),
    #[error("config {base} is not in force any more; {number} is")]
    Moved { base: u64, number: u64 },
    #[error("config {number} is not in the history")]
    NoSuchConfig { number: u64 },
    #[error("the daemon runs on the built-in config, which is no file that could be written")]
    BuiltIn,
    #[error("the config {} cannot be written", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the data folder has too little room")]
    StoreFull,
    #[error("the history of configs cannot be read")]
    History(Box<Problem>),
    #[error(transparent)]
    Engine(#[from] AskError),
}

impl ReloadError {
    /// The same may work in a moment.
    fn is_passing(&self) -> bool {
        match self {
            Self::StoreFull | Self::History(_) | Self::Engine(_) => true,
            Self::Config(_)
            | Self::Files(_)
            | Self::Moved { .. }
            | Self::NoSuchConfig { .. }
            | Self::BuiltIn
            | Self::Write { .. } => false,
        }
    }
}

/// Where the new settings come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The daemon's file as it is.
    File,
    /// A text that is to stand in the file.
    Text(String),
    /// What was in force before, by its number in the history.
    Earlier(u64),
}

/// What becomes of settings that need a restart of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnRestart {
    /// They wait; the others come into force.
    Hold,
    /// If there are any, nothing comes into force.
    WaitWhole,
}

/// Who asks for a change, and on what terms.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// In words, for the history.
    pub(crate) by: String,
    /// The config that must still be in force.
    pub(crate) base: Option<u64>,
    pub(crate) on_restart: OnRestart,
}

/// What a change has come to, or would come to.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Of the config that is in force now.
    pub(crate) number: u64,
    pub(crate) plan: Plan,
    /// The paths of what waits for a restart of the daemon.
    pub(crate) held: Vec<String>,
    /// Whether anything came into force.
    pub(crate) is_applied: bool,
}

impl Reload {
    pub(crate) fn new(parts: ReloadParts) -> Self {
        Self { parts, one_at_a_time: Mutex::default() }
    }

    /// What would change; nothing does.
    pub(crate) async fn plan(&self, wanted: Wanted) -> Result<Outcome, ReloadError> {
        let current = self.parts.in_force.now();
        let loaded = self.loaded(&current, wanted).await?;
        self.parts.files.check_sources(&loaded.config)?;
        let plan = plan_to(&current, &loaded);
        let held = plan.held();
        Ok(Outcome { number: current.number, plan, held, is_applied: false })
    }

    pub(crate) async fn apply(&self, wanted: Wanted, terms: Terms) -> Result<Outcome, ReloadError> {
        let _alone = self.one_at_a_time.lock().await;
        let current = self.parts.in_force.now();
        let number = current.number;
        if let Some(base) = terms.base.filter(|base| *base != number) {
            return Err(ReloadError::Moved { base, number });
        }
        let is_to_be_written = wanted != Wanted::File;
        let loaded = self.loaded(&current, wanted).await?;
        let plan = plan_to(&current, &loaded);
        let held = plan.held();
        let waits = terms.on_restart == OnRestart::WaitWhole && !held.is_empty();
        if is_to_be_written {
            // Checked first: what is no good does not reach the file.
            self.parts.files.check_sources(&loaded.config)?;
            written::write(loaded.path.clone(), loaded.text.clone()).await?;
        }
        let changes_something = plan.changes.len() > held.len();
        if waits || (loaded.text == current.loaded.text && !changes_something) {
            return Ok(Outcome { number, plan, held, is_applied: false });
        }
        let loaded = match held.is_empty() {
            true => loaded,
            false => loaded.holding_back(&current.loaded.file)?,
        };
        let number = self.put_in_force(&current, loaded, terms.by).await?;
        Ok(Outcome { number, plan, held, is_applied: true })
    }

    /// The daemon was told to look at its file. What interrupts nobody comes into force.
    pub(crate) async fn hang_up(&self) {
        let by = "SIGHUP".to_owned();
        let terms = Terms { by, base: None, on_restart: OnRestart::Hold };
        log(&self.apply(Wanted::File, terms).await);
    }

    async fn loaded(&self, current: &Current, wanted: Wanted) -> Result<Loaded, ReloadError> {
        let path = current.loaded.path.clone();
        match wanted {
            Wanted::File => {
                let read = move || {
                    // A file that was not there at the start may be there now.
                    let path = path.or_else(|| config::path_of(None));
                    // A pipe has been read once, and would be waited for until its end.
                    config::check_plain(path.as_deref())?;
                    config::load(path.as_deref())
                };
                Ok(spawn_blocking(read).await.map_err(|_| AskError::Ended)??)
            }
            Wanted::Text(text) => Ok(config::load_text(text, path)?),
            Wanted::Earlier(number) => {
                let record = self.earlier(number).await?;
                Ok(config::load_text(record.text, path)?)
            }
        }
    }

    async fn earlier(&self, number: u64) -> Result<ConfigRecord, ReloadError> {
        let read = self.parts.readers.read(move |reader| reader.config(number)).await;
        let record = read.map_err(|problem| ReloadError::History(Box::new(problem)))?;
        record.ok_or(ReloadError::NoSuchConfig { number })
    }

    async fn put_in_force(
        &self,
        before: &Current,
        loaded: Loaded,
        by: String,
    ) -> Result<u64, ReloadError> {
        let parts = &self.parts;
        parts.files.check_sources(&loaded.config)?;
        let kept = parts.readers.read(|reader| reader.revisions()).await;
        let kept = kept.map_err(|problem| ReloadError::History(Box::new(problem)))?;
        let at: Wall = wall_now();
        let number = before.number + 1;
        let (revisions, fresh) =
            Revisions::of(&loaded.file, &loaded.config, &loaded.folder, &kept, at);
        let current = Current { number, at, by, loaded, revisions };
        // Known before the first order that rests on it.
        for (agent, script) in &current.loaded.fake_scripts {
            parts.fake.set_script(agent.clone(), script.clone());
        }
        let change = Box::new(ConfigChange { current, revisions: fresh });
        match parts.gateway.ask(false, |ask| Request::Configure { change, ask }).await? {
            Verdict::Answered { .. } => {}
            Verdict::StoreFull => return Err(ReloadError::StoreFull),
            Verdict::Done | Verdict::NotFound | Verdict::Explained { .. } => {
                unreachable!("a config comes into force or there is no room")
            }
        }
        let current = parts.in_force.now();
        parts.gate.set_limits(&current.config().gate);
        parts.metrics.begin(current.agent_names());
        parts.notifier.retarget(current.config().notify.clone());
        Ok(number)
    }
}

fn plan_to(current: &Current, loaded: &Loaded) -> Plan {
    plan(&Effective::of(&current.loaded.file), &Effective::of(&loaded.file))
}

impl Plan {
    /// The paths of what needs a restart of the daemon.
    fn held(&self) -> Vec<String> {
        let held = self.changes.iter().filter(|change| change.interrupts() == Interrupts::Daemon);
        held.map(|change| change.path.clone()).collect()
    }
}

/// For whoever has nobody to answer.
fn log(result: &Result<Outcome, ReloadError>) {
    match result {
        Ok(Outcome { is_applied, number, plan, held }) => {
            if *is_applied {
                let changed: Vec<&str> =
                    plan.changes.iter().map(|change| change.path.as_str()).collect();
                tracing::info!(config = number, ?changed, "a new config is in force");
            }
            if !held.is_empty() {
                tracing::warn!(?held, "these wait for `dormouse config apply`");
            }
        }
        Err(error) => {
            let error = report::chain(error);
            tracing::error!(%error, "the config in force stays as it is");
        }
    }
}

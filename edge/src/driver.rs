//! The contract with whatever runs instances: start, kill, release, list, and what can be enforced
//! here.
//!
//! ```text
//!            start                       (its bridge dials the daemon)
//!  nothing ────────▶ running ──────────────────────────▶ ended ── release ──▶ nothing
//!                       │   kill, or by itself             │
//!                       └──────────────────────────────────┴─▶ TurnEnded*, InstanceExited
//! ```
//!
//! Owner: the daemon calls these when the engine's commands say so. Invariants: an instance is
//! named by its id alone, so every verb works after a restart of the daemon and may be repeated; an
//! end is reported only once nothing of the instance lives, and leftover results before it; what
//! cannot be read is an error and never "gone". Absent: decisions, retries, and talk with the
//! bridge, which goes over the `registry`.

pub mod fake;
pub mod process;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use dormouse_core::event::{Event, TurnOutcome};
use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::id::{InstanceId, SessionId, TurnId};

use crate::paths::FolderError;

/// What a driver's verb is: work that can be waited for behind `dyn Driver`.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts and ends instances somewhere. What it learns by itself, it reports as events into the
/// channel that it was made with: leftover results as `TurnEnded`, then `InstanceExited`. That
/// channel is bounded, so whoever takes from it must not be waiting for a verb meanwhile.
pub trait Driver: Send + Sync + fmt::Debug {
    /// What this driver can enforce where it runs, found out by trying.
    fn facts(&self) -> DriverFacts;

    /// The agent's working directory, which survives its instances. It exists once an instance was
    /// started.
    fn workspace_of(&self, session: &SessionId) -> PathBuf;

    /// What every agent's environment must carry, whatever else it has: by this the driver finds
    /// processes that left their agent's group.
    fn environment_of(&self, instance: &InstanceId) -> Vec<(String, String)>;

    /// Where the session's logs are kept, if it is a folder of this machine.
    fn logs_of(&self, session: &SessionId) -> Option<PathBuf>;

    /// Executes a bridge for the instance, once: an instance that exists is left as it is. After an
    /// error nothing of it exists.
    fn start(&self, order: StartOrder) -> Work<'_, Result<(), StartError>>;

    /// Ends everything of the instance by force. After `Ok` nothing of it lives, and its exit was
    /// reported; once more if it had been before, since whoever asks again did not get it.
    fn kill<'a>(&'a self, instance: &'a InstanceId) -> Work<'a, Result<(), KillError>>;

    /// The exit is on disk: waits for the bridge to end, ends it if it does not, and removes what
    /// was kept for it.
    fn release<'a>(&'a self, instance: &'a InstanceId) -> Work<'a, Result<(), ReleaseError>>;

    /// Everything that was started and not released, whoever started it. Those alive are watched
    /// from then on.
    fn list(&self) -> Work<'_, Result<Listing, ListError>>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartOrder {
    pub instance: InstanceId,
    pub memory_limit_bytes: Option<u64>,
    pub pids_limit: Option<u64>,
    pub when_not_enforceable: WhenNotEnforceable,
}

/// What to do with a limit that this machine cannot enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenNotEnforceable {
    GoOnUnlimited,
    Refuse,
}

#[derive(Debug, Default)]
pub struct Listing {
    pub found: Vec<Found>,
    /// Something is there, and nobody knows what. It must not be taken for gone.
    pub unreadable: Vec<Unreadable>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub instance: InstanceId,
    pub state: FoundState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundState {
    /// Its bridge lives, and dials; or its end is on its way as an event.
    Alive,
    /// Nothing of it lives. It waits to be released.
    Ended(Leftovers),
}

#[derive(Debug)]
pub struct Unreadable {
    /// `paths::instance_name` of the instance that it was made for.
    pub name: String,
    pub folder: PathBuf,
    pub error: String,
}

impl Found {
    /// What the driver would have reported, had the daemon been there.
    pub fn into_events(self) -> Vec<Event> {
        match self.state {
            FoundState::Alive => Vec::new(),
            FoundState::Ended(leftovers) => leftovers.into_events(&self.instance),
        }
    }
}

/// What an instance that has ended left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftovers {
    /// Finished turns that nobody acknowledged.
    pub results: Vec<(TurnId, TurnOutcome)>,
    pub evidence: Evidence,
}

impl Leftovers {
    /// An instance's last events, in their order.
    pub fn into_events(self, instance: &InstanceId) -> Vec<Event> {
        let ended =
            |(turn, outcome)| Event::TurnEnded { instance: instance.clone(), turn, outcome };
        let mut events: Vec<Event> = self.results.into_iter().map(ended).collect();
        let (instance, evidence) = (instance.clone(), self.evidence);
        events.push(Event::InstanceExited { instance, evidence });
        events
    }

    /// For a kill of what is not there, so that nobody waits for its end for ever.
    pub(crate) fn of_the_unknown() -> Self {
        let bare = Evidence::bare(End::BridgeLost);
        let evidence = Evidence { asked_by: Some(AskedBy::Driver), ..bare };
        Self { results: Vec::new(), evidence }
    }
}

/// For `doctor`, and for an operator who asks why a limit did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverFacts {
    pub driver: &'static str,
    pub memory: Enforcement,
    pub pids: Enforcement,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enforcement {
    Enforced { by: String, at: PathBuf, but: Option<String> },
    NotEnforced { why: String, fix: String },
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Enforcement::Enforced { by, at, but: None } => {
                write!(f, "enforced by {by} at {}", at.display())
            }
            Enforcement::Enforced { by, at, but: Some(but) } => {
                write!(f, "enforced by {by} at {}, but {but}", at.display())
            }
            Enforcement::NotEnforced { why, fix } => write!(f, "not enforced: {why}. {fix}"),
        }
    }
}

/// Why an instance was not started. Nothing of it exists.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Refused(String),
    #[error("the {what} limit cannot be enforced here: {why}. {fix}")]
    NotEnforceable { what: &'static str, why: String, fix: String },
    #[error("the instance's folder could not be made")]
    Folder(#[from] FolderError),
    #[error("{} could not be {doing}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why it is not known that an instance is over.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    #[error("something of {instance} still lives: {what}")]
    StillAlive { instance: InstanceId, what: String },
}

/// Why something of an instance is left.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error("the instance did not end")]
    NotEnded(#[from] KillError),
    #[error("{} could not be {doing}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("{} could not be read", folder.display())]
    Io {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
}

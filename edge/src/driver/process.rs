//! The process driver: a bridge and its agent as processes of this machine.
//!
//! ```text
//!  start ─▶ run folder ─▶ bridge (own session, holds the lock) ─▶ agent (own control group)
//!              ▲              │ dies
//!            list          task of the instance ─▶ purge ─▶ TurnEnded*, InstanceExited
//! ```
//!
//! Owner: the daemon makes one, once it holds its data folder's lock. Invariants: as the `Driver`
//! trait demands; bridges outlive this process and are found again by their run folders; every
//! instance has at most one task here that watches it. Absent: restarts, and talk with bridges.

mod bridge;
mod cgroup;
mod folder;
mod purge;
mod remains;
mod task;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_bridge::rundir::{CgroupSpec, Dial, RunFolder, Spec};
use dormouse_core::event::Event;
use dormouse_core::id::{InstanceId, SessionId};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use self::cgroup::{CgroupError, Cgroups, Limits};
use self::folder::{TakenDescriptor, in_words};
use self::purge::Traces;
use self::remains::Remains;
use self::task::{State, Task, Wishes};
use super::{
    Driver, DriverFacts, Enforcement, Found, FoundState, KillError, Leftovers, ListError, Listing,
    ReleaseError, StartError, StartOrder, WhenNotEnforceable, Work,
};
use crate::paths::{DataFolder, FolderError, instance_name};
use crate::token::DeploymentSecret;

/// In every agent's environment: whose it is, `agent/key#generation`, and of which deployment,
/// since another one may have a session of the same name.
const INSTANCE_MARK: &str = "DORMOUSE_INSTANCE";
const DEPLOYMENT_MARK: &str = "DORMOUSE_DEPLOYMENT";
/// How long a kill may take to be confirmed.
const KILL_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct ProcessDriverConfig {
    pub data: DataFolder,
    /// Names this deployment's control groups and processes, so that two on one machine do not
    /// meet: letters, digits and `-`, and the same ones after every restart.
    pub deployment: String,
    /// Program and leading arguments that execute a bridge; its run folder is added as the last.
    pub bridge_command: Vec<OsString>,
    /// Where bridges dial the daemon: `ControlSocket::dial`.
    pub dial: Dial,
    pub secret: DeploymentSecret,
    /// How long a released bridge may take to end by itself.
    pub release_within: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("'{0}' is no name for a deployment: 1 to 40 letters, digits and '-'")]
    Deployment(String),
    #[error("what an earlier daemon left cannot be removed")]
    Sweep(#[from] FolderError),
    #[error("a descriptor cannot be kept for bridges")]
    Descriptor(#[source] io::Error),
}

#[derive(Debug)]
pub struct ProcessDriver {
    shared: Arc<Shared>,
    _taken: TakenDescriptor,
}

#[derive(Debug)]
struct Shared {
    config: ProcessDriverConfig,
    cgroups: Cgroups,
    events: mpsc::Sender<Event>,
    instances: Mutex<BTreeMap<InstanceId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    wishes: watch::Sender<Wishes>,
    state: watch::Receiver<State>,
    task: AbortHandle,
}

/// What this driver could enforce if it were opened by this process, found out by trying: for
/// `doctor`.
pub fn facts_here() -> DriverFacts {
    // Two who ask at one time must not meet in one group.
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let asked = ASKED.fetch_add(1, Ordering::Relaxed);
    let cgroups = Cgroups::detect(&format!("doctor-{}-{asked}", std::process::id()));
    cgroups.remove_deployment_folders();
    let Cgroups { memory, pids, .. } = cgroups;
    DriverFacts { driver: "process", memory, pids }
}

impl ProcessDriver {
    /// Finds out what can be enforced here, and removes what half-made starts left. Bridges that
    /// live are adopted by `list`.
    pub fn open(
        config: ProcessDriverConfig,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, OpenError> {
        Self::open_with(config, events, Cgroups::detect)
    }

    fn open_with(
        config: ProcessDriverConfig,
        events: mpsc::Sender<Event>,
        detect: impl FnOnce(&str) -> Cgroups,
    ) -> Result<Self, OpenError> {
        let name = &config.deployment;
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !is_name || !(1..=40).contains(&name.len()) {
            return Err(OpenError::Deployment(name.clone()));
        }
        let taken = TakenDescriptor::take().map_err(OpenError::Descriptor)?;
        folder::sweep(&config.data)?;
        let cgroups = detect(name);
        cgroups.sweep(|name| config.data.run().join(name).exists());
        let shared = Shared { config, cgroups, events, instances: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), _taken: taken })
    }
}

/// The bridges live on; the next driver finds them.
impl Drop for ProcessDriver {
    fn drop(&mut self) {
        for entry in self.shared.lock().values() {
            entry.task.abort();
        }
        self.shared.cgroups.remove_deployment_folders();
    }
}

impl Driver for ProcessDriver {
    fn facts(&self) -> DriverFacts {
        let Cgroups { memory, pids, .. } = &self.shared.cgroups;
        DriverFacts { driver: "process", memory: memory.clone(), pids: pids.clone() }
    }

    fn workspace_of(&self, session: &SessionId) -> PathBuf {
        self.shared.config.data.workspace_of(session)
    }

    fn environment_of(&self, instance: &InstanceId) -> Vec<(String, String)> {
        self.shared.marks_of(instance)
    }

    fn logs_of(&self, session: &SessionId) -> Option<PathBuf> {
        Some(self.shared.config.data.logs_of(session))
    }

    fn start(&self, order: StartOrder) -> Work<'_, Result<(), StartError>> {
        Box::pin(Arc::clone(&self.shared).start(order))
    }

    fn kill<'a>(&'a self, instance: &'a InstanceId) -> Work<'a, Result<(), KillError>> {
        Box::pin(Arc::clone(&self.shared).kill(instance))
    }

    fn release<'a>(&'a self, instance: &'a InstanceId) -> Work<'a, Result<(), ReleaseError>> {
        Box::pin(Arc::clone(&self.shared).release(instance))
    }

    fn list(&self) -> Work<'_, Result<Listing, ListError>> {
        Box::pin(Arc::clone(&self.shared).list())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Entry>> {
        // Nothing in this file can panic half-way through a change of the map.
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn marks_of(&self, instance: &InstanceId) -> Vec<(String, String)> {
        let deployment = self.config.deployment.clone();
        vec![
            (INSTANCE_MARK.to_owned(), instance.to_string()),
            (DEPLOYMENT_MARK.to_owned(), deployment),
        ]
    }

    fn is_own_cgroup(&self, spec: &CgroupSpec, instance: &InstanceId) -> bool {
        self.cgroups.is_own(spec, &instance_name(instance))
    }

    async fn report(&self, events: Vec<Event>) {
        for event in events {
            if self.events.send(event).await.is_err() {
                tracing::debug!("an instance ended after the engine");
            }
        }
    }

    async fn start(self: Arc<Self>, order: StartOrder) -> Result<(), StartError> {
        let instance = order.instance.clone();
        let (answer, answered) = oneshot::channel();
        let is_there = self.config.data.run_folder_of(&instance).exists();
        let mut state = self.entry(&instance, |task| async move {
            if is_there {
                drop(answer);
                task.adopt().await;
            } else {
                start_and_follow(task, order, answer).await;
            }
        });
        if let Ok(outcome) = answered.await {
            return outcome;
        }
        // It was there before. One that has ended may have done so unheard.
        let settled = state.wait_for(|state| !matches!(state, State::Starting)).await;
        let settled = settled.map_or(State::Gone, |state| state.clone());
        if let State::Gone = settled {
            let what = "another start of it at the same time failed".to_owned();
            return Err(StartError::Refused(what));
        }
        if let Some(leftovers) = leftovers_in(&settled) {
            self.report(leftovers.into_events(&instance)).await;
        }
        Ok(())
    }

    /// Blocks. After an error nothing of the instance exists.
    fn make(&self, order: &StartOrder) -> Result<Child, StartError> {
        let instance = &order.instance;
        let cgroup = self.make_cgroup(order)?;
        let spec = Spec {
            session: instance.session.clone(),
            generation: instance.generation,
            dial: self.config.dial.clone(),
            token: self.config.secret.token_of(instance),
            log_folder: self.config.data.logs_of(&instance.session),
            cgroup,
            memory_limit_bytes: order.memory_limit_bytes,
        };
        let started =
            folder::start(&self.config.data, &spec, instance, &self.config.bridge_command);
        started.inspect_err(|_| {
            let removed = spec.cgroup.as_ref().map_or(Ok(()), cgroup::remove);
            if let Err(error) = removed {
                let error = in_words(&error);
                tracing::error!(%instance, error, "the control group of a failed start stays");
            }
        })
    }

    fn make_cgroup(&self, order: &StartOrder) -> Result<Option<CgroupSpec>, StartError> {
        let limits = Limits { memory_bytes: order.memory_limit_bytes, pids: order.pids_limit };
        let wanted = [
            ("memory", limits.memory_bytes, &self.cgroups.memory),
            ("pids", limits.pids, &self.cgroups.pids),
        ];
        let must_hold = order.when_not_enforceable == WhenNotEnforceable::Refuse;
        for (what, limit, enforcement) in wanted {
            if let (true, Some(_), Enforcement::NotEnforced { why, fix }) =
                (must_hold, limit, enforcement)
            {
                let (why, fix) = (why.clone(), fix.clone());
                return Err(StartError::NotEnforceable { what, why, fix });
            }
        }
        let has_limit = limits != Limits::default();
        match self.cgroups.make(&instance_name(&order.instance), limits) {
            Ok(spec) => Ok(spec),
            Err(error) if must_hold && has_limit => {
                let (why, fix) = (in_words(&error), "See `dormouse doctor`.".into());
                Err(StartError::NotEnforceable { what: "memory or pids", why, fix })
            }
            Err(error) => {
                let (instance, error) = (&order.instance, in_words(&error));
                tracing::warn!(%instance, error, "started without a control group");
                Ok(None)
            }
        }
    }

    /// The state of the instance's task, which is made by `run` if there is none.
    fn entry<F>(
        self: &Arc<Self>,
        instance: &InstanceId,
        run: impl FnOnce(Task) -> F,
    ) -> watch::Receiver<State>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut instances = self.lock();
        if let Some(entry) = instances.get(instance) {
            return entry.state.clone();
        }
        let (wishes, wished) = watch::channel(Wishes::default());
        let (state, states) = watch::channel(State::Starting);
        let remains = Remains {
            shared: Arc::clone(self),
            instance: instance.clone(),
            folder: RunFolder::new(self.config.data.run_folder_of(instance)),
        };
        let task = tokio::spawn(run(Task { remains, wishes: wished, state })).abort_handle();
        instances.insert(instance.clone(), Entry { wishes, state: states.clone(), task });
        states
    }

    /// The state of an instance that exists; `None` if it does not.
    fn known(self: &Arc<Self>, instance: &InstanceId) -> Option<watch::Receiver<State>> {
        let is_known = self.lock().contains_key(instance);
        let is_there = is_known || self.config.data.run_folder_of(instance).exists();
        is_there.then(|| self.entry(instance, Task::adopt))
    }

    fn wish(&self, instance: &InstanceId, change: impl FnOnce(&mut Wishes)) {
        if let Some(entry) = self.lock().get(instance) {
            entry.wishes.send_modify(change);
        }
    }

    /// Waits for a confirmed end. `None`: it never came to be.
    async fn ended(
        &self,
        instance: &InstanceId,
        state: &mut watch::Receiver<State>,
        within: Duration,
    ) -> Result<Option<(Leftovers, bool)>, KillError> {
        let is_over = |state: &State| matches!(state, State::Ended { .. } | State::Gone);
        let waited = tokio::time::timeout(within, state.wait_for(is_over)).await;
        let what = match waited.map(|settled| settled.map(|state| state.clone())) {
            Ok(Ok(State::Ended { leftovers, is_reported })) => {
                return Ok(Some((leftovers, is_reported)));
            }
            Ok(Ok(_)) => return Ok(None),
            Ok(Err(_)) => {
                // Its task is gone; who asks again gets a new one.
                self.lock().remove(instance);
                "nobody watches it".to_owned()
            }
            Err(_) => match &*state.borrow() {
                State::Unconfirmed(what) => what.clone(),
                _ => "its bridge".to_owned(),
            },
        };
        Err(KillError::StillAlive { instance: instance.clone(), what })
    }

    async fn kill(self: Arc<Self>, instance: &InstanceId) -> Result<(), KillError> {
        let Some(mut state) = self.known(instance) else {
            return self.kill_the_unknown(instance).await;
        };
        let had_ended = leftovers_in(&state.borrow()).is_some();
        self.wish(instance, |wishes| wishes.kill = true);
        let ended = self.ended(instance, &mut state, KILL_WITHIN).await?;
        if let Some((leftovers, is_reported)) = ended
            && (had_ended || !is_reported)
        {
            self.report(leftovers.into_events(instance)).await;
        }
        Ok(())
    }

    /// It has no folder, so it was never started here, or was released. Whoever asks waits for an
    /// end all the same.
    async fn kill_the_unknown(&self, instance: &InstanceId) -> Result<(), KillError> {
        let marks = self.marks_of(instance);
        let look = move || purge::purge(&Traces { agent: None, cgroup: None, marks });
        let looked = tokio::task::spawn_blocking(look).await;
        if let Err(what) = looked.unwrap_or_else(|error| Err(error.to_string())) {
            return Err(KillError::StillAlive { instance: instance.clone(), what });
        }
        self.report(Leftovers::of_the_unknown().into_events(instance)).await;
        Ok(())
    }

    async fn release(self: Arc<Self>, instance: &InstanceId) -> Result<(), ReleaseError> {
        let Some(mut state) = self.known(instance) else { return Ok(()) };
        self.wish(instance, |wishes| wishes.released = true);
        if self.ended(instance, &mut state, self.config.release_within).await.is_err() {
            tracing::warn!(%instance, "a released bridge does not end, and is killed");
            self.wish(instance, |wishes| wishes.kill = true);
            self.ended(instance, &mut state, KILL_WITHIN).await?;
        }
        let (shared, named) = (Arc::clone(&self), instance.clone());
        let removed = tokio::task::spawn_blocking(move || shared.remove(&named)).await;
        removed.unwrap_or_else(|error| {
            let path = self.config.data.run_folder_of(instance);
            Err(ReleaseError::Io { doing: "removed", path, source: io::Error::other(error) })
        })?;
        self.lock().remove(instance);
        Ok(())
    }

    /// Blocks. The groups go first: the folder says which they are.
    fn remove(self: Arc<Self>, instance: &InstanceId) -> Result<(), ReleaseError> {
        let folder = RunFolder::new(self.config.data.run_folder_of(instance));
        let instance = instance.clone();
        let remains = Remains { shared: self, instance, folder };
        if let Some(spec) = remains.cgroup() {
            cgroup::remove(&spec).map_err(|error| {
                let CgroupError { doing, path, source } = error;
                ReleaseError::Io { doing, path, source }
            })?;
        }
        folder::remove(&remains.shared.config.data, &remains.instance).map_err(|error| {
            let FolderError { folder, source } = error;
            ReleaseError::Io { doing: "removed", path: folder, source }
        })
    }

    async fn list(self: Arc<Self>) -> Result<Listing, ListError> {
        let data = self.config.data.clone();
        let listed = tokio::task::spawn_blocking(move || folder::list(&data)).await;
        let listed = listed.unwrap_or_else(|error| Err(io::Error::other(error)));
        let listed =
            listed.map_err(|source| ListError::Io { folder: self.config.data.run(), source })?;
        let mut listing = Listing::default();
        let mut states = Vec::new();
        for entry in listed {
            match entry {
                Ok(instance) => states.push((self.entry(&instance, Task::adopt), instance)),
                Err(unreadable) => listing.unreadable.push(unreadable),
            }
        }
        for (mut state, instance) in states {
            let settled = state.wait_for(|state| !matches!(state, State::Starting)).await;
            let ended = settled.ok().and_then(|state| leftovers_in(&state));
            let state = ended.map_or(FoundState::Alive, FoundState::Ended);
            listing.found.push(Found { instance, state });
        }
        Ok(listing)
    }
}

async fn start_and_follow(
    task: Task,
    order: StartOrder,
    answer: oneshot::Sender<Result<(), StartError>>,
) {
    let shared = Arc::clone(&task.remains.shared);
    let instance = order.instance.clone();
    let made = tokio::task::spawn_blocking(move || shared.make(&order)).await;
    let made = made.unwrap_or_else(|error| {
        let path = task.remains.folder.path().to_owned();
        Err(StartError::Io { doing: "made", path, source: io::Error::other(error) })
    });
    // Whoever asked may be gone; the state tells the others.
    match made {
        Ok(child) => {
            let _heard = answer.send(Ok(()));
            task.follow(child).await;
        }
        Err(error) => {
            task.remains.shared.lock().remove(&instance);
            task.state.send_replace(State::Gone);
            let _heard = answer.send(Err(error));
        }
    }
}

fn leftovers_in(state: &State) -> Option<Leftovers> {
    match state {
        State::Ended { leftovers, .. } => Some(leftovers.clone()),
        State::Starting | State::Alive | State::Unconfirmed(_) | State::Gone => None,
    }
}

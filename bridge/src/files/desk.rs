//! Where an instance has its files worked on: one piece of work at a time, away from its loop.
//!
//! ```text
//!  Idle ── sync ─▶ Syncing ── synced | failed ─▶ Idle ── turn over · clock · end ─▶ Checkpointing
//!                     └─ a newer sync takes its place; what is under way ends its step first ─┘
//! ```
//!
//! Owner: `instance`. Invariants: no checkpoint is taken of a workspace that was not synced in this
//! life, while a sync is under way, or while it is not whole; a sync takes the place of a
//! checkpoint. What is to be told is kept until it was. Absent: what the work is, and when a turn
//! or an agent ends.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_core::id::{InstanceId, TurnId};
use dormouse_core::manifest::{FilePath, FilesVersion};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::files::apply;
use crate::files::checkpoint::{self, Checkpoint, CheckpointError};
use crate::files::fetch::Progress;
use crate::files::server::Server;
use crate::files::wire::{CheckpointPolicy, SyncPlan, SyncProblem};
use crate::files::workspace::Workspace;
use crate::frames::{FromBridge, Secret};
use crate::rundir::Dial;

const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// A checkpoint that nobody set another limit for.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(5 * 60);
/// How soon one that failed is tried again.
const CHECKPOINT_AGAIN_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Desk {
    instance: InstanceId,
    token: Secret,
    /// Known from the first sync on.
    place: Option<Place>,
    policy: CheckpointPolicy,
    /// Files of Dormouse's own, which may hold secrets: they are in no checkpoint.
    kept_out: Vec<FilePath>,
    applied: Option<FilesVersion>,
    /// A sync got to its end in this life; whether the workspace is whole now, its marker knows.
    was_synced: bool,
    job: Option<Job>,
    /// A sync that waits for the end of a turn.
    waiting: Option<SyncOrder>,
    /// When the clock wants a checkpoint.
    checkpoint_at: Option<Instant>,
    /// The newest one failed, and may not another time.
    owes_checkpoint: bool,
    untold: Untold,
}

#[derive(Debug, Clone)]
struct Place {
    workspace: Arc<Workspace>,
    server: Server,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyncOrder {
    pub(crate) version: FilesVersion,
    pub(crate) files: Dial,
    pub(crate) workspace: PathBuf,
}

/// Why a checkpoint is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Turn(TurnId),
    Clock,
    End,
}

#[derive(Debug)]
struct Job {
    work: Work,
    progress: Arc<Progress>,
    told: [u64; 4],
    ticks: Interval,
}

#[derive(Debug)]
enum Work {
    Sync(FilesVersion, JoinHandle<Result<SyncPlan, SyncProblem>>),
    Checkpoint(Reason, JoinHandle<Result<Checkpoint, CheckpointError>>),
}

#[derive(Debug, Default)]
struct Untold {
    progress: Option<[u64; 4]>,
    synced: Option<FilesVersion>,
    failed: Option<(FilesVersion, SyncProblem)>,
}

/// Something that came of the work.
#[derive(Debug)]
pub(crate) enum FromFiles {
    Progressed,
    Synced(FilesVersion, Box<SyncPlan>),
    SyncFailed(FilesVersion, SyncProblem),
    Checkpointed(Reason, Result<Checkpoint, CheckpointError>),
}

impl Desk {
    pub(crate) fn keep_out(&mut self, paths: impl Iterator<Item = FilePath>) {
        self.kept_out = paths.collect();
    }

    pub(crate) fn new(instance: InstanceId, token: Secret) -> Self {
        Self {
            instance,
            token,
            place: None,
            policy: CheckpointPolicy::default(),
            kept_out: Vec::new(),
            applied: None,
            was_synced: false,
            job: None,
            waiting: None,
            checkpoint_at: None,
            owes_checkpoint: false,
            untold: Untold::default(),
        }
    }

    pub(crate) fn applied(&self) -> Option<FilesVersion> {
        self.applied
    }

    // ---- sync ----

    /// The order is kept until no turn runs any more.
    pub(crate) fn keep_waiting(&mut self, order: SyncOrder) {
        self.waiting = Some(order);
    }

    pub(crate) fn take_waiting(&mut self) -> Option<SyncOrder> {
        self.waiting.take()
    }

    /// Whether the workspace holds that version already, as was proved in this life. Whoever asks
    /// again has not heard of it.
    pub(crate) fn has_applied(&mut self, order: &SyncOrder) -> bool {
        let is_applied = self.applied == Some(order.version) && self.is_at(order);
        if is_applied {
            self.untold.synced = self.applied;
        }
        is_applied
    }

    fn is_at(&self, order: &SyncOrder) -> bool {
        self.place.as_ref().is_some_and(|place| {
            place.workspace.path() == order.workspace && *place.server.dial() == order.files
        })
    }

    /// Whether that very sync is under way already.
    pub(crate) fn is_syncing(&self, order: &SyncOrder) -> bool {
        let is_same = matches!(&self.job, Some(Job { work: Work::Sync(version, _), .. })
            if *version == order.version);
        is_same && self.is_at(order)
    }

    pub(crate) fn begin_sync(&mut self, order: SyncOrder) {
        self.abandon();
        self.applied = None;
        self.untold = Untold::default();
        let version = order.version;
        let place = match self.place_of(order) {
            Ok(place) => place,
            Err(words) => {
                let problem = SyncProblem::about(words, true, Vec::new());
                self.untold.failed = Some((version, problem));
                return;
            }
        };
        let progress = Arc::new(Progress::default());
        let Place { workspace, server } = place;
        let work = apply::sync(workspace, server, version, progress.clone());
        self.job = Some(Job::new(Work::Sync(version, tokio::spawn(work)), progress));
    }

    /// Another folder is another workspace; the same one goes on with what is known of it.
    fn place_of(&mut self, order: SyncOrder) -> Result<Place, String> {
        let server = Server::new(order.files, &self.instance, &self.token);
        let server = server.map_err(|error| format!("the daemon cannot be asked: {error}"))?;
        let known = self.place.take().map(|place| place.workspace);
        let workspace = match known.filter(|workspace| workspace.path() == order.workspace) {
            Some(workspace) => workspace,
            None => Arc::new(Workspace::open(&order.workspace).map_err(|e| crate::words(&e))?),
        };
        let place = Place { workspace, server };
        self.place = Some(place.clone());
        Ok(place)
    }

    /// Nobody waits for what is under way any more.
    pub(crate) fn abandon(&mut self) {
        match self.job.take().map(|job| job.work) {
            Some(Work::Sync(_, handle)) => handle.abort(),
            Some(Work::Checkpoint(_, handle)) => handle.abort(),
            None => {}
        }
    }

    // ---- checkpoints ----

    pub(crate) fn wants_checkpoint(&self, reason: Reason) -> bool {
        let is_wanted = match reason {
            Reason::Turn(_) => self.policy.after_turn,
            Reason::Clock | Reason::End => true,
        };
        let is_syncing = matches!(&self.job, Some(Job { work: Work::Sync(..), .. }));
        self.policy.is_on && is_wanted && self.was_synced && !is_syncing
    }

    /// Only after `wants_checkpoint` said so. One that is under way gives way.
    pub(crate) fn begin_checkpoint(&mut self, reason: Reason, until: Option<Instant>) {
        let Some(Place { workspace, server }) = self.place.clone() else { return };
        self.abandon();
        let until = until.unwrap_or_else(|| Instant::now() + CHECKPOINT_WITHIN);
        let turn = match reason {
            Reason::Turn(turn) => Some(turn),
            Reason::Clock | Reason::End => None,
        };
        let mut policy = self.policy.clone();
        // With a slash at its beginning, a pattern is the path from the workspace's root.
        policy.exclude.extend(self.kept_out.iter().map(|path| format!("/{path}")));
        let order = checkpoint::Order { policy, turn, until };
        let work = tokio::spawn(checkpoint::take(workspace, server, order));
        self.job = Some(Job::new(Work::Checkpoint(reason, work), Arc::default()));
        self.set_clock();
    }

    fn set_clock(&mut self) {
        let every_ms = self.policy.every_ms.filter(|_| self.policy.is_on);
        self.checkpoint_at =
            every_ms.map(|every_ms| Instant::now() + Duration::from_millis(every_ms.max(1_000)));
    }

    /// When the clock wants a checkpoint, unless something is under way anyway.
    pub(crate) fn checkpoint_at(&self) -> Option<Instant> {
        self.checkpoint_at.filter(|_| self.job.is_none())
    }

    /// The daemon is back: what could not be kept while it was away is tried again at once.
    pub(crate) fn try_again(&mut self) {
        if self.owes_checkpoint {
            self.checkpoint_at = Some(Instant::now());
        }
    }

    /// Nothing more is taken by the clock.
    pub(crate) fn stop_clock(&mut self) {
        self.checkpoint_at = None;
    }

    pub(crate) fn is_ending(&self) -> bool {
        matches!(&self.job, Some(Job { work: Work::Checkpoint(Reason::End, _), .. }))
    }

    // ---- what came of it ----

    /// The next thing that came of the work; never ends while there is none. Loses nothing when
    /// dropped.
    pub(crate) async fn next(&mut self) -> FromFiles {
        let Some(job) = &mut self.job else { return pending().await };
        let done = tokio::select! {
            done = job.work.next() => done,
            now = progressed(&job.progress, &job.told, &mut job.ticks) => {
                job.told = now;
                self.untold.progress = Some(now);
                return FromFiles::Progressed;
            }
        };
        self.job = None;
        match &done {
            FromFiles::Progressed => {}
            FromFiles::Synced(version, plan) => {
                self.applied = Some(*version);
                self.was_synced = true;
                self.untold = Untold { synced: Some(*version), ..Untold::default() };
                if self.policy != plan.policy {
                    self.policy = plan.policy.clone();
                    self.set_clock();
                }
            }
            FromFiles::SyncFailed(version, problem) => {
                self.untold =
                    Untold { failed: Some((*version, problem.clone())), ..Untold::default() };
            }
            FromFiles::Checkpointed(reason, Err(error)) if *reason != Reason::End => {
                self.owes_checkpoint = error.may_pass();
                if self.owes_checkpoint {
                    let again = Instant::now() + CHECKPOINT_AGAIN_AFTER;
                    self.checkpoint_at = Some(self.checkpoint_at.map_or(again, |at| at.min(again)));
                }
            }
            FromFiles::Checkpointed(..) => {
                self.owes_checkpoint = false;
                self.set_clock();
            }
        }
        done
    }

    /// A new connection.
    pub(crate) fn retell(&mut self) {
        self.untold.synced = self.applied;
    }

    pub(crate) fn has_news(&self) -> bool {
        let Untold { progress, synced, failed } = &self.untold;
        progress.is_some() || synced.is_some() || failed.is_some()
    }

    /// The next frame that the daemon has to be sent; it counts as sent.
    pub(crate) fn next_frame(&mut self) -> Option<FromBridge> {
        if let Some([done_files, files, done_bytes, bytes]) = self.untold.progress.take() {
            return Some(FromBridge::Syncing { done_files, files, done_bytes, bytes });
        }
        if let Some(version) = self.untold.synced.take() {
            return Some(FromBridge::Synced { version });
        }
        let (version, problem) = self.untold.failed.take()?;
        Some(FromBridge::SyncFailed { version, problem })
    }
}

impl Job {
    fn new(work: Work, progress: Arc<Progress>) -> Self {
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { work, progress, told: [0; 4], ticks }
    }
}

/// Ends when there is progress that was not told, some time after the last one that was.
async fn progressed(progress: &Progress, told: &[u64; 4], ticks: &mut Interval) -> [u64; 4] {
    loop {
        ticks.tick().await;
        let Progress { done_files, files, done_bytes, bytes } = progress;
        let now = [done_files, files, done_bytes, bytes].map(|n| n.load(Ordering::Relaxed));
        if now != *told {
            return now;
        }
    }
}

impl Work {
    async fn next(&mut self) -> FromFiles {
        match self {
            Work::Sync(version, handle) => match handle.await {
                Ok(Ok(plan)) => FromFiles::Synced(*version, Box::new(plan)),
                Ok(Err(problem)) => FromFiles::SyncFailed(*version, problem),
                Err(error) => {
                    let problem = SyncProblem::about(broke(&error), true, Vec::new());
                    FromFiles::SyncFailed(*version, problem)
                }
            },
            Work::Checkpoint(reason, handle) => {
                let done = handle.await;
                let done = done.unwrap_or_else(|error| Err(CheckpointError::Broke(broke(&error))));
                FromFiles::Checkpointed(*reason, done)
            }
        }
    }
}

fn broke(error: &JoinError) -> String {
    format!("the work on the files broke: {error}")
}

//! What an agent has made of its workspace, handed to the daemon for good.
//!
//! ```text
//!  scan ─▶ as the last one? ─▶ what is missing there ─▶ send it ─▶ offer ─▶ number
//!    ▲                                    a file changed meanwhile │
//!    └─────────────────────────────────────────────────────────────┘
//! ```
//!
//! Owner: the desk, one at a time. Invariants: nothing is taken of a workspace that is not whole;
//! nothing is offered whose bytes the daemon does not have; nothing is sent if nothing changed.
//! Absent: when, and whether it may be, which the daemon answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use dormouse_core::id::TurnId;
use dormouse_core::manifest::{ContentId, FileEntry, FileKind, FilePath, Manifest, Sha256Hash};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::files::apply::remember;
use crate::files::marker::{LastCheckpoint, Marker};
use crate::files::scan::{ScanError, Scanner};
use crate::files::send::{Blob, send};
use crate::files::server::{Server, ServerError};
use crate::files::wire::{
    CHANGED_SHOWN_MAX, CHECKPOINT_PATH, CheckpointAnswer, CheckpointOffer, CheckpointPolicy,
    FilesReport, HASHES_AT_ONCE_MAX, LeftOut, MISSING_PATH, MissingAnswer, MissingRequest,
    NAMES_SHOWN_MAX,
};
use crate::files::workspace::{Workspace, WorkspaceError};

const BATCH_BLOBS_MAX: usize = 2_000;
const BATCH_BYTES_MAX: u64 = 256 << 20;
/// Scans, before files that change all the time are left out.
const ROUNDS_MAX: u32 = 3;
/// How long a daemon may be away in the middle of it.
const AWAY_MAX: Duration = Duration::from_secs(15);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) policy: CheckpointPolicy,
    pub(crate) turn: Option<TurnId>,
    pub(crate) until: Instant,
}

/// One that the daemon has committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// `None`: there never was anything to keep.
    pub(crate) number: Option<u64>,
    pub(crate) changed: Vec<String>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) left_out_count: usize,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("the workspace is not whole")]
    NotWhole,
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("it was not done in time")]
    TooLate,
    #[error("{0}")]
    Broke(String),
}

impl From<WorkspaceError> for CheckpointError {
    fn from(error: WorkspaceError) -> Self {
        CheckpointError::Scan(ScanError::Workspace(error))
    }
}

impl CheckpointError {
    /// It may work another time.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            CheckpointError::NotWhole => false,
            CheckpointError::Server(error) => error.may_pass() || error.is_without_store(),
            CheckpointError::Scan(ScanError::Workspace(_))
            | CheckpointError::TooLate
            | CheckpointError::Broke(_) => true,
            CheckpointError::Scan(_) => false,
        }
    }
}

impl Checkpoint {
    pub(crate) fn into_report(self) -> FilesReport {
        let problem = (self.left_out_count > 0).then(|| {
            let mut words = format!("{} left out", self.left_out_count);
            let shown = self.left_out.iter().take(NAMES_SHOWN_MAX);
            for (at, LeftOut { path, why }) in shown.enumerate() {
                let between = if at == 0 { ": " } else { "; " };
                words.push_str(&format!("{between}{} ({why})", shortened(path)));
            }
            words
        });
        FilesReport { checkpoint: self.number, changed: self.changed, problem }
    }
}

/// What a scan saw, and what was there before.
#[derive(Debug)]
struct Tree {
    manifest: Manifest,
    left_out: Vec<LeftOut>,
    left_out_count: usize,
    lineage: u64,
    uploads: u64,
    last: Option<LastCheckpoint>,
}

/// Takes one, if anything changed since the last one.
pub(crate) async fn take(
    workspace: Arc<Workspace>,
    server: Server,
    order: Order,
) -> Result<Checkpoint, CheckpointError> {
    let until = order.until;
    let taking = Taking { workspace, server, order };
    let taken = tokio::time::timeout_at(until, taking.run()).await;
    taken.unwrap_or(Err(CheckpointError::TooLate))
}

#[derive(Debug)]
struct Taking {
    workspace: Arc<Workspace>,
    server: Server,
    order: Order,
}

impl Taking {
    async fn run(&self) -> Result<Checkpoint, CheckpointError> {
        let mut restless = BTreeSet::new();
        for round in 1.. {
            let leave_out = if round > ROUNDS_MAX { restless.clone() } else { BTreeSet::new() };
            let tree = self.scan(leave_out).await?;
            if let Some(unchanged) = tree.unchanged() {
                return Ok(unchanged);
            }
            let changed = self.send_missing(&tree).await?;
            if changed.is_empty() {
                return self.offer(tree).await;
            }
            restless.extend(changed);
        }
        unreachable!("rounds are left by returning")
    }

    async fn in_thread<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Workspace) -> Result<T, CheckpointError> + Send + 'static,
    ) -> Result<T, CheckpointError> {
        let workspace = self.workspace.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _alone = workspace.own();
            step(&workspace)
        });
        done.await.unwrap_or_else(|error| Err(CheckpointError::Broke(error.to_string())))
    }

    async fn scan(&self, restless: BTreeSet<FilePath>) -> Result<Tree, CheckpointError> {
        let policy = self.order.policy.clone();
        self.in_thread(move |workspace| {
            let mut known = workspace.known()?;
            let marker = known.marker.as_mut().filter(|marker| marker.is_whole);
            let marker = marker.ok_or(CheckpointError::NotWhole)?;
            let Marker { cache, inputs, .. } = &*marker;
            let scan = Scanner::new(&workspace.root, &policy, cache, inputs, &restless).run()?;
            remember(&mut marker.cache, scan.read);
            let Marker { lineage, uploads, last, .. } = &*marker;
            Ok(Tree {
                manifest: scan.manifest,
                left_out: scan.left_out,
                left_out_count: scan.left_out_count,
                lineage: *lineage,
                uploads: *uploads,
                last: last.clone(),
            })
        })
        .await
    }

    /// Gives the files that are not any more what the scan saw.
    async fn send_missing(&self, tree: &Tree) -> Result<Vec<FilePath>, CheckpointError> {
        let mut blobs = tree.new_blobs();
        let mut changed = Vec::new();
        let mut away_since = None;
        let mut pause = PAUSE_MIN;
        while !blobs.is_empty() {
            match self.send_once(&mut blobs, &mut changed).await {
                Ok(()) => away_since = None,
                Err(error) => self.wait_for(error, &mut away_since, &mut pause).await?,
            }
        }
        Ok(changed)
    }

    /// Leaves in `blobs` what has to be asked about again.
    async fn send_once(
        &self,
        blobs: &mut BTreeMap<Sha256Hash, Blob>,
        changed: &mut Vec<FilePath>,
    ) -> Result<(), ServerError> {
        let hashes: Vec<_> = blobs.keys().copied().collect();
        let mut missing = Vec::new();
        for hashes in hashes.chunks(HASHES_AT_ONCE_MAX) {
            let question = MissingRequest { hashes: hashes.to_vec() };
            let answer: MissingAnswer = self.server.post(MISSING_PATH, &question).await?;
            missing.extend(answer.missing);
        }
        let missing: BTreeSet<_> = missing.into_iter().collect();
        blobs.retain(|hash, _| missing.contains(hash));
        while !blobs.is_empty() {
            let mut bytes = 0;
            let batch: Vec<Blob> = blobs
                .values()
                .take(BATCH_BLOBS_MAX)
                .take_while(|blob| {
                    let is_first = bytes == 0;
                    bytes += blob.bytes;
                    is_first || bytes <= BATCH_BYTES_MAX
                })
                .cloned()
                .collect();
            let gone = self.put(batch.clone()).await?;
            for blob in batch {
                blobs.remove(&blob.hash);
            }
            changed.extend(gone);
        }
        Ok(())
    }

    async fn put(&self, batch: Vec<Blob>) -> Result<Vec<FilePath>, ServerError> {
        let (pieces_in, pieces) = mpsc::channel(4);
        let sent_bytes = Arc::new(AtomicU64::new(0));
        let (workspace, counter) = (self.workspace.clone(), sent_bytes.clone());
        let sending = tokio::task::spawn_blocking(move || {
            let _sharing = workspace.share();
            send(&workspace.root, &batch, &pieces_in, &counter)
        });
        let answer = self.server.put_blobs(pieces, &sent_bytes).await;
        let changed = match sending.await {
            Ok(changed) => changed,
            Err(error) => return Err(ServerError::Connect(io::Error::other(error))),
        };
        match answer {
            Ok(_stored) => Ok(changed),
            // It broke off on purpose, or bytes changed under way: the scan tells them anew.
            Err(error) if !changed.is_empty() && (error.may_pass() || error.is_mismatch()) => {
                Ok(changed)
            }
            Err(error) => Err(error),
        }
    }

    async fn offer(&self, tree: Tree) -> Result<Checkpoint, CheckpointError> {
        let offer = CheckpointOffer {
            lineage: tree.lineage,
            uploads: tree.uploads,
            manifest: tree.manifest.clone(),
            turn: self.order.turn,
            left_out: tree.left_out.iter().take(NAMES_SHOWN_MAX).cloned().collect(),
        };
        let mut away_since = None;
        let mut pause = PAUSE_MIN;
        let number = loop {
            match self.server.post::<CheckpointAnswer>(CHECKPOINT_PATH, &offer).await {
                Ok(answer) => break answer.number,
                Err(error) => self.wait_for(error, &mut away_since, &mut pause).await?,
            }
        };
        let changed = tree.changed();
        let Tree { manifest, left_out, left_out_count, lineage, uploads, .. } = tree;
        let entries = manifest.into_entries();
        self.in_thread(move |workspace| {
            let mut known = workspace.known()?;
            if let Some(marker) = known.marker.as_mut().filter(|marker| marker.lineage == lineage) {
                let there: BTreeSet<&FilePath> = entries.iter().map(|entry| &entry.path).collect();
                let Marker { cache, inputs, .. } = marker;
                cache.retain(|path| there.contains(path) || inputs.contains(path));
                marker.last = Some(LastCheckpoint { number: Some(number), uploads, entries });
                workspace.save(&known)?;
            }
            Ok(())
        })
        .await?;
        Ok(Checkpoint { number: Some(number), changed, left_out, left_out_count })
    }

    /// Waits a little, where trying again may help.
    async fn wait_for(
        &self,
        error: ServerError,
        away_since: &mut Option<Instant>,
        pause: &mut Duration,
    ) -> Result<(), ServerError> {
        let since = *away_since.get_or_insert_with(Instant::now);
        if !error.may_pass() || since.elapsed() + *pause > AWAY_MAX {
            return Err(error);
        }
        tokio::time::sleep(*pause).await;
        *pause = (*pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

impl Tree {
    /// The last one, if it is the same and its number is known. An empty workspace is what a lost
    /// one becomes anyway.
    fn unchanged(&self) -> Option<Checkpoint> {
        let number = match &self.last {
            None if self.uploads == 0 && self.manifest.entries().is_empty() => None,
            Some(last) if last.uploads == self.uploads => {
                let is_same = last.entries == self.manifest.entries();
                Some(last.number.filter(|_| is_same)?)
            }
            None | Some(_) => return None,
        };
        let (left_out, left_out_count) = (self.left_out.clone(), self.left_out_count);
        Some(Checkpoint { number, changed: Vec::new(), left_out, left_out_count })
    }

    /// What the last one has, the daemon has.
    fn new_blobs(&self) -> BTreeMap<Sha256Hash, Blob> {
        let last = self.last.iter().flat_map(|last| &last.entries);
        let known: BTreeSet<Sha256Hash> = last.filter_map(|e| hash_of(e).map(|it| it.0)).collect();
        let mut blobs = BTreeMap::new();
        for entry in self.manifest.entries() {
            if let Some((hash, bytes)) = hash_of(entry).filter(|it| !known.contains(&it.0)) {
                blobs.entry(hash).or_insert(Blob { hash, bytes, path: entry.path.clone() });
            }
        }
        blobs
    }

    /// New, otherwise or gone, in the order of the paths.
    fn changed(&self) -> Vec<String> {
        let last: &[FileEntry] = self.last.as_ref().map_or(&[], |last| &last.entries);
        let before: BTreeMap<_, _> = last.iter().map(|entry| (&entry.path, &entry.kind)).collect();
        let now = self.manifest.entries();
        let is_new = |entry: &&FileEntry| before.get(&entry.path) != Some(&&entry.kind);
        let mut changed: BTreeSet<&FilePath> =
            now.iter().filter(is_new).map(|entry| &entry.path).collect();
        changed.extend(before.into_keys().filter(|path| self.manifest.get(path).is_none()));
        changed.into_iter().take(CHANGED_SHOWN_MAX).map(ToString::to_string).collect()
    }
}

/// For the log: a path may have 4 KiB.
fn shortened(path: &str) -> String {
    const SHOWN_BYTES: usize = 60;
    if path.len() <= 2 * SHOWN_BYTES {
        return path.to_string();
    }
    let head = &path[..path.floor_char_boundary(SHOWN_BYTES)];
    let tail = &path[path.ceil_char_boundary(path.len() - SHOWN_BYTES)..];
    format!("{head}…{tail}")
}

fn hash_of(entry: &FileEntry) -> Option<(Sha256Hash, u64)> {
    match &entry.kind {
        FileKind::File { content: ContentId::Sha256(hash), bytes, .. } => Some((*hash, *bytes)),
        FileKind::File { .. } | FileKind::Link { .. } | FileKind::Folder => None,
    }
}

//! What travels about files between daemon and bridge, beside the frames of the line.
//!
//! ```text
//!  GET  /files/plan?inputs=DIGEST&uploads=N  ─▶ SyncPlan, or 409 where that is no longer wanted
//!  POST /files/fetch      FetchRequest       ─▶ a stream of `stream::FetchEvent`s
//!  POST /files/missing    MissingRequest     ─▶ MissingAnswer
//!  PUT  /files/blobs      a stream of `stream::BlobEvent`s ─▶ StoredAnswer once durable, or 422
//!  POST /files/checkpoint CheckpointOffer    ─▶ CheckpointAnswer after the commit, or 409
//! ```
//!
//! Owner: this file is the contract; both sides use these types. Invariants: every request carries
//! the instance and its token; an answer that is no 2xx has a [`RefusedAnswer`] as its body; fields
//! that one side does not know are ignored. Absent: reading and writing files, retries.

use dormouse_core::id::TurnId;
use dormouse_core::manifest::{ContentId, FileKind, FilePath, FilesVersion, Manifest, Sha256Hash};
use serde::{Deserialize, Serialize};

pub const PLAN_PATH: &str = "/files/plan";
pub const FETCH_PATH: &str = "/files/fetch";
pub const MISSING_PATH: &str = "/files/missing";
pub const BLOBS_PATH: &str = "/files/blobs";
pub const CHECKPOINT_PATH: &str = "/files/checkpoint";
/// `agent/key#generation`; beside it `authorization: Bearer TOKEN`.
pub const INSTANCE_HEADER: &str = "dormouse-instance";

/// The most hashes in one [`MissingRequest`].
pub const HASHES_AT_ONCE_MAX: usize = 10_000;
/// The most files in one [`FetchRequest`].
pub const FILES_AT_ONCE_MAX: usize = 4_096;
/// How many names a list shows before it counts the rest.
pub const NAMES_SHOWN_MAX: usize = 20;
/// How many changed paths a [`FilesReport`] names.
pub const CHANGED_SHOWN_MAX: usize = 100;

/// What a workspace is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPlan {
    pub version: FilesVersion,
    /// Which workspace this is: a restore to another checkpoint makes a new one.
    pub lineage: u64,
    /// The newest checkpoint, to be restored where the workspace is not intact.
    pub restore: Option<Manifest>,
    /// The newest upload that `restore` contains.
    #[serde(default)]
    pub restore_uploads: u64,
    pub inputs: Manifest,
    /// In the order of their numbers; at least all that come after `restore_uploads`, or all.
    #[serde(default)]
    pub uploads: Vec<Upload>,
    #[serde(default)]
    pub policy: CheckpointPolicy,
}

/// A file that somebody put into this session's workspace, or took out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub number: u64,
    pub path: FilePath,
    /// `None`: deleted.
    pub file: Option<FileKind>,
}

/// When checkpoints are taken, and of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointPolicy {
    pub is_on: bool,
    pub after_turn: bool,
    /// While the agent is awake; `None`: not by the clock.
    pub every_ms: Option<u64>,
    pub files_max: u64,
    pub bytes_max: u64,
    /// What is never part of one; see `exclude` for what a pattern is.
    pub exclude: Vec<String>,
}

impl Default for CheckpointPolicy {
    /// No checkpoints, and nothing in the way of switching them on.
    fn default() -> Self {
        Self {
            is_on: false,
            after_turn: true,
            every_ms: None,
            files_max: dormouse_core::limits::FILES_MAX as u64,
            bytes_max: dormouse_core::limits::FILES_BYTES_MAX,
            exclude: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    pub files: Vec<FetchFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchFile {
    /// Of an input; `None`: a blob, known by its hash alone.
    pub path: Option<FilePath>,
    pub content: ContentId,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingRequest {
    pub hashes: Vec<Sha256Hash>,
}

/// Of the hashes that were asked about, those that are not in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingAnswer {
    pub missing: Vec<Sha256Hash>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAnswer {
    pub stored: u64,
}

/// A tree whose blobs the daemon has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointOffer {
    pub lineage: u64,
    /// The newest upload that is in it.
    pub uploads: u64,
    pub manifest: Manifest,
    /// The turn after which it was taken, if it was.
    pub turn: Option<TurnId>,
    /// The first [`NAMES_SHOWN_MAX`] of what is in the workspace and not in the manifest.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// As it can be shown; it may be no path that a manifest could hold.
    pub path: String,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointAnswer {
    pub number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedAnswer {
    pub error: String,
}

/// Why a workspace is not what it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncProblem {
    pub message: String,
    /// The same may work another time.
    pub retryable: bool,
    /// The first [`NAMES_SHOWN_MAX`] of the files that it is about.
    #[serde(default)]
    pub paths: Vec<String>,
    /// So many more.
    #[serde(default)]
    pub more: u64,
}

impl SyncProblem {
    /// One that is about these files, of which it names the first.
    pub fn about(message: String, retryable: bool, mut paths: Vec<String>) -> Self {
        paths.sort();
        paths.dedup();
        let more = paths.len().saturating_sub(NAMES_SHOWN_MAX) as u64;
        paths.truncate(NAMES_SHOWN_MAX);
        Self { message, retryable, paths, more }
    }
}

/// What became of a turn's files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilesReport {
    /// The checkpoint that holds the workspace as the turn left it; `None`: there is none.
    pub checkpoint: Option<u64>,
    /// What is new, otherwise or gone since the checkpoint before; the first
    /// [`CHANGED_SHOWN_MAX`].
    #[serde(default)]
    pub changed: Vec<String>,
    /// Why there is no checkpoint, or what is not in it.
    #[serde(default)]
    pub problem: Option<String>,
}

//! The frames between daemon and bridge: JSON, one per WebSocket text message, `frame` names the
//! kind.
//!
//! ```text
//!  bridge                                        daemon
//!    ── hello ─────────────────────────────────────▶   who I am, how far my agent is, what I hold
//!    ◀───────────────────────── welcome | refused ──   with `launch`: execute the agent now
//!    ◀──────────────────────────────────── sync ────   files first; again whenever they change
//!    ── syncing*, synced | sync_failed ────────────▶   `synced` is repeated on each line
//!    ◀────────────────────────────────── launch ────   execute the agent now
//!    ── ready ─────────────────────────────────────▶
//!    ◀──────────────────────────────────── turn ────
//!    ── delta*, hold*, ended ──────────────────────▶   `ended` is repeated on each line until …
//!    ◀──────────────────────────── acknowledge ─────   … its result is on disk
//!    ◀──────────────────────────────────── stop ────
//!    ── exited ────────────────────────────────────▶   nothing of the agent lives; repeated …
//!    ◀──────────────────────────────── release ─────   … until the evidence is on disk. The end.
//! ```
//!
//! Owner: this file is the contract; both sides use these types. Invariants: `hello` is the first
//! frame of a connection and carries the protocol's version; a turn id is executed once per bridge,
//! a repeat is answered from the kept result; delta offsets count bytes of the turn's text from 0
//! without gap. Liveness is the WebSocket's ping and pong. Absent: addresses, retries, and anything
//! that a newer side may not ignore (unknown fields are ignored, unknown frames end the line).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use dormouse_core::event::{AgentState, TurnOutcome};
use dormouse_core::evidence::Evidence;
use dormouse_core::id::{BootId, Generation, SessionId, TurnId};
use dormouse_core::manifest::{FilePath, FilesVersion};
use serde::{Deserialize, Serialize};

use crate::files::wire::{FilesReport, SyncProblem};
use crate::rundir::Dial;

/// Raised when an older side could misunderstand a newer one.
pub const PROTOCOL_VERSION: u32 = 1;

/// The largest frame either side takes: a whole reply, JSON-escaped at its worst (six bytes for
/// one), and change.
pub const FRAME_BYTES_MAX: usize = 6 * dormouse_core::limits::REPLY_BYTES_MAX + (1 << 16);

/// A text that must not be printed: `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum FromBridge {
    Hello(Hello),
    /// The agent takes turns now.
    Ready,
    /// A piece of a reply, at most `limits::DELTA_BYTES_MAX` bytes.
    Delta {
        turn: TurnId,
        /// Where `text` starts, in bytes of the turn's text.
        offset: u64,
        text: String,
    },
    Ended {
        turn: TurnId,
        outcome: TurnOutcome,
        /// Absent where no checkpoints are taken.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        files: Option<FilesReport>,
    },
    /// The agent asks to stay awake.
    Hold {
        name: String,
        for_ms: u64,
    },
    /// How far a sync is; at most about twice a second, and only when something went on.
    Syncing {
        done_files: u64,
        files: u64,
        done_bytes: u64,
        bytes: u64,
    },
    /// The workspace holds that version: every byte of it is on disk and proved.
    Synced {
        version: FilesVersion,
    },
    SyncFailed {
        version: FilesVersion,
        problem: SyncProblem,
    },
    /// The last word: the agent and all its children are gone.
    Exited {
        evidence: Evidence,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub session: SessionId,
    pub generation: Generation,
    pub boot: BootId,
    /// Proves that this bridge was started by this daemon for this instance.
    pub token: Secret,
    pub agent: AgentState,
    /// Turns that run, or whose result is not acknowledged yet.
    pub held: Vec<TurnId>,
    /// What the workspace was proved to hold since this bridge started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<FilesVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum ToBridge {
    Welcome {
        /// Present exactly when the agent is to be executed now.
        launch: Option<Launch>,
    },
    /// End at once; start nothing, report nothing.
    Refused {
        why: String,
    },
    /// Bring the workspace to this version. A newer one replaces the one under way.
    Sync {
        version: FilesVersion,
        /// Where the plan and the bytes are.
        files: Dial,
        /// Where the agent is going to work. Exists already.
        workspace: PathBuf,
    },
    /// Execute the agent now, as `welcome` with a launch would.
    Launch {
        launch: Launch,
    },
    Turn {
        turn: TurnId,
        text: String,
    },
    Acknowledge {
        turn: TurnId,
    },
    /// SIGTERM to the agent's process group, SIGKILL after the grace, then `exited`.
    Stop {
        grace_ms: u64,
    },
    Release,
}

/// What to execute, and how to talk to it. `{port}`, `{session}`, `{key}`, `{workspace}`, and of
/// the instance's memory limit `{memory_mib}` and `{heap_mib}`, are filled in by the bridge: in
/// `command`, in the values of `env`, in the adapter's texts, and in files. `{secret:NAME}` is
/// filled in in files and headers alone, so that no secret comes into arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Program and arguments; the program is looked up in the `PATH` of `env`.
    pub command: Vec<String>,
    /// The whole environment of the agent; nothing is inherited from the bridge.
    pub env: BTreeMap<String, Secret>,
    /// The agent's working directory. Exists already.
    pub workspace: PathBuf,
    pub adapter: Adapter,
    /// How long the bridge goes on without a daemon before it stops its agent and ends.
    pub orphan_limit_ms: u64,
    /// The share of the memory limit that `{heap_mib}` is.
    #[serde(default = "heap_percent_default")]
    pub heap_percent: u32,
    /// Written into the workspace before the agent is executed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<RenderedFile>,
    /// What `{secret:NAME}` stands for, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
}

/// A file of the agent's that Dormouse writes: its config, as a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedFile {
    /// Below the workspace.
    pub path: FilePath,
    /// With fields to be filled in.
    pub text: Secret,
    /// The permissions, as chmod has them.
    pub mode: u32,
}

/// A runtime needs memory beside its heap: code, stacks, buffers, and the programs it starts.
pub const HEAP_PERCENT_DEFAULT: u32 = 75;

fn heap_percent_default() -> u32 {
    HEAP_PERCENT_DEFAULT
}

/// How to talk to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Adapter {
    /// One process per turn: text on standard input, reply on standard output, exit status kept.
    Exec,
    /// One long-lived process, JSON lines both ways.
    Jsonl {
        /// Wait for the agent's `{"ready": true}` before it counts as ready; else it is ready once
        /// executed.
        wait_for_ready: bool,
    },
    /// One long-lived process with an OpenAI-compatible HTTP interface on loopback.
    Openai {
        /// Base, for example `http://127.0.0.1:{port}/v1`.
        url: String,
        /// Path asked for until it answers well, for example `/healthz`; `/v1/models` if absent.
        ready: Option<String>,
        model: Option<String>,
        /// Sent with every request to the agent.
        headers: BTreeMap<String, Secret>,
    },
}

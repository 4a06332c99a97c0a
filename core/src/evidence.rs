//! Facts about how an instance ended, as its bridge or its driver saw them.
//!
//! Owner: the bridge fills this before it lets go of anything; the driver fills in for a bridge
//! that is gone.
//! Invariant: a missing fact is `None`, never a guess. Absent: conclusions (`session::exit` draws
//! them).

use serde::{Deserialize, Serialize};

/// How the agent's process (or, for `exec`, the instance) ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum End {
    /// It returned an exit code.
    Exited { code: i32 },
    /// A signal ended it.
    Signaled { signal: i32 },
    /// It could not be executed; `error` is the system's word for it.
    LaunchFailed { error: String },
    /// The instance ended before its agent was ever executed.
    NeverLaunched,
    /// The bridge is gone and left no report; the driver has made sure that nothing of the instance
    /// lives.
    BridgeLost,
}

/// Who asked for the end, as far as the bridge knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskedBy {
    /// A stop frame from the daemon.
    Daemon,
    /// The bridge was without a daemon for longer than the orphan limit.
    OrphanLimit,
    /// Somebody sent SIGTERM or SIGINT to the bridge.
    Signal,
    /// The driver was told to kill the instance.
    Driver,
}

/// Whom an out-of-memory kill of the group hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OomVictim {
    /// The newest kill was counted at the agent's own end by SIGKILL, and not before.
    Main,
    /// Every kill was counted while the agent's own process lived, or it returned a code itself.
    Child,
}

/// What the kernel's log says of a kill of the agent's own process for no group's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineOom {
    /// The whole machine was out of memory, and the kernel itself chose this process.
    Chosen,
    /// It was killed for want of memory outside its group; whether all of the machine's memory was
    /// short, and not a part of it, and whether the kernel acted of itself, is not said.
    Killed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub end: End,
    pub asked_by: Option<AskedBy>,
    /// The agent outlived the stop grace, and SIGKILL ended it.
    #[serde(default)]
    pub grace_ran_out: bool,
    /// From exec to end.
    pub uptime_ms: Option<u64>,
    /// Out-of-memory kills that the kernel counted in the instance's control group during its life.
    pub oom_kills: Option<u64>,
    /// Whom those kills hit, where it was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_victim: Option<OomVictim>,
    /// Where the kernel's log could be read, and names the agent's own process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_oom: Option<MachineOom>,
    /// How often the kernel refused a new process or thread for the group's limit on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_refused: Option<u64>,
    pub memory_peak_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    /// The first line of the tail that looks like an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    /// The last lines of the agent's log, at most `limits::LOG_TAIL_BYTES_MAX` bytes.
    #[serde(default)]
    pub log_tail: String,
}

impl Evidence {
    /// Evidence with nothing known but the end.
    pub fn bare(end: End) -> Self {
        Self {
            end,
            asked_by: None,
            grace_ran_out: false,
            uptime_ms: None,
            oom_kills: None,
            oom_victim: None,
            machine_oom: None,
            pids_refused: None,
            memory_peak_bytes: None,
            memory_limit_bytes: None,
            first_error: None,
            log_tail: String::new(),
        }
    }
}

//! What an operator may set for an agent and for the node, as plain values.
//!
//! Owner: `daemon::config` builds them; core only reads them. Absent: parsing, units, file names.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::breaker::BreakerPolicy;
use crate::id::{RevisionNumber, SessionId};
use crate::limits;
use crate::sizing::MemoryPolicy;

/// Whether a turn whose outcome is unknown may be run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetrySafety {
    /// Run it again, up to `attempts` (the default).
    Safe,
    /// Never repeat by itself: the message is dead-lettered as `ambiguous` and the sender asked.
    Ask,
}

/// One agent's limits. Every duration is a clock in `watchdog` or `hold`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPolicy {
    /// Idle this long after the last activity, with no hold, turn or queued message: stopped.
    pub stop_after: Duration,
    /// From the start command to ready.
    pub ready_within: Duration,
    /// A turn without any progress for this long is stuck, unless a hold covers it.
    pub stuck_after: Duration,
    /// The whole of one turn, whatever progress it claims.
    pub turn_within: Duration,
    /// Deliveries of one message before it is dead-lettered.
    pub attempts: u32,
    pub retry: RetrySafety,
    /// A running turn's budget when the session is asked to stop or restart.
    pub drain_within: Duration,
    /// Between asking the agent to end and killing it.
    pub stop_grace: Duration,
    /// How long an instance may be without a connected bridge.
    pub reattach_within: Duration,
    pub breaker: BreakerPolicy,
    pub memory: MemoryPolicy,
    pub files: FilesPolicy,
    /// The agent's runtime has a heap limit that follows the memory limit.
    pub heap_follows: bool,
}

impl Default for AgentPolicy {
    fn default() -> Self {
        Self {
            stop_after: Duration::from_secs(30 * 60),
            ready_within: Duration::from_secs(2 * 60),
            stuck_after: Duration::from_secs(10 * 60),
            turn_within: Duration::from_secs(6 * 60 * 60),
            attempts: 3,
            retry: RetrySafety::Safe,
            drain_within: Duration::from_secs(5 * 60),
            stop_grace: Duration::from_secs(10),
            reattach_within: Duration::from_secs(60),
            breaker: BreakerPolicy::default(),
            memory: MemoryPolicy::default(),
            files: FilesPolicy::default(),
            heap_follows: false,
        }
    }
}

/// What is known of one agent: what starts get, and how that is lived with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSetup {
    /// What the config in force asks for.
    pub wanted: RevisionNumber,
    /// The wanted one, the good one, and whatever still runs.
    pub policies: BTreeMap<RevisionNumber, AgentPolicy>,
    pub canary: Option<Canary>,
}

/// A new revision is tried by this session alone, with a turn of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    pub session: SessionId,
    /// What its answer must contain.
    pub expects: Option<String>,
}

impl AgentSetup {
    /// An agent that has had one revision so far.
    pub fn only(policy: AgentPolicy) -> Self {
        let policies = BTreeMap::from([(RevisionNumber::FIRST, policy)]);
        Self { wanted: RevisionNumber::FIRST, policies, canary: None }
    }

    /// How that revision is lived with; one that is not known any more, as the wanted one.
    pub fn policy_of(&self, revision: RevisionNumber) -> &AgentPolicy {
        let known = self.policies.get(&revision).or_else(|| self.policies.get(&self.wanted));
        known.expect("the wanted revision has a policy")
    }
}

/// What is done for the files of an agent's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesPolicy {
    /// Something is declared that every session of the agent is to find.
    pub has_inputs: bool,
    /// Checkpoints are taken.
    pub is_kept: bool,
    /// How many checkpoints of a session are kept.
    pub keep: u64,
}

impl Default for FilesPolicy {
    fn default() -> Self {
        Self { has_inputs: false, is_kept: false, keep: 10 }
    }
}

/// What the node as a whole allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePolicy {
    /// Instances between start command and ready at one time; the rest wait in line, oldest first.
    pub starts_at_once: usize,
    /// Starts in a minute of sessions that have failed since their last answer.
    pub restarts_per_minute: usize,
    pub queue_messages_max: usize,
    pub queue_bytes_max: u64,
    /// The most memory that one agent may learn to use on this machine, where that is known.
    pub memory_max_bytes: Option<u64>,
}

impl Default for NodePolicy {
    fn default() -> Self {
        Self {
            starts_at_once: 4,
            restarts_per_minute: 60,
            queue_messages_max: limits::QUEUE_MESSAGES_MAX,
            queue_bytes_max: limits::QUEUE_BYTES_MAX,
            memory_max_bytes: None,
        }
    }
}

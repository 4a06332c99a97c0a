//! The machine: events in, new state and effects out.
//!
//! Read in this order: `supervisor` (all sessions, admission, next deadline) → `session` (one
//! session; one file per verb beneath it) → `event` and `command` (what comes in, what goes out) →
//! the pure policies (`queue`, `hold`, `watchdog`, `backoff`, `breaker`, `agent_breaker`,
//! `start_budget`, `rollout`, `sizing`, `diagnosis`) → the files (`manifest`) → the
//! vocabulary (`id`, `time`, `cause`, `evidence`, `record`, `journal`, `limits`, `policy`).
//!
//! Owner: one loop (`daemon::engine`, or `sim::world`) owns the one `Supervisor` and calls it
//! synchronously.
//! Invariant: the same events at the same times give the same effects, byte for byte.
//! Absent: IO, clocks, randomness, locks, threads, async, hash maps. `core/clippy.toml` refuses
//! them.

#![deny(clippy::wildcard_enum_match_arm)] // a new event or phase must be met in every table

pub mod agent_breaker;
pub mod backoff;
pub mod breaker;
pub mod cause;
pub mod command;
pub mod diagnosis;
pub mod event;
pub mod evidence;
pub mod hold;
pub mod id;
pub mod journal;
pub mod limits;
pub mod manifest;
pub mod policy;
pub mod queue;
pub mod record;
pub mod rollout;
pub mod session;
pub mod sizing;
pub mod start_budget;
pub mod supervisor;
pub mod time;
pub mod watchdog;

//! What the tests on the real program share: a daemon in a folder of its own, a client, agents that
//! follow a script, and waiting without sleeping blindly.
//!
//! ```text
//!  Setup ── start ─▶ Daemon ── client ─▶ Client ── stream ─▶ EventStream
//!                      │ terminate, kill, start_again, instances, agent_log, store, cli
//!                      └ dropped: everything that was started in its folder is ended
//! ```
//!
//! Owner: `tests/e2e_*.rs` and `tests/chaos_*.rs`. Invariants: a test touches only processes that
//! were started for its own data folder; every wait has a deadline and looks every few
//! milliseconds; what a failed test leaves on the disk is named in its output. Absent: an async
//! runtime, and everything that looks into the program other than through its interfaces.

pub(crate) mod agents;
pub(crate) mod cli;
pub(crate) mod daemon;
pub(crate) mod http;
pub(crate) mod openclaw;
pub(crate) mod processes;
pub(crate) mod scratch;
pub(crate) mod sse;
pub(crate) mod waiting;

pub(crate) use daemon::{Daemon, Setup};
pub(crate) use waiting::{SOON, until};

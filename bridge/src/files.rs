//! The files of a workspace: brought to it before work, kept when it has been done.
//!
//! Read in this order: `wire` and `stream` (what travels) → `exclude` (what is not kept).
//!
//! Owner: `instance` has one desk for them. Invariants: no byte is ever written outside of the
//! workspace; nothing is called synced that was not proved. Absent: when to sync and whether a
//! checkpoint may be made, which is core's; where bytes come from, which is the daemon's.

mod apply;
pub(crate) mod beneath;
mod checkpoint;
pub(crate) mod desk;
mod digest;
pub mod exclude;
mod fetch;
mod life;
mod marker;
mod scan;
mod send;
mod server;
pub mod stream;
mod target;
pub mod wire;
mod workspace;

//! The daemon's hands and ears: the drivers that start and end instances, the socket that bridges
//! dial, and the bytes of workspaces.
//!
//! Read in this order: `driver` (the trait, about eight verbs) → `driver::process` and
//! `driver::fake` (who implements it) → `control` (the socket) → `registry` (which bridge is
//! reached by which line) → `files` (blobs, inputs, and both as one stream) → `token` and `paths`.
//!
//! Owner: the daemon makes one of each and wires them to its engine. What they learn by themselves
//! comes out as core events through one bounded channel. Invariant: everything an instance says
//! carries the identity that its token proved. Absent: decisions, retries, the store.

pub mod control;
pub mod driver;
pub mod files;
pub mod paths;
pub mod registry;
pub mod token;

#[cfg(test)]
mod testing;

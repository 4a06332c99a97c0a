//! The memory of Dormouse: SQLite in the data folder, one transaction per batch.
//!
//! Read in this order: `writer` (the one writer and its batches) → `apply` (what each write is in
//! SQL) → `recover` (what the engine reads back) → `reader` (pages for people) → the migrations
//! (the tables, each with its words) → `connection`, `lock`, `log_check`, `rows`, `error`,
//! `configs`, `files`, `idempotency`, `integrity`, `keys`.
//!
//! Owner: the engine's thread owns the one `Store`; anybody may open a `Reader`.
//! Invariants: accepted is durable (FAULTS I1); terminal states absorb (I2); after an error that
//! leaves a doubt nothing succeeds any more (I21). Absent: decisions, clocks, retries.

mod apply;
mod configs;
mod connection;
mod error;
mod files;
mod idempotency;
mod integrity;
mod keys;
mod lock;
mod log_check;
mod migrations;
#[cfg(test)]
mod model;
mod reader;
mod recover;
mod rows;
mod views;
mod writer;

pub use apply::EXITS_PER_SESSION;
pub use configs::{CONFIGS_KEPT, ConfigRecord, RevisionRecord};
pub use error::{ApplyError, CommitError, OpenError, ReadError};
pub use files::{FilesView, ReferencedBlobs};
pub use idempotency::{PruneError, Pruned};
pub use keys::KeyRecord;
pub use migrations::SCHEMA_VERSION;
pub use reader::Reader;
pub use views::{
    AgentSessions, Counts, LastExit, MessageFilter, MessageView, QueuedView, SessionFilter,
    SessionPage, SessionView,
};
pub use writer::{Batch, Store};

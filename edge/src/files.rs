//! The daemon's hands on bytes: the blobs that it keeps, the inputs that others keep for it, and
//! many of both as one stream.
//!
//! ```text
//!  inputs: a folder, a bucket ─▶ sources ─┐
//!                                         ├─▶ fetch ─▶ pieces, in the order in which they arrive
//!  uploads, intake ───────────▶ blobs ────┘
//! ```
//!
//! Owner: the daemon makes one [`blobs::BlobStore`] and one [`sources::Sources`], and decides who
//! may have what. Invariants: memory is bounded whatever the sizes are; credentials come in as a
//! value and come out nowhere; whoever writes bytes into a workspace checks them again. Absent:
//! which files a session has, tokens, and the workspace.

pub mod blobs;
pub mod fetch;
pub mod intake;
#[cfg(feature = "s3")]
pub mod objects;
mod reading;
pub mod required;
pub mod sources;

pub use reading::PieceStream;

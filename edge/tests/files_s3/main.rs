//! Inputs and blobs on a real S3 protocol server, and what it may do to them.
//!
//! Owner: `files`. Invariants: each fault is scripted, and the requests that met it are counted; no
//! test waits for a real deadline. Absent: folders of this machine, which have tests beside them.

mod blobs;
mod client;
mod inputs;
mod server;

//! The bridge as a process, seen from outside: a scripted daemon on one side, real agents on the
//! other.
//!
//! Owner: the tests. Invariant: a test waits for a condition with a deadline, never for a time.
//! Absent: what unit tests see (parsers, cursors, rotation).

mod checkpoints;
mod depot;
mod ending;
mod exec;
mod files;
mod jsonl;
mod line;
mod memory;
mod openai;
mod stage;

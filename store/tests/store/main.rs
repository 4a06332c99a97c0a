//! The store from outside: what a caller, a crash, a full disk and a person with a shell see.
//!
//! One binary, so that it links once. Absent: the model test, which lives in the crate because it
//! makes the idempotency runs small.

mod crash;
mod fixture;
mod full_disk;
mod opening;
mod pages;
mod recovery;
mod round_trip;
mod shell;
mod support;
mod sync_failure;

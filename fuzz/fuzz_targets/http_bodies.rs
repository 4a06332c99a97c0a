//! Bodies of requests: whatever comes is refused or taken, and what is taken keeps the bounds.
//!
//! The parsers are taken by their files: with the daemon around them, a build would take minutes.

#![no_main]
#![expect(dead_code, reason = "of the shapes, only those that are parsed are used here")]

use libfuzzer_sys::fuzz_target;

#[path = "../../daemon/src/api"]
mod api {
    pub(crate) mod body;
    pub(crate) mod shape;
}

fuzz_target!(|bytes: &[u8]| api::body::fuzz(bytes));

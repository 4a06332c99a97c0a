//! Documents of ECS, Docker and Kubernetes: whatever comes is refused or read, and a report that is
//! made of it keeps its bounds.
//!
//! The readers are taken by their files: with the daemon around them, a build would take minutes.

#![no_main]
#![expect(dead_code, unused_imports, reason = "what only the command line shows is not used here")]

use libfuzzer_sys::fuzz_target;

#[path = "../../daemon/src"]
mod daemon {
    pub(crate) mod foreign;
}

fuzz_target!(|bytes: &[u8]| daemon::foreign::fuzz(bytes));

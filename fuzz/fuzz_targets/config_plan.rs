//! Config texts and the plans between them: whatever comes is refused on one line or read; a plan
//! from a config to itself is empty, applied it gives the other, flipped it leads back.
//!
//! The config is taken by its files, with the two small ones of edge that it reads: with the daemon
//! around them, a build would take minutes.

#![no_main]
#![expect(dead_code, unused_imports, reason = "what only the daemon uses is not used here")]

use libfuzzer_sys::fuzz_target;

extern crate self as dormouse_edge;

#[path = "../../edge/src/driver"]
pub mod driver {
    pub mod fake {
        mod script;
        pub use script::FakeScript;
    }
}

#[path = "../../edge/src/files"]
pub mod files {
    pub mod objects {
        mod place;
        pub use place::ObjectPlace;
    }
}

#[path = "../../daemon/src"]
mod daemon {
    pub(crate) mod config;
    pub(crate) mod machine;
    pub(crate) mod notify {
        mod send;
        pub(crate) use send::{Target, WebhookAddress};
    }
}

use daemon::{machine, notify};

fuzz_target!(|bytes: &[u8]| daemon::config::laws::fuzz(bytes));

//! One process takes over from another, on one machine, without a closed door.
//!
//! ```text
//!  old process                            new process (started by the old one)
//!     │ ── starts it, a socket as its stdin ─▶ │ reads its config
//!     │ ◀──────────────────────── prepared ──  │
//!  parks its connections, commits, closes the store and its sockets
//!     │ ── listener, connections, yours ─────▶ │ opens the store, recovers, binds the sockets
//!     │ ◀───────────────────────── healthy ──  │
//!     │ ── go ───────────────────────────────▶ │ serves
//!  exits 0                                     │
//! ```
//!
//! Until `go` the old process can have everything back: it kills the new one, opens the store again
//! and serves on, with the same listener and connections. Newcomers wait in the listener's backlog
//! meanwhile; bridges dial again.
//!
//! Owner: `run`, on both sides. Invariants: the listener is never closed; at any time at most one
//! of the two serves; if either is killed, the other goes on or the store is free for the next
//! start: before `yours` the new process ends with the old one, after it it goes on alone. The
//! sockets travel as messages (SCM_RIGHTS) and not by inheritance, so that no bridge that is
//! started at the same moment can get hold of one. Absent: who may ask for it (`door`), the store.

pub(crate) mod door;
mod line;
pub(crate) mod new;
pub(crate) mod old;

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use line::{Line, LineError};

/// The version of what the two processes say to each other.
const PROTOCOL: u32 = 1;
/// Set for a process whose standard input leads to the process that it takes over from.
const TAKES_OVER: &str = "DORMOUSE_TAKES_OVER";
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum FromNew {
    /// Everything that needs no store is done.
    Prepared {
        protocol: u32,
        version: String,
        schema: u32,
    },
    /// It can serve; what it has is consistent.
    Healthy {},
    Failed {
        why: String,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum FromOld {
    /// With its socket.
    Listener {},
    /// With its socket. `read` (base64) is what was read of it already.
    Connection {
        peer: SocketAddr,
        read: String,
    },
    /// The store is closed.
    Yours {},
    Go {},
}

fn encoded(read: &Bytes) -> String {
    STANDARD.encode(read)
}

fn decoded(read: &str) -> Option<Bytes> {
    STANDARD.decode(read).ok().map(Bytes::from)
}

//! Why a benchmark gives no figure. A figure that cannot be trusted is an error too.
//!
//! Owner: every file of `bench`. Invariant: names what was being done. Absent: retries.

use std::io;
use std::path::{Path, PathBuf};

use crate::process::RunError;
use crate::static_bridge::StaticBridgeError;

#[derive(Debug, thiserror::Error)]
pub(super) enum BenchError {
    #[error("cannot {doing} {}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("the system refuses {what}")]
    System { what: &'static str, source: io::Error },
    #[error("HTTP: cannot {doing}")]
    Http { doing: &'static str, source: io::Error },
    #[error("HTTP: the answer has {what}: {shown}")]
    Answer { what: &'static str, shown: String },
    #[error("HTTP: {request} was answered with {status}, not {wanted}: {body}")]
    Status { request: String, status: u16, wanted: u16, body: String },
    #[error("{what} took longer than {seconds} s")]
    TooSlow { what: String, seconds: u64 },
    #[error("the daemon ended by itself; its last words: {words}")]
    DaemonEnded { words: String },
    #[error("an agent said something unexpected: {said}")]
    Agent { said: String },
    #[error("the figure is void: {why}")]
    Void { why: String },
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("`{command}` failed")]
    CommandFailed { command: String },
    #[error(transparent)]
    StaticBridge(#[from] StaticBridgeError),
    #[error("the samples cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl BenchError {
    pub(super) fn file(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> BenchError + use<> {
        let path = path.to_path_buf();
        move |source| BenchError::File { doing, path, source }
    }

    pub(super) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> BenchError {
        move |source| BenchError::System { what, source: source.into() }
    }

    pub(super) fn http(doing: &'static str) -> impl FnOnce(io::Error) -> BenchError {
        move |source| BenchError::Http { doing, source }
    }

    pub(super) fn void(why: impl Into<String>) -> BenchError {
        BenchError::Void { why: why.into() }
    }
}

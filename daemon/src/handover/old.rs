//! The side that hands over.
//!
//! Owner: `run`. Invariants: a new process that is not healthy in time is killed and waited for
//! before anything is taken back; whatever fails before `go` leaves this process able to go on.
//! Absent: what is handed over (`run` closes it first).

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{FromNew, FromOld, Line, LineError, PROTOCOL, TAKES_OVER, encoded};
use crate::server::Idle;

/// A process that was told to end by a closed line needs no longer than this to be gone.
const GONE_WITHIN: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub(crate) enum HandOverError {
    #[error("{} cannot be executed: {source}", path.display())]
    Execute { path: PathBuf, source: io::Error },
    #[error("no line to the new process could be made: {0}")]
    Line(#[source] io::Error),
    #[error("the new process ended before it was {stage} ({how})")]
    Ended { stage: &'static str, how: String },
    #[error("the new process was not {stage} within {} s", within.as_secs())]
    Silent { stage: &'static str, within: Duration },
    #[error("the new process is no dormouse that takes over: {0}")]
    NotUnderstood(String),
    #[error("the new process failed: {0}")]
    Failed(String),
    #[error(
        "the new version {version} changes the store (schema {schema}, this one has {known}), and \
         this one could not take it back; stop this daemon and start the new one, or say \
         --migrate to go on without a way back"
    )]
    Migrates { version: String, schema: u32, known: u32 },
    #[error("the new version {version} is too old for the store (schema {schema} of {known})")]
    TooOld { version: String, schema: u32, known: u32 },
    #[error("the new process could not be given what it needs: {0}")]
    Give(#[from] LineError),
}

/// A new process, from its start until it serves or is gone.
#[derive(Debug)]
pub(crate) struct Successor {
    child: Option<Child>,
    line: Line,
    pub(crate) version: String,
}

impl Successor {
    /// Starts it, with this process' own arguments, and waits until it is prepared. Blocks.
    pub(crate) fn prepare(
        program: &PathBuf,
        arguments: &[OsString],
        may_migrate: bool,
        within: Duration,
    ) -> Result<Self, HandOverError> {
        let (line, there) = Line::pair().map_err(HandOverError::Line)?;
        let child = Command::new(program)
            .args(arguments)
            .env(TAKES_OVER, "1")
            .stdin(Stdio::from(there))
            .spawn()
            .map_err(|source| HandOverError::Execute { path: program.clone(), source })?;
        let mut successor = Self { child: Some(child), line, version: String::new() };
        let known = dormouse_store::SCHEMA_VERSION;
        match successor.hear("prepared", within)? {
            FromNew::Prepared { protocol, .. } if protocol != PROTOCOL => {
                let words = format!("it speaks version {protocol}, this one {PROTOCOL}");
                Err(HandOverError::NotUnderstood(words))
            }
            FromNew::Prepared { version, schema, .. } if schema < known => {
                Err(HandOverError::TooOld { version, schema, known })
            }
            FromNew::Prepared { version, schema, .. } if schema > known && !may_migrate => {
                Err(HandOverError::Migrates { version, schema, known })
            }
            FromNew::Prepared { version, .. } => {
                successor.version = version;
                Ok(successor)
            }
            FromNew::Failed { why } => Err(HandOverError::Failed(why)),
            FromNew::Healthy {} => {
                Err(HandOverError::NotUnderstood("it was healthy too early".to_owned()))
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it is there until it is released").id()
    }

    /// Gives it everything, and waits until it is healthy. Blocks. The store must be closed.
    pub(crate) fn give(
        &mut self,
        listener: &TcpListener,
        idle: &[Idle],
        within: Duration,
    ) -> Result<(), HandOverError> {
        self.line.say(&FromOld::Listener {}, Some(listener.as_fd()))?;
        for Idle { socket, peer, read } in idle {
            let connection = FromOld::Connection { peer: *peer, read: encoded(read) };
            self.line.say(&connection, Some(socket.as_fd()))?;
        }
        self.line.say(&FromOld::Yours {}, None)?;
        match self.hear("healthy", within)? {
            FromNew::Healthy {} => Ok(()),
            FromNew::Failed { why } => Err(HandOverError::Failed(why)),
            FromNew::Prepared { .. } => {
                Err(HandOverError::NotUnderstood("it was prepared twice".to_owned()))
            }
        }
    }

    /// From now on it serves, and is nobody's child.
    pub(crate) fn release(mut self) {
        self.child = None;
        // If it has died just now, its service manager or its owner finds that out.
        drop(self.line.say(&FromOld::Go {}, None));
    }

    fn hear(&mut self, stage: &'static str, within: Duration) -> Result<FromNew, HandOverError> {
        match self.line.hear(Some(within)) {
            Ok((message, _no_socket)) => Ok(message),
            Err(LineError::Gone) => {
                let how = self
                    .how_it_ended()
                    .map_or("its line was closed".to_owned(), |status| status.to_string());
                Err(HandOverError::Ended { stage, how })
            }
            Err(LineError::Silent) => Err(HandOverError::Silent { stage, within }),
            Err(error @ (LineError::Garbage | LineError::Broken(_))) => {
                Err(HandOverError::NotUnderstood(error.to_string()))
            }
        }
    }

    fn how_it_ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        let deadline = std::time::Instant::now() + GONE_WITHIN;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if std::time::Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for Successor {
    /// A new process that did not get as far as serving is gone before the old one goes on.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that has ended already is what is wanted.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

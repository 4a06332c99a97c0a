//! The side that takes over.
//!
//! Owner: `run`, before it opens anything. Invariants: nothing of the data folder is touched before
//! `yours`; nothing is served before `go`, or before the old process is gone. Absent: the store,
//! serving.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;

use super::{FromNew, FromOld, Line, LineError, PROTOCOL, TAKES_OVER, decoded};
use crate::server::Idle;

/// Connections that one process can hand over; more than any limit of connections that is sensible.
const CONNECTIONS_MAX: usize = 1 << 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    #[error("the line to the process to take over from cannot be used")]
    Stdin(#[source] io::Error),
    #[error("the process to take over from did not hand over")]
    Line(#[from] LineError),
    #[error("the process to take over from handed over something else than was agreed on")]
    Order,
}

/// A process that takes over, and has not been given anything yet.
#[derive(Debug)]
pub(crate) struct Taking(Line);

/// What it was given.
#[derive(Debug)]
pub(crate) struct Taken {
    line: Line,
    pub(crate) listener: TcpListener,
    pub(crate) idle: Vec<Idle>,
}

impl Taking {
    /// `None`: this process was started by somebody else.
    pub(crate) fn of_this_process() -> Result<Option<Self>, TakeError> {
        if std::env::var_os(TAKES_OVER).is_none() {
            return Ok(None);
        }
        let socket = io::stdin().as_fd().try_clone_to_owned().map_err(TakeError::Stdin)?;
        Ok(Some(Self(Line::of(socket))))
    }

    /// Another end, for what is to be said when it did not work out.
    pub(crate) fn line(&self) -> Result<Self, TakeError> {
        let socket = self.0.as_fd().try_clone_to_owned().map_err(TakeError::Stdin)?;
        Ok(Self(Line::of(socket)))
    }

    /// Tells the old process why it must go on.
    pub(crate) fn failed(&self, why: &str) {
        // If nobody hears it, nobody waits for it.
        drop(self.0.say(&FromNew::Failed { why: why.to_owned() }, None));
    }

    /// Says that everything which needs no store is done, and waits for the rest.
    pub(crate) fn take(self) -> Result<Taken, TakeError> {
        let line = self.0;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let schema = dormouse_store::SCHEMA_VERSION;
        line.say(&FromNew::Prepared { protocol: PROTOCOL, version, schema }, None)?;
        let mut listener = None;
        let mut idle = Vec::new();
        loop {
            match line.hear(None)? {
                (FromOld::Listener {}, Some(socket)) => {
                    listener = Some(TcpListener::from(socket));
                }
                (FromOld::Connection { peer, read }, Some(socket))
                    if idle.len() < CONNECTIONS_MAX =>
                {
                    let read = decoded(&read).ok_or(TakeError::Order)?;
                    idle.push(Idle { socket: socket.into(), peer, read });
                }
                (FromOld::Yours {}, None) => break,
                _other => return Err(TakeError::Order),
            }
        }
        let listener = listener.ok_or(TakeError::Order)?;
        Ok(Taken { line, listener, idle })
    }
}

impl Taken {
    /// Says that this process can serve, and waits until it is to. What the old process does now,
    /// it does after `go`; if it is gone, nobody else serves.
    pub(crate) fn is_healthy(&self) -> Result<(), TakeError> {
        match self.line.say(&FromNew::Healthy {}, None) {
            Ok(()) => {}
            Err(LineError::Gone) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        match self.line.hear(None) {
            Ok((FromOld::Go {}, None)) | Err(LineError::Gone) => Ok(()),
            Ok(_) => Err(TakeError::Order),
            Err(error) => Err(error.into()),
        }
    }
}

//! The listening socket: bound here, or handed in by systemd (socket activation, LISTEN_FDS).
//!
//! Owner: `run`. Invariant: a socket that was handed in is used as it is, whatever the config says
//! of an address. Absent: sockets of a process that is taken over from (`handover`).

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::RunError;

/// Newcomers that the kernel keeps waiting while nobody accepts.
const BACKLOG: i32 = 4096;

pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    let failed = |source| RunError::Listen { address, source };
    let socket = TcpListener::bind(address).map_err(failed)?;
    // Said again, the kernel takes the longer queue.
    rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
    Ok(socket)
}

/// The socket that systemd opened for this process; `None` where it did not.
pub(super) fn activated() -> Result<Option<TcpListener>, RunError> {
    let mut sockets = sd_notify::listen_fds().map_err(refused)?;
    let Some(number) = sockets.next() else { return Ok(None) };
    let own = || -> io::Result<TcpListener> {
        let this = pidfd_open(getpid(), PidfdFlags::empty())?;
        let socket = pidfd_getfd(this, number, PidfdGetfdFlags::empty())?;
        Ok(TcpListener::from(socket))
    };
    own().map(Some).map_err(refused)
}

pub(super) fn refused(source: io::Error) -> RunError {
    RunError::System { what: "to use the socket that was handed in", source }
}

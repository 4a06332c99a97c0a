//! The listening socket: bound here, or handed in by systemd (socket activation, LISTEN_FDS).
//!
//! Owner: `run`. Invariant: a socket that was handed in is used as it is, whatever the config says
//! of an address. Absent: sockets of a process that is taken over from (`handover`).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{BorrowedFd, FromRawFd};

use rustix::net::sockopt::socket_acceptconn;

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
    #[expect(unsafe_code, reason = "an inherited descriptor has no owner to borrow it from")]
    // SAFETY: it is borrowed for one look; a number that is not open is an error of the look.
    let listens = socket_acceptconn(unsafe { BorrowedFd::borrow_raw(number) });
    match listens {
        Ok(true) => {}
        Ok(false) => return Err(refused(io::Error::other("it does not listen for connections"))),
        Err(error) => return Err(refused(error.into())),
    }
    #[expect(unsafe_code, reason = "an inherited descriptor has no owner until one is made")]
    // SAFETY: the variables name it for this process alone, nothing in this process listens yet
    // (so this is the one that was handed in), and it is taken once.
    Ok(Some(unsafe { TcpListener::from_raw_fd(number) }))
}

pub(super) fn refused(source: io::Error) -> RunError {
    RunError::System { what: "to use the socket that was handed in", source }
}

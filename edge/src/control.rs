//! The control socket: a Unix socket in the data folder that bridges dial, one WebSocket each.
//!
//! Owner: the daemon binds it once its engine takes events. Invariants: only the owner may connect
//! (0600), nothing is heard from a connection before its token was checked, and nothing but its
//! hello before it was welcomed; the number of connections, their frames and their silence are
//! bounded. Absent: addresses of bridges, and commands; those go through the `registry`.

mod connection;
mod place;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::paths::FolderError;
use crate::registry::Registry;
use crate::token::DeploymentSecret;

/// How long the kernel keeps dialling bridges waiting; after a daemon's return all of them dial at
/// once.
const BACKLOG: i32 = 1024;

/// The bounds of the connections.
#[derive(Debug, Clone)]
pub struct ControlLimits {
    /// From the connection to a whole hello.
    pub hello_within: Duration,
    pub ping_every: Duration,
    /// Nothing heard, or nothing taken, for this long: the connection is dead.
    pub dead_after: Duration,
    pub connections_max: usize,
}

impl Default for ControlLimits {
    fn default() -> Self {
        Self {
            hello_within: Duration::from_secs(10),
            ping_every: Duration::from_secs(15),
            dead_after: Duration::from_secs(45),
            connections_max: 8192,
        }
    }
}

/// Why the socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("another daemon listens on {}", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is no socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("the control socket needs a short folder, and found no safe one")]
    Folder(#[from] FolderError),
    #[error("{} could not be {doing}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A listening control socket. Dropping it closes every connection.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    accepting: JoinHandle<()>,
}

/// What every connection needs.
#[derive(Debug)]
struct Shared {
    registry: Registry,
    secret: DeploymentSecret,
    limits: ControlLimits,
}

impl ControlSocket {
    /// Listens on `wanted`, or in a short folder if that path is too long for a socket; the same
    /// one each time.
    pub fn bind(
        wanted: &Path,
        secret: DeploymentSecret,
        registry: Registry,
        limits: ControlLimits,
    ) -> Result<Self, BindError> {
        let (listener, path) = bind_private(wanted)?;
        let shared = Arc::new(Shared { registry, secret, limits });
        let accepting = tokio::spawn(accept(listener, shared));
        Ok(Self { path, accepting })
    }

    /// Closes it and every connection; returns when nothing of it is open any more.
    pub async fn close(mut self) {
        self.accepting.abort();
        // That it was cancelled is what was wanted.
        drop((&mut self.accepting).await);
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a bridge dials.
    pub fn dial(&self) -> String {
        format!("unix:{}", self.path.display())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Listens on a socket that only the owner may connect to: `wanted`, or one in a short folder if
/// that path is too long; the same one each time.
pub fn bind_private(wanted: &Path) -> Result<(UnixListener, PathBuf), BindError> {
    let runtime_folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let path = place::socket_path(wanted, runtime_folder.as_deref())?;
    place::remove_stale(&path)?;
    Ok((listen(&path)?, path))
}

/// Where `bind_private` listens, or has listened.
pub fn private_path(wanted: &Path) -> Result<PathBuf, BindError> {
    let runtime_folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    place::socket_path(wanted, runtime_folder.as_deref())
}

/// The mode is set between bind and listen, so that nobody else can ever connect.
fn listen(path: &Path) -> Result<UnixListener, BindError> {
    let make = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::fs::chmod(path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
        rustix::net::listen(&socket, BACKLOG)?;
        UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
    };
    make().map_err(|source: io::Error| {
        if source.kind() == io::ErrorKind::AddrInUse {
            return BindError::InUse { path: path.to_owned() };
        }
        BindError::Io { doing: "listened on", path: path.to_owned(), source }
    })
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(shared.limits.connections_max));
    let mut connections = JoinSet::new();
    loop {
        // The permit comes first: beyond the maximum, dialling bridges wait in the kernel's queue.
        let permit = Arc::clone(&room).acquire_owned().await.expect("it is never closed");
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move {
                        connection::serve(stream, &shared).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors, mostly: asking at once again would only burn the
                    // processor.
                    tracing::error!(%error, "the control socket takes no connection at the moment");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "a connection of the control socket ended in a panic");
            },
        }
    }
}

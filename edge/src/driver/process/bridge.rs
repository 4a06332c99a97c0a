//! The process of a bridge: our own child, or one that an earlier daemon left behind.
//!
//! Owner: the task of its instance. Invariants: a bridge counts as alive as long as its lock is
//! held, whatever its records say; a process that is not proven to be it is not touched. Own
//! children are reaped. Absent: what to do about its end.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use dormouse_bridge::rundir::{RunFolder, RunFolderError};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

use super::purge;

/// A bridge says in its first moments which process it is. Until then its lock is asked for.
const ASK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) enum Bridge {
    Child(Child),
    Adopted(AsyncFd<OwnedFd>),
    /// It lives, and has not said yet which process it is.
    Unknown,
    Ended,
}

impl Bridge {
    /// Finds the bridge of a folder that is there already.
    pub(super) fn find(folder: &RunFolder) -> Result<Self, FindError> {
        // The record first: a bridge that ends in between is then seen by its lock.
        let record = folder.read_bridge()?;
        if folder.lock()?.is_some() {
            return Ok(Bridge::Ended);
        }
        match record.and_then(|record| purge::open_process(record.process)) {
            Some(process) => watched(process).map(Bridge::Adopted).map_err(FindError::Watch),
            None => Ok(Bridge::Unknown),
        }
    }

    /// Waits for its end. Cancelling loses nothing. What is returned is known of own children.
    pub(super) async fn end(
        &mut self,
        folder: &RunFolder,
    ) -> Result<Option<ExitStatus>, FindError> {
        loop {
            match self {
                Bridge::Child(child) => {
                    return child.wait().await.map(Some).map_err(FindError::Watch);
                }
                Bridge::Adopted(process) => {
                    process.readable().await.map_err(FindError::Watch)?.retain_ready();
                    return Ok(None);
                }
                Bridge::Unknown => {
                    tokio::time::sleep(ASK_EVERY).await;
                    *self = Self::find(folder)?;
                }
                Bridge::Ended => return Ok(None),
            }
        }
    }

    /// Asks the kernel to end it; `end` tells when it has.
    pub(super) fn kill(&mut self, folder: &RunFolder) -> io::Result<()> {
        match self {
            // Not reaped yet, so its number is its own.
            Bridge::Child(child) => child.start_kill(),
            Bridge::Adopted(process) => {
                match rustix::process::pidfd_send_signal(process.get_ref(), Signal::KILL) {
                    Err(rustix::io::Errno::SRCH) => Ok(()),
                    sent => sent.map_err(io::Error::from),
                }
            }
            Bridge::Unknown => {
                purge::kill_whoever_works_in(folder.path());
                Ok(())
            }
            Bridge::Ended => Ok(()),
        }
    }
}

fn watched(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "tokio watches a foreign descriptor on our word only")]
    // SAFETY: the descriptor is open, and owned by what watches it, so it stays what it is.
    let watched = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FindError {
    #[error("the run folder cannot be read")]
    Folder(#[from] RunFolderError),
    #[error("the bridge's process cannot be watched")]
    Watch(#[source] io::Error),
}

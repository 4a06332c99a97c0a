//! Where an upgrade is asked for: a Unix socket in the data folder, for its owner alone.
//!
//! ```text
//!  dormouse upgrade ── {"exec": PATH, …} ─▶ DATA/upgrade.sock
//!                   ◀─ {"stage": "prepared", …} · … · {"stage": "done"} or {"stage": "failed"}
//! ```
//!
//! Owner: `run`; `cli::upgrade` is the other side. Invariants: what is executed is never named over
//! the network, so that no key, however powerful, can execute anything on this machine; one upgrade
//! at a time; the last line is `done` or `failed`. Absent: the upgrade itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dormouse_edge::control::{BindError, bind_private, private_path};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

const NAME: &str = "upgrade.sock";
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    pub(crate) exec: PathBuf,
    /// A change of the store that cannot be taken back is accepted.
    pub(crate) migrate: bool,
    /// How long the new process may take until it is prepared, and again until it is healthy.
    pub(crate) within_ms: u64,
}

/// What whoever asked is told, one line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(crate) enum Stage {
    Prepared {
        version: String,
        pid: u32,
    },
    Parked {
        connections: usize,
    },
    Done {
        version: String,
        pid: u32,
        /// For so long nobody served.
        paused_ms: u64,
    },
    Failed {
        why: String,
    },
}

/// An upgrade that was asked for, and who waits for it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) wanted: Wanted,
    teller: UnixStream,
    /// While it is held nobody else is let in.
    _only: OwnedSemaphorePermit,
}

impl Asked {
    /// Who went away meanwhile misses it; the upgrade goes on.
    pub(crate) async fn tell(&mut self, stage: &Stage) {
        tell(&mut self.teller, stage).await;
    }
}

#[derive(Debug)]
pub(crate) struct Door {
    asked: mpsc::Receiver<Asked>,
    accepting: JoinHandle<()>,
}

/// Where the door of a data folder is.
pub(crate) fn path_of(data: &Path) -> Result<PathBuf, BindError> {
    private_path(&data.join(NAME))
}

impl Door {
    pub(crate) fn open(data: &Path) -> Result<Self, BindError> {
        let (listener, _path) = bind_private(&data.join(NAME))?;
        let (sender, asked) = mpsc::channel(1);
        Ok(Self { asked, accepting: tokio::spawn(accept(listener, sender)) })
    }

    /// The next one who asks.
    pub(crate) async fn asked(&mut self) -> Asked {
        match self.asked.recv().await {
            Some(asked) => asked,
            // The door is shut, as when the daemon drains.
            None => std::future::pending().await,
        }
    }

    pub(crate) async fn close(self) {
        self.accepting.abort();
        // That it was cancelled is what was wanted.
        drop(self.accepting.await);
    }
}

async fn accept(listener: UnixListener, asked: mpsc::Sender<Asked>) {
    let only = Arc::new(Semaphore::new(1));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::spawn(receive(stream, Arc::clone(&only), asked.clone()));
    }
}

async fn receive(mut stream: UnixStream, only: Arc<Semaphore>, asked: mpsc::Sender<Asked>) {
    let wanted = match tokio::time::timeout(REQUEST_WITHIN, request(&mut stream)).await {
        Ok(Ok(wanted)) => wanted,
        Ok(Err(why)) => return tell(&mut stream, &Stage::Failed { why }).await,
        Err(_) => return,
    };
    let Ok(only) = only.try_acquire_owned() else {
        let why = "another upgrade is under way".to_owned();
        return tell(&mut stream, &Stage::Failed { why }).await;
    };
    let asked_now = Asked { wanted, teller: stream, _only: only };
    if let Err(mpsc::error::SendError(mut refused)) = asked.send(asked_now).await {
        refused.tell(&Stage::Failed { why: "the daemon is ending".to_owned() }).await;
    }
}

async fn request(stream: &mut UnixStream) -> Result<Wanted, String> {
    let peer = socket_peercred(&*stream).map_err(|error| io::Error::from(error).to_string())?;
    if peer.uid != geteuid() && !peer.uid.is_root() {
        return Err("only the owner of the data folder may ask for an upgrade".to_owned());
    }
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(REQUEST_BYTES_MAX));
    reader.read_line(&mut line).await.map_err(|error| error.to_string())?;
    serde_json::from_str(&line).map_err(|error| format!("not understood: {error}"))
}

async fn tell(stream: &mut UnixStream, stage: &Stage) {
    let mut line = serde_json::to_string(stage).expect("the stages are plain data");
    line.push('\n');
    // Whoever asked may have gone.
    drop(stream.write_all(line.as_bytes()).await);
}

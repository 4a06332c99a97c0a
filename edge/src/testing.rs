//! What the tests of this crate share: a scratch folder, and waiting with a limit.
//!
//! Owner: the tests. Invariant: a wait that takes too long fails, it never passes. Absent: sleeps.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_core::event::Event;
use dormouse_core::id::{BootId, Generation, InstanceId, MessageId, TurnId};
use tokio::sync::mpsc;

/// A folder that goes with the test.
#[derive(Debug)]
pub(crate) struct ScratchFolder(PathBuf);

impl ScratchFolder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("dormouse-edge-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("a scratch folder");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).expect("the scratch folder goes");
        }
    }
}

/// The future's value, or a failed test after 20 s.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(value) => value,
        Err(_) => panic!("waited 20 s for {what}"),
    }
}

pub(crate) async fn next_event(events: &mut mpsc::Receiver<Event>) -> Event {
    soon("an event", events.recv()).await.expect("the channel of events is open")
}

pub(crate) fn instance(session: &str, generation: u64) -> InstanceId {
    InstanceId {
        session: session.parse().expect("a session id"),
        generation: Generation(generation),
    }
}

pub(crate) fn turn(message: u128) -> TurnId {
    TurnId { message: MessageId(message), attempt: 1 }
}

pub(crate) fn boot(number: u128) -> BootId {
    BootId(number)
}

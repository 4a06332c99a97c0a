//! Which blobs of a bucket were offered or put lately, and which are just being removed.
//!
//! ```text
//!  offer: not while it is being removed (then it counts as missing)
//!  put:   waits until it is removed, then puts
//!  remove: not if it was offered or put since the limit
//! ```
//!
//! Owner: `blobs::bucket`. Invariants: of offer and remove for one hash, one sees the other; a
//! process that has just begun knows nothing, so it removes nothing that is younger than itself
//! was offered by. Absent: other processes.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use dormouse_core::manifest::Sha256Hash;
use tokio::sync::Notify;

/// More are not remembered: then everything counts as offered just now.
const OFFERED_MAX: usize = 1_000_000;

#[derive(Debug)]
pub(super) struct Lately {
    state: Mutex<State>,
    removed: Notify,
}

#[derive(Debug)]
struct State {
    /// Whatever is not in `offered` may have been offered until then.
    unknown_until: SystemTime,
    offered: HashMap<Sha256Hash, SystemTime>,
    removing: HashSet<Sha256Hash>,
}

impl Lately {
    pub(super) fn new() -> Self {
        let unknown_until = SystemTime::now();
        let (offered, removing) = (HashMap::new(), HashSet::new());
        let state = Mutex::new(State { unknown_until, offered, removing });
        Self { state, removed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before it is looked for. False: it is on its way out.
    pub(super) fn offer(&self, hash: &Sha256Hash) -> bool {
        let mut state = self.state();
        if state.removing.contains(hash) {
            return false;
        }
        state.remember(*hash);
        true
    }

    /// Before it is put, and after.
    pub(super) async fn put(&self, hash: &Sha256Hash) {
        loop {
            let removed = self.removed.notified();
            tokio::pin!(removed);
            // Else an end between the look and the wait would be missed.
            removed.as_mut().enable();
            if self.offer(hash) {
                return;
            }
            removed.await;
        }
    }

    /// True: it may be removed, and `end_removal` has to follow.
    pub(super) fn begin_removal(&self, hash: &Sha256Hash, limit: SystemTime) -> bool {
        let mut state = self.state();
        let offered_at = state.offered.get(hash).copied().unwrap_or(state.unknown_until);
        offered_at < limit && state.removing.insert(*hash)
    }

    pub(super) fn end_removal(&self, hash: &Sha256Hash) {
        self.state().removing.remove(hash);
        self.removed.notify_waiters();
    }

    /// What is older decides nothing any more.
    pub(super) fn forget_before(&self, limit: SystemTime) {
        let mut state = self.state();
        if state.unknown_until < limit {
            state.offered.retain(|_, offered_at| *offered_at >= limit);
        }
    }
}

impl State {
    fn remember(&mut self, hash: Sha256Hash) {
        let now = SystemTime::now();
        if self.offered.len() >= OFFERED_MAX {
            self.offered.clear();
            self.unknown_until = now;
        }
        self.offered.insert(hash, now);
    }
}

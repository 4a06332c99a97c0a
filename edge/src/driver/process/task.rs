//! The task of one instance: from its start, or its finding, to the report of its end.
//!
//! ```text
//!  Starting ─▶ Alive ── its bridge is gone ─▶ purge ─▶ read what it left ─▶ report ─▶ Ended
//!      └ failed ─▶ Gone                        │ something lives
//!                                              └▶ Unconfirmed ─▶ purge …
//! ```
//!
//! Owner: the process driver spawns one per instance and talks to it through two watches.
//! Invariants: an end is reported only after a look that found nothing of the instance, and a free
//! lock; an instance that was released meanwhile is not reported. Absent: removal, which is the
//! driver's.

use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::Child;
use tokio::sync::watch;

use super::bridge::Bridge;
use super::folder::in_words;
use super::remains::Remains;
use crate::driver::Leftovers;

/// Between two attempts to end what does not end.
const PURGE_AGAIN_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) kill: bool,
    pub(super) released: bool,
}

#[derive(Debug, Clone)]
pub(super) enum State {
    Starting,
    Alive,
    /// Its bridge is gone, but something of it is not, or it cannot be told.
    Unconfirmed(String),
    Ended {
        leftovers: Leftovers,
        is_reported: bool,
    },
    /// It never came to be.
    Gone,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) remains: Remains,
    pub(super) wishes: watch::Receiver<Wishes>,
    pub(super) state: watch::Sender<State>,
}

impl Task {
    /// Follows a bridge that was just executed.
    pub(super) async fn follow(self, child: Child) {
        self.state.send_replace(State::Alive);
        self.run(Bridge::Child(child), true).await;
    }

    /// Follows what is found in the folder. An end that lies in the past is not reported; whoever
    /// found the folder learns it from the state.
    pub(super) async fn adopt(self) {
        let bridge = loop {
            match Bridge::find(&self.remains.folder) {
                Ok(bridge) => break bridge,
                Err(error) => self.is_stuck(in_words(&error)).await,
            }
        };
        let is_alive = !matches!(bridge, Bridge::Ended);
        if is_alive {
            self.state.send_replace(State::Alive);
        }
        self.run(bridge, is_alive).await;
    }

    async fn run(mut self, mut bridge: Bridge, mut is_news: bool) {
        let status = self.bridge_end(&mut bridge).await;
        while let Err(what) = self.blocking(Remains::purge).await.and_then(|purged| purged) {
            is_news = true;
            self.is_stuck(what).await;
        }
        let was_killed = self.wishes.borrow().kill;
        let leftovers = loop {
            match self.blocking(move |remains| remains.read(status, was_killed)).await {
                Ok(leftovers) => break leftovers,
                Err(what) => self.is_stuck(what).await,
            }
        };
        let is_reported = is_news && !self.wishes.borrow().released;
        if is_reported {
            let Remains { shared, instance, .. } = &self.remains;
            shared.report(leftovers.clone().into_events(instance)).await;
        }
        self.state.send_replace(State::Ended { leftovers, is_reported });
    }

    async fn is_stuck(&self, what: String) {
        let instance = &self.remains.instance;
        tracing::warn!(%instance, what, "it is not known whether an instance has ended");
        self.state.send_replace(State::Unconfirmed(what));
        tokio::time::sleep(PURGE_AGAIN_AFTER).await;
    }

    async fn bridge_end(&mut self, bridge: &mut Bridge) -> Option<ExitStatus> {
        let folder = self.remains.folder.clone();
        let mut is_to_be_killed = false;
        loop {
            if is_to_be_killed && let Err(error) = bridge.kill(&folder) {
                self.is_stuck(format!("its bridge cannot be killed: {error}")).await;
            }
            let has_ended = tokio::select! {
                has_ended = bridge.end(&folder) => has_ended,
                () = wants_a_kill(&mut self.wishes), if !is_to_be_killed => {
                    is_to_be_killed = true;
                    continue;
                }
            };
            match has_ended {
                Ok(status) => return status,
                Err(error) => self.is_stuck(in_words(&error)).await,
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Remains) -> T + Send + 'static,
    ) -> Result<T, String> {
        let remains = self.remains.clone();
        tokio::task::spawn_blocking(move || work(&remains)).await.map_err(|error| error.to_string())
    }
}

async fn wants_a_kill(wishes: &mut watch::Receiver<Wishes>) {
    if wishes.wait_for(|wishes| wishes.kill).await.is_err() {
        // The driver is gone, and wishes nothing any more.
        std::future::pending::<()>().await;
    }
}

//! The only place of the daemon's decisions that looks at a clock.
//!
//! Owner: the engine. Invariant: the monotonic reading counts from this process's start, and never
//! goes back.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dormouse_core::time::{Monotonic, Now, Wall, millis};

#[derive(Debug)]
pub(crate) struct Clock {
    started_at: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started_at: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        Now { monotonic: Monotonic(millis(self.started_at.elapsed())), wall: wall_now() }
    }

    /// Sleeps until `deadline`, or for ever.
    pub(crate) async fn wait_until(&self, deadline: Option<Monotonic>) {
        match deadline {
            None => std::future::pending().await,
            Some(at) => {
                let at = self.started_at + Duration::from_millis(at.0);
                tokio::time::sleep_until(at.into()).await;
            }
        }
    }
}

/// A clock before 1970 reads as 1970: the wall is for people, and decides nothing.
pub(crate) fn wall_now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(millis(since))
}

//! Waiting for a condition, with a deadline.
//!
//! Owner: every test. Invariant: a wait that ends without its condition fails the test, and says
//! what it waited for. Absent: waiting for nothing but time.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for anything that takes milliseconds on an idle machine, on a very busy one.
pub(crate) const SOON: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks again and again until there is something, or `SOON` is over.
#[track_caller]
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(SOON, what, look)
}

#[track_caller]
pub(crate) fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

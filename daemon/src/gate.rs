//! Rates at the door: token buckets per subject and per address. A pure value behind one lock.
//!
//! Owner: the API's middleware. Invariants: memory is bounded by `BUCKETS_MAX` (FAULTS I16); a
//! refusal says when to come again. Absent: queue bounds (`core`), body sizes (`api`).

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_core::id::Subject;

use crate::config::GateLimits;

/// Full buckets are forgotten when there are so many.
const BUCKETS_MAX: usize = 10_000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    burst: f64,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, filled_at: now }
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let since = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + since * rate.per_second).min(rate.burst);
        self.filled_at = now;
    }

    /// Takes one, or says how long until there is one.
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.fill(rate, now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / rate.per_second))
    }
}

#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    by_key: HashMap<K, Bucket>,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, by_key: HashMap::new() }
    }

    /// A bucket keeps how far it is from being full.
    fn set_rate(&mut self, rate: Rate) {
        let wider = rate.burst - self.rate.burst;
        self.by_key.values_mut().for_each(|bucket| bucket.tokens += wider);
        self.rate = rate;
    }

    fn take(&mut self, key: &K, now: Instant) -> Result<(), Duration> {
        self.make_room(now);
        let rate = self.rate;
        let bucket = self.by_key.entry(key.clone()).or_insert_with(|| Bucket::full(rate, now));
        bucket.take(rate, now)
    }

    /// Whether there would be a token, without taking it.
    fn is_empty(&mut self, key: &K, now: Instant) -> Option<Duration> {
        let bucket = self.by_key.get_mut(key)?;
        bucket.fill(self.rate, now);
        let missing = 1.0 - bucket.tokens;
        (missing > 0.0).then(|| Duration::from_secs_f64(missing / self.rate.per_second))
    }

    fn make_room(&mut self, now: Instant) {
        if self.by_key.len() < BUCKETS_MAX {
            return;
        }
        let rate = self.rate;
        self.by_key.retain(|_, bucket| {
            bucket.fill(rate, now);
            bucket.tokens < rate.burst
        });
        if self.by_key.len() >= BUCKETS_MAX {
            // Ten thousand at once are an attack, and forgetting only means a new burst for each.
            self.by_key.clear();
        }
    }
}

/// Of messages, of requests without a key, of wrong keys.
fn rates_of(limits: &GateLimits) -> [Rate; 3] {
    let rate = |per_second: f64, burst: u32| Rate { per_second, burst: f64::from(burst) };
    let GateLimits {
        messages_per_second,
        messages_burst,
        unauthenticated_per_second,
        wrong_keys_per_minute,
        connections: _,
    } = *limits;
    [
        rate(messages_per_second.into(), messages_burst),
        rate(unauthenticated_per_second.into(), unauthenticated_per_second),
        rate(f64::from(wrong_keys_per_minute) / 60.0, wrong_keys_per_minute),
    ]
}

#[derive(Debug)]
pub(crate) struct Gate {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    messages: Buckets<Subject>,
    strangers: Buckets<IpAddr>,
    wrong_keys: Buckets<IpAddr>,
}

impl Gate {
    pub(crate) fn new(limits: &GateLimits) -> Self {
        let [messages, strangers, wrong_keys] = rates_of(limits);
        let inner = Inner {
            messages: Buckets::new(messages),
            strangers: Buckets::new(strangers),
            wrong_keys: Buckets::new(wrong_keys),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// What has been taken stays taken.
    pub(crate) fn set_limits(&self, limits: &GateLimits) {
        let [messages, strangers, wrong_keys] = rates_of(limits);
        self.with(|inner| {
            inner.messages.set_rate(messages);
            inner.strangers.set_rate(strangers);
            inner.wrong_keys.set_rate(wrong_keys);
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A message of this subject.
    pub(crate) fn message(&self, subject: &Subject) -> Result<(), Duration> {
        self.with(|inner| inner.messages.take(subject, Instant::now()))
    }

    /// A request without a key.
    pub(crate) fn stranger(&self, address: IpAddr) -> Result<(), Duration> {
        self.with(|inner| inner.strangers.take(&address, Instant::now()))
    }

    /// An address that gave too many wrong keys is not even listened to; how long yet?
    pub(crate) fn is_locked_out(&self, address: IpAddr) -> Option<Duration> {
        self.with(|inner| inner.wrong_keys.is_empty(&address, Instant::now()))
    }

    pub(crate) fn wrong_key(&self, address: IpAddr) {
        // An empty bucket is what locks out; there is nothing more to take.
        let _empty = self.with(|inner| inner.wrong_keys.take(&address, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 2.0, burst: 3.0 };

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(RATE, start);
        let taken = |bucket: &mut Bucket, after_ms| {
            bucket.take(RATE, start + Duration::from_millis(after_ms)).is_ok()
        };
        let burst: Vec<bool> = (0..4).map(|_| taken(&mut bucket, 0)).collect();
        assert_eq!(burst, [true, true, true, false]);
        assert!(!taken(&mut bucket, 499));
        assert!(taken(&mut bucket, 500));
    }

    #[test]
    fn a_refusal_says_when_there_will_be_room() {
        let start = Instant::now();
        let mut bucket = Bucket { tokens: 0.0, filled_at: start };
        assert_eq!(bucket.take(RATE, start), Err(Duration::from_millis(500)));
    }

    #[test]
    fn new_limits_count_what_has_been_taken_already() {
        let (start, one) = (Instant::now(), Rate { per_second: 0.001, burst: 1.0 });
        let mut buckets = Buckets::new(Rate { burst: 3.0, ..one });
        let take = |buckets: &mut Buckets<u8>| buckets.take(&1, start).is_ok();
        assert!(take(&mut buckets) && take(&mut buckets));
        buckets.set_rate(one);
        assert!(!take(&mut buckets), "two of one are taken");
        buckets.set_rate(Rate { burst: 3.0, ..one });
        assert!(take(&mut buckets));
        assert!(!take(&mut buckets));
    }

    #[test]
    fn a_flood_of_keys_does_not_grow_for_ever() {
        let mut buckets = Buckets::new(Rate { per_second: 1.0, burst: 1.0 });
        let now = Instant::now();
        for key in 0..3 * BUCKETS_MAX {
            let _taken = buckets.take(&key, now);
        }
        assert!(buckets.by_key.len() <= BUCKETS_MAX);
    }
}

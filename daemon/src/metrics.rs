//! Counters for Prometheus. They reconcile: accepted = answered + dead + cancelled + waiting
//! (FAULTS I24).
//!
//! Owner: the engine counts what it released; `/metrics` prints. Invariant: labels come from closed
//! lists (never a subject, a session or a message). Absent: exporting anywhere.

use std::time::Instant;

use dormouse_core::cause::Cause;
use dormouse_core::command::{Answer, Command, Effects, News, Refusal};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    accepted: Counter,
    duplicates: Counter,
    refused: Family<CauseLabel, Counter>,
    answered: Counter,
    dead: Family<CauseLabel, Counter>,
    cancelled: Counter,
    deliveries: Counter,
    starts: Counter,
    retries: Family<CauseLabel, Counter>,
    stale: Counter,
    commit_seconds: Histogram,
    pub(crate) store_full: Counter,
    pub(crate) waiting: Gauge,
    pub(crate) sessions: Gauge,
    pub(crate) bridges: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("dormouse"),
            accepted: Counter::default(),
            duplicates: Counter::default(),
            refused: Family::default(),
            answered: Counter::default(),
            dead: Family::default(),
            cancelled: Counter::default(),
            deliveries: Counter::default(),
            starts: Counter::default(),
            retries: Family::default(),
            stale: Counter::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            store_full: Counter::default(),
            waiting: Gauge::default(),
            sessions: Gauge::default(),
            bridges: Gauge::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("messages_accepted", "Messages on disk", self.accepted.clone());
        r.register("messages_duplicate", "Repeats of an idempotency key", self.duplicates.clone());
        r.register("messages_refused", "Messages not accepted", self.refused.clone());
        r.register("messages_answered", "Messages with a reply", self.answered.clone());
        r.register("messages_dead", "Messages dead-lettered", self.dead.clone());
        r.register(
            "messages_cancelled",
            "Messages dropped before delivery",
            self.cancelled.clone(),
        );
        r.register("messages_waiting", "Messages pending or with an agent", self.waiting.clone());
        r.register("deliveries", "Turns handed to agents", self.deliveries.clone());
        r.register("retries", "Turns to be tried again", self.retries.clone());
        r.register("instance_starts", "Instances ordered", self.starts.clone());
        r.register("sessions", "Sessions with a row", self.sessions.clone());
        r.register("bridges_connected", "Bridges connected now", self.bridges.clone());
        r.register("events_stale", "Events of past lives, or repeated", self.stale.clone());
        r.register("commit_seconds", "One transaction with its sync", self.commit_seconds.clone());
        r.register(
            "store_full",
            "Batches undone because the disk was full",
            self.store_full.clone(),
        );
        self
    }

    /// Counts what a committed batch did.
    pub(crate) fn count(&self, effects: &Effects) {
        self.stale.inc_by(effects.stale);
        for (_, answer) in &effects.answers {
            match answer {
                Answer::Accepted { .. } => drop(self.accepted.inc()),
                Answer::Duplicate { .. } => drop(self.duplicates.inc()),
                Answer::Refused(refusal) => {
                    let label = CauseLabel { cause: refusal_code(refusal) };
                    self.refused.get_or_create(&label).inc();
                }
                Answer::Requested(_) => {}
            }
        }
        for command in &effects.commands {
            match command {
                Command::StartInstance { .. } => drop(self.starts.inc()),
                Command::DeliverTurn { .. } => drop(self.deliveries.inc()),
                Command::AdmitBridge { .. }
                | Command::RefuseBridge { .. }
                | Command::AcknowledgeTurn { .. }
                | Command::StopInstance { .. }
                | Command::KillInstance { .. }
                | Command::ReleaseInstance { .. } => {}
            }
        }
        for notice in &effects.notices {
            match &notice.news {
                News::Answered { .. } => drop(self.answered.inc()),
                News::Dead { cause, .. } => drop(self.dead.get_or_create(&label(*cause)).inc()),
                News::Cancelled => drop(self.cancelled.inc()),
                News::Retrying { cause, .. } => {
                    self.retries.get_or_create(&label(*cause)).inc();
                }
                News::Queued { .. }
                | News::Waking { .. }
                | News::InLine { .. }
                | News::Delivered { .. }
                | News::Delta { .. }
                | News::Slow { .. }
                | News::WaitingToRestart { .. } => {}
            }
        }
    }

    pub(crate) fn refused_at_gate(&self, code: &'static str) {
        self.refused.get_or_create(&CauseLabel { cause: code }).inc();
    }

    pub(crate) fn time_commit<T>(&self, commit: impl FnOnce() -> T) -> T {
        let started_at = Instant::now();
        let committed = commit();
        self.commit_seconds.observe(started_at.elapsed().as_secs_f64());
        committed
    }

    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn label(cause: Cause) -> CauseLabel {
    CauseLabel { cause: cause.code() }
}

pub(crate) fn refusal_code(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownAgent => "unknown_agent",
        Refusal::NotYourSession => "not_your_session",
        Refusal::IdempotencyConflict { .. } => "idempotency_conflict",
        Refusal::QueueFull { .. } => "queue_full",
    }
}

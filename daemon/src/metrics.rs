//! Counters for Prometheus. They reconcile: accepted = answered + dead + cancelled + waiting
//! (FAULTS I24).
//!
//! Owner: the engine counts what it released; `/metrics` prints. Invariants: labels are agents of
//! the config and words of closed lists (never a subject, a session or a message); what an alert
//! watches is there as 0 from the start, since a counter that appears as 1 has not risen. Absent:
//! exporting anywhere.

use std::time::Instant;

use dormouse_core::cause::Cause;
use dormouse_core::command::{Answer, Command, Effects, News, Refusal};
use dormouse_core::diagnosis::Confidence;
use dormouse_core::id::{AgentName, SessionId};
use dormouse_core::session::phase::Phase;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::outcomes::Outcomes;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgentLabel {
    agent: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLabel {
    agent: String,
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExitLabel {
    agent: String,
    cause: &'static str,
    confidence: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotificationLabel {
    target: &'static str,
    outcome: &'static str,
}

/// Why messages are given up: those that `dead_letters` begins with.
const DEAD_CAUSES: [Cause; 7] = [
    Cause::PoisonMessage,
    Cause::AttemptsExhausted,
    Cause::Ambiguous,
    Cause::AgentError,
    Cause::ProtocolFault,
    Cause::ReplyTooLarge,
    Cause::LaunchFailed,
];

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
    starts: Family<AgentLabel, Counter>,
    start_seconds: Histogram,
    exits: Family<ExitLabel, Counter>,
    failures: Family<AgentLabel, Counter>,
    trips: Family<AgentLabel, Counter>,
    dead_letters: Family<DeadLabel, Counter>,
    memory_raised: Family<AgentLabel, Counter>,
    uploads: Counter,
    checkpoints: Counter,
    notifications: Family<NotificationLabel, Counter>,
    retries: Family<CauseLabel, Counter>,
    stale: Counter,
    commit_seconds: Histogram,
    pub(crate) store_full: Counter,
    pub(crate) waiting: Gauge,
    sessions: Family<PhaseLabel, Gauge>,
    agents_held_back: Family<AgentLabel, Gauge>,
    restarts_waiting: Gauge,
    pub(crate) bridges: Gauge,
}

impl Metrics {
    pub(crate) fn new<'a>(agents: impl Iterator<Item = &'a AgentName>) -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("dormouse"),
            accepted: Counter::default(),
            duplicates: Counter::default(),
            refused: Family::default(),
            answered: Counter::default(),
            dead: Family::default(),
            cancelled: Counter::default(),
            deliveries: Counter::default(),
            starts: Family::default(),
            start_seconds: Histogram::new(exponential_buckets(0.05, 2.0, 14)),
            exits: Family::default(),
            failures: Family::default(),
            trips: Family::default(),
            dead_letters: Family::default(),
            memory_raised: Family::default(),
            uploads: Counter::default(),
            checkpoints: Counter::default(),
            notifications: Family::default(),
            retries: Family::default(),
            stale: Counter::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            store_full: Counter::default(),
            waiting: Gauge::default(),
            sessions: Family::default(),
            agents_held_back: Family::default(),
            restarts_waiting: Gauge::default(),
            bridges: Gauge::default(),
        };
        metrics.begin(agents);
        metrics.registered()
    }

    /// Counts of theirs are there from the first moment.
    pub(crate) fn begin<'a>(&self, agents: impl Iterator<Item = &'a AgentName>) {
        for agent in agents {
            let label = || AgentLabel { agent: agent.to_string() };
            for family in [&self.starts, &self.failures, &self.trips, &self.memory_raised] {
                drop(family.get_or_create(&label()));
            }
            drop(self.agents_held_back.get_or_create(&label()));
            for cause in DEAD_CAUSES {
                let label = DeadLabel { agent: agent.to_string(), cause: cause.code() };
                drop(self.dead_letters.get_or_create(&label));
            }
        }
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
        r.register("sessions", "Sessions with a row", self.sessions.clone());
        r.register("bridges_connected", "Bridges connected now", self.bridges.clone());
        r.register("events_stale", "Events of past lives, or repeated", self.stale.clone());
        r.register("commit_seconds", "One transaction with its sync", self.commit_seconds.clone());
        r.register(
            "store_full",
            "Batches undone because the disk was full",
            self.store_full.clone(),
        );
        self.with_lives_registered()
    }

    fn with_lives_registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("starts", "Instances ordered", self.starts.clone());
        r.register(
            "start_seconds",
            "From the order of an instance to a ready agent",
            self.start_seconds.clone(),
        );
        r.register(
            "agent_held_back",
            "1 while an agent's starts fail and only one of them is tried at a time",
            self.agents_held_back.clone(),
        );
        r.register(
            "restarts_waiting",
            "Sessions that failed before and wait for the node's budget of such starts",
            self.restarts_waiting.clone(),
        );
        r.register("exits", "Ends of instances, as they were diagnosed", self.exits.clone());
        r.register("failures", "Lives and starts that failed", self.failures.clone());
        r.register("trips", "Breakers opened, and probes that failed", self.trips.clone());
        r.register("dead_letters", "Messages given up", self.dead_letters.clone());
        r.register(
            "memory_limit_raised",
            "Memory limits raised after a proved want of memory",
            self.memory_raised.clone(),
        );
        r.register("uploads", "Files put into sessions or deleted", self.uploads.clone());
        r.register("checkpoints", "Checkpoints taken", self.checkpoints.clone());
        r.register("notifications", "What [notify] was to tell", self.notifications.clone());
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
                Answer::Uploaded { .. } => drop(self.uploads.inc()),
                Answer::CheckpointMade { .. } => drop(self.checkpoints.inc()),
                Answer::Configured => {}
                Answer::Requested(_) => {}
            }
        }
        for command in &effects.commands {
            match command {
                Command::StartInstance { instance, .. } => {
                    self.starts.get_or_create(&agent_label(&instance.session)).inc();
                }
                Command::DeliverTurn { .. } => drop(self.deliveries.inc()),
                Command::ListInputs { .. }
                | Command::SyncFiles { .. }
                | Command::LaunchAgent { .. }
                | Command::AdmitBridge { .. }
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
                | News::Syncing { .. }
                | News::Delivered { .. }
                | News::Delta { .. }
                | News::Slow { .. }
                | News::WaitingToRestart { .. }
                | News::DaemonEnding => {}
            }
        }
    }

    /// Counts what a committed batch meant.
    pub(crate) fn count_outcomes(&self, outcomes: &Outcomes) {
        for end in &outcomes.ends {
            let label = ExitLabel {
                agent: end.session.agent().to_owned(),
                cause: end.diagnosed.cause.code(),
                confidence: confidence_word(end.diagnosed.confidence),
            };
            self.exits.get_or_create(&label).inc();
            if end.is_failure {
                self.failures.get_or_create(&agent_label(&end.session)).inc();
            }
        }
        for session in &outcomes.failed_starts {
            self.failures.get_or_create(&agent_label(session)).inc();
        }
        for trip in &outcomes.trips {
            self.trips.get_or_create(&agent_label(&trip.session)).inc();
        }
        for letter in &outcomes.dead_letters {
            let agent = letter.session.agent().to_owned();
            let label = DeadLabel { agent, cause: letter.cause.code() };
            self.dead_letters.get_or_create(&label).inc();
        }
        for session in &outcomes.memory_raised {
            self.memory_raised.get_or_create(&agent_label(session)).inc();
        }
        for took_ms in &outcomes.starts_took_ms {
            self.start_seconds.observe(*took_ms as f64 / 1_000.0);
        }
    }

    /// `outcome`: "sent", "failed" (given up), "dropped" (no room).
    pub(crate) fn notified(&self, target: &'static str, outcome: &'static str) {
        self.notifications.get_or_create(&NotificationLabel { target, outcome }).inc();
    }

    /// A target of notifications exists: its counters begin at 0.
    pub(crate) fn will_notify(&self, target: &'static str) {
        for outcome in ["sent", "failed", "dropped"] {
            drop(self.notifications.get_or_create(&NotificationLabel { target, outcome }));
        }
    }

    /// What keeps sessions from being started beside their own breakers.
    pub(crate) fn set_held_back<'a>(
        &self,
        agents: impl Iterator<Item = (&'a AgentName, bool)>,
        restarts_waiting: usize,
    ) {
        for (agent, is_held_back) in agents {
            let label = AgentLabel { agent: agent.to_string() };
            self.agents_held_back.get_or_create(&label).set(i64::from(is_held_back));
        }
        self.restarts_waiting.set(i64::try_from(restarts_waiting).unwrap_or(i64::MAX));
    }

    /// By place in `Phase::ALL`.
    pub(crate) fn set_sessions(&self, by_phase: &[u64; Phase::ALL.len()]) {
        for (phase, count) in Phase::ALL.iter().zip(by_phase) {
            let label = PhaseLabel { phase: phase.to_string() };
            self.sessions.get_or_create(&label).set(i64::try_from(*count).unwrap_or(i64::MAX));
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

fn agent_label(session: &SessionId) -> AgentLabel {
    AgentLabel { agent: session.agent().to_owned() }
}

fn confidence_word(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Possible => "possible",
        Confidence::Likely => "likely",
        Confidence::Proved => "proved",
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
        Refusal::PastLife => "past_life",
        Refusal::OtherLineage => "other_lineage",
        Refusal::NotWhole => "not_whole",
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::id::MessageId;

    use super::*;
    use crate::outcomes::testing::tripped_by_memory;

    #[test]
    fn what_alerts_watch_begins_at_zero_and_is_labelled_by_agent_and_closed_lists_only() {
        let agent = AgentName::new("a").unwrap();
        let metrics = Metrics::new([&agent].into_iter());
        metrics.will_notify("webhook");
        let has = |line: &str| metrics.text().unwrap().lines().any(|has| has == line);
        assert!(has("dormouse_failures_total{agent=\"a\"} 0"));
        assert!(has("dormouse_dead_letters_total{agent=\"a\",cause=\"poison_message\"} 0"));
        assert!(has("dormouse_notifications_total{target=\"webhook\",outcome=\"failed\"} 0"));

        let mut outcomes = Outcomes::default();
        let session = "a/k".parse().unwrap();
        tripped_by_memory(&session, MessageId(7)).iter().for_each(|write| outcomes.note(write));
        metrics.count_outcomes(&outcomes);
        for line in [
            "dormouse_exits_total{agent=\"a\",cause=\"oom_limit\",confidence=\"proved\"} 1",
            "dormouse_failures_total{agent=\"a\"} 1",
            "dormouse_trips_total{agent=\"a\"} 1",
            "dormouse_dead_letters_total{agent=\"a\",cause=\"poison_message\"} 1",
        ] {
            assert!(has(line), "{line} is not in\n{}", metrics.text().unwrap());
        }
        assert!(!metrics.text().unwrap().contains("a/k"), "no session is a label");
    }

    #[test]
    fn who_is_held_back_is_there_as_nobody_from_the_start_and_is_let_go_again() {
        let agents: Vec<AgentName> = ["a", "b"].map(|name| AgentName::new(name).unwrap()).into();
        let metrics = Metrics::new(agents.iter());
        let lines = |held: [bool; 2], waiting| {
            metrics.set_held_back(agents.iter().zip(held), waiting);
            let text = metrics.text().unwrap();
            let is_of_it =
                |line: &&str| line.contains("_held_back{") || line.contains("s_waiting ");
            let mut lines: Vec<String> = text.lines().filter(is_of_it).map(str::to_owned).collect();
            lines.retain(|line| !line.starts_with('#') && !line.contains("messages"));
            lines.sort();
            lines
        };
        let expected = |a, b, waiting| {
            vec![
                format!("dormouse_agent_held_back{{agent=\"a\"}} {a}"),
                format!("dormouse_agent_held_back{{agent=\"b\"}} {b}"),
                format!("dormouse_restarts_waiting {waiting}"),
            ]
        };
        let begun = metrics.text().unwrap();
        assert!(begun.contains("dormouse_agent_held_back{agent=\"b\"} 0"), "{begun}");
        assert_eq!(lines([false, true], 3), expected(0, 1, 3));
        assert_eq!(lines([false, false], 0), expected(0, 0, 0));
    }

    #[test]
    fn sessions_are_counted_in_every_phase() {
        let metrics = Metrics::new([].into_iter());
        let mut by_phase = [0; Phase::ALL.len()];
        by_phase[Phase::ALL.iter().position(|phase| *phase == Phase::Tripped).unwrap()] = 3;
        metrics.set_sessions(&by_phase);
        let text = metrics.text().unwrap();
        assert!(text.contains("dormouse_sessions{phase=\"tripped\"} 3"), "{text}");
        assert!(text.contains("dormouse_sessions{phase=\"awake\"} 0"), "{text}");
    }
}

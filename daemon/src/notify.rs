//! Tells somebody outside when a session is tripped, a message is given up, or a new revision is
//! found to be bad.
//!
//! ```text
//!  engine ── after the commit ──▶ Notifier::tell ──▶ a bounded queue per target ──▶ webhook
//!                                  (never waits)                               └──▶ command
//! ```
//!
//! Owner: a task per target. Invariants: the engine never waits, a full queue drops the newest and
//! counts it; what was queued is tried until it is taken or has failed as often as is allowed, so
//! that it may arrive twice, under one id; each try has an end; no text of a message or a reply
//! leaves here. Absent: keeping notifications over the end of the process; TLS (a command can).

mod send;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_core::diagnosis::Confidence;
use dormouse_core::id::{Generation, MessageId, RevisionNumber, SessionId};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::outcomes::{BadRevision, Buried, Outcomes, Tripped};
use crate::report;
pub(crate) use send::{Target, WebhookAddress};

/// Notifications that wait for one target.
const QUEUE_MAX: usize = 256;
/// Before the second try, the third, and so on; after as many there is none.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(25),
    Duration::from_secs(125),
];

/// What is sent, as JSON.
#[derive(Debug, Serialize)]
struct Notification<'a> {
    /// The same for every try.
    id: String,
    /// `session_tripped`, `dead_letter` or `revision_bad`.
    event: &'static str,
    at_ms: u64,
    session: &'a SessionId,
    agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<Generation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<RevisionNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<MessageId>,
    /// Of a message; its text is not here.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    /// Of a session, in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    failures: Option<u32>,
    cause: &'static str,
    /// Of a dead letter: how the life that had it in work ended, where that is why.
    #[serde(skip_serializing_if = "Option::is_none")]
    death: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<Confidence>,
    sentence: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_try_at_ms: Option<u64>,
    /// The command that has the evidence.
    why: String,
}

impl<'a> Notification<'a> {
    fn of_trip(trip: &'a Tripped) -> Self {
        let Tripped { session, generation, .. } = trip;
        Self {
            id: format!("session_tripped:{session}#{generation}"),
            event: "session_tripped",
            at_ms: trip.at.0,
            session,
            agent: session.agent(),
            generation: Some(*generation),
            revision: None,
            message_id: None,
            attempts: None,
            failures: Some(trip.failures),
            cause: trip.diagnosed.cause.code(),
            death: None,
            confidence: Some(trip.diagnosed.confidence),
            sentence: &trip.diagnosed.sentence,
            next_try_at_ms: trip.next_try_at.map(|at| at.0),
            why: format!("dormouse why {session}"),
        }
    }

    fn of_dead_letter(letter: &'a Buried) -> Self {
        let Buried { session, message, cause, diagnosed, .. } = letter;
        Self {
            id: format!("dead_letter:{message}"),
            event: "dead_letter",
            at_ms: letter.at.0,
            session,
            agent: session.agent(),
            generation: None,
            revision: None,
            message_id: Some(*message),
            attempts: Some(letter.attempts),
            failures: None,
            cause: cause.code(),
            death: diagnosed.as_ref().map(|death| death.cause.code()),
            confidence: diagnosed.as_ref().map(|death| death.confidence),
            sentence: diagnosed.as_ref().map_or(cause.plain_words(), |death| &death.sentence),
            next_try_at_ms: None,
            why: format!("dormouse why {message}"),
        }
    }
}

impl<'a> Notification<'a> {
    fn of_revision(bad: &'a BadRevision) -> Self {
        let BadRevision { at, session, generation, revision, cause } = bad;
        Self {
            id: format!("revision_bad:{}@{revision}:{session}#{generation}", session.agent()),
            event: "revision_bad",
            at_ms: at.0,
            session,
            agent: session.agent(),
            generation: Some(*generation),
            revision: Some(*revision),
            message_id: None,
            attempts: None,
            failures: None,
            cause: cause.code(),
            death: None,
            confidence: None,
            sentence: "a new revision failed its trial; the last good one is used",
            next_try_at_ms: None,
            why: format!("dormouse why {session}"),
        }
    }
}

/// One that tells nobody has no lines.
#[derive(Debug, Clone)]
pub(crate) struct Notifier {
    lines: Arc<Mutex<Vec<Line>>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Line {
    target: Target,
    queue: mpsc::Sender<Arc<str>>,
}

impl Notifier {
    /// Starts a task for each target, in the runtime that this is called in.
    pub(crate) fn start(targets: Vec<Target>, metrics: Arc<Metrics>) -> Self {
        let notifier = Self { lines: Arc::default(), metrics };
        notifier.retarget(targets);
        notifier
    }

    /// Who is told from now on. What waits for another target is still sent there.
    pub(crate) fn retarget(&self, targets: Vec<Target>) {
        let mut lines = self.lines();
        let before = std::mem::take(&mut *lines);
        *lines = before.into_iter().filter(|line| targets.contains(&line.target)).collect();
        for target in targets {
            if !lines.iter().any(|line| line.target == target) {
                lines.push(self.line_to(target));
            }
        }
    }

    fn line_to(&self, target: Target) -> Line {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        self.metrics.will_notify(target.name());
        tokio::spawn(work(target.clone(), waiting, Arc::clone(&self.metrics), &PAUSES));
        Line { target, queue }
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, outcomes: &Outcomes) {
        let lines = self.lines();
        if lines.is_empty() {
            return;
        }
        let trips = outcomes.trips.iter().map(Notification::of_trip);
        let letters = outcomes.dead_letters.iter().map(Notification::of_dead_letter);
        let bad = outcomes.bad_revisions.iter().map(Notification::of_revision);
        for notification in trips.chain(letters).chain(bad) {
            let json = serde_json::to_string(&notification)
                .expect("a notification is text and numbers under text keys");
            let json: Arc<str> = json.into();
            for line in lines.iter() {
                if line.queue.try_send(Arc::clone(&json)).is_err() {
                    let (target, id) = (line.target.name(), &notification.id);
                    self.metrics.notified(target, "dropped");
                    tracing::warn!(
                        to = target,
                        id,
                        "too many notifications wait; this one is dropped"
                    );
                }
            }
        }
    }
}

/// One after the other, each until it is taken or given up.
async fn work(
    target: Target,
    mut waiting: mpsc::Receiver<Arc<str>>,
    metrics: Arc<Metrics>,
    pauses: &'static [Duration],
) {
    let name = target.name();
    while let Some(json) = waiting.recv().await {
        let mut pauses = pauses.iter();
        loop {
            let error = match target.send(&json).await {
                Ok(()) => {
                    metrics.notified(name, "sent");
                    break;
                }
                Err(error) => report::chain(&error),
            };
            let Some(pause) = pauses.next() else {
                metrics.notified(name, "failed");
                tracing::error!(to = name, error, "a notification was given up");
                break;
            };
            tracing::warn!(to = name, error, "a notification will be tried again");
            tokio::time::sleep(*pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::id::AgentName;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::outcomes::testing::tripped_by_memory;

    const SOON: [Duration; 1] = [Duration::from_millis(1)];

    fn outcomes() -> Outcomes {
        let mut outcomes = Outcomes::default();
        let session = "a/k".parse().unwrap();
        tripped_by_memory(&session, MessageId(7)).iter().for_each(|write| outcomes.note(write));
        outcomes
    }

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new([&AgentName::new("a").unwrap()].into_iter()))
    }

    fn has(metrics: &Metrics, target: &str, outcome: &str, count: u32) {
        let line = format!(
            "dormouse_notifications_total{{target=\"{target}\",outcome=\"{outcome}\"}} {count}"
        );
        let text = metrics.text().unwrap();
        assert!(text.lines().any(|has| has == line), "{line} is not in\n{text}");
    }

    /// Answers each request with the next status, and returns the bodies.
    async fn receiver(statuses: &'static [u16]) -> (String, tokio::task::JoinHandle<Vec<Value>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?to=me", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut bodies = Vec::new();
            for status in statuses {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let body = loop {
                    stream.read_buf(&mut request).await.unwrap();
                    let text = String::from_utf8(request.clone()).unwrap();
                    if let Some((head, body)) = text.split_once("\r\n\r\n") {
                        assert!(head.starts_with("POST /hook?to=me HTTP/1.1\r\n"), "{head}");
                        if let Ok(body) = serde_json::from_str(body) {
                            break body;
                        }
                    }
                };
                bodies.push(body);
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            bodies
        });
        (url, task)
    }

    fn with_one_line(
        target: Target,
        queue: mpsc::Sender<Arc<str>>,
        metrics: &Arc<Metrics>,
    ) -> Notifier {
        let lines = Arc::new(Mutex::new(vec![Line { target, queue }]));
        Notifier { lines, metrics: Arc::clone(metrics) }
    }

    /// What the target is sent of the batch, with its worker run to the end.
    async fn told(target: Target, metrics: &Arc<Metrics>) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let notifier = with_one_line(target.clone(), queue, metrics);
        notifier.tell(&outcomes());
        drop(notifier);
        work(target, waiting, Arc::clone(metrics), &SOON).await;
    }

    #[tokio::test]
    async fn a_webhook_gets_json_without_texts_and_again_under_the_same_id_if_it_refuses() {
        let (url, bodies) = receiver(&[500, 204, 200]).await;
        let metrics = metrics();
        told(Target::Webhook(WebhookAddress::parse(&url).unwrap()), &metrics).await;
        let bodies = bodies.await.unwrap();
        assert_eq!(bodies[0], bodies[1], "a second try is the same");
        assert_eq!(
            bodies[0],
            json!({
                "id": "session_tripped:a/k#5", "event": "session_tripped", "at_ms": 1_000,
                "session": "a/k", "agent": "a", "generation": 5, "failures": 5,
                "cause": "oom_limit", "confidence": "proved",
                "sentence": "the agent needed more memory than it may use: it was ended by SIGKILL",
                "next_try_at_ms": 301_000, "why": "dormouse why a/k",
            })
        );
        assert_eq!(
            (&bodies[2]["event"], &bodies[2]["cause"], &bodies[2]["death"]),
            (&json!("dead_letter"), &json!("poison_message"), &json!("oom_limit"))
        );
        assert!(!bodies.iter().any(|body| body.to_string().contains("secret")));
        has(&metrics, "webhook", "sent", 2);
    }

    #[tokio::test]
    async fn one_that_nobody_takes_is_given_up_counted_and_does_not_hold_up_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let metrics = metrics();
        told(Target::Webhook(WebhookAddress::parse(&url).unwrap()), &metrics).await;
        has(&metrics, "webhook", "failed", 2);
        let failing = vec!["sh".to_owned(), "-c".to_owned(), "cat >/dev/null; exit 3".to_owned()];
        told(Target::Command(failing), &metrics).await;
        has(&metrics, "command", "failed", 2);
    }

    #[tokio::test]
    async fn another_target_gets_what_comes_from_then_on() {
        let target = |url: &str| Target::Webhook(WebhookAddress::parse(url).unwrap());
        let (one, first) = receiver(&[200, 200]).await;
        let (other, second) = receiver(&[200, 200]).await;
        let notifier = Notifier::start(vec![target(&one)], metrics());
        notifier.tell(&outcomes());
        notifier.retarget(vec![target(&other)]);
        notifier.tell(&outcomes());
        assert_eq!((first.await.unwrap().len(), second.await.unwrap().len()), (2, 2));
        notifier.retarget(Vec::new());
        assert!(notifier.lines().is_empty());
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_nobody_waits() {
        let metrics = metrics();
        let (queue, _waiting) = mpsc::channel(3);
        let target = Target::Webhook(WebhookAddress::parse("http://127.0.0.1:9/").unwrap());
        let notifier = with_one_line(target, queue, &metrics);
        notifier.tell(&outcomes());
        notifier.tell(&outcomes());
        has(&metrics, "webhook", "dropped", 1);
    }
}

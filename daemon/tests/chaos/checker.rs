//! Whether the clients' log, the agents' log and the store tell one story. A pure function.
//!
//! Owner: `chaos_kills`. Invariants checked (FAULTS): I1 accepted is stored, I2 and ended exactly
//! once, I4 one message per key, I5 order and one at a time, I6 bounded attempts, each executed at
//! most once, I7 a turn only for the generation that the journal gave it to, never an old one after
//! a new one. Absent: how the evidence was come by.

use std::collections::{BTreeMap, BTreeSet};

use crate::load::Accepted;
use crate::support::agents::AgentLine;

const ATTEMPTS_MAX: u64 = 5;

#[derive(Debug, Clone)]
pub(crate) struct StoredMessage {
    pub(crate) id: String,
    pub(crate) session: String,
    pub(crate) state: String,
    pub(crate) attempts: u64,
    pub(crate) cause: Option<String>,
    pub(crate) text: String,
    pub(crate) reply: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    pub(crate) accepted: Vec<Accepted>,
    /// In the order of acceptance.
    pub(crate) stored: Vec<StoredMessage>,
    /// Which generation the journal gave each turn to, as far as it is kept.
    pub(crate) journal: BTreeMap<String, u64>,
    /// In the order of writing.
    pub(crate) agents: Vec<AgentLine>,
}

/// Every contradiction, in words.
pub(crate) fn check(evidence: &Evidence) -> Vec<String> {
    let mut violations = Vec::new();
    check_acceptance(evidence, &mut violations);
    check_endings(evidence, &mut violations);
    check_executions(evidence, &mut violations);
    check_order(evidence, &mut violations);
    violations
}

fn check_acceptance(evidence: &Evidence, violations: &mut Vec<String>) {
    let stored: BTreeMap<&str, &StoredMessage> =
        evidence.stored.iter().map(|message| (message.id.as_str(), message)).collect();
    let known: BTreeSet<&str> = evidence.accepted.iter().map(|one| one.id.as_str()).collect();
    if known.len() != evidence.accepted.len() {
        violations.push("I4: two keys were given one message".to_owned());
    }
    for one in &evidence.accepted {
        match stored.get(one.id.as_str()) {
            None => violations.push(format!("I1: {} ({}) is not in the store", one.id, one.key)),
            Some(message) if message.text != one.text || message.session != one.session => {
                violations.push(format!("I1: {} is not what {} sent", one.id, one.key));
            }
            Some(_same) => {}
        }
    }
    for id in stored.keys().filter(|id| !known.contains(**id)) {
        violations.push(format!("I4: {id} is in the store, and no client was told of it"));
    }
}

fn check_endings(evidence: &Evidence, violations: &mut Vec<String>) {
    for message in &evidence.stored {
        let id = &message.id;
        match (message.state.as_str(), &message.reply) {
            ("answered", Some(reply)) if *reply == reply_to(&message.text) => {}
            ("answered", reply) => {
                violations.push(format!("I12: {id} ({}) has the reply {reply:?}", message.text));
            }
            ("dead", None) if message.cause.as_deref() == Some("attempts_exhausted") => {
                if message.attempts < ATTEMPTS_MAX {
                    violations.push(format!("I6: {id} was given up after {}", message.attempts));
                }
            }
            (state, reply) => {
                violations
                    .push(format!("I2: {id} is {state} ({:?}), reply {reply:?}", message.cause));
            }
        }
    }
}

/// What the scripted agent says to it.
fn reply_to(text: &str) -> String {
    let Some(count) = text.strip_prefix("stream ") else { return text.to_owned() };
    let count = count.split(' ').next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    (0..count).map(|piece| format!("{piece} ")).collect()
}

fn check_executions(evidence: &Evidence, violations: &mut Vec<String>) {
    let stored: BTreeMap<&str, &StoredMessage> =
        evidence.stored.iter().map(|message| (message.id.as_str(), message)).collect();
    let mut executed = BTreeSet::new();
    for line in evidence.agents.iter().filter(|line| line.what == "turn") {
        let turn = &line.turn;
        if !executed.insert(turn.as_str()) {
            violations.push(format!("I6: {turn} was executed twice"));
        }
        match stored.get(line.message_id()) {
            None => violations.push(format!("I1: {turn} was executed and is not in the store")),
            Some(message) if line.attempt > message.attempts => {
                violations.push(format!("I6: {turn} was executed before it was on disk"));
            }
            Some(message) if line.session != message.session => {
                violations.push(format!("I7: {turn} was executed by {}", line.session));
            }
            Some(_stored) => {}
        }
        if let Some(generation) = evidence.journal.get(turn).filter(|of| **of != line.generation) {
            let by = line.generation;
            violations.push(format!("I7: {turn} was given to #{generation}, executed by #{by}"));
        }
    }
    for message in evidence.stored.iter().filter(|message| message.state == "answered") {
        let turn = format!("{}.{}", message.id, message.attempts);
        if !executed.contains(turn.as_str()) {
            violations.push(format!("I13: {turn} has a reply and was never executed"));
        }
    }
}

/// Ids ascend as they were accepted, and the agents' log is in the order of what happened.
fn check_order(evidence: &Evidence, violations: &mut Vec<String>) {
    let mut newest: BTreeMap<&str, (&str, u64)> = BTreeMap::new();
    for line in evidence.agents.iter().filter(|line| line.what == "turn") {
        let (message, generation) =
            newest.entry(&line.session).or_insert((line.message_id(), line.generation));
        if line.message_id() < *message {
            violations.push(format!("I5: {} began after {message} had", line.turn));
        }
        if line.generation < *generation {
            let late = line.generation;
            violations.push(format!("I7: {} ran on #{late} after #{generation}", line.turn));
        }
        (*message, *generation) = (line.message_id(), line.generation);
    }
}

#[cfg(test)]
mod tests {
    use super::{Evidence, StoredMessage, check};
    use crate::load::Accepted;
    use crate::support::agents::AgentLine;

    fn line(session: &str, generation: u64, message: &str, attempt: u64) -> AgentLine {
        AgentLine {
            what: "turn".to_owned(),
            session: session.to_owned(),
            generation,
            pid: 1,
            at_ms: 0,
            attempt,
            text: String::new(),
            turn: format!("{message}.{attempt}"),
        }
    }

    fn stored(id: &str, attempts: u64) -> StoredMessage {
        StoredMessage {
            id: id.to_owned(),
            session: "a/s".to_owned(),
            state: "answered".to_owned(),
            attempts,
            cause: None,
            text: format!("echo {id}"),
            reply: Some(format!("echo {id}")),
        }
    }

    fn accepted(id: &str) -> Accepted {
        Accepted {
            key: format!("key of {id}"),
            session: "a/s".to_owned(),
            text: format!("echo {id}"),
            id: id.to_owned(),
        }
    }

    /// Two messages, the first answered at its second attempt.
    fn sound() -> Evidence {
        Evidence {
            accepted: vec![accepted("m1"), accepted("m2")],
            stored: vec![stored("m1", 2), stored("m2", 1)],
            journal: [("m1.1".to_owned(), 1), ("m1.2".to_owned(), 2)].into(),
            agents: vec![line("a/s", 1, "m1", 1), line("a/s", 2, "m1", 2), line("a/s", 2, "m2", 1)],
        }
    }

    #[test]
    fn a_sound_story_is_believed() {
        assert_eq!(check(&sound()), [""; 0]);
    }

    #[track_caller]
    fn caught(invariant: &str, lie: impl FnOnce(&mut Evidence)) {
        let mut evidence = sound();
        lie(&mut evidence);
        let violations = check(&evidence);
        assert!(violations.iter().any(|one| one.starts_with(invariant)), "{violations:?}");
    }

    #[test]
    fn every_lie_is_caught() {
        caught("I1", |evidence| drop(evidence.stored.pop()));
        caught("I1", |evidence| evidence.stored[0].text = "other".to_owned());
        caught("I4", |evidence| drop(evidence.accepted.pop()));
        caught("I4", |evidence| evidence.accepted.push(accepted("m2")));
        caught("I2", |evidence| evidence.stored[0].state = "pending".to_owned());
        caught("I12", |evidence| evidence.stored[0].reply = Some("half".to_owned()));
        caught("I6", |evidence| evidence.agents.push(line("a/s", 2, "m2", 1)));
        caught("I6", |evidence| evidence.stored[0].attempts = 1);
        caught("I13", |evidence| evidence.stored[1].attempts = 2);
        caught("I5", |evidence| evidence.agents.swap(1, 2));
        caught("I7", |evidence| evidence.agents[1].generation = 1);
        caught("I7", |evidence| evidence.agents[2].generation = 1);
        caught("I7", |evidence| evidence.agents[2].session = "a/other".to_owned());
    }

    #[test]
    fn a_message_given_up_too_early_is_caught() {
        caught("I6", |evidence| {
            evidence.stored[0].state = "dead".to_owned();
            evidence.stored[0].cause = Some("attempts_exhausted".to_owned());
            evidence.stored[0].reply = None;
        });
    }
}

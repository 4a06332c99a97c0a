//! Clients that never give up: each message has a key, and is sent again until it is answered.
//!
//! Owner: `chaos_kills`. Invariants: a key is used for one message, but for the probes that must be
//! refused; what the daemon acknowledged is written down with its id, and every acknowledgement of
//! a key must name the same id. Absent: judgement beyond that (`checker`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::http::Client;

/// A message that a client knows to be accepted.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) key: String,
    pub(crate) session: String,
    pub(crate) text: String,
    pub(crate) id: String,
}

/// Where the daemon is now, and whether to go on.
#[derive(Debug)]
pub(crate) struct Load {
    client: Mutex<Client>,
    is_over: AtomicBool,
}

impl Load {
    pub(crate) fn new(client: Client) -> Self {
        Self { client: Mutex::new(client), is_over: AtomicBool::new(false) }
    }

    /// The daemon is back, at another address.
    pub(crate) fn moved(&self, client: Client) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    fn client(&self) -> Client {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends until there is an answer; a refused or broken connection is none, nor is "later".
    fn answer(&self, key: &str, session: &str, text: &str) -> (u16, Value) {
        loop {
            let call = self
                .client()
                .call("POST", &format!("/v1/sessions/{session}/messages"))
                .json(&json!({ "text": text }))
                .header("idempotency-key", key);
            match call.try_send() {
                Ok(answer) if matches!(answer.status, 429 | 503) => {}
                Ok(answer) => return (answer.status, answer.json()),
                Err(_cut) => {}
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_a_little(&self, id: &str) {
        // Only paces the load: whether it ended is asked of the store, at the end.
        drop(self.client().call("GET", &format!("/v1/messages/{id}?wait=2s")).try_send());
    }
}

pub(crate) fn start(
    load: &Arc<Load>,
    clients: usize,
    sessions: usize,
    seed: u64,
) -> Vec<JoinHandle<Vec<Accepted>>> {
    (0..clients)
        .map(|client| {
            let load = Arc::clone(load);
            let random = Random::new(seed ^ (client as u64 + 1).wrapping_mul(0x9e37_79b9));
            thread::spawn(move || one_client(&load, client, sessions, random))
        })
        .collect()
}

fn one_client(load: &Load, client: usize, sessions: usize, mut random: Random) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    for number in 0_u64.. {
        if load.is_over.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("client-{client}-{number}");
        let session = format!("a/s{}", random.below(sessions as u64));
        let text = match random.below(4) {
            0 => format!("stream {} 15", 3 + random.below(12)),
            _echo => format!("echo {key}"),
        };
        let id = take_in(load, &key, &session, &text);
        if random.below(5) == 0 {
            assert_eq!(take_in(load, &key, &session, &text), id, "{key} became two messages");
        }
        if random.below(10) == 0 {
            let (status, body) = load.answer(&key, &session, "something else");
            assert_eq!(status, 409, "{key} was taken for another body: {body}");
        }
        if random.below(2) == 0 {
            load.wait_a_little(&id);
        } else {
            random.pause(1, 60);
        }
        accepted.push(Accepted { key, session, text, id });
    }
    accepted
}

fn take_in(load: &Load, key: &str, session: &str, text: &str) -> String {
    let (status, body) = load.answer(key, session, text);
    assert_eq!(status, 202, "{key}: {body}");
    body["message_id"].as_str().expect("an id").to_owned()
}

/// SplitMix64: the same seed gives the same choices.
#[derive(Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `bound`, without it.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// So that moments are random: nothing waits for anything here.
    pub(crate) fn pause(&mut self, from_ms: u64, to_ms: u64) {
        thread::sleep(Duration::from_millis(from_ms + self.below(to_ms - from_ms)));
    }
}

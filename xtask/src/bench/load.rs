//! The load generator: many kept-alive connections in one thread, each message with a key of its
//! own.
//!
//! ```text
//!  pace ─▶ idle client ─▶ POST ─▶ epoll ─▶ 202? ─▶ latency ─▶ idle client …
//! ```
//!
//! Owner: `accept` and whatever needs many messages. Invariants: one request in flight per client;
//! any answer but 202 voids the run; with an arrival schedule, latency counts from the scheduled
//! moment (no coordinated omission); one thread, so that the client takes as little of the machine
//! as it can. Absent: reading replies.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::error::BenchError;
use super::http::find;

/// How long the last answers may take after the load has ended.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 4 << 10;

#[derive(Debug, Clone)]
pub(super) struct Load<'a> {
    pub(super) address: SocketAddr,
    pub(super) token: &'a str,
    pub(super) agent: &'a str,
    pub(super) clients: usize,
    pub(super) targets: Targets,
    pub(super) pace: Pace,
    pub(super) until: Until,
    pub(super) text_bytes: usize,
    /// Makes the idempotency keys of this load different from those of others.
    pub(super) run: u64,
}

/// Which session a message is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Targets {
    /// `first`, the one after it, … and again from `first`.
    InTurn { first: u64, sessions: u64 },
    /// Drawn evenly.
    Uniform { sessions: u64 },
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// Each client sends as soon as it has its answer.
    Closed,
    /// One message each so often, whatever the answers do.
    Open { every: Duration },
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    After(Duration),
    Sent(u64),
}

#[derive(Debug)]
pub(super) struct Outcome {
    /// Acknowledged before the load ended.
    pub(super) acks_in_time: u64,
    /// With those that came after.
    pub(super) acks: u64,
    pub(super) elapsed: Duration,
    /// Ascending, in nanoseconds.
    pub(super) latencies: Vec<u64>,
}

impl Outcome {
    pub(super) fn acks_per_second(&self) -> f64 {
        self.acks_in_time as f64 / self.elapsed.as_secs_f64()
    }
}

/// Puts the load on and waits for all answers.
pub(super) fn run(load: &Load<'_>) -> Result<Outcome, BenchError> {
    let mut generator = Generator::connect(load)?;
    let outcome = generator.drive()?;
    Ok(outcome)
}

struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    due_at: Instant,
}

struct Generator<'a> {
    load: &'a Load<'a>,
    poll: rustix::fd::OwnedFd,
    clients: Vec<Client>,
    idle: VecDeque<usize>,
    template: Template,
    sent: u64,
    latencies: Vec<u64>,
}

impl<'a> Generator<'a> {
    fn connect(load: &'a Load<'a>) -> Result<Generator<'a>, BenchError> {
        let refused = BenchError::system::<rustix::io::Errno>;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(refused("an epoll"))?;
        let mut clients = Vec::with_capacity(load.clients);
        for number in 0..load.clients {
            let stream = TcpStream::connect(load.address).map_err(BenchError::http("connect"))?;
            stream
                .set_nodelay(true)
                .and_then(|()| stream.set_nonblocking(true))
                .map_err(BenchError::http("set up a connection"))?;
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&poll, &stream, data, epoll::EventFlags::IN).map_err(refused("epoll"))?;
            clients.push(Client { stream, received: Vec::new(), due_at: Instant::now() });
        }
        let idle = (0..load.clients).collect();
        let template = Template::new(load);
        Ok(Generator { load, poll, clients, idle, template, sent: 0, latencies: Vec::new() })
    }

    fn drive(&mut self) -> Result<Outcome, BenchError> {
        let started_at = Instant::now();
        let mut in_time = None;
        let mut events = Vec::with_capacity(self.load.clients);
        loop {
            let now = Instant::now();
            if in_time.is_none() && self.is_over(started_at, now) {
                in_time = Some((self.latencies.len() as u64, now - started_at));
            }
            if in_time.is_none() {
                self.send_due(started_at, now)?;
            } else if self.idle.len() == self.clients.len() {
                break;
            } else if now - started_at > self.longest() {
                let (what, seconds) = ("the last answer".to_string(), DRAIN_WITHIN.as_secs());
                return Err(BenchError::TooSlow { what, seconds });
            }
            self.wait(started_at, &mut events)?;
            for event in events.drain(..) {
                self.receive(event)?;
            }
        }
        let (acks_in_time, elapsed) = in_time.expect("the loop ends only after the load has");
        let acks = self.latencies.len() as u64;
        let mut latencies = std::mem::take(&mut self.latencies);
        latencies.sort_unstable();
        // What was counted by number ended with its last answer.
        Ok(match self.load.until {
            Until::After(_) => Outcome { acks_in_time, acks, elapsed, latencies },
            Until::Sent(_) => {
                Outcome { acks_in_time: acks, acks, elapsed: started_at.elapsed(), latencies }
            }
        })
    }

    fn is_over(&self, started_at: Instant, now: Instant) -> bool {
        match self.load.until {
            Until::After(span) => now - started_at >= span,
            Until::Sent(count) => self.sent >= count,
        }
    }

    fn longest(&self) -> Duration {
        match self.load.until {
            Until::After(span) => span + DRAIN_WITHIN,
            Until::Sent(_) => 10 * DRAIN_WITHIN,
        }
    }

    fn send_due(&mut self, started_at: Instant, now: Instant) -> Result<(), BenchError> {
        let most = match self.load.until {
            Until::After(_) => u64::MAX,
            Until::Sent(count) => count,
        };
        while self.sent < most
            && let Some(due_at) = self.next_due(started_at, now)
            && due_at <= now
            && let Some(number) = self.idle.pop_front()
        {
            let request = self.template.fill(&self.load.targets, self.load.run, self.sent);
            let client = &mut self.clients[number];
            // One request is far less than a socket's buffer takes at once.
            let mut stream = &client.stream;
            stream.write_all(request).map_err(BenchError::http("send"))?;
            client.due_at = due_at;
            self.sent += 1;
        }
        Ok(())
    }

    /// When the next message is to go out.
    fn next_due(&self, started_at: Instant, now: Instant) -> Option<Instant> {
        match self.load.pace {
            Pace::Closed => Some(now),
            Pace::Open { every } => {
                let nanos = u64::try_from(every.as_nanos()).ok()?.checked_mul(self.sent)?;
                started_at.checked_add(Duration::from_nanos(nanos))
            }
        }
    }

    fn wait(
        &mut self,
        started_at: Instant,
        events: &mut Vec<epoll::Event>,
    ) -> Result<(), BenchError> {
        let now = Instant::now();
        let until_due = match self.load.pace {
            Pace::Open { .. } if !self.idle.is_empty() => self.next_due(started_at, now),
            Pace::Open { .. } | Pace::Closed => None,
        };
        let until_end = match self.load.until {
            Until::After(span) => Some(started_at + span),
            Until::Sent(_) => None,
        };
        let longest = now + Duration::from_millis(100);
        let wake_at = [until_due, until_end.filter(|at| *at > now)]
            .into_iter()
            .flatten()
            .fold(longest, Instant::min);
        let timeout = wake_at.saturating_duration_since(now);
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(1),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        events.clear();
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(BenchError::system("epoll")(error)),
        }
    }

    fn receive(&mut self, event: epoll::Event) -> Result<(), BenchError> {
        let number = usize::try_from(event.data.u64()).expect("it is a client's number");
        let client = &mut self.clients[number];
        let mut bytes = [0; READ_BYTES];
        let count = match client.stream.read(&mut bytes) {
            Ok(0) => {
                let shown = String::from_utf8_lossy(&client.received).into_owned();
                return Err(BenchError::Answer { what: "an early end", shown });
            }
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(BenchError::http("receive")(error)),
        };
        client.received.extend_from_slice(&bytes[..count]);
        let Some(whole) = whole_answer(&client.received)? else { return Ok(()) };
        if whole != client.received.len() {
            let shown = String::from_utf8_lossy(&client.received).into_owned();
            return Err(BenchError::Answer { what: "something after its end", shown });
        }
        client.received.clear();
        let latency = client.due_at.elapsed();
        self.latencies.push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        self.idle.push_back(number);
        Ok(())
    }
}

/// The length of a 202 answer that has come whole; `None` as long as it has not.
fn whole_answer(received: &[u8]) -> Result<Option<usize>, BenchError> {
    let Some(head_end) = find(received, b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&received[..head_end]).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let whole = length.and_then(|length| length.trim().parse::<usize>().ok());
    let shown = || String::from_utf8_lossy(received).into_owned();
    let Some(whole) = whole.map(|body| head_end + 4 + body) else {
        return Err(BenchError::Answer { what: "no length", shown: shown() });
    };
    if received.len() < whole {
        return Ok(None);
    }
    if !head.starts_with("http/1.1 202 ") {
        return Err(BenchError::Answer { what: "another status than 202", shown: shown() });
    }
    Ok(Some(whole))
}

/// One request whose session and key are written over.
struct Template {
    bytes: Vec<u8>,
    session_at: usize,
    key_at: usize,
}

const SESSION_DIGITS: usize = 6;
const KEY_DIGITS: usize = 32;

impl Template {
    fn new(load: &Load<'_>) -> Template {
        let Load { agent, token, text_bytes, .. } = load;
        let body = format!("{{\"text\":\"{}\"}}", "x".repeat(*text_bytes));
        let (session, key) = ("S".repeat(SESSION_DIGITS), "K".repeat(KEY_DIGITS));
        let request = format!(
            "POST /v1/sessions/{agent}/s{session}/messages HTTP/1.1\r\nhost: localhost\r\n\
             authorization: Bearer {token}\r\ncontent-type: application/json\r\n\
             idempotency-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let at = |wanted: &str| request.find(wanted).expect("it was just put in");
        let (session_at, key_at) = (at(&session), at(&key));
        Template { bytes: request.into_bytes(), session_at, key_at }
    }

    fn fill(&mut self, targets: &Targets, run: u64, number: u64) -> &[u8] {
        let session = match *targets {
            Targets::InTurn { first, sessions } => first + number % sessions,
            Targets::Uniform { sessions } => mixed(run ^ mixed(number)) % sessions,
        };
        let session = format!("{session:0width$}", width = SESSION_DIGITS);
        let key = format!("{run:016x}{number:016x}");
        self.bytes[self.session_at..][..SESSION_DIGITS].copy_from_slice(session.as_bytes());
        self.bytes[self.key_at..][..KEY_DIGITS].copy_from_slice(key.as_bytes());
        &self.bytes
    }
}

/// The name of a session as `Targets` number them.
pub(super) fn session_name(agent: &str, number: u64) -> String {
    format!("{agent}/s{number:0width$}", width = SESSION_DIGITS)
}

/// Spreads numbers evenly and repeatably (the finaliser of splitmix64).
pub(super) fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;

    /// Answers every request with `status` and notes its head.
    fn server(status: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let heads = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heads);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, noted) = (stream.expect("a client"), Arc::clone(&noted));
                thread::spawn(move || {
                    let mut received = Vec::new();
                    let mut bytes = [0; 2048];
                    while let Ok(count @ 1..) = stream.read(&mut bytes) {
                        received.extend_from_slice(&bytes[..count]);
                        let text = String::from_utf8_lossy(&received).into_owned();
                        if text.ends_with("\"}") {
                            noted.lock().expect("no panic").push(text);
                            received.clear();
                            let answer =
                                format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
                            stream.write_all(answer.as_bytes()).expect("the client reads");
                        }
                    }
                });
            }
        });
        (address, heads)
    }

    fn load(address: SocketAddr) -> Load<'static> {
        Load {
            address,
            token: "dm_x",
            agent: "bench",
            clients: 3,
            targets: Targets::Uniform { sessions: 10 },
            pace: Pace::Closed,
            until: Until::Sent(40),
            text_bytes: 16,
            run: 7,
        }
    }

    #[test]
    fn every_message_is_answered_once_and_has_a_key_of_its_own() {
        let (address, heads) = server("202 Accepted");
        let outcome = run(&load(address)).expect("the server accepts");
        assert_eq!((outcome.acks, outcome.acks_in_time, outcome.latencies.len()), (40, 40, 40));
        assert!(outcome.latencies.is_sorted());
        let heads = heads.lock().expect("no panic");
        let field = |name: &str| -> BTreeSet<String> {
            let value = |head: &String| head.split(name).nth(1)?.lines().next().map(str::to_string);
            heads.iter().filter_map(value).collect()
        };
        assert_eq!(field("idempotency-key: ").len(), 40);
        assert!((5..=10).contains(&field("POST /v1/sessions/bench/").len()));
    }

    #[test]
    fn sessions_in_turn_get_the_same_number_of_messages_each() {
        let (address, heads) = server("202 Accepted");
        let targets = Targets::InTurn { first: 20, sessions: 4 };
        run(&Load { targets, ..load(address) }).expect("the server accepts");
        for number in 20..24 {
            let name = session_name("bench", number);
            let heads = heads.lock().expect("no panic");
            assert_eq!(heads.iter().filter(|head| head.contains(&name)).count(), 10, "{name}");
        }
    }

    #[test]
    fn a_refusal_voids_the_run() {
        let (address, _) = server("429 Too Many Requests");
        let error = run(&load(address)).expect_err("nothing was accepted");
        assert!(error.to_string().contains("another status than 202"), "{error}");
    }

    #[test]
    fn an_open_pace_sends_on_schedule() {
        let (address, _) = server("202 Accepted");
        let pace = Pace::Open { every: Duration::from_millis(2) };
        let until = Until::After(Duration::from_millis(100));
        let outcome = run(&Load { pace, until, ..load(address) }).expect("the server accepts");
        // A machine that is busy elsewhere sends late, never more.
        assert!((2..=51).contains(&outcome.acks), "{}", outcome.acks);
    }

    #[test]
    fn an_answer_in_pieces_is_waited_for() {
        let whole = b"HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\nx: y\r\n\r\n12345";
        for end in 0..whole.len() {
            assert_eq!(whole_answer(&whole[..end]).expect("so far so good"), None, "{end}");
        }
        assert_eq!(whole_answer(whole).expect("it is whole"), Some(whole.len()));
    }
}

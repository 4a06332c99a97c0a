//! The line to the daemon: dialled, and dialled again, for as long as the bridge lives.
//!
//! ```text
//!  Down ── pause over ─▶ Dialling ── handshake done ─▶ Up
//!    ▲                      │ refused, too slow         │ closed, broken, silent, not understood
//!    └──────────────────────┴───────────────────────────┘
//! ```
//!
//! Owner: `run` polls it and is told of one [`LinkEvent`] at a time. Invariants: frames are taken
//! one at a time and only when the last one went out, so nothing queues up here; a line on which
//! nothing is heard is given up. Absent: what frames mean, and when it is time to stop trying.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{Sink as _, Stream as _};
use rustix::rand::GetRandomFlags;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::frames::{FRAME_BYTES_MAX, FromBridge, ToBridge};
use crate::rundir::Dial;

/// The path that a bridge asks for when it opens its WebSocket.
pub const BRIDGE_PATH: &str = "/bridge";

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// From the dial to the welcome.
const WELCOME_WITHIN: Duration = Duration::from_secs(10);
/// After such a silence the daemon is asked for a sign of life …
const PING_AFTER: Duration = Duration::from_secs(20);
/// … and after such a one the line is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A bridge is one of many on a machine: buffers grow when something large comes.
const BUFFER_BYTES: usize = 4 << 10;

const _: () = assert!(PING_AFTER.as_millis() * 2 < SILENCE_MAX.as_millis());

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}
type Socket = WebSocketStream<Box<dyn Wire>>;
type Dialling = Pin<Box<dyn Future<Output = Result<Socket, LinkError>> + Send>>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("cannot connect to {dial}: {source}")]
    Connect { dial: Dial, source: io::Error },
    #[error("the WebSocket handshake failed: {0}")]
    Handshake(#[source] Box<WsError>),
    #[error("no welcome within {WELCOME_WITHIN:?}")]
    NoWelcome,
    #[error("the daemon closed the line")]
    Closed,
    #[error("the line broke: {0}")]
    Broken(#[source] Box<WsError>),
    #[error("nothing was heard of the daemon for {SILENCE_MAX:?}")]
    Silent,
    #[error("a frame was not understood: {0}")]
    NotUnderstood(#[source] serde_json::Error),
    #[error("a frame was not text")]
    NotText,
}

#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A line is up: `hello` is due.
    Up,
    Frame(ToBridge),
    /// The last frame went out: the next one can be sent.
    CanSend,
    /// A line or an attempt at one is over; another follows by itself.
    Down(LinkError),
}

pub(crate) struct Link {
    dial: Dial,
    state: State,
    backoff: Backoff,
}

enum State {
    Down { until: Instant },
    Dialling { attempt: Dialling, until: Instant },
    Up(Box<Line>),
}

struct Line {
    socket: Socket,
    /// Set until the welcome has come.
    welcome_until: Option<Instant>,
    liveness: Liveness,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Down { .. } => "down",
            State::Dialling { .. } => "dialling",
            State::Up(_) => "up",
        };
        f.debug_struct("Link").field("dial", &self.dial).field("state", &state).finish()
    }
}

impl Link {
    /// Dials at the first `next`.
    pub(crate) fn new(dial: Dial) -> Self {
        Self { dial, state: State::Down { until: Instant::now() }, backoff: Backoff::default() }
    }

    /// The next event. `wants_to_send` asks for `CanSend`. Loses nothing when dropped.
    pub(crate) async fn next(&mut self, wants_to_send: bool) -> LinkEvent {
        loop {
            let result = match &mut self.state {
                State::Down { until } => {
                    // A timer takes a millisecond even for a time that has come.
                    if Instant::now() < *until {
                        tokio::time::sleep_until(*until).await;
                    }
                    let until = Instant::now() + WELCOME_WITHIN;
                    let attempt = Box::pin(open(self.dial.clone()));
                    self.state = State::Dialling { attempt, until };
                    continue;
                }
                State::Dialling { attempt, until } => {
                    let until = *until;
                    match tokio::time::timeout_at(until, attempt).await {
                        Ok(Ok(socket)) => {
                            let liveness = Liveness::new(Instant::now());
                            let welcome_until = Some(until);
                            let line = Line { socket, welcome_until, liveness };
                            self.state = State::Up(Box::new(line));
                            return LinkEvent::Up;
                        }
                        Ok(Err(error)) => Err(error),
                        Err(_) => Err(LinkError::NoWelcome),
                    }
                }
                State::Up(line) => line.next(wants_to_send).await,
            };
            return match result {
                Ok(event) => event,
                Err(error) => {
                    self.hang_up();
                    LinkEvent::Down(error)
                }
            };
        }
    }

    /// The daemon welcomed this bridge: the line is good, and so will be the next attempt.
    pub(crate) fn welcomed(&mut self) {
        self.backoff = Backoff::default();
        if let State::Up(line) = &mut self.state {
            line.welcome_until = None;
        }
    }

    /// Ends the line, or the attempt at one, and plans the next attempt.
    fn hang_up(&mut self) {
        let pause = self.backoff.next(random_u64());
        self.state = State::Down { until: Instant::now() + pause };
    }

    /// Hands a frame to the line. What cannot be sent is lost with the line, whose end the next
    /// event tells.
    pub(crate) fn send(&mut self, frame: &FromBridge) {
        let State::Up(line) = &mut self.state else { return };
        let text = serde_json::to_string(frame).expect("frames are always JSON");
        // An error ends the stream of the socket as well, where it is reported.
        let _reported_by_next = Pin::new(&mut line.socket).start_send(Message::text(text));
    }
}

impl Line {
    async fn next(&mut self, wants_to_send: bool) -> Result<LinkEvent, LinkError> {
        loop {
            let deadline = self.deadline();
            tokio::select! {
                polled = std::future::poll_fn(|cx| self.poll(cx, wants_to_send)) => {
                    if let Some(event) = polled? {
                        return Ok(event);
                    }
                }
                () = tokio::time::sleep_until(deadline) => self.check_clocks()?,
            }
        }
    }

    fn deadline(&self) -> Instant {
        let liveness = self.liveness.next_deadline();
        self.welcome_until.map_or(liveness, |until| until.min(liveness))
    }

    fn check_clocks(&mut self) -> Result<(), LinkError> {
        let now = Instant::now();
        if self.welcome_until.is_some_and(|until| until <= now) {
            return Err(LinkError::NoWelcome);
        }
        match self.liveness.verdict(now) {
            Verdict::Fine => Ok(()),
            Verdict::Ask => {
                self.liveness.asked();
                let ping = Message::Ping(Vec::new().into());
                let _reported_by_next = Pin::new(&mut self.socket).start_send(ping);
                Ok(())
            }
            Verdict::GiveUp => Err(LinkError::Silent),
        }
    }

    /// Reads first, so that a daemon's words are heard however much there is to send.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        wants_to_send: bool,
    ) -> Poll<Result<Option<LinkEvent>, LinkError>> {
        if let Poll::Ready(message) = Pin::new(&mut self.socket).poll_next(cx) {
            self.liveness.heard(Instant::now());
            return Poll::Ready(match message {
                Some(Ok(message)) => understand(&message),
                Some(Err(error)) => Err(LinkError::Broken(Box::new(error))),
                None => Err(LinkError::Closed),
            });
        }
        let broken = |error| LinkError::Broken(Box::new(error));
        if wants_to_send && Pin::new(&mut self.socket).poll_ready(cx).map_err(broken)?.is_ready() {
            return Poll::Ready(Ok(Some(LinkEvent::CanSend)));
        }
        // Pushes out what is left of earlier frames, and pongs; its end is nobody's event.
        let _flushed = Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)?;
        Poll::Pending
    }
}

fn understand(message: &Message) -> Result<Option<LinkEvent>, LinkError> {
    match message {
        Message::Text(text) => serde_json::from_str(text)
            .map(|frame| Some(LinkEvent::Frame(frame)))
            .map_err(LinkError::NotUnderstood),
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
        Message::Close(_) => Err(LinkError::Closed),
        Message::Binary(_) => Err(LinkError::NotText),
    }
}

async fn open(dial: Dial) -> Result<Socket, LinkError> {
    let connected: io::Result<Box<dyn Wire>> = match &dial {
        Dial::Unix(path) => UnixStream::connect(path).await.map(|stream| Box::new(stream) as _),
        Dial::Tcp(address) => TcpStream::connect(address).await.and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as _)
        }),
    };
    let stream = connected.map_err(|source| LinkError::Connect { dial, source })?;
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let request = format!("ws://localhost{BRIDGE_PATH}");
    let handshake = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
    match handshake.await {
        Ok((socket, _response)) => Ok(socket),
        Err(error) => Err(LinkError::Handshake(Box::new(error))),
    }
}

/// Ever longer pauses, shortened at random by up to half so that bridges do not dial in step.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self, random: u64) -> Duration {
        let whole = PAUSE_MIN.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        let half_ms = u64::try_from(whole.as_millis() / 2).unwrap_or(u64::MAX);
        whole - Duration::from_millis(random % (half_ms + 1))
    }
}

/// Is the other side of the line alive?
#[derive(Debug)]
struct Liveness {
    heard_at: Instant,
    was_asked: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Ask,
    GiveUp,
}

impl Liveness {
    fn new(now: Instant) -> Self {
        Self { heard_at: now, was_asked: false }
    }

    fn heard(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    fn asked(&mut self) {
        self.was_asked = true;
    }

    fn verdict(&self, now: Instant) -> Verdict {
        let silence = now.saturating_duration_since(self.heard_at);
        match silence {
            _ if silence >= SILENCE_MAX => Verdict::GiveUp,
            _ if silence >= PING_AFTER && !self.was_asked => Verdict::Ask,
            _ => Verdict::Fine,
        }
    }

    fn next_deadline(&self) -> Instant {
        self.heard_at + if self.was_asked { SILENCE_MAX } else { PING_AFTER }
    }
}

/// Random bits for spreading and for names; not for secrets.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    match rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(_) => u64::from_ne_bytes(bytes),
        // A kernel without it: two bridges of one run folder never are, so the time will do.
        Err(_) => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            since.as_secs().rotate_left(32) ^ u64::from(since.subsec_nanos())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double_from_20_ms_to_2_s() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..10).map(|_| backoff.next(0).as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1280, 2000, 2000, 2000]);
    }

    proptest! {
        #[test]
        fn chance_shortens_a_pause_by_half_at_most(random: u64, failures in 0u32..100) {
            let whole = Backoff { failures }.next(0);
            let pause = Backoff { failures }.next(random);
            prop_assert!(pause <= whole && pause >= whole / 2);
        }
    }

    #[test]
    fn a_silent_daemon_is_asked_once_and_then_given_up() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        assert_eq!(liveness.next_deadline(), start + PING_AFTER);
        assert_eq!(liveness.verdict(start + PING_AFTER / 2), Verdict::Fine);
        assert_eq!(liveness.verdict(start + PING_AFTER), Verdict::Ask);
        liveness.asked();
        assert_eq!(liveness.next_deadline(), start + SILENCE_MAX);
        assert_eq!(liveness.verdict(start + PING_AFTER * 2), Verdict::Fine);
        assert_eq!(liveness.verdict(start + SILENCE_MAX), Verdict::GiveUp);
        liveness.heard(start + SILENCE_MAX);
        assert_eq!(liveness.verdict(start + SILENCE_MAX + PING_AFTER), Verdict::Ask);
    }

    #[test]
    fn frames_that_are_none_end_the_line() {
        assert!(matches!(
            understand(&Message::text("{\"frame\":\"teleport\"}")),
            Err(LinkError::NotUnderstood(_))
        ));
        assert!(matches!(understand(&Message::binary(vec![1])), Err(LinkError::NotText)));
        assert!(matches!(understand(&Message::Ping(Vec::new().into())), Ok(None)));
        let release = understand(&Message::text("{\"frame\":\"release\",\"new\":1}"));
        assert!(matches!(release, Ok(Some(LinkEvent::Frame(ToBridge::Release)))));
    }
}

//! One connection of a bridge, from its first byte to its last.
//!
//! ```text
//!  connected ─ handshake, hello, token ─▶ attached ─ welcome sent ─▶ heard
//!      │ too late, or not good                │ refused sent          │ cut · closed · silent
//!      ▼                                      ▼                       ▼ · fault
//!     refused, over                          over, BridgeDetached    over, BridgeDetached
//! ```
//!
//! Owner: the task that `control` spawns for it. Invariants: until it was welcomed, its frames stay
//! unread; a frame that cannot be understood ends the connection, and only this one; while the
//! engine is busy nothing more is read. Absent: what frames mean (`registry`), and their contents
//! in our logs.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use dormouse_bridge::frames::{FRAME_BYTES_MAX, FromBridge, Hello, PROTOCOL_VERSION, ToBridge};
use dormouse_core::id::InstanceId;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::{ControlLimits, Shared};
use crate::registry::{Introduction, Line, ReportError, Reporter};

/// The largest hello, and with the handshake all that is read before the token was checked.
const HELLO_BYTES_MAX: usize = 64 << 10;
const HANDSHAKE_BYTES_MAX: usize = 16 << 10;
/// Read in pieces of this size; it is kept per connection.
const READ_BUFFER_BYTES: usize = 8 << 10;
/// A refusal or a close frame is sent to a reader that reads, or not at all.
const FAREWELL_WITHIN: Duration = Duration::from_secs(1);

/// Control frames carry 125 bytes, two of them the code.
const CLOSE_REASON_BYTES_MAX: usize = 123;

type Socket = WebSocketStream<Allowance<UnixStream>>;

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
enum Over {
    #[error("the bridge closed it")]
    Closed,
    #[error("it was cut: replaced, too slow, or all were disconnected")]
    Cut,
    #[error("the bridge was refused")]
    Refused,
    #[error("nothing was heard for too long")]
    Silent,
    #[error("the bridge took nothing for too long")]
    Deaf,
    #[error("no hello in time")]
    NoHello,
    #[error("the connection broke: {0}")]
    Broken(#[source] SocketError),
    #[error("protocol fault: {0}")]
    Fault(#[from] Fault),
    #[error("the engine takes no events any more")]
    EngineGone,
}

/// What a bridge must not do. Nothing of the frame's contents is kept.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("a binary frame")]
    Binary,
    #[error("a frame that is not understood ({0:?} error at byte {1})")]
    Malformed(serde_json::error::Category, usize),
    #[error("the first frame was no hello")]
    NotHello,
    #[error("a hello of {0} bytes")]
    HelloTooLarge(usize),
    #[error("protocol version {0}, and this daemon speaks {PROTOCOL_VERSION}")]
    Version(u32),
    #[error("the token is not valid for {0}")]
    Token(InstanceId),
    #[error("{0}")]
    Frame(ReportError),
}

pub(super) async fn serve(stream: UnixStream, shared: &Shared) {
    let limits = &shared.limits;
    let (mut socket, who) = match introduce(stream, shared).await {
        Ok(introduced) => introduced,
        Err(Over::Fault(fault)) => return tracing::warn!(%fault, "a connection was refused"),
        Err(over) => return tracing::warn!(%over, "a connection ended before its hello"),
    };
    let Ok(line) = shared.registry.attach(who).await else {
        return tracing::debug!("a bridge said hello after the engine's end");
    };
    let Line { frames, mut cut, reporter, place } = line;
    let over = {
        let (sink, stream) = (&mut socket).split();
        let (welcome, welcomed) = watch::channel(false);
        tokio::select! {
            over = speak(sink, frames, welcome, limits) => over,
            over = listen(stream, &reporter, welcomed, limits.dead_after) => over,
            _ = &mut cut => Over::Cut,
        }
    };
    match &over {
        Over::Closed | Over::Cut | Over::Refused | Over::EngineGone => {
            tracing::debug!(instance = %place.instance(), %over, "a bridge's connection is over");
        }
        _ => tracing::warn!(instance = %place.instance(), %over, "a bridge's connection is over"),
    }
    say_goodbye(&mut socket, &over).await;
    drop(place);
}

/// Handshake and hello, within their time, size and rights. A refusal has been sent when this
/// fails.
async fn introduce(stream: UnixStream, shared: &Shared) -> Result<(Socket, Introduction), Over> {
    let hello_within = shared.limits.hello_within;
    let (mut socket, hello) =
        timeout(hello_within, first_frame(stream)).await.map_err(|_| Over::NoHello)??;
    match hello.and_then(|hello| checked(hello, shared)) {
        Ok(who) => {
            socket.get_mut().lift();
            Ok((socket, who))
        }
        Err(fault) => {
            let refusal = ToBridge::Refused { why: fault.to_string() };
            let farewell = timeout(FAREWELL_WITHIN, socket.send(encoded(&refusal))).await;
            tracing::debug!(sent = matches!(farewell, Ok(Ok(()))), "refusal");
            Err(Over::Fault(fault))
        }
    }
}

async fn first_frame(stream: UnixStream) -> Result<(Socket, Result<Hello, Fault>), Over> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let stream = Allowance::new(stream, HANDSHAKE_BYTES_MAX + HELLO_BYTES_MAX);
    let mut socket = tokio_tungstenite::accept_async_with_config(stream, Some(config))
        .await
        .map_err(Over::Broken)?;
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) if text.len() > HELLO_BYTES_MAX => {
                return Ok((socket, Err(Fault::HelloTooLarge(text.len()))));
            }
            Some(Ok(Message::Text(text))) => {
                let hello = match parsed(&text) {
                    Ok(FromBridge::Hello(hello)) => Ok(hello),
                    Ok(_) => Err(Fault::NotHello),
                    Err(fault) => Err(fault),
                };
                return Ok((socket, hello));
            }
            Some(Ok(Message::Binary(_))) => return Ok((socket, Err(Fault::Binary))),
            Some(Ok(Message::Close(_))) | None => return Err(Over::Closed),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(Over::Broken(error)),
        }
    }
}

fn checked(hello: Hello, shared: &Shared) -> Result<Introduction, Fault> {
    let Hello { version, session, generation, boot, token, agent, held, .. } = hello;
    if version != PROTOCOL_VERSION {
        return Err(Fault::Version(version));
    }
    let instance = InstanceId { session, generation };
    if !shared.secret.token_is_valid(&instance, &token) {
        return Err(Fault::Token(instance));
    }
    Ok(Introduction { instance, boot, agent, held })
}

async fn listen(
    mut stream: impl Stream<Item = Result<Message, SocketError>> + Unpin,
    reporter: &Reporter,
    mut welcomed: watch::Receiver<bool>,
    dead_after: Duration,
) -> Over {
    loop {
        let Ok(message) = timeout(dead_after, stream.next()).await else { return Over::Silent };
        let text = match message {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Binary(_))) => return Fault::Binary.into(),
            Some(Ok(Message::Close(_))) | None => return Over::Closed,
            // How every bridge ends: a process that is gone says no goodbye.
            Some(Err(SocketError::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => {
                return Over::Closed;
            }
            Some(Err(error)) => return Over::Broken(error),
        };
        let frame = match parsed(&text) {
            Ok(frame) => frame,
            Err(fault) => return fault.into(),
        };
        drop(text);
        if welcomed.wait_for(|welcomed| *welcomed).await.is_err() {
            return Over::Cut;
        }
        match reporter.report(frame).await {
            Ok(()) => {}
            Err(ReportError::EngineGone) => return Over::EngineGone,
            Err(error) => return Fault::Frame(error).into(),
        }
    }
}

async fn speak(
    mut sink: impl Sink<Message, Error = SocketError> + Unpin,
    mut frames: mpsc::Receiver<ToBridge>,
    welcome: watch::Sender<bool>,
    limits: &ControlLimits,
) -> Over {
    let first_ping = tokio::time::Instant::now() + limits.ping_every;
    let mut ping = interval_at(first_ping, limits.ping_every);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (message, frame) = tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => (encoded(&frame), Some(frame)),
                None => return Over::Cut,
            },
            _ = ping.tick() => (Message::Ping(Vec::new().into()), None),
        };
        match timeout(limits.dead_after, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Over::Broken(error),
            Err(_) => return Over::Deaf,
        }
        match frame {
            Some(ToBridge::Refused { .. }) => return Over::Refused,
            Some(ToBridge::Welcome { .. }) => {
                welcome.send_replace(true);
            }
            _ => {}
        }
    }
}

/// Tells the bridge why, if it still listens.
async fn say_goodbye(socket: &mut Socket, over: &Over) {
    let code = match over {
        Over::Closed | Over::Refused => CloseCode::Normal,
        Over::Cut | Over::EngineGone => CloseCode::Away,
        Over::Fault(_) | Over::NoHello => CloseCode::Policy,
        Over::Silent | Over::Deaf | Over::Broken(_) => return,
    };
    let mut reason = over.to_string();
    reason.truncate(reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX));
    let close = CloseFrame { code, reason: reason.into() };
    let sent = timeout(FAREWELL_WITHIN, socket.send(Message::Close(Some(close)))).await;
    tracing::trace!(sent = matches!(sent, Ok(Ok(()))), "close frame");
}

fn parsed(text: &str) -> Result<FromBridge, Fault> {
    // The error's words could quote the frame, so only its kind and place are kept.
    serde_json::from_str(text).map_err(|error| Fault::Malformed(error.classify(), error.column()))
}

fn encoded(frame: &ToBridge) -> Message {
    let text =
        serde_json::to_string(frame).expect("frames hold no maps but of texts, and UTF-8 paths");
    Message::text(text)
}

/// A stream of which only so much may be read, until the allowance is lifted.
#[derive(Debug)]
struct Allowance<S> {
    stream: S,
    /// `None`: lifted.
    left: Option<usize>,
}

impl<S> Allowance<S> {
    fn new(stream: S, bytes: usize) -> Self {
        Self { stream, left: Some(bytes) }
    }

    fn lift(&mut self) {
        self.left = None;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Allowance<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(left) = self.left else { return Pin::new(&mut self.stream).poll_read(cx, buffer) };
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        match left.checked_sub(buffer.filled().len() - before) {
            Some(left) => self.left = Some(left),
            None => {
                let error = io::Error::other("too much was sent before the hello's end");
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Allowance<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

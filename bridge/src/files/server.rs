//! The daemon's files, asked for over HTTP.
//!
//! Owner: `fetch`, `apply` and `checkpoint` ask through here. Invariants: one connection per
//! request, to the address that `sync` named; every request proves which instance asks; whoever
//! goes silent is given up; answers are read within a bound. Absent: retries, files.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use dormouse_core::id::InstanceId;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::http::request::Builder;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use crate::files::wire::{BLOBS_PATH, INSTANCE_HEADER, RefusedAnswer, StoredAnswer};
use crate::frames::Secret;
use crate::rundir::Dial;

/// Of a daemon that neither takes nor gives a byte.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 128 << 20;
const REFUSAL_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error("cannot connect to the daemon's files")]
    Connect(#[source] io::Error),
    #[error("the connection to the daemon's files ended")]
    Exchange(#[source] hyper::Error),
    #[error("nothing was heard of the daemon's files for {SILENCE_MAX:?}")]
    Silent,
    #[error("the daemon refused ({status}): {error}")]
    Refused { status: u16, error: String },
    #[error("the daemon's answer was not understood")]
    NotUnderstood(#[source] serde_json::Error),
    #[error("the daemon's answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    #[error("the request cannot be written")]
    Request(#[source] hyper::http::Error),
}

impl ServerError {
    /// The very same request may be answered in a moment.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            ServerError::Connect(_) | ServerError::Exchange(_) | ServerError::Silent => true,
            ServerError::Refused { status, .. } => {
                (*status >= 500 && !self.is_without_store()) || [408, 425, 429].contains(status)
            }
            ServerError::NotUnderstood(_) | ServerError::TooLong | ServerError::Request(_) => false,
        }
    }

    /// Nothing can be kept until somebody has done something about it.
    pub(crate) fn is_without_store(&self) -> bool {
        matches!(self, ServerError::Refused { status: 507, .. })
    }

    /// What was asked for is not what the daemon wants any more.
    pub(crate) fn is_outdated(&self) -> bool {
        matches!(self, ServerError::Refused { status: 409, .. })
    }

    /// What was sent was not what it was said to be.
    pub(crate) fn is_mismatch(&self) -> bool {
        matches!(self, ServerError::Refused { status: 422, .. })
    }
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

type Outgoing = BoxBody<Bytes, io::Error>;

#[derive(Debug, Clone)]
pub(crate) struct Server {
    dial: Dial,
    instance: HeaderValue,
    authorization: HeaderValue,
}

impl Server {
    pub(crate) fn new(dial: Dial, instance: &InstanceId, token: &Secret) -> io::Result<Self> {
        let header = |text: String| HeaderValue::try_from(text).map_err(io::Error::other);
        let mut authorization = header(format!("Bearer {}", token.0))?;
        authorization.set_sensitive(true);
        Ok(Self { dial, instance: header(instance.to_string())?, authorization })
    }

    pub(crate) fn dial(&self) -> &Dial {
        &self.dial
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ServerError> {
        let body = Full::default().map_err(|never| match never {}).boxed();
        answer_of(self.send(Request::get(path), body, &AtomicU64::new(0)).await?).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<T, ServerError> {
        answer_of(self.post_for_stream(path, question).await?).await
    }

    /// The answer's body, which is read as it comes.
    pub(crate) async fn post_for_stream(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<Incoming, ServerError> {
        let body = serde_json::to_vec(question).map_err(ServerError::NotUnderstood)?;
        let body = Full::from(body).map_err(|never| match never {}).boxed();
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request, body, &AtomicU64::new(0)).await
    }

    /// Sends what comes through the channel; an error in it breaks the request off.
    pub(crate) async fn put_blobs(
        &self,
        pieces: mpsc::Receiver<io::Result<Bytes>>,
        sent_bytes: &AtomicU64,
    ) -> Result<StoredAnswer, ServerError> {
        let body = ChannelBody(pieces).boxed();
        answer_of(self.send(Request::put(BLOBS_PATH), body, sent_bytes).await?).await
    }

    /// The body of an answer that is a success. As long as `moved` changes, nobody is silent.
    async fn send(
        &self,
        request: Builder,
        body: Outgoing,
        moved: &AtomicU64,
    ) -> Result<Incoming, ServerError> {
        let request = request
            .header("host", "localhost")
            .header(INSTANCE_HEADER, &self.instance)
            .header("authorization", &self.authorization)
            .body(body)
            .map_err(ServerError::Request)?;
        let stream = self.connect().await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(ServerError::Exchange)?;
        // It ends by itself when the sender and the answer are dropped; what goes wrong in it is
        // seen by whoever reads the answer.
        tokio::spawn(connection);
        let mut answering = std::pin::pin!(sender.send_request(request));
        let mut seen = moved.load(Ordering::Relaxed);
        loop {
            match tokio::time::timeout(SILENCE_MAX, &mut answering).await {
                Ok(answer) => return success(answer.map_err(ServerError::Exchange)?).await,
                Err(_) if moved.load(Ordering::Relaxed) == seen => return Err(ServerError::Silent),
                Err(_) => seen = moved.load(Ordering::Relaxed),
            }
        }
    }

    async fn connect(&self) -> Result<Box<dyn Wire>, ServerError> {
        let connecting = async {
            match &self.dial {
                Dial::Unix(path) => {
                    UnixStream::connect(path).await.map(|stream| Box::new(stream) as Box<dyn Wire>)
                }
                Dial::Tcp(address) => {
                    TcpStream::connect(address).await.map(|stream| Box::new(stream) as _)
                }
            }
        };
        match tokio::time::timeout(SILENCE_MAX, connecting).await {
            Ok(connected) => connected.map_err(ServerError::Connect),
            Err(_) => Err(ServerError::Silent),
        }
    }
}

async fn success(answer: Response<Incoming>) -> Result<Incoming, ServerError> {
    let (parts, mut body) = answer.into_parts();
    if parts.status == StatusCode::OK {
        return Ok(body);
    }
    let words = whole(&mut body, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let error = match serde_json::from_slice::<RefusedAnswer>(&words) {
        Ok(answer) => answer.error,
        Err(_) => parts.status.canonical_reason().unwrap_or("no reason given").to_string(),
    };
    Err(ServerError::Refused { status: parts.status.as_u16(), error })
}

async fn answer_of<T: DeserializeOwned>(mut body: Incoming) -> Result<T, ServerError> {
    let bytes = whole(&mut body, ANSWER_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(ServerError::NotUnderstood)
}

async fn whole(body: &mut Incoming, bytes_max: usize) -> Result<Vec<u8>, ServerError> {
    let mut whole = Vec::new();
    while let Some(bytes) = next_bytes(body).await? {
        if whole.len() + bytes.len() > bytes_max {
            return Err(ServerError::TooLong);
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(whole)
}

/// The next bytes of an answer; `None` at its end.
pub(crate) async fn next_bytes(body: &mut Incoming) -> Result<Option<Bytes>, ServerError> {
    loop {
        let frame = tokio::time::timeout(SILENCE_MAX, body.frame()).await;
        match frame.map_err(|_| ServerError::Silent)? {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(bytes) = frame.map_err(ServerError::Exchange)?.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

struct ChannelBody(mpsc::Receiver<io::Result<Bytes>>);

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

//! The HTTP client of the command line: one connection per request, JSON and streams.
//!
//! Owner: the command that runs. Invariants: every wait has an end; nothing is retried here
//! (`follow` knows what may be asked twice); an answer is bounded in size. Absent: TLS, proxies,
//! redirects.

use std::io;
use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::target::Target;
use crate::api::shape::{ErrorBody, ErrorDetail};

/// What of a file is in memory while it is sent.
const PIECE_BYTES: usize = 256 << 10;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A page of the longest messages, each byte of them written as six.
const ANSWER_BYTES_MAX: usize = 128 << 20;
const ERROR_BYTES_MAX: usize = 1 << 20;
pub(crate) const EVENT_STREAM: &str = "text/event-stream";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("no dormouse answers at {url}; start one with `dormouse up`")]
    Unreachable {
        url: String,
        #[source]
        source: io::Error,
    },
    #[error("the connection to {url} was cut before the answer was whole")]
    Cut {
        url: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{url} was silent for {} s", span.as_secs())]
    Silent { url: String, span: Duration },
    #[error("{}", detail.message)]
    Answered { status: u16, detail: Box<ErrorDetail>, had_key: bool },
    #[error("what answers at {url} is no dormouse, or another version: {what}")]
    NotUnderstood { url: String, what: String },
}

impl ClientError {
    /// The daemon was not there, or not for long enough; it may come back.
    pub(crate) fn is_absence(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Cut { .. } | Self::Silent { .. } => true,
            Self::Answered { .. } | Self::NotUnderstood { .. } => false,
        }
    }
}

/// A request, as much of it as is not the same for all.
#[derive(Debug)]
pub(crate) struct Call {
    method: Method,
    path: String,
    headers: Vec<(HeaderName, String)>,
    body: CallBody,
}

#[derive(Debug)]
enum CallBody {
    Text(String),
    File { file: tokio::fs::File, bytes: u64 },
}

type SentBody = BoxBody<Bytes, io::Error>;

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            headers: Vec::new(),
            body: CallBody::Text(String::new()),
        }
    }

    pub(crate) fn post(path: impl Into<String>) -> Self {
        Self { method: Method::POST, ..Self::get(path) }
    }

    pub(crate) fn put(path: impl Into<String>) -> Self {
        Self { method: Method::PUT, ..Self::get(path) }
    }

    /// The first `bytes` of a file as the body, read while it is sent.
    pub(crate) fn file(mut self, file: tokio::fs::File, bytes: u64) -> Self {
        self.body = CallBody::File { file, bytes };
        self.header(header::CONTENT_LENGTH, bytes.to_string())
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        let text = serde_json::to_string(body).expect("bodies have text keys and no foreign types");
        self.body = CallBody::Text(text);
        self.header(header::CONTENT_TYPE, "application/json")
    }

    /// A large body takes its time to be sent: a mebibyte in a second is slow.
    fn answer_within(&self) -> Duration {
        match &self.body {
            CallBody::Text(_) => ANSWER_WITHIN,
            CallBody::File { bytes, .. } => ANSWER_WITHIN + Duration::from_secs(bytes >> 20),
        }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A file that has grown meanwhile is cut where it was; one that has shrunk breaks off.
fn pieces(
    file: tokio::fs::File,
    bytes: u64,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + Sync {
    unfold((file.take(bytes), bytes), |(mut file, left)| async move {
        if left == 0 {
            return None;
        }
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece).await;
        let read = match read {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            other => other,
        };
        match read {
            Ok(read) => Some((Ok(Frame::data(piece.into())), (file, left - read as u64))),
            Err(error) => Some((Err(error), (file, 0))),
        }
    })
}

#[derive(Debug, Clone)]
pub(crate) struct Client {
    target: Target,
    authorization: Option<HeaderValue>,
}

impl Client {
    pub(crate) fn new(target: Target, authorization: Option<HeaderValue>) -> Self {
        Self { target, authorization }
    }

    pub(crate) fn url(&self) -> String {
        self.target.to_string()
    }

    /// The answer's JSON; `null` if it has no body.
    pub(crate) async fn json(&self, call: Call) -> Result<Value, ClientError> {
        let answer = self.open(call).await?;
        let bytes = self.whole(answer.response.into_body(), ANSWER_BYTES_MAX).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|error| self.not_understood(error))
    }

    pub(crate) fn typed<T: DeserializeOwned>(&self, value: &Value) -> Result<T, ClientError> {
        T::deserialize(value).map_err(|error| self.not_understood(error))
    }

    /// An answer whose status is 2xx; any other is an error.
    pub(crate) async fn open(&self, call: Call) -> Result<Answer, ClientError> {
        let answer_within = call.answer_within();
        let request = self.request(call)?;
        let stream = self.connect().await?;
        let cut = |source| ClientError::Cut { url: self.url(), source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(cut)?;
        // Its failure is seen by whoever waits for the answer or its body.
        tokio::spawn(async move { connection.await.ok() });
        let answered = timeout(answer_within, sender.send_request(request)).await;
        let response = answered.map_err(|_| self.silent(answer_within))?.map_err(cut)?;
        if response.status().is_success() {
            return Ok(Answer { url: self.url(), response });
        }
        Err(self.refusal(response).await)
    }

    fn request(&self, call: Call) -> Result<Request<SentBody>, ClientError> {
        let mut builder = Request::builder()
            .method(call.method)
            .uri(format!("{}{}", self.target.prefix, call.path))
            .header(header::HOST, &self.target.authority)
            .header(header::USER_AGENT, concat!("dormouse/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            builder = builder.header(header::AUTHORIZATION, authorization);
        }
        for (name, value) in call.headers {
            builder = builder.header(name, value);
        }
        let body = match call.body {
            CallBody::Text(text) => {
                Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
            }
            CallBody::File { file, bytes } => BoxBody::new(StreamBody::new(pieces(file, bytes))),
        };
        builder.body(body).map_err(|error| self.not_understood(error))
    }

    async fn connect(&self) -> Result<TcpStream, ClientError> {
        let address = (self.target.host.as_str(), self.target.port);
        let connected = match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        connected
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|source| ClientError::Unreachable { url: self.url(), source })
    }

    async fn whole(&self, body: Incoming, bytes_max: usize) -> Result<Bytes, ClientError> {
        let collected = timeout(ANSWER_WITHIN, Limited::new(body, bytes_max).collect()).await;
        let error = match collected.map_err(|_| self.silent(ANSWER_WITHIN))? {
            Ok(whole) => return Ok(whole.to_bytes()),
            Err(error) => error,
        };
        match error.downcast::<hyper::Error>() {
            Ok(source) => Err(ClientError::Cut { url: self.url(), source: *source }),
            Err(other) if other.is::<LengthLimitError>() => {
                Err(self.not_understood("the answer is far too long"))
            }
            Err(other) => Err(self.not_understood(other)),
        }
    }

    async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = match self.whole(response.into_body(), ERROR_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(error) => return error,
        };
        let mut detail = match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => body.error,
            Err(_) => unexplained(status),
        };
        if let Some(seconds) = retry_after {
            detail.hint = format!("{} (in {seconds} s)", detail.hint);
        }
        let had_key = self.authorization.is_some();
        ClientError::Answered { status: status.as_u16(), detail: Box::new(detail), had_key }
    }

    fn silent(&self, span: Duration) -> ClientError {
        ClientError::Silent { url: self.url(), span }
    }

    pub(crate) fn not_understood(&self, what: impl ToString) -> ClientError {
        ClientError::NotUnderstood { url: self.url(), what: what.to_string() }
    }
}

fn unexplained(status: StatusCode) -> ErrorDetail {
    ErrorDetail {
        code: format!("http_{}", status.as_u16()),
        message: format!("it answered {status}, without saying why"),
        hint: "look at the log of the daemon, and whether --url leads to it".to_owned(),
        message_id: None,
    }
}

/// An answer whose body comes piece by piece.
#[derive(Debug)]
pub(crate) struct Answer {
    url: String,
    response: Response<Incoming>,
}

impl Answer {
    pub(crate) fn is_event_stream(&self) -> bool {
        let content_type = self.response.headers().get(header::CONTENT_TYPE);
        content_type.is_some_and(|value| value.as_bytes().starts_with(EVENT_STREAM.as_bytes()))
    }

    /// The next bytes; `None` at the end. Longer silence than `silence_max` is an error.
    pub(crate) async fn next(
        &mut self,
        silence_max: Option<Duration>,
    ) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame = match silence_max {
                None => self.response.body_mut().frame().await,
                Some(span) => timeout(span, self.response.body_mut().frame())
                    .await
                    .map_err(|_| ClientError::Silent { url: self.url.clone(), span })?,
            };
            let Some(frame) = frame else { return Ok(None) };
            let cut = |source| ClientError::Cut { url: self.url.clone(), source };
            // Trailers carry nothing for us.
            if let Ok(bytes) = frame.map_err(cut)?.into_data() {
                return Ok(Some(bytes));
            }
        }
    }
}

/// `text` as one segment of a path or one value of a query.
pub(crate) fn encoded(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ScriptedServer, answer, error_answer};
    use super::*;

    #[test]
    fn segments_cannot_leave_their_place() {
        assert_eq!(encoded("../a b/ü?#%:1"), "..%2Fa%20b%2F%C3%BC%3F%23%25:1");
    }

    #[tokio::test]
    async fn the_key_and_the_body_reach_the_daemon_and_json_comes_back() {
        let server = ScriptedServer::start(vec![answer("200 OK", r#"{"a": 1}"#)]).await;
        let value = server.client().json(Call::post("/v1/x").json(&[1, 2])).await.unwrap();
        assert_eq!(value, serde_json::json!({"a": 1}));
        let requests = server.requests();
        assert!(requests[0].starts_with("POST /v1/x HTTP/1.1\r\n"), "{}", requests[0]);
        assert!(requests[0].contains("authorization: Bearer dm_test\r\n"), "{}", requests[0]);
        assert!(requests[0].ends_with("\r\n\r\n[1,2]"), "{}", requests[0]);
    }

    #[tokio::test]
    async fn a_refusal_brings_the_daemons_words_and_when_to_come_back() {
        let full = error_answer("503 Service Unavailable\r\nRetry-After: 7", "queue_full");
        let server = ScriptedServer::start(vec![full]).await;
        let error = server.client().json(Call::get("/v1/x")).await.unwrap_err();
        let ClientError::Answered { status: 503, detail, had_key: true } = error else {
            panic!("{error:?}")
        };
        assert_eq!(detail.code, "queue_full");
        assert!(detail.hint.ends_with("(in 7 s)"), "{}", detail.hint);
    }

    #[tokio::test]
    async fn nobody_there_and_somebody_else_there_are_told_apart() {
        let gone = ScriptedServer::start(vec![]).await.client();
        let error = gone.json(Call::get("/v1/x")).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
        let other = ScriptedServer::start(vec![answer("200 OK", "<html>")]).await;
        let error = other.client().json(Call::get("/v1/x")).await.unwrap_err();
        assert!(matches!(error, ClientError::NotUnderstood { .. }), "{error:?}");
        let proxy = ScriptedServer::start(vec![answer("502 Bad Gateway", "<html>")]).await;
        let error = proxy.client().json(Call::get("/v1/x")).await.unwrap_err();
        assert!(error.to_string().contains("502"), "{error}");
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_is_no_answer() {
        let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_owned();
        let server = ScriptedServer::start(vec![half]).await;
        let error = server.client().json(Call::get("/v1/x")).await.unwrap_err();
        assert!(matches!(error, ClientError::Cut { .. }) && error.is_absence(), "{error:?}");
    }
}

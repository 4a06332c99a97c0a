//! A blocking HTTP/1.1 client: requests as they are, answers as they came.
//!
//! Owner: every test. Invariants: one connection per request; an answer that was cut short is an
//! error, never a short body. `call` methods that do not begin with `try_` fail the test. Absent:
//! redirects, TLS, keep-alive.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::sse::EventStream;
use super::{SOON, until};

const READ_WITHIN: Duration = Duration::from_secs(60);

/// Who asks, and where.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) key: Option<String>,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    address: SocketAddr,
    head: String,
    body: Vec<u8>,
}

impl Call {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.head.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").bytes(body.to_string().into_bytes())
    }

    pub(crate) fn bytes(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }

    pub(crate) fn try_open(self) -> io::Result<Answer> {
        let mut socket = TcpStream::connect(self.address)?;
        socket.set_read_timeout(Some(READ_WITHIN))?;
        socket.set_nodelay(true)?;
        let length = self.body.len();
        let head = format!("{}content-length: {length}\r\n\r\n", self.head);
        let sent = socket.write_all(&[head.as_bytes(), &self.body].concat());
        // A server that refuses early may answer and close before it has read everything.
        match Answer::read(socket) {
            Ok(answer) => Ok(answer),
            Err(error) => Err(sent.err().unwrap_or(error)),
        }
    }

    pub(crate) fn try_send(self) -> io::Result<Response> {
        self.try_open()?.whole()
    }

    #[track_caller]
    pub(crate) fn send(self) -> Response {
        let what = self.head.lines().next().unwrap_or_default().to_owned();
        self.try_send().unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// The answer as a stream of events, which it must be.
    #[track_caller]
    pub(crate) fn stream(self) -> EventStream {
        let what = self.head.lines().next().unwrap_or_default().to_owned();
        let answer = self.header("accept", "text/event-stream").try_open();
        let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        if answer.status != 200 {
            let response = answer.whole();
            panic!("{what}: {response:?}");
        }
        assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{what}");
        EventStream::of(answer.body)
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Body,
}

impl Answer {
    pub(crate) fn read(socket: TcpStream) -> io::Result<Self> {
        let mut reader = BufReader::new(socket);
        let status_line = read_line(&mut reader)?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| broken("no status line"))?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(&mut reader)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| broken("no header"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let find = |name: &str| headers.iter().find(|(has, _)| has == name).map(|(_, v)| v.clone());
        let length = match find("content-length") {
            Some(length) => Some(length.parse().map_err(|_| broken("no length"))?),
            None => None,
        };
        let is_chunked = find("transfer-encoding").is_some_and(|value| value == "chunked");
        let framing = match (is_chunked, length, status) {
            (true, _, _) => Framing::Chunked { left: 0, has_begun: false },
            (false, Some(length), _) => Framing::Length(length),
            (false, None, 204 | 304) => Framing::Length(0),
            (false, None, _) => Framing::ToTheEnd,
        };
        Ok(Self { status, headers, body: Body { reader, framing } })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(has, _)| has == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn whole(mut self) -> io::Result<Response> {
        let mut body = Vec::new();
        self.body.read_to_end(&mut body)?;
        Ok(Response { status: self.status, headers: self.headers, body })
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The body's bytes without their framing; an end before its time is an error.
#[derive(Debug)]
pub(crate) struct Body {
    reader: BufReader<TcpStream>,
    framing: Framing,
}

#[derive(Debug, Clone, Copy)]
enum Framing {
    Length(u64),
    Chunked { left: u64, has_begun: bool },
    Over,
    ToTheEnd,
}

impl Body {
    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.reader.get_ref().set_read_timeout(Some(timeout))
    }

    /// The size of the next chunk; 0 is the end.
    fn next_chunk(&mut self, has_begun: bool) -> io::Result<u64> {
        if has_begun && !read_line(&mut self.reader)?.is_empty() {
            return Err(broken("a chunk is longer than it said"));
        }
        let line = read_line(&mut self.reader)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| broken("no chunk size"))?;
        if size == 0 {
            while !read_line(&mut self.reader)?.is_empty() {}
        }
        Ok(size)
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunked { left: 0, has_begun } = self.framing {
            self.framing = match self.next_chunk(has_begun)? {
                0 => Framing::Over,
                left => Framing::Chunked { left, has_begun: true },
            };
        }
        let left = match self.framing {
            Framing::Over | Framing::Length(0) => return Ok(0),
            Framing::ToTheEnd => return self.reader.read(buffer),
            Framing::Length(left) | Framing::Chunked { left, .. } => left,
        };
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.reader.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.framing = match self.framing {
            Framing::Length(left) => Framing::Length(left - read as u64),
            Framing::Chunked { left, has_begun } => {
                Framing::Chunked { left: left - read as u64, has_begun }
            }
            other @ (Framing::Over | Framing::ToTheEnd) => other,
        };
        Ok(read)
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(has, _)| has == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let parsed = serde_json::from_slice(&self.body);
        parsed.unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }

    /// The JSON of an answer with this status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    /// The error's code; checks that it has its sentence and its hint.
    #[track_caller]
    pub(crate) fn error(&self, status: u16) -> String {
        let body = self.expect(status);
        let part = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
        assert!(!part("message").is_empty() && !part("hint").is_empty(), "{body}");
        part("code")
    }

    #[track_caller]
    pub(crate) fn retry_after_s(&self) -> u64 {
        let value = self.header("retry-after").expect("the answer says when to come again");
        value.parse().expect("whole seconds")
    }
}

impl Client {
    pub(crate) fn call(&self, method: &str, path: &str) -> Call {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        head.push_str("connection: close\r\n");
        if let Some(key) = &self.key {
            head.push_str(&format!("authorization: Bearer {key}\r\n"));
        }
        Call { address: self.address, head, body: Vec::new() }
    }

    pub(crate) fn with_key(&self, key: Option<&str>) -> Self {
        Self { key: key.map(str::to_owned), ..self.clone() }
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Response {
        self.call("GET", path).send()
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.call("POST", path).json(body).send()
    }

    pub(crate) fn submission(&self, session: &str, text: &str) -> Call {
        let path = format!("/v1/sessions/{session}/messages");
        self.call("POST", &path).json(&json!({ "text": text }))
    }

    /// Hands in a message, which must be accepted, and gives its id.
    #[track_caller]
    pub(crate) fn submit(&self, session: &str, text: &str) -> String {
        let accepted = self.submission(session, text).send().expect(202);
        accepted["message_id"].as_str().expect("an id").to_owned()
    }

    /// Hands in a message and follows it.
    #[track_caller]
    pub(crate) fn stream(&self, session: &str, text: &str) -> EventStream {
        self.submission(session, text).stream()
    }

    /// Follows a message from the beginning, or from the event whose id this is.
    #[track_caller]
    pub(crate) fn follow(&self, message: &str, last_event_id: Option<&str>) -> EventStream {
        let call = self.call("GET", &format!("/v1/messages/{message}"));
        match last_event_id {
            Some(id) => call.header("last-event-id", id).stream(),
            None => call.stream(),
        }
    }

    #[track_caller]
    pub(crate) fn message(&self, id: &str) -> Value {
        self.get(&format!("/v1/messages/{id}")).expect(200)
    }

    /// The message when it has ended, however it did.
    #[track_caller]
    pub(crate) fn ended(&self, id: &str) -> Value {
        let deadline = Instant::now() + SOON * 2;
        loop {
            let message = self.get(&format!("/v1/messages/{id}?wait=5s")).expect(200);
            if matches!(message["state"].as_str(), Some("answered" | "dead" | "cancelled")) {
                return message;
            }
            assert!(Instant::now() < deadline, "{message} does not end");
        }
    }

    /// The reply to a message that must be answered.
    #[track_caller]
    pub(crate) fn reply(&self, id: &str) -> String {
        let message = self.ended(id);
        assert_eq!(message["state"], "answered", "{message}");
        message["reply"].as_str().unwrap_or_default().to_owned()
    }

    /// Hands in a message and waits for its reply.
    #[track_caller]
    pub(crate) fn ask(&self, session: &str, text: &str) -> String {
        let id = self.submit(session, text);
        self.reply(&id)
    }

    #[track_caller]
    pub(crate) fn session(&self, session: &str) -> Value {
        self.get(&format!("/v1/sessions/{session}")).expect(200)
    }

    #[track_caller]
    pub(crate) fn generation(&self, session: &str) -> u64 {
        self.session(session)["generation"].as_u64().expect("a number")
    }

    #[track_caller]
    pub(crate) fn why(&self, session: &str) -> Value {
        self.get(&format!("/v1/sessions/{session}/why")).expect(200)
    }

    /// The newest decisions about a session, oldest first.
    #[track_caller]
    pub(crate) fn journal(&self, session: &str) -> Vec<Value> {
        let page = self.get(&format!("/v1/sessions/{session}/journal?limit=500")).expect(200);
        page["items"].as_array().expect("items").iter().rev().cloned().collect()
    }

    /// `wake`, `stop` or `restart`.
    #[track_caller]
    pub(crate) fn request(&self, session: &str, what: &str) -> Value {
        self.call("POST", &format!("/v1/sessions/{session}/{what}")).send().expect(200)
    }

    #[track_caller]
    pub(crate) fn phase_becomes(&self, session: &str, phase: &str) -> Value {
        until(&format!("{session} to be {phase}"), || {
            Some(self.session(session)).filter(|session| session["phase"] == phase)
        })
    }
}

/// The decisions of a kind, as `because` names it.
pub(crate) fn decisions<'a>(journal: &'a [Value], because: &str) -> Vec<&'a Value> {
    journal.iter().filter(|row| row["because"]["because"] == because).collect()
}

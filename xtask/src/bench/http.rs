//! A blocking HTTP/1.1 client for one connection that is kept alive, with event streams.
//!
//! Owner: benchmarks that measure one message at a time (`load` does many at once). Invariants: an
//! answer is read to its end before the next request goes out; a wait has a limit; what is not
//! understood is an error, never a guess. Absent: TLS, redirects, compression, a second try.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::error::BenchError;

const WAIT_MAX: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    token: String,
    /// Bytes that came and are not used up yet.
    received: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyLength {
    Bytes(usize),
    Chunked,
}

/// One event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamEvent {
    pub(super) name: String,
    pub(super) data: String,
}

impl Connection {
    pub(super) fn open(address: SocketAddr, token: &str) -> Result<Connection, BenchError> {
        let stream = TcpStream::connect(address).map_err(BenchError::http("connect"))?;
        stream.set_nodelay(true).map_err(BenchError::http("set up the connection"))?;
        stream
            .set_read_timeout(Some(WAIT_MAX))
            .map_err(BenchError::http("set up the connection"))?;
        Ok(Connection { stream, token: token.to_string(), received: Vec::new() })
    }

    /// Sends and reads the whole answer.
    pub(super) fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<Answer, BenchError> {
        self.send(method, path, "", body)?;
        let (status, length) = self.read_head()?;
        let body = match length {
            BodyLength::Bytes(bytes) => self.take(bytes)?,
            BodyLength::Chunked => {
                let mut body = Vec::new();
                while let Some(chunk) = self.read_chunk()? {
                    body.extend(chunk);
                }
                body
            }
        };
        Ok(Answer { status, body })
    }

    /// Sends and wants this status and JSON.
    pub(super) fn json(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
        wanted: u16,
    ) -> Result<Value, BenchError> {
        let answer = self.request(method, path, body)?;
        if answer.status != wanted {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            let (request, status) = (format!("{method} {path}"), answer.status);
            return Err(BenchError::Status { request, status, wanted, body });
        }
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// Hands in a message and gives the stream of what happens to it.
    pub(super) fn submit(
        &mut self,
        session: &str,
        text: &str,
    ) -> Result<EventStream<'_>, BenchError> {
        let path = format!("/v1/sessions/{session}/messages");
        let body = serde_json::json!({ "text": text }).to_string();
        self.send("POST", &path, "accept: text/event-stream\r\n", &body)?;
        let (status, length) = self.read_head()?;
        if (status, length) != (200, BodyLength::Chunked) {
            let body = match length {
                BodyLength::Bytes(bytes) => self.take(bytes)?,
                BodyLength::Chunked => Vec::new(),
            };
            let body = String::from_utf8_lossy(&body).into_owned();
            let request = format!("POST {path}");
            return Err(BenchError::Status { request, status, wanted: 200, body });
        }
        Ok(EventStream { connection: self, decoded: Vec::new(), is_over: false })
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Result<(), BenchError> {
        let (token, length) = (&self.token, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(request.as_bytes()).map_err(BenchError::http("send"))
    }

    fn read_head(&mut self) -> Result<(u16, BodyLength), BenchError> {
        let head = self.take_through(b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&head).into_owned();
        parse_head(&text).ok_or(BenchError::Answer { what: "a head of no known form", shown: text })
    }

    /// The next chunk of a chunked body; `None` at its end.
    fn read_chunk(&mut self) -> Result<Option<Vec<u8>>, BenchError> {
        let line = self.take_through(b"\r\n")?;
        let size = std::str::from_utf8(&line).ok().map(str::trim);
        let Some(size) = size.and_then(|size| usize::from_str_radix(size, 16).ok()) else {
            let shown = String::from_utf8_lossy(&line).into_owned();
            return Err(BenchError::Answer { what: "a chunk without a size", shown });
        };
        let mut chunk = self.take(size + 2)?;
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    fn take_through(&mut self, end: &[u8]) -> Result<Vec<u8>, BenchError> {
        loop {
            if let Some(at) = find(&self.received, end) {
                return self.take(at + end.len());
            }
            self.receive()?;
        }
    }

    fn take(&mut self, bytes: usize) -> Result<Vec<u8>, BenchError> {
        while self.received.len() < bytes {
            self.receive()?;
        }
        let rest = self.received.split_off(bytes);
        Ok(std::mem::replace(&mut self.received, rest))
    }

    fn receive(&mut self) -> Result<(), BenchError> {
        let mut bytes = [0; READ_BYTES];
        match self.stream.read(&mut bytes).map_err(BenchError::http("receive"))? {
            0 => {
                let shown = String::from_utf8_lossy(&self.received).into_owned();
                Err(BenchError::Answer { what: "an early end", shown })
            }
            count => {
                self.received.extend_from_slice(&bytes[..count]);
                Ok(())
            }
        }
    }
}

/// The answer to a message that is followed; the connection is free again after its end.
#[derive(Debug)]
pub(super) struct EventStream<'a> {
    connection: &'a mut Connection,
    decoded: Vec<u8>,
    is_over: bool,
}

impl EventStream<'_> {
    /// `None` after the last event. Comments are left out.
    pub(super) fn next_event(&mut self) -> Result<Option<StreamEvent>, BenchError> {
        loop {
            if let Some(at) = find(&self.decoded, b"\n\n") {
                let rest = self.decoded.split_off(at + 2);
                let text = std::mem::replace(&mut self.decoded, rest);
                match parse_event(&String::from_utf8_lossy(&text)) {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                }
            }
            if self.is_over {
                return Ok(None);
            }
            match self.connection.read_chunk()? {
                Some(chunk) => self.decoded.extend(chunk),
                None => self.is_over = true,
            }
        }
    }

    /// Waits for the first piece of the reply.
    pub(super) fn first_delta(&mut self) -> Result<String, BenchError> {
        while let Some(event) = self.next_event()? {
            match event.name.as_str() {
                "delta" => return text_of(&event.data),
                "done" | "error" => return Err(BenchError::Agent { said: event.data }),
                _status => {}
            }
        }
        Err(BenchError::Agent { said: "nothing".to_string() })
    }

    /// Reads to the end, which must be a reply.
    pub(super) fn finish(mut self) -> Result<(), BenchError> {
        let mut last = None;
        while let Some(event) = self.next_event()? {
            last = Some(event);
        }
        match last {
            Some(event) if event.name == "done" => Ok(()),
            other => Err(BenchError::Agent { said: format!("{other:?}") }),
        }
    }
}

fn text_of(delta: &str) -> Result<String, BenchError> {
    let data: Value = serde_json::from_str(delta)?;
    let text = data["text"].as_str();
    text.map(str::to_string).ok_or_else(|| BenchError::Agent { said: delta.to_string() })
}

/// Status and length of the body, from an answer's head with lower or mixed case names.
fn parse_head(head: &str) -> Option<(u16, BodyLength)> {
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            return Some((status, BodyLength::Bytes(value.trim().parse().ok()?)));
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return (value.trim() == "chunked").then_some((status, BodyLength::Chunked));
        }
    }
    None
}

fn parse_event(text: &str) -> Option<StreamEvent> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let name = field("event: ")?.to_string();
    Some(StreamEvent { name, data: field("data: ").unwrap_or_default().to_string() })
}

pub(super) fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server that reads one request and writes `answer` in pieces of `piece` bytes.
    fn answering(answer: &'static str, piece: usize) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the test connects");
            let mut request = [0; 4096];
            let read = stream.read(&mut request).expect("the test sends");
            assert!(find(&request[..read], b"authorization: Bearer dm_x\r\n").is_some());
            for part in answer.as_bytes().chunks(piece) {
                stream.write_all(part).expect("the test reads");
            }
        });
        Connection::open(address, "dm_x").expect("somebody listens")
    }

    #[test]
    fn an_answer_in_single_bytes_is_put_together() {
        let mut connection =
            answering("HTTP/1.1 202 Accepted\r\nContent-Length: 9\r\n\r\n{\"a\": 17}", 1);
        let answer = connection.json("POST", "/x", "{}", 202).expect("it is whole");
        assert_eq!(answer["a"], 17);
    }

    #[test]
    fn another_status_is_an_error_that_shows_the_body() {
        let mut connection =
            answering("HTTP/1.1 429 Too Many\r\ncontent-length: 4\r\n\r\nslow", 99);
        let error = connection.json("POST", "/x", "{}", 202).expect_err("it was refused");
        assert!(error.to_string().ends_with("with 429, not 202: slow"), "{error}");
    }

    #[test]
    fn events_are_read_across_chunk_borders() {
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
            a\r\nevent: sta\r\n16\r\ntus\ndata: {}\n\n: wait\n\n\r\n\
            29\r\nevent: delta\nid: 1.2\ndata: {\"text\":\"hi\"}\n\r\n\
            17\r\n\nevent: done\ndata: {}\n\n\r\n0\r\n\r\n";
        for piece in [1, 7, 999] {
            let mut connection = answering(answer, piece);
            let mut stream = connection.submit("a/b", "text").expect("it is a stream");
            assert_eq!(stream.first_delta().expect("there is one"), "hi");
            stream.finish().expect("it ends with a reply");
        }
    }

    #[test]
    fn an_early_end_is_an_error() {
        let mut connection = answering("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", 99);
        let error = connection.request("GET", "/", "").expect_err("six bytes are missing");
        assert!(error.to_string().contains("an early end: half"), "{error}");
    }
}

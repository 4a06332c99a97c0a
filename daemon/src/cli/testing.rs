//! A server on loopback that plays a script: each connection gets one prepared answer and is
//! closed.
//!
//! Invariant: after its last answer nothing listens any more, so the next client finds nobody.
//! Absent: any understanding of what is asked, beyond keeping it.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::client::Client;
use super::target::{Target, authorization};

#[derive(Debug)]
pub(crate) struct ScriptedServer {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl ScriptedServer {
    pub(crate) async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        if answers.is_empty() {
            drop(listener);
        } else {
            tokio::spawn(async move {
                for answer in answers {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let request = read_request(&mut stream).await;
                    kept.lock().unwrap().push(request);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                }
            });
        }
        Self { port, requests }
    }

    pub(crate) fn client(&self) -> Client {
        let target = Target::parse(&format!("http://127.0.0.1:{}", self.port)).unwrap();
        let key = authorization(&target, Some("dm_test"), None).unwrap();
        Client::new(target, key)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// The first lines, without the protocol: "GET /v1/agents".
    pub(crate) fn request_lines(&self) -> Vec<String> {
        let first_line =
            |request: &String| request.lines().next().unwrap_or_default().replace(" HTTP/1.1", "");
        self.requests().iter().map(first_line).collect()
    }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap() == 0 {
            return text;
        }
    }
}

/// `status` may carry further header lines.
pub(crate) fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) fn error_answer(status: &str, code: &str) -> String {
    let body = format!(
        r#"{{"error": {{"code": "{code}", "message": "it is {code}", "hint": "do something"}}}}"#
    );
    answer(status, &body)
}

/// A chunked event stream. Without `is_whole` the connection is cut after the last event.
pub(crate) fn events(events: &[String], is_whole: bool) -> String {
    let mut text = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                    Transfer-Encoding: chunked\r\n\r\n"
        .to_owned();
    for event in events {
        text.push_str(&format!("{:x}\r\n{event}\r\n", event.len()));
    }
    if is_whole {
        text.push_str("0\r\n\r\n");
    }
    text
}

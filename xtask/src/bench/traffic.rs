//! Clients and streams that see whatever a server does to them while it changes.
//!
//! Owner: `handover`. Invariants: every request that got no answer, or another one than was wanted,
//! is kept with its reason; a stream's numbers are checked one by one; nothing is tried again but
//! what every client of the server may try again: a connection that was closed between two answers
//! where the answer before said so, and a stream that can be resumed by its id. Absent: servers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::error::BenchError;

/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(20);
const FAILURES_KEPT: usize = 5;

#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    /// Header lines with their ends, for every request.
    pub(super) headers: String,
    /// The status of an answer that is well.
    pub(super) wanted: u16,
}

/// What the clients have seen together.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) reasons: Vec<String>,
    pub(super) longest: Duration,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.reasons.extend(other.reasons);
        self.reasons.truncate(FAILURES_KEPT);
        self.longest = self.longest.max(other.longest);
    }
}

/// Clients at work, until they are ended.
#[derive(Debug)]
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Clients {
    /// So many with a connection for each request, and so many that keep theirs. `request` gives
    /// method, path and body of a client's next request.
    pub(super) fn start(
        target: &Target,
        of_each: usize,
        request: impl Fn(usize, u64) -> (String, String) + Clone + Send + 'static,
    ) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..2 * of_each).map(|number| {
            let (target, stop, request) = (target.clone(), Arc::clone(&stop), request.clone());
            let keeps = number % 2 == 0;
            thread::spawn(move || work(&target, keeps, &stop, |round| request(number, round)))
        });
        Clients { threads: threads.collect(), stop }
    }

    pub(super) fn end(self) -> Result<Seen, BenchError> {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        for thread in self.threads {
            seen.add(thread.join().map_err(|_| BenchError::void("a client panicked"))?);
        }
        Ok(seen)
    }
}

fn work(
    target: &Target,
    keeps: bool,
    stop: &AtomicBool,
    request: impl Fn(u64) -> (String, String),
) -> Seen {
    let mut seen = Seen::default();
    let mut open: Option<BufReader<TcpStream>> = None;
    while !stop.load(Ordering::Relaxed) {
        let (head, body) = request(seen.requests);
        let begun_at = Instant::now();
        let result = connected(open.take(), target.address).and_then(|mut socket| {
            let (status, closes) = exchange(&mut socket, target, &head, &body)?;
            if keeps && !closes {
                open = Some(socket);
            }
            Ok(status)
        });
        seen.requests += 1;
        seen.longest = seen.longest.max(begun_at.elapsed());
        let reason = match result {
            Ok(status) if status == target.wanted => None,
            Ok(status) => Some(format!("status {status}")),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = reason {
            seen.failed += 1;
            seen.reasons.push(reason);
            seen.reasons.truncate(FAILURES_KEPT);
        }
        thread::sleep(PACE.saturating_sub(begun_at.elapsed()));
    }
    seen
}

fn connected(
    open: Option<BufReader<TcpStream>>,
    address: SocketAddr,
) -> io::Result<BufReader<TcpStream>> {
    if let Some(open) = open {
        return Ok(open);
    }
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(WAIT_MAX))?;
    Ok(BufReader::new(socket))
}

/// The status, and whether the connection ends with it.
fn exchange(
    socket: &mut BufReader<TcpStream>,
    target: &Target,
    head: &str,
    body: &str,
) -> io::Result<(u16, bool)> {
    send(socket.get_mut(), target, head, body)?;
    let head = Head::read(socket)?;
    let mut body = vec![0; head.length.unwrap_or(0)];
    socket.read_exact(&mut body)?;
    Ok((head.status, head.closes))
}

fn send(socket: &mut TcpStream, target: &Target, head: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let text = format!(
        "{head} HTTP/1.1\r\nhost: bench\r\n{}content-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}",
        target.headers
    );
    socket.write_all(text.as_bytes())
}

#[derive(Debug, Default)]
struct Head {
    status: u16,
    length: Option<usize>,
    is_chunked: bool,
    closes: bool,
}

impl Head {
    fn read(socket: &mut impl BufRead) -> io::Result<Head> {
        let mut head = Head::default();
        let status = line(socket)?;
        let word = status.split(' ').nth(1);
        head.status = word.and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        loop {
            let field = line(socket)?.to_ascii_lowercase();
            match field.split_once(':').map(|(name, value)| (name, value.trim())) {
                None => return Ok(head),
                Some(("content-length", value)) => head.length = value.parse().ok(),
                Some(("transfer-encoding", "chunked")) => head.is_chunked = true,
                Some(("connection", "close")) => head.closes = true,
                Some(_) => {}
            }
        }
    }
}

/// Without its end; an end of the connection is an error.
fn line(socket: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    socket.read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(text.trim_end_matches('\r').to_string())
}

/// A stream of events that is open.
struct Events {
    socket: BufReader<TcpStream>,
    is_chunked: bool,
    /// Of a chunk that is not used up.
    text: String,
}

struct Event {
    id: Option<String>,
    name: String,
    data: String,
}

impl Events {
    fn open(target: &Target, path: &str, after: Option<&str>) -> io::Result<Events> {
        let mut socket = connected(None, target.address)?;
        let resumed = after.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let headers = format!("{}accept: text/event-stream\r\n{resumed}", target.headers);
        let asking = Target { headers, ..target.clone() };
        send(socket.get_mut(), &asking, &format!("GET {path}"), "")?;
        let head = Head::read(&mut socket)?;
        if head.status != 200 {
            return Err(io::Error::other(format!("status {}", head.status)));
        }
        Ok(Events { socket, is_chunked: head.is_chunked, text: String::new() })
    }

    fn next_line(&mut self) -> io::Result<String> {
        if !self.is_chunked {
            return line(&mut self.socket);
        }
        loop {
            if let Some((first, rest)) = self.text.split_once('\n') {
                let first = first.trim_end_matches('\r').to_string();
                self.text = rest.to_string();
                return Ok(first);
            }
            let size = usize::from_str_radix(&line(&mut self.socket)?, 16);
            let mut chunk = vec![0; size.map_err(|_| io::ErrorKind::InvalidData)?];
            self.socket.read_exact(&mut chunk)?;
            line(&mut self.socket)?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.text.push_str(&String::from_utf8_lossy(&chunk));
        }
    }

    fn next(&mut self) -> io::Result<Event> {
        let mut event = Event { id: None, name: String::new(), data: String::new() };
        loop {
            let line = self.next_line()?;
            match line.split_once(':').map(|(name, value)| (name, value.trim_start())) {
                Some(("id", value)) => event.id = Some(value.to_string()),
                Some(("event", value)) => event.name = value.to_string(),
                Some(("data", value)) => event.data.push_str(value),
                Some(_) => {}
                None if line.is_empty() && event.data.is_empty() => {}
                None => return Ok(event),
            }
        }
    }
}

/// What became of one stream.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// It ended before it was over, and had to be opened again.
    pub(super) cuts: u64,
    /// What came is all that was said, each once.
    pub(super) is_whole: bool,
    pub(super) numbers: usize,
}

/// The numbers of a text, which must be 0, 1, 2 and so on.
fn count_of(text: &str) -> Option<usize> {
    let mut count = 0;
    for word in text.split_whitespace() {
        if word.parse() != Ok(count) {
            return None;
        }
        count += 1;
    }
    Some(count)
}

/// Follows a message of ours to its end, resuming by id.
pub(super) fn follow_message(target: Target, message: String) -> io::Result<Followed> {
    let path = format!("/v1/messages/{message}");
    let (mut followed, mut text, mut last) = (Followed::default(), String::new(), None);
    loop {
        let mut events = Events::open(&target, &path, last.as_deref())?;
        while let Ok(event) = events.next() {
            last = event.id.or(last);
            let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
            match event.name.as_str() {
                "delta" => text.push_str(data["text"].as_str().unwrap_or_default()),
                "done" => {
                    let reply = data["reply"].as_str().unwrap_or_default();
                    followed.numbers = count_of(&text).unwrap_or(0);
                    followed.is_whole = followed.numbers > 0 && text == reply;
                    return Ok(followed);
                }
                _other => {}
            }
        }
        followed.cuts += 1;
    }
}

/// Follows a stream of numbers that cannot be resumed, until it is told to stop.
pub(super) fn follow_numbers(target: Target, path: &str, stop: &AtomicBool) -> Followed {
    let mut followed = Followed { is_whole: true, ..Followed::default() };
    while !stop.load(Ordering::Relaxed) {
        let mut expected = 0_usize;
        let Ok(mut events) = Events::open(&target, path, None) else {
            followed.cuts += 1;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            match events.next() {
                Ok(event) if event.data.parse() == Ok(expected) => {
                    expected += 1;
                    followed.numbers += 1;
                }
                Ok(_) | Err(_) => {
                    followed.cuts += 1;
                    followed.is_whole = false;
                    break;
                }
            }
        }
    }
    followed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_one_by_one() {
        assert_eq!(count_of("0\n1\n2\n"), Some(3));
        assert_eq!(count_of("0\n2\n"), None, "a gap");
        assert_eq!(count_of("0\n1\n1\n"), None, "a repeat");
    }

    #[test]
    fn a_head_says_how_its_body_ends() {
        let text = b"HTTP/1.1 202 Accepted\r\nContent-Length: 7\r\nConnection: close\r\n\r\n";
        let head = Head::read(&mut &text[..]).unwrap();
        assert_eq!((head.status, head.length, head.closes), (202, Some(7), true));
        assert!(Head::read(&mut &b"HTTP/1.1 200 OK\r\nconte"[..]).is_err(), "it breaks off");
    }
}

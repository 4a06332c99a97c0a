//! One HTTP/1.1 request to an agent on loopback.
//!
//! Owner: the openai adapter. Invariants: nothing but loopback is ever dialled; one connection per
//! request, gone when the response is dropped; bodies are read within a bound.
//! Absent: TLS, redirects, retries, pooling.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::frames::Secret;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const HTTP_PORT: u16 = 80;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("the adapter's url {url:?} is not http://LOOPBACK[:PORT]/PATH")]
    Url { url: String },
    #[error("the adapter's url {url:?} is not on loopback")]
    NotLoopback { url: String },
    #[error("the adapter's header {name:?} cannot be sent")]
    Header { name: String },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("the connection ended: {}", root_words(.0))]
    Exchange(#[source] hyper::Error),
    #[error("the request cannot be written: {0}")]
    Request(#[source] hyper::http::Error),
    #[error("the body is longer than {0} bytes")]
    BodyTooLong(usize),
}

/// hyper's own words leave out the system's.
fn root_words(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Where an agent listens.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    addresses: Vec<SocketAddr>,
    authority: HeaderValue,
    /// Of the base url, without a slash at its end.
    pub(crate) base_path: String,
    headers: HeaderMap,
}

impl Target {
    pub(crate) fn new(url: &str, headers: &BTreeMap<String, Secret>) -> Result<Self, TargetError> {
        let malformed = || TargetError::Url { url: url.to_string() };
        let uri: Uri = url.parse().map_err(|_| malformed())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
        let authority = authority.ok_or_else(malformed)?;
        let port = authority.port_u16().unwrap_or(HTTP_PORT);
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let hosts = match host.parse::<IpAddr>() {
            Ok(ip) => vec![ip],
            Err(_) if host.eq_ignore_ascii_case("localhost") => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            }
            Err(_) => Vec::new(),
        };
        if hosts.is_empty() || !hosts.iter().all(IpAddr::is_loopback) {
            return Err(TargetError::NotLoopback { url: url.to_string() });
        }
        Ok(Self {
            addresses: hosts.into_iter().map(|host| SocketAddr::new(host, port)).collect(),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| malformed())?,
            base_path: uri.path().trim_end_matches('/').to_string(),
            headers: header_map(headers)?,
        })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Response<Incoming>, HttpError> {
        self.send(Request::get(path), Bytes::new()).await
    }

    pub(crate) async fn post_json(
        &self,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, HttpError> {
        let request = Request::post(path)
            .header("content-type", "application/json")
            .header("accept", "text/event-stream, application/json");
        self.send(request, body.into()).await
    }

    async fn send(
        &self,
        mut builder: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, HttpError> {
        if let Some(headers) = builder.headers_mut() {
            headers.insert("host", self.authority.clone());
            headers.extend(self.headers.clone());
        }
        let request = builder.body(Full::new(body)).map_err(HttpError::Request)?;
        let connecting = TcpStream::connect(self.addresses.as_slice());
        let stream = match tokio::time::timeout(CONNECT_WITHIN, connecting).await {
            Ok(connected) => connected.map_err(HttpError::Connect)?,
            Err(_) => return Err(HttpError::Connect(io::ErrorKind::TimedOut.into())),
        };
        // A request is one write and its answer's first byte is waited for: no reason to linger.
        let _best_effort = stream.set_nodelay(true);
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(HttpError::Exchange)?;
        // It ends by itself when the sender and the response are dropped; what goes wrong in it is
        // seen by whoever reads the response.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(HttpError::Exchange)
    }
}

fn header_map(headers: &BTreeMap<String, Secret>) -> Result<HeaderMap, TargetError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let unsendable = || TargetError::Header { name: name.clone() };
        let key: HeaderName = name.parse().map_err(|_| unsendable())?;
        map.insert(key, HeaderValue::from_str(&value.0).map_err(|_| unsendable())?);
    }
    Ok(map)
}

/// The next bytes of a body; `None` at its end.
pub(crate) async fn next_bytes(body: &mut Incoming) -> Result<Option<Bytes>, HttpError> {
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame.map_err(HttpError::Exchange)?.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// A whole body of at most `bytes_max` bytes.
pub(crate) async fn whole_body(
    body: &mut Incoming,
    bytes_max: usize,
) -> Result<Vec<u8>, HttpError> {
    let mut whole = Vec::new();
    while let Some(bytes) = next_bytes(body).await? {
        if whole.len() + bytes.len() > bytes_max {
            return Err(HttpError::BodyTooLong(bytes_max));
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(whole)
}

/// The beginning of a body; as much of it as came if it breaks off.
pub(crate) async fn head_of_body(body: &mut Incoming, bytes_max: usize) -> Vec<u8> {
    let mut head = Vec::new();
    while head.len() < bytes_max {
        match next_bytes(body).await {
            Ok(Some(bytes)) => head.extend_from_slice(&bytes),
            Ok(None) | Err(_) => break,
        }
    }
    head.truncate(bytes_max);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_on_loopback_is_a_target() {
        let none = BTreeMap::new();
        for url in ["http://127.0.0.1:8080/v1", "http://localhost/", "http://[::1]:80/v1/"] {
            assert!(Target::new(url, &none).is_ok(), "{url}");
        }
        for url in [
            "",
            "127.0.0.1:80",
            "/v1",
            "https://127.0.0.1/v1",
            "http://169.254.169.254/latest",
            "http://example.org/v1",
            "http://0.0.0.0:80/",
            "http://2130706433/",
            "http://127.0.0.1:{port}/v1",
        ] {
            assert!(Target::new(url, &none).is_err(), "{url}");
        }
    }

    #[test]
    fn the_base_path_has_no_slash_at_its_end() {
        let target = Target::new("http://127.0.0.1:1/v1/", &BTreeMap::new()).unwrap();
        assert_eq!(target.base_path, "/v1");
    }

    #[test]
    fn a_header_that_would_split_the_request_is_refused() {
        for (name, value) in [("a b", "x"), ("x-a", "1\r\nx-b: 2")] {
            let headers = BTreeMap::from([(name.to_string(), Secret(value.to_string()))]);
            assert!(Target::new("http://127.0.0.1:1/", &headers).is_err(), "{name} {value:?}");
        }
    }
}

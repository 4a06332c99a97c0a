//! One request to a bucket: signed, and tried again while that can help.
//!
//! Owner: the other files here. Invariants: all requests are idempotent, so that each may be tried
//! again after anything; what is tried again is signed anew; an answer that comes out is a good
//! one. Absent: bodies of answers.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use dormouse_core::manifest::Sha256Hash;
use futures_util::TryStreamExt as _;
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use object_store::aws::AwsAuthorizer;
use object_store::client::{
    HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
};
use tokio::time::Instant;

use super::error::error_code;
use super::{Bucket, ObjectError, Patience};

const ERROR_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// Empty: the bucket itself.
    pub(super) key: &'a str,
    pub(super) query: Vec<(&'a str, &'a str)>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
    /// Of the body, where it is known already.
    pub(super) body_hash: Option<Sha256Hash>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, key: &'a str) -> Self {
        let (query, headers) = (Vec::new(), Vec::new());
        Self { method, key, query, headers, body: Bytes::new(), body_hash: None }
    }
}

/// How much of the patience is used up.
#[derive(Debug)]
pub(super) struct Tries {
    begun_at: Instant,
    tries: u32,
}

impl Tries {
    pub(super) fn new() -> Self {
        Self { begun_at: Instant::now(), tries: 0 }
    }

    /// After a failure: waits for the next try, or says that there is none.
    pub(super) async fn pause(&mut self, patience: &Patience, key: &str, why: String) -> Tried {
        self.tries += 1;
        let doubled = patience.first_pause.saturating_mul(1 << (self.tries - 1).min(16));
        let pause = shortened(doubled.min(patience.longest_pause));
        let is_over = self.begun_at.elapsed() + pause > patience.deadline;
        if self.tries >= patience.tries || is_over {
            let key = key.to_owned();
            return Err(ObjectError::Unavailable { key, why, tries: self.tries });
        }
        tracing::debug!(key, why, tries = self.tries, ?pause, "the object store is tried again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

pub(super) type Tried = Result<(), ObjectError>;

/// By up to a half, so that those who failed together do not come back together.
fn shortened(pause: Duration) -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let share = now.map_or(0, |now| now.subsec_micros() % 512);
    pause.mul_f64(1.0 - f64::from(share) / 1024.0)
}

enum Failure {
    Final(ObjectError),
    Passing(String),
}

impl Bucket {
    /// The answer is a 2xx.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<HttpResponse, ObjectError> {
        self.send_within(ask, &mut Tries::new()).await
    }

    pub(super) async fn send_within(
        &self,
        ask: &Ask<'_>,
        tries: &mut Tries,
    ) -> Result<HttpResponse, ObjectError> {
        loop {
            match self.send_once(ask).await {
                Ok(response) => return Ok(response),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(why)) => {
                    tries.pause(&self.0.patience, self.shown(ask.key), why).await?;
                }
            }
        }
    }

    /// What an error names.
    pub(super) fn shown<'a>(&'a self, key: &'a str) -> &'a str {
        if key.is_empty() { &self.0.name } else { key }
    }

    async fn send_once(&self, ask: &Ask<'_>) -> Result<HttpResponse, Failure> {
        let request = self.signed(ask).await.map_err(Failure::Final)?;
        let answer = self.0.http.execute(request).await;
        let response = answer.map_err(|error| Failure::Passing(in_words(&error).to_owned()))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = match bounded(response.into_body(), ERROR_BYTES_MAX).await {
            Ok(body) => body.unwrap_or_default(),
            Err(error) => return Err(Failure::Passing(in_words(&error).to_owned())),
        };
        let is_passing = status.is_server_error()
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT
            );
        if is_passing {
            let code = error_code(&body).map_or(String::new(), |code| format!(" {code}"));
            return Err(Failure::Passing(format!("{}{code}", status.as_u16())));
        }
        let error = ObjectError::of_status(ask.key, &self.0.name, status, &body);
        Err(Failure::Final(error))
    }

    async fn signed(&self, ask: &Ask<'_>) -> Result<HttpRequest, ObjectError> {
        let wrong = |why| ObjectError::Answer { key: self.shown(ask.key).to_owned(), why };
        let mut request = http::Request::builder().method(&ask.method).uri(self.uri(ask));
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        let request = request.body(HttpRequestBody::from(ask.body.clone()));
        let mut request = request.map_err(|_| wrong("the key fits into no address"))?;
        let Some(signer) = &self.0.signer else { return Ok(request) };
        let credentials = signer.credentials().get_credential().await;
        let credentials = credentials.map_err(|_| wrong("there are no credentials"))?;
        let authorizer = AwsAuthorizer::new(&credentials, "s3", &self.0.region);
        let hash = ask.body_hash.as_ref().map(|hash| hash.0.as_slice());
        let signed = authorizer.try_authorize(&mut request, hash);
        signed.map_err(|_| wrong("the request could not be signed"))?;
        Ok(request)
    }

    fn uri(&self, ask: &Ask<'_>) -> String {
        let mut uri = self.0.url.clone();
        if !ask.key.is_empty() {
            uri.push('/');
            encode(&mut uri, ask.key, b"/");
        }
        for (index, (name, value)) in ask.query.iter().enumerate() {
            uri.push(if index == 0 { '?' } else { '&' });
            encode(&mut uri, name, b"");
            uri.push('=');
            encode(&mut uri, value, b"");
        }
        uri
    }
}

fn encode(uri: &mut String, text: &str, also: &[u8]) {
    for byte in text.bytes() {
        let is_plain =
            byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte);
        if is_plain {
            uri.push(char::from(byte));
        } else {
            write!(uri, "%{byte:02X}").expect("a String takes whatever is written");
        }
    }
}

/// `None`: it is longer.
pub(super) async fn bounded(
    body: HttpResponseBody,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, HttpError> {
    let (mut stream, mut gathered) = (body.bytes_stream(), Vec::new());
    while let Some(piece) = stream.try_next().await? {
        if gathered.len() + piece.len() > bytes_max {
            return Ok(None);
        }
        gathered.extend_from_slice(&piece);
    }
    Ok(Some(gathered))
}

/// Its own text may have an address in it.
pub(super) fn in_words(error: &HttpError) -> &'static str {
    if let Some(words) = about_tls(error) {
        return words;
    }
    match error.kind() {
        HttpErrorKind::Connect => "no connection",
        HttpErrorKind::Timeout => "no word in time",
        HttpErrorKind::Request | HttpErrorKind::Interrupted => "the connection broke",
        _ => "the connection failed",
    }
}

/// What is wrong with the encryption is a matter of the configuration: it has words of its own.
fn about_tls(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    match error.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(_)) => {
            return Some("a certificate that is not trusted");
        }
        Some(_) => return Some("no TLS is spoken there"),
        None => {}
    }
    // An error that was made into one of input and output is not its source, but in it.
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => about_tls(inner),
        None => about_tls(error.source()?),
    }
}

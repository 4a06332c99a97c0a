//! Reading an object: one version of it, from its first byte to its last.
//!
//! Owner: `objects`. Invariants: a body that breaks is gone on with where it broke, and only in the
//! same version; a stream ends after as many bytes as were announced, or with an error. Absent:
//! hashes: whoever knows one checks it.

use bytes::Bytes;
use dormouse_core::manifest::ContentId;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, TryStreamExt as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use object_store::client::{HttpError, HttpResponse};

use super::request::{Ask, Tries, in_words};
use super::{Bucket, ObjectError};
use crate::files::reading::{PieceStream, pieces};

/// An object that breaks more often than this is given up, though each time a little more came.
const BREAKS_MAX: u32 = 100;

/// An object that is being read.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct OpenObject {
    pub bytes: u64,
    /// `None`: the server named no version.
    pub version: Option<ContentId>,
    pub pieces: PieceStream<ObjectError>,
}

struct Reading {
    bucket: Bucket,
    key: String,
    version: Option<ContentId>,
    body: BoxStream<'static, Result<Bytes, HttpError>>,
    at: u64,
    bytes: u64,
    tries: Tries,
    breaks: u32,
}

impl Bucket {
    /// `version`: fails with `Changed` where the object is another one by now.
    pub async fn get(
        &self,
        key: &str,
        version: Option<&ContentId>,
    ) -> Result<OpenObject, ObjectError> {
        let mut ask = Ask::new(Method::GET, key);
        ask.headers.extend(if_match(version));
        let mut tries = Tries::new();
        let response = self.send_within(&ask, &mut tries).await?;
        let found = self.checked_version(&response, key, version)?;
        let bytes = number(response.headers(), &header::CONTENT_LENGTH);
        let bytes = bytes.ok_or_else(|| answer(key, "an object without a length"))?;
        let body = response.into_body().bytes_stream();
        let reading = Reading {
            bucket: self.clone(),
            key: key.to_owned(),
            version: found.clone(),
            body,
            at: 0,
            bytes,
            tries,
            breaks: 0,
        };
        Ok(OpenObject { bytes, version: found, pieces: pieces(reading.stream()) })
    }

    /// Its length and version; `None`: it is not there.
    pub async fn head(&self, key: &str) -> Result<Option<(u64, Option<ContentId>)>, ObjectError> {
        let response = match self.send(&Ask::new(Method::HEAD, key)).await {
            Ok(response) => response,
            Err(ObjectError::Gone { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = number(response.headers(), &header::CONTENT_LENGTH);
        let bytes = bytes.ok_or_else(|| answer(key, "an object without a length"))?;
        Ok(Some((bytes, version_of(response.headers()))))
    }

    /// Some servers do not look at `If-Match`; what they send is looked at here.
    fn checked_version(
        &self,
        response: &HttpResponse,
        key: &str,
        wanted: Option<&ContentId>,
    ) -> Result<Option<ContentId>, ObjectError> {
        let found = version_of(response.headers());
        if wanted.is_some() && found.as_ref() != wanted {
            return Err(ObjectError::Changed { key: key.to_owned() });
        }
        Ok(found)
    }
}

impl Reading {
    fn stream(self) -> impl Stream<Item = Result<Bytes, ObjectError>> + Send + 'static {
        stream::try_unfold(self, |mut reading| async move {
            let piece = reading.next().await?;
            Ok(piece.map(|piece| (piece, reading)))
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ObjectError> {
        loop {
            let why = match self.body.try_next().await {
                Ok(Some(piece)) if piece.is_empty() => continue,
                Ok(Some(piece)) => {
                    self.at += piece.len() as u64;
                    if self.at > self.bytes {
                        return Err(answer(&self.key, "more bytes than were announced"));
                    }
                    // It moves: the next break has all the patience again.
                    self.tries = Tries::new();
                    return Ok(Some(piece));
                }
                Ok(None) if self.at == self.bytes => return Ok(None),
                Ok(None) => "the body ended too early",
                Err(error) => in_words(&error),
            };
            self.go_on(why).await?;
        }
    }

    async fn go_on(&mut self, why: &str) -> Result<(), ObjectError> {
        self.breaks += 1;
        if self.breaks > BREAKS_MAX || self.version.is_none() {
            let (key, why, tries) = (self.key.clone(), why.to_owned(), self.breaks);
            return Err(ObjectError::Unavailable { key, why, tries });
        }
        self.tries.pause(&self.bucket.0.patience, &self.key, why.to_owned()).await?;
        let mut ask = Ask::new(Method::GET, &self.key);
        ask.headers.extend(if_match(self.version.as_ref()));
        let range = HeaderValue::from_str(&format!("bytes={}-", self.at));
        ask.headers.push((header::RANGE, range.expect("digits can stand in a header")));
        let response = self.bucket.send_within(&ask, &mut self.tries).await?;
        self.bucket.checked_version(&response, &self.key, self.version.as_ref())?;
        let wanted = format!("bytes {}-{}/{}", self.at, self.bytes - 1, self.bytes);
        let range = response.headers().get(header::CONTENT_RANGE);
        let is_rest = response.status() == StatusCode::PARTIAL_CONTENT
            && range.is_some_and(|range| range.as_bytes() == wanted.as_bytes());
        if !is_rest {
            return Err(answer(&self.key, "another part than was asked for"));
        }
        self.body = response.into_body().bytes_stream();
        Ok(())
    }
}

fn if_match(version: Option<&ContentId>) -> Option<(HeaderName, HeaderValue)> {
    let ContentId::Etag(etag) = version? else { return None };
    let value = HeaderValue::from_str(&format!("\"{etag}\""));
    Some((header::IF_MATCH, value.expect("a version is printable ASCII")))
}

fn version_of(headers: &HeaderMap) -> Option<ContentId> {
    ContentId::etag(headers.get(header::ETAG)?.to_str().ok()?)
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

fn answer(key: &str, why: &'static str) -> ObjectError {
    ObjectError::Answer { key: key.to_owned(), why }
}

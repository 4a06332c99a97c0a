//! Writing objects: small ones at once, large ones in parts, and removing them.
//!
//! Owner: `blobs`. Invariants: an object is there whole or not at all; an upload that is not
//! completed is given up, as far as the server can be reached. Absent: memory for more than the
//! parts that are under way. A bucket should drop uploads that nobody completes, by a rule of its
//! own: a daemon that dies cannot.

use bytes::Bytes;
use dormouse_core::manifest::Sha256Hash;
use http::{Method, header};
use serde::Deserialize;
use std::fmt::Write as _;

use super::request::{Ask, bounded};
use super::{Bucket, ObjectError};

const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename = "InitiateMultipartUploadResult", rename_all = "PascalCase")]
struct Begun {
    upload_id: String,
}

/// An object that is being written in parts.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    bucket: Bucket,
    key: String,
    id: String,
}

/// A part that is there.
#[derive(Debug)]
pub(crate) struct Part {
    number: usize,
    etag: String,
}

impl Bucket {
    pub(crate) async fn put(
        &self,
        key: &str,
        body: Bytes,
        body_hash: Option<Sha256Hash>,
    ) -> Result<(), ObjectError> {
        let ask = Ask { body, body_hash, ..Ask::new(Method::PUT, key) };
        self.send(&ask).await.map(drop)
    }

    /// It is no error that it is not there.
    pub(crate) async fn remove(&self, key: &str) -> Result<(), ObjectError> {
        match self.send(&Ask::new(Method::DELETE, key)).await {
            Ok(_) | Err(ObjectError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn begin_upload(&self, key: &str) -> Result<Upload, ObjectError> {
        let ask = Ask { query: vec![("uploads", "")], ..Ask::new(Method::POST, key) };
        let response = self.send(&ask).await?;
        let wrong = |why| ObjectError::Answer { key: key.to_owned(), why };
        let body = bounded(response.into_body(), ANSWER_BYTES_MAX).await.ok().flatten();
        let text = body.and_then(|body| String::from_utf8(body).ok());
        let text = text.ok_or_else(|| wrong("the begin of an upload that cannot be read"))?;
        let begun: Begun = quick_xml::de::from_str(&text)
            .map_err(|_| wrong("the begin of an upload that cannot be read"))?;
        Ok(Upload { bucket: self.clone(), key: key.to_owned(), id: begun.upload_id })
    }
}

impl Upload {
    /// `number` counts from 1. All parts but the last are of at least 5 MiB.
    pub(crate) async fn put_part(&self, number: usize, body: Bytes) -> Result<Part, ObjectError> {
        let text = number.to_string();
        let query = vec![("partNumber", &*text), ("uploadId", &*self.id)];
        let ask = Ask { query, body, ..Ask::new(Method::PUT, &self.key) };
        let response = self.bucket.send(&ask).await?;
        let etag = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok());
        let Some(etag) = etag else {
            return Err(ObjectError::Answer {
                key: self.key.clone(),
                why: "a part has no version",
            });
        };
        Ok(Part { number, etag: etag.to_owned() })
    }

    pub(crate) async fn complete(&self, mut parts: Vec<Part>) -> Result<(), ObjectError> {
        parts.sort_by_key(|part| part.number);
        let mut text = "<CompleteMultipartUpload>".to_owned();
        for Part { number, etag } in &parts {
            let etag = quick_xml::escape::escape(etag);
            let part =
                format_args!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
            text.write_fmt(part).expect("a String takes whatever is written");
        }
        text.push_str("</CompleteMultipartUpload>");
        let query = vec![("uploadId", &*self.id)];
        let ask = Ask { query, body: text.into(), ..Ask::new(Method::POST, &self.key) };
        let response = match self.bucket.send(&ask).await {
            Ok(response) => response,
            // An earlier try may have done it, and its answer was lost.
            Err(ObjectError::Gone { .. }) if self.bucket.head(&self.key).await?.is_some() => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // An error may come after the 200, once the server has put the parts together.
        let body = bounded(response.into_body(), ANSWER_BYTES_MAX).await.ok().flatten();
        let is_done = body.is_some_and(|body| {
            String::from_utf8_lossy(&body).contains("CompleteMultipartUploadResult")
        });
        if is_done {
            return Ok(());
        }
        let (key, why) = (self.key.clone(), "its parts were not put together".to_owned());
        Err(ObjectError::Unavailable { key, why, tries: 1 })
    }

    pub(crate) async fn give_up(&self) {
        let query = vec![("uploadId", &*self.id)];
        let ask = Ask { query, ..Ask::new(Method::DELETE, &self.key) };
        if let Err(error) = self.bucket.send(&ask).await {
            tracing::warn!(%error, "an upload in parts could not be given up");
        }
    }
}

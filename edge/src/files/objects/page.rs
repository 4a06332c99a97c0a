//! Listing: one page of keys, as the server sends them.
//!
//! Owner: `objects`. Invariants: keys are unchanged, markers of folders with them; a server that
//! says that there is more says where, and never the same twice. Absent: what a key may be.

use std::time::{Duration, SystemTime};

use http::Method;
use serde::Deserialize;

use super::request::{Ask, Tries, bounded, in_words};
use super::{Bucket, Listed, ObjectError};

const PAGE_BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) objects: Vec<Listed>,
    /// Where the next page begins.
    pub(crate) next: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename = "ListBucketResult", rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_continuation_token: Option<String>,
    #[serde(default)]
    contents: Vec<Contents>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    size: u64,
    #[serde(default, rename = "ETag")]
    etag: Option<String>,
    #[serde(default)]
    last_modified: Option<String>,
}

impl Bucket {
    pub(crate) async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Page, ObjectError> {
        let mut ask = Ask::new(Method::GET, "");
        ask.query = vec![("list-type", "2"), ("prefix", prefix)];
        ask.query.extend(after.map(|token| ("continuation-token", token)));
        let wrong = |why| ObjectError::Answer { key: format!("{}/{prefix}", self.0.name), why };
        let mut tries = Tries::new();
        let body = loop {
            let response = self.send_within(&ask, &mut tries).await?;
            match bounded(response.into_body(), PAGE_BYTES_MAX).await {
                Ok(body) => break body.ok_or_else(|| wrong("a listing without end"))?,
                Err(error) => {
                    let why = in_words(&error).to_owned();
                    tries.pause(&self.0.patience, self.shown(prefix), why).await?;
                }
            }
        };
        let text = std::str::from_utf8(&body).map_err(|_| wrong("a listing that is no text"))?;
        let answer: Answer =
            quick_xml::de::from_str(text).map_err(|_| wrong("a listing that cannot be read"))?;
        let next = answer.next_continuation_token.filter(|_| answer.is_truncated);
        if answer.is_truncated && (next.is_none() || next.as_deref() == after) {
            return Err(wrong("a listing that has more and does not say where"));
        }
        let objects = answer.contents.into_iter().map(|object| Listed {
            key: object.key,
            bytes: object.size,
            etag: object.etag,
            modified: object.last_modified.as_deref().and_then(parse_time),
        });
        Ok(Page { objects: objects.collect(), next })
    }
}

/// `YYYY-MM-DDThh:mm:ss.000Z`, as a listing writes it.
pub(super) fn parse_time(text: &str) -> Option<SystemTime> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let shape = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let has_shape = shape.iter().all(|(at, byte)| text.as_bytes().get(*at) == Some(byte))
        && text.ends_with('Z');
    if !has_shape {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // A year begins in March, so that the day that some years have is its last one.
    let (from_march, years) = if month > 2 { (month - 3, year) } else { (month + 9, year - 1) };
    let days_before_month = (153 * from_march + 2) / 5;
    let leap_days = years / 4 - years / 100 + years / 400;
    let days = years * 365 + leap_days + days_before_month + day - 1;
    /// From the March of the year 0 to the first day of 1970.
    const DAYS_TO_1970: u64 = 719_468;
    let seconds = (days - DAYS_TO_1970) * 86_400
        + number(11, 13)? * 3_600
        + number(14, 16)? * 60
        + number(17, 19)?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

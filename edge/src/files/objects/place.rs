//! A place in a bucket, as it is written in a config.
//!
//! Owner: the config. Invariant: a prefix has no empty, `.` or `..` name in it. Absent: whether it
//! is there.

use std::fmt;
use std::str::FromStr;

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no place in a bucket: it is written s3://BUCKET/PREFIX")]
pub struct PlaceError(String);

/// `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectPlace {
    pub bucket: String,
    /// Empty, or ends in `/`.
    pub prefix: String,
}

impl FromStr for ObjectPlace {
    type Err = PlaceError;
    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let wrong = || PlaceError(text.to_owned());
        let rest = text.strip_prefix("s3://").ok_or_else(wrong)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_plain = prefix.is_empty()
            || prefix.split('/').all(|name| !matches!(name, "" | "." | ".."))
                && !prefix.chars().any(char::is_control);
        if !is_bucket_name(bucket) || !is_plain {
            return Err(wrong());
        }
        let slash = if prefix.is_empty() { "" } else { "/" };
        Ok(Self { bucket: bucket.to_owned(), prefix: format!("{prefix}{slash}") })
    }
}

impl fmt::Display for ObjectPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

pub(super) fn is_bucket_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && name.bytes().any(|b| b.is_ascii_alphanumeric())
}

//! Why an object could not be read or written, in words for whoever configured it.
//!
//! Owner: `request`. Invariants: each names the key; of what the server wrote only its error code
//! is repeated, cut to the letters that such a code has. Absent: retries, which came before.

use http::StatusCode;

/// The longest error code that is repeated.
const CODE_BYTES_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    #[error(
        "{key}: the object store refuses access ({code}): check the credentials and what they may"
    )]
    Denied { key: String, code: String },
    #[error("{key} vanished since it was listed")]
    Gone { key: String },
    #[error("{key} changed since it was listed")]
    Changed { key: String },
    #[error("there is no bucket {bucket}: check its name, the region and the endpoint")]
    NoBucket { bucket: String },
    /// Tried until the deadline.
    #[error("{key}: the object store does not answer well ({why}), {tries} tries")]
    Unavailable { key: String, why: String, tries: u32 },
    #[error("{key}: the object store refuses the request ({code})")]
    Refused { key: String, code: String },
    #[error("{key}: what answers does not speak like an object store ({why})")]
    Answer { key: String, why: &'static str },
}

impl ObjectError {
    /// Whether the same may succeed a little later; for what changed, after another listing.
    pub fn is_retryable(&self) -> bool {
        match self {
            ObjectError::Unavailable { .. } | ObjectError::Changed { .. } => true,
            ObjectError::Denied { .. }
            | ObjectError::Gone { .. }
            | ObjectError::NoBucket { .. }
            | ObjectError::Refused { .. }
            | ObjectError::Answer { .. } => false,
        }
    }

    /// Whether the listing is to blame, and a new one helps.
    pub fn needs_new_listing(&self) -> bool {
        matches!(self, ObjectError::Gone { .. } | ObjectError::Changed { .. })
    }

    /// For an answer that no other try would make better.
    pub(super) fn of_status(key: &str, bucket: &str, status: StatusCode, body: &[u8]) -> Self {
        let is_bucket = key.is_empty();
        let key = if is_bucket { bucket } else { key }.to_owned();
        let code = error_code(body).unwrap_or_else(|| status.as_u16().to_string());
        match status {
            _ if code == "NoSuchBucket" => ObjectError::NoBucket { bucket: bucket.to_owned() },
            StatusCode::NOT_FOUND if is_bucket => {
                ObjectError::NoBucket { bucket: bucket.to_owned() }
            }
            StatusCode::NOT_FOUND => ObjectError::Gone { key },
            StatusCode::PRECONDITION_FAILED => ObjectError::Changed { key },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ObjectError::Denied { key, code },
            _ if status.is_redirection() => ObjectError::Refused {
                key,
                code: format!("{code}: the bucket is in another region, or elsewhere"),
            },
            _ => ObjectError::Refused { key, code },
        }
    }
}

/// The text of `<Code>`, if it looks like one.
pub(super) fn error_code(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let code = text.split_once("<Code>")?.1.split_once("</Code>")?.0;
    let is_code = (1..=CODE_BYTES_MAX).contains(&code.len())
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_code.then(|| code.to_owned())
}

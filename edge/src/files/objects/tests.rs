//! What is refused before any server is asked, what errors say, and how a listing's times are read.
//!
//! Owner: the tests of `objects`. Absent: a server; `tests/files_s3.rs` has one.

use std::time::{Duration, SystemTime};

use http::StatusCode;

use super::error::error_code;
use super::page::parse_time;
use super::*;

fn server(endpoint: Option<&str>) -> ObjectServer {
    ObjectServer {
        endpoint: endpoint.map(str::to_owned),
        region: "eu-central-1".to_owned(),
        credentials: Some(ObjectCredentials {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "very-secret".to_owned(),
            session_token: Some("token-secret".to_owned()),
        }),
        allow_http: false,
        certificates_pem: None,
        patience: Patience::default(),
    }
}

#[test]
fn a_place_is_a_bucket_and_a_plain_prefix() {
    let place = |text: &str| text.parse::<ObjectPlace>();
    for (text, bucket, prefix) in [
        ("s3://data", "data", ""),
        ("s3://data/", "data", ""),
        ("s3://my.data/a/b", "my.data", "a/b/"),
        ("s3://my.data/a/b/", "my.data", "a/b/"),
    ] {
        let expected = ObjectPlace { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        assert_eq!(place(text).unwrap(), expected, "{text}");
        assert_eq!(place(&expected.to_string()).unwrap(), expected);
    }
    for text in [
        "data",
        "s3://",
        "s3:///x",
        "http://data/x",
        "s3://da ta",
        "s3://..",
        "s3://d/a//b",
        "s3://d/../x",
        "s3://d/a/.",
        "s3://d/a\n",
    ] {
        assert!(place(text).is_err(), "{text:?}");
    }
}

#[tokio::test]
async fn an_endpoint_is_encrypted_or_on_this_machine() {
    for endpoint in [
        None,
        Some("https://s3.example.com"),
        Some("https://s3.example.com:9000/"),
        Some("http://127.0.0.1:9000"),
        Some("http://[::1]:9000"),
        Some("http://localhost"),
    ] {
        assert!(server(endpoint).bucket("data").is_ok(), "{endpoint:?}");
    }
    let http = ObjectServer { allow_http: true, ..server(Some("http://minio:9000")) };
    assert!(http.bucket("data").is_ok());
    let error = server(Some("http://minio:9000")).bucket("data").unwrap_err();
    assert_eq!(error, ServerError::Unencrypted("minio".to_owned()));
    for endpoint in ["minio:9000", "ftp://minio", "/x", "", "https://me:pass@minio", "https://m/?q"]
    {
        let error = server(Some(endpoint)).bucket("data").unwrap_err();
        assert!(matches!(error, ServerError::Endpoint(_)), "{endpoint:?}: {error}");
        assert!(!error.to_string().contains("pass"), "{error}");
    }
    assert!(matches!(server(None).bucket("a/b"), Err(ServerError::BucketName(_))));
    let mut odd = server(None);
    odd.credentials.as_mut().unwrap().secret_access_key = "two\nlines".to_owned();
    assert_eq!(odd.bucket("data").unwrap_err(), ServerError::Character);
}

#[tokio::test]
async fn credentials_are_shown_nowhere() {
    let server = server(None);
    let bucket = server.bucket("data").unwrap();
    let shown = format!("{server:?} {bucket:?} {:?}", server.credentials);
    for secret in ["AKIDEXAMPLE", "very-secret", "token-secret"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn an_error_repeats_the_code_of_the_server_and_nothing_else() {
    let body = b"<Error><Code>AccessDenied</Code><Message>AKIDEXAMPLE may not</Message></Error>";
    let error = ObjectError::of_status("a/b.csv", "data", StatusCode::FORBIDDEN, body);
    let text = error.to_string();
    assert!(text.starts_with("a/b.csv: ") && text.contains("AccessDenied"), "{text}");
    assert!(!text.contains("AKID") && !error.is_retryable(), "{text}");
    assert_eq!(error_code(b"<Code>Slow Down</Code>"), None);
    assert_eq!(error_code(b"<Code>SlowDown</Code>").as_deref(), Some("SlowDown"));
    assert_eq!(error_code(b"<html>"), None);
    let of = |status: u16, body: &[u8]| {
        ObjectError::of_status("k", "data", StatusCode::from_u16(status).unwrap(), body)
    };
    assert_eq!(of(404, b""), ObjectError::Gone { key: "k".to_owned() });
    assert_eq!(of(412, b""), ObjectError::Changed { key: "k".to_owned() });
    let no_bucket = ObjectError::NoBucket { bucket: "data".to_owned() };
    assert_eq!(of(404, b"<Code>NoSuchBucket</Code>"), no_bucket);
    assert!(matches!(of(400, b"<Code>ExpiredToken</Code>"), ObjectError::Refused { .. }));
    assert!(of(301, b"").to_string().contains("another region"));
}

#[test]
fn times_of_a_listing_are_read_to_the_second() {
    let seconds = |text: &str| {
        let time = parse_time(text)?;
        Some(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
    };
    // date -u -d TEXT +%s
    for (text, expected) in [
        ("1970-01-01T00:00:00Z", 0),
        ("2000-02-29T23:59:59.999Z", 951_868_799),
        ("2009-10-12T17:50:30.000Z", 1_255_369_830),
        ("2024-12-31T00:00:01.000Z", 1_735_603_201),
        ("2100-03-01T00:00:00.000Z", 4_107_542_400),
    ] {
        assert_eq!(seconds(text), Some(Duration::from_secs(expected)), "{text}");
    }
    for text in [
        "",
        "now",
        "2009-10-12 17:50:30",
        "2009-13-12T17:50:30Z",
        "1969-12-31T00:00:00Z",
        "2009-10-12T17:50:3äZ",
    ] {
        assert_eq!(parse_time(text), None, "{text}");
    }
}

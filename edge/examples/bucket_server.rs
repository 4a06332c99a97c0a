//! An S3 server whose objects are in memory, so that a benchmark of clients measures the clients.
//!
//! `bucket_server KEY_ID SECRET NAME=FILESxBYTES…` serves, in the bucket `bench`, so many objects
//! of so many bytes below each NAME, and prints its address. Signatures are checked. It ends with
//! its standard input.
//!
//! Owner: `cargo xtask bench files`. Invariant: two runs serve the same bytes. Absent: writing,
//! TLS.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use hyper_util::rt::TokioIo;
use md5::{Digest as _, Md5};
use s3s::auth::SimpleAuth;
use s3s::dto;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio::net::TcpListener;

const BUCKET: &str = "bench";
const KEYS_PER_PAGE: usize = 1_000;
/// Bytes of an answer that are handed over at a time.
const PIECE_BYTES: usize = 256 << 10;

#[derive(Debug)]
struct Object {
    bytes: Bytes,
    version: String,
}

/// Keys in the order of a listing.
#[derive(Debug, Clone)]
struct Objects(Arc<BTreeMap<String, Object>>);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(key_id), Some(secret)) = (arguments.next(), arguments.next()) else {
        return Err("usage: bucket_server KEY_ID SECRET NAME=FILESxBYTES…".into());
    };
    let mut objects = BTreeMap::new();
    for argument in arguments {
        let parts = argument.split_once('=').and_then(|(name, rest)| {
            let (files, bytes) = rest.split_once('x')?;
            Some((name.to_owned(), files.parse::<u64>().ok()?, bytes.parse::<usize>().ok()?))
        });
        let Some((name, files, bytes)) = parts else {
            return Err(format!("'{argument}' is not NAME=FILESxBYTES").into());
        };
        for number in 0..files {
            objects.insert(format!("{name}/{number:06}.bin"), object(number, bytes));
        }
    }
    let mut builder = S3ServiceBuilder::new(Objects(Arc::new(objects)));
    builder.set_auth(SimpleAuth::from_single(key_id, secret));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut output = std::io::stdout();
    writeln!(output, "{}", listener.local_addr()?)?;
    output.flush()?;
    std::thread::spawn(|| {
        // Its end is what is waited for, whatever comes before.
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        std::process::exit(0);
    });
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        let service = service.clone();
        tokio::spawn(async move {
            let answer = hyper::service::service_fn(move |request: http::Request<_>| {
                let service = service.clone();
                async move {
                    let request = request.map(|body: hyper::body::Incoming| s3s::Body::from(body));
                    let answer = service.call(request).await.expect("an answer, if of an error");
                    Ok::<_, Infallible>(answer)
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            // A client that goes ends its connection.
            drop(http.serve_connection(TokioIo::new(connection), answer).await);
        });
    }
}

/// Bytes that no two objects share, made without a dependency: a linear congruential sequence.
fn object(number: u64, length: usize) -> Object {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(length);
    let version = Md5::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Object { bytes: bytes.into(), version }
}

impl Objects {
    fn get(&self, bucket: &str, key: &str) -> S3Result<&Object> {
        if bucket != BUCKET {
            return Err(s3_error!(NoSuchBucket));
        }
        self.0.get(key).ok_or_else(|| s3_error!(NoSuchKey))
    }
}

fn modified() -> dto::Timestamp {
    dto::Timestamp::from(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000))
}

fn length(object: &Object) -> i64 {
    i64::try_from(object.bytes.len()).expect("it is in memory")
}

#[async_trait::async_trait]
impl S3 for Objects {
    async fn head_object(
        &self,
        request: S3Request<dto::HeadObjectInput>,
    ) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        let object = self.get(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(dto::HeadObjectOutput {
            content_length: Some(length(object)),
            e_tag: Some(dto::ETag::Strong(object.version.clone())),
            last_modified: Some(modified()),
            ..dto::HeadObjectOutput::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<dto::GetObjectInput>,
    ) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let input = request.input;
        let object = self.get(&input.bucket, &input.key)?;
        if let Some(dto::ETagCondition::ETag(wanted)) = &input.if_match
            && wanted.value() != object.version
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let whole = object.bytes.len() as u64;
        let range = match &input.range {
            None => 0..whole,
            Some(range) => range.check(whole)?,
        };
        let content_range = input
            .range
            .map(|_| format!("bytes {}-{}/{whole}", range.start, range.end.saturating_sub(1)));
        let part = object.bytes.slice(range.start as usize..range.end as usize);
        let content_length = Some(i64::try_from(part.len()).expect("it is in memory"));
        let pieces = stream::unfold(part, |mut rest| async move {
            let piece = rest.split_to(rest.len().min(PIECE_BYTES));
            (!piece.is_empty()).then_some((Ok::<_, std::io::Error>(piece), rest))
        });
        Ok(S3Response::new(dto::GetObjectOutput {
            body: Some(dto::StreamingBlob::wrap(pieces)),
            content_length,
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(dto::ETag::Strong(object.version.clone())),
            last_modified: Some(modified()),
            ..dto::GetObjectOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        let input = request.input;
        if input.bucket != BUCKET {
            return Err(s3_error!(NoSuchBucket));
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or(input.start_after).unwrap_or_default();
        let mut keys = self
            .0
            .range(after.clone()..)
            .filter(|(key, _)| **key != after && key.starts_with(&prefix));
        let page: Vec<_> = keys.by_ref().take(KEYS_PER_PAGE).collect();
        let is_truncated = keys.next().is_some();
        let next_continuation_token =
            page.last().filter(|_| is_truncated).map(|(key, _)| (*key).clone());
        let contents = page
            .into_iter()
            .map(|(key, object)| dto::Object {
                key: Some(key.clone()),
                size: Some(length(object)),
                e_tag: Some(dto::ETag::Strong(object.version.clone())),
                last_modified: Some(modified()),
                ..dto::Object::default()
            })
            .collect::<Vec<_>>();
        Ok(S3Response::new(dto::ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(prefix),
            key_count: i32::try_from(contents.len()).ok(),
            max_keys: i32::try_from(KEYS_PER_PAGE).ok(),
            is_truncated: Some(is_truncated),
            continuation_token: input.continuation_token,
            next_continuation_token,
            contents: Some(contents),
            ..dto::ListObjectsV2Output::default()
        }))
    }
}

//! An S3 server in this process, on loopback, that can be in the way of itself.
//!
//! ```text
//!  client ─▶ HTTP on loopback ─▶ faults ─▶ s3s (signatures, the protocol) ─▶ versions ─▶ a folder
//! ```
//!
//! Owner: the tests beside it, and the daemon's. Invariants: signatures are checked; a fault is met
//! by the requests that it names, as often as it says; every request is on record. Absent: TLS.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::dto;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

pub(crate) const BUCKET: &str = "data";
pub(crate) const KEY_ID: &str = "AKIDOFTHETEST";
pub(crate) const SECRET: &str = "the-secret-of-the-test";

type Body = BoxBody<Bytes, std::io::Error>;

/// What a request meets.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Status(u16, &'static str),
    /// The connection breaks after so many bytes of the body.
    Truncated(usize),
    /// Nothing more comes after so many bytes of the body.
    Silent(usize),
    /// The first byte of the body is another one.
    WrongByte,
    /// A whole answer, of so many bytes less.
    Shorter(usize),
}

#[derive(Debug)]
struct Rule {
    method: Method,
    /// In the path and query.
    names: String,
    left: u32,
    fault: Fault,
}

/// What the server does besides what it should.
#[derive(Debug, Default)]
struct Script {
    rules: Vec<Rule>,
    requests: Vec<String>,
}

/// What a listing and a read do not say.
#[derive(Debug, Default)]
pub(crate) struct Manners {
    pub(crate) lists_no_versions: bool,
    pub(crate) ignores_if_match: bool,
    /// Keys that a folder cannot hold, with their sizes.
    pub(crate) also_listed: Vec<(String, i64)>,
}

pub(crate) struct Server {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) address: String,
    script: Arc<Mutex<Script>>,
    pub(crate) manners: Arc<Mutex<Manners>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let manners = Arc::new(Mutex::new(Manners::default()));
        let inner = FileSystem::new(folder.path()).unwrap();
        let versioned = Versioned { inner, manners: Arc::clone(&manners) };
        let mut builder = S3ServiceBuilder::new(versioned);
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let script = Arc::new(Mutex::new(Script::default()));
        let accepting = tokio::spawn(accept(listener, service, Arc::clone(&script)));
        Self { folder, address, script, manners, accepting }
    }

    pub(crate) fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(key)
    }

    /// Without the protocol.
    pub(crate) fn place(&self, key: &str, content: impl AsRef<[u8]>) {
        let file = self.file(key);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    /// For the next `times` requests with this in their path or query.
    pub(crate) fn fault(&self, method: Method, names: &str, times: u32, fault: Fault) {
        let rule = Rule { method, names: names.to_owned(), left: times, fault };
        self.script.lock().unwrap().rules.push(rule);
    }

    /// Returns once a request of this method came, since the last call of `requests`.
    pub(crate) async fn asked(&self, method: &Method) {
        let begin = format!("{method} ");
        let has_come = || {
            let script = self.script.lock().unwrap();
            script.requests.iter().any(|request| request.starts_with(&begin))
        };
        while !has_come() {
            tokio::task::yield_now().await;
        }
    }

    /// Those since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.script.lock().unwrap().requests)
    }
}

async fn accept(listener: TcpListener, service: S3Service, script: Arc<Mutex<Script>>) {
    loop {
        let (connection, _) = listener.accept().await.unwrap();
        connection.set_nodelay(true).unwrap();
        let (service, script) = (service.clone(), Arc::clone(&script));
        tokio::spawn(async move {
            let answer = hyper::service::service_fn(move |request| {
                let (service, script) = (service.clone(), Arc::clone(&script));
                async move { Ok::<_, Infallible>(answer(request, service, &script).await) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            // A client that goes, or a fault, ends a connection: the tests see it elsewhere.
            drop(http.serve_connection(TokioIo::new(connection), answer).await);
        });
    }
}

async fn answer(
    request: http::Request<Incoming>,
    service: S3Service,
    script: &Mutex<Script>,
) -> Response<Body> {
    let uri = request.uri().to_string();
    let fault = {
        let mut script = script.lock().unwrap();
        let range = request.headers().get(header::RANGE);
        let range = range.map_or(String::new(), |range| format!(" {}", range.to_str().unwrap()));
        script.requests.push(format!("{} {uri}{range}", request.method()));
        let rule = script.rules.iter_mut().find(|rule| {
            rule.left > 0 && rule.method == request.method() && uri.contains(&rule.names)
        });
        rule.map(|rule| {
            rule.left -= 1;
            rule.fault.clone()
        })
    };
    if let Some(Fault::Status(status, code)) = fault {
        let body = format!("<Error><Code>{code}</Code><Message>{KEY_ID}</Message></Error>");
        let mut answer = Response::new(whole(body.into()));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        return answer;
    }
    let answer = service.call(request.map(s3s::Body::from)).await.unwrap();
    let (mut parts, body) = answer.into_parts();
    let Some(fault) = fault else {
        let body = body.map_err(std::io::Error::other);
        return Response::from_parts(parts, body.boxed());
    };
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = match fault {
        Fault::Status(..) => unreachable!("answered above"),
        Fault::Truncated(kept) => {
            let broken = Err(std::io::Error::other("as the test wants it"));
            pieces([Ok(Frame::data(bytes.slice(..kept))), broken], false)
        }
        Fault::Silent(kept) => pieces([Ok(Frame::data(bytes.slice(..kept)))], true),
        Fault::WrongByte => {
            let mut bytes = bytes.to_vec();
            bytes[0] ^= 1;
            whole(bytes.into())
        }
        Fault::Shorter(less) => {
            let length = bytes.len() - less;
            parts.headers.insert(header::CONTENT_LENGTH, length.into());
            whole(bytes.slice(..length))
        }
    };
    Response::from_parts(parts, body)
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

fn pieces(
    frames: impl Into<VecDeque<Result<Frame<Bytes>, std::io::Error>>>,
    is_silent: bool,
) -> Body {
    let pieces = stream::unfold(frames.into(), move |mut frames| async move {
        match frames.pop_front() {
            Some(Err(error)) => {
                // A pause lets what came before go out first.
                tokio::task::yield_now().await;
                Some((Err(error), frames))
            }
            Some(frame) => Some((frame, frames)),
            None if is_silent => std::future::pending().await,
            None => None,
        }
    });
    StreamBody::new(SyncStream(Mutex::new(Box::pin(pieces)))).boxed()
}

/// A boxed body has to be `Sync`.
struct SyncStream<S>(Mutex<std::pin::Pin<Box<S>>>);

impl<S: stream::Stream> stream::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.lock().unwrap().as_mut().poll_next(context)
    }
}

/// The folder server names no versions in its listings, and does not look at `If-Match`.
struct Versioned {
    inner: FileSystem,
    manners: Arc<Mutex<Manners>>,
}

impl Versioned {
    async fn version(&self, bucket: &str, key: &str) -> S3Result<dto::ETag> {
        let input = dto::HeadObjectInput {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            ..dto::HeadObjectInput::default()
        };
        let head = self.inner.head_object(asked(input)).await?;
        Ok(head.output.e_tag.unwrap())
    }
}

fn asked<T>(input: T) -> S3Request<T> {
    S3Request {
        input,
        method: Method::GET,
        uri: http::Uri::default(),
        headers: http::HeaderMap::default(),
        extensions: http::Extensions::default(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }
}

macro_rules! as_the_folder_does {
    ($($name:ident($input:ident) -> $output:ident;)*) => {
        #[async_trait::async_trait]
        impl S3 for Versioned {
            async fn list_objects_v2(
                &self,
                request: S3Request<dto::ListObjectsV2Input>,
            ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
                self.list(request).await
            }

            async fn get_object(
                &self,
                request: S3Request<dto::GetObjectInput>,
            ) -> S3Result<S3Response<dto::GetObjectOutput>> {
                self.get(request).await
            }

            $(async fn $name(
                &self,
                request: S3Request<dto::$input>,
            ) -> S3Result<S3Response<dto::$output>> {
                self.inner.$name(request).await
            })*
        }
    };
}

as_the_folder_does! {
    head_object(HeadObjectInput) -> HeadObjectOutput;
    put_object(PutObjectInput) -> PutObjectOutput;
    delete_object(DeleteObjectInput) -> DeleteObjectOutput;
    create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput;
    upload_part(UploadPartInput) -> UploadPartOutput;
    complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput;
    abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput;
}

impl Versioned {
    async fn list(
        &self,
        request: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        let bucket = request.input.bucket.clone();
        let mut answer = self.inner.list_objects_v2(request).await?;
        let (names_versions, also_listed) = {
            let manners = self.manners.lock().unwrap();
            (!manners.lists_no_versions, manners.also_listed.clone())
        };
        let objects = answer.output.contents.get_or_insert_default();
        if names_versions {
            for object in objects.iter_mut() {
                let key = object.key.clone().unwrap();
                object.e_tag = Some(self.version(&bucket, &key).await?);
            }
        }
        for (key, size) in also_listed {
            let (key, size) = (Some(key), Some(size));
            let e_tag = Some(dto::ETag::Strong("0123".to_owned()));
            objects.push(dto::Object { key, size, e_tag, ..dto::Object::default() });
        }
        Ok(answer)
    }

    async fn get(
        &self,
        request: S3Request<dto::GetObjectInput>,
    ) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let looks = !self.manners.lock().unwrap().ignores_if_match;
        if let Some(dto::ETagCondition::ETag(wanted)) = &request.input.if_match
            && looks
            && !self.version(&request.input.bucket, &request.input.key).await?.strong_cmp(wanted)
        {
            return Err(s3_error!(PreconditionFailed));
        }
        self.inner.get_object(request).await
    }
}

/// A file's bytes, each other than its neighbour.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index % 251) as u8).collect()
}

pub(crate) fn files_below(folder: &Path) -> usize {
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path) } else { 1 }
    };
    std::fs::read_dir(folder).map_or(0, |entries| entries.map(count).sum())
}

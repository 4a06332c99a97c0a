//! The daemon's files on a socket, with every fault that a test asks for.
//!
//! Owner: the tests. Invariants: it speaks the wire format with the encoders that daemons use;
//! every request is checked for who asks, and noted; what is refused is not kept.
//! Absent: stores, sources, and any decision about checkpoints.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use dormouse_bridge::files::stream::{
    BlobDecoder, BlobEvent, blob_head, file_end, file_failure, piece_head,
};
use dormouse_bridge::files::wire::{
    CheckpointAnswer, CheckpointOffer, CheckpointPolicy, FetchRequest, MissingAnswer,
    MissingRequest, RefusedAnswer, StoredAnswer, SyncPlan, Upload,
};
use dormouse_bridge::rundir::Dial;
use dormouse_core::manifest::{
    ContentId, FileEntry, FileKind, FilePath, FilesVersion, Manifest, Sha256Hash,
};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

type Answer = Response<BoxBody<Bytes, io::Error>>;

/// What goes wrong with one request for files.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The stream ends in the middle, after so many files.
    BreakAfter(usize),
    /// The first file has one byte that is another.
    WrongByte,
    /// That one has, if it is asked for.
    WrongByteOf(&'static str),
    /// The first file has one byte more, or one less.
    WrongSize(isize),
    /// Not even a stream.
    Refuse(u16),
    /// Those files fail.
    Fail { paths: Vec<&'static str>, retryable: bool },
    /// Nothing more is said after so many files.
    HangAfter(usize),
    /// Bytes that are no frames.
    Noise,
}

#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) plan: Option<SyncPlan>,
    pub(crate) blobs: BTreeMap<Sha256Hash, Vec<u8>>,
    pub(crate) inputs: BTreeMap<String, Vec<u8>>,
    pub(crate) faults: VecDeque<Fault>,
    /// Statuses of the next answers to anything but a fetch.
    pub(crate) refusals: VecDeque<u16>,
    /// Stays for all offers.
    pub(crate) refuses_offers: Option<u16>,
    pub(crate) asked: Vec<String>,
    pub(crate) offers: Vec<CheckpointOffer>,
}

pub(crate) struct Depot {
    path: PathBuf,
    contents: Arc<Mutex<Contents>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Depot {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(crate) fn path(text: &str) -> FilePath {
    FilePath::new(text).unwrap()
}

pub(crate) fn file(bytes: &[u8]) -> FileKind {
    let content = ContentId::Sha256(Sha256Hash::of(bytes));
    FileKind::File { bytes: bytes.len() as u64, content, is_executable: false }
}

pub(crate) fn entry(at: &str, bytes: &[u8]) -> FileEntry {
    FileEntry { path: path(at), kind: file(bytes) }
}

impl Depot {
    pub(crate) fn open(folder: &Path) -> Self {
        let path = folder.join("files.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let contents = Arc::new(Mutex::new(Contents::default()));
        let serving = tokio::spawn(serve(listener, contents.clone()));
        let depot = Self { path, contents, serving };
        depot.plan(&[], &[], CheckpointPolicy::default());
        depot
    }

    /// The daemon is gone, and comes back with what it had.
    pub(crate) async fn restart(&mut self, while_away: impl Future<Output = ()>) {
        self.serving.abort();
        std::fs::remove_file(&self.path).unwrap();
        while_away.await;
        let listener = UnixListener::bind(&self.path).unwrap();
        self.serving = tokio::spawn(serve(listener, self.contents.clone()));
    }

    pub(crate) fn dial(&self) -> Dial {
        Dial::Unix(self.path.clone())
    }

    pub(crate) fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap()
    }

    /// The plan is for these inputs and uploads from now on; lineage and restore stay.
    pub(crate) fn plan(
        &self,
        inputs: &[(&str, &[u8])],
        uploads: &[(&str, Option<&[u8]>)],
        policy: CheckpointPolicy,
    ) -> FilesVersion {
        let mut contents = self.contents();
        for (at, bytes) in inputs {
            contents.inputs.insert(at.to_string(), bytes.to_vec());
        }
        let mut all = Vec::new();
        for (number, (at, bytes)) in (1..).zip(uploads) {
            if let Some(bytes) = bytes {
                contents.blobs.insert(Sha256Hash::of(bytes), bytes.to_vec());
            }
            all.push(Upload { number, path: path(at), file: bytes.map(file) });
        }
        let entries = inputs.iter().map(|(at, bytes)| entry(at, bytes)).collect();
        let inputs = Manifest::new(entries).unwrap();
        let version = FilesVersion { inputs: inputs.digest(), uploads: uploads.len() as u64 };
        let known = contents.plan.take();
        contents.plan = Some(SyncPlan {
            version,
            lineage: known.as_ref().map_or(1, |plan| plan.lineage),
            restore_uploads: known.as_ref().map_or(0, |plan| plan.restore_uploads),
            restore: known.and_then(|plan| plan.restore),
            inputs,
            uploads: all,
            policy,
        });
        version
    }

    /// The newest checkpoint is this one.
    pub(crate) fn restore(&self, lineage: u64, files: &[(&str, &[u8])]) {
        let mut contents = self.contents();
        for (_, bytes) in files {
            contents.blobs.insert(Sha256Hash::of(bytes), bytes.to_vec());
        }
        let entries = files.iter().map(|(at, bytes)| entry(at, bytes)).collect();
        let plan = contents.plan.as_mut().unwrap();
        plan.lineage = lineage;
        plan.restore = Some(Manifest::new(entries).unwrap());
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.contents().faults.push_back(fault);
    }

    /// What was asked for since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.contents().asked)
    }

    pub(crate) fn offers(&self) -> Vec<CheckpointOffer> {
        self.contents().offers.clone()
    }
}

async fn serve(listener: UnixListener, contents: Arc<Mutex<Contents>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let contents = contents.clone();
        connections.spawn(async move {
            let answering = hyper::service::service_fn(move |request| {
                let contents = contents.clone();
                async move { Ok::<_, Infallible>(answer(request, &contents).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answering);
            // A connection that breaks is what some tests are about.
            let _broken = connection.await;
        });
    }
}

fn json(value: &impl serde::Serialize) -> Answer {
    let body = Full::from(serde_json::to_vec(value).unwrap());
    Response::new(body.map_err(|never| match never {}).boxed())
}

fn refused(status: u16) -> Answer {
    let mut answer = json(&RefusedAnswer { error: format!("told to say {status}") });
    *answer.status_mut() = status.try_into().unwrap();
    answer
}

async fn answer(request: Request<Incoming>, contents: &Mutex<Contents>) -> Answer {
    let header = |name: &str| request.headers()[name].to_str().unwrap().to_string();
    assert_eq!(header("authorization"), "Bearer t0ken");
    assert_eq!(header("dormouse-instance"), "echo/main#7");
    let target = request.uri().to_string();
    let refusal = contents.lock().unwrap().refusals.pop_front_if(|_| target != "/files/fetch");
    if let Some(status) = refusal {
        contents.lock().unwrap().asked.push(format!("{status}"));
        return refused(status);
    }
    match (request.method().as_str(), request.uri().path()) {
        ("GET", "/files/plan") => {
            let mut contents = contents.lock().unwrap();
            contents.asked.push("plan".into());
            let plan = contents.plan.as_ref().unwrap();
            let FilesVersion { inputs, uploads } = plan.version;
            match target == format!("/files/plan?inputs={inputs}&uploads={uploads}") {
                true => json(plan),
                false => refused(409),
            }
        }
        ("POST", "/files/fetch") => {
            let question = read(request).await;
            let question: FetchRequest = serde_json::from_slice(&question).unwrap();
            fetch(&question, &mut contents.lock().unwrap())
        }
        ("POST", "/files/missing") => {
            let question: MissingRequest = serde_json::from_slice(&read(request).await).unwrap();
            let mut contents = contents.lock().unwrap();
            contents.asked.push(format!("missing {}", question.hashes.len()));
            let is_missing = |hash: &Sha256Hash| !contents.blobs.contains_key(hash);
            json(&MissingAnswer {
                missing: question.hashes.into_iter().filter(is_missing).collect(),
            })
        }
        ("PUT", "/files/blobs") => put(request, contents).await,
        ("POST", "/files/checkpoint") => {
            let offer: CheckpointOffer = serde_json::from_slice(&read(request).await).unwrap();
            let mut contents = contents.lock().unwrap();
            contents.asked.push("checkpoint".into());
            if let Some(status) = contents.refuses_offers {
                return refused(status);
            }
            for entry in offer.manifest.entries() {
                if let FileKind::File { content: ContentId::Sha256(hash), .. } = &entry.kind {
                    assert!(contents.blobs.contains_key(hash), "{} has no blob", entry.path);
                }
            }
            contents.offers.push(offer);
            json(&CheckpointAnswer { number: contents.offers.len() as u64 })
        }
        other => panic!("nobody asks for {other:?}"),
    }
}

async fn read(request: Request<Incoming>) -> Bytes {
    request.into_body().collect().await.unwrap().to_bytes()
}

async fn put(request: Request<Incoming>, contents: &Mutex<Contents>) -> Answer {
    let mut body = request.into_body();
    let mut decoder = BlobDecoder::default();
    let mut blobs: Vec<(Sha256Hash, Vec<u8>)> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return refused(400) };
        let bytes = frame.into_data().unwrap();
        let mut input = &bytes[..];
        while let Some(event) = decoder.next(&mut input).unwrap() {
            match event {
                BlobEvent::Begin { hash, .. } => blobs.push((hash, Vec::new())),
                BlobEvent::Bytes(bytes) => blobs.last_mut().unwrap().1.extend(bytes),
                BlobEvent::End => {}
            }
        }
    }
    decoder.finish().unwrap();
    let mut contents = contents.lock().unwrap();
    contents.asked.push(format!("put {}", blobs.len()));
    if blobs.iter().any(|(hash, bytes)| Sha256Hash::of(bytes) != *hash) {
        return refused(422);
    }
    let stored = blobs.len() as u64;
    contents.blobs.extend(blobs);
    json(&StoredAnswer { stored })
}

fn fetch(question: &FetchRequest, contents: &mut Contents) -> Answer {
    contents.asked.push(format!("fetch {}", question.files.len()));
    let fault = contents.faults.pop_front();
    if let Some(Fault::Refuse(status)) = fault {
        return refused(status);
    }
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    for (index, file) in (0..).zip(&question.files) {
        let name = file.path.as_ref().map(ToString::to_string);
        let found = match (&name, &file.content) {
            (Some(name), _) => contents.inputs.get(name),
            (None, ContentId::Sha256(hash)) => contents.blobs.get(hash),
            (None, ContentId::Etag(_)) => None,
        };
        if let Some(Fault::Fail { paths, retryable }) = &fault
            && paths.iter().any(|path| Some(*path) == name.as_deref())
        {
            pieces.push(file_failure(index, *retryable, "told to fail"));
            continue;
        }
        let Some(found) = found else {
            pieces.push(file_failure(index, false, "not found"));
            continue;
        };
        let mut bytes = found.clone();
        match &fault {
            Some(Fault::WrongByte) if index == 0 => bytes[0] ^= 1,
            Some(Fault::WrongByteOf(path)) if name.as_deref() == Some(path) => bytes[0] ^= 1,
            Some(Fault::WrongSize(by)) if index == 0 => {
                bytes.resize(bytes.len().strict_add_signed(*by), b'+');
            }
            _ => {}
        }
        let mut piece = Vec::new();
        for half in bytes.chunks(bytes.len().div_ceil(2).max(1)) {
            piece.extend(piece_head(index, u32::try_from(half.len()).unwrap()));
            piece.extend(half);
        }
        piece.extend(file_end(index));
        pieces.push(piece);
    }
    stream(pieces, fault)
}

fn stream(mut pieces: Vec<Vec<u8>>, fault: Option<Fault>) -> Answer {
    use futures_util::StreamExt as _;
    let is_hanging = matches!(fault, Some(Fault::HangAfter(_)));
    let is_breaking = matches!(fault, Some(Fault::BreakAfter(_)));
    match fault {
        Some(Fault::BreakAfter(files)) => {
            let rest = pieces.split_off(files.min(pieces.len()));
            // In the middle of the next one.
            pieces.extend(rest.first().map(|next| next[..next.len() / 2].to_vec()));
        }
        Some(Fault::HangAfter(files)) => pieces.truncate(files),
        Some(Fault::Noise) => pieces.insert(0, blob_head(&Sha256Hash([9; 32]), 9).to_vec()),
        _ => {}
    }
    let frames = pieces.into_iter().map(|piece| Ok(Frame::data(piece.into())));
    let frames = futures_util::stream::iter(frames);
    let end = futures_util::stream::poll_fn(move |_| match (is_hanging, is_breaking) {
        (true, _) => std::task::Poll::Pending,
        (_, true) => std::task::Poll::Ready(Some(Err(io::Error::other("told to break")))),
        _ => std::task::Poll::Ready(None),
    });
    Response::new(BoxBody::new(StreamBody::new(frames.chain(end))))
}

//! The socket on which bridges fetch and send files.
//!
//! Owner: the daemon, beside the control socket, which thus never waits for bytes. Invariants: an
//! instance is who its token proves, and is given what its own session has; a checkpoint is
//! acknowledged only after its commit, and only if every blob of it is there. Absent: what is in
//! the answers (`dormouse_bridge::files::wire`), decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use dormouse_bridge::files::stream::{file_end, file_failure, piece_head};
use dormouse_bridge::files::wire::{
    self, CheckpointAnswer, FetchFile, FetchRequest, MissingAnswer, MissingRequest, RefusedAnswer,
    StoredAnswer, SyncPlan, Upload,
};
use dormouse_bridge::frames::Secret;
use dormouse_core::command::{Answer, Refusal};
use dormouse_core::event::CheckpointOffer;
use dormouse_core::id::{Generation, InstanceId};
use dormouse_core::manifest::{
    ContentId, FileKind, FilesVersion, Manifest, ManifestDigest, Sha256Hash,
};
use dormouse_edge::files::fetch::{Origin, Piece, PieceKind, Wanted};
use dormouse_edge::token::DeploymentSecret;
use futures_util::StreamExt as _;
use futures_util::stream::once;
use serde::Deserialize;
use tokio::net::UnixListener;

use super::Files;
use super::incoming::IncomingBlobs;
use super::tree::{TreeError, blob_of};
use crate::engine::request::{AskError, Gateway, Request, Verdict};
use crate::report;

/// A checkpoint's list, or a list of what is wanted, of the largest workspace.
const JSON_BYTES_MAX: usize = 64 << 20;

#[derive(Clone)]
pub(crate) struct ForBridges {
    pub(crate) files: Arc<Files>,
    pub(crate) gateway: Gateway,
    pub(crate) secret: DeploymentSecret,
}

/// Serves until the daemon ends.
pub(crate) async fn serve(listener: UnixListener, state: ForBridges) {
    let router = Router::new()
        .route(wire::PLAN_PATH, get(plan))
        .route(wire::FETCH_PATH, post(fetch))
        .route(wire::MISSING_PATH, post(missing))
        .route(wire::BLOBS_PATH, put(store).layer(DefaultBodyLimit::disable()))
        .route(wire::CHECKPOINT_PATH, post(checkpoint))
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .with_state(state);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "bridges cannot fetch files any more");
    }
}

/// Whose token it was.
struct Instance(InstanceId);

impl FromRequestParts<ForBridges> for Instance {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &ForBridges) -> Result<Self, Refused> {
        let stranger = || Refused(StatusCode::UNAUTHORIZED, "no instance of ours".to_owned());
        let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let instance = text(wire::INSTANCE_HEADER).and_then(|name| {
            let (session, generation) = name.split_once('#')?;
            let generation = Generation(generation.parse().ok()?);
            Some(InstanceId { session: session.parse().ok()?, generation })
        });
        let token = text(header::AUTHORIZATION.as_str()).and_then(|v| v.strip_prefix("Bearer "));
        let (instance, token) = instance.zip(token).ok_or_else(stranger)?;
        let token = Secret(token.to_owned());
        let is_valid = state.secret.token_is_valid(&instance, &token);
        if is_valid { Ok(Self(instance)) } else { Err(stranger()) }
    }
}

/// Why a bridge is not given what it asked for.
struct Refused(StatusCode, String);

impl Refused {
    fn outdated(words: &str) -> Self {
        Self(StatusCode::CONFLICT, words.to_owned())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(RefusedAnswer { error: self.1 })).into_response()
    }
}

impl From<TreeError> for Refused {
    fn from(error: TreeError) -> Self {
        let status = match error.is_retryable() {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, report::chain(&error))
    }
}

impl From<dormouse_edge::files::blobs::BlobError> for Refused {
    fn from(error: dormouse_edge::files::blobs::BlobError) -> Self {
        let status = if error.is_senders_fault() {
            StatusCode::UNPROCESSABLE_ENTITY
        } else if error.is_retryable() {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::INSUFFICIENT_STORAGE
        };
        Self(status, report::chain(&error))
    }
}

impl From<AskError> for Refused {
    fn from(error: AskError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

#[derive(Deserialize)]
struct PlanQuery {
    inputs: Sha256Hash,
    uploads: u64,
}

async fn plan(
    State(state): State<ForBridges>,
    Instance(instance): Instance,
    Query(PlanQuery { inputs, uploads }): Query<PlanQuery>,
) -> Result<Json<SyncPlan>, Refused> {
    let files = &state.files;
    let session = &instance.session;
    let inputs = ManifestDigest(inputs);
    let manifest = match files.listed_as(session, inputs) {
        Some(listed) => listed.manifest.clone(),
        None if inputs == Manifest::default().digest() => Manifest::default(),
        None => return Err(Refused::outdated("the inputs have been listed anew since")),
    };
    let view = files.view(session).await?;
    let view = view.ok_or_else(|| Refused::outdated("there is no such session"))?;
    if uploads > view.record.uploads {
        return Err(Refused::outdated("there are not so many uploads"));
    }
    let restore = match &view.restore {
        Some(checkpoint) => Some(files.manifest(checkpoint.manifest).await?),
        None if view.record.restore > 0 => {
            // Beginning with an empty workspace in its place would lose it for good.
            let words = format!("checkpoint {} is missing", view.record.restore);
            return Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, words));
        }
        None => None,
    };
    let wanted = view.uploads.into_iter().filter(|upload| upload.number <= uploads);
    let current = files.in_force.now();
    let agent = current.agent(session.agent());
    Ok(Json(SyncPlan {
        version: FilesVersion { inputs, uploads },
        lineage: view.record.lineage,
        restore,
        restore_uploads: view.record.floor,
        inputs: manifest,
        uploads: wanted
            .map(|upload| Upload { number: upload.number, path: upload.path, file: upload.file })
            .collect(),
        policy: agent.map(|agent| agent.checkpoint.clone()).unwrap_or_default(),
    }))
}

async fn fetch(
    State(state): State<ForBridges>,
    Instance(instance): Instance,
    Json(request): Json<FetchRequest>,
) -> Result<Response, Refused> {
    if request.files.len() > wire::FILES_AT_ONCE_MAX {
        return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, "too many files at once".to_owned()));
    }
    let own = state.own_blobs(&instance, &request).await?;
    let listed = state.files.listed().get(&instance.session).cloned();
    let wanted = request.files.into_iter().map(|file| {
        let FetchFile { path, content, bytes } = file;
        let origin = match (path, content) {
            (Some(path), _) => {
                let known = listed.as_ref().and_then(|listed| listed.origin(&path)).cloned();
                known.unwrap_or_else(|| Origin::Nowhere { why: format!("{path} is no input") })
            }
            (None, ContentId::Sha256(hash)) if own.contains_key(&hash) => Origin::Blob(hash),
            (None, content) => Origin::Nowhere { why: format!("{content} is not of this session") },
        };
        Wanted { origin, bytes }
    });
    let pieces = state.files.fetcher.fetch(wanted.collect()).flat_map(|piece| {
        let frames = framed(piece);
        futures_util::stream::iter(frames.into_iter().flatten().map(Ok::<_, std::io::Error>))
    });
    Ok(Body::from_stream(pieces).into_response())
}

/// A head and what follows it. Small pieces are sent as one, so that a thousand small files are not
/// two thousand writes.
fn framed(piece: Piece) -> [Option<Bytes>; 2] {
    const COPIED_BYTES_MAX: usize = 32 << 10;
    let index = piece.index;
    match piece.kind {
        PieceKind::Data(data) => {
            let length = u32::try_from(data.len()).expect("a piece is as large as a read");
            let head = piece_head(index, length);
            if data.len() > COPIED_BYTES_MAX {
                return [Some(Bytes::copy_from_slice(&head)), Some(data)];
            }
            let mut one = Vec::with_capacity(head.len() + data.len());
            one.extend_from_slice(&head);
            one.extend_from_slice(&data);
            [Some(one.into()), None]
        }
        PieceKind::End => [Some(Bytes::copy_from_slice(&file_end(index))), None],
        PieceKind::Failed { is_retryable, message } => {
            [Some(file_failure(index, is_retryable, &message).into()), None]
        }
    }
}

async fn missing(
    State(state): State<ForBridges>,
    Instance(_): Instance,
    Json(MissingRequest { hashes }): Json<MissingRequest>,
) -> Result<Json<MissingAnswer>, Refused> {
    if hashes.len() > wire::HASHES_AT_ONCE_MAX {
        return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, "too many hashes at once".to_owned()));
    }
    let missing = state.files.blobs().missing(&hashes).await?;
    Ok(Json(MissingAnswer { missing }))
}

async fn store(
    State(state): State<ForBridges>,
    Instance(_): Instance,
    body: Body,
) -> Result<Json<StoredAnswer>, Refused> {
    let broken = |error: std::io::Error| Refused(StatusCode::BAD_REQUEST, error.to_string());
    let mut incoming = IncomingBlobs::new(body.into_data_stream());
    let mut batch = state.files.blobs().begin_batch().await?;
    while let Some((hash, bytes)) = incoming.next_head().await.map_err(broken)? {
        batch.put(hash, bytes, incoming.pieces()).await?;
    }
    Ok(Json(StoredAnswer { stored: batch.commit().await? }))
}

async fn checkpoint(
    State(state): State<ForBridges>,
    Instance(instance): Instance,
    Json(offer): Json<wire::CheckpointOffer>,
) -> Result<Json<CheckpointAnswer>, Refused> {
    let unfit = |words: &str| Refused(StatusCode::UNPROCESSABLE_ENTITY, words.to_owned());
    let wire::CheckpointOffer { lineage, uploads, manifest, turn, left_out } = offer;
    let mut hashes = BTreeSet::new();
    for entry in manifest.entries() {
        match blob_of(&entry.kind) {
            Some((hash, _)) => drop(hashes.insert(hash)),
            None if matches!(entry.kind, FileKind::File { .. }) => {
                return Err(unfit("a checkpoint names its files by their SHA-256"));
            }
            None => {}
        }
    }
    let hashes: Vec<Sha256Hash> = hashes.into_iter().collect();
    if !state.files.blobs().missing(&hashes).await?.is_empty() {
        return Err(unfit("not all of its blobs are here"));
    }
    let text = manifest.canonical();
    let digest = manifest.digest();
    let mut batch = state.files.blobs().begin_batch().await?;
    let bytes = text.len() as u64;
    batch.put(digest.0, bytes, once(async { Ok(Bytes::from(text)) })).await?;
    batch.commit().await?;
    let (files, bytes) = (hashes.len() as u64, manifest.bytes());
    let files = files.max(manifest.entries().len() as u64);
    let offer = CheckpointOffer { lineage, uploads, manifest: digest, files, bytes, turn };
    for left in &left_out {
        tracing::debug!(%instance, path = %left.path, why = %left.why, "not in the checkpoint");
    }
    let ask = |ask| Request::Checkpoint { instance: instance.clone(), offer, ask };
    match state.gateway.ask(false, ask).await? {
        Verdict::Answered { answer: Answer::CheckpointMade { number }, .. } => {
            Ok(Json(CheckpointAnswer { number }))
        }
        Verdict::Answered { answer: Answer::Refused(refusal), .. } => {
            Err(Refused::outdated(refusal_words(&refusal)))
        }
        Verdict::StoreFull => {
            Err(Refused(StatusCode::INSUFFICIENT_STORAGE, "the disk is full".to_owned()))
        }
        Verdict::Answered { .. }
        | Verdict::Done
        | Verdict::Explained { .. }
        | Verdict::NotFound => unreachable!("no answer to a checkpoint"),
    }
}

fn refusal_words(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::PastLife => "this instance is over",
        Refusal::OtherLineage => "the workspace is to be restored to another checkpoint",
        Refusal::NotWhole => "the workspace is not known to be whole",
        Refusal::UnknownAgent
        | Refusal::NotYourSession
        | Refusal::IdempotencyConflict { .. }
        | Refusal::QueueFull { .. } => unreachable!("no refusal of a checkpoint"),
    }
}

impl ForBridges {
    /// The blobs that this session may read, if any was asked for.
    async fn own_blobs(
        &self,
        instance: &InstanceId,
        request: &FetchRequest,
    ) -> Result<BTreeMap<Sha256Hash, u64>, Refused> {
        if request.files.iter().all(|file| file.path.is_some()) {
            return Ok(BTreeMap::new());
        }
        let view = self.files.view(&instance.session).await?;
        let view = view.ok_or_else(|| Refused::outdated("there is no such session"))?;
        let mut own = BTreeMap::new();
        if let Some(checkpoint) = &view.restore {
            let manifest = self.files.manifest(checkpoint.manifest).await?;
            own.extend(manifest.entries().iter().filter_map(|entry| blob_of(&entry.kind)));
        }
        own.extend(view.uploads.iter().filter_map(|upload| blob_of(upload.file.as_ref()?)));
        Ok(own)
    }
}

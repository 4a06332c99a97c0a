//! A session's files: put, get, delete, list; its checkpoints, and going back to one.
//!
//! Owner: HTTP handlers. Invariants: bytes are durable before the answer, and streamed in both
//! directions; a path is one of a workspace or refused by name; the files of another subject's
//! session look as if they did not exist. What is listed is what the store has: the newest
//! checkpoint with the uploads since, not what an agent is writing now. Absent: inputs, which are
//! the agent's.

use std::io;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dormouse_core::command::Answer;
use dormouse_core::event::{Attachment, UploadSubmission};
use dormouse_core::id::SessionId;
use dormouse_core::limits;
use dormouse_core::manifest::{
    ContentId, FileEntry, FileKind, FilePath, Manifest, ManifestError, Sha256Hash,
};
use dormouse_core::record::CheckpointRecord;
use dormouse_edge::files::blobs::BlobError;
use dormouse_store::FilesView;
use futures_util::TryStreamExt as _;
use serde::Deserialize;

use crate::api::Api;
use crate::api::body::Attached;
use crate::api::caller::Known;
use crate::api::messages::{json_body, session_of};
use crate::api::problem::Problem;
use crate::api::sessions::{known, query, requested};
use crate::api::shape::{
    CheckpointView, FileView, Files as FilesShape, Requested, RestoreBody, Uploaded,
};
use crate::engine::request::{Request, Verdict};
use crate::files::tree::{Since, Tree, blob_of};
use crate::keys::Caller;
use crate::report;

type OneFile = Path<(String, String, String)>;
type OneSession = Path<(String, String)>;

fn path_of(text: &str) -> Result<FilePath, Problem> {
    FilePath::new(text).map_err(|error| {
        let hint = "a path is relative to the session's workspace, for example data/sales.csv";
        Problem::bad_request(error.to_string(), hint)
    })
}

/// A session that may be new: `None`, and it will be made by the first file.
async fn view_of(
    api: &Api,
    caller: &Caller,
    session: &SessionId,
) -> Result<Option<FilesView>, Problem> {
    let id = session.clone();
    let stored = api.readers.read(move |reader| reader.session(&id)).await?;
    let Some(stored) = stored else { return Ok(None) };
    if !caller.is_operator && stored.record.subject != caller.subject {
        return Err(Problem::refused(&dormouse_core::command::Refusal::NotYourSession));
    }
    Ok(api.files.view(session).await?)
}

/// One that is there, or 404.
async fn tree_of(
    api: &Api,
    caller: &Caller,
    session: &SessionId,
) -> Result<(FilesView, Tree), Problem> {
    known(api, caller, session).await?;
    let view = api.files.view(session).await?;
    let view = view.ok_or_else(|| Problem::not_found("session"))?;
    let tree = api.files.tree(&view).await?;
    Ok((view, tree))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutQuery {
    /// What the sender knows of the bytes; 64 hexadecimal digits.
    sha256: Option<String>,
    #[serde(default)]
    executable: bool,
}

pub(crate) async fn put(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key, path)): OneFile,
    asked: Result<Query<PutQuery>, QueryRejection>,
    body: Body,
) -> Result<Json<Uploaded>, Problem> {
    let session = session_of(&agent, &key)?;
    let path = path_of(&path)?;
    let PutQuery { sha256, executable: is_executable } = query(asked)?;
    let expected = sha256.map(|text| text.parse::<Sha256Hash>()).transpose().map_err(|error| {
        Problem::bad_request(format!("sha256: {error}"), "`sha256sum FILE` prints it")
    })?;
    check_place(&api, &session, &path)?;
    let view = view_of(&api, &caller, &session).await?;
    let tree = match &view {
        Some(view) => api.files.tree(view).await?,
        None => Tree::default(),
    };
    // Before a byte is taken, as far as it can be known.
    let placeholder = ContentId::Sha256(Sha256Hash::of(b""));
    check_fits(&tree, &path, FileKind::File { bytes: 0, content: placeholder, is_executable })?;
    let bytes_max = limits::FILES_BYTES_MAX;
    let pieces = body.into_data_stream().map_err(io::Error::other);
    let kept = api.files.blobs().put_stream_hashed(pieces, bytes_max).await;
    let (hash, bytes) = kept.map_err(|error| blob_problem(&error))?;
    if expected.is_some_and(|expected| expected != hash) {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "wrong_hash",
            format!("what arrived has the SHA-256 {hash}"),
            "it was changed on the way, or another hash was announced; send it again",
        ));
    }
    let content = ContentId::Sha256(hash);
    let kind = FileKind::File { bytes, content, is_executable };
    check_fits(&tree, &path, kind.clone())?;
    let number = submit(&api, &caller, session, path.clone(), Some(kind)).await?;
    Ok(Json(Uploaded { path: path.to_string(), bytes, sha256: Some(hash.to_string()), number }))
}

/// Keeps the bytes of what comes with a message; they are in the workspace once it is accepted.
pub(crate) async fn attach(
    api: &Api,
    caller: &Caller,
    session: &SessionId,
    attached: Vec<Attached>,
) -> Result<Vec<Attachment>, Problem> {
    if attached.is_empty() {
        return Ok(Vec::new());
    }
    attached.iter().try_for_each(|file| check_place(api, session, &file.path))?;
    let mut tree = match &view_of(api, caller, session).await? {
        Some(view) => api.files.tree(view).await?.entries(),
        None => Vec::new(),
    };
    let mut attachments: Vec<Attachment> = Vec::new();
    let mut batch = api.files.blobs().begin_batch().await.map_err(|e| blob_problem(&e))?;
    for Attached { path, bytes, is_executable } in attached {
        if attachments.iter().any(|other| other.path == path) {
            let words = format!("`{path}` is attached twice");
            return Err(Problem::bad_request(words, "give each file a name of its own"));
        }
        let (hash, length) = (Sha256Hash::of(&bytes), bytes.len() as u64);
        let content = ContentId::Sha256(hash);
        let file = FileKind::File { bytes: length, content, is_executable };
        let bytes = futures_util::stream::once(async { Ok(Bytes::from(bytes)) });
        batch.put(hash, length, bytes).await.map_err(|error| blob_problem(&error))?;
        tree.retain(|entry| entry.path != path);
        tree.push(FileEntry { path: path.clone(), kind: file.clone() });
        attachments.push(Attachment { path, file });
    }
    Manifest::new(tree).map_err(|error| does_not_fit(&error))?;
    batch.commit().await.map_err(|error| blob_problem(&error))?;
    Ok(attachments)
}

/// A sender writes beside what the operator has written for the agent, never in its place.
fn check_place(api: &Api, session: &SessionId, path: &FilePath) -> Result<(), Problem> {
    let current = api.current();
    let Some(agent) = current.agent(session.agent()) else {
        return Err(Problem::refused(&dormouse_core::command::Refusal::UnknownAgent));
    };
    let is_below = |one: &FilePath, other: &FilePath| {
        let rest = one.as_str().strip_prefix(other.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let is_taken = |taken: &FilePath| is_below(path, taken) || is_below(taken, path);
    match agent.render.iter().find(|file| is_taken(&file.path)) {
        None => Ok(()),
        Some(file) => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "does_not_fit",
            format!("{} is written by the agent's config", file.path),
            "choose another name",
        )),
    }
}

fn does_not_fit(error: &ManifestError) -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "does_not_fit",
        error.to_string(),
        "choose another name, or delete what is in the way",
    )
}

/// Whether the workspace can hold the file beside what it has.
fn check_fits(tree: &Tree, path: &FilePath, kind: FileKind) -> Result<(), Problem> {
    let others = tree.entries().into_iter().filter(|entry| entry.path != *path);
    let entries: Vec<FileEntry> = others.chain([FileEntry { path: path.clone(), kind }]).collect();
    Manifest::new(entries).map(drop).map_err(|error| does_not_fit(&error))
}

fn blob_problem(error: &BlobError) -> Problem {
    match error {
        BlobError::TooLarge { max } => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("a file is at most {max} bytes long"),
            "nothing of it was kept",
        ),
        BlobError::Sender(_) => Problem::bad_request(
            "the file broke off before its end",
            "nothing of it was kept; send it again",
        ),
        BlobError::NoRoom { .. } => Problem::store_full(),
        other => {
            tracing::error!(error = %report::chain(error), "a file could not be kept or read");
            match other.is_places_fault() {
                true => Problem::files_unavailable(),
                false => Problem::internal(),
            }
        }
    }
}

async fn submit(
    api: &Api,
    caller: &Caller,
    session: SessionId,
    path: FilePath,
    file: Option<FileKind>,
) -> Result<u64, Problem> {
    let (subject, is_operator) = (caller.subject.clone(), caller.is_operator);
    let upload = UploadSubmission { session, subject, is_operator, path, file };
    match api.gateway.ask(false, |ask| Request::Upload { upload, ask }).await? {
        Verdict::Answered { answer: Answer::Uploaded { number }, .. } => Ok(number),
        Verdict::Answered { answer: Answer::Refused(refusal), .. } => {
            Err(Problem::refused(&refusal))
        }
        Verdict::StoreFull => Err(Problem::store_full()),
        Verdict::Answered { .. }
        | Verdict::Done
        | Verdict::Explained { .. }
        | Verdict::NotFound => {
            unreachable!("no answer to an upload")
        }
    }
}

pub(crate) async fn delete(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key, path)): OneFile,
) -> Result<Json<Uploaded>, Problem> {
    let session = session_of(&agent, &key)?;
    let path = path_of(&path)?;
    let (_, tree) = tree_of(&api, &caller, &session).await?;
    if !tree.files.contains_key(&path) {
        return Err(Problem::not_found("file"));
    }
    let number = submit(&api, &caller, session, path.clone(), None).await?;
    Ok(Json(Uploaded { path: path.to_string(), bytes: 0, sha256: None, number }))
}

pub(crate) async fn get(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key, path)): OneFile,
) -> Result<Response, Problem> {
    let session = session_of(&agent, &key)?;
    let path = path_of(&path)?;
    let (_, tree) = tree_of(&api, &caller, &session).await?;
    let kind = tree.files.get(&path).map(|file| &file.0);
    let (hash, _) = kind.and_then(blob_of).ok_or_else(|| Problem::not_found("file"))?;
    let blob = api.files.blobs().get(&hash).await.map_err(|error| blob_problem(&error))?;
    let length = blob.bytes;
    let pieces = blob.pieces.map_err(io::Error::other);
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    let octets = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, octets);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    // What an agent has written is not for a browser to execute here.
    let attachment = HeaderValue::from_static("attachment");
    headers.insert(header::CONTENT_DISPOSITION, attachment);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        headers.insert(header::ETAG, tag);
    }
    Ok(response)
}

pub(crate) async fn list(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key)): OneSession,
) -> Result<Json<FilesShape>, Problem> {
    let session = session_of(&agent, &key)?;
    let (view, tree) = tree_of(&api, &caller, &session).await?;
    let current = api.current();
    let agent = current.agent(session.agent());
    Ok(Json(FilesShape {
        checkpoint: view.restore.map(|checkpoint| checkpoint.number),
        takes_checkpoints: agent.is_some_and(|agent| agent.checkpoint.is_on),
        files: tree
            .files
            .into_iter()
            .map(|(path, (kind, since))| shown(&path, &kind, since))
            .collect(),
    }))
}

fn shown(path: &FilePath, kind: &FileKind, since: Since) -> FileView {
    let mut view = FileView { path: path.to_string(), ..FileView::default() };
    match kind {
        FileKind::File { bytes, content, is_executable } => {
            view.kind = "file".to_owned();
            view.bytes = *bytes;
            view.is_executable = *is_executable;
            if let ContentId::Sha256(hash) = content {
                view.sha256 = Some(hash.to_string());
            }
        }
        FileKind::Link { target } => {
            view.kind = "link".to_owned();
            view.target = Some(target.to_string());
        }
        FileKind::Folder => view.kind = "folder".to_owned(),
    }
    match since {
        Since::Checkpoint(number) => view.checkpoint = Some(number),
        Since::Upload(number) => view.upload = Some(number),
    }
    view
}

pub(crate) async fn checkpoints(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key)): OneSession,
) -> Result<Json<Vec<CheckpointView>>, Problem> {
    let session = session_of(&agent, &key)?;
    known(&api, &caller, &session).await?;
    let records = api.readers.read(move |reader| reader.checkpoints(&session)).await?;
    Ok(Json(records.into_iter().map(checkpoint_shown).collect()))
}

fn checkpoint_shown(record: CheckpointRecord) -> CheckpointView {
    CheckpointView {
        number: record.number,
        at_ms: record.at.0,
        generation: record.generation,
        files: record.files,
        bytes: record.bytes,
        turn: record.turn,
    }
}

pub(crate) async fn restore(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key)): OneSession,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Requested>, Problem> {
    let session = session_of(&agent, &key)?;
    known(&api, &caller, &session).await?;
    let body = json_body(&headers, Ok(body))?;
    let RestoreBody { checkpoint } = serde_json::from_slice(&body).map_err(|error| {
        Problem::bad_request(error.to_string(), "send for example {\"checkpoint\": 3}")
    })?;
    let by = caller.subject;
    let ask = |ask| Request::Restore { session, checkpoint, by, ask };
    requested(api.gateway.ask(false, ask).await?).map(Json)
}

//! `files`: what a session's workspace has, and its checkpoints.
//!
//! Invariants: a file is sent with the SHA-256 that it had when it was read, so that what arrives
//! is what was there; nothing of this machine is overwritten unasked, and a file that did not come
//! whole does not appear under its name. Absent: what an agent is writing at this moment.

use std::io;
use std::path::{Path, PathBuf};

use dormouse_core::id::SessionId;
use dormouse_core::manifest::FilePath;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Context;
use super::arguments::Files;
use super::client::{Call, encoded};
use super::error::CommandError;
use super::table::Table;
use super::terminal::Tone;
use crate::api::shape::{CheckpointView, FileView, Files as FilesShape, RestoreBody, Uploaded};

const READ_BYTES: usize = 1 << 20;
/// Nothing comes for longer than this: the daemon is gone.
const SILENCE_MAX: std::time::Duration = std::time::Duration::from_secs(30);

pub(crate) async fn files(command: Files, context: &mut Context<'_>) -> Result<(), CommandError> {
    match command {
        Files::Ls { session } => ls(&session.0, context).await,
        Files::Put { session, local, to } => put_all(&session.0, &local, to, context).await,
        Files::Get { session, path, output, force } => {
            get(&session.0, &path, output, force, context).await
        }
        Files::Rm { session, path } => rm(&session.0, &path, context).await,
        Files::History { session } => history(&session.0, context).await,
        Files::Restore { session, checkpoint } => restore(&session.0, checkpoint, context).await,
    }
}

fn path_of(session: &SessionId, rest: &str) -> String {
    format!("/v1/sessions/{}/{}/{rest}", encoded(session.agent()), encoded(session.key()))
}

fn file_path_of(session: &SessionId, path: &FilePath) -> String {
    let names: Vec<String> = path.names().map(encoded).collect();
    path_of(session, &format!("files/{}", names.join("/")))
}

async fn ls(session: &SessionId, context: &mut Context<'_>) -> Result<(), CommandError> {
    let value = context.client.json(Call::get(path_of(session, "files"))).await?;
    context.show(&value, |context| {
        let listed: FilesShape = context.client.typed(&value)?;
        if !listed.takes_checkpoints {
            let words = "no checkpoints are taken of this agent's workspaces, so that only what \
                         was put is listed; files = { checkpoint = \"turn\" } in its config";
            context.terminal.note(Tone::Dim, words);
        }
        if listed.files.is_empty() {
            let words = format!("{session} has no files; `dormouse files put {session} FILE`");
            context.terminal.status(&words);
            return Ok(());
        }
        let mut table = Table::new(["BYTES", "FROM", "PATH"]);
        for file in &listed.files {
            table.row([size(file), origin(file), name(file)]);
        }
        Ok(context.terminal.line(&table.render())?)
    })
}

fn size(file: &FileView) -> String {
    if file.kind == "file" { file.bytes.to_string() } else { "-".to_owned() }
}

fn origin(file: &FileView) -> String {
    match (file.upload, file.checkpoint) {
        (Some(number), _) => format!("upload {number}"),
        (None, Some(number)) => format!("checkpoint {number}"),
        (None, None) => "-".to_owned(),
    }
}

fn name(file: &FileView) -> String {
    match (&file.target, file.kind.as_str()) {
        (Some(target), _) => format!("{} -> {target}", file.path),
        (None, "folder") => format!("{}/", file.path),
        (None, _) if file.is_executable => format!("{}*", file.path),
        (None, _) => file.path.clone(),
    }
}

async fn put_all(
    session: &SessionId,
    locals: &[PathBuf],
    to: Option<String>,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let mut uploaded = Vec::new();
    for (local, path) in placed(locals, to.as_deref())? {
        let value = put(session, &local, &path, context).await?;
        if !context.as_json {
            let done: Uploaded = context.client.typed(&value)?;
            let words = format!("{} ({} bytes)", done.path, done.bytes);
            context.terminal.line(&super::scrub::line(&words))?;
        }
        uploaded.push(value);
    }
    if context.as_json {
        context.terminal.json(&Value::from(uploaded))?;
    }
    Ok(())
}

/// Each local file with its place in the workspace. A folder is put with all that is in it.
pub(crate) fn placed(
    locals: &[PathBuf],
    to: Option<&str>,
) -> Result<Vec<(PathBuf, FilePath)>, CommandError> {
    let is_one = locals.len() == 1;
    let mut files = Vec::new();
    for local in locals {
        let failed = |source| CommandError::LocalFile { path: local.clone(), source };
        let is_folder = std::fs::metadata(local).map_err(failed)?.is_dir();
        let name = std::path::absolute(local)
            .ok()
            .and_then(|path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
        let name = name.ok_or_else(|| failed(io::Error::other("its name is not UTF-8 text")))?;
        let base = match to {
            None => name,
            Some(to) if to.ends_with('/') => format!("{to}{name}"),
            Some(to) if is_one => to.to_owned(),
            Some(to) => format!("{to}/{name}"),
        };
        if is_folder {
            below(local, &base, &mut files)?;
        } else {
            files.push((local.clone(), workspace_path(&base)?));
        }
    }
    Ok(files)
}

fn below(
    folder: &Path,
    base: &str,
    files: &mut Vec<(PathBuf, FilePath)>,
) -> Result<(), CommandError> {
    let failed = |source| CommandError::LocalFile { path: folder.to_owned(), source };
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_str();
        let name = name.ok_or_else(|| failed(io::Error::other("a name in it is not UTF-8")))?;
        let path = format!("{base}/{name}");
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            below(&entry.path(), &path, files)?;
        } else if kind.is_file() {
            files.push((entry.path(), workspace_path(&path)?));
        }
        // Links, sockets and devices are no files to send; nobody named them.
    }
    Ok(())
}

fn workspace_path(text: &str) -> Result<FilePath, CommandError> {
    let text = text.trim_start_matches("./");
    FilePath::new(text)
        .map_err(|source| CommandError::WorkspacePath { path: text.to_owned(), source })
}

/// Sends one file and returns the daemon's words.
pub(crate) async fn put(
    session: &SessionId,
    local: &Path,
    path: &FilePath,
    context: &mut Context<'_>,
) -> Result<Value, CommandError> {
    let failed = |source| CommandError::LocalFile { path: local.to_owned(), source };
    let (hash, bytes) = hashed(local).await.map_err(failed)?;
    let file = tokio::fs::File::open(local).await.map_err(failed)?;
    let is_executable = is_executable(local).map_err(failed)?;
    let query = format!("?sha256={hash}&executable={is_executable}");
    let call = Call::put(format!("{}{query}", file_path_of(session, path))).file(file, bytes);
    Ok(context.client.json(call).await?)
}

fn is_executable(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o100 != 0)
}

async fn hashed(path: &Path) -> io::Result<(String, u64)> {
    let mut file = tokio::fs::File::open(path).await?;
    let (mut hasher, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            return Ok((crate::random::hex(&hasher.finalize()), bytes));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

async fn get(
    session: &SessionId,
    path: &str,
    output: Option<PathBuf>,
    force: bool,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let path = workspace_path(path)?;
    let output = output.unwrap_or_else(|| PathBuf::from(path.name()));
    let mut answer = context.client.open(Call::get(file_path_of(session, &path))).await?;
    if output == Path::new("-") {
        while let Some(piece) = answer.next(Some(SILENCE_MAX)).await? {
            context.terminal.bytes(&piece)?;
        }
        return Ok(());
    }
    let failed = |source| CommandError::LocalFile { path: output.clone(), source };
    if output.exists() && !force {
        return Err(CommandError::WouldOverwrite { path: output });
    }
    let beside = output.with_added_extension("part");
    let mut file = tokio::fs::File::create(&beside).await.map_err(failed)?;
    let mut bytes = 0;
    while let Some(piece) = answer.next(Some(SILENCE_MAX)).await? {
        file.write_all(&piece).await.map_err(failed)?;
        bytes += piece.len() as u64;
    }
    file.flush().await.map_err(failed)?;
    tokio::fs::rename(&beside, &output).await.map_err(failed)?;
    let shown = output.display().to_string();
    context.show(&json!({ "path": path, "output": shown, "bytes": bytes }), |context| {
        Ok(context.terminal.line(&super::scrub::line(&format!("{shown} ({bytes} bytes)")))?)
    })
}

async fn rm(
    session: &SessionId,
    path: &str,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let path = workspace_path(path)?;
    let value = context.client.json(Call::delete(file_path_of(session, &path))).await?;
    context.show(&value, |context| {
        let text = format!("{path} is gone for the next turn");
        Ok(context.terminal.line(&super::scrub::line(&text))?)
    })
}

async fn history(session: &SessionId, context: &mut Context<'_>) -> Result<(), CommandError> {
    let value = context.client.json(Call::get(path_of(session, "checkpoints"))).await?;
    context.show(&value, |context| {
        let checkpoints: Vec<CheckpointView> = context.client.typed(&value)?;
        if checkpoints.is_empty() {
            context.terminal.status(&format!("{session} has no checkpoints yet"));
            return Ok(());
        }
        let mut table = Table::new(["NUMBER", "TAKEN", "FILES", "BYTES", "AFTER"]);
        for one in &checkpoints {
            table.row([
                one.number.to_string(),
                context.moment.clock_and_distance(one.at_ms),
                one.files.to_string(),
                one.bytes.to_string(),
                one.turn.map_or_else(|| "-".to_owned(), |turn| turn.message.to_string()),
            ]);
        }
        Ok(context.terminal.line(&table.render())?)
    })
}

async fn restore(
    session: &SessionId,
    checkpoint: u64,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let call = Call::post(path_of(session, "restore")).json(&RestoreBody { checkpoint });
    let value = context.client.json(call).await?;
    context.show(&value, |context| {
        let text = format!("the next start of {session} begins with checkpoint {checkpoint}");
        Ok(context.terminal.line(&text)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_where_they_are_asked_to_go() {
        let folder = tempfile::tempdir().unwrap();
        let local = folder.path().join("a.csv");
        std::fs::write(&local, "1").unwrap();
        std::fs::create_dir(folder.path().join("d")).unwrap();
        std::fs::write(folder.path().join("d/b.csv"), "2").unwrap();
        std::os::unix::fs::symlink("b.csv", folder.path().join("d/link")).unwrap();
        let to = |locals: &[&Path], to: Option<&str>| {
            let locals: Vec<PathBuf> = locals.iter().map(|path| path.to_path_buf()).collect();
            let placed = placed(&locals, to).map_err(|error| error.to_string())?;
            Ok(placed.into_iter().map(|file| file.1.to_string()).collect::<Vec<_>>())
        };
        let d = folder.path().join("d");
        assert_eq!(to(&[&local], None), Ok(vec!["a.csv".to_owned()]));
        assert_eq!(to(&[&local], Some("data/x.csv")), Ok(vec!["data/x.csv".to_owned()]));
        assert_eq!(to(&[&local], Some("data/")), Ok(vec!["data/a.csv".to_owned()]));
        assert_eq!(to(&[&d], Some("in")), Ok(vec!["in/b.csv".to_owned()]));
        let both = to(&[&local, &d], Some("in"));
        assert_eq!(both, Ok(vec!["in/a.csv".to_owned(), "in/d/b.csv".to_owned()]));
        let refused: Result<_, String> = to(&[&local], Some("../x"));
        assert!(refused.unwrap_err().contains("../x"));
    }
}

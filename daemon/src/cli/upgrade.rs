//! `upgrade`: another program takes over from the daemon of this machine's data folder.
//!
//! Invariants: it is asked for on a socket in the data folder, never over HTTP; what it prints as
//! done is done. Absent: the hand-over (`handover`).

use std::io;
use std::path::{Path, PathBuf};

use dormouse_core::time::millis;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::arguments::Upgrade;
use super::error::CommandError;
use super::terminal::Terminal;
use crate::handover::door::{self, Stage, Wanted};

pub(crate) fn upgrade(
    arguments: Upgrade,
    data: &Path,
    as_json: bool,
    terminal: &mut Terminal,
) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(CommandError::Runtime)?;
    runtime.block_on(follow(arguments, data, as_json, terminal))
}

pub(crate) async fn follow(
    arguments: Upgrade,
    data: &Path,
    as_json: bool,
    terminal: &mut Terminal,
) -> Result<(), CommandError> {
    let Upgrade { exec, migrate, within } = arguments;
    let exec = absolute(exec)?;
    let nobody = |source| CommandError::NoDoor { data: data.to_owned(), source };
    let path = door::path_of(data).map_err(|error| nobody(io::Error::other(error)))?;
    let mut stream = UnixStream::connect(path).await.map_err(nobody)?;
    let mut request = json!(Wanted { exec, migrate, within_ms: millis(within) }).to_string();
    request.push('\n');
    stream.write_all(request.as_bytes()).await.map_err(nobody)?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let line = lines.next_line().await.map_err(nobody)?;
        let stage = line.and_then(|line| serde_json::from_str::<Stage>(&line).ok());
        let Some(stage) = stage else {
            let why = "the daemon ended meanwhile; `dormouse ps` shows whether one answers";
            return Err(CommandError::UpgradeFailed { why: why.to_owned() });
        };
        if as_json && !matches!(stage, Stage::Failed { .. }) {
            terminal.json_line(&json!(stage))?;
        }
        match stage {
            Stage::Prepared { version, pid } if !as_json => {
                terminal.status(&format!("dormouse {version} is prepared (process {pid})"));
            }
            Stage::Parked { connections } if !as_json => {
                terminal.status(&format!("handing over, with {connections} open connections"));
            }
            Stage::Prepared { .. } | Stage::Parked { .. } => {}
            Stage::Done { version, pid, paused_ms } => {
                if !as_json {
                    terminal.line(&format!(
                        "dormouse {version} serves (process {pid}); requests waited {paused_ms} ms"
                    ))?;
                }
                return Ok(());
            }
            Stage::Failed { why } => return Err(CommandError::UpgradeFailed { why }),
        }
    }
}

/// The daemon works in another folder than this command.
fn absolute(exec: Option<PathBuf>) -> Result<PathBuf, CommandError> {
    let (found, path) = match exec {
        Some(path) => (std::path::absolute(&path), path),
        None => (std::env::current_exe(), PathBuf::from("this program")),
    };
    found.map_err(|source| CommandError::LocalFile { path, source })
}

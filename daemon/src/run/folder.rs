//! What lies in the data folder besides the store: the operator's key, the deployment's secret, the
//! examples.
//!
//! ```text
//!  dormouse.db  lock      the store
//!  operator.key           the first API key, for this machine's own commands (0600)
//!  deployment.secret      from which each instance's token is made (0600)
//!  address                where the daemon listens, for this machine's own commands
//!  secrets/NAME           values of agents' secrets, put there by the operator
//!  examples/              the agents that come with the program
//!  run/ workspaces/ logs/ control.sock    the edge's: see its `paths`
//! ```
//!
//! Owner: `run`. Invariants: a file with a secret in it is never readable by others, not even for a
//! moment; files are written beside and renamed. Absent: the store's own files.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dormouse_core::id::Subject;
use dormouse_store::{Reader, Store};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};

use super::RunError;
use crate::engine::clock::wall_now;
use crate::keys::{self, SCOPE_OPERATOR};
use crate::random;

pub(crate) const OPERATOR_KEY_FILE: &str = "operator.key";
pub(crate) const ADDRESS_FILE: &str = "address";
const SECRET_FILE: &str = "deployment.secret";
/// What `{examples}` in a config leads to: folder, file, text.
const EXAMPLES: [(&str, &str, &str); 5] = [
    ("python", "executor.py", include_str!("../../../examples/python/executor.py")),
    ("cli", "notes.py", include_str!("../../../examples/cli/notes.py")),
    ("openclaw", "gateway.mjs", include_str!("../../../examples/openclaw/gateway.mjs")),
    ("openclaw", "openclaw.json", include_str!("../../../examples/openclaw/openclaw.json")),
    ("openclaw", "scripted_model.py", include_str!("../../../examples/openclaw/scripted_model.py")),
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("there is no home folder to keep data in; name a folder with --data")]
    NoHome,
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not what was written there: it must have 32 bytes", path.display())]
    Secret { path: PathBuf },
}

/// The folder that was named, else the user's data folder.
pub(crate) fn data_folder(named: Option<&Path>) -> Result<PathBuf, FolderError> {
    if let Some(named) = named {
        return std::path::absolute(named).map_err(|source| FolderError::Io {
            doing: "find",
            path: named.to_owned(),
            source,
        });
    }
    let is_set =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    is_set("XDG_DATA_HOME")
        .or_else(|| is_set("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("dormouse"))
        .ok_or(FolderError::NoHome)
}

/// The first key of a new installation, so that this machine's own commands work.
pub(super) fn ensure_operator_key(data: &Path, store: &mut Store) -> Result<(), RunError> {
    let path = data.join(OPERATOR_KEY_FILE);
    let known = Reader::open(data)?.keys()?;
    if path.exists() || known.iter().any(|key| key.revoked_at.is_none()) {
        return Ok(());
    }
    let subject = Subject::new("operator").expect("a plain word");
    let scopes = vec![SCOPE_OPERATOR.to_owned()];
    let (key, token) = keys::make("this machine".to_owned(), subject, scopes, wall_now());
    let mut batch = store.batch();
    batch.insert_key(&key)?;
    batch.commit()?;
    write_private(&path, token.as_bytes())?;
    Ok(())
}

/// 32 random bytes, made once: what bridges were told must hold after a restart.
pub(super) fn deployment_secret(data: &Path) -> Result<[u8; 32], FolderError> {
    let path = data.join(SECRET_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|_| FolderError::Secret { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = random::bytes::<32>();
            write_private(&path, &secret)?;
            Ok(secret)
        }
        Err(source) => Err(FolderError::Io { doing: "read", path, source }),
    }
}

/// Names this installation on the machine, without telling the secret.
pub(super) fn deployment_name(secret: &[u8; 32]) -> String {
    let mut name = random::hex(&Sha256::digest(secret));
    name.truncate(12);
    name
}

pub(super) fn note_address(data: &Path, address: SocketAddr) -> Result<(), FolderError> {
    write_private(&data.join(ADDRESS_FILE), address.to_string().as_bytes())
}

pub(super) fn unpack_examples(data: &Path) -> Result<(), FolderError> {
    for (folder, name, text) in EXAMPLES {
        let folder = data.join("examples").join(folder);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&folder)
            .map_err(|source| FolderError::Io { doing: "make", path: folder.clone(), source })?;
        let path = folder.join(name);
        let is_same = std::fs::read(&path).is_ok_and(|there| there == text.as_bytes());
        if !is_same {
            write_private(&path, text.as_bytes())?;
        }
    }
    Ok(())
}

/// Written beside, synced, and renamed; readable by this user alone.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    let beside = path.with_extension("new");
    let written = || -> io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        // The name is durable only with its folder.
        std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    written().map_err(|source| FolderError::Io { doing: "write", path: path.to_owned(), source })
}

/// How a bridge is executed: this same program, unless another is named.
pub(super) fn bridge_command() -> Result<Vec<std::ffi::OsString>, RunError> {
    if let Some(named) = std::env::var_os("DORMOUSE_BRIDGE").filter(|named| !named.is_empty()) {
        return Ok(vec![named]);
    }
    let this = std::env::current_exe()
        .map_err(|source| RunError::System { what: "to say which program this is", source })?;
    Ok(vec![this.into_os_string(), "bridge".into()])
}

/// Connections, bridges and files need descriptors; the soft limit is often 1,024.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

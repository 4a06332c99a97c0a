//! Where things lie in the data folder, and how its folders are made.
//!
//! ```text
//!  DATA/control.sock                 the socket that bridges dial
//!  DATA/files.sock                   the socket on which they fetch and send files
//!  DATA/run/<hash>-<generation>/     one per living instance; gone once its end is on disk
//!  DATA/workspaces/<agent>-<hash>/   one per session; the agent's working directory
//!  DATA/logs/<agent>-<hash>/         one per session
//! ```
//!
//! `<hash>` is the first 16 hexadecimal digits of SHA-256 over the session's id. Owner: the
//! drivers. Invariants: names are derived from ids, never taken from outside; folders are for the
//! owner alone (0700). Absent: the store's file, and what lies inside a run folder
//! (`dormouse_bridge::rundir`).

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dormouse_core::id::{InstanceId, SessionId};
use sha2::{Digest, Sha256};

use crate::token::hexadecimal;

const HASH_DIGITS: usize = 16;

/// The data folder of one deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFolder {
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("the folder {} could not be made ready", folder.display())]
pub struct FolderError {
    pub folder: PathBuf,
    #[source]
    pub source: io::Error,
}

impl DataFolder {
    /// Makes the folders that are missing. `root` may exist with any rights and be reached through
    /// links; it becomes absolute, since bridges have another working directory, and must be UTF-8,
    /// since it travels in frames.
    pub fn open(root: &Path) -> Result<Self, FolderError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
        let found = made.and_then(|()| fs::canonicalize(root)).and_then(|root| {
            let is_text = root.to_str().is_some();
            if is_text { Ok(root) } else { Err(io::Error::other("its path is not UTF-8")) }
        });
        let data = match found {
            Ok(root) => Self { root },
            Err(source) => return Err(FolderError { folder: root.to_owned(), source }),
        };
        for folder in [data.run(), data.workspaces(), data.logs()] {
            make_private_folder(&folder)?;
        }
        Ok(data)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    pub fn files_socket(&self) -> PathBuf {
        self.root.join("files.sock")
    }

    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    pub fn workspaces(&self) -> PathBuf {
        self.root.join("workspaces")
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn run_folder_of(&self, instance: &InstanceId) -> PathBuf {
        self.run().join(instance_name(instance))
    }

    pub fn workspace_of(&self, session: &SessionId) -> PathBuf {
        self.workspaces().join(session_name(session))
    }

    pub fn logs_of(&self, session: &SessionId) -> PathBuf {
        self.logs().join(session_name(session))
    }
}

/// `<hash>-<generation>`: the name of an instance's run folder and of its control groups.
pub fn instance_name(instance: &InstanceId) -> String {
    format!("{}-{}", session_hash(&instance.session), instance.generation)
}

/// `<agent>-<hash>`: readable, and distinct whatever the key is.
fn session_name(session: &SessionId) -> String {
    format!("{}-{}", session.agent(), session_hash(session))
}

fn session_hash(session: &SessionId) -> String {
    let mut digits = hexadecimal(&Sha256::digest(session.as_str().as_bytes()));
    digits.truncate(HASH_DIGITS);
    digits
}

/// Makes `folder` for the owner alone, or checks that it is a folder and takes the others' rights
/// away.
pub(crate) fn make_private_folder(folder: &Path) -> Result<(), FolderError> {
    let make = || {
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let metadata = fs::symlink_metadata(folder)?;
        if !metadata.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    };
    make().map_err(|source| FolderError { folder: folder.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use dormouse_core::id::Generation;

    use super::*;
    use crate::testing::ScratchFolder;

    #[test]
    fn names_are_derived_readable_and_distinct() {
        let scratch = ScratchFolder::new();
        let data = DataFolder::open(scratch.path()).unwrap();
        let session: SessionId = "python/tom.o:1".parse().unwrap();
        let other: SessionId = "python/tom.o:2".parse().unwrap();
        let instance = InstanceId { session: session.clone(), generation: Generation(12) };
        // printf python/tom.o:1 | sha256sum | cut -c-16
        assert_eq!(instance_name(&instance), "1860a1e4faf5a7a0-12");
        assert!(data.workspace_of(&session).ends_with("workspaces/python-1860a1e4faf5a7a0"));
        assert_ne!(data.workspace_of(&session), data.workspace_of(&other));
        assert_ne!(data.logs_of(&session), data.logs_of(&other));
    }

    #[test]
    fn its_folders_are_for_the_owner_alone_and_the_given_root_keeps_its_rights() {
        let scratch = ScratchFolder::new();
        let root = scratch.path().join("data");
        fs::create_dir_all(root.join("run")).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
        let data = DataFolder::open(&root).unwrap();
        let mode = |folder: &Path| fs::metadata(folder).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root), 0o755);
        for folder in [data.run(), data.workspaces(), data.logs()] {
            assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        }
    }

    #[test]
    fn a_link_in_place_of_a_folder_is_refused() {
        let scratch = ScratchFolder::new();
        symlink("/etc", scratch.path().join("run")).unwrap();
        let error = DataFolder::open(scratch.path()).unwrap_err();
        assert!(error.folder.ends_with("run"), "{error:?}");
    }
}

//! Where the control socket lies: in the data folder, or in a short folder where its path would be
//! too long.
//!
//! Owner: `control`. Invariants: the answer is the same after a restart, whatever the environment
//! is then, since bridges that are still running dial it; a short folder is made for the owner
//! alone, or found so. A socket file is removed only when nobody listens on it. Absent: listening.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::BindError;
use crate::paths::FolderError;
use crate::token::hexadecimal;

/// The kernel takes 107 bytes.
const PATH_BYTES_MAX: usize = 100;

/// `wanted` itself if it is short enough, else a path in a short folder, remembered in `wanted` +
/// `.path`.
pub(super) fn socket_path(
    wanted: &Path,
    runtime_folder: Option<&Path>,
) -> Result<PathBuf, BindError> {
    if is_short(wanted) {
        return Ok(wanted.to_owned());
    }
    let memo = wanted.with_added_extension("path");
    let folder = match remembered(&memo)? {
        Some(folder) => folder,
        None => chosen(wanted, runtime_folder),
    };
    make_own_folder(&folder)?;
    fs::write(&memo, folder.as_os_str().as_encoded_bytes()).map_err(|source| BindError::Io {
        doing: "written",
        path: memo,
        source,
    })?;
    Ok(folder.join("control.sock"))
}

fn is_short(path: &Path) -> bool {
    path.as_os_str().len() <= PATH_BYTES_MAX
}

fn remembered(memo: &Path) -> Result<Option<PathBuf>, BindError> {
    match fs::read_to_string(memo) {
        Ok(text) => Ok(Some(PathBuf::from(text)).filter(|f| f.is_absolute() && is_short(f))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BindError::Io { doing: "read", path: memo.to_owned(), source }),
    }
}

/// Named after the data folder's socket, so that two deployments of one user do not meet.
fn chosen(wanted: &Path, runtime_folder: Option<&Path>) -> PathBuf {
    let digest = hexadecimal(&Sha256::digest(wanted.as_os_str().as_encoded_bytes()));
    let name = format!("dormouse-{}", &digest[..16]);
    let below = |folder: &Path| folder.join(&name);
    runtime_folder
        .filter(|folder| folder.is_absolute())
        .map(below)
        .filter(|folder| is_short(&folder.join("control.sock")))
        .unwrap_or_else(|| below(Path::new("/tmp")))
}

/// In a folder that everybody may write to, one that is there already may be somebody else's trap.
fn make_own_folder(folder: &Path) -> Result<(), FolderError> {
    let make = || {
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let metadata = fs::symlink_metadata(folder)?;
        let is_own = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
        if is_own && metadata.permissions().mode() & 0o077 == 0 {
            return Ok(());
        }
        Err(io::Error::other("it exists, and is not a folder for this user alone"))
    };
    make().map_err(|source| FolderError { folder: folder.to_owned(), source })
}

/// Removes the socket that a daemon left behind when it died.
pub(super) fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io_error = |doing, source| BindError::Io { doing, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_error("looked at", source)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| io_error("removed", source))
        }
        // A full queue of dialling bridges means that somebody listens, too.
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(BindError::InUse { path: path.to_owned() })
        }
        Err(source) => Err(io_error("asked whether anybody listens", source)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::testing::ScratchFolder;

    fn long_path(scratch: &ScratchFolder) -> PathBuf {
        let folder = scratch.path().join("d".repeat(120));
        fs::create_dir(&folder).unwrap();
        folder.join("control.sock")
    }

    #[test]
    fn a_path_of_a_hundred_bytes_is_kept_and_one_more_is_not() {
        let scratch = ScratchFolder::new();
        let folder = scratch.path().as_os_str().len() + 1;
        let fits = scratch.path().join("s".repeat(PATH_BYTES_MAX - folder));
        assert_eq!(socket_path(&fits, None).unwrap(), fits);
        let long = scratch.path().join("s".repeat(PATH_BYTES_MAX - folder + 1));
        let short = socket_path(&long, Some(scratch.path())).unwrap();
        assert!(short.starts_with(scratch.path()) && is_short(&short), "{}", short.display());
        assert_ne!(short, long);
    }

    #[test]
    fn the_short_path_outlives_a_change_of_the_environment() {
        let (scratch, runtime) = (ScratchFolder::new(), ScratchFolder::new());
        let wanted = long_path(&scratch);
        let first = socket_path(&wanted, Some(runtime.path())).unwrap();
        let again = socket_path(&wanted, None).unwrap();
        assert_eq!(first, again);
        assert_eq!(
            fs::metadata(first.parent().unwrap()).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_short_folder_that_others_could_have_made_is_refused() {
        let (scratch, runtime) = (ScratchFolder::new(), ScratchFolder::new());
        let wanted = long_path(&scratch);
        let trap = chosen(&wanted, Some(runtime.path()));
        symlink("/etc", &trap).unwrap();
        let refused = socket_path(&wanted, Some(runtime.path())).unwrap_err();
        assert!(matches!(refused, BindError::Folder(_)), "{refused:?}");
        fs::remove_file(&trap).unwrap();
        fs::create_dir(&trap).unwrap();
        fs::set_permissions(&trap, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = socket_path(&wanted, Some(runtime.path())).unwrap_err();
        assert!(matches!(refused, BindError::Folder(_)), "{refused:?}");
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_removed() {
        let scratch = ScratchFolder::new();
        let path = scratch.path().join("control.sock");
        remove_stale(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(remove_stale(&path), Err(BindError::InUse { .. })));
        drop(listener);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(remove_stale(&path), Err(BindError::NotASocket { .. })));
        assert!(path.exists());
    }
}

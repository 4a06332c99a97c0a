//! A config file that Dormouse itself writes, because an operator sent its text.
//!
//! Owner: `reload`. Invariants: the file has the old text or the new one, whole, whatever happens;
//! what the name leads to is written, and a link stays a link. Absent: what is written.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;

use super::ReloadError;

/// `None`: there is no file.
pub(super) async fn write(path: Option<PathBuf>, text: String) -> Result<(), ReloadError> {
    let path = path.ok_or(ReloadError::BuiltIn)?;
    let work = move || replace(&path, &text).map_err(|source| (path, source));
    match spawn_blocking(work).await {
        Ok(written) => written.map_err(|(path, source)| ReloadError::Write { path, source }),
        Err(_) => Err(ReloadError::Engine(crate::engine::request::AskError::Ended)),
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::read(&target).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    let folder = target.parent().unwrap_or(Path::new("/"));
    let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    let beside = folder.join(beside);
    let written = fill(&beside, text, &target).and_then(|()| fs::rename(&beside, &target));
    if written.is_err() {
        // What is left of it would only be in the way; the first error is the one to tell.
        drop(fs::remove_file(&beside));
    }
    written?;
    File::open(folder)?.sync_all()
}

fn fill(beside: &Path, text: &str, like: &Path) -> io::Result<()> {
    let mut file = File::create(beside)?;
    if let Ok(there) = fs::metadata(like) {
        file.set_permissions(there.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_of_a_link_is_replaced_and_keeps_its_mode() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real", &link).unwrap();
        replace(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside it");
    }

    #[test]
    fn where_nothing_can_be_written_the_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no/such/folder.toml");
        assert!(replace(&missing, "new").is_err());
    }
}

//! One workspace as all that work on it share it.
//!
//! Owner: the desk makes one when a first sync names its folder. Invariants: what changes the
//! workspace, or reads it for a checkpoint, holds the gate alone; streams that write into the
//! staging folder share it. A piece of work that nobody waits for any more goes on to the end of
//! its step, and the next one begins after that. Absent: what is done.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dormouse_core::manifest::FilePath;
use rustix::io::Errno;

use crate::files::beneath::{Folder, Identity, Seen};
use crate::files::digest::Digester;
use crate::files::marker::{self, Marker};
use dormouse_core::manifest::ContentId;

/// In the workspace's root, where whatever is complete can be renamed from.
pub(crate) const STAGING: &str = ".dormouse-sync";
const READ_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct Workspace {
    path: PathBuf,
    pub(crate) root: Folder,
    identity: Identity,
    gate: RwLock<()>,
    known: Mutex<Known>,
}

/// What is known of it; read from its marker at first use.
#[derive(Debug, Default)]
pub(crate) struct Known {
    is_read: bool,
    pub(crate) marker: Option<Marker>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkspaceError {
    #[error("the workspace cannot be opened")]
    Open(#[source] std::io::Error),
    #[error("what is known of the workspace cannot be read")]
    ReadMarker(#[source] std::io::Error),
    #[error("what is known of the workspace cannot be written")]
    WriteMarker(#[source] std::io::Error),
    #[error("{path}")]
    At { path: String, source: std::io::Error },
}

impl WorkspaceError {
    pub(crate) fn at(path: impl ToString) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::At { path: path.to_string(), source: errno.into() }
    }

    /// Which file it is about.
    pub(crate) fn paths(&self) -> Vec<String> {
        match self {
            WorkspaceError::At { path, .. } => vec![path.clone()],
            _ => Vec::new(),
        }
    }
}

impl Workspace {
    pub(crate) fn open(path: &Path) -> Result<Self, WorkspaceError> {
        let opened = |errno: Errno| WorkspaceError::Open(errno.into());
        let root = Folder::root(path).map_err(opened)?;
        let identity = root.identity().map_err(opened)?;
        let (gate, known) = (RwLock::default(), Mutex::default());
        Ok(Self { path: path.to_path_buf(), root, identity, gate, known })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// To write into the staging folder beside others.
    pub(crate) fn share(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be the only one.
    pub(crate) fn own(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn known(&self) -> Result<MutexGuard<'_, Known>, WorkspaceError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.is_read {
            let path = marker::path_for(&self.path);
            known.marker =
                marker::read(&path, self.identity).map_err(WorkspaceError::ReadMarker)?;
            known.is_read = true;
        }
        Ok(known)
    }

    /// Puts it on disk.
    pub(crate) fn save(&self, known: &Known) -> Result<(), WorkspaceError> {
        let Some(marker) = &known.marker else { return Ok(()) };
        let path = marker::path_for(&self.path);
        marker::write(&path, self.identity, marker).map_err(WorkspaceError::WriteMarker)
    }
}

/// What a file holds, and what it was while that was read. `None`: it was changed meanwhile.
pub(crate) fn read_content(
    folder: &Folder,
    name: &str,
    mut digester: Digester,
) -> Result<Option<(Seen, ContentId)>, Errno> {
    let file = folder.open_file(name)?;
    let before = crate::files::beneath::seen_of(&file)?;
    let mut buffer = vec![0; READ_BYTES.min(before.stamp.bytes as usize + 1)];
    let mut bytes = 0;
    loop {
        match rustix::io::read(&file, &mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                digester.update(&buffer[..read]);
                bytes += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if bytes > before.stamp.bytes {
            return Ok(None);
        }
    }
    let after = crate::files::beneath::seen_of(&file)?;
    let is_same = before.stamp == after.stamp && bytes == after.stamp.bytes;
    Ok(digester.finish().filter(|_| is_same).map(|content| (after, content)))
}

/// The folders of many paths, opened one after the other: most follow one in the same folder.
#[derive(Debug)]
pub(crate) struct FolderCache<'a> {
    root: &'a Folder,
    last: Option<(String, Folder)>,
}

impl<'a> FolderCache<'a> {
    pub(crate) fn new(root: &'a Folder) -> Self {
        Self { root, last: None }
    }

    /// The folder of that path, if there is one.
    pub(crate) fn of(&mut self, path: &FilePath) -> Result<Option<&Folder>, Errno> {
        let folder = path.folder().unwrap_or_default();
        if self.last.as_ref().is_none_or(|(name, _)| name != folder) {
            match self.root.folder(folder) {
                Ok(opened) => self.last = Some((folder.to_string(), opened)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
        Ok(self.last.as_ref().map(|(_, folder)| folder))
    }

    /// The folder of that path, made where it is missing.
    pub(crate) fn make(&mut self, path: &FilePath) -> Result<&Folder, Errno> {
        let folder = path.folder().unwrap_or_default();
        match self.last.take() {
            Some(last) if last.0 == folder => self.last = Some(last),
            _ => self.last = Some((folder.to_string(), self.root.make_folders(folder)?)),
        }
        let (_, folder) = self.last.as_ref().expect("it was set in either case");
        Ok(folder)
    }

    /// What was opened may have been removed.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }
}

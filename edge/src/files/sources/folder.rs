//! Inputs in a folder of this machine.
//!
//! Owner: `sources`. Invariants: every name is opened below the folder's own handle by the kernel's
//! rules (`RESOLVE_BENEATH`), so that no link, swapped in at whatever moment, leads out; a hash is
//! remembered only with the size, times and number of the file that it was read from, and not while
//! the file is so young that another write could leave all of them as they are. Absent: watching.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use dormouse_core::limits;
use dormouse_core::manifest::{ContentId, FileEntry, FileKind, FilePath, Sha256Hash};
use futures_util::TryStreamExt as _;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::SourceError;
use crate::files::reading::{Begun, PIECE_BYTES, PieceStream, blocking, pieces};

/// A file that was written within this time is read again next time: a further write could happen
/// in the same tick of the file system's clock.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// A file that changes while it is read is read again so often.
const READS_MAX: u32 = 3;

/// By what an unchanged file is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, u64),
    changed: (i64, u64),
    device: u64,
    inode: u64,
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            bytes: stat.st_size.unsigned_abs(),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let settled_before = seconds.saturating_sub(SETTLED_AFTER.as_secs());
        let youngest = self.modified.0.max(self.changed.0);
        u64::try_from(youngest).is_ok_and(|youngest| youngest < settled_before)
    }
}

type Known = HashMap<FilePath, (Stamp, Sha256Hash)>;

/// What the files of each folder were at its last listing.
#[derive(Debug, Default)]
pub(super) struct KnownFiles {
    folders: Arc<Mutex<HashMap<PathBuf, Arc<Known>>>>,
    /// How many files were read, for tests.
    #[cfg(test)]
    pub(super) hashed: Arc<std::sync::atomic::AtomicU64>,
    /// Seconds by which listings are later than they are, for tests.
    #[cfg(test)]
    pub(super) now_ahead: std::sync::atomic::AtomicU64,
}

impl KnownFiles {
    pub(super) async fn list(&self, root: PathBuf) -> Result<Vec<FileEntry>, SourceError> {
        let folders = Arc::clone(&self.folders);
        let begun_at = self.now();
        #[cfg(test)]
        let hashed = Arc::clone(&self.hashed);
        blocking(move || {
            let known = {
                let folders = folders.lock().unwrap_or_else(PoisonError::into_inner);
                folders.get(&root).cloned().unwrap_or_default()
            };
            let mut walk = Walk::new(&root, known, begun_at)?;
            walk.folder("", &mut Vec::new())?;
            #[cfg(test)]
            hashed.fetch_add(walk.hashed, std::sync::atomic::Ordering::Relaxed);
            let Walk { mut entries, seen, .. } = walk;
            folders.lock().unwrap_or_else(PoisonError::into_inner).insert(root, Arc::new(seen));
            entries.sort_by(|a, b| a.path.cmp(&b.path));
            Ok(entries)
        })
        .await
    }

    fn now(&self) -> SystemTime {
        #[cfg(test)]
        let ahead = self.now_ahead.load(std::sync::atomic::Ordering::Relaxed);
        #[cfg(not(test))]
        let ahead = 0;
        SystemTime::now() + Duration::from_secs(ahead)
    }
}

pub(super) async fn open(
    root: PathBuf,
    path: FilePath,
    content: &ContentId,
    bytes: u64,
) -> Result<PieceStream<SourceError>, SourceError> {
    let name = root.join(path.as_str()).display().to_string();
    if !matches!(content, ContentId::Sha256(_)) {
        // It was listed when the source was a bucket.
        return Err(SourceError::Changed(name));
    }
    let shown = name.clone();
    let begun = blocking(move || {
        let folder = open_root(&root)?;
        let file = match open_below(&folder, path.as_str(), OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(SourceError::Gone(shown)),
            Err(error) => return Err(of_open(error, &shown)),
        };
        let metadata = file.metadata().map_err(io_error("looked at", &shown))?;
        if !metadata.is_file() || metadata.len() != bytes {
            return Err(SourceError::Changed(shown));
        }
        Begun::new(file, bytes).map_err(|error| of_read(error, &shown))
    });
    let stream = begun.await?.stream().map_err(move |error| of_read(error, &name));
    Ok(pieces(stream))
}

/// It became shorter while it was read.
fn of_read(error: io::Error, name: &str) -> SourceError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SourceError::Changed(name.to_owned()),
        _ => io_error("read", name)(error),
    }
}

fn of_open(error: Errno, name: &str) -> SourceError {
    match error {
        Errno::XDEV | Errno::LOOP => SourceError::LinkLeadsOut(name.to_owned()),
        _ => io_error("opened", name)(error.into()),
    }
}

fn io_error(doing: &'static str, name: &str) -> impl Fn(io::Error) -> SourceError + use<> {
    let name = name.to_owned();
    move |source| SourceError::Io { doing, name: name.clone(), source }
}

fn open_root(root: &Path) -> Result<OwnedFd, SourceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => SourceError::NoFolder(root.to_owned()),
        _ => io_error("opened", &root.display().to_string())(error.into()),
    })
}

fn open_below(root: &OwnedFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), rules) {
            // The kernel could not be sure, since something was renamed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// One listing.
#[derive(Debug)]
struct Walk {
    root: OwnedFd,
    root_name: PathBuf,
    known: Arc<Known>,
    seen: Known,
    entries: Vec<FileEntry>,
    begun_at: SystemTime,
    hashed: u64,
}

impl Walk {
    fn new(root: &Path, known: Arc<Known>, begun_at: SystemTime) -> Result<Self, SourceError> {
        Ok(Self {
            root: open_root(root)?,
            root_name: root.to_owned(),
            known,
            seen: Known::new(),
            entries: Vec::new(),
            begun_at,
            hashed: 0,
        })
    }

    /// `above`: device and number of each folder on the way, so that a link back is seen.
    fn folder(&mut self, path: &str, above: &mut Vec<(u64, u64)>) -> Result<(), SourceError> {
        let shown = self.shown(path);
        let beneath = if path.is_empty() { "." } else { path };
        let opened = open_below(&self.root, beneath, OFlags::RDONLY | OFlags::DIRECTORY);
        let folder = opened.map_err(|error| of_open(error, &shown))?;
        let stat = rustix::fs::fstat(&folder);
        let stat = stat.map_err(|error| io_error("looked at", &shown)(error.into()))?;
        let identity = (stat.st_dev, stat.st_ino);
        if above.contains(&identity) {
            return Err(SourceError::Loop(shown));
        }
        above.push(identity);
        let listed = Dir::read_from(&folder);
        let listed = listed.map_err(|error| io_error("listed", &shown)(error.into()))?;
        let mut is_empty = true;
        for item in listed {
            let item = item.map_err(|error| io_error("listed", &shown)(error.into()))?;
            let name = OsStr::from_bytes(item.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            is_empty = false;
            let below = self.path_of(path, name)?;
            self.item(&folder, below, above)?;
        }
        above.pop();
        if is_empty && let Ok(path) = FilePath::new(path) {
            self.add(path, FileKind::Folder)?;
        }
        Ok(())
    }

    fn item(
        &mut self,
        folder: &OwnedFd,
        path: FilePath,
        above: &mut Vec<(u64, u64)>,
    ) -> Result<(), SourceError> {
        let shown = self.shown(path.as_str());
        let looked = rustix::fs::statat(folder, path.name(), AtFlags::SYMLINK_NOFOLLOW);
        let mut stat = match looked {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(SourceError::Changed(shown)),
            Err(error) => return Err(io_error("looked at", &shown)(error.into())),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            stat = self.behind_link(path.as_str(), &shown)?;
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.folder(path.as_str(), above),
            FileType::RegularFile => {
                let (stamp, hash) = match self.known.get(&path) {
                    Some((stamp, hash)) if *stamp == Stamp::of(&stat) => (*stamp, *hash),
                    Some(_) | None => self.hash(path.as_str(), &shown)?,
                };
                let kind = FileKind::File {
                    bytes: stamp.bytes,
                    content: ContentId::Sha256(hash),
                    is_executable: stat.st_mode & 0o100 != 0,
                };
                if stamp.is_settled(self.begun_at) {
                    self.seen.insert(path.clone(), (stamp, hash));
                }
                self.add(path, kind)
            }
            _ => Err(SourceError::Special(shown)),
        }
    }

    fn behind_link(&self, path: &str, shown: &str) -> Result<Stat, SourceError> {
        let leads_out = || SourceError::LinkLeadsOut(shown.to_owned());
        match open_below(&self.root, path, OFlags::PATH) {
            Ok(file) => {
                rustix::fs::fstat(&file).map_err(|error| io_error("looked at", shown)(error.into()))
            }
            Err(Errno::XDEV | Errno::LOOP | Errno::NOENT | Errno::NOTDIR) => Err(leads_out()),
            Err(error) => Err(io_error("opened", shown)(error.into())),
        }
    }

    /// The stamp is that of the bytes that were hashed: the same before and after.
    fn hash(&mut self, path: &str, shown: &str) -> Result<(Stamp, Sha256Hash), SourceError> {
        self.hashed += 1;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        for _ in 0..READS_MAX {
            let opened = open_below(&self.root, path, flags);
            let mut file = File::from(opened.map_err(|error| of_open(error, shown))?);
            let before = stamp_of(&file, shown)?;
            let mut hasher = Sha256::new();
            let mut piece = vec![0; PIECE_BYTES.min(before.bytes as usize + 1)];
            loop {
                match file.read(&mut piece).map_err(io_error("read", shown))? {
                    0 => break,
                    count => hasher.update(&piece[..count]),
                }
            }
            if stamp_of(&file, shown)? == before {
                return Ok((before, Sha256Hash(hasher.finalize().into())));
            }
        }
        Err(SourceError::Changed(shown.to_owned()))
    }

    fn add(&mut self, path: FilePath, kind: FileKind) -> Result<(), SourceError> {
        if self.entries.len() >= limits::FILES_MAX {
            let place = self.root_name.display().to_string();
            return Err(SourceError::TooMany { place });
        }
        self.entries.push(FileEntry { path, kind });
        Ok(())
    }

    fn path_of(&self, folder: &str, name: &OsStr) -> Result<FilePath, SourceError> {
        let slash = if folder.is_empty() { "" } else { "/" };
        let refused = |why, name: &str| SourceError::Name {
            place: format!("{}/", self.root_name.display()),
            name: format!("{folder}{slash}{name}"),
            why,
        };
        let Some(text) = name.to_str() else {
            let why = dormouse_core::manifest::PathError::Character;
            return Err(refused(why, &name.to_string_lossy()));
        };
        FilePath::new(&format!("{folder}{slash}{text}")).map_err(|why| refused(why, text))
    }

    fn shown(&self, path: &str) -> String {
        self.root_name.join(path).display().to_string()
    }
}

fn stamp_of(file: impl AsFd, shown: &str) -> Result<Stamp, SourceError> {
    let stat = rustix::fs::fstat(file);
    stat.map(|stat| Stamp::of(&stat)).map_err(|error| io_error("looked at", shown)(error.into()))
}

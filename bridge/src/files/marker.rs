//! What is known of a workspace from one life to the next, in a file beside it.
//!
//! Owner: `apply` and `checkpoint` change it, one at a time. Invariants: the file appears whole and
//! on disk; `is_whole` is false on disk before a restore touches anything; a row of the stat cache
//! is believed only while size, both times and inode are what they were, and only if the bytes were
//! older than the clock's tick when it was written down. A missing or broken file is no knowledge,
//! nor is one of a folder that was removed and made anew.
//! Absent: the workspace itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dormouse_core::manifest::{ContentId, FileEntry, FilePath};
use serde::{Deserialize, Serialize};

use crate::files::beneath::{Identity, Stamp};

/// File systems take their times from a clock that may tick this seldom: what was written within
/// one tick cannot be told from what was written after it.
pub(crate) const CLOCK_TICK: Duration = Duration::from_millis(12);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) lineage: u64,
    /// The newest upload that was written.
    pub(crate) uploads: u64,
    pub(crate) is_whole: bool,
    /// The inputs that the bridge has written or found equal.
    pub(crate) inputs: BTreeSet<FilePath>,
    pub(crate) cache: StatCache,
    pub(crate) last: Option<LastCheckpoint>,
}

/// The newest tree that the daemon is known to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastCheckpoint {
    /// `None`: it was restored, and its number was not told.
    pub(crate) number: Option<u64>,
    pub(crate) uploads: u64,
    pub(crate) entries: Vec<FileEntry>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Row>", into = "Vec<Row>")]
pub(crate) struct StatCache(BTreeMap<FilePath, (Stamp, ContentId)>);

/// Path, size, both times in nanoseconds, inode, content.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row(FilePath, u64, i64, i64, u64, ContentId);

impl From<Vec<Row>> for StatCache {
    fn from(rows: Vec<Row>) -> Self {
        let row = |Row(path, bytes, mtime_ns, ctime_ns, inode, content)| {
            (path, (Stamp { bytes, mtime_ns, ctime_ns, inode }, content))
        };
        Self(rows.into_iter().map(row).collect())
    }
}

impl From<StatCache> for Vec<Row> {
    fn from(cache: StatCache) -> Self {
        let row = |(path, (stamp, content)): (FilePath, (Stamp, ContentId))| {
            let Stamp { bytes, mtime_ns, ctime_ns, inode } = stamp;
            Row(path, bytes, mtime_ns, ctime_ns, inode, content)
        };
        cache.0.into_iter().map(row).collect()
    }
}

impl StatCache {
    /// What the file held when it was last read, if nothing has touched it since.
    pub(crate) fn content(&self, path: &FilePath, stamp: &Stamp) -> Option<&ContentId> {
        self.0.get(path).filter(|(known, _)| known == stamp).map(|(_, content)| content)
    }

    /// Believed from now on. What was changed within the clock's last tick is not.
    pub(crate) fn insert(&mut self, path: FilePath, stamp: Stamp, content: ContentId) {
        match is_settled(stamp.mtime_ns, now_ns()) {
            true => self.0.insert(path, (stamp, content)),
            false => self.0.remove(&path),
        };
    }

    pub(crate) fn remove(&mut self, path: &FilePath) {
        self.0.remove(path);
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&FilePath) -> bool) {
        self.0.retain(|path, _| keep(path));
    }
}

fn is_settled(mtime_ns: i64, now_ns: i64) -> bool {
    let tick_ns = i64::try_from(CLOCK_TICK.as_nanos()).unwrap_or(i64::MAX);
    mtime_ns.saturating_add(tick_ns) < now_ns
}

pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Beside the workspace, never in it.
pub(crate) fn path_for(workspace: &Path) -> PathBuf {
    let mut name = workspace.as_os_str().to_owned();
    name.push(".state");
    name.into()
}

/// As it lies on disk: of which folder it tells.
#[derive(Debug, Serialize, Deserialize)]
struct Kept<Of> {
    root: Identity,
    marker: Of,
}

/// `None`: there is none that can be believed, or it is of another folder of that name.
pub(crate) fn read(path: &Path, root: Identity) -> io::Result<Option<Marker>> {
    match fs::read(path) {
        Ok(bytes) => {
            let kept: Option<Kept<Marker>> = serde_json::from_slice(&bytes).ok();
            Ok(kept.filter(|kept| kept.root == root).map(|kept| kept.marker))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn write(path: &Path, root: Identity, marker: &Marker) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&serde_json::to_vec(&Kept { root, marker })?)?;
    file.sync_data()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use dormouse_core::manifest::{FileKind, Sha256Hash};

    use super::*;
    use crate::files::beneath::Folder;
    use crate::testing::Scratch;

    fn path(text: &str) -> FilePath {
        FilePath::new(text).unwrap()
    }

    fn stamp() -> Stamp {
        Stamp { bytes: 3, mtime_ns: 1, ctime_ns: 2, inode: 9 }
    }

    fn content() -> ContentId {
        ContentId::Sha256(Sha256Hash::of(b"abc"))
    }

    #[test]
    fn a_marker_reads_back_as_it_was_written_and_is_for_its_owner_alone() {
        let scratch = Scratch::new();
        let workspace = scratch.path().join("workspace");
        fs::create_dir(&workspace).unwrap();
        let root = || Folder::root(&workspace).unwrap().identity().unwrap();
        let first = root();
        let at = path_for(&workspace);
        assert_eq!(read(&at, first).unwrap(), None);
        let mut marker = Marker { lineage: 3, uploads: 2, is_whole: true, ..Marker::default() };
        marker.inputs.insert(path("data/a"));
        marker.cache.insert(path("b"), stamp(), content());
        let entries = vec![FileEntry { path: path("b"), kind: FileKind::Folder }];
        marker.last = Some(LastCheckpoint { number: Some(4), uploads: 2, entries });
        write(&at, first, &marker).unwrap();
        assert_eq!(read(&at, root()).unwrap(), Some(marker.clone()));
        fs::remove_dir(&workspace).unwrap();
        fs::create_dir(&workspace).unwrap();
        assert_eq!(read(&at, root()).unwrap(), None, "it is another folder of that name");
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o777, 0o600);
        assert_eq!(at.file_name().unwrap(), "workspace.state");
        fs::write(&at, "{\"lineage\": 3").unwrap();
        assert_eq!(read(&at, first).unwrap(), None);
    }

    #[test]
    fn a_row_is_believed_only_while_nothing_of_its_stamp_changed() {
        let mut cache = StatCache::default();
        cache.insert(path("a"), stamp(), content());
        assert_eq!(cache.content(&path("a"), &stamp()), Some(&content()));
        assert_eq!(cache.content(&path("b"), &stamp()), None);
        for other in [
            Stamp { bytes: 4, ..stamp() },
            Stamp { mtime_ns: 5, ..stamp() },
            Stamp { ctime_ns: 5, ..stamp() },
            Stamp { inode: 5, ..stamp() },
        ] {
            assert_eq!(cache.content(&path("a"), &other), None);
        }
    }

    #[test]
    fn bytes_of_this_very_moment_are_not_remembered() {
        let mut cache = StatCache::default();
        let fresh = Stamp { mtime_ns: now_ns(), ..stamp() };
        cache.insert(path("a"), fresh, content());
        assert_eq!(cache.content(&path("a"), &fresh), None);
        let future = Stamp { mtime_ns: i64::MAX, ..stamp() };
        cache.insert(path("a"), future, content());
        assert_eq!(cache.content(&path("a"), &future), None);
    }
}

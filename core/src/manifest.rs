//! What files there are to be, or are: path, size and hash of each, in one canonical form.
//!
//! ```text
//!  a session's files = inputs (its agent's, read anew before each turn)
//!                    + uploads (its own, applied once each, then the agent's to change)
//!                    + checkpoint (what the agent made of it, restored where it is gone)
//! ```
//!
//! Owner: whoever lists files makes a [`Manifest`]; `session::files` compares versions. Invariants:
//! a manifest is sorted by path, names nothing twice, and can be written below one folder on any
//! file system: no two of its names differ in case alone, and no file is another's folder. The same
//! files have the same digest. Absent: reading and writing files.

mod path;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::limits;

pub use path::{FilePath, PathError};

/// SHA-256 of a file's bytes, or of a manifest's canonical form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Hash(pub [u8; 32]);

impl Sha256Hash {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 is 64 lower-case hexadecimal digits")]
pub struct NotASha256;

impl std::str::FromStr for Sha256Hash {
    type Err = NotASha256;
    fn from_str(text: &str) -> Result<Self, NotASha256> {
        let is_well_formed =
            text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_well_formed {
            return Err(NotASha256);
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| NotASha256)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NotASha256)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Sha256Hash {
    type Error = NotASha256;
    fn try_from(text: String) -> Result<Self, NotASha256> {
        text.parse()
    }
}

impl From<Sha256Hash> for String {
    fn from(hash: Sha256Hash) -> String {
        hash.to_string()
    }
}

/// By what a file's bytes are told from others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContentId {
    Sha256(Sha256Hash),
    /// An object of somebody else's, known by the version that its store gave it. Printable ASCII
    /// without quotes or spaces.
    Etag(Box<str>),
}

impl ContentId {
    /// `None`: not a version that could stand in a manifest.
    pub fn etag(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches("W/").trim_matches('"');
        let is_plain = (1..=limits::ETAG_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
        is_plain.then(|| Self::Etag(text.into()))
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentId::Sha256(hash) => write!(f, "sha256:{hash}"),
            ContentId::Etag(etag) => write!(f, "etag:{etag}"),
        }
    }
}

/// Neither a SHA-256 nor a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what a file contains is told as sha256:DIGITS or etag:VERSION")]
pub struct NotAContentId;

impl std::str::FromStr for ContentId {
    type Err = NotAContentId;
    fn from_str(text: &str) -> Result<Self, NotAContentId> {
        match text.split_once(':') {
            Some(("sha256", digits)) => digits.parse().map(Self::Sha256).map_err(|_| NotAContentId),
            Some(("etag", etag)) => {
                let id = Self::etag(etag).filter(|id| id.to_string() == text);
                id.ok_or(NotAContentId)
            }
            _other => Err(NotAContentId),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FileKind {
    File {
        bytes: u64,
        content: ContentId,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_executable: bool,
    },
    /// A symbolic link that leads to somewhere in the same tree.
    Link { target: Box<str> },
    /// A folder with nothing in it; the others follow from the paths of what is in them.
    Folder,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub path: FilePath,
    #[serde(flatten)]
    pub kind: FileKind,
}

impl FileEntry {
    /// 0 for what has no bytes of its own.
    pub fn bytes(&self) -> u64 {
        match &self.kind {
            FileKind::File { bytes, .. } => *bytes,
            FileKind::Link { .. } | FileKind::Folder => 0,
        }
    }
}

/// The digest of a manifest's canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ManifestDigest(pub Sha256Hash);

impl fmt::Display for ManifestDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A whole tree. Sorted by path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<FileEntry>", into = "Vec<FileEntry>")]
pub struct Manifest(Vec<FileEntry>);

/// Why files cannot lie in one tree. Names the entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("{0} is there twice")]
    Twice(FilePath),
    #[error("{0} and {1} differ in case alone, which not every file system can tell apart")]
    CaseAlone(FilePath, FilePath),
    #[error("{file} is a file, and a folder on the way to {below}")]
    FileIsFolder { file: FilePath, below: FilePath },
    #[error("{path} leads to {target}, which is outside of the workspace")]
    LinkLeadsOut { path: FilePath, target: String },
    #[error("there are more than {max} files")]
    TooMany { max: usize },
    #[error("the files are larger than {max} bytes together")]
    TooLarge { max: u64 },
}

/// Why a text is no manifest's canonical form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseManifestError {
    #[error("line {0} is not understood")]
    Line(usize),
    #[error("its files are not in order")]
    Unsorted,
    #[error(transparent)]
    Tree(#[from] ManifestError),
}

impl Manifest {
    pub fn new(mut entries: Vec<FileEntry>) -> Result<Self, ManifestError> {
        if entries.len() > limits::FILES_MAX {
            return Err(ManifestError::TooMany { max: limits::FILES_MAX });
        }
        let bytes = entries.iter().map(FileEntry::bytes).fold(0, u64::saturating_add);
        if bytes > limits::FILES_BYTES_MAX {
            return Err(ManifestError::TooLarge { max: limits::FILES_BYTES_MAX });
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        check_names(&entries)?;
        for entry in &entries {
            if let FileKind::Link { target } = &entry.kind
                && !entry.path.link_stays_inside(target)
            {
                let (path, target) = (entry.path.clone(), target.to_string());
                return Err(ManifestError::LinkLeadsOut { path, target });
            }
        }
        Ok(Self(entries))
    }

    pub fn entries(&self) -> &[FileEntry] {
        &self.0
    }

    pub fn into_entries(self) -> Vec<FileEntry> {
        self.0
    }

    pub fn get(&self, path: &FilePath) -> Option<&FileEntry> {
        self.0.binary_search_by(|entry| entry.path.cmp(path)).ok().map(|index| &self.0[index])
    }

    pub fn bytes(&self) -> u64 {
        self.0.iter().map(FileEntry::bytes).sum()
    }

    /// One line for each entry, as it is hashed: kind, mode, size, content, path.
    pub fn canonical(&self) -> String {
        use fmt::Write as _;
        let mut text = String::with_capacity(self.0.len() * 128);
        for FileEntry { path, kind } in &self.0 {
            let written = match kind {
                FileKind::File { bytes, content, is_executable } => {
                    let mode = if *is_executable { 'x' } else { '-' };
                    writeln!(text, "file {mode} {bytes} {content} {path}")
                }
                // A path has no control characters, so that a line break ends each of the two.
                FileKind::Link { target } => writeln!(text, "link {path}\n{target}"),
                FileKind::Folder => writeln!(text, "folder {path}"),
            };
            written.expect("a String takes whatever is written");
        }
        text
    }

    /// Reads what `canonical` wrote, and nothing else.
    pub fn parse(text: &str) -> Result<Self, ParseManifestError> {
        let mut entries = Vec::new();
        let mut lines = text.split_inclusive('\n').zip(1..);
        while let Some((line, number)) = lines.next() {
            let target = || lines.next().and_then(|(line, _)| line.strip_suffix('\n'));
            let entry = line.strip_suffix('\n').and_then(|line| parse_line(line, target));
            entries.push(entry.ok_or(ParseManifestError::Line(number))?);
        }
        let is_sorted = entries.is_sorted_by(|one, other| one.path < other.path);
        let manifest = Self::new(entries)?;
        if is_sorted { Ok(manifest) } else { Err(ParseManifestError::Unsorted) }
    }

    pub fn digest(&self) -> ManifestDigest {
        ManifestDigest(Sha256Hash::of(self.canonical().as_bytes()))
    }
}

fn parse_line<'a>(line: &str, target: impl FnOnce() -> Option<&'a str>) -> Option<FileEntry> {
    let (word, rest) = line.split_once(' ')?;
    let (path, kind) = match word {
        "file" => {
            let mut parts = rest.splitn(4, ' ');
            let is_executable = match parts.next()? {
                "x" => true,
                "-" => false,
                _other => return None,
            };
            let bytes = parts.next()?;
            let has_one_spelling = bytes.parse().is_ok_and(|n: u64| n.to_string() == bytes);
            let bytes = bytes.parse().ok().filter(|_| has_one_spelling)?;
            let content = parts.next()?.parse().ok()?;
            (parts.next()?, FileKind::File { bytes, content, is_executable })
        }
        "link" => (rest, FileKind::Link { target: target()?.into() }),
        "folder" => (rest, FileKind::Folder),
        _other => return None,
    };
    Some(FileEntry { path: FilePath::new(path).ok()?, kind })
}

impl TryFrom<Vec<FileEntry>> for Manifest {
    type Error = ManifestError;
    fn try_from(entries: Vec<FileEntry>) -> Result<Self, ManifestError> {
        Self::new(entries)
    }
}

impl From<Manifest> for Vec<FileEntry> {
    fn from(manifest: Manifest) -> Self {
        manifest.0
    }
}

/// Every name of the tree, those of the folders on the way included, is there in one spelling, and
/// is either a folder or not.
fn check_names(sorted: &[FileEntry]) -> Result<(), ManifestError> {
    let mut names: BTreeMap<String, (&str, bool, &FilePath)> = BTreeMap::new();
    for entry in sorted {
        let text = entry.path.as_str();
        let is_folder = matches!(entry.kind, FileKind::Folder);
        let folders = text.match_indices('/').map(|(end, _)| (&text[..end], true));
        for (name, is_way) in folders.chain([(text, false)]) {
            let found = (name, is_way || is_folder, &entry.path);
            let Some(known) = names.insert(path::folded(name), found) else { continue };
            if known.0 != name {
                return Err(ManifestError::CaseAlone(known.2.clone(), entry.path.clone()));
            }
            if !is_way && known.2.as_str() == text {
                return Err(ManifestError::Twice(entry.path.clone()));
            }
            if !known.1 {
                let (file, below) = (known.2.clone(), entry.path.clone());
                return Err(ManifestError::FileIsFolder { file, below });
            }
            if !is_way && !is_folder {
                let (file, below) = (entry.path.clone(), known.2.clone());
                return Err(ManifestError::FileIsFolder { file, below });
            }
        }
    }
    Ok(())
}

/// What a turn is to find: the newest inputs, and every upload up to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FilesVersion {
    pub inputs: ManifestDigest,
    /// The number of the session's newest upload; 0 before the first.
    pub uploads: u64,
}

#[cfg(test)]
mod tests;

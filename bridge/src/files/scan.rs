//! A workspace as a manifest: what an agent has made of it.
//!
//! Owner: `checkpoint`. Invariants: inputs, excluded names and Dormouse's own are no part of it;
//! what is otherwise not in the manifest is left out by name, with why; a file is in it with bytes
//! that it had at one moment; a file that nothing has touched since it was last read is not read
//! again. Absent: the blobs, and where they go.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_core::limits;
use dormouse_core::manifest::{
    ContentId, FileEntry, FileKind, FilePath, Manifest, ManifestError, PathError,
};
use rustix::io::Errno;

use crate::files::beneath::{Entry, Folder, Kind, Stamp};
use crate::files::digest::Digester;
use crate::files::exclude::Excludes;
use crate::files::marker::StatCache;
use crate::files::wire::{CheckpointPolicy, LeftOut};
use crate::files::workspace::{WorkspaceError, read_content};

/// A file that is another one each time it is read is left out.
const READS_MAX: u32 = 3;
/// Names beyond this many are only counted.
const LEFT_OUT_MAX: usize = 1_000;
const CHANGES: &str = "it changes while it is read";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    #[error("the workspace has more than {max} files")]
    TooMany { max: u64 },
    #[error("the workspace's files have more than {max} bytes together")]
    TooLarge { max: u64 },
    #[error("the workspace cannot be listed")]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
}

#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) manifest: Manifest,
    /// In the order in which it was found.
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) left_out_count: usize,
    /// What had to be read.
    pub(crate) read: Vec<(FilePath, Stamp, ContentId)>,
}

/// What to look at, and what not.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    root: &'a Folder,
    cache: &'a StatCache,
    inputs: &'a BTreeSet<FilePath>,
    /// Files that were seen to change again and again.
    restless: &'a BTreeSet<FilePath>,
    excludes: Excludes,
    files_max: u64,
    bytes_max: u64,
    entries: Vec<FileEntry>,
    bytes: u64,
    scan: Scan,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(
        root: &'a Folder,
        policy: &CheckpointPolicy,
        cache: &'a StatCache,
        inputs: &'a BTreeSet<FilePath>,
        restless: &'a BTreeSet<FilePath>,
    ) -> Self {
        Self {
            root,
            cache,
            inputs,
            restless,
            excludes: Excludes::new(policy.exclude.iter().map(String::as_str)),
            files_max: policy.files_max.min(limits::FILES_MAX as u64),
            bytes_max: policy.bytes_max.min(limits::FILES_BYTES_MAX),
            entries: Vec::new(),
            bytes: 0,
            scan: Scan::default(),
        }
    }

    pub(crate) fn run(mut self) -> Result<Scan, ScanError> {
        let mut waiting: Vec<Option<FilePath>> = vec![None];
        while let Some(at) = waiting.pop() {
            let text = at.as_ref().map_or("", FilePath::as_str);
            let folder = match self.root.folder(text) {
                Ok(folder) => folder,
                // It was removed, or is no folder any more.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if at.is_some() => continue,
                Err(errno) if at.is_some() => {
                    self.leave_out(text, format!("it cannot be opened: {errno}"));
                    continue;
                }
                Err(errno) => return Err(WorkspaceError::at("the workspace")(errno).into()),
            };
            let kept = self.folder(&folder, at.as_ref(), &mut waiting)?;
            if let Some(path) = at
                && kept == 0
            {
                self.add(FileEntry { path, kind: FileKind::Folder })?;
            }
        }
        self.scan.manifest = Manifest::new(self.entries)?;
        Ok(self.scan)
    }

    /// Gives how many of the folder's entries make it more than an empty one.
    fn folder(
        &mut self,
        folder: &Folder,
        at: Option<&FilePath>,
        waiting: &mut Vec<Option<FilePath>>,
    ) -> Result<usize, ScanError> {
        let mut entries = folder.entries().map_err(WorkspaceError::at(
            at.map_or_else(|| "the workspace".to_string(), ToString::to_string),
        ))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let mut spellings: BTreeMap<String, String> = BTreeMap::new();
        let mut kept = 0;
        for entry in entries {
            let Some(path) = self.path_of(at, &entry) else { continue };
            if self.inputs.contains(&path) {
                kept += 1;
                continue;
            }
            if self.excludes.matches(path.as_str()) {
                continue;
            }
            let name = path.name().to_string();
            let folded = name.chars().flat_map(char::to_lowercase).collect();
            if let Some(other) = spellings.get(&folded) {
                let why = format!("its name differs from {other} in case alone");
                self.leave_out(path.as_str(), why);
                continue;
            }
            let is_kept = self.entry(folder, &path, waiting)?;
            if is_kept {
                kept += 1;
                spellings.insert(folded, name);
            }
        }
        Ok(kept)
    }

    /// `None`: it can be in no manifest.
    fn path_of(&mut self, at: Option<&FilePath>, entry: &Entry) -> Option<FilePath> {
        let shown = || {
            let name = entry.name.to_string_lossy();
            at.map_or_else(|| name.to_string(), |at| format!("{at}/{name}"))
        };
        let Ok(name) = entry.name.to_str() else {
            self.leave_out(&shown(), "its name is not text".to_string());
            return None;
        };
        match at.map_or_else(|| FilePath::new(name), |at| at.join(name)) {
            Ok(path) => Some(path),
            Err(PathError::Reserved) => None,
            Err(error) => {
                if !self.excludes.matches(&shown()) {
                    self.leave_out(&shown(), error.to_string());
                }
                None
            }
        }
    }

    fn entry(
        &mut self,
        folder: &Folder,
        path: &FilePath,
        waiting: &mut Vec<Option<FilePath>>,
    ) -> Result<bool, ScanError> {
        let seen = match folder.look(path.name()) {
            Ok(Some(seen)) => seen,
            Ok(None) => return Ok(false),
            Err(errno) => {
                self.leave_out(path.as_str(), format!("it cannot be looked at: {errno}"));
                return Ok(false);
            }
        };
        match seen.kind {
            Kind::Folder => {
                waiting.push(Some(path.clone()));
                Ok(true)
            }
            Kind::Other => {
                let why = "it is a socket, a pipe or a device".to_string();
                self.leave_out(path.as_str(), why);
                Ok(false)
            }
            Kind::Link => self.link(folder, path),
            Kind::File if self.restless.contains(path) => {
                self.leave_out(path.as_str(), CHANGES.to_string());
                Ok(false)
            }
            Kind::File => {
                let known = self.cache.content(path, &seen.stamp);
                match known.filter(|content| matches!(content, ContentId::Sha256(_))) {
                    Some(content) => {
                        let (bytes, content) = (seen.stamp.bytes, content.clone());
                        let is_executable = seen.is_executable;
                        let kind = FileKind::File { bytes, content, is_executable };
                        self.add(FileEntry { path: path.clone(), kind })?;
                        Ok(true)
                    }
                    None => self.read(folder, path),
                }
            }
        }
    }

    fn read(&mut self, folder: &Folder, path: &FilePath) -> Result<bool, ScanError> {
        for _ in 0..READS_MAX {
            match read_content(folder, path.name(), Digester::sha256()) {
                Ok(Some((seen, content))) => {
                    self.scan.read.push((path.clone(), seen.stamp, content.clone()));
                    let (bytes, is_executable) = (seen.stamp.bytes, seen.is_executable);
                    let kind = FileKind::File { bytes, content, is_executable };
                    self.add(FileEntry { path: path.clone(), kind })?;
                    return Ok(true);
                }
                Ok(None) => {}
                Err(Errno::NOENT) => return Ok(false),
                Err(errno) => {
                    self.leave_out(path.as_str(), format!("it cannot be read: {errno}"));
                    return Ok(false);
                }
            }
        }
        self.leave_out(path.as_str(), CHANGES.to_string());
        Ok(false)
    }

    fn link(&mut self, folder: &Folder, path: &FilePath) -> Result<bool, ScanError> {
        let target = match folder.link_target(path.name()) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
            Err(errno) => {
                self.leave_out(path.as_str(), format!("it cannot be read: {errno}"));
                return Ok(false);
            }
        };
        match target.to_str() {
            Ok(target) if path.link_stays_inside(target) => {
                let kind = FileKind::Link { target: target.into() };
                self.add(FileEntry { path: path.clone(), kind })?;
                Ok(true)
            }
            _ => {
                let why = "it is a link that leads out of the workspace".to_string();
                self.leave_out(path.as_str(), why);
                Ok(false)
            }
        }
    }

    fn add(&mut self, entry: FileEntry) -> Result<(), ScanError> {
        self.bytes = self.bytes.saturating_add(entry.bytes());
        self.entries.push(entry);
        if self.entries.len() as u64 > self.files_max {
            return Err(ScanError::TooMany { max: self.files_max });
        }
        if self.bytes > self.bytes_max {
            return Err(ScanError::TooLarge { max: self.bytes_max });
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &str, why: String) {
        self.scan.left_out_count += 1;
        if self.scan.left_out.len() < LEFT_OUT_MAX {
            self.scan.left_out.push(LeftOut { path: path.to_string(), why });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use dormouse_core::manifest::Sha256Hash;

    use super::*;
    use crate::testing::Scratch;

    fn path(text: &str) -> FilePath {
        FilePath::new(text).unwrap()
    }

    fn scan_with(
        scratch: &Scratch,
        policy: &CheckpointPolicy,
        cache: &StatCache,
        inputs: &[&str],
    ) -> Result<Scan, ScanError> {
        let root = Folder::root(scratch.path()).unwrap();
        let inputs = inputs.iter().map(|text| path(text)).collect();
        Scanner::new(&root, policy, cache, &inputs, &BTreeSet::new()).run()
    }

    fn scan(scratch: &Scratch) -> Scan {
        let policy = CheckpointPolicy {
            exclude: vec!["node_modules".into(), "*.sock".into()],
            ..CheckpointPolicy::default()
        };
        scan_with(scratch, &policy, &StatCache::default(), &["data/in.csv"]).unwrap()
    }

    fn left_out(scan: &Scan) -> Vec<String> {
        scan.left_out.iter().map(|LeftOut { path, why }| format!("{path}: {why}")).collect()
    }

    #[test]
    fn a_tree_is_listed_and_what_is_not_in_it_is_named() {
        let scratch = Scratch::new();
        let at = |name: &str| scratch.path().join(name);
        for folder in ["a/b", "empty", "data", "node_modules/x", "only/node_modules"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for (name, text) in [
            ("a/b/c", "see"),
            ("data/in.csv", "input"),
            ("node_modules/x/y", ""),
            ("Same", "1"),
            ("same", "2"),
            (".dormouse-x", ""),
            ("dot.", ""),
            ("run", "#!/bin/sh"),
        ] {
            fs::write(at(name), text).unwrap();
        }
        fs::set_permissions(at("run"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("b/c", at("a/in")).unwrap();
        symlink("../../etc", at("a/out")).unwrap();
        fs::hard_link(at("a/b/c"), at("a/hard")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("left.sock")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), fifo, mode, 0).unwrap();

        let scan = scan(&scratch);
        let sha = |text: &str| Sha256Hash::of(text.as_bytes());
        let expected = [
            format!("file - 1 sha256:{} Same", sha("1")),
            format!("file - 3 sha256:{} a/b/c", sha("see")),
            format!("file - 3 sha256:{} a/hard", sha("see")),
            "link a/in\nb/c".into(),
            "folder empty".into(),
            "folder only".into(),
            format!("file x 9 sha256:{} run", sha("#!/bin/sh")),
        ];
        assert_eq!(scan.manifest.canonical(), expected.map(|line| line + "\n").concat());
        assert_eq!(
            left_out(&scan),
            [
                "dot.: no name ends in a dot or in a space",
                "pipe: it is a socket, a pipe or a device",
                "same: its name differs from Same in case alone",
                "a/out: it is a link that leads out of the workspace",
            ]
        );
    }

    #[test]
    fn what_nothing_has_touched_is_not_read_again() {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("a"), "1").unwrap();
        std::thread::sleep(crate::files::marker::CLOCK_TICK * 2);
        let policy = CheckpointPolicy::default();
        let first = scan(&scratch);
        let mut cache = StatCache::default();
        for (path, stamp, content) in first.read {
            cache.insert(path, stamp, content);
        }
        let second = scan_with(&scratch, &policy, &cache, &[]).unwrap();
        assert!(second.read.is_empty());
        assert_eq!(second.manifest, first.manifest);
        fs::write(scratch.path().join("a"), "2").unwrap();
        let third = scan_with(&scratch, &policy, &cache, &[]).unwrap();
        assert_eq!(third.read.len(), 1);
        assert_ne!(third.manifest, first.manifest);
    }

    #[test]
    fn a_workspace_beyond_its_limits_is_no_checkpoint() {
        let scratch = Scratch::new();
        for name in ["a", "b", "c"] {
            fs::write(scratch.path().join(name), "12").unwrap();
        }
        let with = |files_max, bytes_max| {
            let policy = CheckpointPolicy { files_max, bytes_max, ..CheckpointPolicy::default() };
            scan_with(&scratch, &policy, &StatCache::default(), &[])
        };
        assert_eq!(with(3, 6).unwrap().manifest.entries().len(), 3);
        assert!(matches!(with(2, 6), Err(ScanError::TooMany { max: 2 })));
        assert!(matches!(with(3, 5), Err(ScanError::TooLarge { max: 5 })));
    }
}

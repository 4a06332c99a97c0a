//! What a workspace is to hold, from a plan and from what is known of it.
//!
//! Owner: `apply`. Pure. Invariants: inputs win over uploads, and later uploads over earlier ones
//! and over the checkpoint; nothing in a target is another thing's folder unless it is a folder.
//! Absent: what is there already.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_core::manifest::{FileKind, FilePath};

use crate::files::marker::Marker;
use crate::files::wire::SyncPlan;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) kind: FileKind,
    pub(crate) is_input: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Target {
    pub(crate) wants: BTreeMap<FilePath, Want>,
    /// To be gone, where nothing else is wanted there.
    pub(crate) deletes: BTreeSet<FilePath>,
    /// Inputs that the bridge wrote and that are none any more.
    pub(crate) vanished: BTreeSet<FilePath>,
    /// The tree is to be exactly this, whatever else is there.
    pub(crate) is_restore: bool,
}

/// Whether the workspace has to be restored before anything else.
pub(crate) fn must_restore(plan: &SyncPlan, known: Option<&Marker>) -> bool {
    let is_intact = known.is_some_and(|marker| marker.is_whole && marker.lineage == plan.lineage);
    plan.restore.is_some() && !is_intact
}

/// The uploads that are in the workspace, or in what it is restored to.
pub(crate) fn uploads_before(plan: &SyncPlan, known: Option<&Marker>) -> u64 {
    match known {
        _ if must_restore(plan, known) => plan.restore_uploads,
        Some(marker) if marker.lineage == plan.lineage => marker.uploads,
        _ => 0,
    }
}

impl Target {
    pub(crate) fn of(plan: &SyncPlan, known: Option<&Marker>) -> Self {
        let mut target = Self { is_restore: must_restore(plan, known), ..Self::default() };
        if target.is_restore {
            for entry in plan.restore.iter().flat_map(|manifest| manifest.entries()) {
                target.want(&entry.path, entry.kind.clone(), false);
            }
        }
        let before = uploads_before(plan, known);
        for upload in plan.uploads.iter().filter(|upload| upload.number > before) {
            match &upload.file {
                Some(kind) => target.want(&upload.path, kind.clone(), false),
                None => target.delete(&upload.path),
            }
        }
        for entry in plan.inputs.entries() {
            target.want(&entry.path, entry.kind.clone(), true);
        }
        let inputs = known.iter().flat_map(|marker| &marker.inputs);
        target.vanished =
            inputs.filter(|input| !target.wants.contains_key(input)).cloned().collect();
        target
    }

    fn want(&mut self, path: &FilePath, kind: FileKind, is_input: bool) {
        let is_folder = kind == FileKind::Folder;
        if is_folder && self.has_below(path) {
            // It follows from what is in it.
            return;
        }
        self.drop_below(path);
        let text = path.as_str();
        for (end, _) in text.match_indices('/') {
            if let Ok(above) = FilePath::new(&text[..end]) {
                self.wants.remove(&above);
                self.deletes.remove(&above);
            }
        }
        self.deletes.remove(path);
        self.wants.insert(path.clone(), Want { kind, is_input });
    }

    fn delete(&mut self, path: &FilePath) {
        self.drop_below(path);
        self.wants.remove(path);
        self.deletes.insert(path.clone());
    }

    fn has_below(&self, path: &FilePath) -> bool {
        self.below(path).next().is_some()
    }

    fn drop_below(&mut self, path: &FilePath) {
        let below: Vec<_> = self.below(path).cloned().collect();
        below.iter().for_each(|path| drop(self.wants.remove(path)));
    }

    fn below(&self, path: &FilePath) -> impl Iterator<Item = &FilePath> {
        let (text, prefix) = (path.to_string(), format!("{path}/"));
        // In between is what only begins like it: "a-b" stands between "a" and "a/b".
        self.wants
            .range(path.clone()..)
            .map(|(path, _)| path)
            .take_while(move |path| path.as_str().starts_with(&text))
            .filter(move |path| path.as_str().starts_with(&prefix))
    }

    /// Whether a folder of this name is wanted, or one below it.
    pub(crate) fn folders(&self) -> BTreeSet<&str> {
        let mut folders = BTreeSet::new();
        for (path, want) in &self.wants {
            let text = path.as_str();
            folders.extend(text.match_indices('/').map(|(end, _)| &text[..end]));
            if want.kind == FileKind::Folder {
                folders.insert(text);
            }
        }
        folders
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::manifest::{ContentId, FileEntry, FilesVersion, Manifest, Sha256Hash};

    use super::*;
    use crate::files::wire::{CheckpointPolicy, Upload};

    fn path(text: &str) -> FilePath {
        FilePath::new(text).unwrap()
    }

    fn file(text: &str) -> FileKind {
        let content = ContentId::Sha256(Sha256Hash::of(text.as_bytes()));
        FileKind::File { bytes: text.len() as u64, content, is_executable: false }
    }

    fn manifest(files: &[(&str, &str)]) -> Manifest {
        let entry = |(at, text): &(&str, &str)| FileEntry { path: path(at), kind: file(text) };
        Manifest::new(files.iter().map(entry).collect()).unwrap()
    }

    fn plan(
        restore: Option<&[(&str, &str)]>,
        uploads: &[(u64, &str, Option<&str>)],
        inputs: &[(&str, &str)],
    ) -> SyncPlan {
        let inputs = manifest(inputs);
        let upload = |(number, at, text): &(u64, &str, Option<&str>)| Upload {
            number: *number,
            path: path(at),
            file: text.map(file),
        };
        SyncPlan {
            version: FilesVersion { inputs: inputs.digest(), uploads: uploads.len() as u64 },
            lineage: 2,
            restore: restore.map(manifest),
            restore_uploads: 1,
            inputs,
            uploads: uploads.iter().map(upload).collect(),
            policy: CheckpointPolicy::default(),
        }
    }

    fn known() -> Marker {
        Marker { lineage: 2, is_whole: true, uploads: 2, ..Marker::default() }
    }

    fn wants(target: &Target) -> Vec<(&str, FileKind)> {
        target.wants.iter().map(|(path, want)| (path.as_str(), want.kind.clone())).collect()
    }

    #[test]
    fn a_workspace_is_restored_where_it_is_not_the_plans_or_not_whole() {
        let with = plan(Some(&[("a", "1")]), &[], &[]);
        assert!(must_restore(&with, None));
        assert!(must_restore(&with, Some(&Marker { is_whole: false, ..known() })));
        assert!(must_restore(&with, Some(&Marker { lineage: 1, ..known() })));
        assert!(!must_restore(&with, Some(&known())));
        assert!(!must_restore(&plan(None, &[], &[]), None));
    }

    #[test]
    fn only_uploads_that_the_workspace_does_not_have_are_applied() {
        let uploads = [(1, "a", Some("1")), (2, "b", Some("2")), (3, "c", Some("3"))];
        let plan = plan(Some(&[("k", "0")]), &uploads, &[]);
        let target = Target::of(&plan, Some(&known()));
        assert_eq!(wants(&target), [("c", file("3"))]);
        let target = Target::of(&plan, None);
        assert_eq!(wants(&target), [("b", file("2")), ("c", file("3")), ("k", file("0"))]);
    }

    #[test]
    fn later_uploads_win_and_inputs_win_over_all() {
        let uploads = [
            (3, "a", Some("file")),
            (4, "a/b", Some("below")),
            (5, "a/c", Some("gone")),
            (6, "a/c", None),
            (7, "a-b", Some("beside")),
            (8, "in", Some("upload")),
            (9, "x/y", Some("y")),
            (10, "x", Some("x")),
        ];
        let target = Target::of(&plan(None, &uploads, &[("in", "truth")]), Some(&known()));
        assert_eq!(
            wants(&target),
            [
                ("a-b", file("beside")),
                ("a/b", file("below")),
                ("in", file("truth")),
                ("x", file("x")),
            ]
        );
        assert_eq!(target.deletes, BTreeSet::from([path("a/c")]));
        assert!(target.wants[&path("in")].is_input && !target.wants[&path("x")].is_input);
    }

    #[test]
    fn inputs_that_are_no_longer_in_the_plan_have_vanished() {
        let mut marker = known();
        marker.inputs = BTreeSet::from([path("old/a"), path("kept")]);
        let target = Target::of(&plan(None, &[], &[("kept", "1")]), Some(&marker));
        assert_eq!(target.vanished, BTreeSet::from([path("old/a")]));
    }

    #[test]
    fn folders_follow_from_paths() {
        let target = Target::of(&plan(Some(&[("a/b/c", "1"), ("d", "2")]), &[], &[]), None);
        assert_eq!(target.folders(), BTreeSet::from(["a", "a/b"]));
    }
}

//! Trees that can lie below one folder, and those that cannot.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn file(path: &str) -> FileEntry {
    let content = ContentId::Sha256(Sha256Hash::of(path.as_bytes()));
    let kind = FileKind::File { bytes: 3, content, is_executable: false };
    FileEntry { path: path.parse().unwrap(), kind }
}

fn link(path: &str, target: &str) -> FileEntry {
    FileEntry { path: path.parse().unwrap(), kind: FileKind::Link { target: target.into() } }
}

fn folder(path: &str) -> FileEntry {
    FileEntry { path: path.parse().unwrap(), kind: FileKind::Folder }
}

#[test]
fn the_digest_depends_on_the_files_and_not_on_their_order() {
    let one = Manifest::new(vec![file("b"), file("a/x")]).unwrap();
    let other = Manifest::new(vec![file("a/x"), file("b")]).unwrap();
    assert_eq!(one.digest(), other.digest());
    assert_eq!(one.get(&"b".parse().unwrap()), Some(&file("b")));
    let mut executable = file("b");
    executable.kind = match executable.kind {
        FileKind::File { bytes, content, .. } => {
            FileKind::File { bytes, content, is_executable: true }
        }
        FileKind::Link { .. } | FileKind::Folder => unreachable!(),
    };
    assert_ne!(Manifest::new(vec![file("a/x"), executable]).unwrap().digest(), one.digest());
    // sha256sum < /dev/null
    assert_eq!(
        Manifest::default().digest().to_string(),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
}

#[test]
fn trees_that_not_every_file_system_can_hold_are_refused_by_name() {
    let why = |entries| Manifest::new(entries).unwrap_err().to_string();
    assert_eq!(why(vec![file("a"), file("a")]), "a is there twice");
    assert!(
        why(vec![file("Data.csv"), file("data.csv")]).starts_with("Data.csv and data.csv differ")
    );
    assert!(why(vec![file("D/x"), file("d/y")]).contains("differ in case alone"));
    assert_eq!(why(vec![file("a"), file("a/b")]), "a is a file, and a folder on the way to a/b");
    assert!(why(vec![link("a", "b"), file("a/b")]).contains("on the way to"));
    assert!(why(vec![link("a", "../b")]).contains("outside of the workspace"));
    Manifest::new(vec![folder("a"), file("a/b"), link("l", "a/b")]).unwrap();
}

#[test]
fn it_is_read_back_as_it_was_written_and_a_bad_one_is_not_read() {
    let manifest = Manifest::new(vec![file("a/x"), link("l", "a/x"), folder("empty")]).unwrap();
    let text = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
    assert_eq!(Manifest::parse(&manifest.canonical()), Ok(manifest));
    let escaping = text.replace("\"empty\"", "\"../empty\"");
    assert!(serde_json::from_str::<Manifest>(&escaping).is_err());
}

#[test]
fn a_version_of_an_object_is_taken_without_its_quotes() {
    let etag = |text: &str| ContentId::etag(text).map(|id| id.to_string());
    assert_eq!(
        etag("\"9bb58f26192e4ba00f01e2e7b136bbd8-5\"").unwrap(),
        "etag:9bb58f26192e4ba00f01e2e7b136bbd8-5"
    );
    assert_eq!(etag("W/\"x\"").unwrap(), "etag:x");
    assert_eq!(etag("\"\""), None);
    assert_eq!(etag("a b"), None);
}

#[test]
fn a_text_that_is_not_canonical_is_no_manifest() {
    let text = Manifest::new(vec![file("a"), link("l", "a"), folder("z")]).unwrap().canonical();
    for bad in [
        text.replace(" - 3 ", " - 03 "),
        text.replace("file -", "file w"),
        text.replace("folder z\n", "folder z"),
        text.replace("folder z", "folder ../z"),
        text.replace("folder z", "folder A"),
        text.replace("sha256:", "md5:"),
        format!("{text}{text}"),
    ] {
        assert_ne!(bad, text);
        assert!(Manifest::parse(&bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn whatever_is_read_is_written_the_same_again(
        text in "((file [-x] [0-3] (sha256|etag):[a-z]{0,3} |link |folder )[a-c/]{1,3}\n){0,3}",
    ) {
        if let Ok(manifest) = Manifest::parse(&text) {
            prop_assert_eq!(manifest.canonical(), text);
        }
    }

    #[test]
    fn it_takes_exactly_the_trees_that_a_folder_can_hold(
        paths in prop::collection::vec("[aA](/[bB]){0,2}", 0..6),
    ) {
        // A naive file system that does not tell cases apart.
        let mut spelled: BTreeMap<String, String> = BTreeMap::new();
        let (mut files, mut folders) = (BTreeSet::new(), BTreeSet::new());
        let mut fits = true;
        for path in &paths {
            let names: Vec<&str> = path.split('/').collect();
            for end in 1..=names.len() {
                let name = names[..end].join("/");
                let folded = name.to_lowercase();
                fits &= *spelled.entry(folded).or_insert(name.clone()) == name;
                if end == names.len() {
                    fits &= files.insert(name);
                } else {
                    folders.insert(name);
                }
            }
        }
        fits &= files.is_disjoint(&folders);
        let manifest = Manifest::new(paths.iter().map(|path| file(path)).collect());
        prop_assert_eq!(manifest.is_ok(), fits, "{:?}", paths);
    }
}

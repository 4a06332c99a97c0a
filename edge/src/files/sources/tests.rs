//! Inputs in a folder: what is listed, what is refused, and when files are read.
//!
//! Owner: the tests of `sources`. Invariant: an error is checked for the name in it. Absent:
//! buckets, which have a server in `tests/files_s3.rs`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dormouse_core::manifest::{FileKind, Sha256Hash};
use futures_util::TryStreamExt as _;
use rustix::fs::{CWD, Mode};

use super::*;
use crate::testing::ScratchFolder;

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn source(scratch: &ScratchFolder) -> Source {
    Source::Folder(scratch.path().to_owned())
}

/// `path size hash-of-content`, or `path/` for an empty folder.
fn shown(entries: &[FileEntry]) -> Vec<String> {
    let show = |entry: &FileEntry| match &entry.kind {
        FileKind::File { bytes, is_executable, .. } => {
            format!("{} {bytes}{}", entry.path, if *is_executable { " x" } else { "" })
        }
        FileKind::Folder => format!("{}/", entry.path),
        FileKind::Link { target } => format!("{} -> {target}", entry.path),
    };
    entries.iter().map(show).collect()
}

async fn refused(scratch: &ScratchFolder) -> String {
    Sources::new().list(&source(scratch)).await.unwrap_err().to_string()
}

async fn read(
    sources: &Sources,
    source: &Source,
    entry: &FileEntry,
) -> Result<Vec<u8>, SourceError> {
    let FileKind::File { bytes, content, .. } = &entry.kind else { panic!("{entry:?}") };
    let pieces = sources.open(source, &entry.path, content, *bytes).await?;
    let pieces: Vec<Bytes> = pieces.try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn a_folder_is_listed_whole_with_sizes_hashes_and_modes() {
    let scratch = ScratchFolder::new();
    let root = scratch.path();
    write(root, "b.csv", "b,b");
    write(root, "a/deep/er/x", "x");
    write(root, ".hidden", "");
    fs::create_dir(root.join("empty")).unwrap();
    write(root, "run.sh", "#!");
    fs::set_permissions(root.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("b.csv", root.join("link.csv")).unwrap();
    symlink("../b.csv", root.join("a/up.csv")).unwrap();
    symlink("a/deep", root.join("folder")).unwrap();
    let sources = Sources::new();
    let entries = sources.list(&source(&scratch)).await.unwrap();
    let expected = [
        ".hidden 0",
        "a/deep/er/x 1",
        "a/up.csv 3",
        "b.csv 3",
        "empty/",
        "folder/er/x 1",
        "link.csv 3",
        "run.sh 2 x",
    ];
    assert_eq!(shown(&entries), expected);
    for (index, content) in [(3, "b,b"), (2, "b,b"), (6, "b,b"), (5, "x"), (0, "")] {
        let FileKind::File { content: id, .. } = &entries[index].kind else { panic!() };
        assert_eq!(*id, ContentId::Sha256(Sha256Hash::of(content.as_bytes())));
        let bytes = read(&sources, &source(&scratch), &entries[index]).await.unwrap();
        assert_eq!(bytes, content.as_bytes());
    }
}

#[tokio::test]
async fn links_that_lead_out_or_nowhere_or_in_a_circle_are_refused_by_name() {
    for target in ["/etc/passwd", "../../../../../../etc/passwd", "nowhere", "sub/link", ".."] {
        let scratch = ScratchFolder::new();
        write(scratch.path(), "sub/x", "");
        symlink(target, scratch.path().join("sub/link")).unwrap();
        if target == "sub/link" {
            fs::remove_file(scratch.path().join("sub/link")).unwrap();
            symlink("link", scratch.path().join("sub/link")).unwrap();
        }
        let error = refused(&scratch).await;
        assert!(error.contains("sub/link"), "{target}: {error}");
        let is_loop = target == "..";
        assert_eq!(error.contains("leads back"), is_loop, "{target}: {error}");
    }
}

#[tokio::test]
async fn a_link_that_is_put_in_place_of_a_listed_file_is_not_followed_out() {
    let scratch = ScratchFolder::new();
    let outside = ScratchFolder::new();
    write(outside.path(), "secret", "abc");
    write(scratch.path(), "x", "123");
    let sources = Sources::new();
    let entries = sources.list(&source(&scratch)).await.unwrap();
    fs::remove_file(scratch.path().join("x")).unwrap();
    symlink(outside.path().join("secret"), scratch.path().join("x")).unwrap();
    let error = read(&sources, &source(&scratch), &entries[0]).await.unwrap_err();
    assert!(matches!(error, SourceError::LinkLeadsOut(_)), "{error:?}");
}

#[tokio::test]
async fn names_that_no_workspace_has_and_special_files_are_refused_by_name() {
    for name in ["back\\slash", "dot.", ".dormouse-x", "tab\tname"] {
        let scratch = ScratchFolder::new();
        write(scratch.path(), &format!("sub/{name}"), "");
        let error = refused(&scratch).await;
        assert!(error.contains(&format!("{:?}", format!("sub/{name}"))), "{error}");
    }
    let scratch = ScratchFolder::new();
    rustix::fs::mkfifoat(CWD, scratch.path().join("pipe"), Mode::RUSR).unwrap();
    assert!(refused(&scratch).await.ends_with("/pipe is neither a file nor a folder"));
    let scratch = ScratchFolder::new();
    let gone = Source::Folder(scratch.path().join("gone"));
    let error = Sources::new().list(&gone).await.unwrap_err();
    assert!(matches!(&error, SourceError::NoFolder(path) if path.ends_with("gone")));
}

#[tokio::test]
async fn an_unchanged_folder_is_not_read_again_and_a_changed_file_is() {
    let scratch = ScratchFolder::new();
    let long_ago = SystemTime::now() - Duration::from_secs(3_600);
    for number in 0..20 {
        write(scratch.path(), &format!("file-{number}"), &format!("content {number}"));
    }
    let sources = Sources::new();
    let hashed = || sources.known.hashed.load(Ordering::Relaxed);
    let first = sources.list(&source(&scratch)).await.unwrap();
    assert_eq!(hashed(), 20);
    sources.list(&source(&scratch)).await.unwrap();
    assert_eq!(hashed(), 40, "what was just written is not trusted yet");
    sources.known.now_ahead.store(10, Ordering::Relaxed);
    sources.list(&source(&scratch)).await.unwrap();
    assert_eq!(hashed(), 60);
    assert_eq!(sources.list(&source(&scratch)).await.unwrap(), first);
    assert_eq!(hashed(), 60, "stats are enough");
    // The same size and modification time: the change is seen by the change time.
    write(scratch.path(), "file-7", "CONTENT 7");
    let file = fs::File::options().write(true).open(scratch.path().join("file-7")).unwrap();
    file.set_modified(long_ago).unwrap();
    let second = sources.list(&source(&scratch)).await.unwrap();
    assert_eq!(hashed(), 61);
    assert_ne!(second, first);
    let content = ContentId::Sha256(Sha256Hash::of(b"CONTENT 7"));
    let changed = second.iter().find(|entry| entry.path.as_str() == "file-7").unwrap();
    assert!(matches!(&changed.kind, FileKind::File { content: found, .. } if *found == content));
}

#[tokio::test]
async fn a_file_that_is_not_as_it_was_listed_is_told_and_a_new_listing_helps() {
    let scratch = ScratchFolder::new();
    write(scratch.path(), "x", "123");
    write(scratch.path(), "y", "123");
    let sources = Sources::new();
    let entries = sources.list(&source(&scratch)).await.unwrap();
    write(scratch.path(), "x", "1234");
    fs::remove_file(scratch.path().join("y")).unwrap();
    let error = read(&sources, &source(&scratch), &entries[0]).await.unwrap_err();
    assert!(error.is_retryable() && error.needs_new_listing());
    assert!(error.to_string().ends_with("/x changed since it was listed"));
    let error = read(&sources, &source(&scratch), &entries[1]).await.unwrap_err();
    assert!(!error.is_retryable() && error.needs_new_listing());
    assert!(error.to_string().ends_with("/y vanished since it was listed"));
}

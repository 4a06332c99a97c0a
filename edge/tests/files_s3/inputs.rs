//! Listing and reading inputs, one by one and many at once.
//!
//! Owner: `files::sources` and `files::fetch`. Absent: blobs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_core::manifest::{ContentId, FileEntry, FileKind, FilePath, Sha256Hash};
use dormouse_edge::files::blobs::BlobStore;
use dormouse_edge::files::fetch::{Fetcher, OPEN_FILES_MAX, Origin, PieceKind, Wanted};
use dormouse_edge::files::objects::{ObjectError, ObjectServer};
use dormouse_edge::files::sources::{Source, SourceError, Sources};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::Method;

use crate::server::{BUCKET, Fault, KEY_ID, SECRET, Server, content};

fn source(server: &Server, prefix: &str) -> Source {
    Source::Objects { bucket: server.bucket(), prefix: prefix.to_owned() }
}

async fn list(source: &Source) -> Result<Vec<FileEntry>, SourceError> {
    Sources::new().list(source).await
}

async fn read(source: &Source, entry: &FileEntry) -> Result<Vec<u8>, SourceError> {
    let FileKind::File { bytes, content, .. } = &entry.kind else { panic!("{entry:?}") };
    let pieces = Sources::new().open(source, &entry.path, content, *bytes).await?;
    let pieces: Vec<Bytes> = pieces.try_collect().await?;
    Ok(pieces.concat())
}

/// Nothing that is told has a credential in it.
fn told(error: &SourceError) -> String {
    let text = format!("{error} {error:?}");
    assert!(!text.contains(KEY_ID) && !text.contains(SECRET), "{text}");
    error.to_string()
}

#[tokio::test]
async fn a_listing_of_2500_keys_is_whole_and_in_the_order_of_the_paths() {
    let server = Server::start().await;
    for number in 0..2_500 {
        server.place(&format!("in/{}/{number}.csv", number % 7), number.to_string());
    }
    server.place("in2/not-below.csv", "x");
    server.place("other.csv", "x");
    let entries = list(&source(&server, "in/")).await.unwrap();
    assert_eq!(entries.len(), 2_500);
    assert!(entries.is_sorted_by(|a, b| a.path < b.path));
    assert!(entries.iter().all(|entry| entry.path.as_str().split('/').count() == 2));
    assert_eq!(server.requests().len(), 3, "pages");
    let FileKind::File { content, bytes, .. } = &entries[0].kind else { panic!() };
    // printf 0 | md5sum
    assert_eq!(
        (content, *bytes),
        (&ContentId::etag("cfcd208495d565ef66e7dff9f98764da").unwrap(), 1)
    );
    assert_eq!(list(&source(&server, "")).await.unwrap().len(), 2_502);
    assert_eq!(list(&source(&server, "nothing/")).await.unwrap(), []);
}

#[tokio::test]
async fn versions_that_a_listing_leaves_out_are_asked_for() {
    let server = Server::start().await;
    server.place("in/a b+c%d.csv", "abc");
    server.place("in/ä/?.csv", "");
    let with = list(&source(&server, "in/")).await.unwrap();
    server.manners.lock().unwrap().lists_no_versions = true;
    let without = list(&source(&server, "in/")).await.unwrap();
    assert_eq!(with, without);
    assert_eq!(read(&source(&server, "in/"), &with[0]).await.unwrap(), b"abc");
    assert_eq!(read(&source(&server, "in/"), &with[1]).await.unwrap(), b"");
}

#[tokio::test]
async fn markers_of_folders_are_skipped_and_other_names_that_no_file_has_refuse_the_listing() {
    let server = Server::start().await;
    server.place("in/a.csv", "abc");
    let also = |keys: &[(&str, i64)]| {
        let keys = keys.iter().map(|(key, bytes)| ((*key).to_owned(), *bytes)).collect();
        server.manners.lock().unwrap().also_listed = keys;
    };
    also(&[("in/", 0), ("in/sub/", 0)]);
    assert_eq!(list(&source(&server, "in/")).await.unwrap().len(), 1);
    for key in ["in/../etc/passwd", "in//x", "in/a\\b", "in/end.", "in/sub/", "in/./x"] {
        also(&[(key, 5)]);
        let error = list(&source(&server, "in/")).await.unwrap_err();
        assert!(told(&error).contains(&format!("{key:?}")), "{error}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn an_object_that_changed_since_it_was_listed_is_told_whatever_the_server_looks_at() {
    let server = Server::start().await;
    let source = source(&server, "in/");
    for ignores_if_match in [false, true] {
        server.manners.lock().unwrap().ignores_if_match = ignores_if_match;
        server.place("in/a.csv", "abc");
        let entries = list(&source).await.unwrap();
        server.place("in/a.csv", "xyz");
        let error = read(&source, &entries[0]).await.unwrap_err();
        assert_eq!(told(&error), "in/a.csv changed since it was listed");
        assert!(error.is_retryable() && error.needs_new_listing());
        let entries = list(&source).await.unwrap();
        assert_eq!(read(&source, &entries[0]).await.unwrap(), b"xyz");
    }
    std::fs::remove_file(server.file("in/a.csv")).unwrap();
    let gone = FileEntry {
        path: FilePath::new("a.csv").unwrap(),
        kind: FileKind::File {
            bytes: 3,
            content: ContentId::etag("x").unwrap(),
            is_executable: false,
        },
    };
    server.manners.lock().unwrap().ignores_if_match = true;
    let error = read(&source, &gone).await.unwrap_err();
    assert_eq!(told(&error), "in/a.csv vanished since it was listed");
    assert!(!error.is_retryable() && error.needs_new_listing());
}

#[tokio::test]
async fn a_refusal_is_told_at_once_and_a_storm_is_sat_out() {
    let server = Server::start().await;
    let source = source(&server, "in/");
    server.place("in/a.csv", "abc");
    let entries = list(&source).await.unwrap();
    server.requests();
    server.fault(Method::GET, "a.csv", 1, Fault::Status(403, "AccessDenied"));
    let error = read(&source, &entries[0]).await.unwrap_err();
    assert!(told(&error).starts_with("in/a.csv: "), "{error}");
    assert!(told(&error).contains("AccessDenied") && !error.is_retryable());
    assert_eq!(server.requests().len(), 1);
    server.fault(Method::GET, "list-type", 1, Fault::Status(403, "AccessDenied"));
    let error = list(&source).await.unwrap_err();
    assert!(matches!(error, SourceError::Objects(ObjectError::Denied { .. })), "{error}");
    for status in [500, 503, 429] {
        server.requests();
        server.fault(Method::GET, "a.csv", 3, Fault::Status(status, "SlowDown"));
        assert_eq!(read(&source, &entries[0]).await.unwrap(), b"abc");
        assert_eq!(server.requests().len(), 4);
        server.fault(Method::GET, "list-type", 3, Fault::Status(status, "SlowDown"));
        assert_eq!(list(&source).await.unwrap(), entries);
    }
    server.requests();
    server.fault(Method::GET, "a.csv", u32::MAX, Fault::Status(503, "SlowDown"));
    let error = read(&source, &entries[0]).await.unwrap_err();
    assert!(error.is_retryable() && !error.needs_new_listing());
    assert!(told(&error).contains("in/a.csv") && told(&error).contains("503 SlowDown"), "{error}");
    assert_eq!(server.requests().len(), 5, "as patient as it was told to be");
}

#[tokio::test]
async fn a_body_that_breaks_is_gone_on_with_where_it_broke() {
    let server = Server::start().await;
    let mut config = server.config();
    config.patience.silence = Duration::from_millis(500);
    let bucket = config.bucket(BUCKET).unwrap();
    let source = Source::Objects { bucket, prefix: "in/".to_owned() };
    let large = content(1_000_003);
    server.place("in/a.bin", &large);
    let entries = list(&source).await.unwrap();
    server.requests();
    server.fault(Method::GET, "a.bin", 1, Fault::Truncated(400_000));
    server.fault(Method::GET, "a.bin", 1, Fault::Silent(100_000));
    assert_eq!(read(&source, &entries[0]).await.unwrap(), large);
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "{requests:?}");
    let begin = |request: &str| -> usize {
        let begin = request.split_once(" bytes=").expect("a part was asked for").1;
        begin.strip_suffix('-').unwrap().parse().unwrap()
    };
    let first = begin(&requests[1]);
    assert!((1..=400_000).contains(&first), "{requests:?}");
    assert_eq!(begin(&requests[2]), first + 100_000, "{requests:?}");
    // Never a byte: the patience ends.
    server.fault(Method::GET, "a.bin", u32::MAX, Fault::Truncated(0));
    let error = read(&source, &entries[0]).await.unwrap_err();
    assert!(error.is_retryable() && told(&error).contains("in/a.bin"), "{error}");
}

#[tokio::test]
async fn an_object_that_changes_while_a_broken_body_is_gone_on_with_is_not_mixed() {
    let server = Server::start().await;
    server.manners.lock().unwrap().ignores_if_match = true;
    let source = source(&server, "in/");
    server.place("in/a.bin", content(100_000));
    let entries = list(&source).await.unwrap();
    server.fault(Method::GET, "a.bin", 1, Fault::Truncated(40_000));
    let FileKind::File { bytes, content: id, .. } = &entries[0].kind else { panic!() };
    let sources = Sources::new();
    let mut pieces = sources.open(&source, &entries[0].path, id, *bytes).await.unwrap();
    assert!(!pieces.try_next().await.unwrap().unwrap().is_empty());
    server.place("in/a.bin", vec![9; 100_000]);
    let error = pieces.try_collect::<Vec<_>>().await.map(|_| ()).unwrap_err();
    assert_eq!(told(&error), "in/a.bin changed since it was listed");
}

#[tokio::test]
async fn an_object_of_another_size_than_was_listed_is_told_before_a_byte_of_it() {
    let server = Server::start().await;
    let source = source(&server, "in/");
    server.place("in/a.bin", content(1_000));
    let entries = list(&source).await.unwrap();
    server.fault(Method::GET, "a.bin", 1, Fault::Shorter(10));
    let error = read(&source, &entries[0]).await.unwrap_err();
    assert!(matches!(error, SourceError::Changed(_)) && error.is_retryable(), "{error}");
}

#[tokio::test]
async fn wrong_credentials_a_wrong_bucket_and_no_server_are_told_apart() {
    let server = Server::start().await;
    server.place("in/a.csv", "abc");
    let list_as = async |config: &ObjectServer, bucket: &str| {
        let bucket = config.bucket(bucket).unwrap();
        list(&Source::Objects { bucket, prefix: "in/".to_owned() }).await.unwrap_err()
    };
    let mut wrong = server.config();
    wrong.credentials.as_mut().unwrap().secret_access_key = "wrong-secret".to_owned();
    let error = list_as(&wrong, BUCKET).await;
    assert!(told(&error).contains("SignatureDoesNotMatch"), "{error}");
    assert!(told(&error).contains("check the credentials"), "{error}");
    assert!(!error.is_retryable());
    let nobody = ObjectServer { credentials: None, ..server.config() };
    assert!(!list_as(&nobody, BUCKET).await.is_retryable());
    let error = list_as(&server.config(), "nowhere").await;
    assert_eq!(
        told(&error),
        "there is no bucket nowhere: check its name, the region and the endpoint"
    );
    let (tls, address) = (server.config(), server.address.clone());
    let tls = ObjectServer { endpoint: Some(format!("https://{address}")), ..tls };
    let error = list_as(&tls, BUCKET).await;
    assert!(told(&error).contains("no TLS is spoken there"), "{error}");
    let config = server.config();
    drop(server);
    let error = list_as(&config, BUCKET).await;
    assert!(told(&error).contains("no connection") && error.is_retryable(), "{error}");
}

async fn fetcher(folder: &tempfile::TempDir) -> Fetcher {
    let blobs = BlobStore::in_folder(&folder.path().join("blobs")).await.unwrap();
    Fetcher { blobs, sources: Arc::new(Sources::new()) }
}

fn wanted(source: &Arc<Source>, entries: &[FileEntry]) -> Vec<Wanted> {
    let want = |entry: &FileEntry| {
        let FileKind::File { bytes, content, .. } = &entry.kind else { panic!("{entry:?}") };
        let (path, content) = (entry.path.clone(), content.clone());
        let source = Arc::clone(source);
        Wanted { origin: Origin::Input { source, path, content }, bytes: *bytes }
    };
    entries.iter().map(want).collect()
}

#[tokio::test]
async fn many_files_of_all_origins_come_as_one_stream_and_each_ends_once() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let fetcher = fetcher(&folder).await;
    let mut expected: HashMap<u32, Vec<u8>> = HashMap::new();
    for number in 0..300 {
        server.place(&format!("in/{number:03}"), content(number * 100));
        expected.insert(number as u32, content(number * 100));
    }
    let source = Arc::new(source(&server, "in/"));
    let mut wanted = wanted(&source, &list(&source).await.unwrap());
    let blob = content(2_000_000);
    let pieces = futures_util::stream::iter([Ok(Bytes::from(blob.clone()))]);
    let (hash, bytes) = fetcher.blobs.put_stream_hashed(pieces, 1 << 30).await.unwrap();
    wanted.push(Wanted { origin: Origin::Blob(hash), bytes });
    expected.insert(300, blob);
    let absent = Sha256Hash::of(b"absent");
    wanted.push(Wanted { origin: Origin::Blob(absent), bytes: 6 });
    wanted.push(Wanted { origin: Origin::Nowhere { why: "not an input".to_owned() }, bytes: 1 });
    server.place("in/007", "another size");
    expected.remove(&7);
    let (mut found, mut ended): (HashMap<u32, Vec<u8>>, _) = (HashMap::new(), HashMap::new());
    let mut stream = std::pin::pin!(fetcher.fetch(wanted));
    while let Some(piece) = stream.next().await {
        assert!(!ended.contains_key(&piece.index), "{piece:?}");
        match piece.kind {
            PieceKind::Data(data) => {
                assert!(!data.is_empty());
                found.entry(piece.index).or_default().extend_from_slice(&data);
            }
            PieceKind::End => {
                found.entry(piece.index).or_default();
                ended.insert(piece.index, None);
            }
            PieceKind::Failed { is_retryable, message } => {
                ended.insert(piece.index, Some((is_retryable, message)));
            }
        }
    }
    assert_eq!(ended.len(), 303);
    assert_eq!(found, expected);
    let failed = |index: u32| ended[&index].clone().expect("it failed");
    assert_eq!(failed(7), (true, "in/007 changed since it was listed".to_owned()));
    assert_eq!(failed(301), (false, format!("the blob {absent} is not there")));
    assert_eq!(failed(302), (false, "not an input".to_owned()));
}

#[tokio::test]
async fn nothing_is_asked_for_that_nobody_takes() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let fetcher = fetcher(&folder).await;
    for number in 0..100 {
        server.place(&format!("in/{number:03}"), content(50_000));
    }
    let source = Arc::new(source(&server, "in/"));
    let wanted = wanted(&source, &list(&source).await.unwrap());
    server.requests();
    let mut stream = std::pin::pin!(fetcher.fetch(wanted));
    assert!(stream.next().await.is_some());
    let asked = server.requests().len();
    assert!((1..=OPEN_FILES_MAX).contains(&asked), "{asked}");
    let rest = stream.filter(|piece| {
        let is_end = piece.kind == PieceKind::End;
        async move { is_end }
    });
    assert_eq!(rest.count().await, 100);
    assert_eq!(asked + server.requests().len(), 100);
}

//! Blobs in a bucket.
//!
//! Owner: `files::blobs`. Absent: inputs.

use std::io;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dormouse_core::manifest::Sha256Hash;
use dormouse_edge::files::blobs::{BlobError, BlobStore, Collected, Verdict};
use dormouse_edge::files::objects::ObjectError;
use futures_util::{Stream, TryStreamExt as _, stream};
use http::Method;

use crate::server::{Fault, KEY_ID, SECRET, Server, content, files_below};

struct Kept {
    server: Server,
    spool: tempfile::TempDir,
    blobs: BlobStore,
}

async fn kept() -> Kept {
    let server = Server::start().await;
    let spool = tempfile::tempdir().unwrap();
    let blobs = open(&server, &spool).await;
    Kept { server, spool, blobs }
}

async fn open(server: &Server, spool: &tempfile::TempDir) -> BlobStore {
    BlobStore::in_bucket(server.bucket(), "mine", &spool.path().join("spool")).await.unwrap()
}

fn sent(content: &[u8]) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let pieces: Vec<_> =
        content.chunks(300_007).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces)
}

async fn put(blobs: &BlobStore, content: &[u8]) -> Result<Sha256Hash, BlobError> {
    let hash = Sha256Hash::of(content);
    let mut batch = blobs.begin_batch().await?;
    batch.put(hash, content.len() as u64, sent(content)).await?;
    batch.commit().await?;
    Ok(hash)
}

async fn read(blobs: &BlobStore, hash: &Sha256Hash) -> Result<Vec<u8>, BlobError> {
    let blob = blobs.get(hash).await?;
    let pieces: Vec<Bytes> = blob.pieces.try_collect().await?;
    Ok(pieces.concat())
}

fn key(hash: &Sha256Hash) -> String {
    let digits = hash.to_string();
    format!("mine/blobs/{}/{}", &digits[..2], &digits[2..])
}

#[tokio::test]
async fn blobs_of_all_sizes_are_kept_under_their_hash() {
    let Kept { server, spool, blobs } = kept().await;
    let sizes = [0, 1, 10_000, 8 << 20, (8 << 20) + 1, 20_000_003];
    let mut batch = blobs.begin_batch().await.unwrap();
    let mut hashes = Vec::new();
    for size in sizes {
        let content = content(size);
        let hash = Sha256Hash::of(&content);
        batch.put(hash, size as u64, sent(&content)).await.unwrap();
        hashes.push(hash);
    }
    assert_eq!(batch.commit().await.unwrap(), sizes.len() as u64);
    let blobs_again = open(&server, &spool).await;
    let absent = Sha256Hash::of(b"absent");
    assert_eq!(blobs_again.missing(&[hashes[0], absent]).await.unwrap(), [absent]);
    for (size, hash) in sizes.into_iter().zip(&hashes) {
        assert!(server.file(&key(hash)).is_file());
        assert_eq!(read(&blobs_again, hash).await.unwrap(), content(size), "{size}");
        let whole = Verdict::Whole { bytes: size as u64 };
        assert_eq!(blobs_again.verify(hash).await.unwrap(), whole);
    }
    assert!(matches!(blobs.get(&absent).await, Err(BlobError::NotThere(_))));
    assert_eq!(blobs.verify(&absent).await.unwrap(), Verdict::NotThere);
}

#[tokio::test]
async fn bytes_that_are_not_what_they_are_called_never_get_the_name() {
    let Kept { server, blobs, .. } = kept().await;
    for size in [1_000, 9 << 20] {
        let (right, mut wrong) = (content(size), content(size));
        wrong[size - 1] ^= 1;
        let hash = Sha256Hash::of(&right);
        let mut batch = blobs.begin_batch().await.unwrap();
        let error = batch.put(hash, size as u64, sent(&wrong)).await.unwrap_err();
        assert!(matches!(error, BlobError::WrongHash { .. }), "{error}");
        let error = batch.put(hash, size as u64, sent(&right[1..])).await.unwrap_err();
        assert!(matches!(error, BlobError::WrongLength { .. }), "{error}");
        let error = batch.put(hash, size as u64 - 1, sent(&right)).await.unwrap_err();
        assert!(matches!(error, BlobError::WrongLength { .. }), "{error}");
        assert_eq!(batch.commit().await.unwrap(), 0);
        assert_eq!(blobs.missing(&[hash]).await.unwrap(), [hash]);
    }
    assert_eq!(files_below(&server.file("mine")), 0);
}

#[tokio::test]
async fn bytes_that_are_wrong_on_their_way_back_are_found() {
    let Kept { server, blobs, .. } = kept().await;
    let hash = put(&blobs, b"precious").await.unwrap();
    server.fault(Method::GET, "blobs/", 1, Fault::WrongByte);
    assert!(matches!(blobs.verify(&hash).await.unwrap(), Verdict::Damaged { .. }));
    assert_eq!(blobs.verify(&hash).await.unwrap(), Verdict::Whole { bytes: 8 });
}

#[tokio::test]
async fn an_upload_whose_hash_is_not_known_is_kept_under_it_whatever_its_size() {
    let Kept { server, spool, blobs } = kept().await;
    for size in [0, 5_000, 8 << 20, 20_000_003] {
        let content = content(size);
        let kept = blobs.put_stream_hashed(sent(&content), 1 << 30).await.unwrap();
        assert_eq!(kept, (Sha256Hash::of(&content), size as u64));
        assert_eq!(read(&blobs, &kept.0).await.unwrap(), content);
    }
    let stored = files_below(&server.file("mine"));
    let error = blobs.put_stream_hashed(sent(&content(9 << 20)), 9_000_000).await.unwrap_err();
    assert!(matches!(error, BlobError::TooLarge { max: 9_000_000 }), "{error}");
    assert_eq!(files_below(&server.file("mine")), stored);
    assert_eq!(files_below(spool.path()), 0);
}

#[tokio::test]
async fn a_storm_is_sat_out_and_one_that_does_not_end_fails_the_commit() {
    let Kept { server, blobs, .. } = kept().await;
    server.fault(Method::PUT, "blobs/", 3, Fault::Status(503, "SlowDown"));
    let hash = put(&blobs, b"after the storm").await.unwrap();
    assert_eq!(read(&blobs, &hash).await.unwrap(), b"after the storm");
    let large = content(9 << 20);
    server.fault(Method::PUT, "partNumber=2", 2, Fault::Status(500, "InternalError"));
    let hash = put(&blobs, &large).await.unwrap();
    assert_eq!(read(&blobs, &hash).await.unwrap(), large);
    server.fault(Method::PUT, "blobs/", u32::MAX, Fault::Status(503, "SlowDown"));
    for content in [&b"in the storm"[..], &content(10 << 20)] {
        let error = put(&blobs, content).await.unwrap_err();
        assert!(error.is_retryable() && !error.is_senders_fault(), "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains("mine/blobs/") && text.contains("503"), "{text}");
        assert!(!text.contains(KEY_ID) && !text.contains(SECRET), "{text}");
        let hash = Sha256Hash::of(content);
        assert_eq!(blobs.missing(&[hash]).await.unwrap(), [hash]);
    }
}

#[tokio::test]
async fn a_store_that_refuses_is_told_at_once() {
    let Kept { server, blobs, .. } = kept().await;
    server.requests();
    server.fault(Method::PUT, "blobs/", u32::MAX, Fault::Status(403, "AccessDenied"));
    server.fault(Method::HEAD, "blobs/", u32::MAX, Fault::Status(403, "AccessDenied"));
    let error = put(&blobs, b"x").await.unwrap_err();
    let is_denied = matches!(error, BlobError::Objects(ObjectError::Denied { .. }));
    assert!(is_denied && !error.is_retryable(), "{error}");
    assert!(blobs.missing(&[Sha256Hash::of(b"x")]).await.is_err(), "unknown is not missing");
    assert_eq!(server.requests().len(), 2);
}

fn make_old(server: &Server, hash: &Sha256Hash) {
    let file = std::fs::File::options().write(true).open(server.file(&key(hash))).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();
}

#[tokio::test]
async fn collection_takes_what_is_old_and_unnamed_and_nothing_that_was_offered() {
    let Kept { server, spool, blobs } = kept().await;
    let before = SystemTime::now();
    let mut hashes = Vec::new();
    for content in [&b"named"[..], b"unnamed", b"young", b"offered"] {
        hashes.push(put(&blobs, content).await.unwrap());
    }
    let [named, unnamed, young, offered] = hashes[..] else { panic!() };
    [named, unnamed, offered].iter().for_each(|hash| make_old(&server, hash));
    server.place("mine/blobs/ab/README", "not a blob");
    let collected = blobs.collect_garbage(|_| false, before).await.unwrap();
    assert_eq!((collected.removed, collected.kept), (0, 4), "all were just put");
    // Another process has put nothing, and what was offered before its begin it cannot know.
    let blobs = open(&server, &spool).await;
    let collected = blobs.collect_garbage(|_| false, before).await.unwrap();
    assert_eq!(collected.removed, 0);
    let later = SystemTime::now();
    let age = Duration::from_secs(3);
    std::fs::File::options()
        .write(true)
        .open(server.file(&key(&young)))
        .unwrap()
        .set_modified(later + age)
        .unwrap();
    assert_eq!(blobs.missing(&[offered]).await.unwrap(), []);
    let collected = blobs.collect_garbage(|hash| *hash == named, later).await.unwrap();
    assert_eq!(collected, Collected { removed: 1, removed_bytes: 7, kept: 3 });
    assert_eq!(blobs.missing(&hashes).await.unwrap(), [unnamed]);
    assert!(server.file("mine/blobs/ab/README").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_offered_or_put_while_garbage_is_collected_stays() {
    let Kept { server, spool, .. } = kept().await;
    let (mut offered_first, mut removed_first) = (0, 0);
    for round in 0..12 {
        let blobs = open(&server, &spool).await;
        let mut batch = blobs.begin_batch().await.unwrap();
        let mut hashes = Vec::new();
        for number in 0..30 {
            let content = format!("{round} {number}").into_bytes();
            let hash = Sha256Hash::of(&content);
            batch.put(hash, content.len() as u64, sent(&content)).await.unwrap();
            hashes.push(hash);
        }
        batch.commit().await.unwrap();
        hashes.iter().for_each(|hash| make_old(&server, hash));
        let blobs = open(&server, &spool).await;
        let limit = SystemTime::now();
        let (collecting, asking) = (blobs.clone(), blobs.clone());
        server.requests();
        let collection =
            tokio::spawn(
                async move { collecting.collect_garbage(|_| false, limit).await.unwrap() },
            );
        if round % 2 == 0 {
            server.asked(&Method::DELETE).await;
        }
        let asked = hashes.clone();
        let asked = tokio::spawn(async move {
            let missing = asking.missing(&asked).await.unwrap();
            // What is missing is put again, as a bridge would.
            for (number, hash) in asked.iter().enumerate() {
                if missing.contains(hash) {
                    let content = format!("{round} {number}").into_bytes();
                    put(&asking, &content).await.unwrap();
                }
            }
            missing.len()
        });
        let (collected, missing) = (collection.await.unwrap(), asked.await.unwrap());
        for hash in &hashes {
            assert!(server.file(&key(hash)).is_file(), "round {round}: {hash} {collected:?}");
        }
        offered_first += hashes.len() - missing;
        removed_first += missing;
    }
    // Else the two never met.
    assert!(offered_first > 0 && removed_first > 0, "{offered_first} {removed_first}");
}

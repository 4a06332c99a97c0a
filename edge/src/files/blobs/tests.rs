//! Blobs in a folder: what is kept, what is refused, what is collected, and what a death leaves.
//!
//! Owner: the tests of `blobs`. Invariants: full disks and killed processes are real ones. Absent:
//! buckets, which have a server in `tests/files_s3.rs`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::stream;

use super::*;
use crate::testing::{ScratchFolder, soon};

type Pieces = Vec<io::Result<Bytes>>;

fn whole(content: &[u8]) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    stream::iter([Ok(Bytes::copy_from_slice(content))])
}

fn content(number: usize) -> Vec<u8> {
    format!("blob {number}").into_bytes()
}

async fn store(scratch: &ScratchFolder) -> BlobStore {
    BlobStore::in_folder(&scratch.path().join("blobs")).await.unwrap()
}

async fn put(store: &BlobStore, content: &[u8]) -> Sha256Hash {
    let hash = Sha256Hash::of(content);
    let mut batch = store.begin_batch().await.unwrap();
    batch.put(hash, content.len() as u64, whole(content)).await.unwrap();
    assert_eq!(batch.commit().await.unwrap(), 1);
    hash
}

async fn read(store: &BlobStore, hash: &Sha256Hash) -> Vec<u8> {
    let blob = store.get(hash).await.unwrap();
    let pieces: Vec<Bytes> = blob.pieces.try_collect().await.unwrap();
    assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>() as u64, blob.bytes);
    pieces.concat()
}

fn file_of(scratch: &ScratchFolder, hash: &Sha256Hash) -> PathBuf {
    scratch.path().join("blobs").join(place_of(hash))
}

fn make_old(scratch: &ScratchFolder, hash: &Sha256Hash) {
    let file = fs::File::options().write(true).open(file_of(scratch, hash)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();
}

fn a_minute_ago() -> SystemTime {
    SystemTime::now() - Duration::from_secs(60)
}

#[tokio::test]
async fn a_committed_blob_is_there_for_the_owner_alone_and_for_the_next_process() {
    let scratch = ScratchFolder::new();
    let first = store(&scratch).await;
    let large: Vec<u8> = (0..3_000_017).map(|index| (index % 253) as u8).collect();
    let mut batch = first.begin_batch().await.unwrap();
    let mut hashes = Vec::new();
    for content in [&b""[..], b"a", &large] {
        let hash = Sha256Hash::of(content);
        let pieces: Pieces =
            content.chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        batch.put(hash, content.len() as u64, stream::iter(pieces)).await.unwrap();
        hashes.push(hash);
    }
    assert_eq!(first.missing(&hashes).await.unwrap(), hashes, "before the commit");
    assert_eq!(batch.commit().await.unwrap(), 3);
    let next = store(&scratch).await;
    assert_eq!(next.missing(&hashes).await.unwrap(), []);
    for (hash, content) in hashes.iter().zip([&b""[..], b"a", &large]) {
        assert_eq!(read(&next, hash).await, content);
        let mode = fs::metadata(file_of(&scratch, hash)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let mode = fs::metadata(scratch.path().join("blobs")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn many_small_blobs_in_one_batch_are_all_kept_and_counted() {
    let scratch = ScratchFolder::new();
    let store = store(&scratch).await;
    let mut batch = store.begin_batch().await.unwrap();
    let mut hashes = Vec::new();
    for number in 0..500 {
        let content = content(number);
        let hash = Sha256Hash::of(&content);
        batch.put(hash, content.len() as u64, whole(&content)).await.unwrap();
        hashes.push(hash);
    }
    assert_eq!(batch.commit().await.unwrap(), 500);
    let absent = Sha256Hash::of(b"absent");
    hashes.push(absent);
    assert_eq!(store.missing(&hashes).await.unwrap(), [absent]);
}

#[tokio::test]
async fn bytes_that_are_not_what_they_are_called_are_refused_and_the_batch_goes_on() {
    let scratch = ScratchFolder::new();
    let store = store(&scratch).await;
    let right = Sha256Hash::of(b"right");
    let mut batch = store.begin_batch().await.unwrap();
    let error = batch.put(right, 5, whole(b"wrong")).await.unwrap_err();
    assert!(matches!(&error, BlobError::WrongHash { expected, .. } if *expected == right));
    assert!(error.is_senders_fault());
    for (announced, sent) in [(5, &b"righ"[..]), (5, b"right!"), (4, b"right")] {
        let error = batch.put(right, announced, whole(sent)).await.unwrap_err();
        assert!(matches!(error, BlobError::WrongLength { .. }), "{error}");
    }
    let broken: Pieces = vec![Ok(Bytes::from_static(b"ri")), Err(io::Error::other("gone"))];
    let error = batch.put(right, 5, stream::iter(broken)).await.unwrap_err();
    assert!(matches!(error, BlobError::Sender(_)) && error.is_retryable());
    let other = Sha256Hash::of(b"other");
    batch.put(other, 5, whole(b"other")).await.unwrap();
    assert_eq!(batch.commit().await.unwrap(), 1);
    assert_eq!(store.missing(&[right, other]).await.unwrap(), [right]);
}

#[tokio::test]
async fn a_dropped_batch_leaves_nothing_behind() {
    let scratch = ScratchFolder::new();
    let store = store(&scratch).await;
    let hash = Sha256Hash::of(b"x");
    let mut batch = store.begin_batch().await.unwrap();
    batch.put(hash, 1, whole(b"x")).await.unwrap();
    drop(batch);
    assert_eq!(store.missing(&[hash]).await.unwrap(), [hash]);
    let writing = scratch.path().join("blobs/writing");
    let emptied = async {
        while fs::read_dir(&writing).unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
    };
    soon("the batch's folder to go", emptied).await;
}

#[tokio::test]
async fn an_upload_gets_the_hash_of_its_bytes_and_a_limit() {
    let scratch = ScratchFolder::new();
    let store = store(&scratch).await;
    let kept = store.put_stream_hashed(whole(b"an upload"), 9).await.unwrap();
    assert_eq!(kept, (Sha256Hash::of(b"an upload"), 9));
    assert_eq!(read(&store, &kept.0).await, b"an upload");
    let error = store.put_stream_hashed(whole(b"an upload"), 8).await.unwrap_err();
    assert!(matches!(error, BlobError::TooLarge { max: 8 }));
}

#[tokio::test]
async fn verify_tells_whole_damaged_and_absent_apart() {
    let scratch = ScratchFolder::new();
    let store = store(&scratch).await;
    let hash = put(&store, b"precious").await;
    assert_eq!(store.verify(&hash).await.unwrap(), Verdict::Whole { bytes: 8 });
    fs::write(file_of(&scratch, &hash), b"precioux").unwrap();
    let found = Sha256Hash::of(b"precioux");
    assert_eq!(store.verify(&hash).await.unwrap(), Verdict::Damaged { found });
    fs::remove_file(file_of(&scratch, &hash)).unwrap();
    assert_eq!(store.verify(&hash).await.unwrap(), Verdict::NotThere);
    assert!(matches!(store.get(&hash).await, Err(BlobError::NotThere(_))));
}

#[tokio::test]
async fn collection_takes_what_is_old_and_unnamed_and_nothing_else() {
    let scratch = ScratchFolder::new();
    let store = store(&scratch).await;
    let [named, unnamed, young, offered] =
        [&b"named"[..], b"unnamed", b"young", b"offered"].map(Sha256Hash::of);
    for content in [&b"named"[..], b"unnamed", b"young", b"offered"] {
        put(&store, content).await;
    }
    for hash in [named, unnamed, offered] {
        make_old(&scratch, &hash);
    }
    let foreign = scratch.path().join("blobs/ab");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("README"), "not a blob").unwrap();
    assert_eq!(store.missing(&[offered]).await.unwrap(), []);
    let collected = store.collect_garbage(|hash| *hash == named, a_minute_ago()).await.unwrap();
    assert_eq!(collected, Collected { removed: 1, removed_bytes: 7, kept: 3 });
    assert_eq!(store.missing(&[named, unnamed, young, offered]).await.unwrap(), [unnamed]);
    assert!(foreign.join("README").exists());
}

#[tokio::test]
async fn a_blob_that_is_put_again_is_young_again() {
    let scratch = ScratchFolder::new();
    let store = store(&scratch).await;
    let hash = put(&store, b"again").await;
    make_old(&scratch, &hash);
    put(&store, b"again").await;
    let collected = store.collect_garbage(|_| false, a_minute_ago()).await.unwrap();
    assert_eq!(collected, Collected { kept: 1, ..Collected::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_offered_while_garbage_is_collected_stays() {
    let scratch = ScratchFolder::new();
    let store = store(&scratch).await;
    let (mut offered_first, mut removed_first) = (0, 0);
    for round in 0..40 {
        let mut batch = store.begin_batch().await.unwrap();
        let mut hashes = Vec::new();
        for number in 0..40 {
            let content = content(round * 1_000 + number);
            let hash = Sha256Hash::of(&content);
            batch.put(hash, content.len() as u64, whole(&content)).await.unwrap();
            hashes.push(hash);
        }
        batch.commit().await.unwrap();
        hashes.iter().for_each(|hash| make_old(&scratch, hash));
        let (collecting, asking) = (store.clone(), store.clone());
        let collection = tokio::spawn(async move {
            collecting.collect_garbage(|_| false, a_minute_ago()).await.unwrap()
        });
        let asked = hashes.clone();
        let missing = tokio::spawn(async move { asking.missing(&asked).await.unwrap() });
        let (collected, missing) = (collection.await.unwrap(), missing.await.unwrap());
        for hash in &hashes {
            let is_there = file_of(&scratch, hash).exists();
            assert_eq!(is_there, !missing.contains(hash), "round {round}: {hash}");
        }
        assert_eq!(collected.removed, missing.len() as u64);
        offered_first += hashes.len() - missing.len();
        removed_first += missing.len();
        store
            .collect_garbage(|_| false, SystemTime::now() + Duration::from_secs(60))
            .await
            .unwrap();
    }
    // Else the two never met.
    assert!(offered_first > 0 && removed_first > 0, "{offered_first} {removed_first}");
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_what_was_there() {
    let scratch = ScratchFolder::new();
    let disk = scratch.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&disk);
    if !mount.status().is_ok_and(|status| status.success()) {
        // Needs the right to mount.
        return;
    }
    let store = BlobStore::in_folder(&disk.join("blobs")).await.unwrap();
    let kept = put(&store, b"kept").await;
    let large = vec![7; 2 << 20];
    let mut batch = store.begin_batch().await.unwrap();
    let pieces: Pieces = large.chunks(64 << 10).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
    let put = batch.put(Sha256Hash::of(&large), large.len() as u64, stream::iter(pieces)).await;
    let verdict = store.verify(&kept).await;
    let missing = store.missing(&[Sha256Hash::of(&large)]).await;
    drop((batch, store));
    let unmounted = Command::new("umount").args(["--lazy"]).arg(&disk).status().unwrap();
    assert!(unmounted.success());
    let error = put.unwrap_err();
    assert!(matches!(error, BlobError::NoRoom { .. }), "{error:?}");
    assert!(error.to_string().contains("make some"), "{error}");
    assert_eq!(verdict.unwrap(), Verdict::Whole { bytes: 4 });
    assert_eq!(missing.unwrap().len(), 1);
}

const KILLED: &str = "DORMOUSE_TEST_BLOBS_OF_THE_KILLED";

/// Run by the test below in a process of its own, until that is killed.
#[tokio::test]
async fn a_process_that_stores_blobs_until_it_is_killed() {
    let Some(folder) = std::env::var_os(KILLED) else { return };
    let store = BlobStore::in_folder(Path::new(&folder)).await.unwrap();
    for round in 0.. {
        let mut batch = store.begin_batch().await.unwrap();
        for number in 0..8 {
            let content = format!("{round} {number} ").repeat(20_000).into_bytes();
            let hash = Sha256Hash::of(&content);
            batch.put(hash, content.len() as u64, whole(&content)).await.unwrap();
        }
        batch.commit().await.unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "\ncommitted {round}").unwrap();
    }
}

#[tokio::test]
async fn a_process_killed_in_the_middle_leaves_whole_blobs_and_all_that_it_committed() {
    let scratch = ScratchFolder::new();
    let folder = scratch.path().join("blobs");
    for kill_after in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("files::blobs::tests::a_process_that_stores_blobs_until_it_is_killed")
            .env(KILLED, &folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let committed = loop {
            let line = lines.next().expect("it goes on until it is killed").unwrap();
            let round = line.strip_prefix("committed ").map(|round| round.parse::<u32>().unwrap());
            if round == Some(kill_after) {
                break kill_after;
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        let store = BlobStore::in_folder(&folder).await.unwrap();
        for round in 0..=committed {
            for number in 0..8 {
                let content = format!("{round} {number} ").repeat(20_000).into_bytes();
                let bytes = content.len() as u64;
                let verdict = store.verify(&Sha256Hash::of(&content)).await.unwrap();
                assert_eq!(verdict, Verdict::Whole { bytes }, "{round} {number}");
            }
        }
        for hash in hashes_in(&folder) {
            let verdict = store.verify(&hash).await.unwrap();
            assert!(matches!(verdict, Verdict::Whole { .. }), "{hash}: {verdict:?}");
        }
        assert!(fs::read_dir(folder.join("writing")).unwrap().next().is_none());
    }
}

fn hashes_in(folder: &Path) -> Vec<Sha256Hash> {
    let mut hashes = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let prefix = entry.unwrap().file_name().into_string().unwrap();
        if prefix.len() != 2 {
            continue;
        }
        for entry in fs::read_dir(folder.join(&prefix)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            hashes.push(hash_at(&prefix, &name).expect("only blobs lie there"));
        }
    }
    hashes
}

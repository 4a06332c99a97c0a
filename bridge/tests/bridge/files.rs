//! Files before work: what a bridge brings to its workspace, and what it does when that goes wrong.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dormouse_bridge::files::wire::{CheckpointPolicy, SyncProblem};
use dormouse_bridge::frames::{FromBridge, ToBridge};
use dormouse_core::manifest::{ContentId, FileEntry, FileKind, FilesVersion, Manifest};

use crate::depot::{Depot, Fault, path};
use crate::stage::{Line, Stage, until, within};

pub(crate) type Inputs<'a> = &'a [(&'a str, &'a [u8])];

pub(crate) fn off() -> CheckpointPolicy {
    CheckpointPolicy::default()
}

impl Stage {
    pub(crate) fn depot(&self) -> Depot {
        Depot::open(self.root())
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.workspace().join(name)
    }

    /// Every file and link with its bytes, in the order of their paths; folders have a slash.
    pub(crate) fn tree(&self) -> Vec<String> {
        let mut tree = Vec::new();
        let mut waiting = vec![self.workspace()];
        while let Some(folder) = waiting.pop() {
            let entries: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap()).collect();
            let name = folder.strip_prefix(self.workspace()).unwrap().display().to_string();
            if entries.is_empty() && !name.is_empty() {
                tree.push(format!("{name}/"));
            }
            for entry in entries {
                let at = entry.path();
                let name = at.strip_prefix(self.workspace()).unwrap().display().to_string();
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => waiting.push(at),
                    kind if kind.is_symlink() => {
                        tree.push(format!("{name} -> {}", fs::read_link(&at).unwrap().display()));
                    }
                    _ => tree.push(format!("{name} {}", fs::read_to_string(&at).unwrap())),
                }
            }
        }
        tree.sort();
        tree
    }
}

impl Line {
    pub(crate) async fn begin_sync(&mut self, stage: &Stage, depot: &Depot, to: FilesVersion) {
        let (files, workspace) = (depot.dial(), stage.workspace());
        self.send(ToBridge::Sync { version: to, files, workspace }).await;
    }

    /// The end of a sync, whatever it says on the way.
    async fn end_of_sync(&mut self) -> Result<FilesVersion, SyncProblem> {
        loop {
            match self.next().await {
                FromBridge::Syncing { done_files, files, done_bytes, bytes } => {
                    assert!(done_files <= files, "{done_files} of {files}");
                    assert!(files == 0 || bytes == 0 || done_bytes > 0 || done_files == 0);
                }
                FromBridge::Synced { version } => return Ok(version),
                FromBridge::SyncFailed { problem, .. } => return Err(problem),
                other => panic!("instead of a sync's end came {other:?}"),
            }
        }
    }

    pub(crate) async fn sync(
        &mut self,
        stage: &Stage,
        depot: &Depot,
        to: FilesVersion,
    ) -> Result<(), SyncProblem> {
        self.begin_sync(stage, depot, to).await;
        self.end_of_sync().await.map(|version| assert_eq!(version, to))
    }
}

async fn synced(stage: &Stage, depot: &Depot, inputs: Inputs<'_>) -> Line {
    let version = depot.plan(inputs, &[], off());
    let mut line = stage.welcome(None).await;
    line.sync(stage, depot, version).await.unwrap();
    line
}

#[tokio::test]
async fn files_are_there_before_the_agent_is_executed() {
    let stage = Stage::started();
    let depot = stage.depot();
    let (mut line, hello) = stage.accept().await;
    assert_eq!(hello.applied, None);
    line.send(ToBridge::Welcome { launch: None }).await;
    let version = depot.plan(&[("data/a.csv", b"1;2"), ("b", b"")], &[("own", Some(b"x"))], off());
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["b ", "data/a.csv 1;2", "own x"]);
    let mode = fs::metadata(stage.inside("data/a.csv")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o644);
    let launch = stage.jsonl("while next_turn; do finish $(cat data/a.csv); done");
    line.send(ToBridge::Launch { launch }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, crate::stage::answered("1;2"));
    drop(line);
    let (mut line, hello) = stage.accept().await;
    assert_eq!(hello.applied, Some(version));
    line.send(ToBridge::Welcome { launch: None }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    assert_eq!(line.next().await, FromBridge::Synced { version });
}

#[tokio::test]
async fn what_is_there_already_is_not_fetched_again() {
    let mut stage = Stage::started();
    let depot = stage.depot();
    let inputs: Inputs<'_> = &[("a", b"1"), ("b/c", b"2")];
    let line = synced(&stage, &depot, inputs).await;
    assert_eq!(depot.asked(), ["plan", "fetch 1", "fetch 1"]);
    drop(line);
    // What was proved in this life is told at once.
    let _line = synced(&stage, &depot, inputs).await;
    assert!(depot.asked().is_empty());
    // In another life it is proved anew. What was touched is read, and found equal.
    for is_touched in [false, true] {
        stage.signal_bridge("KILL");
        stage.bridge_exit().await;
        if is_touched {
            fs::write(stage.inside("a"), "1").unwrap();
        }
        stage.begin_anew();
        let _line = synced(&stage, &depot, inputs).await;
        assert_eq!(depot.asked(), ["plan"]);
    }
}

#[tokio::test]
async fn an_input_is_what_its_source_says_at_every_sync() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = synced(&stage, &depot, &[("a", b"one"), ("d/b", b"two"), ("c", b"3")]).await;
    fs::write(stage.inside("a"), "own").unwrap();
    fs::write(stage.inside("agents"), "mine").unwrap();
    fs::remove_file(stage.inside("c")).unwrap();
    fs::create_dir(stage.inside("c")).unwrap();
    fs::write(stage.inside("c/in the way"), "").unwrap();
    depot.asked();
    let version = depot.plan(&[("a", b"one"), ("c", b"3"), ("new", b"4")], &[], off());
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["a one", "agents mine", "c 3", "new 4"]);
}

#[tokio::test]
async fn an_upload_is_written_once_and_is_the_agents_then() {
    let mut stage = Stage::started();
    let depot = stage.depot();
    let mut line = stage.welcome(None).await;
    let one = depot.plan(&[], &[("a", Some(b"1")), ("b", Some(b"2"))], off());
    line.sync(&stage, &depot, one).await.unwrap();
    fs::write(stage.inside("a"), "changed").unwrap();
    fs::remove_file(stage.inside("b")).unwrap();
    line.sync(&stage, &depot, one).await.unwrap();
    assert_eq!(stage.tree(), ["a changed"]);
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
    stage.begin_anew();
    let mut line = stage.welcome(None).await;
    let uploads: &[(&str, Option<&[u8]>)] =
        &[("a", Some(b"1")), ("b", Some(b"2")), ("c/d", Some(b"3")), ("a", None)];
    let two = depot.plan(&[], uploads, off());
    line.sync(&stage, &depot, two).await.unwrap();
    assert_eq!(stage.tree(), ["c/d 3"]);
}

#[tokio::test]
async fn what_may_pass_is_tried_again_until_all_is_there() {
    for faults in [
        vec![Fault::BreakAfter(1), Fault::BreakAfter(0)],
        vec![Fault::WrongByte, Fault::WrongByte],
        vec![Fault::WrongSize(1)],
        vec![Fault::WrongSize(-1)],
        vec![Fault::Noise],
        vec![Fault::Refuse(503); 7],
        vec![Fault::Fail { paths: vec!["a", "b/c"], retryable: true }; 4],
    ] {
        let stage = Stage::started();
        let depot = stage.depot();
        depot.contents().refusals.extend([503, 429]);
        depot.contents().faults.extend(faults.clone());
        let _line = synced(&stage, &depot, &[("a", b"1"), ("b/c", b"22"), ("d", b"333")]).await;
        assert_eq!(stage.tree(), ["a 1", "b/c 22", "d 333"], "{faults:?}");
    }
}

#[tokio::test]
async fn a_file_that_will_not_come_fails_the_sync_with_every_path_and_changes_nothing() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = synced(&stage, &depot, &[("a", b"1"), ("old", b"2")]).await;
    let inputs: Inputs<'_> = &[("a", b"3"), ("b", b"4"), ("c", b"5"), ("d", b"6")];
    let version = depot.plan(inputs, &[], off());
    let fail = Fault::Fail { paths: vec!["b", "c"], retryable: false };
    depot.contents().faults.extend([fail.clone(), fail]);
    let problem = line.sync(&stage, &depot, version).await.unwrap_err();
    assert_eq!(problem.paths, ["b", "c"]);
    assert!(!problem.retryable);
    assert!(problem.message.contains("told to fail"), "{}", problem.message);
    let kept: Vec<_> =
        stage.tree().into_iter().filter(|name| !name.starts_with(".dormouse-sync")).collect();
    assert_eq!(kept, ["a 1", "old 2"]);
    // What had come is not fetched again.
    depot.asked();
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(depot.asked(), ["plan", "fetch 1", "fetch 1"]);
    assert_eq!(stage.tree(), ["a 3", "b 4", "c 5", "d 6"]);
}

#[tokio::test]
async fn bytes_that_stay_wrong_and_refusals_that_last_end_the_sync() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = stage.welcome(None).await;
    let version = depot.plan(&[("a", b"1")], &[], off());
    depot.contents().faults.extend(vec![Fault::WrongByte; 3]);
    let problem = line.sync(&stage, &depot, version).await.unwrap_err();
    assert_eq!((problem.paths, problem.retryable), (vec!["a".to_string()], true));
    assert!(problem.message.contains("not the announced"), "{}", problem.message);
    depot.fault(Fault::Refuse(403));
    let problem = line.sync(&stage, &depot, version).await.unwrap_err();
    assert!(!problem.retryable && problem.message.contains("403"), "{}", problem.message);
    depot.contents().refusals.push_back(401);
    let problem = line.sync(&stage, &depot, version).await.unwrap_err();
    assert!(!problem.retryable && problem.message.contains("401"), "{}", problem.message);
    // Not wanted any more: another version is on its way.
    depot.plan(&[("a", b"2")], &[], off());
    let problem = line.sync(&stage, &depot, version).await.unwrap_err();
    assert!(problem.retryable && problem.message.contains("409"), "{}", problem.message);
}

#[tokio::test]
async fn a_newer_sync_replaces_the_one_under_way() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = stage.welcome(None).await;
    let version = depot.plan(&[("a", b"1"), ("b", b"1")], &[], off());
    depot.contents().faults.extend([Fault::HangAfter(0), Fault::HangAfter(0)]);
    line.begin_sync(&stage, &depot, version).await;
    let fetched = || depot.contents().asked.iter().filter(|it| *it == "fetch 1").count();
    until("both streams hang", || (fetched() == 2).then_some(())).await;
    let version = depot.plan(&[("a", b"2")], &[], off());
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["a 2"]);
}

#[tokio::test]
async fn a_sync_that_was_killed_goes_on_where_it_was() {
    let mut stage = Stage::started();
    let depot = stage.depot();
    let names: Vec<String> = (0..40).map(|number| format!("f{number:02}")).collect();
    let inputs: Vec<(&str, &[u8])> =
        names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    let version = depot.plan(&inputs, &[], off());
    let mut line = stage.welcome(None).await;
    depot.contents().faults.extend([Fault::HangAfter(15), Fault::HangAfter(5)]);
    line.begin_sync(&stage, &depot, version).await;
    let is_staged = || {
        let staged = fs::read_dir(stage.inside(".dormouse-sync")).ok()?;
        let sizes = staged.map(|entry| entry.unwrap().metadata().map_or(0, |it| it.len()));
        (sizes.filter(|size| *size == 3).count() == 20).then_some(())
    };
    until("half of it is staged", is_staged).await;
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
    depot.asked();
    stage.begin_anew();
    let mut line = stage.welcome(None).await;
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(depot.asked(), ["plan", "fetch 10", "fetch 10"]);
    assert_eq!(stage.tree().len(), 40);
}

#[tokio::test]
async fn a_workspace_that_is_not_intact_becomes_the_checkpoint_exactly() {
    let mut stage = Stage::started();
    let depot = stage.depot();
    depot.restore(1, &[("kept", b"1"), ("d/e", b"2")]);
    let version = depot.plan(&[("in", b"3")], &[("up", Some(b"4"))], off());
    fs::create_dir_all(stage.inside("stray/deep")).unwrap();
    fs::write(stage.inside("stray/deep/x"), "").unwrap();
    fs::write(stage.inside("kept"), "1").unwrap();
    symlink("/etc", stage.inside("d")).unwrap();
    let mut line = stage.welcome(None).await;
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["d/e 2", "in 3", "kept 1", "up 4"]);
    // Intact from now on: what the agent makes of it stays.
    fs::write(stage.inside("kept"), "own").unwrap();
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["d/e 2", "in 3", "kept own", "up 4"]);
    // Unless somebody asks for another checkpoint.
    depot.restore(2, &[("kept", b"older")]);
    let version = depot.plan(&[("in", b"5")], &[("up", Some(b"4"))], off());
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["in 5", "kept older", "up 4"]);
    // A marker that is gone is a workspace of which nothing is known.
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
    fs::remove_file(stage.root().join("workspace.state")).unwrap();
    fs::write(stage.inside("stray"), "").unwrap();
    stage.begin_anew();
    let mut line = stage.welcome(None).await;
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["in 5", "kept older", "up 4"]);
}

#[tokio::test]
async fn a_restore_that_failed_is_repeated_by_the_next_life() {
    let mut stage = Stage::started();
    let depot = stage.depot();
    let version = depot.plan(&[], &[], off());
    let mut line = stage.welcome(None).await;
    line.sync(&stage, &depot, version).await.unwrap();
    fs::write(stage.inside("own"), "").unwrap();
    depot.restore(2, &[("a", b"1"), ("b", b"2")]);
    depot.contents().blobs.remove(&dormouse_core::manifest::Sha256Hash::of(b"2"));
    let version = depot.plan(&[("in", b"3")], &[], off());
    let problem = line.sync(&stage, &depot, version).await.unwrap_err();
    assert_eq!(problem.paths, ["b"]);
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
    let marker = fs::read_to_string(stage.root().join("workspace.state")).unwrap();
    assert!(marker.contains("\"is_whole\":false"), "{marker}");
    depot.restore(2, &[("a", b"1"), ("b", b"2")]);
    stage.begin_anew();
    let mut line = stage.welcome(None).await;
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["a 1", "b 2", "in 3"]);
}

#[tokio::test]
async fn links_executables_and_tags_are_as_the_plan_says() {
    let mut stage = Stage::started();
    let depot = stage.depot();
    let mut line = stage.welcome(None).await;
    // MD5 of "abc" (RFC 1321); the other one is a tag of two parts.
    let md5 = ContentId::etag("900150983cd24fb0d6963f7d28e17f72").unwrap();
    let parts = ContentId::etag("0123456789abcdef0123456789abcdef-2").unwrap();
    let file = |at: &str, content, is_executable| FileEntry {
        path: path(at),
        kind: FileKind::File { bytes: 3, content, is_executable },
    };
    let link = FileEntry { path: path("d/l"), kind: FileKind::Link { target: "../run".into() } };
    let folder = FileEntry { path: path("e"), kind: FileKind::Folder };
    let entries = vec![file("run", md5, true), file("parts", parts, false), link, folder];
    let inputs = Manifest::new(entries).unwrap();
    let version = FilesVersion { inputs: inputs.digest(), uploads: 0 };
    {
        let mut contents = depot.contents();
        let plan = contents.plan.as_mut().unwrap();
        (plan.version, plan.inputs) = (version, inputs);
        contents.inputs.insert("run".into(), b"abc".to_vec());
        contents.inputs.insert("parts".into(), b"xyz".to_vec());
        contents.faults.extend(vec![Fault::WrongByteOf("run"); 2]);
    }
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["d/l -> ../run", "e/", "parts xyz", "run abc"]);
    assert_eq!(fs::metadata(stage.inside("run")).unwrap().mode() & 0o7777, 0o755);
    depot.asked();
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
    stage.begin_anew();
    let mut line = stage.welcome(None).await;
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(depot.asked(), ["plan"]);
}

#[tokio::test]
async fn nothing_is_written_through_a_link_of_the_agents() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = synced(&stage, &depot, &[("d/a", b"1"), ("h", b"2")]).await;
    let outside = stage.root().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "as it was").unwrap();
    fs::remove_dir_all(stage.inside("d")).unwrap();
    symlink(&outside, stage.inside("d")).unwrap();
    fs::remove_file(stage.inside("h")).unwrap();
    fs::hard_link(outside.join("kept"), stage.inside("h")).unwrap();
    symlink(&outside, stage.inside(".dormouse-sync")).unwrap();
    let version = depot.plan(&[("d/a", b"3"), ("d/kept", b"4"), ("h", b"5")], &[], off());
    line.sync(&stage, &depot, version).await.unwrap();
    assert_eq!(stage.tree(), ["d/a 3", "d/kept 4", "h 5"]);
    let names: Vec<_> = fs::read_dir(&outside).unwrap().collect();
    assert_eq!(names.len(), 1);
    assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "as it was");
}

#[tokio::test]
async fn a_sync_waits_for_the_end_of_a_turn() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = synced(&stage, &depot, &[("a", b"1")]).await;
    let script = "while next_turn; do until [ -e go ]; do sleep 0.01; done; finish $(cat a); done";
    line.send(ToBridge::Launch { launch: stage.jsonl(script) }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    let turn = line.turn(1, "x").await;
    let version = depot.plan(&[("a", b"2")], &[], off());
    line.begin_sync(&stage, &depot, version).await;
    until("it is noted", || stage.log().contains("a sync waits").then_some(())).await;
    fs::write(stage.inside("go"), "").unwrap();
    assert_eq!(line.outcome(turn).await, crate::stage::answered("1"));
    assert_eq!(line.end_of_sync().await, Ok(version));
    let turn = line.turn(2, "x").await;
    assert_eq!(line.outcome(turn).await, crate::stage::answered("2"));
}

#[tokio::test]
async fn the_line_is_answered_while_a_large_file_comes() {
    let stage = Stage::started();
    let depot = stage.depot();
    let large = vec![7u8; 96 << 20];
    let version = depot.plan(&[("large", &large)], &[], off());
    let mut line = stage.welcome(None).await;
    line.begin_sync(&stage, &depot, version).await;
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut pings = 0;
    while !stage.inside("large").exists() {
        let asked = Instant::now();
        line.ping().await;
        slowest = slowest.max(asked.elapsed());
        pings += 1;
    }
    assert_eq!(within("the sync", line.end_of_sync()).await, Ok(version));
    assert!(pings > 3 && slowest < Duration::from_secs(1), "{pings}, the slowest {slowest:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

//! What an agent made of its workspace is kept: after turns, by the clock, and at the end.

use std::fs;
use std::time::Duration;

use dormouse_bridge::files::wire::{CheckpointPolicy, FilesReport};
use dormouse_bridge::frames::{FromBridge, ToBridge};
use dormouse_core::event::TurnOutcome;
use dormouse_core::id::TurnId;

use crate::depot::Depot;
use crate::stage::{Line, Stage, answered, until};

const SCRIPT: &str = "while next_turn; do sh ./do; finish ok; done";

fn on() -> CheckpointPolicy {
    CheckpointPolicy { is_on: true, exclude: vec!["*.tmp".into()], ..CheckpointPolicy::default() }
}

impl Line {
    async fn report(&mut self, turn: TurnId) -> (TurnOutcome, Option<FilesReport>) {
        loop {
            match self.next().await {
                FromBridge::Delta { .. } | FromBridge::Syncing { .. } => {}
                FromBridge::Ended { turn: of, outcome, files } => {
                    assert_eq!(of, turn);
                    self.send(ToBridge::Acknowledge { turn }).await;
                    return (outcome, files);
                }
                other => panic!("instead of a turn's end came {other:?}"),
            }
        }
    }

    /// A turn that runs this script in the workspace, and what became of its files.
    async fn run(&mut self, stage: &Stage, number: u128, script: &str) -> FilesReport {
        fs::write(stage.root().join("do"), script).unwrap();
        let turn = self.turn(number, "x").await;
        let (outcome, files) = self.report(turn).await;
        assert_eq!(outcome, answered("ok"));
        files.expect("checkpoints are taken")
    }
}

/// An agent that does what a file beside its workspace says.
async fn awake(stage: &Stage, depot: &Depot, policy: CheckpointPolicy) -> Line {
    let version = depot.plan(&[("in/put", b"given")], &[("up", Some(b"load"))], policy);
    let mut line = stage.welcome(None).await;
    line.sync(stage, depot, version).await.unwrap();
    let launch = stage.jsonl(&SCRIPT.replace("./do", "../do"));
    line.send(ToBridge::Launch { launch }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    depot.asked();
    line
}

fn paths(depot: &Depot) -> Vec<String> {
    let offers = depot.offers();
    let entries = offers.last().unwrap().manifest.entries();
    entries.iter().map(|entry| entry.path.to_string()).collect()
}

fn report(checkpoint: u64, changed: &[&str]) -> FilesReport {
    let changed = changed.iter().map(ToString::to_string).collect();
    FilesReport { checkpoint: Some(checkpoint), changed, problem: None }
}

#[tokio::test]
async fn a_turns_files_are_kept_before_its_end_is_told() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = awake(&stage, &depot, on()).await;
    let script = "mkdir -p d; echo 1 > d/a; echo 2 > b; echo 3 > c.tmp; chmod +x b";
    assert_eq!(line.run(&stage, 1, script).await, report(1, &["b", "d/a", "up"]));
    assert_eq!(depot.asked(), ["missing 3", "put 2", "checkpoint"]);
    assert_eq!(paths(&depot), ["b", "d/a", "up"]);
    let offer = depot.offers().pop().unwrap();
    assert_eq!((offer.lineage, offer.uploads), (1, 1));
    assert_eq!(offer.turn, Some(crate::stage::turn(1)));
    // Only what is new travels.
    let script = "echo 4 > d/a; rm b; ln -s d/a l";
    assert_eq!(line.run(&stage, 2, script).await, report(2, &["b", "d/a", "l"]));
    assert_eq!(depot.asked(), ["missing 1", "put 1", "checkpoint"]);
    // And nothing, if nothing is.
    assert_eq!(line.run(&stage, 3, "cat d/a > /dev/null").await, report(2, &[]));
    assert!(depot.asked().is_empty());
}

#[tokio::test]
async fn without_checkpoints_a_turn_has_no_report() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = awake(&stage, &depot, CheckpointPolicy::default()).await;
    fs::write(stage.root().join("do"), "echo 1 > a").unwrap();
    let turn = line.turn(1, "x").await;
    assert_eq!(line.report(turn).await, (answered("ok"), None));
    assert!(depot.asked().is_empty());
}

#[tokio::test]
async fn what_is_not_kept_is_named_and_a_checkpoint_that_fails_fails_no_turn() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = awake(&stage, &depot, CheckpointPolicy { files_max: 3, ..on() }).await;
    let told = line.run(&stage, 1, "mkfifo pipe; ln -s /etc out; echo 1 > a").await;
    let problem = told.problem.unwrap();
    assert_eq!(told.checkpoint, Some(1));
    assert!(problem.contains("pipe (it is a socket, a pipe or a device)"), "{problem}");
    assert!(problem.contains("out (it is a link that leads out"), "{problem}");
    let shown: Vec<_> = depot.offers()[0].left_out.iter().map(|it| it.path.clone()).collect();
    assert_eq!(shown, ["out", "pipe"]);
    let told = line.run(&stage, 2, "rm pipe out; touch b c").await;
    assert_eq!(told.checkpoint, None);
    assert!(told.problem.unwrap().contains("more than 3 files"));
    depot.contents().refuses_offers = Some(409);
    let told = line.run(&stage, 3, "rm b").await;
    assert!(told.problem.unwrap().contains("409"));
    depot.contents().refuses_offers = None;
    assert_eq!(line.run(&stage, 4, "true").await, report(2, &["c"]));
}

#[tokio::test]
async fn a_daemon_that_stumbles_is_asked_again() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = awake(&stage, &depot, on()).await;
    depot.contents().refusals.extend([503, 500, 429]);
    assert_eq!(line.run(&stage, 1, "echo 1 > a").await, report(1, &["a", "up"]));
}

#[tokio::test]
async fn a_file_that_never_rests_is_left_out_in_the_end() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = awake(&stage, &depot, on()).await;
    let script = "echo kept > a
        # Without its folder it ends, whatever became of the test.
        (while [ -e ../do ] && [ ! -e ../stop ]; do date +%N > busy; done) > /dev/null 2>&1 &
        until [ -e busy ]; do sleep 0.01; done";
    let told = line.run(&stage, 1, script).await;
    fs::write(stage.root().join("stop"), "").unwrap();
    assert_eq!(told.checkpoint, Some(1));
    let is_in_it = paths(&depot).contains(&"busy".to_string());
    let is_named = told.problem.unwrap_or_default().contains("busy (it changes while it is read)");
    assert!(is_in_it != is_named, "in it: {is_in_it}, named: {is_named}");
    assert!(paths(&depot).contains(&"a".to_string()));
}

#[tokio::test]
async fn the_clock_keeps_files_in_the_middle_of_a_turn() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = awake(&stage, &depot, CheckpointPolicy { every_ms: Some(1), ..on() }).await;
    fs::write(stage.root().join("do"), "echo 1 > half; until [ -e go ]; do sleep 0.01; done")
        .unwrap();
    let turn = line.turn(1, "x").await;
    let is_kept = || {
        depot
            .offers()
            .iter()
            .any(|offer| offer.manifest.entries().iter().any(|entry| entry.path.as_str() == "half"))
    };
    until("half of it is kept", || is_kept().then_some(())).await;
    assert!(depot.offers().iter().all(|offer| offer.turn.is_none()));
    fs::write(stage.workspace().join("go"), "").unwrap();
    let (_, told) = line.report(turn).await;
    assert!(told.unwrap().checkpoint.is_some());
}

#[tokio::test]
async fn a_stop_keeps_the_files_before_the_last_word() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = awake(&stage, &depot, CheckpointPolicy { after_turn: false, ..on() }).await;
    fs::write(stage.root().join("do"), "echo 1 > a").unwrap();
    let turn = line.turn(1, "x").await;
    assert_eq!(line.report(turn).await, (answered("ok"), None));
    assert!(depot.offers().is_empty());
    line.stop(Duration::from_secs(5)).await;
    line.exited().await;
    assert_eq!(paths(&depot), ["a", "up"]);
}

#[tokio::test]
async fn an_agent_that_dies_after_its_answer_takes_no_files_with_it() {
    let stage = Stage::started();
    let depot = stage.depot();
    let version = depot.plan(&[], &[], on());
    let mut line = stage.welcome(None).await;
    line.sync(&stage, &depot, version).await.unwrap();
    let launch = stage.jsonl("next_turn; echo 1 > a; finish ok; exit 1");
    line.send(ToBridge::Launch { launch }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    // It is dead before anything of it is kept.
    depot.contents().refusals.extend([503, 503]);
    let turn = line.turn(1, "x").await;
    let (outcome, told) = line.report(turn).await;
    assert_eq!((outcome, told.unwrap().checkpoint), (answered("ok"), Some(1)));
    line.exited().await;
    assert_eq!(paths(&depot), ["a"]);
}

#[tokio::test]
async fn a_signal_to_the_bridge_keeps_the_files_as_well() {
    let stage = Stage::started();
    let depot = stage.depot();
    let mut line = awake(&stage, &depot, on()).await;
    fs::write(stage.workspace().join("late"), "1").unwrap();
    stage.signal_bridge("TERM");
    line.exited().await;
    assert_eq!(paths(&depot), ["late", "up"]);
}

#[tokio::test]
async fn a_daemon_without_its_files_holds_up_no_end_for_long() {
    let mut stage = Stage::started();
    let mut depot = stage.depot();
    let mut line = awake(&stage, &depot, on()).await;
    fs::write(stage.workspace().join("late"), "1").unwrap();
    depot
        .restart(async {
            line.stop(Duration::ZERO).await;
            line.exited().await;
        })
        .await;
    line.send(ToBridge::Release).await;
    stage.bridge_exit().await;
    assert!(depot.offers().is_empty());
    assert!(stage.log().contains("no checkpoint"));
}

#[tokio::test]
async fn a_failed_restore_is_never_followed_by_a_checkpoint() {
    let stage = Stage::started();
    let depot = stage.depot();
    let policy = || CheckpointPolicy { every_ms: Some(1), ..on() };
    let version = depot.plan(&[], &[], policy());
    let mut line = stage.welcome(None).await;
    line.sync(&stage, &depot, version).await.unwrap();
    depot.restore(2, &[("good", b"1")]);
    depot.contents().blobs.clear();
    let version = depot.plan(&[("new", b"")], &[], policy());
    line.sync(&stage, &depot, version).await.unwrap_err();
    line.send(ToBridge::Launch { launch: stage.jsonl(SCRIPT) }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    fs::write(stage.workspace().join("do"), "echo 1 > a").unwrap();
    let turn = line.turn(1, "x").await;
    let (_, told) = line.report(turn).await;
    assert!(told.unwrap().problem.unwrap().contains("not whole"));
    line.stop(Duration::from_secs(5)).await;
    line.exited().await;
    assert!(depot.offers().is_empty());
}

#[tokio::test]
async fn what_was_kept_is_what_a_lost_workspace_becomes() {
    let mut stage = Stage::started();
    let depot = stage.depot();
    let mut line = awake(&stage, &depot, on()).await;
    let script = "mkdir -p d e; echo 1 > d/a; ln -s d/a l; echo 2 > x; chmod +x x; rm up";
    line.run(&stage, 1, script).await;
    let before = stage.tree();
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
    fs::remove_dir_all(stage.workspace()).unwrap();
    fs::create_dir(stage.workspace()).unwrap();
    fs::remove_file(stage.root().join("workspace.state")).unwrap();
    {
        let offer = depot.offers().pop().unwrap();
        let mut contents = depot.contents();
        let plan = contents.plan.as_mut().unwrap();
        plan.restore = Some(offer.manifest);
        plan.restore_uploads = offer.uploads;
    }
    stage.begin_anew();
    let mut line = awake(&stage, &depot, on()).await;
    assert_eq!(stage.tree(), before);
    // Its number is told again, and nothing travels for that.
    assert_eq!(line.run(&stage, 2, "true").await, report(2, &[]));
    assert_eq!(depot.asked(), ["checkpoint"]);
    // The folder alone was removed, as its agent can do: what is known of it is of another one.
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
    fs::remove_dir_all(stage.workspace()).unwrap();
    fs::create_dir(stage.workspace()).unwrap();
    stage.begin_anew();
    let _line = awake(&stage, &depot, on()).await;
    assert_eq!(stage.tree(), before);
}

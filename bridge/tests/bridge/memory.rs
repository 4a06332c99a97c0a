//! Limits: who is killed for memory, told apart by what the kernel counts and tells, and processes
//! that are refused. On control groups of version 1, where this machine lets a test make some.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_bridge::frames::Adapter;
use dormouse_bridge::rundir::{CgroupSpec, CgroupVersion};
use dormouse_core::cause::Cause;
use dormouse_core::event::TurnOutcome;
use dormouse_core::evidence::{AskedBy, End, OomVictim};

use crate::ending::exited;
use crate::stage::{Line, Stage, is_running, send_signal, until};

/// Groups of version 1 with a limit each, if this machine lets the test make them.
struct Groups {
    memory: PathBuf,
    pids: PathBuf,
}

const LIMIT_BYTES: u64 = 64 << 20;
const PIDS_LIMIT: u64 = 12;

impl Groups {
    fn new(name: &str) -> Option<Self> {
        let name = format!("dormouse-bridge-test-{}-{name}", std::process::id());
        let folder = |controller: &str| Path::new("/sys/fs/cgroup").join(controller).join(&name);
        let groups = Self { memory: folder("memory"), pids: folder("pids") };
        let limits = [
            (&groups.memory, "memory.limit_in_bytes", LIMIT_BYTES),
            (&groups.pids, "pids.max", PIDS_LIMIT),
        ];
        for (folder, file, limit) in limits {
            std::fs::create_dir(folder).ok()?;
            std::fs::write(folder.join(file), limit.to_string()).ok()?;
        }
        Some(groups)
    }

    fn stage(&self) -> Stage {
        let mut stage = Stage::with_cgroup(Some(CgroupSpec {
            version: CgroupVersion::V1,
            agent_folder: self.memory.clone(),
            extra_folders: vec![self.pids.clone()],
        }));
        stage.start();
        stage
    }

    async fn kills_are(&self, count: u64) {
        let wanted = format!("oom_kill {count}");
        until("the kernel to have killed", || {
            let control = std::fs::read_to_string(self.memory.join("memory.oom_control")).unwrap();
            control.lines().any(|line| line == wanted).then_some(())
        })
        .await;
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for folder in [&self.memory, &self.pids] {
            // Fails while members are left, which the test has then told.
            let _removed = std::fs::remove_dir(folder);
        }
    }
}

fn skip() {
    let words = "skipped: no control groups of version 1 can be made here\n";
    let _said = std::io::Write::write_all(&mut std::io::stderr(), words.as_bytes());
}

/// Memory that is never given back.
const EAT: &str = "python3 -c 'x = []\nwhile True: x.append(bytes(1 << 20))'";

fn script(line: &str) -> String {
    line.replace("EAT", EAT)
}

/// A long-lived agent that runs this line of shell.
async fn agent(stage: &Stage, line: &str) -> Line {
    stage.ready(stage.jsonl(&script(line))).await
}

#[tokio::test]
async fn an_agent_that_runs_out_of_memory_is_the_one_that_was_killed_for_it() {
    let Some(groups) = Groups::new("agent") else { return skip() };
    let stage = groups.stage();
    let mut line = agent(&stage, "exec EAT").await;
    let evidence = exited(&mut line).await;
    assert_eq!(evidence.end, End::Signaled { signal: 9 });
    assert_eq!((evidence.asked_by, evidence.oom_victim), (None, Some(OomVictim::Main)));
    assert_eq!(evidence.oom_kills, Some(1));
    assert_eq!(evidence.memory_limit_bytes, Some(LIMIT_BYTES));
    assert!(evidence.memory_peak_bytes > Some(LIMIT_BYTES / 2), "{evidence:?}");
    assert_eq!(evidence.pids_refused, Some(0));
}

#[tokio::test]
async fn a_child_that_runs_out_of_memory_is_told_apart_by_whatever_code_its_parent_returns() {
    for code in [0, 1, 137] {
        let Some(groups) = Groups::new(&format!("child-{code}")) else { return skip() };
        let stage = groups.stage();
        let mut line = agent(&stage, &format!("EAT; exit {code}")).await;
        let evidence = exited(&mut line).await;
        assert_eq!(evidence.end, End::Exited { code });
        assert_eq!((evidence.oom_kills, evidence.oom_victim), (Some(1), Some(OomVictim::Child)));
    }
}

#[tokio::test]
async fn a_sigkill_from_outside_after_a_child_s_oom_kill_is_not_the_kernel_s() {
    let Some(groups) = Groups::new("outside") else { return skip() };
    let stage = groups.stage();
    let mut line = agent(&stage, "EAT; while next_turn; do finish \"alive\"; done").await;
    // Its answer is what proves that the bridge had its time to look.
    let turn = line.turn(1, "x").await;
    line.outcome(turn).await;
    let agent = stage.run_folder().read_agent().unwrap().unwrap();
    send_signal("KILL", &agent.process.pid.to_string());
    let evidence = exited(&mut line).await;
    assert_eq!(evidence.end, End::Signaled { signal: 9 });
    assert_eq!((evidence.oom_kills, evidence.oom_victim), (Some(1), Some(OomVictim::Child)));
}

#[tokio::test]
async fn a_sigkill_right_after_a_child_s_oom_kill_is_never_taken_for_the_kernel_s() {
    let Some(groups) = Groups::new("at-once") else { return skip() };
    let stage = groups.stage();
    let mut line = agent(&stage, "EAT; kill -KILL $$").await;
    let evidence = exited(&mut line).await;
    assert_eq!(evidence.end, End::Signaled { signal: 9 });
    assert_eq!((evidence.oom_kills, evidence.oom_victim), (Some(1), Some(OomVictim::Child)));
}

#[tokio::test]
async fn a_child_first_and_then_the_agent_itself_is_the_agent() {
    let Some(groups) = Groups::new("both") else { return skip() };
    let stage = groups.stage();
    let mut line = agent(&stage, "EAT; EAT; exec EAT").await;
    let evidence = exited(&mut line).await;
    assert_eq!(evidence.end, End::Signaled { signal: 9 });
    assert_eq!((evidence.oom_kills, evidence.oom_victim), (Some(3), Some(OomVictim::Main)));
}

#[tokio::test]
async fn a_kill_when_the_grace_ran_out_is_not_the_kernel_s() {
    let Some(groups) = Groups::new("grace") else { return skip() };
    let stage = groups.stage();
    let mut line = agent(&stage, "trap '' TERM; EAT; while :; do sleep 1; done").await;
    groups.kills_are(1).await;
    line.stop(Duration::from_millis(100)).await;
    let evidence = exited(&mut line).await;
    assert_eq!((evidence.end, evidence.grace_ran_out), (End::Signaled { signal: 9 }, true));
    assert_eq!(evidence.asked_by, Some(AskedBy::Daemon));
    assert_eq!((evidence.oom_kills, evidence.oom_victim), (Some(1), Some(OomVictim::Child)));
}

#[tokio::test]
async fn a_sigkill_without_any_kill_counted_has_no_victim() {
    let Some(groups) = Groups::new("none") else { return skip() };
    let stage = groups.stage();
    let mut line = agent(&stage, "kill -KILL $$").await;
    let evidence = exited(&mut line).await;
    assert_eq!(evidence.end, End::Signaled { signal: 9 });
    assert_eq!((evidence.oom_kills, evidence.oom_victim), (Some(0), None));
}

fn failed(outcome: TurnOutcome) -> (Cause, bool, String) {
    match outcome {
        TurnOutcome::Failed { cause, retryable, message, .. } => (cause, retryable, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_turns_program_that_runs_out_of_memory_is_told_apart_as_well() {
    let Some(groups) = Groups::new("turn") else { return skip() };
    let stage = groups.stage();
    let run = script("case $(cat) in own) exec EAT;; child) EAT; exit 137;; *) kill -9 $$;; esac");
    let mut line = stage.ready(stage.shell(Adapter::Exec, &run)).await;
    let turn = line.turn(1, "own").await;
    let (cause, retryable, message) = failed(line.outcome(turn).await);
    assert_eq!((cause, retryable), (Cause::OomLimit, true), "{message}");
    // The limit is the agent's: the bridge goes on. And what was counted in one turn is not the
    // next one's.
    let turn = line.turn(2, "outside").await;
    let (cause, _, message) = failed(line.outcome(turn).await);
    assert_eq!(cause, Cause::KilledOutside, "{message}");
    let turn = line.turn(3, "child").await;
    let (cause, retryable, message) = failed(line.outcome(turn).await);
    assert_eq!((cause, retryable), (Cause::OomChild, true), "{message}");
    assert!(message.contains("killed a program that it had started, for its memory"), "{message}");
    line.stop(Duration::from_secs(30)).await;
    let evidence = exited(&mut line).await;
    assert_eq!((evidence.oom_kills, evidence.oom_victim), (Some(2), None));
}

#[tokio::test]
async fn refused_processes_are_counted() {
    let Some(groups) = Groups::new("pids") else { return skip() };
    let stage = groups.stage();
    let spawn = "import subprocess\nwhile True: subprocess.Popen(['sleep', '1000'])";
    let launch = stage.launch(Adapter::Jsonl { wait_for_ready: false }, &["python3", "-c", spawn]);
    let mut line = stage.welcome(Some(launch)).await;
    let evidence = exited(&mut line).await;
    assert_eq!(evidence.end, End::Exited { code: 1 });
    assert!(evidence.pids_refused >= Some(1), "{evidence:?}");
    assert_eq!((evidence.oom_kills, evidence.oom_victim), (Some(0), None));
    let first = evidence.first_error.unwrap();
    assert!(first.contains("BlockingIOError") || first.contains("Traceback"), "{first}");
}

#[tokio::test]
async fn whoever_is_in_the_control_group_is_killed_whoever_its_parent_is() {
    let Some(group) = Groups::new("stranger") else { return skip() };
    let stage = group.stage();
    let mut line = stage.ready(stage.jsonl("next_turn")).await;
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(group.memory.join("cgroup.procs"), stranger.id().to_string()).unwrap();
    line.stop(Duration::from_secs(30)).await;
    line.exited().await;
    assert!(!is_running(&stranger.id().to_string()));
    stranger.wait().unwrap();
}

//! Agents that are one process per turn.

use std::time::Duration;

use dormouse_bridge::frames::{Adapter, FromBridge, Secret, ToBridge};
use dormouse_core::cause::Cause;
use dormouse_core::event::TurnOutcome;
use dormouse_core::evidence::{AskedBy, End};
use dormouse_core::limits::DELTA_BYTES_MAX;

use crate::stage::{Line, Stage, is_running, until};

async fn started(script: &str) -> (Stage, Line) {
    let stage = Stage::started();
    let line = stage.ready(stage.shell(Adapter::Exec, script)).await;
    (stage, line)
}

fn answered(text: &str) -> TurnOutcome {
    TurnOutcome::Answered { text: text.to_string(), exit_code: Some(0) }
}

fn cause(outcome: &TurnOutcome) -> (Cause, &str, bool, Option<i32>) {
    match outcome {
        TurnOutcome::Failed { cause, message, retryable, exit_code } => {
            (*cause, message.as_str(), *retryable, *exit_code)
        }
        TurnOutcome::Answered { .. } => panic!("{outcome:?} is no failure"),
    }
}

#[tokio::test]
async fn the_text_goes_in_and_the_reply_comes_out() {
    let (_stage, mut line) = started("cat; echo ' bye'").await;
    for (number, text) in [(1, "hello"), (2, ""), (3, "grüß\ndich")] {
        let turn = line.turn(number, text).await;
        let expected = format!("{text} bye\n");
        assert_eq!(line.reply(turn).await, (expected.clone(), answered(&expected)));
        line.send(ToBridge::Acknowledge { turn }).await;
    }
}

#[tokio::test]
async fn the_program_sees_exactly_the_given_environment_in_its_workspace() {
    let stage = Stage::started();
    let mut launch =
        stage.launch(Adapter::Exec, &["sh", "-c", "pwd; env | sort; ls /proc/self/fd"]);
    launch.env.insert("WHERE".into(), Secret("{workspace} {session} {key} {other}".into()));
    let mut line = stage.ready(launch).await;
    let turn = line.turn(9, "").await;
    let TurnOutcome::Answered { text, .. } = line.outcome(turn).await else { panic!() };
    let workspace = stage.workspace().display().to_string();
    let (environment, descriptors) = text.split_at(text.find("\n0\n").unwrap());
    assert_eq!(
        environment.lines().collect::<Vec<_>>(),
        [
            workspace.as_str(),
            "DORMOUSE_ATTEMPT=1",
            "DORMOUSE_SESSION=echo/main",
            &format!("DORMOUSE_TURN={turn}"),
            "PATH=/usr/bin:/bin",
            &format!("PWD={workspace}"),
            &format!("WHERE={workspace} echo/main main {{other}}"),
        ]
    );
    // Its three, and the folder that `ls` reads.
    assert_eq!(descriptors.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn the_program_starts_with_default_signals_in_a_session_of_its_own() {
    let stage = Stage::started();
    let command = ["cat", "/proc/self/status", "/proc/self/stat", "/proc/self/oom_score_adj"];
    let mut line = stage.ready(stage.launch(Adapter::Exec, &command)).await;
    let turn = line.turn(1, "").await;
    let TurnOutcome::Answered { text, .. } = line.outcome(turn).await else { panic!() };
    for field in ["SigIgn:", "SigBlk:"] {
        let mask = text.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim();
        // Without the realtime signals, two of which C libraries keep for themselves.
        assert_eq!(u64::from_str_radix(mask, 16).unwrap() & 0x7fff_ffff, 0, "{field} {mask}");
    }
    let agent = stage.run_folder().read_agent().unwrap().unwrap();
    let stat = text.lines().find_map(|line| line.split_once("(cat) ")).unwrap().1;
    let group_and_session: Vec<&str> = stat.split(' ').skip(2).take(2).collect();
    let own = agent.process_group.to_string();
    assert_eq!(group_and_session, [own.as_str(), own.as_str()]);
    let bridge_score = format!("/proc/{}/oom_score_adj", stage.bridge_pid());
    let bridge_score: i32 = std::fs::read_to_string(bridge_score).unwrap().trim().parse().unwrap();
    let agent_score: i32 = text.lines().last().unwrap().parse().unwrap();
    assert!(agent_score > bridge_score || bridge_score >= 1000, "{agent_score} {bridge_score}");
}

#[tokio::test]
async fn an_exit_code_fails_the_turn_with_the_last_words() {
    let (stage, mut line) = started("echo partly; echo 'no such file' >&2; exit 3").await;
    let turn = line.turn(1, "x").await;
    let outcome = line.outcome(turn).await;
    let (cause, message, retryable, exit_code) = cause(&outcome);
    assert_eq!((cause, retryable, exit_code), (Cause::AgentError, false, Some(3)));
    assert_eq!(message, "the program ended with exit code 3: no such file");
    assert!(stage.log().contains(" err no such file\n"));
}

#[tokio::test]
async fn a_killed_program_may_be_tried_again() {
    let (_stage, mut line) = started("kill -s $(cat) $$").await;
    for (number, signal, expected, words) in [
        (1, "SEGV", Cause::AppSignal, "the program crashed with SIGSEGV"),
        (2, "KILL", Cause::KilledOutside, "the program was ended by SIGKILL"),
    ] {
        let turn = line.turn(number, signal).await;
        let outcome = line.outcome(turn).await;
        let (cause, message, retryable, _) = cause(&outcome);
        assert_eq!((cause, retryable), (expected, true));
        assert!(message.starts_with(words), "{message}");
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_fails_its_turns_and_not_the_instance() {
    let stage = Stage::started();
    let mut line = stage.ready(stage.launch(Adapter::Exec, &["no-such-program"])).await;
    for number in 1..=2 {
        let turn = line.turn(number, "x").await;
        let outcome = line.outcome(turn).await;
        let (cause, message, retryable, _) = cause(&outcome);
        assert_eq!((cause, retryable), (Cause::LaunchFailed, false));
        assert_eq!(message, "no-such-program is not found in /usr/bin:/bin");
    }
}

#[tokio::test]
async fn programs_are_found_in_the_given_path_and_in_the_workspace() {
    let stage = Stage::started();
    let program = stage.workspace().join("tool");
    std::fs::write(&program, "#!/bin/sh\necho found as $1\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let mut launch = stage.launch(Adapter::Exec, &["tool", "{key}"]);
    let path = format!("/nowhere:{}:/bin", stage.workspace().display());
    launch.env.insert("PATH".into(), Secret(path));
    let mut line = stage.ready(launch).await;
    let turn = line.turn(1, "").await;
    assert_eq!(line.outcome(turn).await, answered("found as main\n"));
    drop(line);

    let stage_of_relative = Stage::started();
    std::fs::copy(&program, stage_of_relative.workspace().join("tool")).unwrap();
    let launch = stage_of_relative.launch(Adapter::Exec, &["./tool", "{key}"]);
    let mut line = stage_of_relative.ready(launch).await;
    let turn = line.turn(1, "").await;
    assert_eq!(line.outcome(turn).await, answered("found as main\n"));
}

#[tokio::test]
async fn a_program_that_does_not_read_its_input_is_no_problem() {
    let (_stage, mut line) = started("echo done").await;
    let text = "x".repeat(1 << 20);
    for number in 1..=3 {
        let turn = line.turn(number, &text).await;
        assert_eq!(line.outcome(turn).await, answered("done\n"));
    }
}

#[tokio::test]
async fn a_long_text_and_a_long_reply_pass_through_whole() {
    let (_stage, mut line) = started("cat; cat /dev/null").await;
    let text = "aé🦦".repeat((1 << 20) / 7);
    let turn = line.turn(1, &text).await;
    let (streamed, outcome) = line.reply(turn).await;
    assert!(streamed == text && outcome == answered(&text));
}

#[tokio::test]
async fn deltas_come_while_the_program_runs() {
    let (stage, mut line) =
        started("printf 'one '; until [ -e go ]; do sleep 0.01; done; printf two").await;
    let turn = line.turn(1, "x").await;
    let expected = FromBridge::Delta { turn, offset: 0, text: "one ".into() };
    assert_eq!(line.next().await, expected);
    std::fs::write(stage.workspace().join("go"), "").unwrap();
    let expected = FromBridge::Delta { turn, offset: 4, text: "two".into() };
    assert_eq!(line.next().await, expected);
    let expected = FromBridge::Ended { turn, outcome: answered("one two"), files: None };
    assert_eq!(line.next().await, expected);
}

#[tokio::test]
async fn bytes_that_are_no_text_are_replaced_and_the_offsets_fit() {
    let (_stage, mut line) =
        started(r"printf 'a\377b\303'; sleep 0.05; printf '\251c\360\237'").await;
    let turn = line.turn(1, "x").await;
    let (streamed, outcome) = line.reply(turn).await;
    assert_eq!(streamed, "a\u{fffd}bé c\u{fffd}".replace(' ', ""));
    assert_eq!(outcome, answered(&streamed));
}

#[tokio::test]
async fn what_a_turn_leaves_in_its_group_neither_delays_its_end_nor_outlives_it() {
    let (stage, mut line) = started("sleep 1000 & echo $! > child; echo answer").await;
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, answered("answer\n"));
    let child = stage.workspace_file("child").unwrap();
    until("the child is gone", || (!is_running(&child)).then_some(())).await;
}

#[tokio::test]
async fn a_flood_on_standard_error_delays_nothing_and_fills_no_disk() {
    let (stage, mut line) = started("yes 0123456789 | head -c 50000000 >&2; echo answer").await;
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, answered("answer\n"));
    let logs = stage.run_folder().path().with_file_name("logs");
    for name in [dormouse_bridge::LOG_FILE, dormouse_bridge::OLD_LOG_FILE] {
        let bytes = std::fs::metadata(logs.join(name)).unwrap().len();
        assert!(bytes <= dormouse_bridge::LOG_FILE_BYTES_MAX, "{name} has {bytes} bytes");
    }
    assert_eq!(std::fs::read_dir(&logs).unwrap().count(), 2);
    assert!(stage.log().contains("err 0123456789"));
}

#[tokio::test]
async fn output_of_any_size_is_answered_with_its_ends_and_the_whole_is_in_a_file() {
    let (stage, mut line) =
        started(r"printf 'first \377\n'; yes 0123456789 | head -c 40000000; echo; echo last").await;
    let turn = line.turn(1, "x").await;
    let (streamed, outcome) = line.reply(turn).await;
    assert!(outcome == answered(&streamed), "the deltas add up to the answer");
    line.send(ToBridge::Acknowledge { turn }).await;
    let name = format!("output-{turn}.txt");
    let file = std::fs::read(stage.workspace().join(&name)).unwrap();
    assert_eq!(file.len(), 8 + 40_000_000 + 6);
    assert!(file.starts_with(b"first \xff\n0123456789\n") && file.ends_with(b"\nlast\n"));
    assert!(streamed.len() < (1 << 20) + (8 << 10));
    assert!(streamed.starts_with("first \u{fffd}\n0123456789\n"));
    let marker = format!(
        "\n[output truncated: 40000014 bytes in all, the whole is in {name}; \
         its last 4096 bytes follow]\n"
    );
    let (head, tail) = streamed.split_once(&marker).expect("the marker says where");
    assert!(head.len() > (1 << 20) - 4 && tail.ends_with("\nlast\n"), "{}", tail.len());
    let turn = line.turn(2, "x").await;
    line.outcome(turn).await;
    assert!(stage.workspace().join(name).exists(), "it is there for the turns to come");
}

#[tokio::test]
async fn deltas_of_a_flood_are_within_their_bound_and_stop_at_the_reply_s() {
    let (_stage, mut line) = started("yes | head -c 3000000").await;
    let turn = line.turn(1, "x").await;
    let mut streamed = 0;
    loop {
        match line.next().await {
            FromBridge::Delta { offset, text, .. } => {
                assert!(text.len() <= DELTA_BYTES_MAX && offset == streamed);
                streamed += text.len() as u64;
            }
            FromBridge::Ended { turn: of, outcome, .. } => {
                assert_eq!(of, turn);
                let TurnOutcome::Answered { text, .. } = outcome else { panic!() };
                assert_eq!(streamed, text.len() as u64);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_program_that_fails_after_a_flood_says_where_its_output_is() {
    let (stage, mut line) = started("yes | head -c 3000000; echo why >&2; exit 1").await;
    let turn = line.turn(1, "x").await;
    let outcome = line.outcome(turn).await;
    let (cause, message, _, exit_code) = cause(&outcome);
    assert_eq!((cause, exit_code), (Cause::AgentError, Some(1)));
    let name = format!("output-{turn}.txt");
    let whole = format!("3000000 bytes in all, the whole is in {name}");
    assert_eq!(message, format!("the program ended with exit code 1: why (its output: {whole})"));
    assert_eq!(std::fs::metadata(stage.workspace().join(name)).unwrap().len(), 3_000_000);
}

#[tokio::test]
async fn a_link_where_the_output_should_be_is_not_followed_and_the_reply_is_there() {
    let (stage, mut line) =
        started("ln -s ../outside output-$DORMOUSE_TURN.txt; yes | head -c 3000000").await;
    let turn = line.turn(1, "x").await;
    let TurnOutcome::Answered { text, exit_code } = line.outcome(turn).await else { panic!() };
    assert_eq!(exit_code, Some(0));
    assert!(text.contains("3000000 bytes in all, which output-msg_"));
    assert!(text.contains("could not keep: File exists"));
    assert!(!stage.root().join("outside").exists());
}

#[tokio::test]
async fn a_stop_between_turns_ends_the_instance() {
    let (stage, mut line) = started("cat").await;
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, answered("x"));
    line.stop(Duration::from_secs(30)).await;
    let evidence = line.exited().await;
    assert_eq!(evidence.end, End::Exited { code: 0 });
    assert_eq!(evidence.asked_by, Some(AskedBy::Daemon));
    assert_eq!(stage.run_folder().read_exit().unwrap(), Some(evidence));
}

#[tokio::test]
async fn a_stop_in_a_turn_ends_its_program_and_says_nothing_of_the_turn() {
    let (stage, mut line) = started("echo $$ > pid; echo half; sleep 1000").await;
    let turn = line.turn(1, "x").await;
    let expected = FromBridge::Delta { turn, offset: 0, text: "half\n".into() };
    assert_eq!(line.next().await, expected);
    line.stop(Duration::from_secs(30)).await;
    let evidence = line.exited().await;
    assert_eq!((evidence.end, evidence.grace_ran_out), (End::Exited { code: 0 }, false));
    assert!(!is_running(&stage.workspace_file("pid").unwrap()));
}

#[tokio::test]
async fn a_program_that_finishes_within_the_grace_has_answered() {
    let (_stage, mut line) =
        started("trap 'echo finished; exit 0' TERM; echo begun; while :; do sleep 0.01; done")
            .await;
    let turn = line.turn(1, "x").await;
    assert!(matches!(line.next().await, FromBridge::Delta { .. }));
    line.stop(Duration::from_secs(30)).await;
    let mut frames = vec![line.next().await];
    if matches!(frames[0], FromBridge::Delta { .. }) {
        frames.push(line.next().await);
    }
    let expected = FromBridge::Ended { turn, outcome: answered("begun\nfinished\n"), files: None };
    assert_eq!(frames.pop(), Some(expected));
    line.exited().await;
}

#[tokio::test]
async fn a_program_that_ignores_the_stop_is_killed_at_the_end_of_the_grace() {
    let (stage, mut line) =
        started("trap '' TERM; echo $$ > pid; echo begun; while :; do sleep 0.01; done").await;
    line.turn(1, "x").await;
    assert!(matches!(line.next().await, FromBridge::Delta { .. }));
    line.stop(Duration::from_millis(50)).await;
    let evidence = line.exited().await;
    assert!(evidence.grace_ran_out);
    assert!(!is_running(&stage.workspace_file("pid").unwrap()));
}

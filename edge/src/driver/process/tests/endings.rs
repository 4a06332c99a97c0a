//! Starts and ends: kills, releases, lost bridges, and bridges that outlive a daemon.

use super::*;

#[tokio::test]
async fn a_turn_is_run_by_a_real_bridge_and_the_release_leaves_nothing() {
    let mut rig = rig();
    rig.exec(order(), "tr a-z A-Z").await;
    rig.say(1, "hello");
    assert_eq!(rig.turn_ended(1).await, answered("HELLO"));
    rig.send(ToBridge::Acknowledge { turn: turn(1) });
    let bridge = rig.bridge();
    rig.send(ToBridge::Stop { grace_ms: 1_000 });
    assert_eq!(rig.exited().await.asked_by, Some(AskedBy::Daemon));
    rig.send(ToBridge::Release);
    rig.driver().release(&main_1()).await.unwrap();
    assert!(!bridge.is_alive() && !rig.folder().path().exists());
    rig.driver().release(&main_1()).await.unwrap();
    assert!(rig.found().await.is_empty());
    rig.finish().await;
}

#[tokio::test]
async fn a_bridge_leads_a_session_and_holds_its_lock_from_the_moment_that_start_returns() {
    let mut rig = rig();
    rig.driver().start(order()).await.unwrap();
    assert!(rig.folder().lock().unwrap().is_none());
    rig.attached().await;
    let bridge = rig.bridge();
    let pid = rustix::process::Pid::from_raw(bridge.pid).unwrap();
    assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);
    let held = fs::read_link(format!("/proc/{}/fd/3", bridge.pid)).unwrap();
    assert_eq!(held, rig.folder().path().join("lock"));
    let environment = fs::read_to_string(format!("/proc/{}/environ", bridge.pid)).unwrap();
    let names = environment.split_terminator('\0').map(|entry| entry.split('=').next().unwrap());
    let known = ["PATH", "TZ", "RUST_BACKTRACE"];
    assert!(names.clone().all(|name| known.contains(&name)), "{:?}", names.collect::<Vec<_>>());
    let data = &rig.config.data;
    for folder in [data.workspace_of(&main_1().session), data.logs_of(&main_1().session)] {
        assert_eq!(mode_of(&folder), 0o700);
    }
    assert_eq!(mode_of(rig.folder().path()), 0o700);
    rig.finish().await;
}

#[tokio::test]
async fn a_second_start_leaves_the_instance_as_it_is() {
    let mut rig = rig();
    rig.driver().start(order()).await.unwrap();
    let (boot, _, _) = rig.attached().await;
    let bridge = rig.bridge();
    rig.driver().start(order()).await.unwrap();
    rig.reopen_driver();
    rig.driver().start(order()).await.unwrap();
    assert_eq!(rig.found().await[0].state, FoundState::Alive);
    assert_eq!(rig.bridge(), bridge);
    assert!(rig.registry.send_to_boot(&main_1(), boot, ToBridge::Welcome { launch: None }));
    assert_eq!(rig.registry.connected(), 1);
    rig.finish().await;
}

#[tokio::test]
async fn two_starts_at_once_execute_one_bridge() {
    let mut rig = rig();
    let (first, second) = tokio::join!(rig.driver().start(order()), rig.driver().start(order()));
    first.unwrap();
    second.unwrap();
    rig.attached().await;
    assert_eq!(rig.found().await.len(), 1);
    rig.finish().await;
    // A second bridge would have attached, too.
}

#[tokio::test]
async fn of_two_starts_at_once_that_fail_neither_is_called_a_success() {
    let mut rig = rig();
    rig.config.bridge_command = vec!["/nowhere/bridge".into()];
    rig.reopen_driver();
    let (first, second) = tokio::join!(rig.driver().start(order()), rig.driver().start(order()));
    assert!(first.is_err() && second.is_err(), "{first:?} {second:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing() {
    let mut rig = rig();
    rig.config.bridge_command = vec!["/nowhere/bridge".into()];
    rig.reopen_driver();
    let error = rig.driver().start(order()).await.unwrap_err();
    assert!(matches!(error, StartError::Io { doing: "executed as a bridge", .. }), "{error:?}");
    assert_eq!(fs::read_dir(rig.config.data.run()).unwrap().count(), 0);
    assert!(rig.cgroup_folders().iter().all(|group| !group.exists()));
    // It was no instance, so the same one may be tried again.
    rig.config.bridge_command = vec![bridge_program().into()];
    rig.reopen_driver();
    rig.driver().start(order()).await.unwrap();
    rig.attached().await;
    rig.finish().await;
}

#[tokio::test]
async fn a_bridge_that_ends_before_it_says_who_it_is_never_launched_anything() {
    let mut rig = rig();
    rig.config.bridge_command = vec!["false".into()];
    rig.reopen_driver();
    rig.driver().start(order()).await.unwrap();
    let evidence = rig.exited().await;
    assert_eq!((evidence.end, evidence.asked_by), (End::NeverLaunched, None));
    assert_eq!(evidence.log_tail, "dormouse: the bridge ended with exit status: 1");
    rig.finish().await;
}

#[tokio::test]
async fn a_kill_ends_bridge_agent_and_whatever_the_agent_left_and_then_says_so() {
    for has_cgroups in [true, false] {
        let mut rig = rig_with(has_cgroups);
        let script = "setsid sh -c 'echo $$ > escaped; exec sleep 1000' & exec sleep 1000";
        rig.running(order(), script).await;
        let (bridge, agent) = (rig.bridge(), rig.agent());
        let escaped = rig.written_mark("escaped").await;
        rig.driver().kill(&main_1()).await.unwrap();
        for process in [bridge, agent, escaped] {
            assert!(!process.is_alive());
        }
        let evidence = rig.exited().await;
        assert_eq!((evidence.end, evidence.asked_by), (End::BridgeLost, Some(AskedBy::Driver)));
        rig.finish().await;
    }
}

#[tokio::test]
async fn a_kill_repeated_reports_the_exit_again() {
    let mut rig = rig();
    rig.running(order(), "exec sleep 1000").await;
    for _ in 0..3 {
        rig.driver().kill(&main_1()).await.unwrap();
        assert_eq!(rig.exited().await.asked_by, Some(AskedBy::Driver));
        rig.reopen_driver();
    }
    rig.finish().await;
}

#[tokio::test]
async fn killing_what_was_never_started_reports_an_exit_so_that_nobody_waits_for_one() {
    let mut rig = rig();
    rig.driver().kill(&main_1()).await.unwrap();
    assert_eq!(rig.exited().await.asked_by, Some(AskedBy::Driver));
    rig.finish().await;
}

#[tokio::test]
async fn when_a_bridge_is_killed_its_results_are_reported_and_then_its_end() {
    for has_cgroups in [true, false] {
        let mut rig = rig_with(has_cgroups);
        rig.exec(order(), "setsid sh -c 'echo $$ > escaped; exec sleep 1000' >&- 2>&- & cat").await;
        rig.say(1, "kept");
        let outcome = rig.turn_ended(1).await;
        kill_hard(rig.bridge());
        // Not acknowledged, so it comes again.
        assert_eq!(rig.turn_ended(1).await, outcome);
        let evidence = rig.exited().await;
        assert_eq!((evidence.end, evidence.asked_by), (End::BridgeLost, None));
        let status = "dormouse: the bridge ended with signal: 9 (SIGKILL)";
        assert!(evidence.log_tail.ends_with(status), "{}", evidence.log_tail);
        rig.finish().await;
    }
}

#[tokio::test]
async fn a_lost_bridge_leaves_nothing_alive_and_the_agents_last_log_lines() {
    for has_cgroups in [true, false] {
        let mut rig = rig_with(has_cgroups);
        let script =
            "echo 'aargh: an error' >&2; setsid sh -c 'echo $$ > escaped; exec sleep 1000' &
                      exec sleep 1000";
        rig.running(order(), script).await;
        let escaped = rig.written_mark("escaped").await;
        let logged = rig.driver().logs_of(&main_1().session).unwrap().join("agent.log");
        let logs = async {
            while !fs::read_to_string(&logged).is_ok_and(|text| text.contains("aargh")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the log", logs).await;
        let agent = rig.agent();
        kill_hard(rig.bridge());
        let evidence = rig.exited().await;
        // Nothing may live when the exit is reported.
        assert!(!agent.is_alive() && !escaped.is_alive());
        assert_eq!(evidence.end, End::BridgeLost);
        assert!(evidence.log_tail.contains(" err aargh"), "{}", evidence.log_tail);
        assert_eq!(evidence.first_error.as_deref(), Some("aargh: an error"));
        rig.finish().await;
    }
}

#[tokio::test]
async fn a_bridge_outlives_the_daemon_and_is_watched_by_the_next() {
    let mut rig = rig();
    rig.exec(order(), "cat").await;
    rig.say(1, "before");
    let outcome = rig.turn_ended(1).await;
    let bridge = rig.bridge();
    rig.reopen_driver();
    assert!(bridge.is_alive());
    let found = Found { instance: main_1(), state: FoundState::Alive };
    assert_eq!(rig.found().await, std::slice::from_ref(&found));
    assert_eq!(rig.found().await, [found]);
    kill_hard(bridge);
    assert_eq!(rig.turn_ended(1).await, outcome);
    assert_eq!(rig.exited().await.end, End::BridgeLost);
    rig.finish().await;
}

#[tokio::test]
async fn an_adopted_bridge_can_be_killed_and_released() {
    let mut rig = rig();
    rig.running(order(), "exec sleep 1000").await;
    let (bridge, agent) = (rig.bridge(), rig.agent());
    rig.reopen_driver();
    rig.driver().kill(&main_1()).await.unwrap();
    assert!(!bridge.is_alive() && !agent.is_alive());
    assert_eq!(rig.exited().await.asked_by, Some(AskedBy::Driver));
    rig.reopen_driver();
    rig.driver().release(&main_1()).await.unwrap();
    assert!(rig.found().await.is_empty());
    rig.finish().await;
}

#[tokio::test]
async fn what_ended_while_no_daemon_was_there_is_listed_with_its_results_and_its_end() {
    let mut rig = rig();
    let script = "setsid sh -c 'echo $$ > escaped; exec sleep 1000' >&- 2>&- & cat";
    rig.exec(order(), script).await;
    rig.say(1, "kept");
    let outcome = rig.turn_ended(1).await;
    let bridge = rig.bridge();
    rig.driver = None;
    kill_hard(bridge);
    is_gone(bridge).await;
    rig.open_driver();
    let found = rig.found().await.remove(0);
    let events = found.clone().into_events();
    assert_eq!(rig.found().await, [found]);
    let ended = Event::TurnEnded { instance: main_1(), turn: turn(1), outcome };
    let exited =
        Event::InstanceExited { instance: main_1(), evidence: Evidence::bare(End::BridgeLost) };
    assert_eq!(events[0], ended);
    let Event::InstanceExited { evidence, .. } = &events[1] else { panic!("{exited:?}") };
    assert_eq!((&evidence.end, evidence.asked_by), (&End::BridgeLost, None));
    assert_eq!(events.len(), 2);
    rig.finish().await;
}

#[tokio::test]
async fn a_bridge_that_ended_in_order_without_a_daemon_is_listed_with_its_own_evidence() {
    let mut rig = rig();
    rig.running(order(), "exit 7").await;
    assert_eq!(rig.exited().await.end, End::Exited { code: 7 });
    let bridge = rig.bridge();
    rig.driver = None;
    // Nobody released it. An end in order leaves its evidence in the folder.
    kill_hard(bridge);
    is_gone(bridge).await;
    rig.open_driver();
    let state = rig.found().await.remove(0).state;
    let FoundState::Ended(leftovers) = state else { panic!("it is taken for alive") };
    assert_eq!(leftovers.evidence.end, End::Exited { code: 7 });
    rig.finish().await;
}

#[tokio::test]
async fn a_released_bridge_that_does_not_end_is_killed_and_not_reported() {
    let mut rig = rig();
    rig.config.release_within = Duration::from_millis(50);
    rig.reopen_driver();
    rig.running(order(), "exec sleep 1000").await;
    let (bridge, agent) = (rig.bridge(), rig.agent());
    rig.driver().release(&main_1()).await.unwrap();
    assert!(!bridge.is_alive() && !agent.is_alive());
    assert!(!rig.folder().path().exists());
    loop {
        match rig.events.try_recv() {
            Ok(Event::BridgeDetached { .. }) => {}
            Ok(other) => panic!("reported: {other:?}"),
            Err(_) => break,
        }
    }
    rig.finish().await;
}

//! Limits that hold, and what is said where they do not.

use super::*;

/// Where this machine lets us limit memory; elsewhere a test of it proves nothing.
fn is_enforced(fact: &Enforcement) -> bool {
    matches!(fact, Enforcement::Enforced { .. })
}

#[tokio::test]
async fn an_agent_beyond_its_memory_is_killed_with_the_kernels_counter_as_evidence() {
    let mut rig = rig();
    if !is_enforced(&rig.driver().facts().memory) {
        return rig.finish().await;
    }
    let limit = 32 << 20;
    let order = StartOrder { memory_limit_bytes: Some(limit), ..order() };
    rig.running(order, "read line; endless=$(tr '\\0' x < /dev/zero)").await;
    rig.say(1, "eat");
    let evidence = rig.exited().await;
    assert_eq!((evidence.end, evidence.asked_by), (End::Signaled { signal: 9 }, None));
    assert_eq!(evidence.memory_limit_bytes, Some(limit));
    // Version 2 kills, and counts, all of the group.
    assert!(evidence.oom_kills >= Some(1), "{:?}", evidence.oom_kills);
    assert_eq!(evidence.oom_victim, Some(OomVictim::Main));
    let peak = evidence.memory_peak_bytes.unwrap();
    assert!((limit / 2..=limit).contains(&peak), "{peak}");
    rig.finish().await;
}

#[tokio::test]
async fn the_bridge_stays_outside_of_the_group_that_limits_its_agent() {
    let mut rig = rig();
    let groups = rig.cgroup_folders();
    if groups.is_empty() {
        return rig.finish().await;
    }
    let order = StartOrder { memory_limit_bytes: Some(64 << 20), pids_limit: Some(9), ..order() };
    rig.running(order, "exec sleep 1000").await;
    let (bridge, agent) = (rig.bridge(), rig.agent());
    for group in groups {
        let members = cgroup::members(&group);
        assert!(members.contains(&agent.pid), "{} has {members:?}", group.display());
        assert!(!members.contains(&bridge.pid));
    }
    rig.finish().await;
}

#[tokio::test]
async fn an_agent_cannot_make_more_processes_than_it_may() {
    let mut rig = rig();
    if !is_enforced(&rig.driver().facts().pids) {
        return rig.finish().await;
    }
    let order = StartOrder { pids_limit: Some(4), ..order() };
    let script = "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all";
    rig.exec(order, script).await;
    rig.say(1, "");
    let outcome = rig.turn_ended(1).await;
    let said = format!("{outcome:?}");
    assert!(!said.contains("all"), "{said}");
    rig.send(ToBridge::Acknowledge { turn: turn(1) });
    rig.send(ToBridge::Stop { grace_ms: 1_000 });
    let evidence = rig.exited().await;
    assert!(evidence.pids_refused >= Some(1), "{evidence:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_lost_bridge_s_group_tells_what_was_refused_in_it() {
    let mut rig = rig();
    if !is_enforced(&rig.driver().facts().pids) {
        return rig.finish().await;
    }
    let order = StartOrder { pids_limit: Some(4), ..order() };
    let script = "(for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done); echo > done; exec sleep 1000";
    rig.running(order, script).await;
    rig.written("done").await;
    kill_hard(rig.bridge());
    let evidence = rig.exited().await;
    assert_eq!((evidence.end, evidence.oom_victim), (End::BridgeLost, None));
    assert!(evidence.pids_refused >= Some(1), "{:?}", evidence.pids_refused);
    rig.finish().await;
}

#[tokio::test]
async fn a_limit_that_cannot_hold_is_refused_or_left_out_as_ordered() {
    let mut rig = rig_with(false);
    let facts = rig.driver().facts();
    let memory = facts.memory.to_string();
    assert!(memory.starts_with("not enforced: the memory controller is not mounted"), "{memory}");
    let limited = StartOrder { memory_limit_bytes: Some(1 << 30), ..order() };
    let when_not_enforceable = WhenNotEnforceable::Refuse;
    let must_hold = StartOrder { when_not_enforceable, ..limited.clone() };
    let error = rig.driver().start(must_hold).await.unwrap_err();
    assert!(matches!(error, StartError::NotEnforceable { what: "memory", .. }), "{error:?}");
    assert_eq!(fs::read_dir(rig.config.data.run()).unwrap().count(), 0);
    rig.driver().start(limited).await.unwrap();
    rig.attached().await;
    assert_eq!(rig.folder().read_spec().unwrap().unwrap().cgroup, None);
    rig.finish().await;
}

#[tokio::test]
async fn a_limit_that_the_kernel_does_not_take_is_refused_and_leaves_no_group() {
    let rig = rig();
    if !is_enforced(&rig.driver().facts().pids) {
        return rig.finish().await;
    }
    // More than there are numbers for processes.
    let order = StartOrder {
        pids_limit: Some(u64::MAX),
        when_not_enforceable: WhenNotEnforceable::Refuse,
        ..order()
    };
    let error = rig.driver().start(order).await.unwrap_err();
    assert!(matches!(error, StartError::NotEnforceable { .. }), "{error:?}");
    assert!(rig.cgroup_folders().iter().all(|group| !group.exists()));
    assert_eq!(fs::read_dir(rig.config.data.run()).unwrap().count(), 0);
    rig.finish().await;
}

#[tokio::test]
async fn facts_say_where_limits_are_enforced() {
    let rig = rig();
    let facts = rig.driver().facts();
    for fact in [&facts.memory, &facts.pids] {
        match fact {
            Enforcement::Enforced { by, at, .. } => {
                assert!(fact.to_string().starts_with(&format!("enforced by {by} at /")));
                assert!(at.ends_with(format!("dormouse-{}", rig.config.deployment)));
            }
            Enforcement::NotEnforced { why, fix } => {
                assert_eq!(fact.to_string(), format!("not enforced: {why}. {fix}"));
            }
        }
    }
    rig.finish().await;
}

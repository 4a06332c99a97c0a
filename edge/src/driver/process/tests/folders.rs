//! Run folders that are half-made, forged, or point at somebody else.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use dormouse_bridge::rundir::{AgentRecord, BridgeRecord};

use super::*;

/// A process of the test's own, which no driver may touch.
struct Bystander(std::process::Child);

impl Bystander {
    fn new() -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Self(command.spawn().unwrap())
    }

    fn mark(&self) -> ProcessMark {
        ProcessMark::of(i32::try_from(self.0.id()).unwrap()).unwrap()
    }

    /// The same number, and another life.
    fn wrong_mark(&self) -> ProcessMark {
        let ProcessMark { pid, start_ticks } = self.mark();
        ProcessMark { pid, start_ticks: start_ticks - 1 }
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let killed = self.0.kill().and_then(|()| self.0.wait());
        assert!(killed.is_ok() || std::thread::panicking(), "{killed:?}");
    }
}

fn spec_of(rig: &Rig, instance: &InstanceId) -> Spec {
    Spec {
        session: instance.session.clone(),
        generation: instance.generation,
        dial: rig.config.dial.clone(),
        token: Secret("x".into()),
        log_folder: rig.config.data.logs_of(&instance.session),
        cgroup: None,
        memory_limit_bytes: None,
    }
}

/// A run folder as it stays behind when bridge and agent are long gone.
fn forge(rig: &Rig, process: ProcessMark) {
    fs::create_dir(rig.folder().path()).unwrap();
    rig.folder().write_spec(&spec_of(rig, &main_1())).unwrap();
    rig.folder().write_bridge(&BridgeRecord { process, boot: BootId(1) }).unwrap();
    let agent = AgentRecord { process, process_group: process.pid };
    rig.folder().write_agent(&agent).unwrap();
}

#[tokio::test]
async fn a_process_that_only_has_the_number_of_an_old_one_is_not_touched() {
    let rig = rig();
    let bystander = Bystander::new();
    forge(&rig, bystander.wrong_mark());
    assert!(matches!(rig.found().await[0].state, FoundState::Ended(_)));
    rig.driver().kill(&main_1()).await.unwrap();
    rig.driver().release(&main_1()).await.unwrap();
    assert!(bystander.mark().is_alive());
    rig.finish().await;
}

#[tokio::test]
async fn a_bridge_that_holds_its_lock_is_alive_whatever_number_its_record_has() {
    let rig = rig();
    let bystander = Bystander::new();
    forge(&rig, bystander.wrong_mark());
    let lock = rig.folder().lock().unwrap().unwrap();
    assert_eq!(rig.found().await[0].state, FoundState::Alive);
    // Whoever holds the lock cannot be found, and nobody else is killed in its place.
    let instance = main_1();
    let killed = tokio::time::timeout(Duration::from_millis(300), rig.driver().kill(&instance));
    assert!(killed.await.is_err());
    assert!(bystander.mark().is_alive());
    drop(lock);
    rig.finish().await;
}

#[tokio::test]
async fn the_agent_of_a_folder_is_killed_when_number_and_start_time_are_right() {
    let rig = rig();
    let mut agent = Bystander::new();
    forge(&rig, agent.mark());
    assert!(matches!(rig.found().await[0].state, FoundState::Ended(_)));
    let status = agent.0.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    rig.finish().await;
}

#[tokio::test]
async fn a_bridge_that_has_not_said_who_it_is_is_found_by_where_it_works() {
    let mut rig = rig();
    // Holds the lock as a bridge does, and says nothing.
    let silent = rig.scratch.path().join("silent");
    fs::write(&silent, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&silent, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    rig.config.bridge_command = vec![silent.into()];
    rig.reopen_driver();
    rig.driver().start(order()).await.unwrap();
    rig.reopen_driver();
    assert_eq!(rig.found().await[0].state, FoundState::Alive);
    rig.driver().kill(&main_1()).await.unwrap();
    assert_eq!(rig.exited().await.end, End::NeverLaunched);
    assert!(rig.folder().lock().unwrap().is_some());
    rig.finish().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_read_is_named_and_not_taken_for_gone() {
    let rig = rig();
    let run = rig.config.data.run();
    let other = instance("python/other", 1);
    for (name, spec) in [("empty", None), ("garbage", Some("{")), ("alien", Some("[]"))] {
        fs::create_dir(run.join(name)).unwrap();
        if let Some(spec) = spec {
            fs::write(run.join(name).join("spec.json"), spec).unwrap();
        }
    }
    fs::create_dir(run.join("stolen-1")).unwrap();
    RunFolder::new(run.join("stolen-1")).write_spec(&spec_of(&rig, &other)).unwrap();
    fs::write(run.join("a file"), "").unwrap();
    symlink("/etc", run.join("link")).unwrap();

    let listing = rig.driver().list().await.unwrap();
    assert!(listing.found.is_empty(), "{:?}", listing.found);
    let mut names: Vec<_> = listing.unreadable.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a file", "alien", "empty", "garbage", "link", "stolen-1"]);
    let stolen = listing.unreadable.iter().find(|entry| entry.name == "stolen-1").unwrap();
    assert!(stolen.error.contains("python/other#1"), "{}", stolen.error);
    rig.finish().await;
}

#[tokio::test]
async fn half_made_and_half_removed_folders_go_when_the_driver_is_opened() {
    let mut rig = rig();
    let run = rig.config.data.run();
    let outside = rig.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "kept").unwrap();
    for name in [".making-x-0", ".gone-y-7"] {
        fs::create_dir(run.join(name)).unwrap();
        symlink(&outside, run.join(name).join("link")).unwrap();
    }
    symlink(&outside, run.join(".gone-link")).unwrap();
    let groups: Vec<_> = rig.cgroup_folders();
    for group in &groups {
        fs::create_dir(group).unwrap();
    }
    rig.reopen_driver();
    assert_eq!(fs::read_dir(run).unwrap().count(), 0);
    assert!(groups.iter().all(|group| !group.exists()));
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "kept");
    rig.finish().await;
}

#[tokio::test]
async fn a_release_never_follows_a_link_out_of_the_run_folder() {
    let rig = rig();
    let outside = rig.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "kept").unwrap();
    let bystander = Bystander::new();
    forge(&rig, bystander.wrong_mark());
    symlink(&outside, rig.folder().path().join("results")).unwrap();
    symlink(&outside, rig.folder().path().join("deeper")).unwrap();
    rig.driver().release(&main_1()).await.unwrap();
    assert!(!rig.folder().path().exists());
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "kept");
    drop(bystander);
    rig.finish().await;
}

#[tokio::test]
async fn a_spec_that_names_a_foreign_control_group_empties_nothing() {
    let rig = rig();
    let own_group = rig.cgroup_folders();
    let Some(folder) = own_group.first() else { return rig.finish().await };
    // A group beside ours, with a bystander in it.
    let foreign =
        folder.parent().unwrap().with_file_name(format!("{}-foreign", rig.config.deployment));
    fs::create_dir(&foreign).unwrap();
    let bystander = Bystander::new();
    fs::write(foreign.join("cgroup.procs"), bystander.0.id().to_string()).unwrap();
    forge(&rig, bystander.wrong_mark());
    let cgroup = CgroupSpec {
        version: dormouse_bridge::rundir::CgroupVersion::V1,
        agent_folder: foreign.clone(),
        extra_folders: Vec::new(),
    };
    let spec = Spec { cgroup: Some(cgroup), ..spec_of(&rig, &main_1()) };
    rig.folder().write_spec(&spec).unwrap();
    rig.driver().kill(&main_1()).await.unwrap();
    rig.driver().release(&main_1()).await.unwrap();
    assert!(bystander.mark().is_alive() && foreign.exists());
    drop(bystander);
    let spec = CgroupSpec {
        version: dormouse_bridge::rundir::CgroupVersion::V1,
        agent_folder: foreign,
        extra_folders: Vec::new(),
    };
    cgroup::remove(&spec).unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_process_of_another_deployments_session_of_the_same_name_is_not_touched() {
    let rig = rig();
    let mut command = Command::new("sleep");
    command.arg("1000").env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    for (name, value) in rig.driver().environment_of(&main_1()) {
        let is_deployment = value == rig.config.deployment;
        command.env(name, if is_deployment { "another".to_owned() } else { value });
    }
    let bystander = Bystander(command.spawn().unwrap());
    rig.driver().kill(&main_1()).await.unwrap();
    assert!(bystander.mark().is_alive());
    rig.finish().await;
}

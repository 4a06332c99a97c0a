//! What is left when something is killed, full, broken or not allowed: the daemon, a bridge, an
//! agent, the disk.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::http::decisions;
use support::scratch::say;
use support::{Daemon, SOON, Setup, until, waiting};

fn setup(options: &[&str], settings: &str) -> Daemon {
    Setup::new().scripted("scripted", options, settings).start()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A skip is loud, and only for what the machine cannot do.
fn skip(why: &str) {
    say(&format!("SKIPPED: {why}"));
}

#[test]
fn an_agent_streams_on_while_the_daemon_is_killed_and_its_client_misses_nothing() {
    let mut daemon = setup(&[], "");
    let client = daemon.client();
    let text = format!("stream-until {}", daemon.path("enough"));
    let mut stream = client.stream("scripted/a", &text);
    let before = stream.until(|event| event.name == "delta" && event.data["text"] == "7 ");
    let id = before.message_id();
    let there = daemon.instance_of("scripted/a");

    daemon.kill();
    let cut = stream.rest_until_broken();
    assert!(cut.of("done").is_empty(), "nobody was there to say that it is done");
    let last_id = cut.last_id().or(before.last_id()).map(str::to_owned);
    daemon.start_again();
    let client = daemon.client();
    let mut resumed = client.follow(&id, last_id.as_deref());
    let first = resumed.until(|event| event.name == "delta");
    assert_eq!(daemon.instance_of("scripted/a"), there, "the same processes, adopted");
    daemon.touch("enough");
    let rest = resumed.rest();
    let whole = rest.end().data["reply"].as_str().unwrap().to_owned();
    let seen = [before.text(), cut.text(), first.text(), rest.text()].concat();
    assert_eq!(seen, whole, "without gap or repeat");
    let numbers: Vec<usize> = whole.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());

    let message = client.message(&id);
    assert_eq!((&message["attempts"], client.generation("scripted/a")), (&json!(1), 1));
    assert_eq!(daemon.turns_with("stream-until").len(), 1);
    assert_eq!(client.ask("scripted/a", "count"), "turn 2 of life 1");
}

#[test]
fn a_reply_that_was_finished_while_no_daemon_was_there_is_delivered_by_the_next() {
    let mut daemon = setup(&[], "");
    let id = daemon.client().submit("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    daemon.kill();
    daemon.touch("go");
    until("the agent to finish", || {
        daemon.agent_log().into_iter().find(|line| line.what == "done")
    });
    daemon.start_again();
    let client = daemon.client();
    assert_eq!(client.reply(&id), "waited");
    assert_eq!(client.message(&id)["attempts"], 1);
    assert_eq!(daemon.turns_with("wait").len(), 1);
}

#[test]
fn a_daemon_that_is_asked_to_end_leaves_agents_running_and_the_next_one_finds_them() {
    let config = Setup::new().config("drain_within = \"200ms\"");
    let mut daemon = config.scripted("scripted", &[], "").start();
    let client = daemon.client();
    assert_eq!(client.ask("scripted/idle", "count"), "turn 1 of life 1");
    let busy = client.submit("scripted/busy", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    let pending = client.submit("scripted/busy", "next");
    let there = (daemon.instance_of("scripted/idle"), daemon.instance_of("scripted/busy"));

    let status = daemon.terminate();
    assert_eq!(status.code(), Some(12), "a turn was left to its bridge: {status}");
    assert!(there.0.1.is_alive() && there.0.2.is_alive() && there.1.2.is_alive());
    daemon.start_again();
    let client = daemon.client();
    daemon.touch("go");
    assert_eq!(client.reply(&busy), "waited");
    assert_eq!(client.reply(&pending), "next");
    assert_eq!(client.ask("scripted/idle", "count"), "turn 2 of life 1");
    let now = (daemon.instance_of("scripted/idle"), daemon.instance_of("scripted/busy"));
    assert_eq!(now, there);
    let journal = client.journal("scripted/busy");
    assert_eq!(decisions(&journal, "exited").len(), 0, "{journal:?}");
}

#[test]
fn a_killed_bridge_takes_its_agent_along_and_the_message_is_tried_on_a_new_one() {
    let daemon = setup(&[], "");
    let client = daemon.client();
    let stream = client.stream("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    let (_, bridge, agent) = daemon.instance_of("scripted/a");
    bridge.kill();
    agent.is_gone_soon("the agent of a killed bridge");
    until("the second attempt", || {
        daemon.turns_with("wait").into_iter().find(|line| line.attempt == 2)
    });
    daemon.touch("go");
    let seen = stream.rest();
    assert_eq!(seen.end().data["reply"], "waited");
    let retrying = seen.of("status").into_iter().find(|e| e.data["state"] == "retrying").unwrap();
    assert_eq!(retrying.data["cause"], "bridge_lost", "{retrying:?}");
    assert_eq!(client.generation("scripted/a"), 2);
    assert_eq!(client.why("scripted/a")["last_exit"]["cause"], "bridge_lost");
    let turns = daemon.turns_with("wait");
    let lives: Vec<_> = turns.iter().map(|line| (line.generation, line.attempt)).collect();
    assert_eq!(lives, [(1, 1), (2, 2)]);
}

#[test]
fn a_killed_agent_is_told_apart_from_one_that_ended_and_its_message_is_tried_again() {
    let daemon = setup(&[], "");
    let client = daemon.client();
    let id = client.submit("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    let (_, bridge, agent) = daemon.instance_of("scripted/a");
    agent.kill();
    until("the second attempt", || {
        daemon.turns_with("wait").into_iter().find(|line| line.attempt == 2)
    });
    bridge.is_gone_soon("the first bridge");
    daemon.touch("go");
    assert_eq!(client.reply(&id), "waited");
    let exit = &client.why("scripted/a")["last_exit"];
    assert_eq!(exit["cause"], "killed_outside");
    assert_eq!(exit["evidence"]["end"], json!({ "how": "signaled", "signal": 9 }));
    assert_eq!(exit["message_in_flight"], id.as_str());
    let why = daemon.cli(&["why", "scripted/a#1"]).ok();
    assert!(why.contains("signal 9"), "{why}");
}

#[test]
fn an_agent_that_ignores_sigterm_is_killed_when_its_grace_is_over() {
    let daemon = setup(&["--ignore-sigterm"], "stop = { grace = \"800ms\" }");
    let client = daemon.client();
    client.ask("scripted/a", "hello");
    let (_, bridge, agent) = daemon.instance_of("scripted/a");
    assert_eq!(client.request("scripted/a", "stop")["outcome"], "accepted");
    client.phase_becomes("scripted/a", "asleep");
    agent.is_gone_soon("the agent");
    bridge.is_gone_soon("the bridge");
    let journal = client.journal("scripted/a");
    let exited = decisions(&journal, "exited")[0];
    assert_eq!(exited["because"]["summary"]["grace_ran_out"], true, "{exited}");
    let asked = daemon.agent_log().into_iter().find(|line| line.what == "sigterm").unwrap();
    let took_ms = exited["at_ms"].as_u64().unwrap() - asked.at_ms;
    assert!((790..3_000).contains(&took_ms), "{took_ms} ms from SIGTERM to the end");
    let exit = &client.why("scripted/a")["last_exit"];
    assert_eq!(exit["cause"], Value::Null, "it ended as it was asked to: {exit}");
}

#[test]
fn what_an_agent_left_in_a_session_of_its_own_is_ended_with_it() {
    let daemon = setup(&[], "");
    let client = daemon.client();
    let left: i32 = client.ask("scripted/a", "daemonize").parse().unwrap();
    let left = support::processes::Process::of(left).expect("it lives");
    assert!(left.is_alive());
    client.request("scripted/a", "stop");
    client.phase_becomes("scripted/a", "asleep");
    left.is_gone_soon("the process that the agent left behind");
    until("no process of the session", || daemon.processes().is_empty().then_some(()));
}

#[test]
fn agents_end_by_themselves_when_no_daemon_comes_back_and_nothing_is_lost() {
    let mut daemon = Setup::new()
        .config("[node]\norphan_limit = \"1s\"")
        .scripted("scripted", &[], "stop = { grace = \"1s\" }")
        .start();
    let client = daemon.client();
    client.ask("scripted/idle", "hello");
    let id = client.submit("scripted/busy", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    daemon.kill();
    until("all agents to end by themselves", || daemon.processes().is_empty().then_some(()));
    daemon.touch("go");
    daemon.start_again();
    let client = daemon.client();
    assert_eq!(client.reply(&id), "waited");
    let exit = &client.why("scripted/idle")["last_exit"];
    assert_eq!(exit["evidence"]["asked_by"], "orphan_limit", "{exit}");
    assert_eq!(client.session("scripted/idle")["failures"], 0);
    assert_eq!(client.ask("scripted/idle", "count"), "turn 1 of life 2");
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused_with_the_firsts_number() {
    let daemon = setup(&[], "");
    let refused = daemon.fails_to_start();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let log = format!("{}{}", refused.err, daemon.log());
    assert!(log.contains(&format!("pid {}", daemon.pid())), "{log}");
    assert_eq!(daemon.client().ask("scripted/a", "hello"), "hello", "the first one goes on");
}

#[test]
fn data_that_a_newer_version_wrote_is_refused_and_left_alone() {
    let mut daemon = setup(&[], "");
    daemon.client().ask("scripted/a", "hello");
    daemon.terminate();
    let path = daemon.data().join("dormouse.db");
    let store = rusqlite::Connection::open(&path).unwrap();
    let version: i64 = store.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    store.pragma_update(None, "user_version", version + 1).unwrap();
    drop(store);
    let before = fs::read(&path).unwrap();
    let refused = daemon.fails_to_start();
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("newer dormouse"), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), before, "not a byte was changed");
}

/// A file system of its own in memory, of a fixed size; gone when dropped.
struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Beside the test's folder, which is removed while this is still mounted.
    fn new(folder: &Path, options: &str) -> Self {
        let path = folder.with_extension("mount");
        fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "dormouse-test"])
            .arg(&path)
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "a tmpfs can be mounted");
        Self { path }
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.path).status();
        assert!(status.is_ok_and(|status| status.success()));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.path).status();
        let is_gone = status.is_ok_and(|status| status.success());
        if !is_gone || fs::remove_dir(&self.path).is_err() {
            say(&format!("{} stays", self.path.display()));
        }
    }
}

/// Fills the file system up to the last byte, or leaves so many free.
fn fill(folder: &Path, leave_bytes: u64) -> PathBuf {
    let path = folder.join("ballast");
    let stat = rustix::fs::statvfs(folder).unwrap();
    let free = stat.f_bavail * stat.f_frsize;
    let ballast = fs::File::create(&path).unwrap();
    rustix::fs::fallocate(
        &ballast,
        rustix::fs::FallocateFlags::empty(),
        0,
        free.saturating_sub(leave_bytes),
    )
    .unwrap();
    path
}

/// `disk_floor`: with one the daemon refuses early, without one the store meets the full disk.
fn a_full_disk_is_survived(disk_floor: &str) {
    if !is_root() {
        return skip("only root can mount a file system to fill it");
    }
    let setup = Setup::new().config(&format!("[node]\ndisk_floor = \"{disk_floor}\"")).scripted(
        "scripted",
        &[],
        "",
    );
    let mounted = Mounted::new(setup.folder(), "size=24m,mode=0700");
    let folder = mounted.path.clone();
    let mut daemon = setup.data(&folder).start();
    let client = daemon.client();
    let mut accepted = vec![client.submit("scripted/a", "before it is full")];
    client.reply(&accepted[0]);

    let ballast = fill(&folder, 0);
    let refused = until("a message to be refused", || {
        let answer = client.submission("scripted/a", "while it is full").send();
        if answer.status == 202 {
            accepted.push(answer.json()["message_id"].as_str().unwrap().to_owned());
            return None;
        }
        Some(answer)
    });
    assert_eq!(refused.error(503), "store_full");
    assert!(refused.retry_after_s() >= 1);
    assert_eq!(client.with_key(None).get("/healthz").status, 200);
    assert_eq!(client.message(&accepted[0])["reply"], "before it is full", "reading goes on");

    fs::remove_file(ballast).unwrap();
    let last = until("room to be noticed without a restart", || {
        let answer = client.submission("scripted/a", "there is room again").send();
        (answer.status == 202).then(|| answer.json()["message_id"].as_str().unwrap().to_owned())
    });
    assert_eq!(client.reply(&last), "there is room again");
    for id in &accepted {
        assert_eq!(client.ended(id)["state"], "answered");
    }
    assert!(daemon.is_running(), "it never stopped");
}

#[test]
fn below_the_floor_messages_are_refused_until_there_is_room_again() {
    a_full_disk_is_survived("4MiB");
}

#[test]
fn a_disk_that_is_full_to_the_last_byte_loses_nothing_and_is_recovered_from() {
    a_full_disk_is_survived("0B");
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named() {
    let setup = Setup::new().scripted("scripted", &[], "");
    let mounted = is_root().then(|| Mounted::new(setup.folder(), "size=8m,mode=0700"));
    let folder = match &mounted {
        Some(mounted) => mounted.path.clone(),
        None => setup.folder().join("data"),
    };
    let daemon = setup.data(&folder).prepare();
    match &mounted {
        Some(mounted) => mounted.remount("ro"),
        None => fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).unwrap(),
    }
    let refused = daemon.fails_to_start();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let error = &refused.err;
    assert!(error.contains(folder.to_str().unwrap()), "{error}");
    assert!(
        error.contains("Read-only file system") || error.contains("ermission denied"),
        "{error}"
    );
    if mounted.is_none() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn a_data_folder_that_is_a_file_is_named() {
    let setup = Setup::new();
    let file = setup.folder().join("file");
    let daemon = setup.data(&file);
    fs::write(&file, "I am a file").unwrap();
    let printed = support::cli::run(
        {
            let mut command = support::cli::command(file.parent().unwrap());
            command.arg("serve").arg("--data").arg(&file);
            command
        },
        "",
    );
    assert_eq!(printed.code, Some(1), "{printed:?}");
    assert!(printed.err.contains(file.to_str().unwrap()), "{printed:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "I am a file");
    drop(daemon);
}

/// strace, attached to a running process; it lets go when it is dropped.
struct Strace(Child);

impl Strace {
    fn attach(pid: i32, log: &Path, inject: &str) -> Option<Self> {
        let child = Command::new("strace")
            .args(["-f", "-qq", "-b", "execve", "-e", "trace=fsync,fdatasync"])
            .args(["-e", &format!("inject={inject}"), "-p", &pid.to_string(), "-o"])
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Some(Self(child.ok()?))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn is_traced(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default()).all(
        |status| {
            let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
            tracer.is_some_and(|tracer| tracer.trim() != "0")
        },
    )
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_the_next_start_has_all_that_was() {
    let mut daemon = setup(&[], "");
    let client = daemon.client();
    let kept: Vec<String> =
        (0..5).map(|n| client.submit("scripted/a", &format!("kept {n}"))).collect();
    for id in &kept {
        client.reply(id);
    }
    let waiting = client.submit("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    let log = daemon.folder().join("strace.log");
    let Some(strace) = Strace::attach(daemon.pid(), &log, "fsync,fdatasync:error=EIO") else {
        return skip("strace is not installed, so that no system call can be made to fail");
    };
    let pid = daemon.pid();
    until("strace to be attached to every thread", || is_traced(pid).then_some(()));

    let answer = client.submission("scripted/a", "never acknowledged").try_send();
    if let Ok(answer) = &answer {
        assert!(answer.status >= 500, "nothing is accepted on a disk that fails: {answer:?}");
    }
    let status = daemon.has_ended(SOON);
    assert!(!status.success(), "{status}");
    drop(strace);
    let injected = fs::read_to_string(&log).unwrap_or_default();
    assert!(
        injected.contains("EIO") && injected.contains("INJECTED"),
        "the fault fired: {injected}"
    );
    let words = daemon.log();
    assert!(words.contains("stopped, to lose nothing"), "{words}");

    daemon.start_again();
    let client = daemon.client();
    for (n, id) in kept.iter().enumerate() {
        assert_eq!(client.reply(id), format!("kept {n}"));
    }
    daemon.touch("go");
    assert_eq!(client.reply(&waiting), "waited");
    assert_eq!(daemon.turns_with("wait").len(), 1, "its agent was adopted");
}

#[test]
fn an_agent_over_its_memory_limit_is_found_out_with_evidence() {
    let daemon =
        setup(&[], "memory = \"48MiB\"\nmemory_ceiling = \"48MiB\"\nturn = { attempts = 2 }");
    let enforced = daemon.cli(&["doctor", "--json"]);
    if !enforced.out.contains("memory")
        || !Path::new("/sys/fs/cgroup/memory").is_dir()
        || !is_root()
    {
        return skip("no memory control group can be made here");
    }
    let client = daemon.client();
    let dead = client.ended(&client.submit("scripted/a", "eat 200"));
    assert_eq!((&dead["state"], &dead["attempts"]), (&json!("dead"), &json!(2)), "{dead}");
    let exit = &client.why("scripted/a")["last_exit"];
    assert_eq!(exit["cause"], "oom_limit", "{exit}");
    let evidence = &exit["evidence"];
    assert_eq!(evidence["end"], json!({ "how": "signaled", "signal": 9 }));
    assert!(evidence["oom_kills"].as_u64() >= Some(1), "{evidence}");
    assert_eq!(evidence["memory_limit_bytes"], 48 << 20);
    let peak = evidence["memory_peak_bytes"].as_u64().unwrap();
    assert!((40 << 20..=48 << 20).contains(&peak), "{peak}");
    let words = daemon.cli(&["why", "scripted/a"]).ok();
    assert!(words.contains("memory"), "{words}");
    assert_eq!(client.ask("scripted/a", "small"), "small");
}

#[test]
fn a_daemon_that_was_asleep_for_a_while_takes_back_what_its_agents_did_meanwhile() {
    let daemon = setup(&[], "turn = { stuck_after = \"1s\" }");
    let client = daemon.client();
    let text = format!("stream-until {}", daemon.path("enough"));
    let mut stream = client.stream("scripted/a", &text);
    stream.until(|event| event.name == "delta");
    daemon.signal(Signal::STOP);
    let process = support::processes::Process::of(daemon.pid()).unwrap();
    until("the daemon to stand still", || process.is_stopped().then_some(()));
    let frozen_at = std::time::Instant::now();
    // Longer than the stuck limit: the agent was at work all the time, and only nobody looked.
    waiting::within(SOON, "the pause to be over", || {
        (frozen_at.elapsed() > Duration::from_millis(1_500)).then_some(())
    });
    daemon.signal(Signal::CONT);
    daemon.touch("enough");
    let seen = stream.rest();
    assert_eq!(seen.end().name, "done", "{:?}", seen.end());
    assert_eq!(seen.end().data["attempts"], 1);
    assert_eq!(client.generation("scripted/a"), 1);
}

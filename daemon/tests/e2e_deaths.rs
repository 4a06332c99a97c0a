//! Agents that die in every way that a program can, and what is said of it with which confidence.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::agents::toml_list;
use support::http::Client;
use support::scratch::say;
use support::{Daemon, Setup, until};

/// One death ends a message, and no limit is raised after one.
const ONCE: &str =
    "memory = \"48MiB\"\nmemory_ceiling = \"48MiB\"\npids = 24\nturn = { attempts = 1 }";

/// Whether limits hold here; a test that cannot have them says so loudly.
fn has_limits(daemon: &Daemon) -> bool {
    let doctor: Value = serde_json::from_str(&daemon.cli(&["doctor", "--json"]).out).unwrap();
    let checks = doctor["checks"].as_array().unwrap();
    let is_ok = |name: &str| checks.iter().any(|c| c["name"] == name && c["state"] == "ok");
    let has_limits = is_ok("memory limits") && is_ok("process limits");
    if !has_limits {
        say("SKIPPED: no control groups can be made here");
    }
    has_limits
}

/// Under version 1 the kernel kills one process for its group's limit, under version 2 all of them,
/// so that there is no end of a child alone.
fn a_child_dies_alone() -> bool {
    let dies_alone = Path::new("/sys/fs/cgroup/memory").is_dir();
    if !dies_alone {
        say("SKIPPED: the end of a child alone, which needs control groups of version 1");
    }
    dies_alone
}

/// What the newest end of the session is put down to, once there is one.
#[track_caller]
fn last_exit(client: &Client, session: &str) -> Value {
    until(&format!("an end of {session}"), || {
        Some(client.why(session)["last_exit"].clone()).filter(|exit| !exit.is_null())
    })
}

/// "cause confidence", or "cause(kind) confidence".
fn verdict(exit: &Value) -> String {
    let diagnosis = &exit["diagnosis"];
    let text = |name: &str| diagnosis[name].as_str().unwrap_or_default();
    match text("kind") {
        "" => format!("{} {}", text("verdict"), text("confidence")),
        kind => format!("{}({kind}) {}", text("verdict"), text("confidence")),
    }
}

/// Lets the agent die of this message, which is the end of the message as well.
#[track_caller]
fn dies_of(client: &Client, session: &str, text: &str) -> Value {
    let id = client.submit(session, text);
    let ended = client.ended(&id);
    assert_eq!(ended["state"], "dead", "{text}: {ended}");
    let exit = last_exit(client, session);
    assert_eq!(exit["message_in_flight"], id.as_str(), "{text}: {exit}");
    exit
}

/// Node.js in which a message is a wish for memory, at a heap limit of its own.
fn node_agent() -> String {
    let script = "const kept = []; process.stdin.once('data', () => { \
                  for (;;) kept.push(new Array(100000).fill(kept.length)); });";
    let command = toml_list(&["node", "--max-old-space-size=32", "-e", script]);
    format!(
        "[agents.node]\ncommand = {command}\nadapter = {{ kind = \"jsonl\" }}\n\
         turn = {{ attempts = 1 }}"
    )
}

fn has_node() -> bool {
    let version = std::process::Command::new("node").arg("--version").output();
    let has_node = version.is_ok_and(|output| output.status.success());
    if !has_node {
        say("SKIPPED: the heap limit of V8, since node is not installed");
    }
    has_node
}

#[test]
fn five_deaths_that_look_alike_get_five_verdicts() {
    let stubborn = format!("{ONCE}\nstop = {{ grace = \"300ms\" }}");
    let daemon = Setup::new()
        .scripted("scripted", &[], ONCE)
        .scripted("stubborn", &["--ignore-sigterm"], &stubborn)
        .config(&node_agent())
        .start();
    if !has_limits(&daemon) {
        return;
    }
    let client = daemon.client();
    let killed = json!({ "how": "signaled", "signal": 9 });

    let exit = dies_of(&client, "scripted/own", "eat 200");
    assert_eq!((verdict(&exit).as_str(), &exit["evidence"]["end"]), ("oom_limit proved", &killed));
    assert_eq!(exit["evidence"]["oom_victim"], "main");

    if a_child_dies_alone() {
        let exit = dies_of(&client, "scripted/child", "eat-child 200 137");
        assert_eq!(verdict(&exit), "oom_child proved", "{exit}");
        assert_eq!(exit["evidence"]["end"], json!({ "how": "exited", "code": 137 }));
        assert_eq!(exit["evidence"]["oom_victim"], "child");
        let exit = dies_of(&client, "scripted/child-of-one", "eat-child 200 1");
        assert_eq!(verdict(&exit), "oom_child likely", "{exit}");
    }

    client.ask("stubborn/a", "hello");
    client.request("stubborn/a", "stop");
    client.phase_becomes("stubborn/a", "asleep");
    let exit = last_exit(&client, "stubborn/a");
    assert_eq!(
        (verdict(&exit).as_str(), &exit["evidence"]["end"]),
        ("stop_timeout_kill proved", &killed)
    );
    assert_eq!(exit["cause"], Value::Null, "it is no failure: {exit}");

    client.ask("scripted/outside", "hello");
    let (_, _, agent) = daemon.instance_of("scripted/outside");
    agent.kill();
    let exit = last_exit(&client, "scripted/outside");
    assert_eq!(verdict(&exit), "killed_outside likely", "{exit}");
    assert_eq!(exit["evidence"]["end"], killed);

    if has_node() {
        let exit = dies_of(&client, "node/a", "eat");
        assert_eq!(verdict(&exit), "oom_heap proved", "{exit}");
        let first_error = exit["evidence"]["first_error"].as_str().unwrap();
        assert!(first_error.contains("heap"), "{exit}");
    }
}

#[test]
fn a_kill_from_outside_long_after_a_child_s_want_of_memory_is_not_put_down_to_it() {
    let daemon = Setup::new().scripted("scripted", &[], ONCE).start();
    if !has_limits(&daemon) || !a_child_dies_alone() {
        return;
    }
    let client = daemon.client();
    assert_eq!(client.ask("scripted/a", "eat-child 200 on"), "the child ended by signal 9");
    let (_, _, agent) = daemon.instance_of("scripted/a");
    agent.kill();
    let exit = last_exit(&client, "scripted/a");
    assert_eq!(verdict(&exit), "killed_outside likely", "{exit}");
    assert_eq!(exit["evidence"]["oom_kills"], 1);
    assert_eq!(exit["evidence"]["oom_victim"], "child");
}

#[test]
fn ends_by_a_code_or_a_fault_of_its_own_are_told_as_that() {
    let daemon = Setup::new().scripted("scripted", &[], ONCE).start();
    let client = daemon.client();
    for (text, expected) in [
        ("crash 0", "app_exit proved"),
        ("crash 1", "app_exit proved"),
        ("crash 3", "app_exit proved"),
        ("crash 127", "app_exit(command_not_found) proved"),
        ("crash 78", "config_rejected likely"),
        ("segv", "app_signal(SIGSEGV) proved"),
        ("signal 6", "app_signal(SIGABRT) proved"),
        ("port-taken", "port_taken likely"),
        ("no-space", "disk_full likely"),
    ] {
        let session = format!("scripted/{}", text.replace(' ', "-"));
        let exit = dies_of(&client, &session, text);
        assert_eq!(verdict(&exit), expected, "{text}: {exit}");
    }
    let exit = last_exit(&client, "scripted/no-space");
    let first_error = exit["evidence"]["first_error"].as_str().unwrap();
    assert!(first_error.contains("No space left on device"), "{exit}");
}

#[test]
fn an_agent_that_makes_processes_without_end_is_held_and_told_so() {
    let daemon = Setup::new().scripted("scripted", &[], ONCE).start();
    if !has_limits(&daemon) {
        return;
    }
    let client = daemon.client();
    let exit = dies_of(&client, "scripted/a", "spawn 200");
    assert_eq!(verdict(&exit), "pids_limit proved", "{exit}");
    assert!(exit["evidence"]["pids_refused"].as_u64() >= Some(1), "{exit}");
    until("no process of the session", || daemon.processes().is_empty().then_some(()));
}

#[test]
fn a_command_that_is_not_there_is_told_as_that() {
    let daemon = Setup::new()
        .config(
            "[agents.absent]\ncommand = [\"no-such-program\"]\n\
             adapter = { kind = \"jsonl\" }\nturn = { attempts = 1 }",
        )
        .start();
    let client = daemon.client();
    client.submit("absent/a", "hello");
    let exit = last_exit(&client, "absent/a");
    assert_eq!(verdict(&exit), "launch_failed(command_not_found) proved", "{exit}");
}

#[test]
fn an_agent_that_never_is_ready_and_one_that_falls_silent_are_told_apart() {
    let daemon = Setup::new()
        .scripted("unready", &["--no-ready"], "start = { ready_within = \"1s\" }")
        .scripted("silent", &[], "turn = { attempts = 1, stuck_after = \"1s\" }")
        .start();
    let client = daemon.client();
    client.submit("unready/a", "hello");
    let exit = dies_of(&client, "silent/a", "silent");
    assert_eq!(verdict(&exit), "turn_stuck proved", "{exit}");
    let exit = last_exit(&client, "unready/a");
    assert_eq!(verdict(&exit), "start_timeout proved", "{exit}");
}

/// The memory limit that the newest instance was started with.
#[track_caller]
fn limit_of(daemon: &Daemon, session: &str) -> u64 {
    let (instance, _, _) = daemon.instance_of(session);
    let spec = std::fs::read_to_string(instance.folder.join("spec.json")).unwrap();
    let spec: Value = serde_json::from_str(&spec).unwrap();
    spec["memory_limit_bytes"].as_u64().expect("a limit was ordered")
}

/// What is needed twice over is got, after one death that proves the want.
#[test]
fn a_program_that_needs_more_than_its_limit_dies_once_and_then_answers() {
    let settings = "memory = \"48MiB\"\nmemory_ceiling = \"192MiB\"\nturn = { attempts = 2 }";
    let daemon = Setup::new().scripted("scripted", &[], settings).start();
    if !has_limits(&daemon) {
        return;
    }
    let client = daemon.client();
    assert_eq!(client.ask("scripted/a", "eat-twice 56"), "ate twice");
    assert_eq!(client.generation("scripted/a"), 2);
    let exit = last_exit(&client, "scripted/a");
    assert_eq!(verdict(&exit), "oom_limit proved", "{exit}");
    assert_eq!(exit["evidence"]["memory_limit_bytes"], 48 << 20);
    let (_, _, agent) = daemon.instance_of("scripted/a");
    assert_eq!(limit_of(&daemon, "scripted/a"), 96 << 20);
    assert_eq!(client.ask("scripted/a", "eat-twice 56"), "ate twice", "and goes on living");
    assert!(agent.is_alive());
}

#[test]
fn the_fields_of_memory_are_filled_in_from_the_limit() {
    let daemon = Setup::new()
        .config(
            "[agents.heap]\ncommand = [\"sh\", \"-c\", \"echo $OPTIONS of {memory_mib}\"]\n\
             adapter = { kind = \"exec\" }\nmemory = \"64MiB\"\nheap = \"50%\"\n\
             env = { OPTIONS = \"--max-old-space-size={heap_mib}\" }",
        )
        .start();
    assert_eq!(daemon.client().ask("heap/a", "?"), "--max-old-space-size=32 of 64\n");
}

/// An agent whose own heap limit is at fault: it keeps so many MiB for one message, dies of them
/// once, and has enough when its memory limit is doubled.
fn a_heap_grows_after_one_death(memory_mib: u64, kept_mib: u64, settings: &str) {
    let script = format!(
        "require('readline').createInterface({{ input: process.stdin }}).on('line', l => {{ \
         const {{ turn }} = JSON.parse(l); const kept = []; \
         for (let n = 0; n < {kept_mib}; n++) kept.push(new Array(131072).fill(n + 0.5)); \
         console.log(JSON.stringify({{ turn, done: 'kept ' + kept.length }})); }});"
    );
    let command = toml_list(&["node", "-e", &script]);
    let daemon = Setup::new()
        .config(&format!(
            "[agents.node]\ncommand = {command}\nadapter = {{ kind = \"jsonl\" }}\n\
             memory = \"{memory_mib}MiB\"\nturn = {{ attempts = 2 }}\n{settings}"
        ))
        .start();
    if !has_limits(&daemon) || !has_node() {
        return;
    }
    let client = daemon.client();
    assert_eq!(client.ask("node/a", "keep"), format!("kept {kept_mib}"));
    let exit = last_exit(&client, "node/a");
    assert_eq!(verdict(&exit), "oom_heap proved", "{exit}");
    assert_eq!(client.generation("node/a"), 2);
    assert_eq!(limit_of(&daemon, "node/a"), memory_mib << 21);
}

#[test]
fn a_heap_that_follows_the_memory_limit_grows_with_it_after_one_death() {
    // 80 MiB are too much for 64, and not for 128.
    let share = "heap = \"25%\"\n\
                 env = { NODE_OPTIONS = \"--max-old-space-size={heap_mib}\" }";
    a_heap_grows_after_one_death(256, 80, share);
}

#[test]
fn a_heap_that_v8_fits_to_the_memory_limit_by_itself_grows_with_it_too() {
    // It takes half, and no less than 256 MiB: 300 MiB are too much for that, and not for 512.
    a_heap_grows_after_one_death(512, 300, "");
}

/// A program per turn: the turn dies of the limit, the instance does not, and gets another one.
#[test]
fn a_turn_of_one_program_that_needs_more_than_its_limit_is_answered_under_a_higher_one() {
    let touch = "kept = b\"x\" * (600 << 20); print(\"touched\", len(kept) >> 20)";
    let touch = toml_list(&["python3", "-c", touch]);
    let behind_a_shell = toml_list(&["sh", "-c", &format!("python3 -c '{EAT}'; exit $?")]);
    let settings = "adapter = { kind = \"exec\" }\nmemory = \"256MiB\"\nturn = { attempts = 1 }";
    let daemon = Setup::new()
        .config(&format!("[agents.program]\ncommand = {touch}\n{settings}"))
        .config(&format!("[agents.shell]\ncommand = {behind_a_shell}\n{settings}"))
        .start();
    if !has_limits(&daemon) {
        return;
    }
    let client = daemon.client();
    assert_eq!(client.ask("program/a", "touch 600 MiB"), "touched 600\n");
    assert_eq!(limit_of(&daemon, "program/a"), 1_024 << 20, "512 MiB is too little as well");
    assert_eq!(client.generation("program/a"), 3);
    let exit = last_exit(&client, "program/a");
    assert_eq!(verdict(&exit), "stopped_by_watchdog(resize) proved", "{exit}");
    assert_eq!(exit["cause"], Value::Null, "it is no failure: {exit}");
    assert_eq!(client.ask("program/a", "and again"), "touched 600\n");
    assert_eq!(client.generation("program/a"), 3, "it goes on with what it has");
    if a_child_dies_alone() {
        assert_eq!(client.ask("shell/a", "touch 300 MiB"), "touched 300\n");
        assert_eq!(limit_of(&daemon, "shell/a"), 512 << 20);
    }
}

const EAT: &str = "kept = b\"x\" * (300 << 20); print(\"touched\", len(kept) >> 20)";

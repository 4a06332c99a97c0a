//! Results with status, on the real program: what a turn's code exits with, prints and leaves, and
//! that it is run once.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::fs;
use std::thread;

use serde_json::{Value, json};
use support::agents::python;
use support::{Daemon, Setup, until};

const EXECUTOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/python/executor.py");
const FLOOD_BYTES: usize = 100_000_000;

/// Agents `sh`, which executes each message in a shell, and `py`, the Python executor.
fn daemon() -> Daemon {
    let python = python();
    Setup::new()
        .config(&format!(
            "[agents.sh]\ncommand = [\"sh\"]\nadapter = {{ kind = \"exec\" }}\n\
             turn = {{ retry = \"safe\", attempts = 2 }}\n\
             files = {{ checkpoint = \"turn\" }}\n\
             [agents.py]\ncommand = [\"{python}\", \"{EXECUTOR}\"]\n\
             adapter = {{ kind = \"jsonl\", ready = true }}\n\
             turn = {{ retry = \"safe\", attempts = 2 }}\n\
             files = {{ checkpoint = \"turn\" }}\n"
        ))
        .start()
}

fn ended(daemon: &Daemon, session: &str, text: &str) -> Value {
    let client = daemon.client();
    client.ended(&client.submit(session, text))
}

/// The lines that code wrote to a file of the test's folder, one for each time that it ran.
fn runs(daemon: &Daemon, name: &str) -> Vec<String> {
    let text = fs::read_to_string(daemon.path(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The file that a cut reply names.
fn named_file(reply: &str) -> &str {
    let (_, after) = reply.split_once("bytes in all, the whole is in ").expect("it is cut");
    after.split(';').next().unwrap_or_default()
}

/// What `files get` brings.
#[track_caller]
fn get(daemon: &Daemon, session: &str, name: &str) -> Vec<u8> {
    let local = daemon.path("got");
    daemon.cli(&["files", "get", session, name, "--output", &local, "--force"]).ok();
    fs::read(local).unwrap()
}

#[test]
fn exit_codes_and_durations_come_with_the_result() {
    let daemon = daemon();
    let well = ended(&daemon, "sh/a", "sleep 0.2; echo well");
    assert_eq!((&well["state"], &well["reply"]), (&json!("answered"), &json!("well\n")));
    assert_eq!(well["exit_code"], 0);
    let took_ms = well["took_ms"].as_u64().unwrap();
    let all_ms = well["ended_at_ms"].as_u64().unwrap() - well["accepted_at_ms"].as_u64().unwrap();
    assert!(200 <= took_ms && took_ms <= all_ms, "{well}");

    let failed = ended(&daemon, "sh/a", "echo partly; echo because >&2; exit 1");
    assert_eq!((&failed["state"], &failed["cause"]), (&json!("dead"), &json!("agent_error")));
    assert_eq!((&failed["exit_code"], &failed["attempts"]), (&json!(1), &json!(1)));
    assert_eq!(failed["detail"], "the program ended with exit code 1: because");
    assert!(failed["took_ms"].is_u64(), "{failed}");

    for (code, exit_code, reply) in [
        ("print('well')", 0, "well\n"),
        ("print('partly')\nexit(3)", 3, "partly\n(exit status 3)\n"),
        ("exit()", 0, "(no output)"),
    ] {
        let message = ended(&daemon, "py/a", code);
        assert_eq!((&message["state"], &message["reply"]), (&json!("answered"), &json!(reply)));
        assert_eq!(message["exit_code"], exit_code, "{code}");
        assert!(message["took_ms"].is_u64(), "{message}");
    }
    let raised = ended(&daemon, "py/a", "1/0");
    assert!(raised["reply"].as_str().unwrap().contains("ZeroDivisionError"), "{raised}");
    assert_eq!((&raised["exit_code"], &raised["attempts"]), (&json!(1), &json!(1)));

    let stream = daemon.client().stream("py/a", "exit(4)").rest();
    assert_eq!(stream.end().data["exit_code"], 4);
    assert!(stream.end().data["took_ms"].is_u64());
    let printed = daemon.cli(&["send", "py/a", "exit(5)"]);
    assert_eq!(printed.code, Some(0));
    assert!(printed.err.contains("its program ended with exit code 5"), "{}", printed.err);
}

#[test]
fn code_that_is_killed_is_tried_again_as_often_as_is_said_and_that_is_told() {
    let daemon = daemon();
    let log = daemon.path("killed");
    // The first try is killed, the second one is not.
    let once = format!("echo run >> {log}; [ $DORMOUSE_ATTEMPT = 2 ] || kill -9 $$; echo second");
    let message = ended(&daemon, "sh/a", &once);
    assert_eq!((&message["state"], &message["reply"]), (&json!("answered"), &json!("second\n")));
    assert_eq!((&message["exit_code"], &message["attempts"]), (&json!(0), &json!(2)));
    assert_eq!(runs(&daemon, "killed").len(), 2);

    let always = format!("echo run >> {log}; kill -9 $$");
    let message = ended(&daemon, "sh/a", &always);
    assert_eq!(
        (&message["state"], &message["cause"]),
        (&json!("dead"), &json!("attempts_exhausted"))
    );
    assert_eq!(message["attempts"], 2);
    assert!(message["detail"].as_str().unwrap().contains("SIGKILL"), "{message}");
    assert_eq!(runs(&daemon, "killed").len(), 4);

    let log = daemon.path("killed-py");
    let code = format!(
        "import os, signal\nprint('run', file=open({log:?}, 'a'))\n\
         if len(open({log:?}).readlines()) == 1: os.kill(os.getpid(), signal.SIGKILL)\n\
         print('second')"
    );
    let message = ended(&daemon, "py/a", &code);
    assert_eq!((&message["state"], &message["reply"]), (&json!("answered"), &json!("second\n")));
    assert_eq!((&message["exit_code"], &message["attempts"]), (&json!(0), &json!(2)));
    assert_eq!(runs(&daemon, "killed-py").len(), 2);
}

#[test]
fn a_hundred_megabytes_are_answered_and_can_be_fetched_byte_for_byte() {
    let daemon = daemon();
    let line = "0123456789abcdef0123456789abcdef0123456789abcdef\n";
    let printed: Vec<u8> = line.bytes().cycle().take(FLOOD_BYTES).collect();
    let shell = format!("yes {} | head -c {FLOOD_BYTES}", line.trim_end());
    let code = format!(
        "import os\nline = {line:?}.encode()\ntext = (line * ({FLOOD_BYTES} // len(line) + 1))\n\
         view = memoryview(text)[:{FLOOD_BYTES}]\nwhile view: view = view[os.write(1, view):]"
    );
    for (session, text) in [("sh/flood", &shell), ("py/flood", &code)] {
        let message = ended(&daemon, session, text);
        assert_eq!((&message["state"], &message["exit_code"]), (&json!("answered"), &json!(0)));
        assert_eq!(message["attempts"], 1);
        let reply = message["reply"].as_str().unwrap();
        let marker = format!("\n[output truncated: {FLOOD_BYTES} bytes in all, the whole is in ");
        assert!(reply.starts_with(line) && reply.contains(&marker), "{session}");
        assert!(reply.len() < (1 << 20) + (8 << 10), "{session}: {} bytes", reply.len());
        assert!(printed.ends_with(&reply.as_bytes()[reply.len() - 4_000..]), "{session}");
        let whole = get(&daemon, session, named_file(reply));
        assert!(whole == printed, "{session}: {} bytes are others", whole.len());
        assert_eq!(daemon.client().generation(session), 1, "{session}");
    }
}

#[test]
fn two_sessions_that_print_at_the_same_time_never_share_output() {
    let daemon = daemon();
    let talk = |session: String| {
        let client = daemon.client();
        let name = session.replace('/', "-");
        for round in 0..3 {
            let bytes = if round == 1 { 2_000_000 } else { 200_000 };
            let text = match session.starts_with("sh/") {
                true => format!("yes {name}.{round} | head -c {bytes}"),
                false => format!(
                    "import os\ntext = '{name}.{round}\\n' * {bytes}\n\
                                  n = print(text[:{bytes}], end='')"
                ),
            };
            let reply = client.ask(&session, &text);
            let line = format!("{name}.{round}\n");
            let whole: Vec<u8> = match reply.contains("[output truncated: ") {
                true => fs::read(workspace_file(&daemon, named_file(&reply))).unwrap(),
                false => reply.clone().into_bytes(),
            };
            let expected: Vec<u8> = line.bytes().cycle().take(bytes).collect();
            assert!(whole == expected, "{session}, round {round}");
            let foreign = reply.lines().find(|line| {
                let is_marker = line.starts_with("[output truncated: ");
                !is_marker
                    && !line.is_empty()
                    && !format!("{name}.{round}").ends_with(*line)
                    && !format!("{name}.{round}").starts_with(*line)
            });
            assert_eq!(foreign, None, "{session}, round {round}");
        }
    };
    thread::scope(|scope| {
        for session in ["sh/a", "sh/b", "py/a", "py/b"] {
            scope.spawn(|| talk(session.to_owned()));
        }
    });
}

/// That file, in whichever workspace has it: its name is a turn's, which there is one of.
fn workspace_file(daemon: &Daemon, name: &str) -> std::path::PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![daemon.data().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) if entry.file_name() == name => found.push(entry.path()),
                _ => {}
            }
        }
    }
    assert_eq!(found.len(), 1, "{name}: {found:?}");
    found.remove(0)
}

/// The example of examples/python/README.md.
#[test]
fn a_table_goes_in_an_analysis_runs_and_its_file_comes_out_and_stays() {
    let daemon = daemon();
    let sales = "region,amount\nsouth,20\nnorth,300\nnorth,10.5\n";
    fs::write(daemon.path("sales.csv"), sales).unwrap();
    daemon.cli(&["files", "put", "py/a", &daemon.path("sales.csv")]).ok();
    let readme = fs::read_to_string(EXECUTOR.replace("executor.py", "README.md")).unwrap();
    let (_, example) = readme.split_once("<<'END'\n").unwrap();
    let (code, after) = example.split_once("END\n").unwrap();
    let printed = daemon.cli_with_input(&["send", "py/a", "-"], code).ok();
    assert_eq!(Some(printed.as_str()), after.split_inclusive('\n').next());
    let by_region = b"region,amount\r\nnorth,310.5\r\nsouth,20.0\r\n";
    assert_eq!(get(&daemon, "py/a", "by_region.csv"), by_region);

    assert_eq!(daemon.client().ask("py/a", "len(total)"), "2\n", "variables stay");
    let (_, _, agent) = daemon.instance_of("py/a");
    agent.kill();
    let code = "print('total' in globals(), open('by_region.csv').readline())";
    until("the agent to be another one", || {
        let reply = daemon.client().ask("py/a", code);
        (daemon.client().generation("py/a") > 1).then_some(reply)
    });
    assert_eq!(daemon.client().ask("py/a", code), "False region,amount\n\n", "files stay");
}

#[test]
fn the_same_idempotency_key_runs_once_and_gives_the_stored_result() {
    let mut daemon = daemon();
    let log = daemon.path("once");
    let text = format!(
        "echo run >> {log}; until [ -e {} ]; do sleep 0.01; done; echo $$",
        daemon.path("go")
    );
    let submit = |daemon: &Daemon| {
        let client = daemon.client();
        client.submission("sh/a", &text).header("Idempotency-Key", "one").send().expect(202)
    };
    let first = submit(&daemon);
    let id = first["message_id"].as_str().unwrap().to_owned();
    until("the code to run", || (!runs(&daemon, "once").is_empty()).then_some(()));
    assert_eq!(submit(&daemon)["message_id"], id.as_str(), "while it runs");
    // The daemon dies in the turn; the turn goes on, and so does the key.
    daemon.kill();
    daemon.start_again();
    assert_eq!(submit(&daemon)["message_id"], id.as_str(), "after a death of the daemon");
    daemon.touch("go");
    let result = daemon.client().ended(&id);
    assert_eq!((&result["state"], &result["attempts"]), (&json!("answered"), &json!(1)));
    let again = submit(&daemon);
    assert_eq!((&again["message_id"], &again["duplicate"]), (&json!(id), &json!(true)));
    assert_eq!(daemon.client().message(&id), result);
    assert_eq!(runs(&daemon, "once"), ["run"]);
}

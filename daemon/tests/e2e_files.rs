//! Files before work, on the real program: inputs that are there or named, workspaces that outlive
//! every death, and what hostile names and servers can do. Each test runs on folders and on an S3
//! server.

#[path = "../../edge/tests/files_s3/server.rs"]
#[expect(dead_code, reason = "the tests of the store use more of it")]
mod server;
#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use http::Method;
use serde_json::json;
use server::{BUCKET, Fault, KEY_ID, SECRET, Server, content, files_below};
use sha2::{Digest as _, Sha256};
use support::agents::python;
use support::{Daemon, Setup, until};

/// Prints one digest over every file's path and bytes, and how many there are.
const DIGEST: &str = "
import hashlib, os
paths = sorted(os.path.relpath(os.path.join(at, name), '.')
               for at, _, names in os.walk('.') for name in names)
whole = hashlib.sha256()
for path in paths:
    whole.update(path.encode() + b'\\0' + hashlib.sha256(open(path, 'rb').read()).digest())
print(len(paths), whole.hexdigest())
";

/// The same, of what it should be.
fn digest_of(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut whole = Sha256::new();
    for (path, bytes) in files {
        whole.update(path.as_bytes());
        whole.update([0]);
        whole.update(Sha256::digest(bytes));
    }
    let hex: String = whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {hex}", files.len())
}

/// Where inputs come from, and where blobs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Folder,
    Bucket,
}

struct Objects {
    server: Server,
    /// Its connections live in here.
    _runtime: tokio::runtime::Runtime,
}

impl Objects {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let server = runtime.block_on(Server::start());
        Self { server, _runtime: runtime }
    }
}

struct Stage {
    daemon: Daemon,
    inputs: PathBuf,
    blobs: PathBuf,
    /// Dropped after the daemon that uses it.
    objects: Option<Objects>,
}

impl Stage {
    /// An agent `job` that runs Python in a workspace with inputs in `data/`.
    fn new(place: Place, input_settings: &str) -> Self {
        let setup = Setup::new();
        let executor = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/python/executor.py");
        let agent = |from: &str| {
            let inputs =
                format!("inputs = [{{ path = \"data\", from = \"{from}\"{input_settings} }}]");
            format!(
                "[agents.job]\ncommand = [\"{}\", \"{executor}\"]\n\
                 adapter = {{ kind = \"jsonl\", ready = true }}\n{inputs}\n\
                 files = {{ checkpoint = \"turn\", keep = 5 }}\n",
                python()
            )
        };
        let folder = setup.folder().to_owned();
        let (setup, inputs, blobs, objects) = match place {
            Place::Folder => {
                let inputs = folder.join("inputs");
                fs::create_dir(&inputs).unwrap();
                let agent = agent("{scratch}/inputs");
                (setup.config(&agent), inputs, folder.join("data/blobs"), None)
            }
            Place::Bucket => {
                let objects = Objects::start();
                let (inputs, blobs) = (objects.server.file("in"), objects.server.file("kept"));
                let setup = setup
                    .config(&agent(&format!("s3://{BUCKET}/in/")))
                    .config(&format!("[files]\nstore = \"s3://{BUCKET}/kept\"\n"))
                    .config(&format!("[s3]\nendpoint = \"http://{}\"", objects.server.address))
                    .environment("AWS_ACCESS_KEY_ID", KEY_ID)
                    .environment("AWS_SECRET_ACCESS_KEY", SECRET);
                (setup, inputs, blobs, Some(objects))
            }
        };
        Self { daemon: setup.start(), inputs, blobs, objects }
    }

    fn input(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.inputs.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn server(&self) -> &Server {
        &self.objects.as_ref().expect("only where there is one").server
    }

    /// What the code prints; it must be answered.
    #[track_caller]
    fn run(&self, code: &str) -> String {
        let client = self.daemon.client();
        let id = client.submit("job/one", code);
        client.reply(&id).trim_end().to_owned()
    }

    #[track_caller]
    fn put(&self, path: &str, bytes: &[u8]) {
        let path = format!("/v1/sessions/job/one/files/{path}");
        self.daemon.call("PUT", &path).bytes(bytes.to_vec()).send().expect(200);
    }

    fn get(&self, path: &str) -> Vec<u8> {
        let answer = self.daemon.client().get(&format!("/v1/sessions/job/one/files/{path}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.body
    }

    fn workspace(&self) -> PathBuf {
        let entries = fs::read_dir(self.daemon.data().join("workspaces")).unwrap();
        let mut folders = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        folders.next().expect("a workspace")
    }

    /// As on a machine that never had it.
    fn lose_workspace(&self) {
        let folder = self.workspace();
        fs::remove_dir_all(&folder).unwrap();
        drop(fs::remove_file(folder.with_extension("state")));
    }

    #[track_caller]
    fn sleeps(&self) {
        self.daemon.cli(&["stop", "job/one"]).ok();
        until("the session to sleep", || {
            let session = self.daemon.client().get("/v1/sessions/job/one").expect(200);
            (session["phase"] == "asleep").then_some(())
        });
    }

    fn checkpoints(&self) -> Vec<u64> {
        let listed = self.daemon.client().get("/v1/sessions/job/one/checkpoints").expect(200);
        let items = listed.as_array().unwrap().iter();
        items.map(|item| item["number"].as_u64().unwrap()).collect()
    }
}

macro_rules! on_folders_and_on_s3 {
    ($($name:ident)*) => {
        mod on_folders {
            $(#[test] fn $name() { super::$name(super::Place::Folder) })*
        }
        mod on_s3 {
            $(#[test] fn $name() { super::$name(super::Place::Bucket) })*
        }
    };
}

on_folders_and_on_s3! {
    fifteen_hundred_files_are_there_before_the_first_turn_and_come_back_by_digest
    a_missing_required_input_gives_the_message_up_and_no_agent_is_asked
    a_changed_input_is_seen_by_the_next_turn_and_an_unchanged_one_costs_nothing
    a_workspace_that_is_lost_is_what_it_was_after_the_last_turn
    a_restore_that_fails_never_takes_the_place_of_the_good_checkpoint
    what_a_message_was_answered_with_is_kept_whoever_is_killed_when
    an_operator_goes_back_to_an_older_checkpoint
}

fn fifteen_hundred_files_are_there_before_the_first_turn_and_come_back_by_digest(place: Place) {
    let stage = Stage::new(place, ", required = [\"0/*.csv\"]");
    let mut expected = BTreeMap::new();
    for number in 0..1_500 {
        let (name, bytes) = (format!("{}/{number}.csv", number % 7), content(number * 3));
        stage.input(&name, &bytes);
        expected.insert(format!("data/{name}"), bytes);
    }
    for (path, bytes) in [("own/a b.txt", b"mine".as_slice()), ("ü.bin", &[0, 255, 10])] {
        stage.put(&path.replace(' ', "%20").replace('ü', "%C3%BC"), bytes);
        expected.insert(path.to_owned(), bytes.to_vec());
    }
    assert_eq!(stage.run(DIGEST), digest_of(&expected));

    // And back: what the agent makes of them.
    let code = "
import os
for n in range(1500):
    os.makedirs(f'out/{n % 11}', exist_ok=True)
    with open(f'out/{n % 11}/{n}.bin', 'wb') as f:
        f.write(bytes((i * 7 + n) % 256 for i in range(n)))
print('made')
";
    assert_eq!(stage.run(code), "made");
    let made = |n: usize| -> Vec<u8> { (0..n).map(|i| ((i * 7 + n) % 256) as u8).collect() };
    let listed = stage.daemon.client().get("/v1/sessions/job/one/files").expect(200);
    let files = listed["files"].as_array().unwrap();
    let hashes: BTreeMap<&str, &str> = files
        .iter()
        .filter_map(|file| Some((file["path"].as_str()?, file["sha256"].as_str()?)))
        .collect();
    assert_eq!(hashes.len(), 1_502, "inputs are the agent's, and in no checkpoint");
    for n in 0..1_500 {
        let hash: String =
            Sha256::digest(made(n)).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hashes[format!("out/{}/{n}.bin", n % 11).as_str()], hash);
    }
    assert_eq!(stage.get("out/3/1499.bin"), made(1_499));
}

fn a_missing_required_input_gives_the_message_up_and_no_agent_is_asked(place: Place) {
    let stage = Stage::new(place, ", required = [\"*.csv\", \"model.bin\"]");
    stage.input("a.csv", "1");
    let client = stage.daemon.client();
    let id = client.submit("job/one", "open('was-run', 'w')");
    let message = client.ended(&id);
    assert_eq!((&message["state"], &message["cause"]), (&json!("dead"), &json!("input_missing")));
    let text = message.to_string();
    assert!(text.contains("model.bin") && !text.contains("*.csv"), "{text}");
    assert_eq!(stage.daemon.count("SELECT count(*) FROM message WHERE attempts > 0"), 0);
    let why = stage.daemon.cli(&["why", "job/one"]).ok();
    assert!(why.contains("model.bin"), "{why}");

    stage.input("model.bin", "2");
    assert_eq!(stage.run("import os; print(os.path.exists('was-run'))"), "False");
}

fn a_changed_input_is_seen_by_the_next_turn_and_an_unchanged_one_costs_nothing(place: Place) {
    let stage = Stage::new(place, "");
    stage.input("a.csv", "one");
    stage.input("b.csv", "same");
    let read = "print(open('data/a.csv').read(), open('data/b.csv').read(), x)";
    assert_eq!(stage.run(&format!("x = 'warm'\n{read}")), "one same warm");
    let syncs =
        || stage.daemon.count("SELECT count(*) FROM journal WHERE because LIKE '%in_place%'");
    let (instance, _, _) = stage.daemon.instance_of("job/one");
    let synced = || {
        let log = fs::read_to_string(instance.folder.join("bridge.log")).unwrap_or_default();
        log.matches("synced:").count()
    };
    let before = (syncs(), synced());
    assert_eq!(stage.run(read), "one same warm");
    assert_eq!((syncs(), synced()), before, "nothing was asked of the bridge");

    stage.input("a.csv", "another");
    fs::remove_file(stage.inputs.join("b.csv")).unwrap();
    stage.input("c.csv", "new");
    let read = "import os; print(open('data/a.csv').read(), sorted(os.listdir('data')), x)";
    assert_eq!(stage.run(read), "another ['a.csv', 'c.csv'] warm");
    // What the agent does to an input is undone as soon as the inputs change.
    stage.run("open('data/a.csv', 'w').write('forged')");
    stage.input("c.csv", "newer");
    assert_eq!(stage.run("print(open('data/a.csv').read(), x)"), "another warm");
}

fn a_workspace_that_is_lost_is_what_it_was_after_the_last_turn(place: Place) {
    let stage = Stage::new(place, "");
    stage.input("in.csv", "in");
    stage.put("up.txt", b"up");
    let code = "
import os
os.makedirs('d/e', exist_ok=True); os.makedirs('empty', exist_ok=True)
open('d/e/x', 'w').write('x' * 100000); open('run.sh', 'w').write('#!/bin/sh\\necho ran\\n')
os.chmod('run.sh', 0o755); os.symlink('d/e/x', 'link'); os.remove('up.txt')
os.makedirs('node_modules/m', exist_ok=True); open('node_modules/m/i.js', 'w').write('made again')
";
    stage.run(code);
    let before = stage.run(&format!("import shutil; shutil.rmtree('node_modules')\n{DIGEST}"));
    // An instance that dies between two turns.
    let (_, bridge, agent) = stage.daemon.instance_of("job/one");
    agent.kill();
    agent.is_gone_soon("the agent");
    assert_eq!(stage.run(DIGEST), before);
    bridge.is_gone_soon("the bridge of the first life");
    // A machine that dies with its disk.
    stage.sleeps();
    stage.lose_workspace();
    assert_eq!(stage.run(DIGEST), before);
    let look = "
import os, subprocess
print(os.readlink('link'), os.path.isdir('empty'), os.path.exists('up.txt'),
      subprocess.run(['./run.sh'], capture_output=True, text=True).stdout)";
    assert_eq!(stage.run(look), "d/e/x True False ran");
}

fn a_restore_that_fails_never_takes_the_place_of_the_good_checkpoint(place: Place) {
    let stage = Stage::new(place, "");
    stage.run("open('result', 'w').write('worth much' * 1000)");
    let before = stage.run(DIGEST);
    stage.sleeps();
    let kept = stage.checkpoints();
    let hash: String = Sha256::digest("worth much".repeat(1000))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let blob = blob_file(&stage, &hash);
    let bytes = fs::read(&blob).unwrap();
    stage.lose_workspace();
    for damaged in [None, Some(b"something else".repeat(715)[..10_000].to_vec())] {
        match &damaged {
            None => fs::remove_file(&blob).unwrap(),
            Some(other) => fs::write(&blob, other).unwrap(),
        }
        let client = stage.daemon.client();
        let id = client.submit("job/one", "open('invented', 'w').write('from nothing')");
        let why = until("the failure to be told", || {
            let why = stage.daemon.cli(&["why", "job/one"]).ok();
            why.contains("sync_failed").then_some(why)
        });
        assert!(why.contains("result"), "{why}");
        assert_ne!(client.message(&id)["state"], "answered");
        client.call("DELETE", &format!("/v1/messages/{id}")).send();
        stage.sleeps();
        assert_eq!(stage.checkpoints(), kept);
    }
    fs::write(&blob, bytes).unwrap();
    assert_eq!(stage.run(DIGEST), before);
}

fn blob_file(stage: &Stage, hash: &str) -> PathBuf {
    let mut waiting = vec![stage.blobs.clone()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.to_string_lossy().replace('/', "").contains(&hash[4..]) {
                return path;
            }
        }
    }
    panic!("{hash} is not kept: {} files are", files_below(&stage.blobs));
}

fn what_a_message_was_answered_with_is_kept_whoever_is_killed_when(place: Place) {
    const ROUNDS: u64 = 18;
    let mut stage = Stage::new(place, "");
    stage.input("in.csv", "in");
    for round in 0..ROUNDS {
        let code = format!(
            "open('kept-{round}', 'w').write('{round}' * 20000)\n\
             open('all', 'a').write('{round} ')\nprint(open('data/in.csv').read())"
        );
        let id = stage.daemon.client().submit("job/one", &code);
        // Anywhere between the wake and the end of the turn; the answer must not depend on it.
        thread::sleep(Duration::from_millis((round * 53) % 400));
        let newest = stage.daemon.instances().into_iter().next_back();
        let loses_workspace = round % 4 == 3;
        match (round % 3, newest) {
            // What a bridge that is killed had not kept yet is in the workspace alone.
            (1, Some(_)) if loses_workspace => {}
            (0, _) => {
                stage.daemon.kill();
                stage.daemon.start_again();
            }
            (1, Some(newest)) => newest.bridge.iter().for_each(|bridge| bridge.kill()),
            (_, Some(newest)) => newest.agent.iter().for_each(|agent| agent.kill()),
            (_, None) => {}
        }
        let message = stage.daemon.client().ended(&id);
        assert_eq!((&message["state"], &message["reply"]), (&json!("answered"), &json!("in\n")));
        if loses_workspace {
            stage.sleeps();
            stage.lose_workspace();
        }
    }
    let look = "
import os
print(all(open(f'kept-{n}').read() == str(n) * 20000 for n in range(ROUNDS)))
print(sorted({int(n) for n in open('all').read().split()}) == list(range(ROUNDS)))
";
    assert_eq!(stage.run(&look.replace("ROUNDS", &ROUNDS.to_string())), "True\nTrue");
}

fn an_operator_goes_back_to_an_older_checkpoint(place: Place) {
    let stage = Stage::new(place, "");
    stage.run("open('a', 'w').write('good')");
    stage.run("open('a', 'w').write('spoilt'); open('junk', 'w').write('x')");
    assert_eq!(stage.get("a"), b"spoilt");
    let kept = stage.checkpoints();
    let oldest = kept.iter().min().unwrap();
    let restored = stage.daemon.cli(&["files", "restore", "job/one", &oldest.to_string()]);
    restored.ok();
    let read = "import os; print(open('a').read(), os.path.exists('junk'))";
    assert_eq!(stage.run(read), "good False");
    assert_eq!(stage.get("a"), b"good");
    let unknown = stage.daemon.cli(&["files", "restore", "job/one", "99"]);
    assert_eq!(unknown.code, Some(7), "{unknown:?}");
    assert!(unknown.err.contains("no checkpoint of that number"), "{unknown:?}");
    assert!(unknown.err.contains("dormouse files history"), "{unknown:?}");
}

#[test]
fn one_object_that_cannot_be_had_refuses_the_turn_with_its_path() {
    let stage = Stage::new(Place::Bucket, "");
    for number in 0..40 {
        stage.input(&format!("{number:02}.csv"), content(5_000));
    }
    let client = stage.daemon.client();
    stage.server().fault(Method::GET, "in/17.csv", u32::MAX, Fault::Status(403, "AccessDenied"));
    let message = client.ended(&client.submit("job/one", "open('was-run', 'w')"));
    assert_eq!((&message["state"], &message["cause"]), (&json!("dead"), &json!("sync_failed")));
    assert!(message.to_string().contains("data/17.csv"), "{message}");
    assert_eq!(stage.daemon.count("SELECT count(*) FROM message WHERE attempts > 0"), 0);
}

#[test]
fn a_server_that_storms_breaks_off_and_lies_is_outlasted() {
    let stage = Stage::new(Place::Bucket, "");
    let mut expected = BTreeMap::new();
    for number in 0..1_200 {
        let bytes = content(200 + number);
        stage.input(&format!("{number}.csv"), &bytes);
        expected.insert(format!("data/{number}.csv"), bytes);
    }
    let server = stage.server();
    server.fault(Method::GET, "list-type=2", 1, Fault::Status(503, "SlowDown"));
    server.fault(Method::GET, "in/", 30, Fault::Status(503, "SlowDown"));
    server.fault(Method::GET, "in/7", 3, Fault::Truncated(100));
    server.fault(Method::GET, "in/8", 2, Fault::WrongByte);
    server.fault(Method::GET, "in/9", 2, Fault::Shorter(1));
    assert_eq!(stage.run(DIGEST), digest_of(&expected));
    let requests = server.requests();
    assert!(requests.iter().filter(|request| request.contains("list-type")).count() >= 2);
}

#[test]
fn a_daemon_and_a_bridge_that_are_killed_in_a_sync_lose_nothing_of_it() {
    let mut stage = Stage::new(Place::Bucket, "");
    let mut expected = BTreeMap::new();
    for number in 0..300 {
        let bytes = content(50_000 + number);
        stage.input(&format!("{number}.csv"), &bytes);
        expected.insert(format!("data/{number}.csv"), bytes);
    }
    // One object says nothing after its first bytes, so that a sync is under way.
    const SILENT: &str = "in/200.csv";
    stage.server().fault(Method::GET, SILENT, 3, Fault::Silent(1_000));
    stage.daemon.client().submit("job/one", DIGEST);
    for is_bridge in [false, true, false] {
        until("the object to be asked for", || {
            let requests = stage.server().requests();
            requests.iter().any(|request| request.contains(SILENT)).then_some(())
        });
        let shown = until("the sync to be shown", || {
            let shown = stage.daemon.cli(&["ps"]).ok();
            shown.contains("starting, files ").then_some(shown)
        });
        assert!(shown.contains(" of "), "{shown}");
        if is_bridge {
            let newest = stage.daemon.instances().into_iter().next_back().expect("an instance");
            newest.bridge.expect("a bridge").kill();
        } else {
            stage.daemon.kill();
            stage.daemon.start_again();
        }
    }
    assert_eq!(stage.run(DIGEST), digest_of(&expected));
    assert_eq!(stage.daemon.count("SELECT count(*) FROM message WHERE attempts > 1"), 0);
}

#[test]
fn a_store_of_files_that_refuses_is_told_as_that_and_fails_no_turn() {
    let stage = Stage::new(Place::Bucket, "");
    let refused = Fault::Status(403, "AccessDenied");
    stage.server().fault(Method::PUT, "kept/", u32::MAX, refused);
    let put = stage.daemon.call("PUT", "/v1/sessions/job/one/files/a").bytes(b"x".to_vec()).send();
    assert_eq!(put.error(503), "files_unavailable");
    assert!(stage.daemon.log().contains("refuses access (AccessDenied)"), "{}", stage.daemon.log());
    assert_eq!(stage.run("_ = open('a', 'w').write('x')\nprint('done')"), "done");
    assert_eq!(stage.checkpoints(), Vec::<u64>::new());
    let log = stage.daemon.cli(&["logs", "job/one"]).ok();
    assert!(log.contains("no checkpoint"), "{log}");
}

#[test]
fn hostile_names_and_trees_stay_inside_and_are_named() {
    let stage = Stage::new(Place::Folder, "");
    let client = stage.daemon.client();
    for path in ["..%2Fout", "%2Fetc%2Fpasswd", "a/../../b", ".dormouse-sync/x", "a%00b", "a%0Ab"] {
        let answer = stage
            .daemon
            .call("PUT", &format!("/v1/sessions/job/one/files/{path}"))
            .bytes(b"x".to_vec())
            .send();
        assert!(matches!(answer.status, 400 | 404), "{path}: {} {}", answer.status, answer.text());
    }
    stage.put("Report.txt", b"1");
    let answer = stage
        .daemon
        .call("PUT", "/v1/sessions/job/one/files/report.txt")
        .bytes(b"2".to_vec())
        .send();
    assert_eq!(answer.error(422), "does_not_fit");

    let outside = stage.daemon.folder().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "not yours").unwrap();
    stage.input("x.csv", "1");
    symlink(&outside, stage.inputs.join("leak")).unwrap();
    let message = client.ended(&client.submit("job/one", "pass"));
    assert_eq!((&message["state"], &message["cause"]), (&json!("dead"), &json!("sync_failed")));
    assert!(message["detail"].as_str().unwrap().contains("leak is a link that leads out"));
    fs::remove_file(stage.inputs.join("leak")).unwrap();
    let code = format!(
        "import os\nos.symlink('{0}', 'out'); os.mkfifo('pipe'); os.link('{0}/secret', 'hard')\n\
         os.makedirs('d'); os.symlink('{0}', 'd/up')\nprint(sorted(os.listdir('data')))",
        outside.display()
    );
    assert_eq!(stage.run(&code), "['x.csv']");
    let listed = stage.daemon.client().get("/v1/sessions/job/one/files").expect(200);
    let paths: Vec<_> =
        listed["files"].as_array().unwrap().iter().map(|file| file["path"].clone()).collect();
    assert_eq!(paths, ["Report.txt", "d", "hard"]);
    // An upload through the agent's link lands in a folder of its own, and not outside.
    stage.put("out/planted", b"x");
    assert_eq!(
        stage.run("import os; print(os.path.islink('out'), os.listdir('out'))"),
        "False ['planted']"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn what_is_attached_to_a_message_is_there_at_its_turn_and_once() {
    let stage = Stage::new(Place::Folder, "");
    let read =
        "print(open('d/a.csv').read(), open('b', 'rb').read())\n_ = open('b', 'w').write('own')";
    let attached = json!([{"path": "d/a.csv", "text": "1,2"}, {"path": "b", "base64": "AP8="}]);
    let submit = |attachments: &serde_json::Value| {
        let body = json!({"text": read, "attachments": attachments});
        let call = stage.daemon.call("POST", "/v1/sessions/job/one/messages");
        call.header("idempotency-key", "one").json(&body).send()
    };
    let accepted = submit(&attached).expect(202);
    let id = accepted["message_id"].as_str().unwrap();
    assert_eq!(stage.daemon.client().reply(id), "1,2 b'\\x00\\xff'\n");
    let again = submit(&attached).expect(202);
    assert_eq!((&again["message_id"], &again["duplicate"]), (&json!(id), &json!(true)));
    assert_eq!(stage.run("print(open('b').read())"), "own", "it was put there once");
    assert_eq!(submit(&json!([])).status, 409, "another body under the same key");
    let outside = submit(&json!([{"path": "../x", "text": ""}]));
    assert!(outside.text().contains("attachments[0].path"), "{}", outside.text());
}

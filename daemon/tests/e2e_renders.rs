//! Files that Dormouse writes into an instance, and the secrets in them.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{Daemon, Setup, until};

/// What no file, line or row of anybody else may contain.
const SECRET: &str = "s3cr3t-\"quoted\"-0123456789";

/// One process per turn; the script is the message's answer.
fn agent(script: &str, more: &str) -> String {
    let command = json!(["sh", "-c", script]);
    format!(
        "[agents.a]\ncommand = {command}\nadapter = {{ kind = \"exec\" }}\n\
         memory = \"64MiB\"\n{more}\n"
    )
}

/// Says no if its config does.
const READS: &str = "\
    grep -q broken agent.json && { echo no such voice >&2; exit 3; }\n\
    cat agent.json";

const FROM: &str = "render = [{ path = \"agent.json\", from = \"template.json\" }]";

fn template(daemon: &Daemon, text: &str) {
    fs::write(daemon.folder().join("template.json"), text).unwrap();
}

fn prepared(config: &str, text: &str) -> Daemon {
    let mut daemon = Setup::new().config(config).prepare();
    template(&daemon, text);
    fs::create_dir_all(daemon.data().join("secrets")).unwrap();
    daemon.start_again();
    daemon
}

fn secret(daemon: &Daemon, value: &str) {
    fs::write(daemon.data().join("secrets/KEY"), format!("{value}\n")).unwrap();
}

fn shown(daemon: &Daemon) -> Value {
    daemon.client().get("/v1/agents").expect(200)[0].clone()
}

fn sleeps(daemon: &Daemon, session: &str) {
    daemon.cli(&["stop", session]).ok();
    daemon.client().phase_becomes(session, "asleep");
}

/// Where the session's agents work.
fn workspace(daemon: &Daemon, session: &str) -> PathBuf {
    PathBuf::from(daemon.client().ask(session, "pwd").trim_end())
}

fn answer(daemon: &Daemon, session: &str) -> Value {
    let reply = daemon.client().ask(session, "hello");
    serde_json::from_str(&reply).unwrap_or_else(|_| panic!("{reply}"))
}

#[test]
fn a_file_is_there_with_its_fields_and_secrets_and_another_text_is_another_revision() {
    let daemon = prepared(
        &agent(READS, FROM),
        r#"{"key": "{key}", "of": "{session}", "home": "{workspace}", "mib": {memory_mib},
            "token": "{secret:KEY}", "left": {"alone": "{nothing}"}}"#,
    );
    assert!(shown(&daemon)["lacks"][0].as_str().unwrap().contains("the secret KEY"));
    secret(&daemon, SECRET);
    let read = answer(&daemon, "a/x");
    assert_eq!((&read["key"], &read["of"]), (&json!("x"), &json!("a/x")));
    assert_eq!((&read["token"], &read["mib"]), (&json!(SECRET), &json!(64)));
    assert_eq!(read["left"]["alone"], "{nothing}");
    let file = Path::new(read["home"].as_str().unwrap()).join("agent.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // What the agent makes of it is its own affair, until the next start.
    fs::write(&file, "{\"mine\": true}").unwrap();
    assert_eq!(answer(&daemon, "a/x"), json!({"mine": true}));
    assert_eq!(shown(&daemon)["rollout"], Value::Null);
    secret(&daemon, "rotated");
    sleeps(&daemon, "a/x");
    assert_eq!(answer(&daemon, "a/x")["token"], "rotated", "a rotation reaches the next start");

    // A bad text is tried by one, and the good one is written again.
    template(&daemon, "{\"voice\": \"broken\"}");
    until("the watcher to see it", || {
        shown(&daemon)["rollout"].as_str().is_some_and(|is| is.contains("tried")).then_some(())
    });
    sleeps(&daemon, "a/x");
    assert_eq!(answer(&daemon, "a/x")["token"], "rotated");
    let rollout = shown(&daemon)["rollout"].as_str().unwrap().to_owned();
    assert!(rollout.contains("revision 2 is bad"), "{rollout}");
    template(&daemon, "{\"voice\": \"fine\"}");
    daemon.cli(&["config", "apply"]).ok();
    sleeps(&daemon, "a/x");
    assert_eq!(answer(&daemon, "a/x"), json!({"voice": "fine"}));
}

#[test]
fn a_planted_link_is_no_way_out_and_no_checkpoint_has_the_file() {
    let script = "read -r text; case $text in pwd) pwd;; *) cat deep/agent.json;; esac";
    let files = "render = [{ path = \"deep/agent.json\", text = \"{secret:KEY}\" }]\n\
                 files.checkpoint = \"turn\"";
    let daemon = prepared(&agent(script, files), "");
    secret(&daemon, SECRET);
    let home = workspace(&daemon, "a/x");
    let outside = daemon.folder().join("outside");
    fs::create_dir(&outside).unwrap();
    sleeps(&daemon, "a/x");
    fs::remove_dir_all(home.join("deep")).unwrap();
    std::os::unix::fs::symlink(&outside, home.join("deep")).unwrap();
    fs::write(home.join("kept"), "mine").unwrap();
    let escaped = serde_json::to_string(SECRET).unwrap();
    let reply = daemon.client().ask("a/x", "hello");
    assert_eq!(reply, escaped[1..escaped.len() - 1]);
    assert!(fs::read_dir(&outside).unwrap().next().is_none(), "nothing was written there");
    let listed = until("a checkpoint", || {
        let files = daemon.cli(&["files", "ls", "a/x"]).ok();
        files.contains("kept").then_some(files)
    });
    assert!(!listed.contains("agent.json"), "{listed}");
    let put = daemon.client().call("PUT", "/v1/sessions/a/x/files/deep/agent.json");
    assert_eq!(put.bytes(b"{}".to_vec()).send().error(422), "does_not_fit");
}

/// Every file below it that has the words.
fn with_words(folder: &Path, words: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            with_words(&path, words, found);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            if bytes.windows(words.len()).any(|window| window == words.as_bytes()) {
                found.push(path);
            }
        }
    }
}

#[test]
fn a_secret_from_a_command_is_where_it_belongs_and_nowhere_else() {
    let value = "s3cr3t-from-a-command";
    let script = "tr '\\0' '\\n' < /proc/$$/cmdline; env; cat agent.conf";
    let files = "secrets = [\"IN_ENV\"]\n\
                 render = [{ path = \"agent.conf\", text = \"token={secret:KEY}\" }]";
    let config = format!(
        "[secrets]\ncommand = [\"sh\", \"{{scratch}}/ask\", \"{{name}}\"]\n{}\
         [agents.b]\ncommand = [\"env\"]\nadapter = {{ kind = \"exec\" }}\n",
        agent(script, files)
    );
    let mut daemon = Setup::new().config(&config).prepare();
    let ask = |text: &str| fs::write(daemon.folder().join("ask"), text).unwrap();
    ask("echo $1 >> $0.log; echo s3cr3t-from-a-command-$1\n");
    daemon.start_again();
    let client = daemon.client();
    let seen = client.ask("a/x", "hello");
    assert!(
        seen.contains(&format!("token={value}-KEY\n"))
            || seen.ends_with(&format!("token={value}-KEY"))
    );
    assert!(seen.contains(&format!("IN_ENV={value}-IN_ENV")), "{seen}");
    assert!(!seen.contains(&format!("KEY={value}")), "it is in no environment: {seen}");
    assert!(!client.ask("b/x", "hello").contains("s3cr3t"), "another agent's");

    // Asked anew at each start; what it prints when it fails is nobody's to read.
    sleeps(&daemon, "a/x");
    fs::write(daemon.folder().join("ask"), "echo s3cr3t-hush; echo s3cr3t-hush >&2; exit 3\n")
        .unwrap();
    let waiting = client.submit("a/x", "hello");
    let why = until("the start to fail", || {
        let why = daemon.cli(&["why", "a/x"]).ok();
        why.contains("IN_ENV").then_some(why)
    });
    assert!(why.contains("ended with exit status: 3"), "{why}");
    fs::write(daemon.folder().join("ask"), "echo rotated-$1\n").unwrap();
    assert!(client.reply(&waiting).contains("token=rotated-KEY"));

    for place in ["/metrics", "/v1/sessions/a/x/journal", "/v1/agents", "/v1/config"] {
        assert!(!client.get(place).text().contains("s3cr3t"), "{place}");
    }
    let home = workspace_of(&daemon);
    assert!(daemon.terminate().success());
    fs::remove_file(daemon.folder().join("ask")).unwrap();
    // The replies above had it: they are the agent's own words.
    let mut found = Vec::new();
    with_words(daemon.folder(), "s3cr3t-hush", &mut found);
    assert!(found.is_empty(), "{found:?}");
    with_words(daemon.folder(), "rotated-KEY", &mut found);
    let is_expected = |path: &PathBuf| {
        path.starts_with(&home)
            || path.extension().is_some_and(|kind| kind == "db" || kind == "db-wal")
    };
    assert!(found.iter().all(is_expected), "{found:?}");
}

/// Of all sessions.
fn workspace_of(daemon: &Daemon) -> PathBuf {
    let mut found = Vec::new();
    with_words(daemon.folder(), "token=rotated-KEY", &mut found);
    let file = found.into_iter().find(|path| path.ends_with("agent.conf"));
    file.expect("it is rendered").parent().unwrap().to_owned()
}

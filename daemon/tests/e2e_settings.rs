//! Every setting of the schema, changed on a running daemon: what is declared is what happens.
//!
//! The walk takes each setting from one value to another and looks at the plan, the daemon, the
//! agents and who is awake; then each that is declared live is seen at work, or the reason stands
//! here why it cannot be. A setting without a line here fails.

#[path = "support/setting_samples.rs"]
mod setting_samples;
#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use setting_samples::{SampleChange, sample_change};
use support::agents::{program, python, toml_list};
use support::http::{Call, Client, decisions};
use support::scratch::say;
use support::{Daemon, SOON, Setup, until};

/// Each setting by its path, with its effect.
fn settings_of(daemon: &Daemon) -> BTreeMap<String, String> {
    fn walk(path: &str, schema: &Value, found: &mut BTreeMap<String, String>) {
        let joined = |key: &str| if path.is_empty() { key.into() } else { format!("{path}.{key}") };
        if let Some(effect) = schema["x-effect"].as_str() {
            found.insert(path.to_owned(), effect.to_owned());
            return;
        }
        for (key, below) in schema["properties"].as_object().into_iter().flatten() {
            walk(&joined(key), below, found);
        }
        if schema["additionalProperties"].is_object() {
            walk(&joined("NAME"), &schema["additionalProperties"], found);
        }
    }
    let mut found = BTreeMap::new();
    walk("", &daemon.offline(&["config", "schema", "--json"]).json(), &mut found);
    assert!(found.len() > 50, "{found:?}");
    found
}

fn witness(daemon_folder: &str) -> String {
    let script = program("scripted.py").display().to_string();
    let command = toml_list(&[python(), &script]);
    format!(
        "server.listen = \"127.0.0.1:0\"\nagents.witness.command = {command}\n\
         agents.witness.adapter = {{ kind = \"jsonl\", ready = true }}\n\
         agents.witness.env = {{ AGENT_LOG = \"{daemon_folder}/agents.log\" }}\n"
    )
}

/// The settings as lines with whole paths; a later one stands for an earlier one.
fn text_of(lines: &[(String, String)]) -> String {
    let settings: BTreeMap<_, _> = lines.iter().cloned().collect();
    settings.iter().map(|(path, value)| format!("{path} = {value}\n")).collect()
}

fn applied(daemon: &Daemon, text: &str) -> Value {
    daemon.client().post("/v1/config/apply", &json!({ "text": text })).expect(200)
}

/// The witness, and an agent to which one setting is changed; or the setting is nobody's.
fn walked(folder: &str, agent: &str, path: &str, value: &str, beside: &[(&str, &str)]) -> String {
    let named = |path: &str| path.replace("NAME", agent);
    let mut lines = vec![
        (format!("agents.{agent}.command"), "[\"true\"]".to_owned()),
        (format!("agents.{agent}.adapter"), "{ kind = \"exec\" }".to_owned()),
    ];
    lines.extend(beside.iter().map(|(path, value)| (named(path), (*value).to_owned())));
    lines.push((named(path), value.to_owned()));
    let witness = witness(folder);
    let is_another = |line: &&str| !line.starts_with(&format!("{path} "));
    let witness: Vec<&str> = witness.lines().filter(is_another).collect();
    format!("{}\n{}", witness.join("\n"), text_of(&lines))
}

#[test]
fn every_setting_does_what_its_effect_says_and_nobody_is_interrupted() {
    let setup = Setup::new();
    let folder = setup.folder().display().to_string();
    let mut daemon = setup.prepare();
    daemon.set_config(&witness(&folder));
    daemon.start_again();
    let client = daemon.client();
    let pid = daemon.pid();
    assert_eq!(client.ask("witness/w", "count"), "turn 1 of life 1");
    for (number, (path, effect)) in settings_of(&daemon).into_iter().enumerate() {
        let SampleChange { from, to, beside } =
            sample_change(&path).unwrap_or_else(|| panic!("{path} has no sample"));
        let agent = format!("walked-{number}");
        let with = |value: &str| walked(&folder, &agent, &path, value, beside);
        let needs_restart = effect == "daemon_restart";
        if !needs_restart {
            assert_eq!(applied(&daemon, &with(from))["is_applied"], true, "{path}");
        }
        if path.starts_with("agents.") {
            client.ask(&format!("{agent}/w"), "hello");
        }
        let generation = |session: &str| client.generation(session);
        let shown = || {
            let agents = client.get("/v1/agents").expect(200);
            let agents = agents.as_array().unwrap().clone();
            agents.into_iter().find(|shown| shown["agent"] == agent.as_str())
        };
        let before = client.get("/v1/config").expect(200)["number"].clone();

        let outcome = applied(&daemon, &with(to));
        let path = path.replace("NAME", &agent);
        let changes = outcome["changes"].as_array().unwrap();
        let change = changes.iter().find(|change| change["path"] == path.as_str());
        let change = change.unwrap_or_else(|| panic!("{path} is not in {outcome}"));
        assert_eq!(change["effect"], effect.as_str(), "{path}");
        if needs_restart {
            assert_eq!(outcome["held"], json!([path]), "{outcome}");
            assert_eq!((&outcome["is_applied"], &outcome["number"]), (&json!(false), &before));
        } else {
            assert_eq!(changes.len(), 1, "{outcome}");
            assert_eq!((&outcome["held"], &outcome["is_applied"]), (&json!([]), &json!(true)));
            let shown = shown().expect("it is in the config");
            let makes_a_revision = effect == "next_start" && path.starts_with("agents.");
            let rollout = shown["rollout"].as_str().unwrap_or_default();
            assert_eq!(rollout.contains("revision 2 will be tried"), makes_a_revision, "{path}");
            if path.starts_with("agents.") {
                assert_eq!(generation(&format!("{agent}/w")), 1, "{path}");
            }
            let state = client.get("/v1/config").expect(200);
            assert_eq!(state["file"], "same", "{path}: {state}");
        }
        let witness = client.session("witness/w");
        let of_witness = (&witness["phase"], &witness["generation"]);
        assert_eq!(of_witness, (&json!("awake"), &json!(1)), "{path} has touched it");
        assert_eq!(daemon.pid(), pid);
    }
    // Nothing of what was held has come into force.
    applied(&daemon, &witness(&folder));
    assert!(!daemon.folder().join("blobs").exists());
    assert_eq!(client.ask("witness/w", "count"), "turn 2 of life 1");
}

/// How a setting that is in force without a start is seen at work.
enum Seen {
    By(fn()),
    /// By another test, or by none for this reason.
    Otherwise(&'static str),
}

fn seen(path: &str) -> Option<Seen> {
    use Seen::{By, Otherwise};
    Some(match path {
        "server.drain_within" => By(the_drain_gets_its_time),
        "node.starts_at_once" => By(starts_wait_in_line),
        "node.restarts_per_minute" => By(restarts_wait),
        "node.when_no_cgroup" => Otherwise("only where no control group can be made"),
        "node.disk_floor" => By(the_floor_of_the_disk),
        "prices.memory_gib_month" | "prices.currency" => By(prices_are_named),
        "limits.queue_messages" => By(messages_that_wait),
        "limits.queue_size" => By(size_of_what_waits),
        "limits.messages_per_second" => By(rate_of_messages),
        "limits.messages_burst" => By(burst_of_messages),
        "limits.unauthenticated_per_second" => By(strangers),
        "limits.wrong_keys_per_minute" => By(wrong_keys),
        "limits.connections" => By(connections),
        "notify.webhook" => By(a_webhook),
        "notify.command" => By(a_notified_command),
        "secrets.folder" | "secrets.command" => By(secrets_of_the_next_start),
        "files.garbage_after" => Otherwise("garbage is looked for every six hours"),
        "agents.NAME.idle.stop_after" => By(idle_stop),
        "agents.NAME.start.ready_within" => By(ready_within),
        "agents.NAME.turn.stuck_after" => By(stuck_after),
        "agents.NAME.turn.within" => By(turn_within),
        "agents.NAME.turn.attempts" => By(attempts),
        "agents.NAME.turn.retry" => By(retry),
        "agents.NAME.stop.drain_within" => By(drain_of_a_stop),
        "agents.NAME.stop.grace" => By(grace),
        "agents.NAME.restart.window" => Otherwise("ten minutes at least"),
        "agents.NAME.restart.intensity" => By(intensity),
        "agents.NAME.inputs" => By(inputs_from_the_next_turn),
        "agents.NAME.files.keep" => By(kept_checkpoints),
        "agents.NAME.canary.text" | "agents.NAME.canary.expects" => {
            Otherwise("e2e_revisions: a canary turn tries a revision")
        }
        _ => return None,
    })
}

#[test]
fn what_is_declared_live_is_seen_live() {
    let daemon = Setup::new().prepare();
    let settings = settings_of(&daemon).into_iter();
    let live = settings.filter(|(_, effect)| effect == "live" || effect == "next_turn");
    let mut done = Vec::new();
    for (path, _) in live {
        match seen(&path).unwrap_or_else(|| panic!("nothing shows {path} at work")) {
            Seen::Otherwise(reason) => say(&format!("{path}: {reason}")),
            Seen::By(look) if done.contains(&(look as usize)) => {}
            Seen::By(look) => {
                say(&path);
                look();
                done.push(look as usize);
            }
        }
    }
}

/// A daemon with the agent `scripted`, and its file.
struct World {
    daemon: Daemon,
    base: String,
}

impl World {
    fn new(options: &[&str], settings: &str) -> Self {
        let daemon = Setup::new().scripted("scripted", options, settings).start();
        let base = fs::read_to_string(daemon.folder().join("test.toml")).unwrap();
        Self { daemon, base }
    }

    fn client(&self) -> Client {
        self.daemon.client()
    }

    /// More settings, of the agent or, with a table's head, of anything.
    fn apply(&self, more: &str) {
        let outcome = applied(&self.daemon, &format!("{}\n{more}\n", self.base));
        assert_eq!(outcome["is_applied"], true, "{outcome}");
    }

    /// A turn that runs until `touch` of the name.
    fn running(&self, session: &str, name: &str) -> String {
        let text = format!("wait {}", self.daemon.path(name));
        let id = self.client().submit(session, &text);
        self.daemon.turn_begins(&text);
        id
    }

    fn starts(&self) -> usize {
        self.daemon.agent_log().iter().filter(|line| line.what == "started").count()
    }
}

fn the_drain_gets_its_time() {
    let mut world = World::new(&[], "");
    world.running("scripted/a", "go");
    let head = "[server]\n";
    applied(&world.daemon, &world.base.replace(head, &format!("{head}drain_within = \"300ms\"\n")));
    world.daemon.signal(Signal::TERM);
    assert_eq!(world.daemon.has_ended(SOON).code(), Some(12), "turns were left");
}

fn starts_wait_in_line() {
    let world = World::new(&[], "");
    let ready = world.daemon.path("ready");
    let gated = toml_list(&[
        python(),
        &program("scripted.py").display().to_string(),
        "--ready-when",
        &ready,
    ]);
    let gated = format!(
        "[agents.gated]\ncommand = {gated}\nadapter = {{ kind = \"jsonl\", ready = true }}\n\
         env = {{ AGENT_LOG = \"{}\" }}\n",
        world.daemon.path("agents.log")
    );
    world.apply(&format!("{gated}[node]\nstarts_at_once = 1\n"));
    let client = world.client();
    let ids = ["gated/a", "gated/b"].map(|session| client.submit(session, "hello"));
    until("the first to start", || (world.starts() > 0).then_some(()));
    assert_eq!(world.starts(), 1, "the other one waits");
    world.apply(&format!("{gated}[node]\nstarts_at_once = 2\n"));
    until("both to start", || (world.starts() == 2).then_some(()));
    world.daemon.touch("ready");
    ids.iter().for_each(|id| assert_eq!(client.reply(id), "hello"));
}

fn restarts_wait() {
    let world = World::new(&["--die-at-start", "3"], "");
    world.apply("[node]\nrestarts_per_minute = 1");
    let client = world.client();
    for key in ["a", "b", "c"] {
        client.submit(&format!("scripted/{key}"), "hello");
    }
    let waiting = || {
        let text = client.get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with("dormouse_restarts_waiting "));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    until("some to wait", || (waiting() > 0).then_some(()));
    world.apply("[node]\nrestarts_per_minute = 1000");
    until("none to wait", || (waiting() == 0).then_some(()));
}

fn the_floor_of_the_disk() {
    let world = World::new(&[], "");
    assert_eq!(world.client().ask("scripted/a", "hello"), "hello");
    world.apply("[node]\ndisk_floor = \"1000000GiB\"");
    let refused = world.client().submission("scripted/a", "hello").send().error(503);
    assert_eq!(refused, "store_full");
    world.apply("[node]\ndisk_floor = \"1MiB\"");
    assert_eq!(world.client().ask("scripted/a", "hello"), "hello");
}

fn prices_are_named() {
    let world = World::new(&[], "memory = \"64MiB\"");
    let client = world.client();
    client.ended(&client.submit("scripted/a", "eat 80"));
    if client.why("scripted/a")["memory"]["because"].is_null() {
        say("nothing can be learned of memory where control groups are not there");
        return;
    }
    let why = || world.daemon.cli(&["why", "scripted/a"]).ok();
    assert!(!why().contains("dubloons"), "{}", why());
    world.apply("[prices]\nmemory_gib_month = 4\ncurrency = \"dubloons\"");
    assert!(why().contains("dubloons"), "{}", why());
}

fn messages_that_wait() {
    let world = World::new(&[], "");
    world.running("scripted/a", "go");
    let submit = || world.client().submission("scripted/a", "hello").send();
    submit().expect(202);
    submit().expect(202);
    world.apply("[limits]\nqueue_messages = 1");
    assert_eq!(submit().error(429), "queue_full");
    world.apply("");
    submit().expect(202);
}

fn size_of_what_waits() {
    let world = World::new(&[], "");
    world.running("scripted/a", "go");
    let submit = |text: &str| world.client().submission("scripted/a", text).send();
    let large = "x".repeat(600 << 10);
    submit(&large).expect(202);
    submit(&large).expect(202);
    world.apply("[limits]\nqueue_size = \"1MiB\"");
    assert_eq!(submit("hello").error(429), "queue_full");
}

/// How long a sender has to wait after ten messages, of which one was allowed at once.
fn told_to_wait_s(settings: &str) -> u64 {
    let world = World::new(&[], "");
    let submit = || world.client().submission("scripted/a", "hello").send();
    for _ in 0..10 {
        submit().expect(202);
    }
    world.apply(settings);
    let refused = submit();
    assert_eq!(refused.error(429), "too_fast");
    refused.retry_after_s()
}

fn burst_of_messages() {
    assert!(told_to_wait_s("[limits]\nmessages_burst = 1") <= 2);
}

fn rate_of_messages() {
    assert!(told_to_wait_s("[limits]\nmessages_burst = 1\nmessages_per_second = 1") >= 4);
}

fn strangers() {
    let world = World::new(&[], "");
    let stranger = world.client().with_key(None);
    let knock = || stranger.get("/v1/sessions");
    knock().error(401);
    world.apply("[limits]\nunauthenticated_per_second = 1");
    knock();
    assert_eq!(knock().error(429), "too_fast");
}

fn wrong_keys() {
    let world = World::new(&[], "");
    let wrong = world.client().with_key(Some("dm_wrong"));
    let knock = || wrong.get("/v1/sessions");
    knock().error(401);
    knock().error(401);
    world.apply("[limits]\nwrong_keys_per_minute = 1");
    assert_eq!(knock().error(429), "too_fast");
}

fn connections() {
    let world = World::new(&[], "");
    let address = world.client().address;
    let file = world.daemon.folder().join("test.toml");
    let knock = || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        socket
    };
    // Places that were ready for the next ones when the limit came are still given.
    let mut held: Vec<TcpStream> = (0..3).map(|_| knock()).collect();
    world.apply("[limits]\nconnections = 2");
    let mut waiting = until("somebody for whom there is no place", || {
        // The kernel takes it; nobody reads from it.
        let mut socket = knock();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        match socket.read_exact(&mut [0]) {
            Ok(()) => {
                held.push(socket);
                None
            }
            Err(_) => Some(socket),
        }
    });
    fs::write(file, format!("{}\n[limits]\nconnections = 100\n", world.base)).unwrap();
    waiting.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = [0; 12];
    waiting.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

fn gives_up_a_message(world: &World) {
    let client = world.client();
    let ended = client.ended(&client.submit("scripted/a", "fail this"));
    assert_eq!(ended["state"], "dead", "{ended}");
}

fn a_webhook() {
    let world = World::new(&[], "");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/told", listener.local_addr().unwrap());
    world.apply(&format!("[notify]\nwebhook = \"{url}\""));
    gives_up_a_message(&world);
    let (mut told, _) = listener.accept().unwrap();
    told.set_read_timeout(Some(SOON)).unwrap();
    let mut head = [0; 10];
    told.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"POST /told");
}

fn a_notified_command() {
    let world = World::new(&[], "");
    let told = world.daemon.folder().join("told");
    let script = format!("cat > {}", told.display());
    world.apply(&format!("[notify]\ncommand = [\"sh\", \"-c\", \"{script}\"]"));
    gives_up_a_message(&world);
    until("the command to be told", || {
        fs::read_to_string(&told).ok().filter(|text| text.contains("dead_letter"))
    });
}

fn secrets_of_the_next_start() {
    let world = World::new(&[], "");
    let folder = world.daemon.folder().join("kept");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("KEY"), "from a file").unwrap();
    let agent = "[agents.b]\ncommand = [\"sh\", \"-c\", \"echo $KEY\"]\n\
                 adapter = { kind = \"exec\" }\nsecrets = [\"KEY\"]\n[secrets]\n";
    world.apply(&format!("{agent}command = [\"echo\", \"asked for {{name}}\"]"));
    let client = world.client();
    assert_eq!(client.ask("b/a", "hello"), "asked for KEY\n");
    world.apply(&format!("{agent}folder = \"{}\"", folder.display()));
    assert_eq!(client.ask("b/a", "hello"), "asked for KEY\n", "it was started with that");
    assert_eq!(client.ask("b/b", "hello"), "from a file\n");
}

fn idle_stop() {
    let world = World::new(&[], "");
    assert_eq!(world.client().ask("scripted/a", "hello"), "hello");
    world.apply("idle.stop_after = \"300ms\"");
    world.client().phase_becomes("scripted/a", "asleep");
}

fn ready_within() {
    let world = World::new(&["--ready-when", "/no/such/file"], "");
    world.client().submit("scripted/a", "hello");
    until("it to start", || (world.starts() > 0).then_some(()));
    world.apply("start.ready_within = \"300ms\"");
    until("it to be given up", || {
        let why = world.client().why("scripted/a");
        (why["last_exit"]["cause"] == "start_timeout").then_some(())
    });
}

/// A turn under a short limit that is raised while it runs is answered; under one that is lowered
/// too, and the next one is not.
fn limits_a_turn(setting: &str, word: &str, text: &str) {
    let short = format!("turn.{setting} = \"800ms\"\nturn.attempts = 1");
    let world = World::new(&[], &short);
    let client = world.client();
    let runs = |id: &str| client.ended(id)["state"].clone();
    let begun = |count: usize| {
        let id = client.submit("scripted/a", text);
        until("it to begin", || (world.daemon.turns_with(text).len() == count).then_some(()));
        id
    };
    let first = begun(1);
    let with = |limit: &str| world.base.replace("800ms", limit);
    applied(&world.daemon, &with("1h"));
    assert_eq!(runs(&first), "answered", "the limit was raised in time");
    let second = begun(2);
    applied(&world.daemon, &with("300ms"));
    assert_eq!(runs(&second), "answered", "it began under the longer limit");
    let third = begun(3);
    assert_eq!(runs(&third), "dead");
    let journal = client.journal("scripted/a");
    assert_eq!(decisions(&journal, word).len(), 1, "{journal:?}");
}

fn stuck_after() {
    limits_a_turn("stuck_after", "turn_stuck", "quiet 1500");
}

fn turn_within() {
    limits_a_turn("within", "turn_too_long", "stream 150 10");
}

fn attempts() {
    let world = World::new(&[], "");
    world.apply("turn.attempts = 1");
    let client = world.client();
    let ended = client.ended(&client.submit("scripted/a", "crash 3"));
    assert_eq!((&ended["state"], &ended["attempts"]), (&json!("dead"), &json!(1)));
}

fn retry() {
    let world = World::new(&[], "");
    world.apply("turn.retry = \"ask\"");
    let client = world.client();
    let ended = client.ended(&client.submit("scripted/a", "crash 3"));
    assert_eq!((&ended["state"], &ended["cause"]), (&json!("dead"), &json!("ambiguous")));
}

fn drain_of_a_stop() {
    let world = World::new(&[], "");
    world.running("scripted/a", "go");
    world.client().request("scripted/a", "stop");
    world.client().phase_becomes("scripted/a", "draining");
    world.apply("stop.drain_within = \"300ms\"");
    until("the drain to be over", || {
        let journal = world.client().journal("scripted/a");
        (!decisions(&journal, "drain_time_up").is_empty()).then_some(())
    });
}

fn grace() {
    let world = World::new(&["--ignore-sigterm"], "stop.grace = \"1h\"");
    assert_eq!(world.client().ask("scripted/a", "hello"), "hello");
    let base = world.base.replace("\"1h\"", "\"300ms\"");
    assert_eq!(applied(&world.daemon, &base)["is_applied"], true);
    world.client().request("scripted/a", "stop");
    world.client().phase_becomes("scripted/a", "asleep");
}

fn intensity() {
    let world = World::new(&[], "");
    world.apply("restart.intensity = 1");
    world.client().submit("scripted/a", "crash 3");
    world.client().phase_becomes("scripted/a", "tripped");
}

fn inputs_from_the_next_turn() {
    let world = World::new(&[], "");
    let client = world.client();
    let first = world.running("scripted/a", "go");
    world.apply("inputs = [{ path = \"data\", required = [\"*.csv\"] }]");
    world.daemon.touch("go");
    assert_eq!(client.reply(&first), "waited");
    let ended = client.ended(&client.submit("scripted/a", "hello"));
    assert_eq!(ended["cause"], "input_missing", "{ended}");
}

fn kept_checkpoints() {
    let world = World::new(&[], "");
    let client = world.client();
    let count = || {
        let listed = client.get("/v1/sessions/scripted/a/checkpoints").expect(200);
        listed.as_array().map_or(0, Vec::len)
    };
    let turn = |number: usize| {
        let file = json!({"path": format!("f{number}"), "text": number.to_string()});
        let body = json!({"text": "hello", "attachments": [file]});
        let call: Call = client.call("POST", "/v1/sessions/scripted/a/messages").json(&body);
        let id = call.send().expect(202)["message_id"].as_str().unwrap().to_owned();
        assert_eq!(client.reply(&id), "hello");
    };
    for number in 0..3 {
        turn(number);
        until("a checkpoint more", || (count() > number).then_some(()));
    }
    world.apply("files.keep = 1");
    turn(3);
    until("one to be left", || (count() == 1).then_some(()));
}

//! One daemon takes over from another: no request fails, no turn ends, no stream has a gap; and a
//! new one that is no good leaves the old one serving.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use support::http::Client;
use support::processes::Process;
use support::scratch::say;
use support::{Daemon, SOON, Setup, until};

fn setup() -> Daemon {
    Setup::new()
        .config("[limits]\nmessages_per_second = 100000\nmessages_burst = 100000")
        .scripted("scripted", &[], "")
        .start()
}

/// The process that took over from the last one; ended with the test.
struct Successor(Process);

impl Drop for Successor {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// An upgrade to this very program, which must succeed.
#[track_caller]
fn upgraded(daemon: &mut Daemon) -> Successor {
    let printed = daemon.offline(&["upgrade", "--json", "--exec", support::cli::program()]);
    let stages = printed.json_lines();
    let done = stages.last().expect("a last stage");
    assert_eq!(done["stage"], "done", "{stages:?}\n{}", daemon.log());
    say(&format!("a hand-over: requests waited {} ms", done["paused_ms"]));
    let pid = i32::try_from(done["pid"].as_i64().expect("its number")).unwrap();
    Successor(Process::of(pid).expect("it lives"))
}

/// One HTTP/1.1 exchange on an open connection.
fn exchange(socket: &mut TcpStream, request: &str) -> std::io::Result<(u16, Vec<u8>, bool)> {
    socket.write_all(request.as_bytes())?;
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        if socket.read(&mut byte)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&text).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let field = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
    };
    let length = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok((status, body, field("connection").as_deref() == Some("close")))
}

/// Hands in messages, one after the other, and counts what goes wrong.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// `new`: a connection each; else one for all, opened anew only where the server said so.
    fn start(address: SocketAddr, key: &str, clients: usize, new: bool) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..clients).map(|number| {
            let (stop, done, key) = (Arc::clone(&stop), Arc::clone(&done), key.to_owned());
            thread::spawn(move || {
                let mut failures = Vec::new();
                let mut open: Option<TcpStream> = None;
                let mut round = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let body = json!({ "text": format!("{new} {number} {round}") }).to_string();
                    let request = format!(
                        "POST /v1/sessions/scripted/load-{number}/messages HTTP/1.1\r\n\
                         host: test\r\nauthorization: Bearer {key}\r\n\
                         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let result = match open.take() {
                        Some(socket) => Ok(socket),
                        None => TcpStream::connect(address),
                    };
                    let result = result.and_then(|mut socket| {
                        socket.set_read_timeout(Some(SOON))?;
                        let (status, body, closes) = exchange(&mut socket, &request)?;
                        if !closes && !new {
                            open = Some(socket);
                        }
                        Ok((status, body))
                    });
                    match result {
                        Ok((202, _)) => drop(done.fetch_add(1, Ordering::Relaxed)),
                        // The line of one session is full: the load is more than the agent's.
                        Ok((429, _)) => thread::sleep(Duration::from_millis(5)),
                        Ok((status, body)) => {
                            failures.push(format!("{status} {}", String::from_utf8_lossy(&body)))
                        }
                        Err(error) => failures.push(error.to_string()),
                    }
                }
                failures
            })
        });
        Self { threads: threads.collect(), stop, done }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    #[track_caller]
    fn has_grown(&self, what: &str) {
        let before = self.done();
        until(what, || (self.done() > before + 20).then_some(()));
    }

    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|one| one.join().expect("a client")).collect()
    }
}

fn address_of(daemon: &Daemon) -> SocketAddr {
    let text = std::fs::read_to_string(daemon.data().join("address")).expect("it is noted");
    text.parse().expect("an address")
}

/// Follows a message over as many daemons as it takes; gives the text of all deltas and the reply.
fn followed(client: Client, id: String) -> (String, String) {
    let mut last: Option<String> = None;
    let mut text = String::new();
    loop {
        let seen = client.follow(&id, last.as_deref()).rest_until_broken();
        text.push_str(&seen.text());
        last = seen.last_id().map(str::to_owned).or(last);
        if let Some(done) = seen.of("done").first() {
            return (text, done.data["reply"].as_str().unwrap_or_default().to_owned());
        }
    }
}

/// How much of it, for whoever wants more: DORMOUSE_HANDOVERS, DORMOUSE_CLIENTS of each kind,
/// DORMOUSE_TURNS, and DORMOUSE_STREAMS of each turn.
fn amount(name: &str, standard: usize) -> usize {
    let text = std::env::var(format!("DORMOUSE_{name}")).ok();
    text.map_or(standard, |text| text.parse().expect("a whole number"))
}

#[test]
fn under_load_no_request_fails_no_turn_ends_and_no_stream_has_a_gap() {
    let (hand_overs, clients) = (amount("HANDOVERS", 3), amount("CLIENTS", 3));
    let mut daemon = setup();
    let client = daemon.client();
    let (address, key) = (address_of(&daemon), daemon.operator_key().to_owned());
    let ids: Vec<String> = (0..amount("TURNS", 4))
        .map(|n| {
            let text = format!("stream-until {}", daemon.path("enough"));
            client.submit(&format!("scripted/stream-{n}"), &text)
        })
        .collect();
    until("all turns to run", || {
        (daemon.turns_with("stream-until").len() == ids.len()).then_some(())
    });
    let streams: Vec<_> = ids
        .iter()
        .flat_map(|id| std::iter::repeat_n(id, amount("STREAMS", 1)))
        .map(|id| (daemon.client(), id.clone()))
        .map(|(client, id)| thread::spawn(move || followed(client, id)))
        .collect();
    let loads = [true, false].map(|new| Load::start(address, &key, clients, new));
    let mut successors = Vec::new();
    for _ in 0..hand_overs {
        loads.iter().for_each(|load| load.has_grown("requests before the hand-over"));
        successors.push(upgraded(&mut daemon));
        loads.iter().for_each(|load| load.has_grown("requests after the hand-over"));
    }
    assert_eq!(daemon.has_ended(SOON).code(), Some(0), "the first one has ended");
    daemon.touch("enough");
    for load in loads {
        let failures = load.end();
        assert!(failures.is_empty(), "{failures:?}\n{}", daemon.log());
    }
    for stream in streams {
        let (text, reply) = stream.join().expect("a stream");
        assert_eq!(text, reply, "without gap or repeat");
        assert!(reply.split_whitespace().count() > 1, "{reply}");
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(client.message(id)["attempts"], 1);
        assert_eq!(client.generation(&format!("scripted/stream-{n}")), 1);
    }
    assert_eq!(daemon.turns_with("stream-until").len(), ids.len(), "each ran once");
}

#[test]
fn a_connection_that_is_idle_is_still_open_after_the_hand_over() {
    let mut daemon = setup();
    let mut open = TcpStream::connect(address_of(&daemon)).expect("it listens");
    open.set_read_timeout(Some(SOON)).unwrap();
    let request = "GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n";
    assert_eq!(exchange(&mut open, request).expect("an answer").0, 200);
    let mut fresh = TcpStream::connect(address_of(&daemon)).expect("it listens");
    fresh.set_read_timeout(Some(SOON)).unwrap();
    // Half of a request is read by the one, and the other half by the next.
    open.write_all(&request.as_bytes()[..20]).unwrap();
    let _successor = upgraded(&mut daemon);
    assert_eq!(exchange(&mut open, &request[20..]).expect("an answer").0, 200);
    assert_eq!(exchange(&mut fresh, request).expect("an answer").0, 200);
}

/// A program that is no good, in the test's folder.
fn bad(daemon: &Daemon, name: &str, script: &str) -> String {
    let path = daemon.folder().join(name);
    std::fs::write(&path, script).expect("the test's folder can be written");
    let mode = if name == "plain" { 0o644 } else { 0o755 };
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.display().to_string()
}

/// Speaks as a new daemon does: says what is given, a line each, and then acts.
fn speaker(says: &[Value], then: &str) -> String {
    let says: Vec<String> = says.iter().map(Value::to_string).collect();
    format!(
        "#!{}\nimport os, socket, sys, time\nline = socket.socket(fileno=0)\n\
         for text in {says:?}:\n    line.send(text.encode())\n{then}\n",
        support::agents::python()
    )
}

fn prepared(schema: u64) -> Value {
    json!({ "say": "prepared", "protocol": 1, "version": "9.9.9", "schema": schema })
}

#[test]
fn a_new_one_that_is_no_good_leaves_the_old_one_serving() {
    let mut daemon = setup();
    let client = daemon.client();
    let running = client.submit("scripted/busy", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    let schema = u64::try_from(daemon.count("PRAGMA user_version")).unwrap();
    let wait_for_yours = "while b'yours' not in line.recv(65536): pass";
    let taken_and_lost = speaker(&[prepared(schema)], &format!("{wait_for_yours}\nsys.exit(3)"));
    let fails_late =
        format!("{wait_for_yours}\nline.send(b'{{\"say\": \"failed\", \"why\": \"no luck\"}}')");
    let cases = [
        ("plain", String::new(), "cannot be executed"),
        ("exits", "#!/bin/sh\nexit 7\n".to_owned(), "exit status: 7"),
        ("garbage", speaker(&[json!("hello")], "time.sleep(60)"), "not understood"),
        ("newer", speaker(&[prepared(schema + 1)], "time.sleep(60)"), "changes the store"),
        ("older", speaker(&[prepared(schema - 1)], "time.sleep(60)"), "too old for the store"),
        ("lost", taken_and_lost, "before it was healthy (exit status: 3)"),
        ("late", speaker(&[prepared(schema)], &fails_late), "no luck"),
        ("mute", speaker(&[], "time.sleep(60)"), "not prepared within"),
        ("hangs", speaker(&[prepared(schema)], "time.sleep(60)"), "not healthy within"),
    ];
    let pid = daemon.pid();
    for (name, script, why) in cases {
        let path = bad(&daemon, name, &script);
        let printed = daemon.offline(&["upgrade", "--within", "2s", "--exec", &path]);
        assert_eq!(printed.code, Some(1), "{name}: {printed:?}");
        assert!(printed.err.contains(why), "{name}: {printed:?}");
        assert!(daemon.is_running() && daemon.pid() == pid, "{name}");
        let text = format!("after {name}");
        assert_eq!(client.ask("scripted/other", &text), text, "it serves on");
    }
    daemon.touch("go");
    assert_eq!(client.reply(&running), "waited");
    assert_eq!(daemon.turns_with("wait").len(), 1, "it ran once");
    let _successor = upgraded(&mut daemon);
    assert_eq!(daemon.client().ask("scripted/other", "again"), "again");
}

#[test]
fn without_a_daemon_there_is_nothing_to_upgrade() {
    let daemon = Setup::new().prepare();
    let printed = daemon.offline(&["upgrade"]);
    assert_eq!(printed.code, Some(3), "{printed:?}");
}

#[test]
fn a_second_upgrade_at_the_same_time_is_refused() {
    let mut daemon = setup();
    let script = format!("#!/bin/sh\ntouch {}\nexec sleep 60\n", daemon.path("began"));
    let slow = bad(&daemon, "slow", &script);
    let mut first = support::cli::command(daemon.folder());
    first.args(["upgrade", "--within", "3s", "--exec", &slow]).arg("--data").arg(daemon.data());
    let mut first = first.spawn().expect("the program can be executed");
    until("the first upgrade to begin", || daemon.folder().join("began").exists().then_some(()));
    let second = daemon.offline(&["upgrade", "--exec", support::cli::program()]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.err.contains("another upgrade is under way"), "{second:?}");
    assert_eq!(first.wait().expect("it is a child").code(), Some(1));
    let _successor = upgraded(&mut daemon);
}

#[test]
fn an_old_one_that_is_killed_takes_an_unfinished_new_one_along_and_the_next_start_has_it_all() {
    let mut daemon = setup();
    let running = daemon.client().submit("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    // The real program, held up before it says that it is prepared.
    let (held, go_on) = (daemon.path("held"), daemon.path("go-on"));
    let script = format!(
        "#!/bin/sh\necho $$ > {held}.new; mv {held}.new {held}\n\
         while [ ! -e {go_on} ]; do sleep 0.01; done\nexec {} \"$@\"\n",
        support::cli::program()
    );
    let slow = bad(&daemon, "slow", &script);
    let upgrade = {
        let mut command = support::cli::command(daemon.folder());
        command.args(["upgrade", "--exec", &slow]).arg("--data").arg(daemon.data());
        command.spawn().expect("the program can be executed")
    };
    let new = until("the new one to begin", || {
        let pid = std::fs::read_to_string(&held).ok()?.trim().parse().ok()?;
        Process::of(pid)
    });
    daemon.kill();
    daemon.touch("go-on");
    new.is_gone_soon("the new one");
    let told = upgrade.wait_with_output().expect("it is a child");
    assert_ne!(told.status.code(), Some(0));
    daemon.start_again();
    daemon.touch("go");
    assert_eq!(daemon.client().reply(&running), "waited");
    assert_eq!(daemon.turns_with("wait").len(), 1, "it ran once");
}

#[test]
fn a_socket_that_systemd_has_opened_is_served_and_handed_over() {
    let scratch = Setup::new();
    let script = scratch.folder().join("activate.py");
    let noted = scratch.folder().join("port");
    let text = format!(
        "import os, socket, sys\n\
         s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen(64)\n\
         open({noted:?}, 'w').write(str(s.getsockname()[1]))\n\
         if s.fileno() != 3:\n    os.dup2(s.fileno(), 3)\n\
         os.set_inheritable(3, True)\n\
         os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n\
         os.execv(sys.argv[1], sys.argv[1:])\n"
    );
    std::fs::write(&script, text).expect("the test's folder can be written");
    let script = script.display().to_string();
    let mut daemon = scratch
        .through(&[support::agents::python(), &script])
        .scripted("scripted", &[], "")
        .start();
    let port: u16 = std::fs::read_to_string(noted).unwrap().parse().unwrap();
    assert_eq!(address_of(&daemon).port(), port, "not the one of the config");
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 1 of life 1");
    let _successor = upgraded(&mut daemon);
    assert_eq!(address_of(&daemon).port(), port);
    assert_eq!(daemon.client().ask("scripted/a", "count"), "turn 2 of life 1");
}

#[test]
fn a_command_that_follows_a_message_sees_its_whole_reply_over_a_hand_over() {
    let mut daemon = setup();
    let text = format!("stream-until {}", daemon.path("enough"));
    let follower = {
        let mut command = support::cli::command(daemon.folder());
        command.args(["send", "--stream", "scripted/a", &text]).arg("--data").arg(daemon.data());
        command.env("DORMOUSE_KEY", daemon.operator_key());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().expect("the program can be executed")
    };
    daemon.turn_begins("stream-until");
    let _successor = upgraded(&mut daemon);
    daemon.touch("enough");
    let printed = follower.wait_with_output().expect("it is a child");
    let text = String::from_utf8_lossy(&printed.stdout);
    assert_eq!(printed.status.code(), Some(0), "{}", String::from_utf8_lossy(&printed.stderr));
    let numbers: Vec<usize> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "without gap or repeat");
}

#[test]
fn a_service_manager_is_told_of_the_drain_and_of_the_new_main_process() {
    let setup = Setup::new();
    let path = setup.folder().join("notify");
    let heard = std::os::unix::net::UnixDatagram::bind(&path).expect("a short path");
    heard.set_read_timeout(Some(SOON)).unwrap();
    let hears = |wanted: &str| {
        let mut bytes = [0; 4096];
        loop {
            let count = heard.recv(&mut bytes).unwrap_or_else(|e| panic!("no {wanted}: {e}"));
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
    };
    let notify = path.display().to_string();
    let mut daemon =
        setup.environment("NOTIFY_SOCKET", &notify).scripted("scripted", &[], "").start();
    hears("READY=1");
    let successor = upgraded(&mut daemon);
    hears(&format!("MAINPID={}", successor.0.pid));
    assert_eq!(daemon.has_ended(SOON).code(), Some(0));
    let client = Client { address: address_of(&daemon), key: Some(daemon.operator_key().into()) };
    let id = client.submit("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    successor.0.signal(rustix::process::Signal::TERM);
    hears("STOPPING=1");
    assert!(hears("EXTEND_TIMEOUT_USEC=").contains("STATUS=waiting for 1 turn: scripted/a, "));
    daemon.touch("go");
    assert_eq!(client.reply(&id), "waited");
    successor.0.is_gone_soon("the new one, after its turn");
}

/// The daemons of a data folder that live, old and new.
fn daemons(daemon: &Daemon) -> Vec<Process> {
    let data = daemon.data().display().to_string();
    let entries = std::fs::read_dir("/proc").expect("/proc is there").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let serves = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&&b"serve"[..]) && words.contains(&data.as_bytes())
    };
    pids.filter(serves).filter_map(Process::of).filter(Process::is_alive).collect()
}

fn is_ready(daemon: &Daemon) -> bool {
    let ready = daemon.call("GET", "/readyz").try_send();
    ready.is_ok_and(|ready| ready.status == 200)
}

/// Kills one of the two `after` the upgrade was asked for, and sees what is left through.
fn killed_on_the_way(after: Duration, victim_is_old: bool) {
    let mut daemon = setup();
    let client = daemon.client();
    let running = client.submit("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    let waiting = client.submit("scripted/a", "behind it");
    let mut upgrade = support::cli::command(daemon.folder());
    upgrade.args(["upgrade", "--exec", support::cli::program()]).arg("--data").arg(daemon.data());
    let mut upgrade = upgrade.spawn().expect("the program can be executed");
    let old = Process::of(daemon.pid()).expect("it lives");
    // Any moment will do: this is where the kill falls, and nothing waits for it.
    thread::sleep(after);
    if victim_is_old {
        old.kill();
    } else {
        daemons(&daemon).iter().filter(|one| one.pid != old.pid).for_each(Process::kill);
    }
    upgrade.wait().expect("it is a child");
    let serves = until("somebody to serve, or nobody to be left", || {
        let alive: Vec<_> = daemons(&daemon);
        let is_serving = is_ready(&daemon) && !(victim_is_old && alive.contains(&old));
        (is_serving || alive.is_empty()).then_some(is_serving)
    });
    say(&format!(
        "killed the {} one after {after:?}: {}",
        if victim_is_old { "old" } else { "new" },
        if serves { "the other serves" } else { "nobody serves" }
    ));
    if !old.is_alive() {
        daemon.has_ended(SOON);
    }
    if !serves {
        daemon.start_again();
    }
    daemon.touch("go");
    let client = Client { address: address_of(&daemon), key: Some(daemon.operator_key().into()) };
    assert_eq!(client.reply(&running), "waited", "{}", daemon.log());
    assert_eq!(client.reply(&waiting), "behind it", "{}", daemon.log());
    assert_eq!(daemon.turns_with("wait").len(), 1, "it ran once");
    daemons(&daemon).iter().filter(|one| one.pid != old.pid).for_each(Process::kill);
}

#[test]
fn whichever_is_killed_at_any_moment_the_other_serves_or_the_next_start_has_it_all() {
    for millis in [10, 25, 35, 45, 60] {
        for victim_is_old in [true, false] {
            killed_on_the_way(Duration::from_millis(millis), victim_is_old);
        }
    }
}

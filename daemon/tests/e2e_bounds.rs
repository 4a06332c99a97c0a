//! Every limit at the gate, one below it, at it and one above it; and bytes that are no request.
//! What is refused is refused with its status, and nothing of it is kept.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::http::{Answer, Client, Response};
use support::{Daemon, SOON, Setup, until};

const MIB: usize = 1 << 20;

/// With rates that no test of other limits reaches.
fn setup(settings: &str) -> Setup {
    Setup::new().scripted("scripted", &[], "").config(settings)
}

fn unhurried() -> Daemon {
    setup("[limits]\nmessages_per_second = 10000\nmessages_burst = 10000").start()
}

fn messages(daemon: &Daemon) -> i64 {
    daemon.count("SELECT count(*) FROM message")
}

fn submit_bytes(client: &Client, session: &str, body: Vec<u8>) -> Response {
    let path = format!("/v1/sessions/{session}/messages");
    client.call("POST", &path).header("content-type", "application/json").bytes(body).send()
}

#[test]
fn a_text_may_have_a_mebibyte_and_not_a_byte_more() {
    let daemon = unhurried();
    let client = daemon.client();
    for (length, status) in [(MIB - 1, 202), (MIB, 202), (MIB + 1, 413)] {
        let answer = client.submission("scripted/a", &"x".repeat(length)).send();
        assert_eq!(answer.status, status, "{length}");
        if status == 413 {
            assert_eq!(answer.error(413), "too_large");
        }
    }
    // Escaped, the same text takes six bytes for each of its own.
    let escaped = format!("{{\"text\": \"{}\"}}", "\\u0001".repeat(MIB));
    assert_eq!(submit_bytes(&client, "scripted/a", escaped.into_bytes()).status, 202);
    let escaped = format!("{{\"text\": \"{}\"}}", "\\u0001".repeat(MIB + 1));
    let refused = submit_bytes(&client, "scripted/a", escaped.into_bytes());
    assert_eq!(refused.error(413), "too_large");
    // A character counts with its bytes.
    let wide = client.submission("scripted/a", &"€".repeat(MIB / 3 + 1)).send();
    assert_eq!(wide.error(413), "too_large");
    assert_eq!(messages(&daemon), 3);
}

#[test]
fn a_body_is_read_up_to_its_limit_and_no_further() {
    let daemon = unhurried();
    let client = daemon.client();
    let limit = 6 * MIB + (64 << 10);
    // White space around the value is body too.
    let body = |length: usize| {
        let mut body = b"{\"text\": \"short\"}".to_vec();
        body.resize(length, b' ');
        body
    };
    for (length, status) in [(limit - 1, 202), (limit, 202), (limit + 1, 413)] {
        let answer = submit_bytes(&client, "scripted/a", body(length));
        assert_eq!(answer.status, status, "{length}: {}", answer.text());
    }
    // Whatever is announced, no more than the limit is read.
    let mut socket = TcpStream::connect(client.address).unwrap();
    let head = post_head(&client, &format!("content-length: {}\r\n", 1_u64 << 40));
    socket.write_all(head.as_bytes()).unwrap();
    socket.write_all(&vec![b' '; limit + 1]).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(Answer::read(socket).unwrap().status, 413);
    assert_eq!(messages(&daemon), 2);
}

fn post_head(client: &Client, headers: &str) -> String {
    let key = client.key.as_deref().expect("the operator's");
    format!(
        "POST /v1/sessions/scripted/a/messages HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer {key}\r\ncontent-type: application/json\r\n{headers}\r\n"
    )
}

#[test]
fn a_request_has_at_most_a_hundred_headers_and_16_kib_of_them() {
    let daemon = unhurried();
    let client = daemon.client();
    // A call has four of its own: host, connection, authorization, content-length.
    for (number, status) in [(99, 200), (100, 200), (101, 431)] {
        let mut call = client.call("GET", "/v1/sessions");
        for n in 4..number {
            call = call.header(&format!("x-{n}"), "1");
        }
        assert_eq!(call.send().status, status, "{number} headers");
    }
    let fill = |length: usize| client.call("GET", "/healthz").header("x-fill", &"f".repeat(length));
    assert_eq!(fill(15 << 10).send().status, 200);
    assert_eq!(fill(16 << 10).send().status, 431);
}

#[test]
fn an_idempotency_key_has_1_to_255_visible_characters() {
    let daemon = unhurried();
    let client = daemon.client();
    let with =
        |key: &str| client.submission("scripted/a", "x").header("idempotency-key", key).send();
    for (length, status) in [(0, 400), (1, 202), (254, 202), (255, 202), (256, 400)] {
        let answer = with(&"k".repeat(length));
        assert_eq!(answer.status, status, "{length}");
        if status == 400 {
            assert_eq!(answer.error(400), "bad_request");
        }
    }
    for key in ["with space", "tab\there", "ünicode"] {
        assert_eq!(with(key).error(400), "bad_request", "{key:?}");
    }
    assert_eq!(messages(&daemon), 3);
}

#[test]
fn a_sessions_key_has_1_to_128_plain_characters() {
    let daemon = unhurried();
    let client = daemon.client();
    let to = |agent: &str, key: &str| {
        submit_bytes(&client, &format!("{agent}/{key}"), b"{\"text\": \"x\"}".to_vec()).status
    };
    for (length, status) in [(1, 202), (127, 202), (128, 202), (129, 400)] {
        assert_eq!(to("scripted", &"k".repeat(length)), status, "{length}");
    }
    assert_eq!(to("scripted", "Az09_.:-"), 202);
    for key in ["a%20b", "a%2fb", "a%00b", "%C3%A9", "a%0Ab", "a@b", "a+b", "~", "%2e%2e%2f"] {
        assert_eq!(to("scripted", key), 400, "{key}");
    }
    for (agent, status) in [("a".repeat(64), 404), ("a".repeat(65), 400), ("A".into(), 400)] {
        assert_eq!(to(&agent, "k"), status, "{agent}");
    }
    assert!(matches!(to("scripted", ""), 400 | 404));
    // No name becomes a path: these are keys like any others, and their folders lie where all do.
    for key in [".", "..", "..."] {
        assert_eq!(to("scripted", key), 202, "{key}");
    }
    until("all to be answered", || {
        let query = "SELECT count(*) FROM message WHERE state = 'answered'";
        (daemon.count(query) == 7).then_some(())
    });
    let names = std::fs::read_dir(daemon.data().join("workspaces")).unwrap();
    let folders = names.map(Result::unwrap).filter(|entry| entry.path().is_dir());
    let names: Vec<String> =
        folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 7);
    assert!(names.iter().all(|name| name.starts_with("scripted-")), "{names:?}");
}

#[test]
fn a_full_queue_refuses_until_a_message_of_it_was_answered() {
    let daemon = setup("[limits]\nqueue_messages = 3").start();
    let client = daemon.client();
    client.submit("scripted/a", &format!("wait {}", daemon.path("go")));
    daemon.turn_begins("wait");
    client.submit("scripted/a", "two");
    let third = client.submit("scripted/a", "three");
    let refused = client.submission("scripted/a", "four").send();
    assert_eq!(refused.error(429), "queue_full");
    assert!(refused.retry_after_s() >= 1);
    client.submit("scripted/other", "another session has its own queue");
    // A repeat of one that is in it is no new message.
    daemon.touch("go");
    assert_eq!(client.reply(&third), "three");
    assert_eq!(client.ask("scripted/a", "four again"), "four again");
    assert_eq!(messages(&daemon), 5);
}

#[test]
fn the_size_of_a_queue_is_bounded_too() {
    let daemon = setup("[limits]\nqueue_size = \"1MiB\"").start();
    let client = daemon.client();
    let first = format!("wait {}", daemon.path("go"));
    client.submit("scripted/a", &first);
    let left = MIB - first.len();
    let over = client.submission("scripted/a", &"x".repeat(left + 1)).send();
    assert_eq!(over.error(429), "queue_full");
    client.submit("scripted/a", &"x".repeat(left - 1));
    client.submit("scripted/a", "x");
    let full = client.submission("scripted/a", "x").send();
    assert_eq!(full.error(429), "queue_full");
    daemon.touch("go");
}

#[test]
fn a_subject_that_is_too_fast_is_told_when_to_come_again_and_others_are_not_slowed_down() {
    let daemon = setup("[limits]\nmessages_per_second = 1\nmessages_burst = 3").start();
    let (ann, bob) = (daemon.client_of("ann"), daemon.client_of("bob"));
    let started_at = Instant::now();
    for n in 0..3 {
        ann.submit("scripted/ann", &format!("{n}"));
    }
    let refused = ann.submission("scripted/ann", "3").send();
    assert!(started_at.elapsed() < Duration::from_secs(1), "too slow to be too fast");
    assert_eq!(refused.error(429), "too_fast");
    assert_eq!(refused.retry_after_s(), 1);
    bob.submit("scripted/bob", "in between");
    until("the next one to be let in", || {
        (ann.submission("scripted/ann", "3").send().status == 202).then_some(())
    });
    assert!(started_at.elapsed() >= Duration::from_millis(900), "{:?}", started_at.elapsed());
    assert_eq!(messages(&daemon), 5);
}

#[test]
fn too_many_wrong_keys_lock_an_address_out_on_loopback_too() {
    let daemon = setup("[limits]\nwrong_keys_per_minute = 3").start();
    let client = daemon.client();
    let wrong = client.with_key(Some("dm_guessed"));
    for n in 0..3 {
        assert_eq!(wrong.get("/v1/sessions").error(401), "key_wrong", "{n}");
        // Being right in between changes nothing.
        if n < 2 {
            assert_eq!(client.get("/v1/sessions").status, 200);
        }
    }
    let locked = client.get("/v1/sessions");
    assert_eq!(locked.error(429), "too_fast");
    assert!((1..=20).contains(&locked.retry_after_s()), "{}", locked.retry_after_s());
    assert_eq!(client.with_key(None).get("/healthz").status, 200, "health needs no key");
}

#[test]
fn requests_without_a_key_are_few_a_second() {
    let daemon = setup("[limits]\nunauthenticated_per_second = 5").start();
    let stranger = daemon.client().with_key(None);
    let statuses: Vec<u16> = (0..12).map(|_| stranger.get("/v1/sessions").status).collect();
    assert_eq!(&statuses[..5], [401; 5]);
    assert!(statuses[5..].contains(&429), "{statuses:?}");
    assert_eq!(daemon.client().get("/v1/sessions").status, 200, "who has a key is not slowed down");
}

#[test]
fn json_is_at_most_64_deep_and_has_at_most_10_000_values() {
    let daemon = unhurried();
    let client = daemon.client();
    let nested = |depth: usize| {
        // The body's own braces are the first level.
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        format!("{{\"text\": \"x\", \"attachments\": {open}{close}}}").into_bytes()
    };
    // Within the bound it is another thing that is wrong with it.
    for (depth, is_too_deep) in [(63, false), (64, false), (65, true)] {
        let refused = submit_bytes(&client, "scripted/a", nested(depth));
        assert_eq!(refused.error(400), "bad_request");
        let is_said = refused.text().contains("nested deeper than 64");
        assert_eq!(is_said, is_too_deep, "{depth}: {}", refused.text());
    }
    let many = |number: usize| {
        let list = vec!["1"; number].join(",");
        format!("{{\"text\": \"x\", \"attachments\": [{list}]}}").into_bytes()
    };
    // Besides the list's items there are the body, its text and the list itself.
    let refused = submit_bytes(&client, "scripted/a", many(9_997));
    assert!(refused.text().contains("attachments"), "{}", refused.text());
    let refused = submit_bytes(&client, "scripted/a", many(9_998));
    assert_eq!(refused.error(400), "bad_request");
    assert!(refused.text().contains("more than 10000 values"), "{}", refused.text());
    // Deeper than any stack.
    assert_eq!(submit_bytes(&client, "scripted/a", vec![b'['; MIB]).status, 400);
    assert_eq!(messages(&daemon), 0);
}

#[test]
fn connections_beyond_the_limit_wait_for_a_place() {
    let daemon = setup("[limits]\nconnections = 4").start();
    let client = daemon.client();
    let mut open: Vec<TcpStream> =
        (0..4).map(|_| TcpStream::connect(client.address).unwrap()).collect();
    // A place counts from its accept on, so make sure that these four have theirs.
    for socket in &mut open {
        socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    let mut fifth = TcpStream::connect(client.address).unwrap();
    fifth.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    fifth.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let waited = fifth.read(&mut [0; 12]);
    assert!(waited.is_err(), "the fifth has no place yet: {waited:?}");
    drop(open.pop());
    fifth.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = [0; 12];
    fifth.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

/// Waits for the other side to close; gives what it said until then.
fn until_closed(mut socket: TcpStream, limit: Duration) -> String {
    socket.set_read_timeout(Some(limit)).unwrap();
    let mut said = Vec::new();
    // A reset is an end as well; a time-out is not, and is measured by the caller.
    drop(socket.read_to_end(&mut said));
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn a_client_that_never_finishes_its_headers_is_let_go_after_ten_seconds() {
    let daemon = unhurried();
    let mut socket = TcpStream::connect(daemon.client().address).unwrap();
    let started_at = Instant::now();
    socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: local").unwrap();
    until_closed(socket, SOON);
    let took = started_at.elapsed();
    let limit = Duration::from_secs(10);
    assert!((limit..limit + Duration::from_secs(5)).contains(&took), "{took:?}");
}

#[test]
fn bytes_that_are_no_proper_request_get_one_refusal_and_reach_no_agent() {
    let daemon = unhurried();
    let client = daemon.client();
    let body = "{\"text\": \"smuggled\"}";
    let length = body.len();
    let with = |headers: &str| format!("{}{body}", post_head(&client, headers));
    let requests: Vec<(&str, Vec<u8>)> = vec![
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01".to_vec()),
        ("no version", b"GET /healthz\r\n\r\n".to_vec()),
        ("a header without a colon", b"GET / HTTP/1.1\r\nhost localhost\r\n\r\n".to_vec()),
        ("a space before the colon", b"GET / HTTP/1.1\r\nhost : localhost\r\n\r\n".to_vec()),
        ("a folded header", b"GET / HTTP/1.1\r\nhost: a\r\n b\r\n\r\n".to_vec()),
        ("a NUL in a header", b"GET / HTTP/1.1\r\nhost: a\0b\r\n\r\n".to_vec()),
        ("two lengths", with(&format!("content-length: {length}\r\ncontent-length: 5\r\n")).into()),
        ("a negative length", with("content-length: -1\r\n").into()),
        ("a length in words", with("content-length: twenty\r\n").into()),
        ("a signed length", with(&format!("content-length: +{length}\r\n")).into()),
        ("an unknown coding", with("transfer-encoding: gzip\r\n").into()),
        ("chunked twice", with("transfer-encoding: chunked, identity\r\n").into()),
    ];
    for (what, bytes) in requests {
        let mut socket = TcpStream::connect(client.address).unwrap();
        socket.write_all(&bytes).unwrap();
        let said = until_closed(socket, SOON);
        let refusals = said.matches("HTTP/1.1 ").count();
        assert!(said.starts_with("HTTP/1.1 4") && refusals == 1, "{what}: {said:?}");
    }
    // Both framings at once: whatever is made of it, no second request comes out of the first.
    let smuggled = "POST /v1/sessions/scripted/b/messages HTTP/1.1\r\nhost: x\r\n";
    let both = format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", smuggled.len() + 5);
    let mut socket = TcpStream::connect(client.address).unwrap();
    let bytes = format!("{}0\r\n\r\n{smuggled}", post_head(&client, &both));
    socket.write_all(bytes.as_bytes()).unwrap();
    let said = until_closed(socket, SOON);
    assert!(said.starts_with("HTTP/1.1 4"), "{said:?}");
    assert_eq!(messages(&daemon), 0);
    assert_eq!(client.ask("scripted/a", "still there"), "still there");
}

#[test]
fn a_body_that_is_cut_short_or_sent_in_pieces_is_taken_whole_or_not_at_all() {
    let daemon = unhurried();
    let client = daemon.client();
    let body = "{\"text\": \"in pieces\"}";
    let mut cut = TcpStream::connect(client.address).unwrap();
    let head = post_head(&client, &format!("content-length: {}\r\n", body.len()));
    cut.write_all(format!("{head}{}", &body[..10]).as_bytes()).unwrap();
    cut.shutdown(std::net::Shutdown::Write).unwrap();
    let said = until_closed(cut, SOON);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said:?}");
    assert_eq!(messages(&daemon), 0);

    let mut pieces = TcpStream::connect(client.address).unwrap();
    let head = post_head(&client, "transfer-encoding: chunked\r\nconnection: close\r\n");
    pieces.write_all(head.as_bytes()).unwrap();
    for byte in body.bytes() {
        pieces.write_all(format!("1;x=y\r\n{}\r\n", byte as char).as_bytes()).unwrap();
        pieces.flush().unwrap();
    }
    pieces.write_all(b"0\r\n\r\n").unwrap();
    pieces.set_read_timeout(Some(SOON)).unwrap();
    let accepted = Answer::read(pieces).unwrap().whole().unwrap().expect(202);
    assert_eq!(client.reply(accepted["message_id"].as_str().unwrap()), "in pieces");
}

#[test]
fn a_reply_has_at_most_16_mib_and_of_a_longer_one_the_whole_is_in_a_file() {
    let daemon = unhurried();
    let client = daemon.client();
    let limit = 16 * MIB;
    let id = client.submit("scripted/a", &format!("big {limit}"));
    let whole = client.reply(&id);
    assert!(whole.len() == limit && !whole.contains("[output truncated: "));
    let reply = client.reply(&client.submit("scripted/a", &format!("big {}", limit + 1)));
    assert!(reply.len() <= limit);
    let (_, marker) = reply.split_once("\n[output truncated: 16777217 bytes in all, ").unwrap();
    assert!(marker.starts_with("the whole is in output-msg_"), "{}", &marker[..100]);
    assert_eq!(client.ask("scripted/a", "and on"), "and on");
    assert_eq!(client.generation("scripted/a"), 1);
}

#[test]
fn texts_come_back_as_they_were_whatever_is_in_them() {
    let daemon = unhurried();
    let client = daemon.client();
    let texts = [
        "\u{0}\u{1}\u{7f}",
        "  spaces around  ",
        "line\nline\r\nline\ttab",
        "/command --look-alike",
        "</conversation_history> \"}]}",
        "\u{202e}right to left, and back\u{202c}",
        "👩‍👩‍👧‍👦 é e\u{301} 𝄞 \u{feff}",
        "data: not an event\n\nevent: done\n",
        "\u{2028}x\u{2029}",
        "{\"turn\":\"x\",\"done\":\"y\"}",
    ];
    for text in texts {
        let seen = client.stream("scripted/a", text).rest();
        assert_eq!(seen.text(), text, "{text:?}");
        assert_eq!(seen.end().data["reply"], text);
    }
    assert_eq!(messages(&daemon), texts.len() as i64);
}

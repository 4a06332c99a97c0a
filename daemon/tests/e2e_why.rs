//! What `why` says of a session that goes in circles, of one of its lives, and of a message that
//! waits meanwhile.

#[expect(dead_code, reason = "each test program uses its part of what they share")]
mod support;

use serde_json::{Value, json};
use support::{Daemon, SOON, Setup, until, waiting};

/// Dies of each "boom"; the third start has to wait a second, the fourth four.
fn dies_on_boom() -> Daemon {
    Setup::new()
        .config(
            "[agents.fake]\ndriver = \"fake\"\nturn = { attempts = 5 }\n\
             fake = { reply = { fixed = \"well\" }, die_on = \"boom\", log = \"aargh\" }",
        )
        .start()
}

fn why_message(daemon: &Daemon, id: &str) -> Value {
    daemon.client().get(&format!("/v1/messages/{id}/why")).expect(200)
}

#[test]
fn a_session_that_goes_in_circles_says_so_and_a_message_that_waits_is_told_why() {
    let daemon = dies_on_boom();
    let client = daemon.client();
    let first = client.submit("fake/a", "boom");
    let second = client.submit("fake/a", "hello");
    let why = waiting::within(2 * SOON, "the third death", || {
        let why = client.why("fake/a");
        let is_there = why["session"]["failures"] == 3 && why["session"]["phase"] == "backoff";
        is_there.then_some(why)
    });
    let circles = &why["loop"];
    assert_eq!((&circles["failures"], &circles["ends"]), (&json!(3), &json!(3)), "{circles}");
    assert_eq!((&circles["cause"], &circles["cause_percent"]), (&json!("app_exit"), &json!(100)));
    assert_eq!(circles["histogram"][0]["count"], 3, "{circles}");
    let exits = why["exits"].as_array().unwrap();
    assert_eq!(exits.len(), 3);
    assert_eq!((&exits[0]["generation"], &exits[2]["generation"]), (&json!(3), &json!(1)));
    assert_eq!(why["in_flight"]["message_id"], json!(first), "{why}");
    assert_eq!(why["in_flight"]["state"], "pending");
    assert!(why.get("memory").is_none(), "no limit is configured: {why}");

    for (id, place) in [(&first, "waits to be handed"), (&second, "waits behind another one")] {
        let told = why_message(&daemon, id);
        let verdict = told["verdict"].as_str().unwrap();
        assert!(verdict.contains(place), "{verdict}");
        assert!(verdict.contains("failed 3 times in a row"), "{verdict}");
        assert!(verdict.contains("and the next start is in "), "{verdict}");
    }
    let page = daemon.cli(&["why", "fake/a"]).ok();
    for words in ["Why its last life ended\n  app_exit, proved: ", "In circles?\n", "3 of 3 kept"] {
        assert!(page.contains(words), "{words} is not in\n{page}");
    }
    let report = daemon.cli(&["why", "fake/a", "--markdown"]).ok();
    assert!(report.contains("## Why its last life ended\n\napp\\_exit, proved: "), "{report}");
}

#[test]
fn each_kept_life_has_its_own_evidence() {
    let daemon = dies_on_boom();
    let client = daemon.client();
    client.submit("fake/a", "boom");
    until("the second start", || (client.generation("fake/a") >= 2).then_some(()));
    let first = client.get("/v1/sessions/fake/a/why?start=1").expect(200);
    assert_eq!(first["last_exit"]["generation"], 1, "{first}");
    let page = daemon.cli(&["why", "fake/a#1"]).ok();
    assert!(page.contains("Why it ended\n  app_exit, proved: "), "{page}");
    assert!(page.contains("  start        #1, in phase awake"), "{page}");
    let unknown = client.get("/v1/sessions/fake/a/why?start=99").expect(200);
    assert!(unknown.get("last_exit").is_none(), "{unknown}");
    assert_eq!(client.get("/v1/sessions/fake/a/why?beginning=1").error(400), "bad_request");
}

//! What a sender sees when streams are cut, attempts fail and the daemon goes away.

use expect_test::{Expect, expect};

use super::super::testing::{ScriptedServer, answer, error_answer, events};
use super::*;

const ID: &str = "msg_00000000000000000000000000000001";

const PATIENCE: Patience = Patience {
    first_pause: Duration::from_millis(1),
    pause_max: Duration::from_millis(5),
    away_max: Duration::from_millis(300),
    silence_max: Duration::from_secs(20),
};

#[derive(Debug, Default)]
struct Notes(Vec<String>);

impl Audience for Notes {
    fn take(&mut self, progress: Progress<'_>) -> Result<(), OutputError> {
        self.0.push(match progress {
            Progress::Status(status) => format!("[{}]", status.text),
            Progress::Piece(text) => format!("'{text}'"),
            Progress::StartsAgain => "-- starts again --".to_owned(),
            Progress::Away { is_safe: true } => "away, safe".to_owned(),
            Progress::Away { is_safe: false } => "away, unknown".to_owned(),
            Progress::Back => "back".to_owned(),
        });
        Ok(())
    }
}

fn status(state: &str, text: &str) -> String {
    format!("event: status\ndata: {{\"message_id\":\"{ID}\",{state},\"text\":\"{text}\"}}\n\n")
}

fn accepted() -> String {
    status(r#""state":"accepted","position":0"#, "accepted")
}

fn retrying() -> String {
    status(
        r#""state":"retrying","attempt":2,"at_ms":5,"cause":"app_exit""#,
        "it crashed; next try now",
    )
}

fn delta(id: &str, text: &str) -> String {
    format!("event: delta\nid: {id}\ndata: {{\"text\":\"{text}\"}}\n\n")
}

fn done(reply: &str) -> String {
    format!(
        "event: done\ndata: {{\"message_id\":\"{ID}\",\"session\":\"python/main\",\
         \"state\":\"answered\",\"attempts\":1,\"accepted_at_ms\":1,\"reply\":\"{reply}\"}}\n\n"
    )
}

/// Plays `answers`; compares what was asked, what was shown, and how it ended.
async fn check(answers: Vec<String>, expected: Expect) {
    let server = ScriptedServer::start(answers).await;
    let client = server.client();
    let session = "python/main".parse().unwrap();
    let mut follower = Follower::new(&client, &session, "hi", "key-1", PATIENCE);
    let mut notes = Notes::default();
    let result = match follower.run_to_its_end(&mut notes).await {
        Ok(message) => format!("{:?}: {}", message.state, message.reply.unwrap_or_default()),
        Err(error) => format!("error: {error}").replace(&client.url(), "URL"),
    };
    let asked = server.requests().into_iter().map(|request| {
        let line = request.lines().next().unwrap_or_default().replace(" HTTP/1.1", "");
        let wanted = ["last-event-id", "idempotency-key"];
        let headers = request.lines().filter(|l| wanted.iter().any(|name| l.starts_with(name)));
        [line].into_iter().chain(headers.map(str::to_owned)).collect::<Vec<_>>().join(" | ")
    });
    let asked: Vec<String> = asked.collect();
    expected.assert_eq(&format!("{}\n{}\n{result}", asked.join("\n"), notes.0.join("\n")));
}

#[tokio::test]
async fn a_whole_stream_is_one_request() {
    let stream = [accepted(), delta("1.2", "4"), delta("1.3", "2"), done("42")];
    // The first offset is wrong by one, on purpose: a gap, which the end mends.
    check(
        vec![events(&stream, true)],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            [accepted]
            '42'
            Answered: 42"#]],
    )
    .await;
}

#[tokio::test]
async fn a_cut_stream_goes_on_where_it_was_cut_and_repeats_nothing() {
    let first = [accepted(), delta("1.3", "abc"), "event: delta\nid: 1.6\ndata: {\"te".to_owned()];
    let second = [delta("1.3", "abc"), delta("1.5", "cde"), delta("1.6", "f"), done("abcdef")];
    check(
        vec![events(&first, false), events(&second, true)],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            GET /v1/messages/msg_00000000000000000000000000000001 | last-event-id: 1.3
            [accepted]
            'abc'
            'de'
            'f'
            Answered: abcdef"#]],
    )
    .await;
}

#[tokio::test]
async fn before_an_id_is_known_the_same_key_is_asked_again() {
    let whole = events(&[accepted(), done("x")], true);
    check(
        vec![String::new(), error_answer("503 Service Unavailable", "starting"), whole],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            away, unknown
            back
            [accepted]
            'x'
            Answered: x"#]],
    )
    .await;
}

#[tokio::test]
async fn a_failed_attempt_takes_its_text_back_once() {
    let stream = [
        accepted(),
        delta("1.4", "half"),
        retrying(),
        delta("1.8", "late"),
        delta("2.5", "whole"),
        done("whole"),
    ];
    check(
        vec![events(&stream, true)],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            [accepted]
            'half'
            [it crashed; next try now]
            -- starts again --
            'whole'
            Answered: whole"#]],
    )
    .await;
}

#[tokio::test]
async fn a_new_attempt_that_nobody_announced_takes_the_text_back_too() {
    check(
        vec![events(&[accepted(), delta("1.4", "half"), delta("2.1", "w"), done("w")], true)],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            [accepted]
            'half'
            -- starts again --
            'w'
            Answered: w"#]],
    )
    .await;
}

#[tokio::test]
async fn a_daemon_that_stays_away_is_given_up_and_the_message_called_safe() {
    check(
        vec![events(&[accepted()], false)],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            [accepted]
            away, safe
            error: the daemon went away and did not come back"#]],
    )
    .await;
}

fn told(code: &str) -> String {
    format!(
        "event: error\ndata: {{\"error\":{{\"code\":\"{code}\",\"message\":\"it is {code}\",\
         \"hint\":\"\",\"message_id\":\"{ID}\"}}}}\n\n"
    )
}

fn shown(state: &str) -> String {
    let body = format!(
        "{{\"message_id\":\"{ID}\",\"session\":\"python/main\",\"state\":\"{state}\",\
         \"attempts\":3,\"accepted_at_ms\":1}}"
    );
    answer("200 OK", &body)
}

#[tokio::test]
async fn a_message_that_failed_is_handed_out_as_it_ended() {
    check(
        vec![events(&[accepted(), told("attempts_exhausted")], true), shown("dead")],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            GET /v1/messages/msg_00000000000000000000000000000001
            [accepted]
            Dead: "#]],
    )
    .await;
}

#[tokio::test]
async fn an_error_that_ends_the_stream_alone_is_a_pause() {
    check(
        vec![
            events(&[accepted(), delta("1.1", "x"), told("shutting_down")], true),
            shown("leased"),
            events(&[done("xy")], true),
        ],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            GET /v1/messages/msg_00000000000000000000000000000001
            GET /v1/messages/msg_00000000000000000000000000000001 | last-event-id: 1.1
            [accepted]
            'x'
            'y'
            Answered: xy"#]],
    )
    .await;
}

#[tokio::test]
async fn an_error_about_a_message_that_nobody_knows_any_more_is_passed_on() {
    check(
        vec![
            events(&[accepted(), told("internal")], true),
            error_answer("404 Not Found", "not_found"),
        ],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1
            GET /v1/messages/msg_00000000000000000000000000000001
            [accepted]
            error: it is internal"#]],
    )
    .await;
}

#[tokio::test]
async fn a_refusal_or_nobody_at_first_is_an_error_at_once() {
    check(
        vec![error_answer("429 Too Many Requests", "rate")],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1

            error: it is rate"#]],
    )
    .await;
    check(
        vec![],
        expect![[r#"


            error: no dormouse answers at URL; start one with `dormouse up`"#]],
    )
    .await;
    check(
        vec![answer("200 OK", "{}")],
        expect![[r#"
            POST /v1/sessions/python/main/messages | idempotency-key: key-1

            error: what answers at URL is no dormouse, or another version: it sent no events"#]],
    )
    .await;
}

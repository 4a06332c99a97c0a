//! `queue`: messages that wait, and dead letters.
//!
//! Invariant: of several messages each is tried, each failure is reported, and the first one's code
//! is the command's. Absent: what happens to a message (`why`).

use dormouse_core::id::MessageId;
use dormouse_core::record::MessageState;
use serde_json::{Value, json};

use super::Context;
use super::arguments::{Queue, SessionArgument};
use super::client::{Call, ClientError};
use super::error::CommandError;
use super::exit::Exit;
use super::pages::items;
use super::scrub::{self, shortened};
use super::table::Table;
use super::when::Moment;
use super::why::page::confidence_words;
use crate::api::shape::{ExitShort, Message, QueueItem, Submitted};

const TEXT_CHARACTERS_MAX: usize = 30;

pub(crate) async fn queue(command: Queue, context: &mut Context<'_>) -> Result<(), CommandError> {
    match command {
        Queue::Ls { session, dead, limit } => list(session, dead, limit as usize, context).await,
        Queue::Show { message } => show(message, context).await,
        Queue::Redrive { message } => each(Verb::Redrive, message, context).await,
        Queue::Drop { message } => each(Verb::Drop, message, context).await,
    }
}

async fn list(
    session: Option<SessionArgument>,
    only_dead: bool,
    limit: usize,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let filters: Vec<(&str, String)> =
        session.into_iter().map(|session| ("session", session.0.to_string())).collect();
    let client = context.client.clone();
    let waiting = match only_dead {
        true => None,
        false => Some(items(&client, "/v1/queue", &filters, limit).await?),
    };
    let dead = items(&client, "/v1/dead-letters", &filters, limit).await?;
    let mut value = json!({"dead_letters": dead.to_json()});
    if let Some(waiting) = &waiting {
        value["waiting"] = waiting.to_json();
    }
    context.show(&value, |context| {
        let mut parts = Vec::new();
        if let Some(waiting) = &waiting {
            let views: Vec<QueueItem> = waiting.typed(&client)?;
            parts.push(if views.is_empty() {
                "No message waits.".to_owned()
            } else {
                render_waiting(&views, &context.moment)
            });
        }
        let views: Vec<QueueItem> = dead.typed(&client)?;
        parts.push(if views.is_empty() {
            "No dead letters.".to_owned()
        } else {
            render_dead(&views, &context.moment)
        });
        context.terminal.line(&parts.join("\n\n"))?;
        if dead.has_more || waiting.is_some_and(|waiting| waiting.has_more) {
            context.terminal.status("there are more; --limit shows them");
        }
        Ok(())
    })
}

fn render_waiting(items: &[QueueItem], moment: &Moment) -> String {
    let mut table =
        Table::new(["WAITING MESSAGE", "SESSION", "STATE", "ATTEMPTS", "SINCE", "TEXT"]);
    for item in items {
        let message = &item.message;
        table.row([
            message.message_id.to_string(),
            message.session.to_string(),
            state_words(message.state).to_owned(),
            message.attempts.to_string(),
            moment.distance(message.accepted_at_ms),
            shortened(&item.text, TEXT_CHARACTERS_MAX).into_owned(),
        ]);
    }
    table.render()
}

fn render_dead(items: &[QueueItem], moment: &Moment) -> String {
    let mut table = Table::new(["DEAD LETTER", "SESSION", "CAUSE", "ATTEMPTS", "ENDED", "TEXT"]);
    for item in items {
        let message = &item.message;
        table.row([
            message.message_id.to_string(),
            message.session.to_string(),
            message.cause.map_or("-", |cause| cause.code()).to_owned(),
            message.attempts.to_string(),
            message.ended_at_ms.map_or_else(|| "-".to_owned(), |at| moment.distance(at)),
            shortened(&item.text, TEXT_CHARACTERS_MAX).into_owned(),
        ]);
    }
    let next = "Why: dormouse why MESSAGE. Try again: dormouse queue redrive MESSAGE";
    format!("{}\n{next}", table.render())
}

fn state_words(state: MessageState) -> &'static str {
    match state {
        MessageState::Pending => "waits",
        MessageState::Leased => "in work",
        MessageState::Answered => "answered",
        MessageState::Dead => "dead",
        MessageState::Cancelled => "dropped",
    }
}

/// A dead letter comes with its text; of others the daemon gives the state.
async fn show(id: MessageId, context: &mut Context<'_>) -> Result<(), CommandError> {
    let dead = context.client.json(Call::get(format!("/v1/dead-letters/{id}"))).await;
    let value: Value = match dead {
        Err(ClientError::Answered { status: 404, .. }) => {
            context.client.json(Call::get(format!("/v1/messages/{id}"))).await?
        }
        other => other?,
    };
    context.show(&value, |context| {
        let message: Message = context.client.typed(&value)?;
        let text = value.get("text").and_then(Value::as_str);
        let last_life: Option<ExitShort> = match value.get("last_life") {
            Some(life) => context.client.typed(life)?,
            None => None,
        };
        let shown = render_one(&message, text, last_life.as_ref(), &context.moment);
        context.terminal.line(&shown)?;
        Ok(())
    })
}

fn render_one(
    message: &Message,
    text: Option<&str>,
    last_life: Option<&ExitShort>,
    moment: &Moment,
) -> String {
    let id = message.message_id;
    let mut lines = vec![format!("{id} to {}: {}", message.session, state_words(message.state))];
    lines.push(format!("accepted {}", moment.clock_and_distance(message.accepted_at_ms)));
    lines.push(format!("attempts {}", message.attempts));
    if let Some(cause) = message.cause {
        let detail = message.detail.as_ref().map(|detail| format!(" ({detail})"));
        let words = format!("{cause}: {}{}", cause.plain_words(), detail.unwrap_or_default());
        lines.push(format!("cause {}", scrub::line(&words)));
    }
    if let Some(life) = last_life {
        let (verdict, confidence) = (life.verdict, confidence_words(life.confidence));
        let attempt = life.attempt.map(|attempt| format!(" at attempt {attempt}"));
        let at = moment.clock_and_distance(life.at_ms);
        let words = format!("{verdict}, {confidence}: {}", life.sentence);
        let (start, attempt) = (life.generation, attempt.unwrap_or_default());
        lines.push(format!("the last life that had it, #{start}, ended{attempt}, {at}"));
        lines.push(format!("  {}", scrub::line(&words)));
        let session = &message.session;
        lines.push(format!("  its evidence: dormouse why {session}#{start}"));
    }
    if let Some(redriven) = message.redriven_as {
        lines.push(format!("tried anew as {redriven}"));
    }
    if let Some(text) = text {
        lines.push(String::new());
        lines.extend(text.lines().map(|line| format!("  │ {}", scrub::line(line))));
        lines.push(String::new());
    }
    lines.push(format!("why: dormouse why {id}"));
    if message.state == MessageState::Dead {
        lines.push(format!("try it again: dormouse queue redrive {id}"));
    }
    lines.join("\n")
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Redrive,
    Drop,
}

async fn each(
    verb: Verb,
    messages: Vec<MessageId>,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let mut first: Option<Exit> = None;
    for id in messages {
        let done = match verb {
            Verb::Redrive => redrive(id, context).await,
            Verb::Drop => drop_one(id, context).await,
        };
        let Err(error) = done else { continue };
        let Some(report) = error.report() else { return Err(error) };
        if report.exit == Exit::Unreachable {
            return Err(error);
        }
        report.print(context.terminal, context.as_json);
        first.get_or_insert(report.exit);
    }
    first.map_or(Ok(()), |first| Err(CommandError::Several { first }))
}

async fn redrive(id: MessageId, context: &mut Context<'_>) -> Result<(), CommandError> {
    let path = format!("/v1/dead-letters/{id}/redrive");
    let value = context.client.json(Call::post(path)).await?;
    if context.as_json {
        return Ok(context.terminal.json_line(&value)?);
    }
    let submitted: Submitted = context.client.typed(&value)?;
    let text = format!("{id} is tried again as {}", submitted.message_id);
    Ok(context.terminal.line(&text)?)
}

/// Dead letters and waiting messages are dropped in different places.
async fn drop_one(id: MessageId, context: &mut Context<'_>) -> Result<(), CommandError> {
    let message = context.client.json(Call::get(format!("/v1/messages/{id}"))).await?;
    let message: Message = context.client.typed(&message)?;
    let call = match message.state {
        MessageState::Dead => Call::post(format!("/v1/dead-letters/{id}/drop")),
        _ => Call::delete(format!("/v1/messages/{id}")),
    };
    let value = context.client.json(call).await?;
    if context.as_json {
        return Ok(context.terminal.json_line(&value)?);
    }
    Ok(context.terminal.line(&format!("{id} is dropped; it will not be answered"))?)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use jiff::tz::TimeZone;

    use super::super::terminal::testing::Screen;
    use super::super::testing::{ScriptedServer, answer, error_answer};
    use super::*;

    const NOW: u64 = 1_795_352_400_000;

    fn message(number: u128, state: &str) -> Value {
        json!({
            "message_id": MessageId(number), "session": "python/main", "state": state,
            "attempts": 1, "accepted_at_ms": NOW - 60_000, "text": "(\n\u{1b}6*7)",
        })
    }

    fn dead(number: u128) -> Value {
        let mut dead = message(number, "dead");
        dead["cause"] = json!("attempts_exhausted");
        dead["cause_text"] = json!("tried enough");
        dead["ended_at_ms"] = json!(NOW - 5_000);
        dead
    }

    async fn run(command: Queue, answers: Vec<String>) -> (String, String, u8, Vec<String>) {
        let server = ScriptedServer::start(answers).await;
        let screen = Screen::default();
        let mut terminal = screen.terminal();
        let mut context = Context {
            terminal: &mut terminal,
            client: server.client(),
            moment: Moment::fixed(NOW, TimeZone::UTC),
            as_json: false,
        };
        let code = match queue(command, &mut context).await {
            Ok(()) => 0,
            Err(error) => error.exit().code(),
        };
        let out = screen.out.text().replace(&"0".repeat(31), "…");
        let out = out.replace(&" ".repeat(21), "");
        (out, screen.err.text(), code, server.request_lines())
    }

    fn ok(value: &Value) -> String {
        answer("200 OK", &value.to_string())
    }

    #[tokio::test]
    async fn both_lists_are_shown_and_texts_cannot_break_them() {
        let session = Some("python".parse().unwrap());
        let answers = vec![
            ok(&json!({"items": [message(1, "leased"), message(2, "pending")]})),
            ok(&json!({"items": [dead(3)]})),
        ];
        let (out, _, code, asked) =
            run(Queue::Ls { session, dead: false, limit: 50 }, answers).await;
        expect![[r#"
            WAITING MESSAGE  SESSION      STATE    ATTEMPTS  SINCE      TEXT
            msg_…1  python/main  in work  1         1 min ago  (\n\u{1b}6*7)
            msg_…2  python/main  waits    1         1 min ago  (\n\u{1b}6*7)

            DEAD LETTER      SESSION      CAUSE               ATTEMPTS  ENDED    TEXT
            msg_…3  python/main  attempts_exhausted  1         5 s ago  (\n\u{1b}6*7)
            Why: dormouse why MESSAGE. Try again: dormouse queue redrive MESSAGE
        "#]]
        .assert_eq(&out);
        assert_eq!(code, 0);
        assert_eq!(asked[0], "GET /v1/queue?limit=50&session=python%2Fmain");
        assert_eq!(asked[1], "GET /v1/dead-letters?limit=50&session=python%2Fmain");
    }

    #[tokio::test]
    async fn a_message_that_is_no_dead_letter_is_shown_too() {
        let id = MessageId(2);
        let answers = vec![error_answer("404 Not Found", "none"), ok(&message(2, "pending"))];
        let (out, _, _, asked) = run(Queue::Show { message: id }, answers).await;
        expect![[r#"
            msg_…2 to python/main: waits
            accepted 12:59:00 (1 min ago)
            attempts 1

              │ (
              │ \u{1b}6*7)

            why: dormouse why msg_…2
        "#]]
        .assert_eq(&out);
        let expected = [format!("GET /v1/dead-letters/{id}"), format!("GET /v1/messages/{id}")];
        assert_eq!(asked, expected);
    }

    #[tokio::test]
    async fn a_dead_letter_tells_why_the_last_life_that_had_it_ended() {
        let mut letter = dead(3);
        letter["cause"] = json!("poison_message");
        letter["last_life"] = json!({
            "generation": 7, "at_ms": NOW - 5_000, "phase": "awake", "cause": "app_signal",
            "verdict": "app_signal", "kind": "SIGSEGV", "confidence": "proved",
            "sentence": "the agent's program crashed: it was ended by SIGSEGV\u{1b}[2J",
            "message_in_flight": MessageId(3), "attempt": 3,
        });
        let (out, _, _, _) = run(Queue::Show { message: MessageId(3) }, vec![ok(&letter)]).await;
        expect![[r#"
            msg_…3 to python/main: dead
            accepted 12:59:00 (1 min ago)
            attempts 1
            cause poison_message: the agent's program died each time it worked on it
            the last life that had it, #7, ended at attempt 3, 12:59:55 (5 s ago)
              app_signal, proved: the agent's program crashed: it was ended by SIGSEGV\u{1b}[2J
              its evidence: dormouse why python/main#7

              │ (
              │ \u{1b}6*7)

            why: dormouse why msg_…3
            try it again: dormouse queue redrive msg_…3
        "#]]
        .assert_eq(&out);
    }

    #[tokio::test]
    async fn of_several_messages_each_is_tried_and_the_first_failure_is_the_code() {
        let submitted = json!({
            "message_id": MessageId(9), "session": "python/main", "state": "pending",
            "position": 0, "duplicate": false,
        });
        let answers = vec![error_answer("404 Not Found", "no_such_letter"), ok(&submitted)];
        let both = Queue::Redrive { message: vec![MessageId(1), MessageId(2)] };
        let (out, err, code, _) = run(both, answers).await;
        expect![[r#"
            msg_…2 is tried again as msg_…9
        "#]]
        .assert_eq(&out);
        assert!(err.starts_with("error: it is no_such_letter\n"), "{err}");
        assert_eq!(code, 5);
    }

    #[tokio::test]
    async fn dropping_goes_where_the_message_is() {
        let requested = ok(&json!({"outcome": "accepted", "waiting": 0}));
        let answers = vec![ok(&message(1, "pending")), requested.clone(), ok(&dead(2)), requested];
        let both = Queue::Drop { message: vec![MessageId(1), MessageId(2)] };
        let (_, _, code, asked) = run(both, answers).await;
        assert_eq!(code, 0);
        assert_eq!(asked[1], format!("DELETE /v1/messages/{}", MessageId(1)));
        assert_eq!(asked[3], format!("POST /v1/dead-letters/{}/drop", MessageId(2)));
    }
}

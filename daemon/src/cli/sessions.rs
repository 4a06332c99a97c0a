//! `ps`, `wake`, `stop` and `restart`: sessions as a whole.
//!
//! Absent: single messages (`queue`), reasons (`why`).

use std::collections::BTreeMap;

use dormouse_core::event::FilesProgress;
use dormouse_core::session::phase::Phase;
use serde_json::Value;

use super::Context;
use super::arguments::{OneSession, Ps};
use super::client::Call;
use super::error::CommandError;
use super::pages::{Items, items};
use super::table::Table;
use super::when::Moment;
use crate::api::shape::{Requested, SessionView};

/// In the order of a life: a session that moves on while it is asked for is seen twice, not missed.
const NOT_ASLEEP: [Phase; 6] = [
    Phase::Tripped,
    Phase::Backoff,
    Phase::Starting,
    Phase::Awake,
    Phase::Draining,
    Phase::Stopping,
];

pub(crate) async fn ps(arguments: Ps, context: &mut Context<'_>) -> Result<(), CommandError> {
    let limit = arguments.limit as usize;
    let phases: Vec<Option<Phase>> = match (arguments.phase, arguments.all) {
        (Some(phase), _) => vec![Some(phase)],
        (None, true) => vec![None],
        (None, false) => NOT_ASLEEP.map(Some).into(),
    };
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    let mut has_more = false;
    for phase in phases {
        let agent = arguments.agent.as_ref().map(|agent| ("agent", agent.to_string()));
        let phase = phase.map(|phase| ("phase", phase.to_string()));
        let filters: Vec<(&str, String)> = agent.into_iter().chain(phase).collect();
        let part = items(&context.client, "/v1/sessions", &filters, limit).await?;
        has_more |= part.has_more;
        for value in part.values {
            let name = value.get("session").and_then(Value::as_str).unwrap_or_default();
            found.insert(name.to_owned(), value);
        }
    }
    has_more |= found.len() > limit;
    let sessions = Items { values: found.into_values().take(limit).collect(), has_more };
    let is_filtered = arguments.agent.is_some() || arguments.phase.is_some();
    context.show(&sessions.to_json(), |context| {
        let views: Vec<SessionView> = sessions.typed(&context.client)?;
        let text = if views.is_empty() {
            nothing_to_list(arguments.all, is_filtered).to_owned()
        } else {
            render(&views, &context.moment)
        };
        context.terminal.line(&text)?;
        if sessions.has_more {
            context.terminal.status("there are more; --limit shows them");
        }
        Ok(())
    })
}

fn nothing_to_list(all: bool, is_filtered: bool) -> &'static str {
    match (all, is_filtered) {
        (_, true) => "No such sessions. All of them: dormouse ps --all",
        (true, false) => "No sessions yet. Write to an agent: dormouse send python \"print(6*7)\"",
        (false, false) => {
            "No agent is awake. A message wakes one: dormouse send python \"print(6*7)\"\n\
             Those that are asleep: dormouse ps --all"
        }
    }
}

fn render(sessions: &[SessionView], moment: &Moment) -> String {
    let headings = ["SESSION", "PHASE", "START", "WAITING", "FAILURES", "LAST FAILURE", "CREATED"];
    let mut table = Table::new(headings);
    for session in sessions {
        let phase = match (session.next_start_at_ms, session.syncing) {
            (Some(at), _) => format!("{}, starts {}", session.phase, moment.distance(at)),
            (None, Some(FilesProgress { done_files, files, .. })) => {
                format!("{}, files {done_files} of {files}", session.phase)
            }
            (None, None) => session.phase.to_string(),
        };
        table.row([
            session.session.to_string(),
            phase,
            format!("#{}", session.generation),
            session.waiting.to_string(),
            session.failures.to_string(),
            session.last_failure.map_or("-", |cause| cause.code()).to_owned(),
            moment.distance(session.created_at_ms),
        ]);
    }
    table.render()
}

/// `verb` is wake, stop or restart.
pub(crate) async fn request(
    verb: &str,
    arguments: OneSession,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let session = arguments.session.0;
    let path = format!("/v1/sessions/{}/{}/{verb}", session.agent(), session.key());
    let value = context.client.json(Call::post(path)).await?;
    context.show(&value, |context| {
        let requested: Requested = context.client.typed(&value)?;
        let text = outcome(verb, session.as_str(), &requested);
        Ok(context.terminal.line(&text)?)
    })
}

fn outcome(verb: &str, session: &str, requested: &Requested) -> String {
    let mut text = match requested.because.as_deref() {
        None => format!("{session}: asked to {verb}; follow it with dormouse why {session}"),
        Some(because) => {
            let because = super::scrub::line(because).replace('_', " ");
            format!("{session}: nothing to do, it is {because}")
        }
    };
    if verb == "stop" && requested.waiting > 0 {
        let waiting = match requested.waiting {
            1 => "1 message waits".to_owned(),
            several => format!("{several} messages wait"),
        };
        text.push_str(&format!(
            "\n{waiting} and will wake it again; to prevent that:\
             \n  dormouse queue ls {session}\n  dormouse queue drop MESSAGE"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use jiff::tz::TimeZone;
    use serde_json::json;

    use super::super::terminal::testing::Screen;
    use super::super::testing::{ScriptedServer, answer, error_answer};
    use super::*;

    const NOW: u64 = 1_795_352_400_000;

    fn session(name: &str, phase: Phase) -> Value {
        json!({
            "session": name, "subject": "local", "phase": phase, "generation": 3, "waiting": 2,
            "failures": 0, "created_at_ms": NOW - 200_000,
        })
    }

    fn page(sessions: &[Value]) -> String {
        answer("200 OK", &json!({"items": sessions}).to_string())
    }

    async fn shown(answers: Vec<String>, arguments: Ps, as_json: bool) -> (String, Vec<String>) {
        let server = ScriptedServer::start(answers).await;
        let screen = Screen::default();
        let mut terminal = screen.terminal();
        let mut context = Context {
            terminal: &mut terminal,
            client: server.client(),
            moment: Moment::fixed(NOW, TimeZone::UTC),
            as_json,
        };
        ps(arguments, &mut context).await.unwrap();
        (screen.out.text(), server.request_lines())
    }

    fn arguments(all: bool) -> Ps {
        Ps { all, agent: None, phase: None, limit: 100 }
    }

    #[tokio::test]
    async fn sessions_are_listed_once_and_by_name() {
        let mut failing = session("python/zoe", Phase::Backoff);
        failing["last_failure"] = json!("app_exit");
        failing["failures"] = json!(2);
        failing["next_start_at_ms"] = json!(NOW + 8_000);
        let mut syncing = session("openclaw/a", Phase::Awake);
        syncing["syncing"] =
            json!({"done_files": 3, "files": 1_500, "done_bytes": 30, "bytes": 15_000});
        let answers = vec![
            page(&[]),
            page(&[failing]),
            page(&[session("python/main", Phase::Starting)]),
            page(&[session("python/main", Phase::Awake), syncing]),
            page(&[]),
            page(&[]),
        ];
        let (text, asked) = shown(answers, arguments(false), false).await;
        expect![[r#"
            SESSION      PHASE                   START  WAITING  FAILURES  LAST FAILURE  CREATED
            openclaw/a   awake, files 3 of 1500  #3     2        0         -             3 min ago
            python/main  awake                   #3     2        0         -             3 min ago
            python/zoe   backoff, starts in 8 s  #3     2        2         app_exit      3 min ago
        "#]]
        .assert_eq(&text);
        assert_eq!(asked[0], "GET /v1/sessions?limit=100&phase=tripped");
        assert_eq!(asked.len(), 6);
    }

    #[tokio::test]
    async fn an_empty_list_says_what_to_do_next() {
        let (text, asked) = shown(vec![page(&[])], arguments(true), false).await;
        expect![[r#"
            No sessions yet. Write to an agent: dormouse send python "print(6*7)"
        "#]]
        .assert_eq(&text);
        assert_eq!(asked, ["GET /v1/sessions?limit=100"]);
    }

    #[tokio::test]
    async fn programs_get_the_daemons_own_fields() {
        let mut strange = session("python/main", Phase::Awake);
        strange["a_later_field"] = json!("kept");
        let (text, _) = shown(vec![page(&[strange])], arguments(true), true).await;
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["items"][0]["a_later_field"], "kept");
        assert_eq!(value["has_more"], false);
    }

    async fn requested(verb: &str, answer: String) -> Result<String, CommandError> {
        let server = ScriptedServer::start(vec![answer]).await;
        let screen = Screen::default();
        let mut terminal = screen.terminal();
        let mut context = Context {
            terminal: &mut terminal,
            client: server.client(),
            moment: Moment::fixed(NOW, TimeZone::UTC),
            as_json: false,
        };
        let one = OneSession { session: "python".parse().unwrap() };
        request(verb, one, &mut context).await?;
        assert_eq!(server.request_lines(), [format!("POST /v1/sessions/python/main/{verb}")]);
        Ok(screen.out.text())
    }

    #[tokio::test]
    async fn requests_are_accepted_ignored_or_denied() {
        let accepted = answer("202 Accepted", r#"{"outcome": "accepted", "waiting": 2}"#);
        expect![[r#"
            python/main: asked to stop; follow it with dormouse why python/main
            2 messages wait and will wake it again; to prevent that:
              dormouse queue ls python/main
              dormouse queue drop MESSAGE
        "#]]
        .assert_eq(&requested("stop", accepted).await.unwrap());
        let ignored =
            answer("200 OK", r#"{"outcome": "ignored", "because": "already_awake", "waiting": 0}"#);
        expect![[r#"
            python/main: nothing to do, it is already awake
        "#]]
        .assert_eq(&requested("wake", ignored).await.unwrap());
        let denied = error_answer("409 Conflict", "agent_not_configured");
        let error = requested("wake", denied).await.unwrap_err();
        assert_eq!(error.exit().code(), 7);
    }
}

//! `keys`: make, list and revoke API keys.
//!
//! Invariant: a token is printed once, alone on standard output, when its key is made.

use dormouse_core::id::Subject;
use serde_json::{Value, json};

use super::Context;
use super::arguments::Keys;
use super::client::{Call, encoded};
use super::error::CommandError;
use super::pages::whole_list;
use super::table::Table;
use super::terminal::{Terminal, Tone};
use super::when::Moment;
use crate::api::shape::{CreateKey, KeyView};
use crate::run::{Options, create_key_offline};

pub(crate) async fn keys(command: Keys, context: &mut Context<'_>) -> Result<(), CommandError> {
    match command {
        Keys::Create { name, subject, operator, offline: _ } => {
            let subject = subject_of(&name, subject)?;
            let scopes = if operator { vec!["operator".to_owned()] } else { Vec::new() };
            create(CreateKey { name, subject, scopes }, context).await
        }
        Keys::Ls => {
            let keys = whole_list(&context.client, "/v1/keys").await?;
            context.show(&keys.to_json(), |context| {
                let views: Vec<KeyView> = keys.typed(&context.client)?;
                let text = render(&views, &context.moment);
                Ok(context.terminal.line(&text)?)
            })
        }
        Keys::Revoke { id } => {
            let path = format!("/v1/keys/{}", encoded(&id));
            let value: Value = context.client.json(Call::delete(path)).await?;
            context.show(&value, |context| {
                let text = format!("{} is refused from now on", super::scrub::line(&id));
                Ok(context.terminal.line(&text)?)
            })
        }
    }
}

fn subject_of(name: &str, given: Option<Subject>) -> Result<Subject, CommandError> {
    match given {
        Some(subject) => Ok(subject),
        None => name.parse().map_err(|_| CommandError::KeyName { name: name.to_owned() }),
    }
}

/// Without a daemon, into the data folder itself.
pub(crate) fn create_offline(
    options: &Options,
    name: String,
    subject: Option<Subject>,
    is_operator: bool,
    as_json: bool,
    terminal: &mut Terminal,
) -> Result<(), CommandError> {
    let subject = subject_of(&name, subject)?;
    let token = create_key_offline(options, &name, subject.clone(), is_operator);
    let token = token.map_err(|error| CommandError::Run(Box::new(error)))?;
    if as_json {
        return Ok(terminal.json(&json!({"name": name, "subject": subject, "token": token}))?);
    }
    terminal.line(&token)?;
    terminal.note(Tone::Dim, &format!("key {name} for {subject}; it is shown only now"));
    Ok(())
}

async fn create(key: CreateKey, context: &mut Context<'_>) -> Result<(), CommandError> {
    let value = context.client.json(Call::post("/v1/keys").json(&key)).await?;
    context.show(&value, |context| {
        let made: KeyView = context.client.typed(&value)?;
        let Some(token) = &made.token else {
            return Err(context.client.not_understood("a new key without its token").into());
        };
        context.terminal.line(&super::scrub::line(token))?;
        let words = format!("key {} for {}; it is shown only now", made.id, made.subject);
        context.terminal.note(Tone::Dim, &words);
        Ok(())
    })
}

fn render(keys: &[KeyView], moment: &Moment) -> String {
    if keys.is_empty() {
        return "No keys. Make one: dormouse keys create NAME".to_owned();
    }
    let mut table = Table::new(["ID", "NAME", "SUBJECT", "SCOPES", "MADE", "REVOKED"]);
    for key in keys {
        let scopes = key.scopes.join(" ");
        table.row([
            key.id.clone(),
            key.name.clone(),
            key.subject.to_string(),
            if scopes.is_empty() { "its own sessions".to_owned() } else { scopes },
            moment.distance(key.created_at_ms),
            key.revoked_at_ms.map_or_else(|| "-".to_owned(), |at| moment.distance(at)),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use jiff::tz::TimeZone;

    use super::super::terminal::testing::Screen;
    use super::super::testing::{ScriptedServer, answer};
    use super::*;

    const NOW: u64 = 1_795_352_400_000;

    async fn run(command: Keys, body: &str) -> (Screen, Vec<String>) {
        let server = ScriptedServer::start(vec![answer("200 OK", body)]).await;
        let screen = Screen::default();
        let mut terminal = screen.pipe();
        let mut context = Context {
            terminal: &mut terminal,
            client: server.client(),
            moment: Moment::fixed(NOW, TimeZone::UTC),
            as_json: false,
        };
        keys(command, &mut context).await.unwrap();
        (screen, server.requests())
    }

    #[tokio::test]
    async fn a_new_key_is_alone_on_standard_output() {
        let body = r#"{"id": "k_1", "name": "bot", "subject": "bot", "scopes": [],
                       "created_at_ms": 1, "token": "dm_secret"}"#;
        let create =
            Keys::Create { name: "bot".to_owned(), subject: None, operator: false, offline: false };
        let (screen, requests) = run(create, body).await;
        assert_eq!(screen.out.text(), "dm_secret\n");
        assert_eq!(screen.err.text(), "key k_1 for bot; it is shown only now\n");
        assert!(requests[0].ends_with(r#"{"name":"bot","subject":"bot","scopes":[]}"#));
    }

    #[tokio::test]
    async fn keys_are_listed_without_their_secret() {
        let body = format!(
            r#"[
                {{"id": "k_1", "name": "operator", "subject": "local", "scopes": ["operator"],
                  "created_at_ms": {}}},
                {{"id": "k_2", "name": "bot", "subject": "bot", "scopes": [],
                  "created_at_ms": {}, "revoked_at_ms": {}}}]"#,
            NOW - 7_200_000,
            NOW - 60_000,
            NOW - 5_000
        );
        let (screen, _) = run(Keys::Ls, &body).await;
        expect![[r#"
            ID   NAME      SUBJECT  SCOPES            MADE       REVOKED
            k_1  operator  local    operator          2 h ago    -
            k_2  bot       bot      its own sessions  1 min ago  5 s ago
        "#]]
        .assert_eq(&screen.out.text());
    }

    #[tokio::test]
    async fn revoking_names_the_key_whatever_it_is_called() {
        let (screen, requests) = run(Keys::Revoke { id: "k/1".to_owned() }, "").await;
        assert!(requests[0].starts_with("DELETE /v1/keys/k%2F1 "), "{}", requests[0]);
        assert_eq!(screen.out.text(), "k/1 is refused from now on\n");
    }
}

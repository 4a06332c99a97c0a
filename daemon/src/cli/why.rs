//! `why`: the verdict first, then what it rests on.
//!
//! Owner: `page` says what, `paper` how it is laid out. Absent: conclusions, which are the
//! daemon's; ends that Dormouse has not seen itself.

pub(crate) mod page;
pub(crate) mod paper;

use dormouse_core::id::{Generation, SessionId};
use dormouse_core::limits::JOURNAL_ROWS_PER_SESSION;
use serde_json::Value;

use super::Context;
use super::arguments::{Why as WhyArguments, WhySubject};
use super::client::Call;
use super::error::CommandError;
use super::pages::items;
use crate::api::shape::Why;
use page::Page;
pub(crate) use page::size;

pub(crate) async fn why(
    arguments: WhyArguments,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let of_session = |id: &SessionId| format!("/v1/sessions/{}/{}/why", id.agent(), id.key());
    let (path, generation) = match &arguments.subject {
        WhySubject::Message(id) => (format!("/v1/messages/{id}/why"), None),
        WhySubject::Session(id) => (of_session(id), None),
        WhySubject::Instance(id, generation) => {
            (format!("{}?start={generation}", of_session(id)), Some(*generation))
        }
    };
    let mut value: Value = context.client.json(Call::get(path)).await?;
    if let WhySubject::Instance(session, generation) = &arguments.subject {
        narrow(&mut value, session, *generation, context).await?;
    }
    context.show(&value, |context| {
        let why: Why = context.client.typed(&value)?;
        let page = Page { why: &why, generation, moment: &context.moment };
        let (title, sections) = (page.title(), page.sections());
        let text = match arguments.markdown {
            true => paper::markdown(&title, &sections),
            false => {
                let toned = |tone, text: &str| context.terminal.toned(tone, text);
                paper::text(&title, &sections, &toned)
            }
        };
        Ok(context.terminal.line(&text)?)
    })
}

/// Keeps of a session's `why` what concerns one of its lives, with all of that life's journal.
async fn narrow(
    value: &mut Value,
    session: &SessionId,
    generation: Generation,
    context: &Context<'_>,
) -> Result<(), CommandError> {
    let newest = value["session"]["generation"].as_u64().unwrap_or_default();
    if !(1..=newest).contains(&generation.0) {
        return Err(CommandError::NoSuchStart { session: session.clone(), newest });
    }
    let path = format!("/v1/sessions/{}/{}/journal", session.agent(), session.key());
    let rows = items(&context.client, &path, &[], JOURNAL_ROWS_PER_SESSION as usize).await?;
    let is_of_it = |part: &Value| part["generation"] == generation.0;
    let of_it = rows.values.into_iter().rev().filter(is_of_it);
    value["timeline"] = of_it.collect();
    Ok(())
}

#[cfg(test)]
mod tests;

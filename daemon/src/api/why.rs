//! Why a session is as it is, or a message: the facts of the store, put together.
//!
//! Owner: HTTP handlers. Invariants: a session of another subject looks as if it did not exist;
//! conclusions are the core's (`diagnosis`, `loops`, `sizing`) and are only passed on here.
//! Absent: wording (`words`), what to do about it (`remedy`).

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::loops;
use dormouse_core::id::{Generation, MessageId};
use dormouse_core::journal::human_span;
use dormouse_core::record::{ExitRecord, MessageState};
use dormouse_core::session::phase::Phase;
use dormouse_core::sizing::{self, LearnedMemory};
use dormouse_store::{EXITS_PER_SESSION, SessionView as StoredView};
use serde::Deserialize;

use crate::api::caller::Known;
use crate::api::messages::{self, session_of, visible};
use crate::api::problem::Problem;
use crate::api::sessions::{AgentAndKey, journal_row, known, query, shown};
use crate::api::shape::{ExitShort, ExitView, MemoryView, Message, SessionView, Why};
use crate::api::{Api, remedy, words};
use crate::engine::request::Verdict;

/// Journal rows in a `why`.
const TIMELINE_ROWS: u32 = 40;
/// Ends in short in a `why`.
const EXITS_SHOWN: usize = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WhyQuery {
    start: Option<Generation>,
}

/// What is asked about.
enum About {
    Session,
    Start(Generation),
    Message(Message),
}

pub(crate) async fn why(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key)): AgentAndKey,
    asked: Result<Query<WhyQuery>, QueryRejection>,
) -> Result<Json<Why>, Problem> {
    let id = session_of(&agent, &key)?;
    let start = query(asked)?.start;
    let stored = known(&api, &caller, &id).await?;
    explain(&api, stored, start.map_or(About::Session, About::Start)).await.map(Json)
}

pub(crate) async fn why_message(
    State(api): State<Api>,
    Known(caller): Known,
    Path(id): Path<String>,
) -> Result<Json<Why>, Problem> {
    let message = visible(&api, &caller, &id).await?;
    let stored = known(&api, &caller, &message.session).await?;
    explain(&api, stored, About::Message(message)).await.map(Json)
}

async fn explain(api: &Api, stored: StoredView, about: About) -> Result<Why, Problem> {
    let id = stored.record.id.clone();
    let (exits, rows) = api
        .readers
        .read(move |reader| {
            let exits = reader.exits(&id, EXITS_PER_SESSION as u32)?;
            Ok((exits, reader.journal(&id, None, TIMELINE_ROWS)?))
        })
        .await?;
    let loop_statistics = loops::statistics(&exits);
    let shorts = exits.iter().take(EXITS_SHOWN).map(exit_short).collect();
    let memory = memory_view(api, &stored, &exits);
    let last_exit = concerning(exits, &about).map(exit_view);
    let message = match about {
        About::Message(message) => Some(message),
        About::Session | About::Start(_) => None,
    };
    let in_flight = match last_exit.as_ref().and_then(|exit| exit.message_in_flight) {
        Some(id) if message.as_ref().is_none_or(|message| message.message_id != id) => {
            in_flight(api, id).await?
        }
        Some(_) | None => None,
    };
    let session = shown(api, stored);
    let (turn_runs, awake_because) = awake_because(api, &session).await?;
    let newest = rows.first().map(|(_, decision)| &decision.because);
    let verdict = match &message {
        Some(message) => words::message_verdict(message, &session, newest),
        None => words::verdict(&session, last_exit.as_ref(), newest, turn_runs),
    };
    let current = api.current();
    let agent = current.agent(session.session.agent());
    let is_dead = message.as_ref().is_some_and(|message| message.state == MessageState::Dead);
    let prices = current.config().prices.as_ref();
    let remedy = match (&last_exit, agent) {
        (Some(exit), Some(agent)) if session.failures > 0 || is_dead => {
            remedy::remedy(&session.session, exit, memory.as_ref(), agent, prices)
        }
        (Some(_) | None, _) => None,
    };
    let next_steps = words::next_steps(&session, message.as_ref());
    let timeline = rows.into_iter().rev().map(|(_, decision)| journal_row(decision)).collect();
    Ok(Why {
        session,
        message,
        verdict,
        next_steps,
        remedy,
        awake_because,
        last_exit,
        in_flight,
        exits: shorts,
        loop_statistics,
        memory,
        timeline,
    })
}

/// The end to tell of: the newest, or that of the start that was named; for a message that of the
/// newest life that had it in work. What has ended without a death has none.
fn concerning(mut newest_first: Vec<ExitRecord>, about: &About) -> Option<ExitRecord> {
    let place = match about {
        About::Session => Some(0),
        About::Start(start) => newest_first.iter().position(|exit| exit.generation == *start),
        About::Message(message) => {
            let waits = message.state == MessageState::Pending;
            last_life_of(&newest_first, message.message_id).or(waits.then_some(0))
        }
    };
    place.filter(|place| *place < newest_first.len()).map(|place| newest_first.remove(place))
}

fn last_life_of(newest_first: &[ExitRecord], message: MessageId) -> Option<usize> {
    newest_first.iter().position(|exit| exit.message_in_flight == Some(message))
}

/// The end of the newest life that had a message in work, in short.
pub(crate) async fn last_life(api: &Api, message: &Message) -> Result<Option<ExitShort>, Problem> {
    let (session, id) = (message.session.clone(), message.message_id);
    let exits =
        api.readers.read(move |reader| reader.exits(&session, EXITS_PER_SESSION as u32)).await?;
    Ok(last_life_of(&exits, id).map(|place| exit_short(&exits[place])))
}

/// What became of the message that a life had in work. It may be gone from the store.
async fn in_flight(api: &Api, id: MessageId) -> Result<Option<Message>, Problem> {
    let stored = api.readers.read(move |reader| reader.message(id)).await?;
    Ok(stored.map(|stored| Message { reply: None, ..messages::shown(stored) }))
}

async fn awake_because(api: &Api, session: &SessionView) -> Result<(bool, Vec<String>), Problem> {
    if !session.phase.has_instance() {
        return Ok((false, Vec::new()));
    }
    let verdict = api.gateway.explain(session.session.clone()).await?;
    let Verdict::Explained { turn, holds } = verdict else { return Ok((false, Vec::new())) };
    let mut because = Vec::new();
    if let Some(turn) = turn {
        because.push(format!("it answers {}, attempt {}", turn.message, turn.attempt));
    }
    because.extend(holds.iter().map(|name| format!("the agent asked for it: {name}")));
    if because.is_empty() && session.phase == Phase::Awake {
        let current = api.current();
        let agent = current.agent(session.session.agent());
        let limit = agent.map(|agent| human_span(agent.policy.stop_after));
        let limit = limit.unwrap_or_else(|| "a while".to_owned());
        because.push(format!("nothing needs it; it is stopped when that has been so for {limit}"));
    }
    Ok((turn.is_some(), because))
}

/// `None` where no limit is configured.
fn memory_view(api: &Api, stored: &StoredView, exits: &[ExitRecord]) -> Option<MemoryView> {
    let record = &stored.record;
    let current = api.current();
    let policy = current.agent(record.id.agent())?.policy.memory;
    let machine_bytes = current.config().node.memory_max_bytes;
    let first_bytes = policy.first_bytes?;
    let newest = exits.first();
    let was_cut_off =
        |exit: &ExitRecord| matches!(exit.diagnosis.cause, Cause::OomLimit | Cause::OomChild);
    let learned: Option<LearnedMemory> = record.memory;
    let limit_bytes = sizing::limit(policy, learned, machine_bytes)?;
    let prices = current.config().prices.as_ref();
    Some(MemoryView {
        limit_bytes,
        first_bytes,
        ceiling_bytes: policy.ceiling(first_bytes, machine_bytes),
        machine_bytes,
        because: learned.map(|learned| learned.because),
        since_ms: learned.map(|learned| learned.since.0),
        peak_survived_bytes: learned
            .map(|learned| learned.peak_survived_bytes)
            .filter(|peak| *peak > 0),
        last_peak_bytes: newest.and_then(|exit| exit.evidence.memory_peak_bytes),
        last_peak_is_censored: newest.is_some_and(was_cut_off),
        monthly_difference: prices
            .and_then(|prices| prices.monthly_difference(first_bytes, limit_bytes)),
    })
}

fn exit_short(exit: &ExitRecord) -> ExitShort {
    ExitShort {
        generation: exit.generation,
        at_ms: exit.at.0,
        phase: exit.phase,
        cause: exit.cause,
        verdict: exit.diagnosis.cause,
        kind: exit.diagnosis.kind.clone(),
        confidence: exit.diagnosis.confidence,
        sentence: exit.diagnosis.sentence.clone(),
        uptime_ms: exit.evidence.uptime_ms,
        message_in_flight: exit.message_in_flight,
        attempt: exit.circumstances.attempt,
    }
}

fn exit_view(exit: ExitRecord) -> ExitView {
    ExitView {
        generation: exit.generation,
        at_ms: exit.at.0,
        phase: exit.phase,
        cause: exit.cause,
        message_in_flight: exit.message_in_flight,
        evidence: exit.evidence,
        circumstances: exit.circumstances,
        diagnosis: exit.diagnosis,
    }
}

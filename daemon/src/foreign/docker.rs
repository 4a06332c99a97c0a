//! Docker: `docker inspect` and `docker events`.
//!
//! ```text
//!  events of one container ─▶ lives (start … die) ─┐
//!  State of inspect ────────▶ the last end ────────┴▶ Ends
//! ```
//!
//! Owner: `foreign`. Read `life` for one end; here stands how lives are found. Invariants: without
//! events nothing is said of who asked; `OOMKilled` is a mark on the container, not on its main
//! process; the exit code of a container that runs is that of nobody. Absent: Docker's API.

mod life;

use dormouse_core::time::Wall;

use super::document::{Document, Kind};
use super::place::{Gaps, Place};
use super::{End, Reading, Step, Wanted, time};
use life::{Event, Life};

pub(super) fn read(documents: &[Document], wanted: &Wanted, gaps: &Gaps) -> Reading {
    let (mut containers, mut events) = (Vec::new(), Vec::new());
    for document in documents {
        let place = document.place(gaps);
        match document.kind {
            Kind::DockerContainer => containers.push(place),
            Kind::DockerEvent => events.extend(event(&place)),
            Kind::EcsTasks
            | Kind::EcsTask
            | Kind::EcsTaskEvent
            | Kind::EcsServices
            | Kind::EcsTaskDefinition
            | Kind::EcsClusters
            | Kind::EcsOther
            | Kind::KubernetesPod
            | Kind::KubernetesEvent
            | Kind::KubernetesList
            | Kind::KubernetesStatus => {}
        }
    }
    // What is written in one moment stays in the order in which it was written.
    events.sort_by_key(|event| event.at);
    let container = meant(&containers, wanted, gaps);
    let id = container.as_ref().and_then(|container| container.key("Id").text());
    let id = id.map(str::to_owned).or_else(|| meant_by_events(&events, wanted));
    let of_it = |event: &Event<'_>| match &id {
        Some(id) => is_same_id(&event.id, id),
        None => false,
    };
    let events: Vec<Event<'_>> = events.into_iter().filter(of_it).collect();
    reading(container.as_ref(), &events, wanted)
}

fn reading(container: Option<&Place<'_>>, events: &[Event<'_>], wanted: &Wanted) -> Reading {
    let name = container.and_then(name_of).map(str::to_owned);
    let name = name.or_else(|| events.iter().find_map(|event| event.name.clone()));
    let name = name.or_else(|| wanted.container.clone()).unwrap_or_else(|| "container".to_owned());
    let lives = lives(events);
    let mut ends: Vec<End> =
        lives.iter().map(|life| life::end_of_life(life, container, &name)).collect();
    if let Some(container) = container
        && let Some(end) = last_end(container, &lives, &name)
    {
        ends.push(end);
    }
    let is_running = container.is_some_and(|container| is_running(container));
    let mut starts: Vec<Wall> =
        events.iter().filter(|e| e.action == "start").map(|e| e.at).collect();
    let started = container.and_then(|container| container.at("State.StartedAt").time());
    starts.extend(started.filter(|at| starts.iter().all(|known| known.0.abs_diff(at.0) > 2_000)));
    let state = container.and_then(|container| container.at("State.Status").text());
    let mut looked_at = Vec::new();
    looked_at.extend(state.map(|state| format!("docker inspect: the container is {state}")));
    if is_running && state.is_none() {
        looked_at.push("docker inspect: the container is running".to_owned());
    }
    looked_at.push(match events.len() {
        0 => "no events of Docker, of it".to_owned(),
        count => format!("{count} events of Docker"),
    });
    Reading {
        subject: format!("Docker container {name}"),
        ask_again: format!("dormouse why docker {name}"),
        ends,
        starts,
        restarts_counted: container
            .and_then(|container| u64::try_from(container.key("RestartCount").integer()?).ok())
            .filter(|count| *count > 0),
        looked_at,
        not_health: Vec::new(),
        timeline: events.iter().filter_map(step).collect(),
    }
}

fn step(event: &Event<'_>) -> Option<Step> {
    // Health probes and execs would drown the rest.
    let is_noise = event.action.starts_with("exec_") || event.action == "health_status: healthy";
    let detail = match (event.signal, event.exit_code) {
        (Some(signal), _) => format!(" (signal {signal})"),
        (None, Some(code)) => format!(" (exit code {code})"),
        (None, None) => String::new(),
    };
    (!is_noise).then(|| Step { at: event.at, what: format!("{}{detail}", event.action) })
}

fn is_running(container: &Place<'_>) -> bool {
    container.at("State.Running").truth() == Some(true)
        && container.at("State.Restarting").truth() != Some(true)
}

/// "/web" → "web"
fn name_of<'a>(container: &Place<'a>) -> Option<&'a str> {
    container.key("Name").text().map(|name| name.trim_start_matches('/'))
}

/// Ids may be shortened, to twelve digits mostly.
fn is_same_id(one: &str, other: &str) -> bool {
    let shorter = one.len().min(other.len());
    shorter >= 12 && one.get(..shorter) == other.get(..shorter) || one == other
}

fn meant<'a>(containers: &[Place<'a>], wanted: &Wanted, gaps: &Gaps) -> Option<Place<'a>> {
    if let Some(wanted) = &wanted.container {
        let is_it = |container: &&Place<'_>| {
            name_of(container) == Some(wanted.as_str())
                || container.key("Id").text().is_some_and(|id| is_same_id(id, wanted))
        };
        return containers.iter().find(is_it).cloned();
    }
    let last_end =
        |container: &&Place<'_>| (!is_running(container), container.at("State.FinishedAt").time());
    let chosen = containers.iter().max_by_key(last_end)?;
    if containers.len() > 1 {
        let count = containers.len() - 1;
        gaps.add(format!("{count} more containers are in the documents, and were not asked about"));
    }
    Some(chosen.clone())
}

/// Without an inspect document: the container of the last end.
fn meant_by_events(events: &[Event<'_>], wanted: &Wanted) -> Option<String> {
    let is_it = |event: &&Event<'_>| match &wanted.container {
        Some(wanted) => event.name.as_deref() == Some(wanted) || is_same_id(&event.id, wanted),
        None => true,
    };
    let dies = events.iter().filter(is_it).filter(|event| event.action == "die");
    dies.max_by_key(|event| event.at).map(|event| event.id.clone())
}

fn event<'a>(place: &Place<'a>) -> Option<Event<'a>> {
    let kind = place.key("Type");
    if kind.exists() && kind.text() != Some("container") {
        return None;
    }
    let action = place.key("Action").text().or_else(|| place.key("status").text())?;
    let nanoseconds = place.key("timeNano");
    let at = match nanoseconds.exists() {
        true => nanoseconds.integer().and_then(time::of_nanoseconds),
        false => place.key("time").time(),
    };
    let attributes = place.at("Actor.Attributes");
    let id = place.at("Actor.ID").text().or_else(|| place.key("id").text());
    let Some(at) = at else {
        place.gaps().add(format!("{}: an event without a time was not read", place.name()));
        return None;
    };
    Some(Event {
        at,
        action: action.to_owned(),
        id: id.unwrap_or_default().to_owned(),
        name: attributes.key("name").text().map(str::to_owned),
        signal: attributes.key("signal").integer().and_then(|signal| i32::try_from(signal).ok()),
        exit_code: attributes.key("exitCode").exit_code(),
        is_swarm: attributes.key("com.docker.swarm.task.id").exists(),
        place: place.clone(),
    })
}

/// From start to die; what came before the first start belongs to the first life.
fn lives<'e, 'a>(events: &'e [Event<'a>]) -> Vec<Life<'e, 'a>> {
    let mut lives = Vec::new();
    let mut first = 0;
    for (index, event) in events.iter().enumerate() {
        if event.action == "start" {
            first = index;
        } else if event.action == "die" {
            let after = events[index + 1..].iter().find(|later| later.action != "die");
            lives.push(Life { events: &events[first..=index], after });
            first = index + 1;
        }
    }
    lives
}

/// The end that inspect shows, unless the events have it already.
fn last_end(container: &Place<'_>, lives: &[Life<'_, '_>], name: &str) -> Option<End> {
    let state = container.key("State");
    let finished = state.key("FinishedAt").time();
    if let Some(end) = life::never_started(container, name) {
        return Some(end);
    }
    let known = lives.iter().filter_map(|life| life.events.last()).map(|die| die.at);
    let is_known = |finished: Wall| known.clone().any(|die| die.0.abs_diff(finished.0) <= 5_000);
    let Some(finished) = finished else {
        // It says that it ended, in a time that cannot be read or in none.
        let has_ended = matches!(state.key("Status").text(), Some("exited" | "dead"));
        return (has_ended && lives.is_empty()).then(|| life::end_by_inspect(container, name));
    };
    if is_known(finished) {
        return None;
    }
    if is_running(container) {
        return Some(life::forgotten_end(container, finished, name));
    }
    Some(life::end_by_inspect(container, name))
}

#[cfg(test)]
mod tests;

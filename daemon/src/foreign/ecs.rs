//! Amazon ECS: describe-clusters, describe-tasks, describe-services, describe-task-definition and
//! task state changes.
//!
//! Owner: `foreign`. Read `task` for one stopped task, `decider` for which of its containers
//! counts; here stands which tasks are meant, and a service that could not even place one.
//! Invariants: a running task is no end; a count of running tasks, a completed rollout or a steady
//! state is never taken for health; a task that the platform forgot is named as missing.
//! Absent: ECS' API.

mod decider;
mod task;

use std::collections::BTreeMap;

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::facts::{Facts, Known};
use dormouse_core::time::Wall;

use super::document::{Document, Kind};
use super::place::{Gaps, Place};
use super::remedy::Setting;
use super::words::{not_started, placement_kind};
use super::{End, Reading, Step, Wanted};

/// The documents, sorted by what they are.
#[derive(Debug, Default)]
struct Pile<'a> {
    tasks: Vec<Place<'a>>,
    services: Vec<Place<'a>>,
    definitions: Vec<Place<'a>>,
    clusters: Vec<Place<'a>>,
    /// Names of those that ECS was asked about and does not know.
    unknown_clusters: Vec<String>,
}

pub(super) fn read(documents: &[Document], wanted: &Wanted, gaps: &Gaps) -> Reading {
    let pile = sorted(documents, gaps);
    let tasks = newest_state_of_each(pile.tasks.clone());
    let tasks = meant(tasks, wanted, gaps);
    let service = service_of(&pile, &tasks, wanted);
    let (mut ends, mut starts, mut running) = (Vec::new(), Vec::new(), 0_usize);
    for place in &tasks {
        starts.extend(place.key("startedAt").time());
        if task::has_ended(place) {
            ends.push(task::end(place, &pile.definitions, service.as_ref()));
        } else {
            running += 1;
        }
    }
    if let Some(service) = &service
        && let Some(end) = never_placed(service, &tasks)
    {
        ends.push(end);
    }
    let mut looked_at = vec![format!(
        "{} of ECS, {running} of them not ended",
        counted(tasks.len(), "task", "tasks")
    )];
    looked_at.extend(service.as_ref().map(|_service| "the service and its events".to_owned()));
    looked_at.extend(dead_cluster(&pile, cluster(&tasks, wanted), gaps));
    Reading {
        subject: subject(&tasks, service.as_ref(), wanted),
        ask_again: ask_again(&tasks, wanted),
        ends,
        starts,
        restarts_counted: None,
        looked_at,
        not_health: service.as_ref().map(signs_of_life).unwrap_or_default(),
        timeline: service.as_ref().map(service_timeline).unwrap_or_default(),
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

fn sorted<'a>(documents: &'a [Document], gaps: &'a Gaps) -> Pile<'a> {
    let mut pile = Pile::default();
    for document in documents {
        let place = document.place(gaps);
        for failure in place.key("failures").items() {
            match document.kind {
                Kind::EcsClusters => pile.unknown_clusters.extend(unknown_cluster(&failure)),
                _ => note_failure(&failure),
            }
        }
        match document.kind {
            Kind::EcsTasks => pile.tasks.extend(place.key("tasks").items()),
            Kind::EcsTask => pile.tasks.push(place),
            Kind::EcsTaskEvent => pile.tasks.push(place.key("detail")),
            Kind::EcsServices => pile.services.extend(place.key("services").items()),
            Kind::EcsTaskDefinition => pile.definitions.push(place.key("taskDefinition")),
            Kind::EcsClusters => pile.clusters.extend(place.key("clusters").items()),
            Kind::EcsOther
            | Kind::DockerContainer
            | Kind::DockerEvent
            | Kind::KubernetesPod
            | Kind::KubernetesEvent
            | Kind::KubernetesList
            | Kind::KubernetesStatus => {}
        }
    }
    pile
}

fn note_failure(failure: &Place<'_>) {
    let arn = failure.key("arn").text().unwrap_or("something");
    let reason = failure.key("reason").text().unwrap_or("no reason given");
    let words = match reason {
        "MISSING" => "ECS does not know it: stopped tasks are forgotten after about an hour",
        _ => "ECS said nothing about it",
    };
    failure.gaps().add(format!("{}: {words} ({reason})", last_part(arn)));
}

/// Its name, if that is what the failure says.
fn unknown_cluster(failure: &Place<'_>) -> Option<String> {
    if failure.key("reason").text() != Some("MISSING") {
        note_failure(failure);
        return None;
    }
    failure.key("arn").text().map(|arn| last_part(arn).to_owned())
}

/// A cluster that is not there, or not in use: then nothing in it can be asked about, and that no
/// task was found says nothing.
fn dead_cluster(pile: &Pile<'_>, name: Option<&str>, gaps: &Gaps) -> Option<String> {
    let is_it = |found: &str| name.is_none_or(|name| name == found);
    if let Some(unknown) = pile.unknown_clusters.iter().find(|unknown| is_it(unknown)) {
        gaps.add(format!(
            "cluster {unknown}: ECS knows no cluster of this name in this account and region \
             (MISSING): is it another one, or another profile?"
        ));
        return Some(format!("cluster {unknown}, which does not exist"));
    }
    let of = |cluster: &Place<'_>| {
        let found = cluster.key("clusterName").text().or_else(|| {
            let arn = cluster.key("clusterArn").text()?;
            Some(last_part(arn))
        });
        Some((
            found.filter(|found| is_it(found))?.to_owned(),
            cluster.key("status").text()?.to_owned(),
        ))
    };
    let (found, status) =
        pile.clusters.iter().filter_map(of).find(|(_, status)| status != "ACTIVE")?;
    let words = match status.as_str() {
        "INACTIVE" => "it was deleted, and its tasks with it",
        "PROVISIONING" => "it is being made",
        "DEPROVISIONING" => "it is being deleted",
        "FAILED" => "it could not be made",
        _ => "it is not in use",
    };
    gaps.add(format!("cluster {found} is {status}: {words}"));
    Some(format!("cluster {found}, which is {status}"))
}

/// "arn:aws:ecs:eu-west-1:1:task/cluster/abc" → "abc"
pub(super) fn last_part(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

/// A task seen several times (state changes) counts once, as it was last.
fn newest_state_of_each(tasks: Vec<Place<'_>>) -> Vec<Place<'_>> {
    let mut by_arn: BTreeMap<String, Place<'_>> = BTreeMap::new();
    for (index, task) in tasks.into_iter().enumerate() {
        let arn = match task.key("taskArn").text() {
            Some(arn) => arn.to_owned(),
            None => format!("without an ARN {index}"),
        };
        let rank = |task: &Place<'_>| {
            let is_stopped = task.key("lastStatus").text() == Some("STOPPED");
            (is_stopped, task.key("version").integer().unwrap_or_default())
        };
        let is_newer = by_arn.get(&arn).is_none_or(|known| rank(&task) >= rank(known));
        if is_newer {
            by_arn.insert(arn, task);
        }
    }
    by_arn.into_values().collect()
}

/// The tasks that are asked about; without a wish, those of the group that ended last.
fn meant<'a>(tasks: Vec<Place<'a>>, wanted: &Wanted, gaps: &Gaps) -> Vec<Place<'a>> {
    if let Some(task) = &wanted.task {
        let is_meant =
            |place: &Place<'_>| place.key("taskArn").text().map(last_part) == Some(last_part(task));
        return tasks.into_iter().filter(is_meant).collect();
    }
    let group = |place: &Place<'a>| place.key("group").text().unwrap_or_default();
    if let Some(service) = &wanted.service {
        let group_wanted = format!("service:{}", last_part(service));
        return tasks.into_iter().filter(|place| group(place) == group_wanted).collect();
    }
    let last_end = |place: &&Place<'a>| (task::has_ended(place), task::ended_at(place));
    let Some(chosen) = tasks.iter().max_by_key(last_end).map(group) else { return tasks };
    let (meant, others): (Vec<_>, Vec<_>) =
        tasks.into_iter().partition(|place| group(place) == chosen);
    for other in &others {
        gaps.add(format!(
            "tasks of {} are in the documents, and were not asked about",
            group(other)
        ));
    }
    meant
}

fn service_of<'a>(pile: &Pile<'a>, tasks: &[Place<'a>], wanted: &Wanted) -> Option<Place<'a>> {
    let by_group = || tasks.first()?.key("group").text()?.strip_prefix("service:");
    let name = wanted.service.as_deref().map(last_part).or_else(by_group);
    let is_it = |service: &&Place<'_>| service.key("serviceName").text() == name;
    match name {
        Some(_) => pile.services.iter().find(is_it).cloned(),
        // Of one service alone, with no task to name it.
        None if tasks.is_empty() && pile.services.len() == 1 => pile.services.first().cloned(),
        None => None,
    }
}

fn subject(tasks: &[Place<'_>], service: Option<&Place<'_>>, wanted: &Wanted) -> String {
    let cluster = cluster(tasks, wanted).map(|name| format!(" in cluster {name}"));
    let cluster = cluster.unwrap_or_default();
    let group = tasks.first().and_then(|task| task.key("group").text());
    let by_group = group.and_then(|group| group.strip_prefix("service:"));
    let name = wanted.service.as_deref().or(by_group);
    let name = name.or_else(|| service?.key("serviceName").text());
    match (&wanted.task, name, tasks) {
        (Some(task), ..) => format!("ECS task {}{cluster}", last_part(task)),
        (None, Some(name), _) => format!("ECS service {}{cluster}", last_part(name)),
        (None, None, [one]) => {
            let arn = one.key("taskArn").text().unwrap_or("without an ARN");
            format!("ECS task {}{cluster}", last_part(arn))
        }
        (None, None, _) => format!("ECS tasks{cluster}"),
    }
}

fn cluster<'a>(tasks: &[Place<'a>], wanted: &'a Wanted) -> Option<&'a str> {
    let of_task = || tasks.first()?.key("clusterArn").text();
    wanted.cluster.as_deref().or_else(of_task).map(last_part)
}

fn ask_again(tasks: &[Place<'_>], wanted: &Wanted) -> String {
    let cluster = cluster(tasks, wanted).unwrap_or("CLUSTER");
    let group = tasks.first().and_then(|task| task.key("group").text()).unwrap_or_default();
    let service = wanted.service.as_deref().or_else(|| group.strip_prefix("service:"));
    let task = || tasks.first()?.key("taskArn").text();
    match (service, wanted.task.as_deref().or_else(task)) {
        (Some(service), _) => {
            format!("dormouse why ecs --cluster {cluster} --service {}", last_part(service))
        }
        (None, Some(task)) => {
            format!("dormouse why ecs --cluster {cluster} --task {}", last_part(task))
        }
        (None, None) => format!("dormouse why ecs --cluster {cluster} --service SERVICE"),
    }
}

/// What all held during endless deaths, and so says nothing.
fn signs_of_life(service: &Place<'_>) -> Vec<dormouse_core::diagnosis::facts::Fact> {
    let deployment = service.key("deployments").items().into_iter().next();
    let of_deployment = |key| deployment.as_ref().map(|deployment| deployment.key(key));
    let steady = service.key("events").items().into_iter().map(|event| event.key("message"));
    let steady = steady.into_iter().find(|message| {
        message.text().is_some_and(|text| text.contains("has reached a steady state"))
    });
    [
        Some(service.key("runningCount")),
        of_deployment("rolloutState"),
        of_deployment("failedTasks"),
        steady,
    ]
    .into_iter()
    .flatten()
    .filter(Place::exists)
    .map(|place| place.fact())
    .collect()
}

const SERVICE_EVENTS_MAX: usize = 20;

fn service_timeline(service: &Place<'_>) -> Vec<Step> {
    let events = service.key("events").items();
    let step = |event: &Place<'_>| {
        Step::maybe(event.key("createdAt").time(), event.key("message").text()?.to_owned())
    };
    events.iter().take(SERVICE_EVENTS_MAX).filter_map(step).collect()
}

fn says_unplaced(text: &str) -> bool {
    let lower = text.to_lowercase();
    lower.contains("unable to place a task") || lower.contains("was unable to run a task")
}

fn says_recovered(text: &str) -> bool {
    let lower = text.to_lowercase();
    lower.contains("has started") || lower.contains("reached a steady state")
}

/// The newest word of a service is that it finds no room, and no task was made after it.
fn never_placed(service: &Place<'_>, tasks: &[Place<'_>]) -> Option<End> {
    let events = service.key("events").items();
    let message = |event: &Place<'_>| event.key("message").text().unwrap_or_default().to_owned();
    // ECS lists them newest first; their times count, where they have some.
    let newest = |says: fn(&str) -> bool| {
        let fitting = events.iter().enumerate().filter(|(_, event)| says(&message(event)));
        fitting
            .max_by_key(|(index, event)| (event.key("createdAt").time(), std::cmp::Reverse(*index)))
    };
    let (index, event) = newest(says_unplaced)?;
    let at = event.key("createdAt").time();
    let is_later =
        |(other_index, other): (usize, &Place<'_>)| match (at, other.key("createdAt").time()) {
            (Some(at), Some(other)) => other > at,
            _ => other_index < index,
        };
    if newest(says_recovered).is_some_and(is_later) {
        return None;
    }
    let made = tasks.iter().filter_map(|task| task.key("createdAt").time()).max();
    if made.is_some_and(|made| at.is_some_and(|at| made > at)) {
        return None;
    }
    let text = message(event);
    let kind = not_started(Cause::Placement, placement_kind(&text));
    let fact = event.key("message").fact().at(at);
    let facts = Facts { not_started: Some(Known::new(kind, fact)), ..Facts::default() };
    Some(unplaced_end(facts, at, text))
}

fn unplaced_end(facts: Facts, at: Option<Wall>, text: String) -> End {
    End {
        instance: "no task was placed".to_owned(),
        started_at: None,
        ended_at: at,
        exit_code: None,
        facts,
        at_most: None,
        ruled_out: Vec::new(),
        timeline: Step::maybe(at, text).into_iter().collect(),
        setting: Setting::None,
    }
}

#[cfg(test)]
mod tests;

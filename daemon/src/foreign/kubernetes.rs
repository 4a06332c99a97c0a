//! Kubernetes: pods and events, as `kubectl get … -o json` prints them.
//!
//! Owner: `foreign`. Read `pod` for what ended one, `container` for one of its containers; here
//! stands which pod is meant, and `Event`, what is read of an event. Invariants: a state that waits
//! (CrashLoopBackOff) is never a cause; an event counts for a container's end only near to its
//! time; a failed readiness probe ends nothing. Absent: Kubernetes' API.

mod container;
mod pod;
mod quantity;

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::facts::{Fact, Facts, Known, Notice};
use dormouse_core::time::Wall;

use super::document::{Document, Kind};
use super::place::{Gaps, Place};
use super::remedy::Setting;
use super::words::{not_started, placement_kind, pull_kind};
use super::{End, Reading, Step, Wanted};

/// What is read of an event, of either of its two APIs.
#[derive(Debug, Clone)]
struct Event<'a> {
    reason: &'a str,
    message: &'a str,
    /// When it was last seen.
    at: Option<Wall>,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    kind: Option<&'a str>,
    /// "spec.containers{app}"
    field: &'a str,
    place: Place<'a>,
}

impl Event<'_> {
    fn fact(&self) -> Fact {
        let key = if self.place.key("note").exists() { "note" } else { "message" };
        self.place.key(key).fact_of(format!("{}: {}", self.reason, self.message)).at(self.at)
    }

    /// Of this container, or of the pod as a whole.
    fn is_of_container(&self, container: &str) -> bool {
        match self.field.split_once('{') {
            Some((_, name)) => name.trim_end_matches('}') == container,
            None => true,
        }
    }
}

pub(super) fn read(documents: &[Document], wanted: &Wanted, gaps: &Gaps) -> Reading {
    let (mut pods, mut events) = (Vec::new(), Vec::new());
    for document in documents {
        let place = document.place(gaps);
        match document.kind {
            Kind::KubernetesPod => pods.push(place),
            Kind::KubernetesEvent => events.push(event(&place)),
            Kind::KubernetesList => sort_list(&place, &mut pods, &mut events),
            Kind::KubernetesStatus => {
                let (reason, message) = (place.key("reason"), place.key("message"));
                let words = message.text().or_else(|| reason.text()).unwrap_or("no reason given");
                gaps.add(format!("Kubernetes answered with a failure: {words}"));
            }
            Kind::EcsTasks
            | Kind::EcsTask
            | Kind::EcsTaskEvent
            | Kind::EcsServices
            | Kind::EcsTaskDefinition
            | Kind::EcsClusters
            | Kind::EcsOther
            | Kind::DockerContainer
            | Kind::DockerEvent => {}
        }
    }
    match meant(&pods, &events, wanted, gaps) {
        Some(pod) => of_pod(&pod, &events, gaps),
        None => of_events(&events, wanted),
    }
}

fn sort_list<'a>(list: &Place<'a>, pods: &mut Vec<Place<'a>>, events: &mut Vec<Event<'a>>) {
    let of_list = list.key("kind").text().unwrap_or_default();
    for item in list.key("items").items() {
        // In a list of one kind, the items do not repeat it.
        match item.key("kind").text().unwrap_or(of_list.trim_end_matches("List")) {
            "Pod" => pods.push(item),
            "Event" => events.push(event(&item)),
            other => {
                let words = if other.is_empty() { "an item of no kind" } else { other };
                list.gaps().add(format!("{words}: not read, only pods and events are"));
            }
        }
    }
}

fn event<'a>(place: &Place<'a>) -> Event<'a> {
    let object = place.key("involvedObject");
    let object = if object.exists() { object } else { place.key("regarding") };
    let text = |place: Place<'a>| place.text().unwrap_or_default();
    let at = place
        .at("series.lastObservedTime")
        .time()
        .or_else(|| place.key("lastTimestamp").time())
        .or_else(|| place.key("deprecatedLastTimestamp").time())
        .or_else(|| place.key("eventTime").time())
        .or_else(|| place.key("firstTimestamp").time());
    let message = place.key("message").text().or_else(|| place.key("note").text());
    Event {
        reason: text(place.key("reason")),
        message: message.unwrap_or_default(),
        at,
        namespace: object.key("namespace").text(),
        name: object.key("name").text(),
        kind: object.key("kind").text(),
        field: text(object.key("fieldPath")),
        place: place.clone(),
    }
}

fn name_of<'a>(pod: &Place<'a>) -> Option<&'a str> {
    pod.at("metadata.name").text()
}

fn meant<'a>(
    pods: &[Place<'a>],
    events: &[Event<'a>],
    wanted: &Wanted,
    gaps: &Gaps,
) -> Option<Place<'a>> {
    let namespace = |pod: &Place<'a>| pod.at("metadata.namespace").text();
    let is_it = |pod: &&Place<'a>| {
        (wanted.pod.is_none() || name_of(pod) == wanted.pod.as_deref())
            && (wanted.namespace.is_none() || namespace(pod) == wanted.namespace.as_deref())
    };
    let fitting: Vec<&Place<'a>> = pods.iter().filter(is_it).collect();
    if fitting.len() > 1 {
        gaps.add(format!(
            "{} more pods are in the documents, and were not asked about",
            fitting.len() - 1
        ));
    }
    let last_end = |pod: &&&Place<'a>| {
        let ends = pod::ends(pod, &of_it(pod, events), events);
        (!ends.is_empty(), ends.iter().filter_map(|end| end.ended_at).max())
    };
    match fitting.as_slice() {
        [one] => Some((*one).clone()),
        many => many.iter().max_by_key(last_end).map(|pod| (**pod).clone()),
    }
}

/// The events of one pod, oldest first.
fn of_it<'a>(pod: &Place<'a>, events: &[Event<'a>]) -> Vec<Event<'a>> {
    let (name, namespace) = (name_of(pod), pod.at("metadata.namespace").text());
    let is_its = |event: &&Event<'a>| {
        event.kind.is_none_or(|kind| kind == "Pod")
            && event.name == name
            && (event.namespace.is_none() || namespace.is_none() || event.namespace == namespace)
    };
    let mut events: Vec<Event<'a>> = events.iter().filter(is_its).cloned().collect();
    events.sort_by_key(|event| event.at);
    events
}

fn of_pod<'a>(pod: &Place<'a>, all_events: &[Event<'a>], gaps: &Gaps) -> Reading {
    let events = of_it(pod, all_events);
    let mut ends = pod::ends(pod, &events, all_events);
    let newest = ends.iter().max_by_key(|end| end.ended_at).map(|end| end.instance.clone());
    for other in ends.iter().filter(|end| Some(&end.instance) != newest.as_ref()) {
        gaps.add(format!("{} ended too, and is not counted here", other.instance));
    }
    ends.retain(|end| Some(&end.instance) == newest.as_ref());
    let container = newest.as_deref().and_then(|instance| instance.strip_prefix("container "));
    let (starts, restarts_counted) = match container {
        Some(container) => pod::starts_and_restarts(pod, container),
        None => (Vec::new(), None),
    };
    let namespace = pod.at("metadata.namespace").text().unwrap_or("default");
    let name = name_of(pod).unwrap_or("without a name");
    let phase = pod.at("status.phase").text().unwrap_or("of unknown phase");
    if events.is_empty() {
        gaps.add("events of this pod: there are none in the documents (they are kept for an hour)");
    }
    Reading {
        subject: format!("Kubernetes pod {namespace}/{name}"),
        ask_again: format!("dormouse why k8s {namespace}/{name}"),
        ends,
        starts,
        restarts_counted,
        looked_at: vec![
            format!("the pod, which is {phase}"),
            format!("{} of its events", events.len()),
        ],
        not_health: Vec::new(),
        timeline: events.iter().filter_map(step).collect(),
    }
}

fn step(event: &Event<'_>) -> Option<Step> {
    Step::maybe(event.at, format!("{}: {}", event.reason, event.message))
}

/// The pod is gone, and its events are what is left.
fn of_events(events: &[Event<'_>], wanted: &Wanted) -> Reading {
    let is_it = |event: &&Event<'_>| {
        event.kind.is_none_or(|kind| kind == "Pod")
            && wanted.pod.as_deref().is_none_or(|pod| event.name == Some(pod))
    };
    let mut of_pods: Vec<&Event<'_>> = events.iter().filter(is_it).collect();
    of_pods.sort_by_key(|event| event.at);
    let last = of_pods.iter().rev().find_map(|event| Some((end_by_event(event)?, *event)));
    let name = last.as_ref().and_then(|(_, event)| event.name).or(wanted.pod.as_deref());
    let namespace = last.as_ref().and_then(|(_, event)| event.namespace);
    let namespace = namespace.or(wanted.namespace.as_deref()).unwrap_or("default");
    let name = name.unwrap_or("POD");
    Reading {
        subject: format!("Kubernetes pod {namespace}/{name}"),
        ask_again: format!("dormouse why k8s {namespace}/{name}"),
        ends: last.into_iter().map(|(end, _)| end).collect(),
        starts: Vec::new(),
        restarts_counted: None,
        looked_at: vec![format!("{} events, and no pod", of_pods.len())],
        not_health: Vec::new(),
        timeline: of_pods.iter().filter_map(|event| step(event)).collect(),
    }
}

/// The events that say alone why a pod ended or never began.
fn end_by_event(event: &Event<'_>) -> Option<End> {
    let mut facts = Facts::default();
    let notice = |kind| Known::new(Notice { cause: Cause::Evicted, kind }, event.fact());
    match event.reason {
        "Evicted" => facts.notice = Some(notice(pod::eviction_kind(event.message))),
        "Preempted" | "Preempting" => facts.notice = Some(notice("preempted")),
        "FailedScheduling" => {
            let is = not_started(Cause::Placement, placement_kind(event.message));
            facts.not_started = Some(Known::new(is, event.fact()));
        }
        "Failed" if event.message.to_lowercase().contains("failed to pull image") => {
            let is = not_started(Cause::ImagePull, pull_kind(event.message));
            facts.not_started = Some(Known::new(is, event.fact()));
        }
        _ => return None,
    }
    facts.missing.push("the pod itself: it was not in the documents".to_owned());
    Some(End {
        instance: "the pod".to_owned(),
        started_at: None,
        ended_at: event.at,
        exit_code: None,
        facts,
        at_most: None,
        ruled_out: Vec::new(),
        timeline: Vec::new(),
        setting: Setting::None,
    })
}

#[cfg(test)]
mod tests;

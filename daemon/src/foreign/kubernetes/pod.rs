//! One pod: what ended it, or one of its containers, or kept it from its start.
//!
//! ```text
//!  never placed → the pod as a whole (evicted, deleted, too long) → each container by itself
//! ```
//!
//! Owner: `kubernetes`. Invariants: what ended the pod ended its containers, of which the one that
//! finished first decides; else containers end each for itself; `lastState` is read wherever a
//! container waits or runs again. Absent: conclusions.

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::Confidence;
use dormouse_core::diagnosis::facts::{Facts, Initiator, Known, NotStarted, Notice, Oom};
use dormouse_core::time::Wall;

use super::super::place::Place;
use super::super::words::{init_kind, not_started, placement_kind, pull_kind, start_kind};
use super::super::{End, Step};
use super::{Event, container};

pub(super) const GRACE_SECONDS_DEFAULT: i64 = 30;
/// Between an event and what it says: clocks of one node, and the kubelet's own pace.
pub(super) const EVENT_SLACK_MS: u64 = 15_000;
const SIGKILLED: i32 = 137;

/// All ends of a pod. `all_events` are those of its owners too.
pub(super) fn ends<'a>(
    pod: &Place<'a>,
    events: &[Event<'a>],
    all_events: &[Event<'a>],
) -> Vec<End> {
    if let Some(known) = never_placed(pod) {
        let at = pod.at("metadata.creationTimestamp").time();
        let newest = events.iter().rfind(|event| event.reason == "FailedScheduling");
        let facts = Facts { not_started: Some(known), ..Facts::default() };
        return vec![plain_end(pod, newest.and_then(|event| event.at).or(at), facts)];
    }
    let statuses = statuses(pod);
    if let Some(end) = end_of_pod(pod, &statuses, events, all_events) {
        return vec![end];
    }
    let mut ends = Vec::new();
    for status in &statuses {
        let kept_waiting = waits(status, events);
        ends.extend(kept_waiting.map(|known| end_by_waiting(pod, status, known, events)));
        for state in ["state", "lastState"] {
            let terminated = status.key(state).key("terminated");
            if terminated.exists() {
                ends.push(container::end(pod, status, &terminated, events));
            }
        }
    }
    if ends.is_empty()
        && let Some(known) = set_up_failed(pod, &statuses, events)
    {
        let at = events.iter().filter_map(|event| event.at).max();
        let facts = Facts { not_started: Some(known), ..Facts::default() };
        ends.push(plain_end(pod, at, facts));
    }
    deciding(pod, ends)
}

/// Of containers that all ended, the first that failed; the others ended because of it.
fn deciding(pod: &Place<'_>, mut ends: Vec<End>) -> Vec<End> {
    let is_over = matches!(pod.at("status.phase").text(), Some("Failed" | "Succeeded"));
    // One that had done its work hurt nobody.
    let failed = ends.iter().filter(|end| end.exit_code != Some(0));
    let first = failed.min_by_key(|end| end.ended_at).map(|end| end.instance.clone());
    if let Some(first) = first.filter(|_| is_over) {
        ends.retain(|end| end.instance == first);
    }
    ends
}

fn statuses<'a>(pod: &Place<'a>) -> Vec<Place<'a>> {
    let status = pod.key("status");
    let keys = ["initContainerStatuses", "containerStatuses"];
    keys.into_iter().flat_map(|key| status.key(key).items()).collect()
}

fn never_placed(pod: &Place<'_>) -> Option<Known<NotStarted>> {
    let reason = pod.at("status.reason");
    let message = pod.at("status.message");
    let placement = |text: &str| not_started(Cause::Placement, placement_kind(text));
    if let Some(text) = reason.text() {
        let is_refused = text.starts_with("OutOf")
            || matches!(text, "UnexpectedAdmissionError" | "NodeAffinity" | "NodePorts");
        if is_refused {
            let words = format!("{text} {}", message.text().unwrap_or_default());
            return Some(Known::new(placement(&words), reason.fact()));
        }
    }
    if pod.at("status.phase").text() != Some("Pending") {
        return None;
    }
    let condition = condition(pod, "PodScheduled")?;
    let is_false = condition.key("status").text() == Some("False");
    if !is_false || condition.key("reason").text() != Some("Unschedulable") {
        return None;
    }
    let message = condition.key("message");
    let fact = message.fact().at(condition.key("lastTransitionTime").time());
    Some(Known::new(placement(message.text().unwrap_or_default()), fact))
}

fn condition<'a>(pod: &Place<'a>, kind: &str) -> Option<Place<'a>> {
    let all = pod.at("status.conditions").items();
    all.into_iter().find(|condition| condition.key("type").text() == Some(kind))
}

/// Which of a node's resources ran short, or which limit of the pod's own it passed.
pub(super) fn eviction_kind(message: &str) -> &'static str {
    const TABLE: [(&str, &str); 12] = [
        ("low on resource: memory", "memory"),
        ("low on resource: ephemeral-storage", "storage"),
        ("low on resource: nodefs", "storage"),
        ("low on resource: imagefs", "storage"),
        ("low on resource: inodes", "inodes"),
        ("low on resource: pids", "pids"),
        ("memorypressure", "memory"),
        ("diskpressure", "storage"),
        ("pidpressure", "pids"),
        ("node shutdown", "node_shutdown"),
        ("exceeds the total limit", "own_storage_limit"),
        ("exceeded its local ephemeral storage limit", "own_storage_limit"),
    ];
    let lower = message.to_lowercase();
    if lower.contains("usage of emptydir volume") {
        return "own_storage_limit";
    }
    TABLE.iter().find(|(words, _)| lower.contains(words)).map_or("", |(_, kind)| kind)
}

/// What the infrastructure did to the pod as a whole.
fn notice(pod: &Place<'_>, events: &[Event<'_>]) -> Option<Known<Notice>> {
    let reason = pod.at("status.reason");
    let message = pod.at("status.message").text().unwrap_or_default();
    let evicted = |kind| Notice { cause: Cause::Evicted, kind };
    let lost = |kind| Notice { cause: Cause::HostLost, kind };
    let by_reason = match reason.text() {
        Some("Evicted") => Some(evicted(eviction_kind(message))),
        Some("Preempting" | "Preempted") => Some(evicted("preempted")),
        Some("NodeLost") => Some(lost("unreachable")),
        Some("NodeShutdown" | "Shutdown") => Some(evicted("node_shutdown")),
        Some("Terminated") if message.to_lowercase().contains("node shutdown") => {
            Some(evicted("node_shutdown"))
        }
        _ => None,
    };
    if let Some(is) = by_reason {
        let fact = match message.is_empty() {
            true => reason.fact(),
            false => reason.fact_of(format!("{}: {message}", reason.text().unwrap_or_default())),
        };
        return Some(Known::new(is, fact));
    }
    let target = condition(pod, "DisruptionTarget");
    let target = target.filter(|target| target.key("status").text() == Some("True"));
    let Some(target) = target else {
        // No pod is evicted and lives.
        let event = events.iter().rev().find(|event| event.reason == "Evicted")?;
        return Some(Known::new(evicted(eviction_kind(event.message)), event.fact()));
    };
    let words = target.key("message").text().unwrap_or_default();
    let reason = target.key("reason");
    let is = match reason.text()? {
        "PreemptionByScheduler" | "PreemptionByKubeScheduler" => evicted("preempted"),
        "EvictionByEvictionAPI" => evicted("drained"),
        "TerminationByKubelet" => evicted(eviction_kind(words)),
        "DeletionByPodGC" => lost("gone"),
        "DeletionByTaintManager" => {
            let words = words.to_lowercase();
            let is_lost = words.contains("unreachable") || words.contains("not-ready");
            if is_lost { lost("unreachable") } else { evicted("tainted") }
        }
        _ => return None,
    };
    Some(Known::new(is, reason.fact().at(target.key("lastTransitionTime").time())))
}

fn asked_by<'a>(
    pod: &Place<'a>,
    all_events: &[Event<'a>],
    at_most: &mut Option<Confidence>,
) -> Option<Known<Initiator>> {
    let reason = pod.at("status.reason");
    if reason.text() == Some("DeadlineExceeded") {
        return Some(Known::new(Initiator::Watchdog { kind: "max_life" }, reason.fact()));
    }
    let name = super::name_of(pod)?;
    let owner = pod.at("metadata.ownerReferences").items().into_iter().next();
    let owner = owner.as_ref().and_then(|owner| owner.key("name").text());
    let deletion = pod.at("metadata.deletionTimestamp");
    let scaled = all_events.iter().find(|event| match event.reason {
        "SuccessfulDelete" => event.message.split_whitespace().any(|word| word == name),
        "ScalingReplicaSet" => {
            event.message.starts_with("Scaled down")
                && owner
                    .is_some_and(|owner| event.message.split_whitespace().any(|word| word == owner))
        }
        _ => false,
    });
    if let Some(scaled) =
        scaled.filter(|event| deletion.exists() || event.reason == "SuccessfulDelete")
    {
        return Some(Known::new(Initiator::Deploy, scaled.fact()));
    }
    if deletion.exists() {
        return Some(Known::new(Initiator::User, deletion.fact()));
    }
    let stopping = all_events.iter().find(|event| {
        event.name == Some(name)
            && event.reason == "Killing"
            && event.message.starts_with("Stopping container")
    })?;
    *at_most = Some(Confidence::Likely);
    Some(Known::new(Initiator::User, stopping.fact()))
}

/// Ended as a whole: then one end is all there is to say.
fn end_of_pod<'a>(
    pod: &Place<'a>,
    statuses: &[Place<'a>],
    events: &[Event<'a>],
    all_events: &[Event<'a>],
) -> Option<End> {
    let mut at_most = None;
    let notice = notice(pod, events);
    let asked = asked_by(pod, all_events, &mut at_most);
    if notice.is_none() && asked.is_none() {
        return None;
    }
    let ended = statuses.iter().filter_map(|status| {
        let terminated = status.at("state.terminated");
        Some((terminated.key("finishedAt").time()?, status, terminated))
    });
    let first = ended.min_by_key(|(at, ..)| *at);
    if notice.is_none() && first.is_none() {
        // Asked to end, and has not yet.
        return None;
    }
    let mut end = match first {
        Some((_, status, terminated)) => container::end(pod, status, &terminated, events),
        None => plain_end(pod, pod.at("metadata.deletionTimestamp").time(), Facts::default()),
    };
    end.instance = "the pod".to_owned();
    end.at_most = at_most;
    end.facts.health = None;
    if let Some(oom) = &mut end.facts.oom {
        // Asked to end as well: the mark alone does not say which of the two came first.
        oom.is = Oom::Somebody;
    }
    if notice.is_none() && matches!(asked.as_ref().map(|asked| asked.is), Some(Initiator::User)) {
        end.facts.missing.push("who deleted the pod: the API server's audit log".to_owned());
    }
    end.facts.grace_ran_out = grace(pod, &end);
    if end.ended_at.is_none() {
        end.ended_at = pod.at("status.startTime").time();
    }
    end.facts.notice = notice;
    end.facts.asked_by = asked;
    Some(end)
}

/// `deletionTimestamp` is the time at which the grace is over.
fn grace(pod: &Place<'_>, end: &End) -> Option<Known<()>> {
    let over = pod.at("metadata.deletionTimestamp");
    let (over_at, ended_at) = (over.time()?, end.ended_at?);
    let has_run_out = end.exit_code == Some(SIGKILLED)
        && ended_at.0.saturating_add(2_000) >= over_at.0
        && ended_at.0 <= over_at.0.saturating_add(EVENT_SLACK_MS);
    has_run_out.then(|| {
        let seconds = pod.at("metadata.deletionGracePeriodSeconds").integer();
        let seconds = seconds.unwrap_or(GRACE_SECONDS_DEFAULT);
        let words = format!("its grace of {seconds} s was over when it ended");
        Known::new((), over.fact_of(words).at(over.time()))
    })
}

/// A container that waits, and will not come to its start.
fn waits(status: &Place<'_>, events: &[Event<'_>]) -> Option<Known<NotStarted>> {
    let waiting = status.at("state.waiting");
    let reason = waiting.key("reason");
    let name = status.key("name").text().unwrap_or_default();
    let message = waiting.key("message").text().unwrap_or_default();
    let texts = |event_reason: &str| {
        let of_it = events
            .iter()
            .filter(|event| event.reason == event_reason && event.is_of_container(name));
        let words: Vec<&str> = of_it.map(|event| event.message).collect();
        format!("{message} {}", words.join(" "))
    };
    let is = match reason.text()? {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError" => {
            let text = format!("{} {}", reason.text()?, texts("Failed"));
            not_started(Cause::ImagePull, pull_kind(&text))
        }
        "CreateContainerConfigError" => not_started(Cause::InitFailed, init_kind(message)),
        "CreateContainerError" | "RunContainerError" | "StartError" | "PostStartHookError" => {
            not_started(Cause::StartFailed, start_kind(message))
        }
        _ => return None,
    };
    let fact = match message.is_empty() {
        true => reason.fact(),
        false => reason.fact_of(format!("{}: {message}", reason.text()?)),
    };
    Some(Known::new(is, fact))
}

/// Volumes and the network come before every container.
fn set_up_failed(
    pod: &Place<'_>,
    statuses: &[Place<'_>],
    events: &[Event<'_>],
) -> Option<Known<NotStarted>> {
    let is_pending = pod.at("status.phase").text() == Some("Pending");
    let waits = statuses.iter().all(|status| status.at("state.waiting").exists());
    if !is_pending || !waits {
        return None;
    }
    let failed = events.iter().rev().find(|event| {
        matches!(event.reason, "FailedMount" | "FailedAttachVolume" | "FailedCreatePodSandBox")
    })?;
    let kind = match failed.reason {
        "FailedCreatePodSandBox" => "network",
        _ => match init_kind(failed.message) {
            kind @ ("secrets" | "config_map") => kind,
            _ => "volume",
        },
    };
    Some(Known::new(not_started(Cause::InitFailed, kind), failed.fact()))
}

fn end_by_waiting(
    pod: &Place<'_>,
    status: &Place<'_>,
    known: Known<NotStarted>,
    events: &[Event<'_>],
) -> End {
    let name = status.key("name").text().unwrap_or("without a name");
    let of_it = events.iter().filter(|event| event.is_of_container(name));
    let at = of_it.filter_map(|event| event.at).max();
    let facts = Facts { not_started: Some(known), ..Facts::default() };
    let mut end = plain_end(pod, at.or_else(|| pod.at("status.startTime").time()), facts);
    end.instance = format!("container {name}");
    end.setting = container::setting(pod, name);
    end
}

fn plain_end(pod: &Place<'_>, ended_at: Option<Wall>, facts: Facts) -> End {
    let created = pod.at("metadata.creationTimestamp").time();
    End {
        instance: "the pod".to_owned(),
        started_at: None,
        ended_at: ended_at.or(created),
        exit_code: None,
        facts,
        at_most: None,
        ruled_out: Vec::new(),
        timeline: Step::maybe(created, "created").into_iter().collect(),
        setting: container::setting(pod, ""),
    }
}

/// Of one container: the starts of which there is a trace, and its count of restarts.
pub(super) fn starts_and_restarts(pod: &Place<'_>, name: &str) -> (Vec<Wall>, Option<u64>) {
    let statuses = statuses(pod);
    let status = statuses.iter().find(|status| status.key("name").text() == Some(name));
    let Some(status) = status else { return (Vec::new(), None) };
    let places =
        ["state.running.startedAt", "state.terminated.startedAt", "lastState.terminated.startedAt"];
    let starts = places.into_iter().filter_map(|place| status.at(place).time()).collect();
    let restarts = status.key("restartCount").integer();
    (starts, restarts.and_then(|count| u64::try_from(count).ok()).filter(|count| *count > 0))
}

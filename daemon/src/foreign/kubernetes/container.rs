//! One end of one container of a pod.
//!
//! Owner: `kubernetes`. Invariants: `OOMKilled` is a mark on the container, and its main process's
//! end only with SIGKILL; the 137 of a container that the node lost sight of is no fact; a probe
//! counts where the kubelet killed for it, near to the end. Absent: conclusions.

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::Confidence;
use dormouse_core::diagnosis::facts::{Ending, Facts, HealthCheck, Known, Oom, log_signs};
use dormouse_core::time::Wall;

use super::super::place::Place;
use super::super::remedy::{KubernetesSetting, Setting};
use super::super::time::{between_ms, lived};
use super::super::words::{not_started, start_kind};
use super::super::{End, Step};
use super::pod::{EVENT_SLACK_MS, GRACE_SECONDS_DEFAULT};
use super::{Event, quantity};

pub(super) fn end(
    pod: &Place<'_>,
    status: &Place<'_>,
    terminated: &Place<'_>,
    events: &[Event<'_>],
) -> End {
    let name = status.key("name").text().unwrap_or("without a name");
    let (started_at, ended_at) =
        (terminated.key("startedAt").time(), terminated.key("finishedAt").time());
    let mut at_most = None;
    let mut facts = container_facts(pod, name, terminated, &mut at_most);
    if !matches!(facts.oom.as_ref().map(|oom| oom.is), Some(Oom::Main | Oom::Host)) {
        facts.health = liveness(pod, name, ended_at, &facts, events, &mut at_most);
    }
    let is_bare = facts.end.as_ref().is_some_and(|end| end.is.signal() == Some(9))
        && facts.oom.is_none()
        && facts.health.is_none();
    if is_bare {
        let words =
            "who sent SIGKILL: its reason is neither OOMKilled, nor is a Killing event there";
        facts.missing.push(words.to_owned());
    }
    let started = Step::maybe(started_at, format!("container {name} started"));
    let ended = Step::maybe(ended_at, format!("container {name} ended"));
    End {
        instance: format!("container {name}"),
        started_at,
        ended_at,
        exit_code: facts.end.as_ref().and_then(|_end| terminated.key("exitCode").exit_code()),
        facts,
        at_most,
        ruled_out: Vec::new(),
        timeline: started.into_iter().chain(ended).collect(),
        setting: setting(pod, name),
    }
}

fn container_facts(
    pod: &Place<'_>,
    name: &str,
    terminated: &Place<'_>,
    at_most: &mut Option<Confidence>,
) -> Facts {
    let mut facts = Facts { memory_limit_bytes: memory_limit(pod, name), ..Facts::default() };
    let (reason, code) = (terminated.key("reason"), terminated.key("exitCode"));
    let message = terminated.key("message").text().unwrap_or_default();
    let ended_at = terminated.key("finishedAt").time();
    facts.more.push(reason.fact());
    match reason.text() {
        Some("ContainerStatusUnknown") => {
            // The kubelet makes the code up when it finds the container gone.
            let words = "how it ended: the node lost sight of it, and its exit code is made up";
            facts.missing.push(words.to_owned());
            return facts;
        }
        Some("StartError" | "ContainerCannotRun") => {
            let is = not_started(Cause::StartFailed, start_kind(message));
            let fact = reason.fact_of(format!("{}: {message}", reason.text().unwrap_or_default()));
            facts.not_started = Some(Known::new(is, fact.at(ended_at)));
            return facts;
        }
        _ => {}
    }
    let signal = terminated.key("signal").integer().filter(|signal| (1..=64).contains(signal));
    let signal = signal.and_then(|signal| i32::try_from(signal).ok());
    facts.end = match (signal, code.exit_code()) {
        (Some(signal), _) => {
            let fact = terminated.key("signal").fact().at(ended_at);
            Some(Known::new(Ending::Signaled { signal }, fact))
        }
        (None, Some(read)) => {
            Some(Known::new(Ending::ContainerCode { code: read }, code.fact().at(ended_at)))
        }
        (None, None) => None,
    };
    if reason.text() == Some("OOMKilled") {
        let is_killed = facts.end.as_ref().is_some_and(|end| end.is.signal() == Some(9));
        let is = if !is_killed {
            Oom::Somebody
        } else if has_no_limit(pod, name) {
            *at_most = Some(Confidence::Likely);
            Oom::Host
        } else {
            Oom::Main
        };
        facts.oom = Some(Known::new(is, reason.fact().at(ended_at)));
        facts
            .missing
            .push("its peak of memory: a pod's status has none (metrics would)".to_owned());
    }
    facts.log = log_signs("the container's last words", message);
    let uptime = between_ms(terminated.key("startedAt").time(), ended_at);
    facts.uptime_ms =
        uptime.map(|ms| Known::new(ms, terminated.key("startedAt").fact_of(lived(ms))));
    facts
}

/// A liveness or startup probe that failed, where the kubelet killed the container for it.
fn liveness(
    pod: &Place<'_>,
    name: &str,
    ended_at: Option<Wall>,
    facts: &Facts,
    events: &[Event<'_>],
    at_most: &mut Option<Confidence>,
) -> Option<Known<HealthCheck>> {
    let ended_at = ended_at?;
    let grace = pod.at("spec.terminationGracePeriodSeconds").integer();
    let grace = grace.filter(|seconds| *seconds >= 0).unwrap_or(GRACE_SECONDS_DEFAULT);
    let grace_ms = u64::try_from(grace).ok()?.saturating_mul(1_000);
    let is_near = |event: &&Event<'_>| {
        event.at.is_some_and(|at| {
            at.0 <= ended_at.0.saturating_add(EVENT_SLACK_MS)
                && at.0.saturating_add(grace_ms).saturating_add(EVENT_SLACK_MS) >= ended_at.0
        })
    };
    let says = |event: &Event<'_>, words: &[&str]| {
        let lower = event.message.to_lowercase();
        words.iter().any(|word| lower.contains(word))
    };
    let of_it = || events.iter().filter(|event| event.is_of_container(name)).filter(is_near);
    let killing = of_it().find(|event| {
        event.reason == "Killing"
            && says(event, &["failed liveness probe", "failed startup probe", "unhealthy"])
            && (event.field.contains('{') || event.message.contains(name))
    });
    if let Some(killing) = killing {
        return Some(Known::new(HealthCheck::Container, killing.fact()));
    }
    let is_killed = facts.end.as_ref().is_some_and(|end| matches!(end.is.signal(), Some(9 | 15)));
    let unhealthy = of_it().find(|event| {
        event.reason == "Unhealthy" && says(event, &["liveness probe", "startup probe"])
    });
    let unhealthy = unhealthy.filter(|_| is_killed && facts.oom.is_none())?;
    *at_most = Some(Confidence::Likely);
    Some(Known::new(HealthCheck::Container, unhealthy.fact()))
}

fn specified<'a>(pod: &Place<'a>, name: &str) -> Option<Place<'a>> {
    let keys = ["containers", "initContainers"];
    let all = keys.into_iter().flat_map(|key| pod.key("spec").key(key).items());
    let mut all = all;
    all.find(|container| container.key("name").text() == Some(name))
}

fn memory_limit(pod: &Place<'_>, name: &str) -> Option<Known<u64>> {
    let limit = specified(pod, name)?.at("resources.limits.memory");
    let bytes = quantity::bytes(limit.text()?);
    if bytes.is_none() {
        pod.gaps().add(format!("{} is no quantity of memory", limit.name()));
    }
    Some(Known::new(bytes?, limit.fact()))
}

/// Known to have none: neither its own nor one of the pod.
fn has_no_limit(pod: &Place<'_>, name: &str) -> bool {
    let of_pod = pod.at("spec.resources.limits.memory");
    specified(pod, name).is_some_and(|container| !container.at("resources.limits.memory").exists())
        && !of_pod.exists()
}

pub(super) fn setting(pod: &Place<'_>, container: &str) -> Setting {
    let text = |place: Place<'_>| place.text().map(str::to_owned);
    let owner = pod.at("metadata.ownerReferences").items().into_iter().next();
    let owner = owner.and_then(|owner| {
        let (kind, name) = (owner.key("kind").text()?, owner.key("name").text()?);
        let hash = pod.at("metadata.labels").key("pod-template-hash").text();
        let deployment = hash.and_then(|hash| name.strip_suffix(&format!("-{hash}")));
        Some(match (kind, deployment) {
            ("ReplicaSet", Some(deployment)) => ("Deployment".to_owned(), deployment.to_owned()),
            _ => (kind.to_owned(), name.to_owned()),
        })
    });
    Setting::Kubernetes(KubernetesSetting {
        namespace: text(pod.at("metadata.namespace")).unwrap_or_else(|| "default".to_owned()),
        pod: text(pod.at("metadata.name")).unwrap_or_default(),
        owner,
        container: container.to_owned(),
        limit: specified(pod, container)
            .and_then(|container| text(container.at("resources.limits.memory"))),
        grace_seconds: pod.at("spec.terminationGracePeriodSeconds").integer(),
    })
}

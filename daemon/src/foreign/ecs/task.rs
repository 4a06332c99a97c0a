//! One stopped task of ECS: what each of its fields says of the end.
//!
//! Owner: `ecs`. Invariants: `stopCode` is the platform's own word and goes before any text; a text
//! that a caller gave to StopTask is read for who stopped it, never for memory; of several
//! containers the one that ended first decides, and the codes of the others are consequences.
//! Absent: what it means together (`core::diagnosis`).

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::facts::{
    Ending, Fact, Facts, HealthCheck, Initiator, Known, NotStarted, Notice, Oom,
};
use dormouse_core::diagnosis::{Confidence, RuledOut};
use dormouse_core::time::Wall;

use super::super::place::Place;
use super::super::remedy::{EcsSetting, Setting};
use super::super::time::{between_ms, lived};
use super::super::words::{
    init_kind, not_started, placement_kind, pull_kind, says_out_of_memory, start_kind,
    watchdog_kind,
};
use super::super::{End, Step};
use super::decider::{Decider, decider};
use super::last_part;

/// What ECS waits between SIGTERM and SIGKILL, unless the task definition says otherwise.
const STOP_TIMEOUT_SECONDS_DEFAULT: i64 = 30;
/// The agent's own work before and after: from field records.
const STOP_EARLY_MS: u64 = 1_500;
const STOP_LATE_MS: u64 = 15_000;

/// Deregistration, which lies between the event and the end, takes five minutes by default.
const HEALTH_EVENT_AGE_MS_MAX: u64 = 600_000;

pub(super) const SIGKILLED: i32 = 137;

pub(super) fn has_ended(task: &Place<'_>) -> bool {
    task.key("lastStatus").text() == Some("STOPPED")
        || task.key("stopCode").exists()
        || task.key("stoppedReason").exists()
}

/// Where the task ended by itself, its first container ended before the rest was stopped.
pub(super) fn ended_at(task: &Place<'_>) -> Option<Wall> {
    let time = |key| task.key(key).time();
    let by_itself = task.key("stopCode").text() == Some("EssentialContainerExited");
    let execution = time("executionStoppedAt");
    let first =
        if by_itself { execution.into_iter().chain(time("stoppingAt")).min() } else { None };
    first.or(execution).or_else(|| time("stoppedAt")).or_else(|| time("stoppingAt"))
}

/// Everything about one task that is asked more than once.
struct Task<'p, 'a> {
    place: &'p Place<'a>,
    stop_code: &'a str,
    reason: Place<'a>,
    containers: Vec<Place<'a>>,
    decider: Option<Decider>,
    definition: Option<Place<'a>>,
    service: Option<&'p Place<'a>>,
}

pub(super) fn end<'a>(
    place: &Place<'a>,
    definitions: &[Place<'a>],
    service: Option<&Place<'a>>,
) -> End {
    let containers = place.key("containers").items();
    let definition = definition_of(place, definitions);
    let decider = decider(&containers, definition.as_ref());
    let stop_code = place.key("stopCode").text().unwrap_or_default();
    let reason = place.key("stoppedReason");
    let task = Task { place, stop_code, reason, containers, decider, definition, service };
    let started_at = place.key("startedAt").time();
    let ended_at = ended_at(place);
    let mut at_most = None;
    let facts = task.facts(&mut at_most);
    End {
        instance: place.key("taskArn").text().map_or("a task", last_part).to_owned(),
        started_at,
        ended_at,
        exit_code: task.deciding().and_then(|container| container.key("exitCode").exit_code()),
        facts,
        at_most,
        ruled_out: task.ruled_out(),
        timeline: task.timeline(),
        setting: task.setting(),
    }
}

fn definition_of<'a>(task: &Place<'a>, definitions: &[Place<'a>]) -> Option<Place<'a>> {
    let wanted = task.key("taskDefinitionArn").text();
    let is_it = |definition: &&Place<'a>| match wanted {
        Some(arn) => definition.key("taskDefinitionArn").text() == Some(arn),
        None => definitions.len() == 1,
    };
    definitions.iter().find(is_it).cloned()
}

impl<'a> Task<'_, 'a> {
    fn deciding(&self) -> Option<&Place<'a>> {
        self.containers.get(self.decider?.index)
    }

    fn reason_text(&self) -> &'a str {
        self.reason.text().unwrap_or_default()
    }

    /// Who gave the text: the platform, unless somebody called StopTask.
    fn is_reason_of_platform(&self) -> bool {
        self.stop_code != "UserInitiated"
    }

    /// The platform's own texts, the task's first.
    fn texts(&self) -> Vec<Place<'a>> {
        let own = self.is_reason_of_platform().then(|| self.reason.clone());
        let of_containers = self.containers.iter().map(|container| container.key("reason"));
        own.into_iter().chain(of_containers).filter(|place| place.text().is_some()).collect()
    }

    fn facts(&self, at_most: &mut Option<Confidence>) -> Facts {
        let mut facts = Facts { notice: self.notice(), ..Facts::default() };
        if facts.notice.is_none() {
            facts.not_started = self.not_started();
        }
        facts.health = self.health(at_most);
        facts.asked_by = self.asked_by(facts.health.is_some(), at_most);
        let was_asked =
            facts.notice.is_some() || facts.health.is_some() || facts.asked_by.is_some();
        self.add_memory(&mut facts, was_asked, at_most);
        self.add_end(&mut facts, was_asked, at_most);
        if was_asked {
            facts.grace_ran_out = self.grace(&mut facts.missing);
        }
        if self.stop_code == "UserInitiated" {
            facts.missing.push("who called StopTask: CloudTrail has the principal".to_owned());
        }
        let exit = self.deciding().map(|container| container.key("exitCode"));
        let is_bare_kill = exit.is_some_and(|code| code.exit_code() == Some(SIGKILLED));
        if is_bare_kill && !was_asked && facts.oom.is_none() {
            facts.missing.push(
                "who sent SIGKILL: ECS gives neither an out-of-memory reason nor a stop request"
                    .to_owned(),
            );
        }
        let context = [self.place.key("stopCode"), self.reason.clone()];
        facts.more.extend(context.iter().filter(|place| place.exists()).map(Place::fact));
        facts
    }

    fn notice(&self) -> Option<Known<Notice>> {
        let stop_code = self.place.key("stopCode");
        let reason = self.reason_text().to_lowercase();
        let notice = |cause, kind| Notice { cause, kind };
        match self.stop_code {
            "SpotInterruption" | "TerminationNotice" => {
                return Some(Known::new(notice(Cause::Spot, ""), stop_code.fact()));
            }
            "InfrastructureHealth" => {
                let is = notice(Cause::HostLost, "unhealthy");
                return Some(Known::new(is, stop_code.fact()));
            }
            "UserInitiated" => return None,
            _ => {}
        }
        let is = if reason.contains("spot task was interrupted") {
            notice(Cause::Spot, "")
        } else if reason.contains("host ec2") && reason.contains("terminated") {
            notice(Cause::HostLost, "terminated")
        } else if reason.contains("host ec2") && reason.contains("stopped") {
            notice(Cause::HostLost, "stopped")
        } else if reason.contains("maintenance on the underlying infrastructure") {
            notice(Cause::HostLost, "maintenance")
        } else {
            return None;
        };
        Some(Known::new(is, self.reason.fact()))
    }

    fn not_started(&self) -> Option<Known<NotStarted>> {
        let failed_to_start = self.stop_code == "TaskFailedToStart";
        let never_ran = !self.place.key("startedAt").exists()
            && self.deciding().is_none_or(|container| !container.key("exitCode").exists());
        let texts = self.texts();
        let told = texts.iter().find_map(|place| {
            let text = place.text()?;
            let is = start_failure(text, failed_to_start || never_ran)?;
            Some(Known::new(is, place.fact()))
        });
        let has_exit_code =
            self.deciding().is_some_and(|container| container.key("exitCode").exists());
        told.or_else(|| {
            let fact = || self.place.key("stopCode").fact();
            let is = || not_started(Cause::StartFailed, "");
            // One container ran and ended before the task as a whole had started.
            let is_silent = failed_to_start && !has_exit_code;
            is_silent.then(|| Known::new(is(), texts.first().map_or_else(fact, Place::fact)))
        })
    }

    fn health(&self, at_most: &mut Option<Confidence>) -> Option<Known<HealthCheck>> {
        if !self.is_reason_of_platform() {
            return None;
        }
        let reason = self.reason_text().to_lowercase();
        if reason.contains("failed container health checks") {
            return Some(Known::new(HealthCheck::Container, self.reason.fact()));
        }
        if reason.contains("failed elb health checks") || reason.contains("is unhealthy in (target")
        {
            return Some(Known::new(HealthCheck::LoadBalancer, self.reason.fact()));
        }
        if self.stop_code != "ServiceSchedulerInitiated" || reason.contains("scaling activity") {
            return None;
        }
        let id = self.place.key("taskArn").text().map(last_part)?;
        let events = self.service?.key("events").items();
        let events =
            events.iter().map(|event| (event.key("message"), event.key("createdAt").time()));
        let (of_it, _) = events.into_iter().find(|(message, at)| {
            let text = message.text().unwrap_or_default();
            let is_near = between_ms(*at, ended_at(self.place))
                .is_some_and(|ms| ms <= HEALTH_EVENT_AGE_MS_MAX);
            // Without a task's name it may be of any of them: then its time has to fit.
            let is_its =
                text.contains(&format!("(task {id})")) || (!text.contains("(task ") && is_near);
            is_its && text.contains("is unhealthy in (target-group")
        })?;
        *at_most = Some(Confidence::Likely);
        Some(Known::new(HealthCheck::LoadBalancer, of_it.fact()))
    }

    fn asked_by(
        &self,
        is_health: bool,
        at_most: &mut Option<Confidence>,
    ) -> Option<Known<Initiator>> {
        let reason = self.reason_text();
        let fact = || match self.reason.exists() {
            true => self.reason.fact(),
            false => self.place.key("stopCode").fact(),
        };
        let fact = || fact().at(self.place.key("stoppingAt").time());
        match self.stop_code {
            "UserInitiated" => {
                let who = match watchdog_kind(reason) {
                    Some(kind) => Initiator::Watchdog { kind },
                    None => Initiator::User,
                };
                Some(Known::new(who, fact()))
            }
            "ServiceSchedulerInitiated" if !is_health => {
                let lower = reason.to_lowercase();
                if !lower.contains("scaling activity") && !lower.contains("deployment") {
                    *at_most = Some(Confidence::Likely);
                }
                Some(Known::new(Initiator::Deploy, fact()))
            }
            _ if reason.to_lowercase().contains("scaling activity initiated by") => {
                Some(Known::new(Initiator::Deploy, fact()))
            }
            _ => None,
        }
    }

    fn add_memory(&self, facts: &mut Facts, was_asked: bool, at_most: &mut Option<Confidence>) {
        let said =
            self.texts().into_iter().find(|place| place.text().is_some_and(says_out_of_memory));
        let limit = self.memory_limit();
        if let Some(place) = said {
            let has_no_limit = limit.is_none() && self.definition.is_some();
            let oom = match (was_asked, has_no_limit) {
                (true, _) => Oom::Somebody,
                (false, true) => {
                    // The group may have had a limit above it.
                    *at_most = Some(Confidence::Likely);
                    Oom::Host
                }
                (false, false) => Oom::Main,
            };
            facts.oom = Some(Known::new(oom, place.fact()));
        }
        facts.memory_limit_bytes = limit;
        if facts.oom.is_some() {
            facts.missing.push(
                "its peak of memory: describe-tasks has none (Container Insights would)".to_owned(),
            );
        }
    }

    fn add_end(&self, facts: &mut Facts, was_asked: bool, at_most: &mut Option<Confidence>) {
        facts.uptime_ms = between_ms(self.place.key("startedAt").time(), ended_at(self.place))
            .map(|ms| Known::new(ms, self.place.key("startedAt").fact_of(lived(ms))));
        let Some(container) = self.deciding() else {
            facts.missing.push("describe-tasks has no containers of this task".to_owned());
            return;
        };
        let code = container.key("exitCode");
        if let Some(read) = code.exit_code() {
            let ending = Ending::ContainerCode { code: read };
            facts.end = Some(Known::new(ending, code.fact().at(ended_at(self.place))));
        } else if facts.not_started.is_none() {
            facts.missing.push(format!("{}: ECS gives no exit code", code.name()));
        }
        if self.containers.len() > 1 {
            facts.more.push(container.key("name").fact());
            let is_sure = self.decider.is_some_and(|decider| decider.is_sure);
            if !is_sure && !was_asked && facts.not_started.is_none() {
                *at_most = Some(Confidence::Likely);
                let words = "which container ended first: describe-task-definition says which are \
                             essential, the task's metadata when each ended";
                facts.missing.push(words.to_owned());
            }
        }
    }

    /// SIGKILL when the time after SIGTERM was over: by the times, not by the number 137 alone.
    fn grace(&self, missing: &mut Vec<String>) -> Option<Known<()>> {
        let is_killed = |container: &&Place<'_>| {
            container.key("exitCode").exit_code() == Some(SIGKILLED)
                && !container.key("reason").text().is_some_and(says_out_of_memory)
        };
        let killed = self.containers.iter().find(is_killed)?;
        let stopping = self.place.key("stoppingAt");
        let stopped = self.place.key("executionStoppedAt");
        let Some(took_ms) = between_ms(stopping.time(), stopped.time()) else {
            missing.push(
                "stoppingAt and executionStoppedAt, to see whether it had its time".to_owned(),
            );
            return None;
        };
        let seconds = self.stop_timeout(killed).unwrap_or(STOP_TIMEOUT_SECONDS_DEFAULT);
        let grace_ms = u64::try_from(seconds).ok()?.saturating_mul(1_000);
        let has_run_out = took_ms.saturating_add(STOP_EARLY_MS) >= grace_ms
            && took_ms <= grace_ms.saturating_add(STOP_LATE_MS);
        has_run_out.then(|| {
            let words = format!("{took_ms} ms after stoppingAt; its stopTimeout is {seconds} s");
            Known::new((), stopped.fact_of(words).at(stopped.time()))
        })
    }

    fn defined(&self, container: &Place<'a>) -> Option<Place<'a>> {
        let name = container.key("name").text()?;
        let all = self.definition.as_ref()?.key("containerDefinitions").items();
        all.into_iter().find(|defined| defined.key("name").text() == Some(name))
    }

    fn stop_timeout(&self, container: &Place<'a>) -> Option<i64> {
        self.defined(container)?.key("stopTimeout").integer().filter(|seconds| *seconds >= 0)
    }

    /// In MiB, with where it is written: the container's own, and the task's.
    fn memory_limits(&self) -> [Option<(u64, Fact)>; 2] {
        let mebibytes = |place: Place<'a>| {
            let read = u64::try_from(place.integer()?).ok().filter(|read| *read > 0)?;
            Some((read, place.fact_of(format!("{read} MiB"))))
        };
        let container = self.deciding();
        let of_container = container
            .and_then(|container| mebibytes(container.key("memory")))
            .or_else(|| mebibytes(self.defined(container?)?.key("memory")));
        let of_task = mebibytes(self.place.at("overrides.memory"))
            .or_else(|| mebibytes(self.place.key("memory")))
            .or_else(|| mebibytes(self.definition.as_ref()?.key("memory")));
        [of_container, of_task]
    }

    /// The narrower of the two.
    fn memory_limit(&self) -> Option<Known<u64>> {
        let limits = self.memory_limits().into_iter().flatten();
        let (mebibytes, fact) = limits.min_by_key(|(mebibytes, _)| *mebibytes)?;
        Some(Known::new(mebibytes.checked_mul(1 << 20)?, fact))
    }

    fn setting(&self) -> Setting {
        let [container_mib, task_mib] = self.memory_limits().map(|limit| Some(limit?.0));
        let text = |place: Option<Place<'a>>| place?.text().map(str::to_owned);
        let container = self.deciding();
        let launch_type = self.place.key("launchType").text();
        let provider = self.place.key("capacityProviderName").text().unwrap_or_default();
        let arn = self.place.key("taskDefinitionArn").text();
        Setting::Ecs(EcsSetting {
            definition: arn.map(|arn| last_part(arn).to_owned()),
            container: text(container.map(|container| container.key("name"))),
            image: text(container.map(|container| container.key("image"))),
            container_mib,
            task_mib,
            cpu: self.place.key("cpu").integer().and_then(|cpu| u64::try_from(cpu).ok()),
            is_fargate: launch_type == Some("FARGATE") || provider.starts_with("FARGATE"),
            stop_timeout_seconds: container.and_then(|container| self.stop_timeout(container)),
            service: self
                .place
                .key("group")
                .text()
                .and_then(|group| group.strip_prefix("service:"))
                .map(str::to_owned),
            cluster: text(Some(self.place.key("clusterArn"))).map(|arn| last_part(&arn).to_owned()),
        })
    }

    /// By the platform's own word, nobody asked for the end.
    fn ruled_out(&self) -> Vec<RuledOut> {
        if self.stop_code != "EssentialContainerExited" {
            return Vec::new();
        }
        let because = format!("nobody asked it to stop (stopCode = {})", self.stop_code);
        let causes = [Cause::StopTimeoutKill, Cause::StoppedByUser, Cause::DeployReplaced];
        causes.map(|cause| RuledOut { cause, because: because.clone() }).into()
    }

    fn timeline(&self) -> Vec<Step> {
        let rows = [
            ("createdAt", "created"),
            ("pullStartedAt", "began to pull its image"),
            ("pullStoppedAt", "had its image"),
            ("connectivityAt", "had its network"),
            ("startedAt", "started"),
            ("stoppingAt", "began to stop"),
            ("executionStoppedAt", "its containers had stopped"),
            ("stoppedAt", "stopped"),
        ];
        let step = |(key, what): (&str, &str)| Step::maybe(self.place.key(key).time(), what);
        rows.into_iter().filter_map(step).collect()
    }
}

/// What each error word of ECS is about; those that a task may say that ran are marked.
const START_FAILURES: &[(&str, Cause, bool)] = &[
    ("cannotpull", Cause::ImagePull, true),
    ("image manifest has been retried", Cause::ImagePull, true),
    ("resourceinitializationerror", Cause::InitFailed, true),
    ("failed to validate logger args", Cause::InitFailed, true),
    ("pull command failed", Cause::InitFailed, true),
    ("containerruntimetimeouterror", Cause::StartTimeout, true),
    ("dockertimeouterror", Cause::StartTimeout, true),
    ("timeout waiting for", Cause::StartTimeout, true),
    ("cannotstartcontainererror", Cause::StartFailed, true),
    ("cannotcreatecontainererror", Cause::StartFailed, true),
    ("cannotcreatevolumeerror", Cause::StartFailed, true),
    ("containerruntimeerror", Cause::StartFailed, false),
    ("dockerstateerror", Cause::StartFailed, false),
    ("internalerror", Cause::StartFailed, false),
    ("capacity is unavailable", Cause::Placement, false),
    ("unable to place a task", Cause::Placement, false),
];

/// By the outermost error word: what follows it is what that step met with. `never_ran`: the task
/// is known not to have run, so that general words are enough.
fn start_failure(text: &str, never_ran: bool) -> Option<NotStarted> {
    let lower = text.to_lowercase();
    if lower.contains("could not transition to stopped") {
        return None;
    }
    let found = START_FAILURES.iter().filter(|(_, _, may_have_run)| *may_have_run || never_ran);
    let found = found.filter_map(|(word, cause, _)| Some((lower.find(word)?, *cause)));
    let (_, cause) = found.min_by_key(|(place, _)| *place)?;
    let kind = match cause {
        Cause::ImagePull => pull_kind(text),
        Cause::InitFailed => init_kind(text),
        Cause::StartFailed => start_kind(text),
        Cause::Placement => placement_kind(text),
        _ => "",
    };
    Some(not_started(cause, kind))
}

//! What to change, as a diff, and the command that shows whether it helped.
//!
//! Owner: `report`. Invariants: a limit that was reached says nothing of the need, so no limit is
//! called enough unless a run survived; what a platform would refuse is not proposed (ECS wants the
//! container definitions with the memory); values of environments are never shown.
//! Absent: applying it.

mod memory;

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::Diagnosis;
use serde::Serialize;

pub(super) use memory::memory;

/// What of the platform's settings a remedy may touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Setting {
    None,
    Ecs(EcsSetting),
    Docker(DockerSetting),
    Kubernetes(KubernetesSetting),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EcsSetting {
    /// "family:revision"
    pub(super) definition: Option<String>,
    pub(super) container: Option<String>,
    pub(super) image: Option<String>,
    pub(super) container_mib: Option<u64>,
    pub(super) task_mib: Option<u64>,
    /// In units of which 1,024 are a processor.
    pub(super) cpu: Option<u64>,
    pub(super) is_fargate: bool,
    pub(super) stop_timeout_seconds: Option<i64>,
    pub(super) service: Option<String>,
    pub(super) cluster: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DockerSetting {
    pub(super) name: String,
    pub(super) limit_bytes: Option<u64>,
    pub(super) swap_bytes: Option<u64>,
    pub(super) stop_timeout_seconds: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KubernetesSetting {
    pub(super) namespace: String,
    pub(super) pod: String,
    /// Kind and name of what the pod is made from.
    pub(super) owner: Option<(String, String)>,
    pub(super) container: String,
    pub(super) limit: Option<String>,
    pub(super) grace_seconds: Option<i64>,
}

/// Limit against peak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_bytes: Option<u64>,
    /// It would have gone on growing.
    pub(crate) peak_is_censored: bool,
    pub(crate) recommendation: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Remedy {
    pub(crate) change: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) diff: Option<String>,
    /// Where it is about a memory limit: that before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<(u64, u64)>,
    pub(crate) verify: String,
}

/// For the newest end. `ask_again` is the command that asks the platform anew.
pub(super) fn remedy(
    diagnosis: &Diagnosis,
    setting: &Setting,
    limit_bytes: Option<u64>,
    ask_again: &str,
) -> Option<Remedy> {
    if diagnosis.cause == Cause::OomLimit
        && let Some(change) = memory::raise(setting, limit_bytes)
    {
        return Some(Remedy {
            change: change.words,
            diff: Some(change.diff),
            memory_bytes: Some(change.memory_bytes),
            verify: format!("{ask_again}    # after ten times its uptime: no newer end"),
        });
    }
    if diagnosis.cause == Cause::StopTimeoutKill {
        return Some(Remedy {
            change:
                "let its process 1 end on SIGTERM (a shell as process 1 passes no signal on: use \
                     `exec`, or an init); only if its work takes longer, raise the stop timeout"
                    .to_owned(),
            diff: stop_timeout_diff(setting),
            memory_bytes: None,
            verify: format!("{ask_again}    # after the next stop: its exit code is not 137"),
        });
    }
    let change = words(diagnosis)?;
    let verify = format!("{ask_again}    # after the next start: no newer end");
    Some(Remedy { change: change.to_owned(), diff: None, memory_bytes: None, verify })
}

fn stop_timeout_diff(setting: &Setting) -> Option<String> {
    match setting {
        Setting::None => None,
        Setting::Ecs(ecs) => {
            let name = ecs.container.as_deref().unwrap_or("NAME");
            let old = ecs.stop_timeout_seconds.map_or_else(String::new, |seconds| {
                format!("-      \"stopTimeout\": {seconds},\n")
            });
            Some(format!(
                "   \"containerDefinitions\": [\n     {{\n       \"name\": \"{name}\",\n{old}\
                 +      \"stopTimeout\": 120,\n\
                 +      \"linuxParameters\": {{\"initProcessEnabled\": true}},"
            ))
        }
        Setting::Docker(docker) => {
            let old = docker.stop_timeout_seconds.unwrap_or(10);
            Some(format!(
                "-docker run --stop-timeout {old} --name {name} …\n\
                 +docker run --init --stop-timeout 60 --name {name} …",
                name = docker.name
            ))
        }
        Setting::Kubernetes(kubernetes) => Some(format!(
            " spec:\n-  terminationGracePeriodSeconds: {}\n+  terminationGracePeriodSeconds: 120",
            kubernetes.grace_seconds.unwrap_or(30)
        )),
    }
}

/// In one sentence, where the cause leaves something to do.
fn words(diagnosis: &Diagnosis) -> Option<&'static str> {
    Some(match (diagnosis.cause, diagnosis.kind.as_str()) {
        (Cause::OomLimit, _) => "raise its memory limit for one run, and measure its peak",
        (Cause::OomChild, _) => {
            "give the programs that it starts less to do at once, or its group more memory"
        }
        (Cause::OomHost, _) => {
            "give it a memory limit, and the machine memory for all limits together"
        }
        (Cause::OomHeap, _) => {
            "raise the heap limit of its runtime (Node.js: --max-old-space-size), below the \
             container's limit"
        }
        (Cause::HealthContainer | Cause::HealthLb, _) => {
            "look at what the check asks, and how long the answer takes under load; then at the \
             check's timeout and start period"
        }
        (Cause::Spot, _) => "end within two minutes of SIGTERM, or run it on capacity on demand",
        (Cause::HostLost, _) => "nothing in it; run two of it where one may not be missed",
        (Cause::Evicted, "memory" | "storage" | "inodes" | "pids") => {
            "request as much as it uses, so that it is not the first to be evicted"
        }
        (Cause::Evicted, "own_storage_limit") => "raise its own limit of ephemeral storage",
        (Cause::ImagePull, "not_found" | "invalid_reference") => {
            "correct the image's name or tag, or push it"
        }
        (Cause::ImagePull, "access_denied") => "grant whoever pulls the image access to it",
        (Cause::ImagePull, "rate_limit") => "pull with an account, or through a cache of your own",
        (Cause::ImagePull, "no_space") => "free or enlarge the disk where images lie",
        (Cause::ImagePull, "platform") => "build the image for the machine's processor too",
        (Cause::ImagePull, "timeout" | "network") => {
            "look at the way to the registry: routes, addresses of private endpoints, names"
        }
        (Cause::InitFailed, _) => "correct what could not be set up; the evidence names it",
        (Cause::StartFailed, "command_not_found" | "not_executable" | "no_command") => {
            "correct the command or the entry point"
        }
        (Cause::StartFailed, _) => "correct what the runtime names in the evidence",
        (Cause::Placement, _) => "ask for less, or add room: the evidence names what is short",
        (Cause::StoppedByWatchdog, _) => "look at the rule of the watchdog, and what it measures",
        (Cause::AppExit | Cause::AppSignal | Cause::ConfigRejected, _) => {
            "look at the end of its log: it ended by itself"
        }
        (Cause::PortTaken, _) => "give it another port, or end what has this one",
        (Cause::DiskFull, _) => "free space, or enlarge the disk",
        _ => return None,
    })
}

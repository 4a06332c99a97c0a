//! Limit against peak, and the next limit to try.
//!
//! Owner: `remedy`. Invariants: a peak at the limit is censored by it, and no need is read from it;
//! on Fargate only pairs of processor and memory that exist are proposed. Absent: applying it.

use dormouse_core::diagnosis::Diagnosis;
use dormouse_core::diagnosis::facts::{Facts, Oom};

use super::super::report::human_bytes;
use super::{DockerSetting, EcsSetting, KubernetesSetting, Memory, Setting};

const MIB: u64 = 1 << 20;
/// Up to here, a quadrupled limit costs less than another round of deaths.
const SMALL_BYTES: u64 = 1 << 30;

/// Which memory each amount of processor may have on Fargate, in MiB, and in which steps.
const FARGATE: [(u64, u64, u64, u64); 7] = [
    (256, 512, 2_048, 1_024),
    (512, 1_024, 4_096, 1_024),
    (1_024, 2_048, 8_192, 1_024),
    (2_048, 4_096, 16_384, 1_024),
    (4_096, 8_192, 30_720, 1_024),
    (8_192, 16_384, 61_440, 4_096),
    (16_384, 32_768, 122_880, 8_192),
];

pub(in super::super) struct Change {
    pub(in super::super) words: String,
    pub(in super::super) diff: String,
    /// The limit before and after.
    pub(in super::super) memory_bytes: (u64, u64),
}

/// Of the newest end.
pub(in super::super) fn memory(facts: &Facts, diagnosis: &Diagnosis) -> Option<Memory> {
    use dormouse_core::cause::Cause;
    let limit_bytes = facts.memory_limit_bytes.as_ref().map(|limit| limit.is);
    let peak_bytes = facts.memory_peak_bytes.as_ref().map(|peak| peak.is);
    let was_killed =
        facts.oom.as_ref().is_some_and(|oom| oom.is != Oom::None && oom.is != Oom::Host);
    let was_it = matches!(diagnosis.cause, Cause::OomLimit | Cause::OomChild);
    let recommendation = match (was_it || was_killed, limit_bytes) {
        (true, Some(limit)) => format!(
            "its peak is censored by the limit: it would need more than {}, and how much more is \
             not known. No smallest safe limit can be named before a run survives; give it {} for \
             one run, then its peak of that run and a quarter more",
            human_bytes(limit),
            human_bytes(next_limit(limit))
        ),
        (true, None) => {
            "its peak is censored by the limit, and the limit is not in the documents".to_owned()
        }
        (false, Some(_)) => "nothing speaks for more: no out-of-memory kill is known".to_owned(),
        (false, None) => return None,
    };
    Some(Memory { limit_bytes, peak_bytes, peak_is_censored: was_it || was_killed, recommendation })
}

fn next_limit(limit: u64) -> u64 {
    limit.saturating_mul(if limit <= SMALL_BYTES { 4 } else { 2 })
}

pub(super) fn raise(setting: &Setting, limit_bytes: Option<u64>) -> Option<Change> {
    match setting {
        Setting::None => None,
        Setting::Ecs(ecs) => raise_ecs(ecs, limit_bytes?),
        Setting::Docker(docker) => raise_docker(docker, limit_bytes?),
        Setting::Kubernetes(kubernetes) => Some(raise_kubernetes(kubernetes, limit_bytes?)),
    }
}

/// Processor and memory that Fargate has, for at least so much memory.
fn fargate_pair(cpu: Option<u64>, wanted_mib: u64) -> Option<(u64, u64)> {
    let cpu = cpu.unwrap_or_default();
    let fitting = FARGATE.iter().find(|(has, _, most, _)| *has >= cpu && *most >= wanted_mib)?;
    let (has, least, _, step) = *fitting;
    Some((has, wanted_mib.next_multiple_of(step).max(least)))
}

fn raise_ecs(ecs: &EcsSetting, limit_bytes: u64) -> Option<Change> {
    let limit_mib = limit_bytes / MIB;
    let wanted = next_limit(limit_bytes) / MIB;
    let (cpu, task_mib) = match ecs.is_fargate {
        true => fargate_pair(ecs.cpu, wanted).map(|(cpu, mib)| (Some(cpu), mib))?,
        false => (None, wanted),
    };
    let mut rows: Vec<String> = vec![" {".to_owned()];
    let mut changed = |indent: &str, key: &str, old: &str, new: &str| {
        if old == new {
            rows.push(format!(" {indent}\"{key}\": {old},"));
        } else {
            rows.push(format!("-{indent}\"{key}\": {old},"));
            rows.push(format!("+{indent}\"{key}\": {new},"));
        }
    };
    if let (Some(cpu), Some(old)) = (cpu, ecs.cpu) {
        changed("  ", "cpu", &format!("\"{old}\""), &format!("\"{cpu}\""));
    }
    if let Some(old) = ecs.task_mib {
        // A task is raised only where it is too narrow for its container.
        let new = if old >= wanted { old } else { task_mib };
        changed("  ", "memory", &format!("\"{old}\""), &format!("\"{new}\""));
    }
    changed("  ", "containerDefinitions", "[{", "[{");
    let name = ecs.container.as_deref().unwrap_or("NAME");
    changed("    ", "name", &json(name), &json(name));
    if let Some(image) = &ecs.image {
        changed("    ", "image", &json(image), &json(image));
    }
    if let Some(old) = ecs.container_mib {
        let new = if old < wanted { task_mib } else { old };
        changed("    ", "memory", &old.to_string(), &new.to_string());
    }
    let mut diff = rows.join("\n").replace("[{,", "[{");
    diff.push_str("\n     …\n   }]\n }");
    let words = ecs_words(ecs, limit_mib, task_mib);
    Some(Change { words, diff, memory_bytes: (limit_bytes, task_mib.saturating_mul(MIB)) })
}

fn ecs_words(ecs: &EcsSetting, limit_mib: u64, new_mib: u64) -> String {
    let definition = ecs.definition.as_deref().unwrap_or("FAMILY:REVISION");
    let family = definition.split(':').next().unwrap_or(definition);
    let mut words = format!(
        "raise its memory from {limit_mib} to {new_mib} MiB for one run, to measure its peak. \
         Memory alone is no valid revision: containerDefinitions are required with it. So take the \
         whole of it (aws ecs describe-task-definition --task-definition {definition} --query \
         taskDefinition > {family}.json), make the change below, remove what only ECS may set \
         (taskDefinitionArn, revision, status, requiresAttributes, compatibilities, registeredAt, \
         registeredBy), and register it (aws ecs register-task-definition --cli-input-json \
         file://{family}.json)"
    );
    if let Some(service) = &ecs.service {
        let cluster = ecs.cluster.as_deref().unwrap_or("CLUSTER");
        words.push_str(&format!(
            "; then: aws ecs update-service --cluster {cluster} --service {service} \
             --task-definition {family}"
        ));
    }
    words
}

/// As JSON writes a text.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn raise_docker(docker: &DockerSetting, limit_bytes: u64) -> Option<Change> {
    let next = next_limit(limit_bytes);
    let (old_mib, new_mib) = (limit_bytes / MIB, next / MIB);
    let swap = docker.swap_bytes.map_or(0, |swap| swap.saturating_sub(limit_bytes)) / MIB;
    let all_mib = new_mib.checked_add(swap)?;
    let name = &docker.name;
    Some(Change {
        words: format!(
            "raise its limit from {old_mib} to {new_mib} MiB for one run, to measure its peak: \
             docker update --memory {new_mib}m --memory-swap {all_mib}m {name}; and where it is \
             made (docker run, compose)"
        ),
        diff: format!(
            "-docker run --memory {old_mib}m --name {name} …\n\
             +docker run --memory {new_mib}m --name {name} …"
        ),
        memory_bytes: (limit_bytes, next),
    })
}

fn raise_kubernetes(kubernetes: &KubernetesSetting, limit_bytes: u64) -> Change {
    let old = kubernetes.limit.clone().unwrap_or_else(|| limit_bytes.to_string());
    let new = format!("{}Mi", next_limit(limit_bytes) / MIB);
    let (container, namespace) = (&kubernetes.container, &kubernetes.namespace);
    let words = match &kubernetes.owner {
        Some((kind, name)) => format!(
            "raise its limit from {old} to {new} for one run, to measure its peak: kubectl -n \
             {namespace} set resources {}/{name} -c {container} --limits=memory={new}",
            kind.to_lowercase()
        ),
        None => format!(
            "raise its limit from {old} to {new} for one run, to measure its peak. Nothing makes \
             this pod anew: delete it, and create it with the change"
        ),
    };
    let diff = format!(
        "   containers:\n   - name: {container}\n     resources:\n       limits:\n\
         -        memory: {old}\n+        memory: {new}"
    );
    Change { words, diff, memory_bytes: (limit_bytes, next_limit(limit_bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fargate() -> EcsSetting {
        EcsSetting {
            definition: Some("worker:12".to_owned()),
            container: Some("app".to_owned()),
            image: Some("repo/app:1".to_owned()),
            container_mib: None,
            task_mib: Some(512),
            cpu: Some(256),
            is_fargate: true,
            service: Some("worker".to_owned()),
            cluster: Some("prod".to_owned()),
            ..EcsSetting::default()
        }
    }

    #[test]
    fn on_ecs_the_container_definitions_are_part_of_the_change() {
        let change = raise_ecs(&fargate(), 512 * MIB).unwrap();
        assert_eq!(
            change.diff,
            " {\n   \"cpu\": \"256\",\n-  \"memory\": \"512\",\n+  \"memory\": \"2048\",\n   \
             \"containerDefinitions\": [{\n     \"name\": \"app\",\n     \"image\": \
             \"repo/app:1\",\n\
             \u{20}    …\n   }]\n }"
        );
        assert!(change.words.contains("containerDefinitions are required"), "{}", change.words);
        assert!(change.words.contains("update-service --cluster prod --service worker"));
    }

    #[test]
    fn on_fargate_only_pairs_that_exist_are_proposed() {
        assert_eq!(fargate_pair(Some(256), 2_048), Some((256, 2_048)));
        assert_eq!(fargate_pair(Some(256), 4_096), Some((512, 4_096)));
        assert_eq!(fargate_pair(Some(256), 2_100), Some((512, 3_072)));
        assert_eq!(fargate_pair(None, 65_536), Some((16_384, 65_536)));
        assert_eq!(fargate_pair(Some(256), 200_000), None);
    }

    #[test]
    fn a_container_s_own_limit_is_raised_with_the_task_s() {
        let both = EcsSetting { container_mib: Some(512), ..fargate() };
        let diff = raise_ecs(&both, 512 * MIB).unwrap().diff;
        assert!(diff.contains("-    \"memory\": 512,\n+    \"memory\": 2048,"), "{diff}");
        let wide = EcsSetting {
            container_mib: Some(512),
            task_mib: Some(4_096),
            is_fargate: false,
            ..fargate()
        };
        let diff = raise_ecs(&wide, 512 * MIB).unwrap().diff;
        assert!(diff.contains("   \"memory\": \"4096\",\n"), "{diff}");
    }

    #[test]
    fn small_limits_are_quadrupled_and_large_ones_doubled() {
        assert_eq!(next_limit(512 * MIB), 2_048 * MIB);
        assert_eq!(next_limit(4_096 * MIB), 8_192 * MIB);
        assert_eq!(next_limit(u64::MAX), u64::MAX);
    }
}

//! What the platforms' free texts say, where more than one platform says it.
//!
//! Owner: this file. Invariants: letter case never matters; an unknown text has the kind "", never
//! the nearest one; the order of a table is its meaning, the special before the general.
//! Absent: reasons that are fields with a closed list of values (their readers).

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::facts::NotStarted;

/// The kind of the first line of which all words (separated by `*`, in order) are in the text.
fn kind_of(text: &str, table: &[(&str, &'static str)]) -> &'static str {
    let lower = text.to_lowercase();
    let says = |pattern: &str| {
        let mut rest = lower.as_str();
        pattern.split('*').all(|word| match rest.split_once(word) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    };
    table.iter().find(|(pattern, _)| says(pattern)).map_or("", |(_, kind)| kind)
}

/// Why an image could not be pulled.
pub(super) fn pull_kind(text: &str) -> &'static str {
    const TABLE: &[(&str, &str)] = &[
        ("toomanyrequests", "rate_limit"),
        ("too many requests", "rate_limit"),
        ("rate limit", "rate_limit"),
        ("rate exceeded", "rate_limit"),
        ("no space left on device", "no_space"),
        ("invalid reference format", "invalid_reference"),
        ("couldn't parse image", "invalid_reference"),
        ("invalidimagename", "invalid_reference"),
        ("failed to apply default image tag", "invalid_reference"),
        ("no matching manifest", "platform"),
        ("no match for platform", "platform"),
        ("does not match the specified platform", "platform"),
        // The store of the layers is another address than the registry: a missing route to it.
        ("httpreaderseeker: failed open*403", "access_denied"),
        ("httpreaderseeker: failed open", "network"),
        ("i/o timeout", "timeout"),
        ("request canceled", "timeout"),
        ("context canceled", "timeout"),
        ("context deadline exceeded", "timeout"),
        ("tls handshake timeout", "timeout"),
        ("accessdenied", "access_denied"),
        ("access denied", "access_denied"),
        ("not authorized to perform", "access_denied"),
        ("unauthorized", "access_denied"),
        ("no basic auth credentials", "access_denied"),
        ("authentication required", "access_denied"),
        ("authorization failed", "access_denied"),
        ("access to the resource is denied", "access_denied"),
        ("403 forbidden", "access_denied"),
        ("no such host", "network"),
        ("connection refused", "network"),
        ("connection reset", "network"),
        ("network is unreachable", "network"),
        ("no route to host", "network"),
        ("x509", "network"),
        ("manifest unknown", "not_found"),
        ("name unknown", "not_found"),
        ("not found", "not_found"),
        ("does not exist", "not_found"),
        ("errimageneverpull", "never_pulled"),
        ("is not present with pull policy of never", "never_pulled"),
        ("timed out", "timeout"),
        ("timeout", "timeout"),
    ];
    kind_of(text, TABLE)
}

/// Why a container that has its image could not be created or started.
pub(super) fn start_kind(text: &str) -> &'static str {
    const TABLE: &[(&str, &str)] = &[
        ("executable file not found", "command_not_found"),
        ("exec format error", "platform"),
        ("exec*permission denied", "not_executable"),
        ("exec*is a directory", "not_executable"),
        ("exec*no such file or directory", "command_not_found"),
        ("port is already allocated", "port_taken"),
        ("address already in use", "port_taken"),
        ("ports are not available", "port_taken"),
        ("no space left on device", "no_space"),
        ("oom-kill", "memory_too_small"),
        ("out of memory", "memory_too_small"),
        ("likely too low", "memory_too_small"),
        ("minimum memory limit", "memory_too_small"),
        ("could not select device driver", "device"),
        ("no command specified", "no_command"),
        ("is already in use by container", "name_taken"),
        ("name is reserved for", "name_taken"),
        ("mount", "mount"),
        ("network", "network"),
    ];
    kind_of(text, TABLE)
}

/// What could not be set up for a container before its start.
pub(super) fn init_kind(text: &str) -> &'static str {
    const TABLE: &[(&str, &str)] = &[
        ("signal: killed", "pull_killed"),
        ("secret", "secrets"),
        ("systems manager", "secrets"),
        ("ssm", "secrets"),
        ("parameter", "secrets"),
        ("configmap", "config_map"),
        ("registry auth", "registry_auth"),
        ("ecr", "registry_auth"),
        ("efs", "volume"),
        ("logger", "logging"),
        ("log group", "logging"),
        ("log driver", "logging"),
        ("volume", "volume"),
        ("mount", "volume"),
        ("sandbox", "network"),
        ("network", "network"),
        ("eni", "network"),
    ];
    // The general words name both secrets and registry before the special ones follow.
    let lower = text.to_lowercase().replace("unable to pull secrets or registry auth", "");
    match kind_of(&lower, TABLE) {
        "" if lower.len() < text.len() => "secrets_or_registry_auth",
        kind => kind,
    }
}

/// What no machine has enough of.
pub(super) fn placement_kind(text: &str) -> &'static str {
    const TABLE: &[(&str, &str)] = &[
        ("reason: no container instances were found", "no_instances"),
        ("no container instances", "no_instances"),
        ("limit on the number of vcpus", "vcpu_limit"),
        ("limit on the number of tasks", "quota"),
        ("capacity is unavailable", "capacity"),
        ("resource:memory", "memory"),
        ("resource:cpu", "cpu"),
        ("resource:eni", "eni"),
        ("resource:port", "ports"),
        ("resource:gpu", "gpu"),
        ("insufficient memory", "memory"),
        ("insufficient cpu", "cpu"),
        ("insufficient nvidia.com/gpu", "gpu"),
        ("insufficient pods", "pods"),
        ("insufficient ephemeral-storage", "storage"),
        ("outofmemory", "memory"),
        ("outofcpu", "cpu"),
        ("outofpods", "pods"),
        ("memory available", "memory"),
        ("cpu units available", "cpu"),
        ("already using a port", "ports"),
        ("free ports", "ports"),
        ("missing an attribute", "attribute"),
        ("persistentvolumeclaim", "volume"),
        ("volume node affinity", "volume"),
        ("untolerated taint", "taint"),
        ("had taint", "taint"),
        ("node affinity", "affinity"),
        ("node selector", "affinity"),
        ("nodeaffinity", "affinity"),
        ("anti-affinity", "affinity"),
        ("unexpectedadmissionerror", "admission"),
    ];
    kind_of(text, TABLE)
}

/// What a stop's own words say of a watchdog behind it; nothing, where they name none.
pub(super) fn watchdog_kind(text: &str) -> Option<&'static str> {
    let lower = text.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let has = |wanted: &[&str]| words.iter().any(|word| wanted.contains(word));
    let says = |phrase: &str| format!(" {} ", words.join(" ")).contains(&format!(" {phrase} "));
    if has(&["idle", "idletimeout", "inactive", "inactivity"]) || says("no activity") {
        return Some("idle");
    }
    let is_old = ["max life", "max lifetime", "maximum lifetime", "maximum age", "max age"];
    if is_old.into_iter().chain(["maximum runtime", "max runtime", "time to live"]).any(says)
        || has(&["maxlifetime", "ttl", "lifetime"])
    {
        return Some("max_life");
    }
    let is_hung = ["no heartbeat", "missed heartbeat", "missed heartbeats", "no progress"];
    if is_hung.into_iter().chain(["heartbeat lost", "not responding"]).any(says)
        || has(&["hung", "stuck", "unresponsive", "wedged", "deadlocked"])
    {
        return Some("hung");
    }
    has(&["watchdog", "reaper", "reaped"]).then_some("")
}

/// The container's own out-of-memory words, as ECS and container runtimes put them.
pub(super) fn says_out_of_memory(text: &str) -> bool {
    let lower = text.to_lowercase();
    let words = ["outofmemoryerror: container killed", "outofmemory: container killed"];
    words.iter().any(|word| lower.contains(word))
        || lower.contains("killed due to memory usage")
        || lower.trim() == "oomkilled"
        || lower.trim() == "outofmemoryerror"
}

pub(super) fn not_started(cause: Cause, kind: &'static str) -> NotStarted {
    NotStarted { cause, kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_that_failed_has_the_kind_that_its_words_say() {
        for (text, kind) in [
            ("manifest for x:y not found: MANIFEST UNKNOWN", "not_found"),
            ("pull access denied for x, repository does not exist or may require", "access_denied"),
            ("toomanyrequests: You have reached your pull rate limit", "rate_limit"),
            ("dial tcp 1.2.3.4:443: i/o timeout", "timeout"),
            ("request canceled while waiting for connection", "timeout"),
            ("httpReaderSeeker: failed open: failed to do request: dial: i/o timeout", "network"),
            ("write /var/lib: no space left on device", "no_space"),
            ("no matching manifest for linux/arm64/v8 in the list", "platform"),
            ("something that nobody wrote down", ""),
        ] {
            assert_eq!(pull_kind(text), kind, "{text}");
        }
    }

    #[test]
    fn the_general_words_before_a_failed_set_up_do_not_name_its_kind() {
        let general = "ResourceInitializationError: unable to pull secrets or registry auth: ";
        let kind = |rest: &str| init_kind(&format!("{general}{rest}"));
        assert_eq!(kind("unable to retrieve ecr registry auth: timeout"), "registry_auth");
        assert_eq!(kind("unable to retrieve secret from asm: denied"), "secrets");
        assert_eq!(kind("execution resource retrieval failed"), "secrets_or_registry_auth");
        assert_eq!(init_kind("failed to validate logger args: no group"), "logging");
    }

    #[test]
    fn a_watchdog_is_named_by_whole_words() {
        for (text, kind) in [
            ("session-reaper: idle for 30 min", Some("idle")),
            ("exceeded MAX LIFETIME of 8 h", Some("max_life")),
            ("watchdog: no heartbeat since 10:00", Some("hung")),
            ("killed by the watchdog", Some("")),
            ("Task stopped by user", None),
            ("middleware was rolled back, unstuck the queue", None),
        ] {
            assert_eq!(watchdog_kind(text), kind, "{text}");
        }
    }

    #[test]
    fn only_the_platform_s_own_words_say_out_of_memory() {
        assert!(says_out_of_memory("OutOfMemoryError: Container killed due to memory usage"));
        assert!(says_out_of_memory("container killed due to memory usage"));
        assert!(!says_out_of_memory("java.lang.OutOfMemoryError: Java heap space"));
    }
}

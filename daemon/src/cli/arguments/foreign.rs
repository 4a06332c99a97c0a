//! `why ecs`, `why docker`, `why k8s` as types.
//!
//! Invariant: a name never begins like an option, so that no tool takes it for one. Absent: what
//! the commands do (`why_foreign`).

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum WhyForeign {
    Ecs(WhyEcs),
    Docker(WhyDocker),
    K8s(WhyKubernetes),
}

/// Why a task of Amazon ECS ended, or was never placed. Needs no daemon.
///
/// Asks the `aws` tool, with your profile and region; or reads what it printed elsewhere.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse why ecs --cluster prod --service worker
  dormouse why ecs --from tasks.json --from services.json
  aws ecs describe-tasks … --output json | dormouse why ecs --from -

It calls describe-services, list-tasks, describe-tasks and describe-task-definition, and reads
their output as well as EventBridge's \"ECS Task State Change\" from files.")]
pub(crate) struct WhyEcs {
    /// The cluster's name [default: default]
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) cluster: Option<String>,
    /// The service's name.
    #[arg(long, value_name = "NAME", value_parser = name)]
    #[arg(required_unless_present_any = ["from", "task"], conflicts_with = "task")]
    pub(crate) service: Option<String>,
    /// One task, by its id or ARN.
    #[arg(long, value_name = "ID", value_parser = name)]
    pub(crate) task: Option<String>,
    #[command(flatten)]
    pub(crate) evidence: Evidence,
}

/// Why a Docker container ended. Needs no daemon of Dormouse's.
///
/// Asks the `docker` tool; or reads what `docker inspect` and `docker events` printed elsewhere.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse why docker web
  docker events --since 1h --until 0s --format '{{json .}}' > events.json
  dormouse why docker --from inspect.json --from events.json")]
pub(crate) struct WhyDocker {
    /// The container's name or id.
    #[arg(value_name = "CONTAINER", value_parser = name, required_unless_present = "from")]
    pub(crate) container: Option<String>,
    #[command(flatten)]
    pub(crate) evidence: Evidence,
}

/// Why a pod of Kubernetes ended, or never began. Needs no daemon.
///
/// Asks `kubectl`, with your context; or reads what it printed elsewhere.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse why k8s shop/web-6c5b7d-x2x9z
  kubectl get pod web -o json > pod.json; kubectl get events -o json > events.json
  dormouse why k8s --from pod.json --from events.json")]
pub(crate) struct WhyKubernetes {
    /// The pod [NAMESPACE default: default]
    #[arg(value_name = "[NAMESPACE/]POD", required_unless_present = "from")]
    pub(crate) pod: Option<PodArgument>,
    #[command(flatten)]
    pub(crate) evidence: Evidence,
}

#[derive(Debug, Args)]
pub(crate) struct Evidence {
    /// Read a document of the platform instead of asking it; `-` is standard input. Several may be
    /// given, and what they are is seen from their structure.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Vec<PathBuf>,
    /// The end of its log, where lines say why.
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Print Markdown, for an issue.
    #[arg(long, conflicts_with = "json")]
    pub(crate) markdown: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodArgument {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl FromStr for PodArgument {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, pod) = text.split_once('/').unwrap_or(("default", text));
        if pod.contains('/') {
            return Err("it is written NAMESPACE/POD".to_owned());
        }
        Ok(Self { namespace: name(namespace)?, name: name(pod)? })
    }
}

/// A platform's name for something: whatever it allows, it is none of these.
fn name(text: &str) -> Result<String, String> {
    let is_odd = |c: char| c.is_control() || c.is_whitespace();
    if text.is_empty() || text.starts_with('-') || text.chars().any(is_odd) {
        return Err("a name is not empty, has no spaces, and does not begin with '-'".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_without_a_namespace_is_in_the_default_one() {
        let pod = |text: &str| text.parse::<PodArgument>().map(|pod| (pod.namespace, pod.name));
        assert_eq!(pod("web"), Ok(("default".to_owned(), "web".to_owned())));
        assert_eq!(pod("shop/web"), Ok(("shop".to_owned(), "web".to_owned())));
        for text in ["", "/web", "shop/", "a/b/c", "-o", "shop/--all", "a b"] {
            assert!(pod(text).is_err(), "{text:?} was taken");
        }
    }
}

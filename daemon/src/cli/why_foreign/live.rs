//! Evidence from the platforms' own command line tools, with the user's profile and permissions.
//!
//! Owner: `why_foreign`. Invariants: arguments are a vector, and no value of a user can become an
//! option; a call has `CALL_WITHIN` and the documents' cap; nothing is written, only asked; a call
//! that was refused, throttled or too slow is a gap, never an answer. Absent: retries.

use std::collections::BTreeSet;
use std::io;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::Gathered;
use crate::foreign::{DOCUMENT_BYTES_MAX, Input, Platform, Wanted};

const CALL_WITHIN: Duration = Duration::from_secs(30);
const STDERR_BYTES_MAX: usize = 64 << 10;
/// describe-tasks takes no more at once.
const TASKS_MAX: usize = 100;
const LOG_LINES: &str = "200";
const EVENTS_REACH: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) async fn gather(platform: Platform, wanted: &Wanted) -> Gathered {
    let mut asked = Asked::default();
    match platform {
        Platform::Ecs => ecs(&mut asked, wanted).await,
        Platform::Docker => docker(&mut asked, wanted).await,
        Platform::Kubernetes => kubernetes(&mut asked, wanted).await,
    }
    asked.gathered
}

#[derive(Debug, Default)]
struct Asked {
    gathered: Gathered,
    /// There is no tool to ask, which is said once.
    has_no_tool: bool,
}

impl Asked {
    /// Keeps the answer as a document, or the reason for having none.
    async fn ask(&mut self, program: &str, arguments: &[&str]) -> Option<Value> {
        let name = call_name(program, arguments);
        match call(program, arguments).await {
            Ok(answer) => {
                let value = serde_json::from_slice(&answer.out).unwrap_or(Value::Null);
                if !answer.out.trim_ascii().is_empty() {
                    self.gathered.documents.push(Input { name, bytes: answer.out });
                }
                Some(value)
            }
            Err(error) => {
                self.note(&name, &error);
                None
            }
        }
    }

    fn note(&mut self, name: &str, error: &CallError) {
        let gap = format!("{name}: {error}");
        let is_said = self.has_no_tool || self.gathered.missing.contains(&gap);
        if !is_said {
            self.gathered.missing.push(gap);
        }
        self.has_no_tool |= matches!(error, CallError::NoTool);
    }

    async fn ask_for_log(&mut self, program: &str, arguments: &[&str]) {
        let name = call_name(program, arguments);
        match call(program, arguments).await {
            Ok(mut answer) => {
                answer.out.extend(answer.err);
                self.gathered.log = Some(Input { name, bytes: answer.out });
            }
            Err(error) => self.note(&name, &error),
        }
    }
}

/// "aws ecs describe-tasks"
fn call_name(program: &str, arguments: &[&str]) -> String {
    let words = arguments.iter().take_while(|argument| !argument.starts_with('-')).take(2);
    std::iter::once(&program).chain(words).copied().collect::<Vec<_>>().join(" ")
}

async fn ecs(asked: &mut Asked, wanted: &Wanted) {
    let cluster = wanted.cluster.as_deref().unwrap_or("default");
    let of_cluster = ["--cluster", cluster, "--output", "json"];
    let with = |words: &[&str]| -> Vec<String> {
        words.iter().chain(&of_cluster).map(|word| (*word).to_owned()).collect()
    };
    if !cluster_is_there(asked, cluster).await {
        return;
    }
    let mut tasks = BTreeSet::new();
    if let Some(task) = &wanted.task {
        tasks.insert(last_part(task).to_owned());
    }
    if let Some(service) = &wanted.service {
        for status in ["STOPPED", "RUNNING"] {
            let words =
                with(&["ecs", "list-tasks", "--service-name", service, "--desired-status", status]);
            let listed = asked.ask("aws", &borrowed(&words)).await.unwrap_or_default();
            tasks.extend(texts(&listed["taskArns"]).map(|arn| last_part(arn).to_owned()));
        }
        let answer = describe_service(asked, &with, service).await;
        // The list forgets tasks earlier than describe-tasks does; the service's events name them.
        tasks.extend(tasks_in_events(&answer));
    }
    let mut definition = None;
    if !tasks.is_empty() {
        let mut words = vec!["ecs", "describe-tasks", "--tasks"];
        words.extend(tasks.iter().take(TASKS_MAX).map(String::as_str));
        let words = with(&words);
        let answer = asked.ask("aws", &borrowed(&words)).await.unwrap_or_default();
        let newest = newest_task(&answer);
        definition = newest.and_then(|task| task["taskDefinitionArn"].as_str()).map(str::to_owned);
        if wanted.service.is_none()
            && let Some(group) = newest.and_then(|task| task["group"].as_str())
            && let Some(name) = group.strip_prefix("service:")
        {
            describe_service(asked, &with, name).await;
        }
    }
    if let Some(definition) = definition.filter(|definition| !definition.starts_with('-')) {
        let words = ["ecs", "describe-task-definition", "--task-definition", &definition];
        let words: Vec<&str> = words.into_iter().chain(["--output", "json"]).collect();
        asked.ask("aws", &words).await;
    }
}

/// `false`: ECS says that it has no such cluster, or none in use; the answer is kept, and says so.
/// Where that could not be asked, the rest is asked all the same.
async fn cluster_is_there(asked: &mut Asked, cluster: &str) -> bool {
    let words = ["ecs", "describe-clusters", "--clusters", cluster, "--output", "json"];
    let Some(answer) = asked.ask("aws", &words).await else { return true };
    let is_missing =
        answer["failures"].as_array().into_iter().flatten().any(|it| it["reason"] == "MISSING");
    let is_deleted = answer["clusters"][0]["status"] == "INACTIVE";
    !is_missing && !is_deleted
}

async fn describe_service(
    asked: &mut Asked,
    with: &impl Fn(&[&str]) -> Vec<String>,
    service: &str,
) -> Value {
    let words = with(&["ecs", "describe-services", "--services", service]);
    asked.ask("aws", &borrowed(&words)).await.unwrap_or_default()
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn last_part(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

fn newest_task(answer: &Value) -> Option<&Value> {
    let tasks = answer["tasks"].as_array()?;
    tasks.iter().max_by_key(|task| (task["stoppedAt"].to_string(), task["createdAt"].to_string()))
}

/// "(service x) has started 1 tasks: (task 0123abcd)."
fn tasks_in_events(answer: &Value) -> BTreeSet<String> {
    let events = answer["services"][0]["events"].as_array().into_iter().flatten();
    let messages = events.filter_map(|event| event["message"].as_str());
    let pieces = messages.flat_map(|message| message.split("(task ").skip(1));
    let ids = pieces.filter_map(|piece| piece.split_once(')')).map(|(id, _)| id);
    let is_id = |id: &&str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    ids.filter(is_id).map(str::to_owned).take(TASKS_MAX).collect()
}

async fn docker(asked: &mut Asked, wanted: &Wanted) {
    let Some(name) = wanted.container.as_deref() else { return };
    let inspected = asked.ask("docker", &["inspect", "--type", "container", name]).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = now.saturating_sub(EVENTS_REACH).as_secs().to_string();
    let until = now.as_secs().to_string();
    let filter = format!("container={name}");
    let words = ["events", "--since", &since, "--until", &until, "--filter", &filter];
    let words: Vec<&str> = words.into_iter().chain(["--format", "{{json .}}"]).collect();
    asked.ask("docker", &words).await;
    let is_running = inspected.is_some_and(|answer| answer[0]["State"]["Running"] == true);
    if !is_running {
        asked.ask_for_log("docker", &["logs", "--tail", LOG_LINES, name]).await;
    }
}

async fn kubernetes(asked: &mut Asked, wanted: &Wanted) {
    let (Some(namespace), Some(name)) = (wanted.namespace.as_deref(), wanted.pod.as_deref()) else {
        return;
    };
    let limit = format!("--request-timeout={}s", CALL_WITHIN.as_secs());
    let common = ["-n", namespace, "-o", "json", limit.as_str()];
    let words: Vec<&str> = ["get", "pod", name].into_iter().chain(common).collect();
    let pod = asked.ask("kubectl", &words).await.unwrap_or_default();
    let owner = pod["metadata"]["ownerReferences"][0]["name"].as_str();
    for object in [Some(name), owner].into_iter().flatten() {
        let selector = format!("involvedObject.name={object}");
        let words = ["get", "events", "--field-selector", &selector];
        let words: Vec<&str> = words.into_iter().chain(common).collect();
        asked.ask("kubectl", &words).await;
    }
    let Some([status]) = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice) else {
        return;
    };
    let tail = format!("--tail={LOG_LINES}");
    let mut words = vec!["logs", name, "-n", namespace, &tail, &limit];
    if !status["state"]["terminated"].is_object() {
        words.push("--previous");
    }
    if status["state"]["terminated"].is_object() || status["lastState"]["terminated"].is_object() {
        asked.ask_for_log("kubectl", &words).await;
    }
}

#[derive(Debug)]
struct Answer {
    out: Vec<u8>,
    err: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(
        "the tool is not installed, or not in PATH; --from FILE reads what it printed elsewhere"
    )]
    NoTool,
    #[error("it could not be run ({0})")]
    Run(io::Error),
    #[error("it did not answer within {} s", CALL_WITHIN.as_secs())]
    TooSlow,
    #[error("it answered more than {} MiB", DOCUMENT_BYTES_MAX >> 20)]
    TooLong,
    #[error("{meaning} ({words})")]
    Refused { meaning: &'static str, words: String },
}

async fn call(program: &str, arguments: &[&str]) -> Result<Answer, CallError> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("AWS_PAGER", "")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CallError::NoTool,
            _ => CallError::Run(error),
        })?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        unreachable!("both were asked for as pipes");
    };
    let reading = async {
        let (out, err) =
            tokio::try_join!(capped(out, DOCUMENT_BYTES_MAX), capped(err, STDERR_BYTES_MAX))?;
        // A pipe that is full is not waited for: over the cap, it is killed.
        if out.len() > DOCUMENT_BYTES_MAX {
            return Ok(None);
        }
        Ok::<_, io::Error>(Some((child.wait().await?, Answer { out, err })))
    };
    let done = tokio::time::timeout(CALL_WITHIN, reading).await;
    let done = done.map_err(|_elapsed| CallError::TooSlow)?.map_err(CallError::Run)?;
    let (status, answer) = done.ok_or(CallError::TooLong)?;
    if status.success() { Ok(answer) } else { Err(refused(&answer.err)) }
}

/// One byte more than the cap, where it is passed.
async fn capped(reader: impl AsyncRead + Unpin, cap: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(cap).unwrap_or(u64::MAX).saturating_add(1);
    let mut reader = reader.take(limit);
    reader.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What a tool's complaint means for the evidence.
fn refused(err: &[u8]) -> CallError {
    let text = String::from_utf8_lossy(err);
    let words: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    // The last line is the error; before it may stand warnings.
    let words = words.last().copied().unwrap_or("it said nothing").to_owned();
    let lower = text.to_lowercase();
    let says = |signs: &[&str]| signs.iter().any(|sign| lower.contains(sign));
    let meaning = if says(&["throttl", "rate exceeded", "toomanyrequests", "requestlimitexceeded"])
    {
        "throttled, which says nothing about what was asked for; try again later"
    } else if says(&["expiredtoken", "unable to locate credentials", "token has expired"]) {
        "no valid credentials"
    } else if says(&["accessdenied", "not authorized", "forbidden", "permission denied"]) {
        "not allowed"
    } else if says(&["no such container", "no such object", "notfound", "not found"]) {
        "not there, or not there any more"
    } else {
        "it failed"
    };
    CallError::Refused { meaning, words }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_complaint_is_told_apart_and_kept_in_its_words() {
        let meaning = |text: &str| refused(text.as_bytes()).to_string();
        let throttled = "\nAn error occurred (ThrottlingException) when calling: Rate exceeded";
        assert!(meaning(throttled).starts_with("throttled, which says nothing"));
        assert!(meaning("x (AccessDeniedException): User is not").starts_with("not allowed ("));
        assert!(meaning("Error from server (Forbidden): pods").starts_with("not allowed"));
        assert!(meaning("Error: No such container: web").starts_with("not there"));
        assert_eq!(meaning("\n"), "it failed (it said nothing)");
    }

    #[test]
    fn a_service_s_events_name_tasks_that_the_list_forgot() {
        let answer = json!({"services": [{"events": [
            {"message": "(service w) has started 1 tasks: (task 0a1b2c)."},
            {"message": "(service w) has stopped 2 running tasks: (task 3d) (task --x)."},
            {"message": "(service w) has reached a steady state."}]}]});
        assert_eq!(
            tasks_in_events(&answer),
            BTreeSet::from(["0a1b2c".to_owned(), "3d".to_owned()])
        );
        assert!(tasks_in_events(&Value::Null).is_empty());
    }

    #[tokio::test]
    async fn a_tool_that_is_not_there_and_one_that_prints_too_much_are_gaps() {
        let gone = call("dormouse-no-such-tool", &[]).await.unwrap_err();
        assert!(gone.to_string().contains("not installed"), "{gone}");
        let long = call("cat", &["/dev/zero"]).await.unwrap_err();
        assert_eq!(long.to_string(), "it answered more than 16 MiB");
    }
}

//! Bytes to documents: what a platform's tool printed, recognised by its structure alone.
//!
//! Owner: this file. Invariants: nothing is larger than `DOCUMENT_BYTES_MAX`, or has more than
//! `VALUES_MAX` values, before it is parsed; what is no JSON is refused with file, line and column;
//! what is not recognised is refused by name, never skipped. Absent: what a document says.

use serde_json::Value;

use super::Platform;
use super::place::{Gaps, Place};

pub(crate) const DOCUMENT_BYTES_MAX: usize = 16 << 20;
/// A parsed value takes some twenty times its two bytes: this bounds the memory.
const VALUES_MAX: usize = 1_000_000;

/// What was read from a file or a tool, and what to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Input {
    /// "tasks.json", "standard input", "aws ecs describe-tasks".
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("{name} has more than {} MiB", DOCUMENT_BYTES_MAX >> 20)]
    TooLarge { name: String },
    #[error("{name} has more than {VALUES_MAX} values")]
    TooManyValues { name: String },
    #[error("{name} is empty")]
    Empty { name: String },
    #[error("{name} is not UTF-8 text")]
    NotText { name: String },
    #[error("{name} is not UTF-8 text, but UTF-16: save it as UTF-8")]
    Utf16 { name: String },
    #[error("{name} is not JSON: line {line}, column {column}: {problem}")]
    NotJson { name: String, line: usize, column: usize, problem: String },
    #[error("{name} is JSON, but {what}")]
    NotRecognised { name: String, what: String },
    #[error("{name} is of {is}, and was read for {wanted}")]
    OtherPlatform { name: String, is: Platform, wanted: Platform },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    EcsTasks,
    EcsTask,
    EcsTaskEvent,
    EcsServices,
    EcsTaskDefinition,
    EcsClusters,
    /// Lists of names: known, and without evidence.
    EcsOther,
    DockerContainer,
    DockerEvent,
    KubernetesPod,
    KubernetesEvent,
    KubernetesList,
    KubernetesStatus,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::EcsTasks | Kind::EcsTask => "describe-tasks",
            Kind::EcsTaskEvent => "task state change",
            Kind::EcsServices => "describe-services",
            Kind::EcsTaskDefinition => "describe-task-definition",
            Kind::EcsClusters => "describe-clusters",
            Kind::EcsOther => "ecs",
            Kind::DockerContainer => "docker inspect",
            Kind::DockerEvent => "docker events",
            Kind::KubernetesPod => "pod",
            Kind::KubernetesEvent => "event",
            Kind::KubernetesList => "kubectl get",
            Kind::KubernetesStatus => "status",
        }
    }

    fn platform(self) -> Platform {
        match self {
            Kind::EcsTasks
            | Kind::EcsTask
            | Kind::EcsTaskEvent
            | Kind::EcsServices
            | Kind::EcsTaskDefinition
            | Kind::EcsClusters
            | Kind::EcsOther => Platform::Ecs,
            Kind::DockerContainer | Kind::DockerEvent => Platform::Docker,
            Kind::KubernetesPod
            | Kind::KubernetesEvent
            | Kind::KubernetesList
            | Kind::KubernetesStatus => Platform::Kubernetes,
        }
    }
}

#[derive(Debug)]
pub(super) struct Document {
    pub(super) kind: Kind,
    /// Where it stands in its input: "" or "[3]".
    path: String,
    value: Value,
}

impl Document {
    pub(super) fn place<'a>(&'a self, gaps: &'a Gaps) -> Place<'a> {
        Place::new(self.kind.name(), self.path.as_str(), &self.value, gaps)
    }
}

/// All documents of one input: one, one per line, or an array of them.
pub(super) fn read(input: &Input, wanted: Platform) -> Result<Vec<Document>, DocumentError> {
    let name = || input.name.clone();
    let text = text_of(input)?;
    if !has_few_values(text) {
        return Err(DocumentError::TooManyValues { name: name() });
    }
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        values.push(value.map_err(|error| not_json(name(), &error))?);
    }
    let is_alone = values.len() == 1;
    let mut found = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        let path = if is_alone { String::new() } else { format!("[{index}]") };
        match value {
            Value::Array(items) => {
                for (index, item) in items.into_iter().enumerate() {
                    found.push(recognised(&name(), format!("{path}[{index}]"), item)?);
                }
            }
            value => found.push(recognised(&name(), path, value)?),
        }
    }
    let stranger = found.iter().find(|document| document.kind.platform() != wanted);
    if let Some(stranger) = stranger {
        let is = stranger.kind.platform();
        return Err(DocumentError::OtherPlatform { name: name(), is, wanted });
    }
    Ok(found)
}

fn text_of(input: &Input) -> Result<&str, DocumentError> {
    let name = || input.name.clone();
    let bytes = input.bytes.as_slice();
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(DocumentError::TooLarge { name: name() });
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(DocumentError::Utf16 { name: name() });
    }
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|_not_utf_8| DocumentError::NotText { name: name() })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Err(DocumentError::Empty { name: name() });
    }
    Ok(text)
}

fn not_json(name: String, error: &serde_json::Error) -> DocumentError {
    let words = error.to_string();
    let problem = words.split(" at line ").next().unwrap_or_default().to_owned();
    DocumentError::NotJson { name, line: error.line(), column: error.column(), problem }
}

/// Each value but the first has a comma or an opening bracket before it.
fn has_few_values(text: &str) -> bool {
    let (mut count, mut is_string, mut is_escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        if is_string {
            is_string = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
        } else {
            is_string = byte == b'"';
            count += usize::from(matches!(byte, b',' | b'[' | b'{'));
        }
    }
    count < VALUES_MAX
}

fn recognised(name: &str, path: String, value: Value) -> Result<Document, DocumentError> {
    let refused = |what: &str| DocumentError::NotRecognised {
        name: if path.is_empty() { name.to_owned() } else { format!("{name} {path}") },
        what: what.to_owned(),
    };
    if !value.is_object() {
        return Err(refused("no object"));
    }
    match kind_of(&value) {
        Some(kind) => Ok(Document { kind, path, value }),
        None => Err(refused("neither of ECS, nor of Docker, nor of Kubernetes")),
    }
}

fn kind_of(value: &Value) -> Option<Kind> {
    let has = |key: &str| value.get(key).is_some();
    let is_list = |key: &str| value.get(key).is_some_and(Value::is_array);
    if let Some(kind) = value.get("kind").and_then(Value::as_str)
        && (has("apiVersion") || has("metadata") || has("items"))
    {
        return match kind {
            "Pod" => Some(Kind::KubernetesPod),
            "Event" => Some(Kind::KubernetesEvent),
            "Status" => Some(Kind::KubernetesStatus),
            _ if is_list("items") => Some(Kind::KubernetesList),
            _ => None,
        };
    }
    if has("detail-type") || (has("detail") && has("source")) {
        return value.get("detail")?.get("taskArn").map(|_arn| Kind::EcsTaskEvent);
    }
    if is_list("tasks") {
        return Some(Kind::EcsTasks);
    }
    if is_list("services") {
        return Some(Kind::EcsServices);
    }
    if value.get("taskDefinition").is_some_and(Value::is_object) {
        return Some(Kind::EcsTaskDefinition);
    }
    if is_list("clusters") {
        return Some(Kind::EcsClusters);
    }
    if is_list("taskArns") || is_list("clusterArns") || is_list("serviceArns") {
        return Some(Kind::EcsOther);
    }
    if has("taskArn") && (has("containers") || has("lastStatus")) {
        return Some(Kind::EcsTask);
    }
    if value.get("State").is_some_and(Value::is_object) && (has("Id") || has("Config")) {
        return Some(Kind::DockerContainer);
    }
    if (has("Action") || has("status")) && (has("Actor") || has("Type")) {
        return Some(Kind::DockerEvent);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Input {
        Input { name: "f.json".to_owned(), bytes: text.as_bytes().to_vec() }
    }

    fn kinds(text: &str, wanted: Platform) -> Vec<Kind> {
        read(&input(text), wanted).unwrap().iter().map(|document| document.kind).collect()
    }

    fn refusal(bytes: &[u8]) -> String {
        let input = Input { name: "f.json".to_owned(), bytes: bytes.to_vec() };
        read(&input, Platform::Docker).unwrap_err().to_string()
    }

    #[test]
    fn documents_are_recognised_alone_in_lines_and_in_arrays() {
        let event = r#"{"Type":"container","Action":"die","Actor":{}}"#;
        let both = format!("{event}\n{event}\n");
        assert_eq!(kinds(&both, Platform::Docker), [Kind::DockerEvent; 2]);
        let array = r#"[{"Id":"a","State":{}},{"Id":"b","State":{}}]"#;
        assert_eq!(kinds(array, Platform::Docker), [Kind::DockerContainer; 2]);
        assert_eq!(kinds(r#"{"tasks":[]}"#, Platform::Ecs), [Kind::EcsTasks]);
        let event = r#"{"detail-type":"ECS Task State Change","detail":{"taskArn":"x"}}"#;
        assert_eq!(kinds(event, Platform::Ecs), [Kind::EcsTaskEvent]);
        let pods = r#"{"apiVersion":"v1","kind":"PodList","items":[]}"#;
        assert_eq!(kinds(pods, Platform::Kubernetes), [Kind::KubernetesList]);
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_line_and_column() {
        let words = refusal(b"{\n  \"State\": {,\n");
        assert_eq!(words, "f.json is not JSON: line 2, column 13: key must be a string");
        assert!(refusal(&b"[".repeat(200)).contains("recursion limit exceeded"));
        assert!(refusal(b"{\"a\": NaN}").contains("line 1"));
    }

    #[test]
    fn other_refusals_name_their_reason() {
        assert_eq!(refusal(b"  \n"), "f.json is empty");
        assert!(refusal(b"\xff\xfe{\0}\0").contains("UTF-16"));
        assert_eq!(refusal(b"\xc3\x28"), "f.json is not UTF-8 text");
        assert_eq!(refusal(b"[1]"), "f.json [0] is JSON, but no object");
        assert!(refusal(b"{\"x\": 1}").contains("neither of ECS"));
        assert_eq!(refusal(b"{\"tasks\": []}"), "f.json is of Amazon ECS, and was read for Docker");
        assert!(refusal(&vec![b' '; DOCUMENT_BYTES_MAX + 1]).contains("more than 16 MiB"));
        let many = format!("[{}]", "1,".repeat(VALUES_MAX));
        assert_eq!(refusal(many.as_bytes()), "f.json has more than 1000000 values");
    }

    #[test]
    fn commas_in_strings_are_no_values() {
        assert!(has_few_values(&format!("\"{}\"", ",\\\"[".repeat(VALUES_MAX))));
    }
}

//! Bodies of requests: bytes in, checked values out. Pure, and fuzzed.
//!
//! Owner: the handlers. Invariants: depth and size are bounded before anything is built (FAULTS,
//! "Bad input"); an error names the field. Absent: sizes of whole bodies, which the router bounds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormouse_core::limits;
use dormouse_core::manifest::FilePath;
use serde::Deserialize;

use crate::api::shape::{AttachmentBody, SubmitBody};

/// More files than this are put one by one.
pub(crate) const ATTACHMENTS_MAX: usize = 16;
const JSON_DEPTH_MAX: usize = 64;
const JSON_NODES_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body is nested deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep,
    #[error("the body has more than {JSON_NODES_MAX} values")]
    TooMany,
    #[error("the body is no JSON of the right shape: {0}")]
    Shape(String),
    #[error("`{0}` is empty")]
    Empty(&'static str),
    #[error("`{field}` is longer than {max} bytes")]
    TooLong { field: &'static str, max: usize },
    #[error("`{field}` is not supported: {why}")]
    Unsupported { field: String, why: &'static str },
    #[error("`{field}` {why}")]
    Attachment { field: String, why: String },
}

/// A message as it was handed in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Submit {
    pub(crate) text: String,
    pub(crate) attachments: Vec<Attached>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) path: FilePath,
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_executable: bool,
}

/// `POST …/messages`
pub(crate) fn parse_submit(bytes: &[u8]) -> Result<Submit, BodyError> {
    check_bounds(bytes)?;
    let SubmitBody { text, attachments } = serde_json::from_slice(bytes).map_err(shape)?;
    check_text("text", &text)?;
    if attachments.len() > ATTACHMENTS_MAX {
        let why = format!("are more than {ATTACHMENTS_MAX}; put the files first");
        return Err(BodyError::Attachment { field: "attachments".to_owned(), why });
    }
    let attachments = attachments.into_iter().enumerate().map(|(at, body)| attached(at, body));
    Ok(Submit { text, attachments: attachments.collect::<Result<_, _>>()? })
}

fn attached(at: usize, body: AttachmentBody) -> Result<Attached, BodyError> {
    let wrong = |field: &str, why: String| {
        let field = format!("attachments[{at}]{field}");
        Err(BodyError::Attachment { field, why })
    };
    let AttachmentBody { path, text, base64, executable: is_executable } = body;
    let path = match FilePath::new(&path) {
        Ok(path) => path,
        Err(error) => return wrong(".path", format!("is no path of a workspace: {error}")),
    };
    let bytes = match (text, base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) => bytes,
            Err(error) => return wrong(".base64", format!("is no base64: {error}")),
        },
        (None, None) | (Some(_), Some(_)) => {
            return wrong("", "has to have one of `text` and `base64`".to_owned());
        }
    };
    Ok(Attached { path, bytes, is_executable })
}

/// What of `POST /v1/chat/completions` is used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chat {
    pub(crate) model: String,
    pub(crate) user: Option<String>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// The newest user message: the session remembers what was before.
    pub(crate) text: String,
    /// Messages that were in the request and not handed on, as `messages[2] (system)`.
    pub(crate) left_out: Vec<String>,
}

#[derive(Deserialize)]
struct ChatBody {
    model: String,
    messages: Vec<ChatMessage>,
    user: Option<String>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    tools: Option<Vec<serde_json::Value>>,
    functions: Option<Vec<serde_json::Value>>,
    audio: Option<serde_json::Value>,
    response_format: Option<ResponseFormat>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
struct ResponseFormat {
    r#type: String,
}

#[derive(Deserialize)]
struct ChatMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

pub(crate) fn parse_chat(bytes: &[u8]) -> Result<Chat, BodyError> {
    check_bounds(bytes)?;
    let body: ChatBody = serde_json::from_slice(bytes).map_err(shape)?;
    check_supported(&body)?;
    let newest = body.messages.iter().rposition(|message| message.role == "user");
    let Some(newest) = newest else {
        return Err(BodyError::Empty("messages"));
    };
    let left_out = body
        .messages
        .iter()
        .enumerate()
        .filter(|(place, message)| *place != newest && message.role != "assistant")
        .map(|(place, message)| format!("messages[{place}] ({})", message.role))
        .collect();
    let text = text_of(newest, body.messages.into_iter().nth(newest).and_then(|m| m.content))?;
    check_text("messages", &text)?;
    Ok(Chat {
        model: body.model,
        user: body.user,
        stream: body.stream,
        include_usage: body.stream_options.is_some_and(|options| options.include_usage),
        text,
        left_out,
    })
}

fn check_supported(body: &ChatBody) -> Result<(), BodyError> {
    let refuse = |field: &str, why| Err(BodyError::Unsupported { field: field.to_owned(), why });
    if body.n.is_some_and(|n| n != 1) {
        return refuse("n", "an agent gives one answer");
    }
    if body.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
        return refuse("tools", "the agent brings its own tools");
    }
    if body.functions.as_ref().is_some_and(|functions| !functions.is_empty()) {
        return refuse("functions", "the agent brings its own tools");
    }
    if body.audio.is_some() {
        return refuse("audio", "this version carries text only");
    }
    if body.response_format.as_ref().is_some_and(|format| format.r#type != "text") {
        return refuse("response_format", "the agent decides on its words");
    }
    Ok(())
}

fn text_of(place: usize, content: Option<Content>) -> Result<String, BodyError> {
    match content {
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => {
            let mut texts = Vec::new();
            for (part_place, part) in parts.into_iter().enumerate() {
                match (part.r#type.as_str(), part.text) {
                    ("text", Some(text)) => texts.push(text),
                    _other => {
                        let field = format!("messages[{place}].content[{part_place}]");
                        let why = "this version carries text only";
                        return Err(BodyError::Unsupported { field, why });
                    }
                }
            }
            Ok(texts.join("\n"))
        }
    }
}

fn check_text(field: &'static str, text: &str) -> Result<(), BodyError> {
    if text.trim().is_empty() {
        return Err(BodyError::Empty(field));
    }
    if text.len() > limits::MESSAGE_BYTES_MAX {
        return Err(BodyError::TooLong { field, max: limits::MESSAGE_BYTES_MAX });
    }
    Ok(())
}

fn shape(error: serde_json::Error) -> BodyError {
    BodyError::Shape(error.to_string())
}

/// Counts brackets and separators outside of strings: cheap, and never wrong in the direction that
/// matters.
fn check_bounds(bytes: &[u8]) -> Result<(), BodyError> {
    let (mut depth, mut nodes) = (0_usize, 1_usize);
    let (mut in_string, mut is_escaped) = (false, false);
    for byte in bytes {
        if in_string {
            match (is_escaped, byte) {
                (true, _) => is_escaped = false,
                (false, b'\\') => is_escaped = true,
                (false, b'"') => in_string = false,
                (false, _) => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                nodes += 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => nodes += 1,
            _other => {}
        }
        if depth > JSON_DEPTH_MAX {
            return Err(BodyError::TooDeep);
        }
        if nodes > JSON_NODES_MAX {
            return Err(BodyError::TooMany);
        }
    }
    Ok(())
}

/// Both parsers on the same bytes; what they take must keep within the bounds.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(body) = parse_submit(bytes) {
        assert!(!body.text.trim().is_empty() && body.text.len() <= limits::MESSAGE_BYTES_MAX);
    }
    if let Ok(chat) = parse_chat(bytes) {
        assert!(!chat.text.trim().is_empty() && chat.text.len() <= limits::MESSAGE_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submit(text: &str) -> Result<Submit, BodyError> {
        parse_submit(text.as_bytes())
    }

    #[test]
    fn what_the_fuzzer_begins_with_is_taken() {
        for seed in ["submit", "chat"] {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/http_bodies");
            let bytes = std::fs::read(format!("{folder}/{seed}")).unwrap();
            assert!(parse_submit(&bytes).is_ok() || parse_chat(&bytes).is_ok(), "{seed}");
            fuzz(&bytes);
        }
    }

    #[test]
    fn a_plain_text_is_taken_as_it_is() {
        assert_eq!(submit(r#"{"text": " hi "}"#).unwrap().text, " hi ");
    }

    #[test]
    fn attachments_are_texts_or_bytes() {
        let body = r#"{"text": "x", "attachments": [{"path": "d/a", "text": "b\n"},
            {"path": "c", "base64": "AP8K", "executable": true}]}"#;
        let attachments = submit(body).unwrap().attachments;
        let path = |text: &str| FilePath::new(text).unwrap();
        let text = Attached { path: path("d/a"), bytes: b"b\n".to_vec(), is_executable: false };
        let bytes = Attached { path: path("c"), bytes: vec![0, 255, 10], is_executable: true };
        assert_eq!(attachments, [text, bytes]);
    }

    #[test]
    fn wrong_bodies_name_what_is_wrong() {
        let words = |text: &str| submit(text).unwrap_err().to_string();
        assert!(words(r#"{"txt": "hi"}"#).contains("unknown field `txt`"));
        assert!(words(r#"{"text": 5}"#).contains("expected a string"));
        assert!(words(r#"{"text": "  "}"#).contains("`text` is empty"));
        let attached = |text: &str| words(&format!(r#"{{"text": "x", "attachments": [{text}]}}"#));
        assert!(attached("1").contains("invalid type: integer"), "{}", attached("1"));
        let both = attached(r#"{"path": "a", "text": "b", "base64": "Yg=="}"#);
        assert_eq!(both, "`attachments[0]` has to have one of `text` and `base64`");
        assert!(attached(r#"{"path": "../a", "text": ""}"#).contains("`attachments[0].path`"));
        assert!(attached(r#"{"path": "a", "base64": "?"}"#).contains("`attachments[0].base64`"));
        let many = vec![r#"{"path": "a", "text": ""}"#; ATTACHMENTS_MAX + 1].join(",");
        assert!(attached(&many).contains("more than 16"));
        assert!(words("").contains("no JSON"));
        assert!(words("{\"text\": \"\u{0}\"}").contains("control character"));
    }

    #[test]
    fn depth_and_number_are_bounded_at_and_over_the_edge() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check_bounds(nested(64).as_bytes()), Ok(()));
        assert_eq!(check_bounds(nested(65).as_bytes()), Err(BodyError::TooDeep));
        let long = |nodes: usize| format!("[{}]", vec!["1"; nodes].join(","));
        assert_eq!(check_bounds(long(9_999).as_bytes()), Ok(()));
        assert_eq!(check_bounds(long(10_000).as_bytes()), Err(BodyError::TooMany));
        assert_eq!(check_bounds(br#""[[[\"[[[""#), Ok(()), "brackets in strings do not count");
    }

    #[test]
    fn a_text_may_be_as_long_as_the_limit_and_no_longer() {
        let body = |length| format!(r#"{{"text": "{}"}}"#, "x".repeat(length));
        assert!(submit(&body(limits::MESSAGE_BYTES_MAX)).is_ok());
        assert!(matches!(
            submit(&body(limits::MESSAGE_BYTES_MAX + 1)),
            Err(BodyError::TooLong { .. })
        ));
    }

    #[test]
    fn a_chat_hands_on_its_newest_user_message_and_says_what_it_left_out() {
        let chat = parse_chat(
            br#"{"model": "python", "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "1"},
                {"role": "user", "content": [{"type": "text", "text": "two"}]}]}"#,
        )
        .unwrap();
        assert_eq!(chat.text, "two");
        assert_eq!(chat.left_out, ["messages[0] (system)", "messages[1] (user)"]);
    }

    #[test]
    fn what_cannot_be_done_is_said_and_not_dropped() {
        let refused = |rest: &str| {
            let body = format!(
                r#"{{"model": "m", "messages": [{{"role": "user", "content": "x"}}], {rest}}}"#
            );
            parse_chat(body.as_bytes()).unwrap_err().to_string()
        };
        assert!(refused(r#""n": 2"#).contains("`n`"));
        assert!(refused(r#""tools": [{}]"#).contains("`tools`"));
        let image = br#"{"model": "m", "messages": [{"role": "user", "content":
            [{"type": "image_url", "image_url": {"url": "x"}}]}]}"#;
        assert!(parse_chat(image).unwrap_err().to_string().contains("messages[0].content[0]"));
        assert_eq!(
            parse_chat(br#"{"model": "m", "messages": []}"#),
            Err(BodyError::Empty("messages"))
        );
    }
}

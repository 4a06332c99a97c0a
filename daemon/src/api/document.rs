//! `GET /openapi.json`: made from the same table as the router.
//!
//! Owner: `routes` in `api` names an operation list for each path. Invariant, tested: every path of
//! the router is in the document, with every method that it takes. Absent: schemas of errors beyond
//! their one shape.

use axum::Json;
use serde_json::{Map, Value, json};

use crate::api::body::ATTACHMENTS_MAX;

/// One method of one path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) method: &'static str,
    pub(crate) summary: &'static str,
    /// Query parameters and headers: name, where, what it says.
    pub(crate) parameters: &'static [(&'static str, &'static str, &'static str)],
    /// The name of the body's schema, or none.
    pub(crate) body: Option<&'static str>,
    pub(crate) answers: &'static [(u16, &'static str)],
    pub(crate) needs_key: bool,
}

pub(crate) const PLAIN: Operation = Operation {
    method: "get",
    summary: "",
    parameters: &[],
    body: None,
    answers: &[(200, "done")],
    needs_key: true,
};

const REQUEST: Operation = Operation {
    method: "post",
    answers: &[
        (200, "accepted, or ignored with the reason in `because`"),
        (409, "denied, with the reason as the error's code"),
    ],
    ..PLAIN
};

const PAGED: &[(&str, &str, &str)] = &[
    ("before", "query", "the `next` of the page before"),
    ("limit", "query", "items a page, 1 to 500, else 50"),
];

const QUEUE_PARAMETERS: &[(&str, &str, &str)] = &[
    ("session", "query", "only this session, AGENT/KEY"),
    ("before", "query", "the `next` of the page before"),
    ("limit", "query", "items a page, 1 to 500, else 50"),
];

pub(crate) mod operations {
    //! What the document says of each path.

    use super::{Operation, PAGED, PLAIN, QUEUE_PARAMETERS, REQUEST};

    pub(crate) const SUBMIT: &[Operation] = &[Operation {
        method: "post",
        summary: "Hand in a message. It is on disk before the answer.",
        parameters: &[
            ("Idempotency-Key", "header", "the same key gives the same message for 25 hours"),
            ("Accept", "header", "text/event-stream for status, delta, then done or error"),
        ],
        body: Some("SubmitBody"),
        answers: &[
            (202, "accepted: message_id, state, position"),
            (200, "an event stream, if it was asked for"),
            (409, "the idempotency key was used for another message"),
            (413, "longer than 1 MiB"),
            (415, "not JSON"),
            (422, "something that this version does not carry"),
            (429, "too fast, or the session's queue is full; see Retry-After"),
            (503, "no room on the disk, or shutting down; see Retry-After"),
        ],
        needs_key: true,
    }];
    pub(crate) const MESSAGE: &[Operation] = &[
        Operation {
            summary: "A message: state, attempts, reply, exit code, cause.",
            parameters: &[
                ("wait", "query", "wait for its end, for example 30s, at most 2m"),
                ("Accept", "header", "text/event-stream to follow it"),
                ("Last-Event-ID", "header", "resume after this event, ATTEMPT.OFFSET"),
            ],
            answers: &[
                (200, "see the schema Message; or its event stream, whose `done` is the same"),
                (404, "no such message"),
            ],
            ..PLAIN
        },
        Operation { method: "delete", summary: "Drop a message that waits.", ..REQUEST },
    ];
    pub(crate) const WHY: &[Operation] = &[Operation {
        summary: "What is the case, because of what, and what to do.",
        parameters: &[("start", "query", "tell of the end of this start, not of the newest")],
        answers: &[(200, "see the schema Why"), (404, "no such session")],
        ..PLAIN
    }];
    pub(crate) const WHY_MESSAGE: &[Operation] = &[Operation {
        summary: "Where a message stands, because of what, and what to do.",
        answers: &[(200, "see the schema Why"), (404, "no such message")],
        ..PLAIN
    }];
    pub(crate) const SESSIONS: &[Operation] = &[Operation {
        summary: "Sessions, newest first.",
        parameters: &[
            ("agent", "query", "only sessions of this agent"),
            ("phase", "query", "asleep, starting, awake, draining, stopping, backoff, tripped"),
            ("before", "query", "the `next` of the page before"),
            ("limit", "query", "items a page, 1 to 500, else 50"),
        ],
        ..PLAIN
    }];
    pub(crate) const SESSION: &[Operation] = &[Operation {
        summary: "One session.",
        answers: &[(200, "the session"), (404, "no such session")],
        ..PLAIN
    }];
    pub(crate) const JOURNAL: &[Operation] = &[Operation {
        summary: "The session's decisions, newest first.",
        parameters: PAGED,
        ..PLAIN
    }];
    pub(crate) const LOGS: &[Operation] = &[Operation {
        summary: "The agent's log, oldest first, as text.",
        parameters: &[
            ("lines", "query", "at most so many of the newest, else 200"),
            ("follow", "query", "true to go on with what is added"),
        ],
        ..PLAIN
    }];
    pub(crate) const WAKE: &[Operation] =
        &[Operation { summary: "Start the session's agent now.", ..REQUEST }];
    pub(crate) const STOP: &[Operation] =
        &[Operation { summary: "Stop the agent once its turn is finished.", ..REQUEST }];
    pub(crate) const RESTART: &[Operation] = &[Operation {
        summary: "Stop the agent once its turn is finished, and start it.",
        ..REQUEST
    }];
    pub(crate) const FILES: &[Operation] = &[Operation {
        summary: "The session's files: its newest checkpoint, with what was put since.",
        answers: &[(200, "the files, by path"), (404, "no such session")],
        ..PLAIN
    }];
    pub(crate) const FILE: &[Operation] = &[
        Operation {
            summary: "A file's bytes.",
            answers: &[(200, "the bytes; ETag is their SHA-256"), (404, "no such file")],
            ..PLAIN
        },
        Operation {
            method: "put",
            summary: "Put a file into the session's workspace. It is there for the next turn.",
            parameters: &[
                ("sha256", "query", "what the bytes must have; else they are refused"),
                ("executable", "query", "true for a program"),
            ],
            answers: &[
                (200, "on disk: path, bytes, sha256, number"),
                (400, "no path of a workspace, or the file broke off"),
                (413, "longer than 10 GiB"),
                (422, "another hash, or it does not fit beside what is there"),
                (503, "no room on the disk; see Retry-After"),
            ],
            ..PLAIN
        },
        Operation {
            method: "delete",
            summary: "Take a file out of the session's workspace, before the next turn.",
            answers: &[(200, "on disk: path, number"), (404, "no such file")],
            ..PLAIN
        },
    ];
    pub(crate) const CHECKPOINTS: &[Operation] = &[Operation {
        summary: "The session's checkpoints, newest first.",
        answers: &[(200, "the checkpoints"), (404, "no such session")],
        ..PLAIN
    }];
    pub(crate) const RESTORE: &[Operation] = &[Operation {
        summary: "Begin the next life with that checkpoint; stops the one that runs.",
        body: Some("RestoreBody"),
        answers: &[(200, "accepted"), (404, "no such checkpoint")],
        ..REQUEST
    }];
    pub(crate) const QUEUE: &[Operation] = &[Operation {
        summary: "Messages that wait or are with an agent, newest first.",
        parameters: QUEUE_PARAMETERS,
        ..PLAIN
    }];
    pub(crate) const DEAD_LETTERS: &[Operation] = &[Operation {
        summary: "Messages that were given up, newest first.",
        parameters: QUEUE_PARAMETERS,
        ..PLAIN
    }];
    pub(crate) const DEAD_LETTER: &[Operation] = &[Operation {
        summary: "One dead letter with its whole text, and the last life that had it in work.",
        answers: &[(200, "the dead letter"), (404, "no such dead letter")],
        ..PLAIN
    }];
    pub(crate) const REDRIVE: &[Operation] = &[Operation {
        method: "post",
        summary: "Try a dead letter anew, as a new message. A repeat gives the same one.",
        answers: &[(202, "the new message"), (404, "no such dead letter")],
        ..PLAIN
    }];
    pub(crate) const DROP_DEAD: &[Operation] =
        &[Operation { summary: "Take a dead letter off the list.", ..REQUEST }];
    pub(crate) const AGENTS: &[Operation] =
        &[Operation { summary: "The agents, their revisions, and what they lack here.", ..PLAIN }];
    pub(crate) const ROLLOUT: &[Operation] = &[Operation {
        method: "post",
        summary: "Steer how a new revision of an agent comes into use: pause, resume, abort (all \
                  go back to what was good before) or retry (a bad one is tried again). \
                  Operators only.",
        answers: &[(200, "accepted, or ignored because it is so already"), (404, "no such agent")],
        ..PLAIN
    }];
    pub(crate) const KEYS: &[Operation] = &[
        Operation { summary: "All API keys, without their tokens. Operators only.", ..PLAIN },
        Operation {
            method: "post",
            summary: "Make an API key. Its token is shown this once. Operators only.",
            body: Some("CreateKey"),
            answers: &[(201, "the key with its token")],
            ..PLAIN
        },
    ];
    pub(crate) const KEY: &[Operation] = &[Operation {
        method: "delete",
        summary: "Revoke an API key. Operators only.",
        answers: &[(204, "revoked"), (404, "no such valid key")],
        ..PLAIN
    }];
    pub(crate) const CHAT: &[Operation] = &[Operation {
        method: "post",
        summary: "OpenAI-compatible: `model` is the agent, `user` the session.",
        parameters: &[("Dormouse-Session", "header", "the session's key, instead of `user`")],
        body: Some("Chat"),
        answers: &[
            (200, "the completion, or its chunks with `stream`"),
            (502, "the message was given up; the code is the cause"),
        ],
        needs_key: true,
    }];
    pub(crate) const MODELS: &[Operation] =
        &[Operation { summary: "OpenAI-compatible: the agents as models.", ..PLAIN }];
    pub(crate) const HEALTHZ: &[Operation] =
        &[Operation { summary: "The process answers.", needs_key: false, ..PLAIN }];
    pub(crate) const READYZ: &[Operation] = &[Operation {
        summary: "Messages are accepted; else the reasons why not.",
        answers: &[(200, "ready"), (503, "not ready")],
        needs_key: false,
        ..PLAIN
    }];
    pub(crate) const METRICS: &[Operation] =
        &[Operation { summary: "Counters for Prometheus. Operators only.", ..PLAIN }];
    pub(crate) const DOCUMENT: &[Operation] =
        &[Operation { summary: "This document.", needs_key: false, ..PLAIN }];
    pub(crate) const HELLO: &[Operation] =
        &[Operation { summary: "Says what runs here.", needs_key: false, ..PLAIN }];
}

pub(crate) async fn show() -> Json<Value> {
    Json(document())
}

fn document() -> Value {
    let paths: Map<String, Value> = super::routes()
        .into_iter()
        .map(|route| (route.path.replace("{*", "{"), path_item(route.path, route.operations)))
        .collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Dormouse",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Every path but the open ones needs `Authorization: Bearer KEY`. \
                Errors are {\"error\": {\"code\", \"message\", \"hint\"}}; docs/errors.md lists \
                their codes.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(),
        },
    })
}

fn path_item(path: &str, operations: &[Operation]) -> Value {
    let item: Map<String, Value> = operations
        .iter()
        .map(|operation| (operation.method.to_owned(), operation_object(path, operation)))
        .collect();
    Value::Object(item)
}

fn operation_object(path: &str, operation: &Operation) -> Value {
    let in_path = path.split('/').filter_map(|part| {
        let name = part.strip_prefix('{')?.strip_suffix('}')?;
        Some(name.trim_start_matches('*'))
    });
    let text = json!({ "type": "string" });
    let mut parameters: Vec<Value> = in_path
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": text }))
        .collect();
    parameters.extend(operation.parameters.iter().map(|(name, place, says)| {
        json!({ "name": name, "in": place, "required": false, "description": says, "schema": text })
    }));
    let mut answers: Map<String, Value> = operation
        .answers
        .iter()
        .map(|(status, says)| (status.to_string(), json!({ "description": says })))
        .collect();
    let error = json!({ "schema": { "$ref": "#/components/schemas/Error" } });
    answers.insert(
        "default".to_owned(),
        json!({ "description": "an error", "content": { "application/json": error } }),
    );
    let mut object = json!({
        "summary": operation.summary,
        "parameters": parameters,
        "responses": answers,
    });
    if let Some(body) = operation.body {
        let schema = json!({ "$ref": format!("#/components/schemas/{body}") });
        object["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if operation.needs_key {
        object["security"] = json!([{ "key": [] }]);
    }
    object
}

fn schemas() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": { "error": {
                "type": "object",
                "required": ["code", "message", "hint"],
                "properties": { "code": text, "message": text, "hint": text, "message_id": text },
            } },
        },
        "Message": message_schema(),
        "Why": why_schema(),
        "SubmitBody": {
            "type": "object",
            "required": ["text"],
            "additionalProperties": false,
            "properties": {
                "text": { "type": "string", "minLength": 1, "maxLength": 1_048_576 },
                "attachments": {
                    "type": "array",
                    "maxItems": ATTACHMENTS_MAX,
                    "items": { "$ref": "#/components/schemas/AttachmentBody" },
                },
            },
        },
        "AttachmentBody": {
            "type": "object",
            "required": ["path"],
            "additionalProperties": false,
            "description": "A small file of the session's workspace, there at the message's turn. \
                            It has one of `text` and `base64`; larger files are put first.",
            "properties": {
                "path": { "type": "string" },
                "text": text,
                "base64": { "type": "string", "contentEncoding": "base64" },
                "executable": { "type": "boolean" },
            },
        },
        "RestoreBody": {
            "type": "object",
            "required": ["checkpoint"],
            "additionalProperties": false,
            "properties": { "checkpoint": { "type": "integer", "minimum": 1 } },
        },
        "ConfigText": super::config::text_schema(),
        "CreateKey": {
            "type": "object",
            "required": ["name", "subject"],
            "additionalProperties": false,
            "properties": {
                "name": { "type": "string", "minLength": 1, "maxLength": 100 },
                "subject": { "type": "string", "pattern": "^[A-Za-z0-9_.:@-]{1,128}$" },
                "scopes": { "type": "array", "items": { "enum": ["operator"] } },
            },
        },
        "Chat": {
            "type": "object",
            "required": ["model", "messages"],
            "properties": {
                "model": text,
                "messages": { "type": "array", "items": { "type": "object" } },
                "user": text,
                "stream": { "type": "boolean" },
            },
        },
    })
}

fn message_schema() -> Value {
    let (text, integer) = (json!({ "type": "string" }), json!({ "type": "integer" }));
    json!({
        "type": "object",
        "required": ["message_id", "session", "state", "attempts", "accepted_at_ms"],
        "properties": {
            "message_id": text,
            "session": text,
            "state": { "enum": ["pending", "leased", "answered", "dead", "cancelled"] },
            "attempts": integer,
            "accepted_at_ms": integer,
            "ended_at_ms": integer,
            "position": {
                "type": "integer",
                "description": "how many messages of the session are before it, while it waits",
            },
            "not_before_ms": {
                "type": "integer",
                "description": "not handed to an agent again before this",
            },
            "reply": {
                "type": "string",
                "description": "of long output its beginning, a line `[output truncated: …]` that \
                    names the file with the whole, and its end",
            },
            "exit_code": {
                "type": "integer",
                "description": "of the program that its turn executed, as a shell shows it; \
                    negative: the signal that ended it",
            },
            "took_ms": {
                "type": "integer",
                "description": "how long the turn took that ended it",
            },
            "cause": text,
            "cause_text": { "type": "string", "description": "the cause in plain words" },
            "detail": text,
            "redrive_of": text,
            "redriven_as": text,
        },
    })
}

fn why_schema() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "type": "object",
        "required": ["session", "verdict", "next_steps", "awake_because", "exits", "timeline"],
        "properties": {
            "session": { "type": "object" },
            "message": { "type": "object" },
            "verdict": text,
            "next_steps": { "type": "array", "items": text },
            "remedy": {
                "type": "object",
                "description": "a change of the config, its effect, and what checks it",
            },
            "awake_because": { "type": "array", "items": text },
            "last_exit": {
                "type": "object",
                "description": "the newest end, with evidence and diagnosis; of a message, \
                    the end of the newest life that had it in work",
            },
            "in_flight": {
                "type": "object",
                "description": "the message that this life had in work, as it stands now",
            },
            "exits": {
                "type": "array",
                "maxItems": 10,
                "items": { "type": "object" },
                "description": "the newest ends in short, newest first",
            },
            "loop": {
                "type": "object",
                "description": "what the failed lives have in common, if there are two",
            },
            "memory": {
                "type": "object",
                "description": "the limit of the next start, and what raised it",
            },
            "timeline": { "type": "array", "items": { "type": "object" } },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_every_path_of_the_contract_with_a_summary() {
        let document = document();
        for path in [
            "/v1/sessions/{agent}/{key}/messages",
            "/v1/messages/{id}",
            "/v1/chat/completions",
            "/healthz",
        ] {
            assert!(document["paths"][path].is_object(), "{path} is missing");
        }
        for route in crate::api::routes() {
            assert!(!route.operations.is_empty(), "{} has no operation", route.path);
            for operation in route.operations {
                assert!(!operation.summary.is_empty(), "{} {}", operation.method, route.path);
            }
        }
    }

    #[test]
    fn the_schema_of_a_message_has_each_of_its_fields() {
        let full = crate::api::messages::shown(crate::api::messages::tests::full_view());
        let written = json!(full);
        let fields = |value: &Value| -> Vec<String> {
            let mut fields: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            fields.sort_unstable();
            fields
        };
        assert_eq!(fields(&message_schema()["properties"]), fields(&written));
    }

    #[test]
    fn only_what_tells_nothing_is_open() {
        let open: Vec<&str> = crate::api::routes()
            .iter()
            .filter(|route| route.operations.iter().any(|operation| !operation.needs_key))
            .map(|route| route.path)
            .collect();
        assert_eq!(open, ["/healthz", "/readyz", "/openapi.json", "/"]);
    }
}

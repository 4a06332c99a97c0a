//! Fills `{port}`, `{session}`, `{key}`, `{workspace}`, `{memory_mib}` and `{heap_mib}` into what a
//! launch says, and `{secret:NAME}` where nobody else reads it.
//!
//! Owner: `adapter`, once per launch. Invariants: a filled-in value is never looked at again, so
//! nothing in it can name another field; a field that is not known here stays as it is written.
//! Absent: where the values come from, other than the port.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use dormouse_core::id::SessionId;

use crate::frames::{Adapter, Launch, RenderedFile, Secret};

const PORT: &str = "{port}";
/// The fields that need a memory limit.
const OF_MEMORY: [&str; 2] = ["{memory_mib}", "{heap_mib}"];

#[derive(Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) port: Option<u16>,
    pub(crate) session: &'a SessionId,
    pub(crate) workspace: &'a Path,
    pub(crate) memory_limit_bytes: Option<u64>,
    /// How much of that limit a runtime's own heap may take.
    pub(crate) heap_percent: u32,
    pub(crate) secrets: &'a BTreeMap<String, Secret>,
}

/// Where a template stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// Arguments and the like, which others can read.
    Open,
    Private,
    /// Within quotes of JSON, where a value may not end them.
    PrivateJson,
}

impl Fields<'_> {
    fn value(&self, name: &str) -> Option<String> {
        match name {
            "port" => self.port.map(|port| port.to_string()),
            "session" => Some(self.session.to_string()),
            "key" => Some(self.session.key().to_string()),
            "memory_mib" => self.memory_limit_bytes.map(|bytes| (bytes >> 20).to_string()),
            "heap_mib" => self.heap_mib().map(|mib| mib.to_string()),
            "workspace" => Some(self.workspace.to_string_lossy().into_owned()),
            _ => None,
        }
    }

    /// At least one: a runtime takes 0 for "no limit".
    fn heap_mib(&self) -> Option<u64> {
        let share = u128::from(self.memory_limit_bytes?) * u128::from(self.heap_percent) / 100;
        Some(u64::try_from(share >> 20).unwrap_or(u64::MAX).max(1))
    }

    /// As it stands in the text.
    fn value_within(&self, name: &str, within: Within) -> Option<String> {
        let secret = name.strip_prefix("secret:").filter(|_| within != Within::Open);
        let value = match secret {
            Some(secret) => self.secrets.get(secret).map(|value| value.0.clone()),
            None => self.value(name),
        }?;
        Some(match within {
            Within::Open | Within::Private => value,
            Within::PrivateJson => {
                let quoted = serde_json::Value::from(value).to_string();
                quoted[1..quoted.len() - 1].to_owned()
            }
        })
    }

    fn fill(&self, template: &str) -> String {
        self.fill_within(template, Within::Open)
    }

    fn fill_within(&self, template: &str, within: Within) -> String {
        let mut filled = String::with_capacity(template.len());
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            let (before, from_open) = rest.split_at(open);
            filled.push_str(before);
            let name = from_open[1..].split_once('}').map(|(name, _)| name);
            match name.and_then(|name| Some((name, self.value_within(name, within)?))) {
                Some((name, value)) => {
                    filled.push_str(&value);
                    rest = &from_open[name.len() + 2..];
                }
                None => {
                    filled.push('{');
                    rest = &from_open[1..];
                }
            }
        }
        filled.push_str(rest);
        filled
    }

    fn fill_secret(&self, template: &Secret) -> Secret {
        Secret(self.fill(&template.0))
    }

    fn fill_private(&self, template: &Secret) -> Secret {
        Secret(self.fill_within(&template.0, Within::Private))
    }

    fn fill_file(&self, file: RenderedFile) -> RenderedFile {
        let RenderedFile { path, text, mode } = file;
        let kinds = [".json", ".jsonc", ".json5"];
        let within = match kinds.iter().any(|kind| path.as_str().ends_with(kind)) {
            true => Within::PrivateJson,
            false => Within::Private,
        };
        RenderedFile { text: Secret(self.fill_within(&text.0, within)), path, mode }
    }

    /// The launch with every template of it filled in.
    pub(crate) fn fill_launch(&self, launch: Launch) -> Launch {
        Launch {
            command: launch.command.iter().map(|part| self.fill(part)).collect(),
            env: launch.env.into_iter().map(|(k, v)| (k, self.fill_secret(&v))).collect(),
            adapter: match launch.adapter {
                Adapter::Openai { url, ready, model, headers } => Adapter::Openai {
                    url: self.fill(&url),
                    ready: ready.map(|ready| self.fill(&ready)),
                    model: model.map(|model| self.fill(&model)),
                    headers: headers
                        .into_iter()
                        .map(|(name, value)| (name, self.fill_private(&value)))
                        .collect(),
                },
                plain @ (Adapter::Exec | Adapter::Jsonl { .. }) => plain,
            },
            files: launch.files.into_iter().map(|file| self.fill_file(file)).collect(),
            ..launch
        }
    }
}

/// Whether a port has to be found for this launch.
pub(crate) fn wants_port(launch: &Launch) -> bool {
    mentions(launch, PORT)
}

/// A field of this launch that needs a memory limit.
pub(crate) fn memory_field(launch: &Launch) -> Option<&'static str> {
    OF_MEMORY.into_iter().find(|field| mentions(launch, field))
}

fn mentions(launch: &Launch, field: &str) -> bool {
    let in_adapter = match &launch.adapter {
        Adapter::Exec | Adapter::Jsonl { .. } => false,
        Adapter::Openai { url, ready, model, headers } => {
            url.contains(field)
                || ready.as_ref().is_some_and(|ready| ready.contains(field))
                || model.as_ref().is_some_and(|model| model.contains(field))
                || headers.values().any(|value| value.0.contains(field))
        }
    };
    in_adapter
        || launch.command.iter().any(|part| part.contains(field))
        || launch.env.values().any(|value| value.0.contains(field))
        || launch.files.iter().any(|file| file.text.0.contains(field))
}

/// A loopback port that nobody listens on. Nothing keeps it free until the agent takes it; the
/// kernel hands such ports out at random, so that two starts seldom meet.
pub(crate) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(template: &str) -> String {
        let session: SessionId = "python/tom".parse().unwrap();
        fields(&session, Some(100 << 20)).fill(template)
    }

    fn no_secrets() -> &'static BTreeMap<String, Secret> {
        static NONE: BTreeMap<String, Secret> = BTreeMap::new();
        &NONE
    }

    fn fields(session: &SessionId, memory_limit_bytes: Option<u64>) -> Fields<'_> {
        Fields {
            port: Some(4711),
            session,
            workspace: Path::new("/w/{port}"),
            memory_limit_bytes,
            heap_percent: 75,
            secrets: no_secrets(),
        }
    }

    #[test]
    fn known_fields_are_filled_and_others_stay() {
        assert_eq!(fill("--port={port} {session} {key}!"), "--port=4711 python/tom tom!");
        assert_eq!(fill("{}{user}{{port}{ port }{port"), "{}{user}{4711{ port }{port");
        assert_eq!(fill("{\"a\": {\"b\": 1}}"), "{\"a\": {\"b\": 1}}");
    }

    #[test]
    fn a_filled_in_value_is_not_filled_again() {
        assert_eq!(fill("{workspace}/x"), "/w/{port}/x");
    }

    #[test]
    fn secrets_are_for_files_and_headers_and_end_no_quotes() {
        let session: SessionId = "python/tom".parse().unwrap();
        let secret = "s\"}{key}".to_owned();
        let secrets = BTreeMap::from([("KEY".to_owned(), Secret(secret.clone()))]);
        let fields = Fields { secrets: &secrets, ..fields(&session, None) };
        let text = "{\"k\": \"{secret:KEY}\", \"of\": \"{key}\", \"x\": \"{secret:NO}\"}";
        let file = |path: &str| {
            let (path, text) = (path.parse().unwrap(), Secret(text.into()));
            fields.fill_file(RenderedFile { path, text, mode: 0o600 }).text.0
        };
        let json: serde_json::Value = serde_json::from_str(&file("c/openclaw.json")).unwrap();
        assert_eq!((json["k"].as_str(), json["of"].as_str()), (Some(secret.as_str()), Some("tom")));
        assert_eq!(json["x"], "{secret:NO}");
        assert!(file("a.conf").contains(&format!(": \"{secret}\"")));
        assert_eq!(fields.fill("{secret:KEY}"), "{secret:KEY}", "never in an argument");
        let launch = Launch { secrets: secrets.clone(), ..launch("{secret:KEY}", "http://h", "") };
        assert!(!format!("{launch:?}").contains("s\""));
    }

    #[test]
    fn memory_is_that_of_the_limit_and_the_heap_its_share() {
        assert_eq!(fill("{memory_mib} {heap_mib}"), "100 75");
        let session: SessionId = "python/tom".parse().unwrap();
        let heap = |bytes| fields(&session, Some(bytes)).fill("{heap_mib}");
        assert_eq!(heap(1 << 20), "1");
        assert_eq!(heap((1 << 30) - 1), "767");
        assert_eq!(heap(u64::MAX), ((u64::MAX / 4 * 3) >> 20).to_string());
        assert_eq!(fields(&session, None).fill("{heap_mib}"), "{heap_mib}");
    }

    #[test]
    fn a_field_of_memory_is_found_wherever_it_stands() {
        assert_eq!(memory_field(&launch("run", "http://127.0.0.1:1/v1", "")), None);
        let said = launch("--heap={heap_mib}", "http://127.0.0.1:1/v1", "");
        assert_eq!(memory_field(&said), Some("{heap_mib}"));
        let said = launch("run", "http://127.0.0.1:1/v1?{memory_mib}", "");
        assert_eq!(memory_field(&said), Some("{memory_mib}"));
    }

    fn launch(command: &str, url: &str, header: &str) -> Launch {
        Launch {
            command: vec!["agent".into(), command.into()],
            env: BTreeMap::from([("HOME".into(), Secret("{workspace}".into()))]),
            workspace: "/w".into(),
            adapter: Adapter::Openai {
                url: url.into(),
                ready: Some("/healthz?k={key}".into()),
                model: None,
                headers: BTreeMap::from([("authorization".into(), Secret(header.into()))]),
            },
            orphan_limit_ms: 1,
            heap_percent: 75,
            files: Vec::new(),
            secrets: BTreeMap::new(),
        }
    }

    #[test]
    fn a_port_is_wanted_only_where_one_is_named() {
        assert!(!wants_port(&launch("run", "http://127.0.0.1:1/v1", "Bearer x")));
        assert!(wants_port(&launch("--port={port}", "http://127.0.0.1:1/v1", "")));
        assert!(wants_port(&launch("run", "http://127.0.0.1:{port}/v1", "")));
        assert!(wants_port(&launch("run", "http://127.0.0.1:1/v1", "{port}")));
    }

    #[test]
    fn every_text_of_a_launch_is_filled() {
        let session: SessionId = "openclaw/main".parse().unwrap();
        let fields = Fields { port: Some(9), workspace: Path::new("/w"), ..fields(&session, None) };
        let filled = fields.fill_launch(launch("{port}", "http://127.0.0.1:{port}/v1", "k {key}"));
        assert_eq!(filled.command, ["agent", "9"]);
        assert_eq!(filled.env["HOME"].0, "/w");
        let Adapter::Openai { url, ready, headers, .. } = filled.adapter else { unreachable!() };
        assert_eq!(url, "http://127.0.0.1:9/v1");
        assert_eq!(ready.as_deref(), Some("/healthz?k=main"));
        assert_eq!(headers["authorization"].0, "k main");
    }

    proptest! {
        #[test]
        fn texts_without_a_known_field_come_back_unchanged(text in "[{}a-z:/ ]{0,30}") {
            let known =
                ["{port}", "{session}", "{key}", "{workspace}", "{memory_mib}", "{heap_mib}"];
            prop_assume!(!known.iter().any(|field| text.contains(field)));
            prop_assert_eq!(fill(&text), text);
        }
    }
}

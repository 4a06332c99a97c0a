//! Fills `{port}`, `{session}`, `{key}` and `{workspace}` into what a launch says.
//!
//! Owner: `adapter`, once per launch. Invariants: a filled-in value is never looked at again, so
//! nothing in it can name another field; a field that is not known here stays as it is written.
//! Absent: where the values come from, other than the port.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use dormouse_core::id::SessionId;

use crate::frames::{Adapter, Launch, Secret};

const PORT: &str = "{port}";

#[derive(Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) port: Option<u16>,
    pub(crate) session: &'a SessionId,
    pub(crate) workspace: &'a Path,
}

impl Fields<'_> {
    fn value(&self, name: &str) -> Option<String> {
        match name {
            "port" => self.port.map(|port| port.to_string()),
            "session" => Some(self.session.to_string()),
            "key" => Some(self.session.key().to_string()),
            "workspace" => Some(self.workspace.to_string_lossy().into_owned()),
            _ => None,
        }
    }

    fn fill(&self, template: &str) -> String {
        let mut filled = String::with_capacity(template.len());
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            let (before, from_open) = rest.split_at(open);
            filled.push_str(before);
            let name = from_open[1..].split_once('}').map(|(name, _)| name);
            match name.and_then(|name| Some((name, self.value(name)?))) {
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
                        .map(|(name, value)| (name, self.fill_secret(&value)))
                        .collect(),
                },
                plain @ (Adapter::Exec | Adapter::Jsonl { .. }) => plain,
            },
            ..launch
        }
    }
}

/// Whether a port has to be found for this launch.
pub(crate) fn wants_port(launch: &Launch) -> bool {
    let in_adapter = match &launch.adapter {
        Adapter::Exec | Adapter::Jsonl { .. } => false,
        Adapter::Openai { url, ready, model, headers } => {
            url.contains(PORT)
                || ready.as_ref().is_some_and(|ready| ready.contains(PORT))
                || model.as_ref().is_some_and(|model| model.contains(PORT))
                || headers.values().any(|value| value.0.contains(PORT))
        }
    };
    in_adapter
        || launch.command.iter().any(|part| part.contains(PORT))
        || launch.env.values().any(|value| value.0.contains(PORT))
}

/// A loopback port that nobody listens on. Nothing keeps it free until the agent takes it; the
/// kernel hands such ports out at random, so that two starts seldom meet.
pub(crate) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn fill(template: &str) -> String {
        let session: SessionId = "python/tom".parse().unwrap();
        Fields { port: Some(4711), session: &session, workspace: Path::new("/w/{port}") }
            .fill(template)
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
        let fields = Fields { port: Some(9), session: &session, workspace: Path::new("/w") };
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
            let known = ["{port}", "{session}", "{key}", "{workspace}"];
            prop_assume!(!known.iter().any(|field| text.contains(field)));
            prop_assert_eq!(fill(&text), text);
        }
    }
}

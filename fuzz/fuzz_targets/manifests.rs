//! Paths, links and lists of files: what is taken stays below its root, and says the same after a
//! round trip.

#![no_main]

use dormouse_core::manifest::{FilePath, Manifest};
use libfuzzer_sys::fuzz_target;

/// Where a link leads, name by name; `None`: out of the root.
fn resolved<'a>(folder: impl Iterator<Item = &'a str>, target: &'a str) -> Option<Vec<&'a str>> {
    let mut at: Vec<&str> = folder.collect();
    if target.starts_with('/') {
        return None;
    }
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(at.pop()?),
            name => at.push(name),
        }
    }
    Some(at)
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(path) = FilePath::new(first) {
        assert_eq!(path.as_str(), first);
        assert!(!first.starts_with('/') && !first.contains('\0'));
        assert!(path.names().all(|name| !matches!(name, "" | "." | "..")));
        if path.link_stays_inside(rest) {
            let folder = path.folder().into_iter().flat_map(|folder| folder.split('/'));
            assert!(resolved(folder, rest).is_some(), "{path} -> {rest}");
        }
    }
    if let Ok(manifest) = Manifest::parse(text) {
        assert_eq!(manifest.canonical(), text);
        assert!(manifest.entries().is_sorted_by(|one, other| one.path < other.path));
    }
});

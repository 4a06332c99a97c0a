//! A path below a workspace, in the one spelling that it may have.
//!
//! Owner: every surface that takes a path makes one of these first. Invariants: relative, below the
//! root whatever is done with it, without control characters, and the same file on every file
//! system that keeps names at all. Absent: what lies at the path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(Box<str>);

/// Why a text is no path of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("a path is not empty")]
    Empty,
    #[error("a path is at most {} bytes long", limits::PATH_BYTES_MAX)]
    TooLong,
    #[error("a name in a path is at most {} bytes long", limits::NAME_BYTES_MAX)]
    NameTooLong,
    #[error("a path is relative to the workspace: it begins with no '/' and no drive")]
    Absolute,
    #[error("a path has no '..' in it")]
    Parent,
    #[error("a path has no empty name and no '.' in it")]
    NotNormal,
    #[error("a path has no backslash and no control character in it")]
    Character,
    #[error("no name ends in a dot or in a space")]
    TrailingDotOrSpace,
    #[error("names that begin with '{}' are for Dormouse itself", FilePath::RESERVED)]
    Reserved,
}

impl FilePath {
    /// Files that are being written have names that begin with this.
    pub const RESERVED: &'static str = ".dormouse-";

    pub fn new(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > limits::PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        let has_drive =
            text.as_bytes().get(1) == Some(&b':') && text.as_bytes()[0].is_ascii_alphabetic();
        if text.starts_with('/') || has_drive {
            return Err(PathError::Absolute);
        }
        if text.chars().any(|c| c == '\\' || c.is_control()) {
            return Err(PathError::Character);
        }
        text.split('/').try_for_each(check_name)?;
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The folder that it lies in; `None`: the workspace itself.
    pub fn folder(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|halves| halves.0)
    }

    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |halves| halves.1)
    }

    /// `name` below this path.
    pub fn join(&self, name: &str) -> Result<Self, PathError> {
        Self::new(&format!("{}/{name}", self.0))
    }

    /// Whether a symbolic link here with that target ends below the workspace, by its words alone.
    pub fn link_stays_inside(&self, target: &str) -> bool {
        if target.is_empty()
            || target.len() > limits::PATH_BYTES_MAX
            || target.starts_with('/')
            || target.chars().any(char::is_control)
        {
            return false;
        }
        // In the folder of the link, so many levels below the root.
        let mut depth = self.names().count() - 1;
        for name in target.split('/') {
            match name {
                "" | "." => {}
                ".." if depth == 0 => return false,
                ".." => depth -= 1,
                _other => depth += 1,
            }
        }
        true
    }
}

fn check_name(name: &str) -> Result<(), PathError> {
    match name {
        "" | "." => Err(PathError::NotNormal),
        ".." => Err(PathError::Parent),
        _ if name.len() > limits::NAME_BYTES_MAX => Err(PathError::NameTooLong),
        _ if name.ends_with(['.', ' ']) => Err(PathError::TrailingDotOrSpace),
        _ if name.starts_with(FilePath::RESERVED) => Err(PathError::Reserved),
        _ => Ok(()),
    }
}

/// One spelling for names that a file system may take for the same.
pub(super) fn folded(name: &str) -> String {
    name.chars().flat_map(char::to_lowercase).collect()
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for FilePath {
    type Err = PathError;
    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::new(text)
    }
}

impl TryFrom<String> for FilePath {
    type Error = PathError;
    fn try_from(text: String) -> Result<Self, PathError> {
        Self::new(&text)
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> String {
        path.0.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_paths_are_refused_with_their_reason() {
        let long_name = "n".repeat(256);
        let long_path = "n/".repeat(2_100);
        for (text, why) in [
            ("", PathError::Empty),
            ("/etc/passwd", PathError::Absolute),
            ("C:/x", PathError::Absolute),
            ("c:x", PathError::Absolute),
            ("..", PathError::Parent),
            ("a/../../b", PathError::Parent),
            ("a//b", PathError::NotNormal),
            ("a/", PathError::NotNormal),
            ("./a", PathError::NotNormal),
            ("a\\b", PathError::Character),
            ("a\0b", PathError::Character),
            ("a\nb", PathError::Character),
            ("a.", PathError::TrailingDotOrSpace),
            ("a /b", PathError::TrailingDotOrSpace),
            ("d/.dormouse-new", PathError::Reserved),
            (&long_name, PathError::NameTooLong),
            (&long_path, PathError::TooLong),
        ] {
            assert_eq!(FilePath::new(text), Err(why), "{text:?}");
        }
        for text in ["a", "data/2026 sales.csv", ".env", "a/..b", "ä/日本.txt", "1:x"] {
            assert_eq!(FilePath::new(text).map(String::from).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_link_stays_inside_only_if_no_step_of_it_leaves() {
        let stays = |path: &str, target| FilePath::new(path).unwrap().link_stays_inside(target);
        assert!(stays("a/b/link", "../c"));
        assert!(stays("a/link", "../a/../x"));
        assert!(stays("link", "."));
        for (path, target) in [
            ("link", ".."),
            ("a/link", "../../x"),
            ("a/link", "../../a/x"),
            ("link", "/etc"),
            ("link", ""),
        ] {
            assert!(!stays(path, target), "{path} -> {target}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_stays_below_the_root(text in r"[a.\\/: \x00-\x20]{0,12}") {
            if let Ok(path) = FilePath::new(&text) {
                let mut depth = 0;
                for name in path.names() {
                    prop_assert!(name != ".." && name != "." && !name.is_empty());
                    depth += 1;
                }
                prop_assert!(depth > 0);
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }
}

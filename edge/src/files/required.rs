//! Which of the files that an input must have are not there.
//!
//! ```text
//!  *      anything within one name       data-*.csv
//!  ?      one character of a name        part-?.bin
//!  **     any number of folders          **/*.csv
//! ```
//!
//! Owner: the daemon asks before a turn. Invariant: pure; a pattern is matched against the whole
//! path below the input's own, so that `*.csv` is a file at its top. Absent: character classes,
//! exclusions.

use dormouse_core::manifest::{FileEntry, FileKind};

/// The patterns that no file matches, in their order. `files` have paths below the input's own.
/// A folder is no file, and an empty file is one.
pub fn missing_required(patterns: &[String], files: &[FileEntry]) -> Vec<String> {
    let is_missing = |pattern: &&String| {
        !files.iter().any(|entry| {
            !matches!(entry.kind, FileKind::Folder) && matches_path(pattern, entry.path.as_str())
        })
    };
    patterns.iter().filter(is_missing).cloned().collect()
}

pub fn matches_path(pattern: &str, path: &str) -> bool {
    let pattern = pattern.trim_start_matches("./");
    let patterns: Vec<&str> = pattern.split('/').collect();
    let names: Vec<&str> = path.split('/').collect();
    matches_names(&patterns, &names)
}

/// One row of the table of (patterns left, names left) at a time: a `**` more costs no more than
/// another row, whatever the path is.
fn matches_names(patterns: &[&str], names: &[&str]) -> bool {
    // `reached[n]`: the patterns so far can have taken the first n names.
    let mut reached = vec![false; names.len() + 1];
    reached[0] = true;
    for pattern in patterns {
        let mut next = vec![false; names.len() + 1];
        if *pattern == "**" {
            let mut is_reached = false;
            for (now, then) in reached.iter().zip(&mut next) {
                is_reached |= *now;
                *then = is_reached;
            }
        } else {
            for (index, name) in names.iter().enumerate() {
                next[index + 1] = reached[index] && matches_name(pattern, name);
            }
        }
        reached = next;
    }
    reached[names.len()]
}

fn matches_name(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut seen) = (0, 0);
    // The last `*`, and up to where it has taken.
    let mut star: Option<(usize, usize)> = None;
    while seen < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == name[seen] => {
                at += 1;
                seen += 1;
            }
            Some(_) | None => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                seen = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use dormouse_core::manifest::{ContentId, FilePath, Sha256Hash};

    use super::*;

    fn file(path: &str) -> FileEntry {
        let content = ContentId::Sha256(Sha256Hash::of(b""));
        let kind = FileKind::File { bytes: 0, content, is_executable: false };
        FileEntry { path: FilePath::new(path).unwrap(), kind }
    }

    #[track_caller]
    fn check(pattern: &str, matching: &[&str], others: &[&str]) {
        for path in matching {
            assert!(matches_path(pattern, path), "{pattern} should match {path}");
        }
        for path in others {
            assert!(!matches_path(pattern, path), "{pattern} should not match {path}");
        }
    }

    #[test]
    fn a_star_stays_within_one_name_and_two_cross_folders() {
        check("*.csv", &["a.csv", ".csv", "a.b.csv"], &["a.csv.gz", "sub/a.csv", "csv", "acsv"]);
        check("**/*.csv", &["a.csv", "sub/a.csv", "a/b/c.csv"], &["a/b/c.txt", "a.csv/b"]);
        check("data/**", &["data/x", "data/a/b"], &["datax", "other/x"]);
        check("a/*/c", &["a/b/c"], &["a/c", "a/b/b/c"]);
        check("a/**/**/z", &["a/z", "a/b/z", "a/b/c/d/z"], &["a/zz", "b/a/z"]);
        check("part-?.bin", &["part-1.bin", "part-ä.bin"], &["part-.bin", "part-12.bin"]);
        check("./model.bin", &["model.bin"], &["x/model.bin"]);
        check("*a*b*", &["ab", "xaxbx", "aab", "aabb"], &["ba", "a", "b"]);
        check("", &[], &["a"]);
        check("a[1].csv", &["a[1].csv"], &["a1.csv"]);
    }

    #[test]
    fn a_pattern_with_many_stars_is_answered_at_once() {
        let pattern = "**/".repeat(60) + &"*a".repeat(60);
        let path = "a/".repeat(500) + &"a".repeat(59);
        assert!(!matches_path(&pattern, &path));
    }

    #[test]
    fn what_no_file_matches_is_told_in_the_order_of_the_patterns() {
        let folder = FileEntry { path: FilePath::new("z.csv").unwrap(), kind: FileKind::Folder };
        let files = [file("a.csv"), file("sub/b.json"), folder];
        let patterns = ["z.*", "*.csv", "*.json", "**/*.json", "model.bin"].map(String::from);
        assert_eq!(missing_required(&patterns, &files), ["z.*", "*.json", "model.bin"]);
        assert_eq!(missing_required(&patterns, &[]), patterns);
        assert_eq!(missing_required(&[], &[]), Vec::<String>::new());
    }
}

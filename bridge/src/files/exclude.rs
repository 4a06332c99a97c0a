//! What is never part of a checkpoint: a few simple patterns.
//!
//! Owner: `scan` asks for each name. Invariants: a pattern without a slash matches a name at any
//! depth, one with a slash (other than at its end) the path from the workspace's root; `*` is any
//! part of one name, `?` any one character of it; matching takes time in the product of the two
//! lengths at most. Absent: `**`, character classes, negation.

/// Patterns of one policy.
#[derive(Debug, Clone, Default)]
pub struct Excludes {
    names: Vec<Box<str>>,
    paths: Vec<Vec<Box<str>>>,
}

impl Excludes {
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut excludes = Self::default();
        for pattern in patterns {
            let is_anchored = pattern.trim_end_matches('/').contains('/');
            let trimmed = pattern.trim_matches('/');
            match is_anchored {
                _ if trimmed.is_empty() => {}
                true => excludes.paths.push(trimmed.split('/').map(Into::into).collect()),
                false => excludes.names.push(trimmed.into()),
            }
        }
        excludes
    }

    /// Whether this very entry is excluded; what lies below an excluded folder goes with it.
    pub fn matches(&self, path: &str) -> bool {
        let name = path.rsplit_once('/').map_or(path, |halves| halves.1);
        self.names.iter().any(|pattern| name_matches(pattern, name))
            || self.paths.iter().any(|pattern| path_matches(pattern, path))
    }
}

fn path_matches(pattern: &[Box<str>], path: &str) -> bool {
    let mut names = path.split('/');
    pattern.iter().all(|part| names.next().is_some_and(|name| name_matches(part, name)))
        && names.next().is_none()
}

/// After a mismatch only the newest `*` has to take one character more: what the ones before it
/// took is as good as any other choice.
fn name_matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.chars(), name.chars());
    let mut retry: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        let mut rest = pattern.clone();
        match rest.next() {
            Some('*') => {
                pattern = rest;
                retry = Some((pattern.clone(), name.clone()));
                continue;
            }
            Some(wanted) => {
                let mut left = name.clone();
                if left.next().is_some_and(|found| wanted == '?' || wanted == found) {
                    (pattern, name) = (rest, left);
                    continue;
                }
            }
            None if name.as_str().is_empty() => return true,
            None => {}
        }
        let Some((after_star, mut taken)) = retry.take() else { return false };
        if taken.next().is_none() {
            return false;
        }
        (pattern, name) = (after_star.clone(), taken.clone());
        retry = Some((after_star, taken));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=name.len()).any(|taken| naive(rest, &name[taken..])),
            (['?', rest @ ..], [_, left @ ..]) => naive(rest, left),
            ([wanted, rest @ ..], [found, left @ ..]) => wanted == found && naive(rest, left),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_name_matches_as_by_trying_everything(
            pattern in "[ab*?]{0,8}", name in "[abä]{0,10}",
        ) {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(
                name_matches(&pattern, &name),
                naive(&chars(&pattern), &chars(&name))
            );
        }
    }

    #[test]
    fn patterns_match_where_they_say() {
        let excludes =
            Excludes::new(["node_modules", "*.sock", "/build", "a/*/tmp", "cache/", "", "/"]);
        for path in
            ["node_modules", "x/y/node_modules", "run/a.sock", "build", "a/b/tmp", "x/cache"]
        {
            assert!(excludes.matches(path), "{path}");
        }
        for path in ["x/build", "a/tmp", "a/b/c/tmp", "a/b", "node_modules2", "sock", "a.sock.x"] {
            assert!(!excludes.matches(path), "{path}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let pattern = "a*".repeat(2_000);
        assert!(!name_matches(&format!("{pattern}b"), &"a".repeat(255)));
    }
}

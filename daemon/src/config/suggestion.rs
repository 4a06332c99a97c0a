//! What a wrong key was probably meant to be.
//!
//! Owner: the config's errors. Invariant: a guess is shown only if it is near. Absent: the keys,
//! which the parser lists.

/// The known key that is nearest to what was written, if it is near.
pub(super) fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, nearest) = known.iter().map(|known| (distance(unknown, known), *known)).min()?;
    (distance <= nearest.len().div_ceil(2)).then_some(nearest)
}

/// Levenshtein distance; keys are short.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

//! What a wrong key was probably meant to be.
//!
//! Owner: the config's errors. Invariant: a guess is shown only if it is near. Absent: the keys,
//! which the parser's own message lists.

/// Adds the nearest known key to "unknown field".
pub(super) fn with_suggestion(message: &str) -> String {
    let Some((_, after)) = message.split_once("unknown field `") else { return message.to_owned() };
    let Some((unknown, expected)) = after.split_once('`') else { return message.to_owned() };
    let nearest = expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|known| (distance(unknown, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().div_ceil(2));
    match nearest {
        Some((_, known)) => format!("{}\nDid you mean `{known}`?", message.trim_end()),
        None => message.to_owned(),
    }
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

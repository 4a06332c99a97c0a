//! The simulator's own tests: fixed seeds, determinism, and that the checker bites.

use crate::run::{Outcome, run_seed};
use crate::sabotage::Sabotage;
use crate::trace::Trace;

fn run(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    run_seed(seed, Trace::hashed(), sabotage).0
}

#[test]
fn fixed_seeds_end_well() {
    let mut answered = 0;
    for seed in 0..60 {
        let outcome = run(seed, None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        answered += outcome.figures.answered;
    }
    assert!(answered > 300, "only {answered} messages were answered");
}

#[test]
fn the_same_seed_leaves_the_same_trace_recorded_or_not() {
    for seed in 0..10 {
        let (recorded, trace) = run_seed(seed, Trace::recorded(), None);
        assert_eq!(run(seed, None).hash, recorded.hash, "seed {seed}");
        assert!(!trace.lines().is_empty());
    }
    assert_ne!(run(1, None).hash, run(2, None).hash);
}

/// The seeds that a sabotage has to be found in. Most take a handful; a race takes more.
const SEEDS_PER_SABOTAGE: u64 = 12_000;

#[test]
fn every_sabotage_is_found() {
    let mut unfound = Vec::new();
    for (sabotage, expected) in Sabotage::ALL {
        let mut violations = (0..SEEDS_PER_SABOTAGE)
            .filter_map(|seed| run(seed, Some(*sabotage)).violation)
            .map(|violation| violation.invariant);
        if !violations.any(|invariant| expected.contains(&invariant)) {
            unfound.push((sabotage, expected));
        }
    }
    assert!(unfound.is_empty(), "broken on purpose, and not found: {unfound:#?}");
}

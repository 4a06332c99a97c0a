//! Medians, quantiles and ratios of few samples, and how they are written.
//!
//! Owner: every benchmark. Invariant: a figure of several runs is always shown with its smallest
//! and largest. Absent: means and standard deviations; times have long tails.

use std::fmt;

/// Median, smallest and largest of some runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of at least one sample.
    pub(super) fn of(samples: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        assert!(!sorted.is_empty(), "a benchmark takes at least one sample");
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _even => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Spread { median, min: sorted[0], max: sorted[sorted.len() - 1] }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

/// With three significant digits; `{:#}` leaves the range out.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", figure(self.median))?;
        if f.alternate() {
            return Ok(());
        }
        write!(f, " ({}–{})", figure(self.min), figure(self.max))
    }
}

/// The smallest sample that `share` of all are not above; `sorted` is not empty.
pub(super) fn quantile(sorted: &[u64], share: f64) -> u64 {
    assert!(!sorted.is_empty(), "a benchmark takes at least one sample");
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Three significant digits, thousands apart.
pub(super) fn figure(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size >= 99.95 || size == 0.0 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if decimals > 0 || size < 10_000.0 {
        return text;
    }
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let first = digits.len() % 3;
    let mut groups = if first > 0 { vec![&digits[..first]] } else { Vec::new() };
    groups.extend((first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
    format!("{sign}{}", groups.join(" "))
}

pub(super) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

pub(super) fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn quantiles_are_samples_and_never_past_the_end() {
        let samples: Vec<u64> = (1..=100).collect();
        let at = |share| quantile(&samples, share);
        assert_eq!((at(0.0), at(0.5), at(0.99), at(1.0)), (1, 50, 99, 100));
        assert_eq!(quantile(&[7], 0.99), 7);
    }

    #[test]
    fn figures_have_three_digits() {
        let shown = [0.0, 0.612_3, 0.9999, 1.234, 12.34, 99.96, 1234.5, 22_731.4, -1_000_000.0];
        assert_eq!(
            shown.map(figure),
            ["0", "0.612", "1.00", "1.23", "12.3", "100", "1234", "22 731", "-1 000 000"]
        );
        assert_eq!(Spread::of([0.5, 0.25, 2.0]).to_string(), "0.500 (0.250–2.00)");
        assert_eq!(format!("{:#}", Spread::of([0.5])), "0.500");
    }
}

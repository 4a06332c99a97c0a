//! Durations and sizes as people write them: `30s`, `1h30m`, `512MiB`. A bare number is refused,
//! since it has no unit.
//!
//! Owner: `config`. Absent: signs, fractions, decimal sizes (1 MB is not 1 MiB, so it is refused
//! with a word).

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

/// A duration with units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A size in bytes, with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// A share, 1% to 100%.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Percent(pub(crate) u32);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    #[error("'{0}' has no unit: write for example 500ms, 30s, 5m, 2h, 1d or 1h30m")]
    SpanWithoutUnit(String),
    #[error("'{0}' is no duration: write for example 500ms, 30s, 5m, 2h, 1d or 1h30m")]
    Span(String),
    #[error("'{0}' has no unit: write for example 64KiB, 512MiB or 2GiB")]
    SizeWithoutUnit(String),
    #[error("'{0}' is no size: write for example 64KiB, 512MiB or 2GiB (powers of 1024)")]
    Size(String),
    #[error("'{0}' is no share of the memory limit: write 1% to 100%")]
    Percent(String),
    #[error("'{0}' is too large")]
    TooLarge(String),
}

pub(crate) fn parse_span(text: &str) -> Result<Duration, UnitError> {
    let refused = || UnitError::Span(text.to_owned());
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UnitError::SpanWithoutUnit(text.to_owned()));
    }
    let mut rest = text.trim();
    let mut whole_ms: u64 = 0;
    if rest.is_empty() {
        return Err(refused());
    }
    while !rest.is_empty() {
        let (number, after) = split_number(rest).ok_or_else(refused)?;
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, tail) = after.split_at(unit_end);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _other => return Err(refused()),
        };
        whole_ms = number
            .checked_mul(unit_ms)
            .and_then(|ms| whole_ms.checked_add(ms))
            .ok_or_else(|| UnitError::TooLarge(text.to_owned()))?;
        rest = tail.trim_start();
    }
    Ok(Duration::from_millis(whole_ms))
}

pub(crate) fn parse_size(text: &str) -> Result<u64, UnitError> {
    let refused = || UnitError::Size(text.to_owned());
    let (number, unit) = split_number(text.trim()).ok_or_else(refused)?;
    let shift = match unit.trim() {
        "" => return Err(UnitError::SizeWithoutUnit(text.to_owned())),
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _other => return Err(refused()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| UnitError::TooLarge(text.to_owned()))
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = text_of(deserializer)?;
        parse_span(&text).map(Span).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = text_of(deserializer)?;
        parse_size(&text).map(Size).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = text_of(deserializer)?;
        let digits = text.strip_suffix('%').filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let percent = digits.and_then(|digits| digits.parse().ok());
        let percent = percent.filter(|percent| (1..=100).contains(percent));
        percent.map(Percent).ok_or_else(|| D::Error::custom(UnitError::Percent(text)))
    }
}

/// Canonical: the largest units first, none twice, so that "60s" and "1m" are the same.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest_ms = self.0.as_millis();
        if rest_ms == 0 {
            return f.write_str("0s");
        }
        for (unit, unit_ms) in
            [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)]
        {
            let number = rest_ms / unit_ms;
            rest_ms %= unit_ms;
            if number > 0 {
                write!(f, "{number}{unit}")?;
            }
        }
        Ok(())
    }
}

/// Canonical: the largest unit that leaves nothing over.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let fits = |(_, shift): &&(&str, u32)| self.0 > 0 && self.0 & ((1 << shift) - 1) == 0;
        match units.iter().find(fits) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number is taken as its digits, so that the error can say that the unit is missing.
fn text_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Number(i64),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::Text(text) => text,
        Written::Number(number) => number.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let ms = |text| parse_span(text).unwrap().as_millis();
        assert_eq!(
            (ms("500ms"), ms("30s"), ms("5m"), ms("1h30m"), ms("1d")),
            (500, 30_000, 300_000, 5_400_000, 86_400_000)
        );
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("2 GiB"), Ok(2 << 30));
    }

    #[test]
    fn what_is_written_is_read_back_as_the_same() {
        for (text, canonical) in [
            ("60s", "1m"),
            ("90m", "1h30m"),
            ("1500ms", "1s500ms"),
            ("0ms", "0s"),
            ("24h", "1d"),
            ("1d1ms", "1d1ms"),
        ] {
            let span = Span(parse_span(text).unwrap());
            assert_eq!(span.to_string(), canonical);
            assert_eq!(parse_span(canonical), Ok(span.0));
        }
        for (text, canonical) in
            [("1024MiB", "1GiB"), ("1023 KiB", "1023KiB"), ("5B", "5B"), ("0KiB", "0B")]
        {
            let size = Size(parse_size(text).unwrap());
            assert_eq!(size.to_string(), canonical);
            assert_eq!(parse_size(canonical), Ok(size.0));
        }
    }

    #[test]
    fn what_has_no_unit_or_makes_no_sense_is_refused_with_an_example() {
        for text in ["10", "", "s", "-1s", "1.5h", "10 apples", "1MB"] {
            assert!(parse_span(text).is_err(), "{text:?} was taken as a duration");
            let size = parse_size(text);
            assert!(size.is_err(), "{text:?} was taken as a size");
            assert!(size.unwrap_err().to_string().contains("MiB"));
        }
        assert!(matches!(parse_span("10"), Err(UnitError::SpanWithoutUnit(_))));
        assert!(matches!(parse_span("99999999999999999d"), Err(UnitError::TooLarge(_))));
        assert!(matches!(parse_size("99999999999999TiB"), Err(UnitError::TooLarge(_))));
    }
}

//! `[prices]`: what memory costs where this runs, so that a changed limit is told with its price.
//!
//! Owner: `config::parse`. Invariants: without the table nothing is said of money; a price is never
//! without its currency. Absent: what processors, disks or messages cost.

#![deny(unused_variables, reason = "a setting that is taken apart and not shown is forgotten")]

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::{Value as Json, json};

use super::setting::{Live, Setting, Table, Visitor, doc};
use super::value::Value;
use super::{Problem, problem};

/// More than that is a slip of the pen, and would not be written well either.
const PRICE_MAX: f64 = 1e9;
const CURRENCY_CHARACTERS_MAX: usize = 8;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[derive(Debug, Clone, serde::Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PricesTable {
    memory_gib_month: Setting<Option<Price>, Live>,
    currency: Setting<Option<Currency>, Live>,
}

impl Table for PricesTable {
    fn visit(&self, visitor: &mut Visitor) {
        let PricesTable { memory_gib_month, currency } = self;
        let words = "What 1 GiB costs in a month.";
        visitor.setting("memory_gib_month", memory_gib_month, doc(words).example("3.50"));
        let words = "What that is counted in, in at most 8 characters.";
        visitor.setting("currency", currency, doc(words).example("\"USD\""));
    }
}

#[derive(Debug, Clone, serde::Serialize)]
struct Price(f64);

impl Value for Price {
    const KIND: &'static str = "price";
    fn schema() -> Json {
        json!({"type": "number", "minimum": 0, "maximum": PRICE_MAX})
    }
}

#[derive(Debug, Clone, serde::Serialize)]
struct Currency(String);

impl Value for Currency {
    const KIND: &'static str = "text";
    fn schema() -> Json {
        json!({"type": "string", "minLength": 1, "maxLength": CURRENCY_CHARACTERS_MAX})
    }
}

impl<'de> Deserialize<'de> for Price {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let price = f64::deserialize(deserializer)?;
        let words = "is no price: write what 1 GiB costs in a month, for example 3.50";
        if (0.0..=PRICE_MAX).contains(&price) {
            Ok(Self(price))
        } else {
            Err(D::Error::custom(format!("{price} {words}")))
        }
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let is_odd = |c: char| c.is_control() || c.is_whitespace();
        let is_long = name.chars().count() > CURRENCY_CHARACTERS_MAX;
        if name.is_empty() || is_long || name.chars().any(is_odd) {
            return Err(D::Error::custom(format!(
                "{name:?} is no currency: write for example \"USD\" or \"€\""
            )));
        }
        Ok(Self(name))
    }
}

/// What memory costs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prices {
    memory_gib_month: f64,
    currency: String,
}

pub(super) fn prices_of(table: PricesTable) -> Result<Option<Prices>, Problem> {
    match (table.memory_gib_month.into_value(), table.currency.into_value()) {
        (None, None) => Ok(None),
        (Some(Price(memory_gib_month)), Some(Currency(currency))) => {
            Ok(Some(Prices { memory_gib_month, currency }))
        }
        (Some(_), None) => Err(problem(
            "prices.currency",
            "is missing: what memory_gib_month is counted in, for example \"USD\"",
        )),
        (None, Some(_)) => Err(problem(
            "prices.memory_gib_month",
            "is missing: what 1 GiB costs in a month, for example 3.50",
        )),
    }
}

impl Prices {
    /// "+1 GiB, about 3.50 USD a month"; `None` if nothing changes.
    pub(crate) fn monthly_difference(&self, from_bytes: u64, to_bytes: u64) -> Option<String> {
        let (sign, less) = match from_bytes.cmp(&to_bytes) {
            std::cmp::Ordering::Equal => return None,
            std::cmp::Ordering::Less => ('+', ""),
            std::cmp::Ordering::Greater => ('-', " less"),
        };
        let bytes = from_bytes.abs_diff(to_bytes);
        let price = bytes as f64 / GIB as f64 * self.memory_gib_month;
        let about = match price {
            price if price > 0.0 && price < 0.01 => "less than 0.01".to_owned(),
            price => format!("about {price:.2}"),
        };
        Some(format!("{sign}{}, {about} {} a month{less}", amount(bytes), self.currency))
    }
}

fn amount(bytes: u64) -> String {
    if bytes < GIB {
        return format!("{} MiB", bytes.div_ceil(MIB));
    }
    let words = format!("{:.2}", bytes as f64 / GIB as f64);
    format!("{} GiB", words.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices(toml: &str) -> Result<Option<Prices>, String> {
        let table: PricesTable = toml::from_str(toml).map_err(|error| error.to_string())?;
        prices_of(table).map_err(|(setting, problem)| format!("{setting} {problem}"))
    }

    #[test]
    fn a_changed_limit_is_told_with_its_price() {
        let prices = prices("memory_gib_month = 3.50\ncurrency = \"USD\"").unwrap().unwrap();
        let difference = |from: u64, to: u64| prices.monthly_difference(from * MIB, to * MIB);
        for (from, to, words) in [
            (1_024, 2_048, "+1 GiB, about 3.50 USD a month"),
            (512, 1_024, "+512 MiB, about 1.75 USD a month"),
            (512, 2_048, "+1.5 GiB, about 5.25 USD a month"),
            (10_240, 20_480, "+10 GiB, about 35.00 USD a month"),
            (2_048, 1_024, "-1 GiB, about 3.50 USD a month less"),
            (100, 101, "+1 MiB, less than 0.01 USD a month"),
        ] {
            assert_eq!(difference(from, to).as_deref(), Some(words));
        }
        assert_eq!(difference(512, 512), None);
    }

    #[test]
    fn memory_may_cost_a_whole_number_or_nothing() {
        let prices = prices("memory_gib_month = 0\ncurrency = \"€\"").unwrap().unwrap();
        let difference = prices.monthly_difference(0, GIB).unwrap();
        assert_eq!(difference, "+1 GiB, about 0.00 € a month");
    }

    #[test]
    fn without_the_table_there_is_no_price_and_half_of_it_is_refused() {
        assert_eq!(prices(""), Ok(None));
        for (toml, words) in [
            ("memory_gib_month = 3.5", "prices.currency is missing"),
            ("currency = \"USD\"", "prices.memory_gib_month is missing"),
            ("memory_gib_month = -1\ncurrency = \"USD\"", "-1 is no price"),
            ("memory_gib_month = nan\ncurrency = \"USD\"", "is no price"),
            ("memory_gib_month = 1e10\ncurrency = \"USD\"", "is no price"),
            ("memory_gib_month = \"3.50\"\ncurrency = \"USD\"", "invalid type"),
            ("memory_gib_month = 1\ncurrency = \"\"", "is no currency"),
            ("memory_gib_month = 1\ncurrency = \"U\\nD\"", "is no currency"),
            ("memory_gib_mont = 1", "unknown field"),
        ] {
            let error = prices(toml).unwrap_err();
            assert!(error.contains(words), "{toml}: {error}");
        }
    }
}

//! The named figures of one measurement.

use std::{collections::BTreeMap, fmt};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Named figures. The names contain the units.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Sample(BTreeMap<&'static str, f64>);

/// A histogram of times in nanoseconds.
pub(crate) struct Times(Histogram<u64>);

impl Sample {
    pub(crate) fn with(mut self, name: &'static str, figure: f64) -> Self {
        self.0.insert(name, figure);
        self
    }

    /// Adds the median and the 99th percentile.
    pub(crate) fn with_times(self, times: &Times) -> Self {
        self.with("p50_us", times.micros(0.5)).with("p99_us", times.micros(0.99))
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// The number of failed calls and wrong results.
    pub(crate) fn errors(&self) -> f64 {
        self.get("errors").unwrap_or(0.0)
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, figure) in self.0.iter().filter(|(name, figure)| **name != "errors" || **figure > 0.0) {
            write!(f, " {name} {}", short(*figure))?;
        }
        Ok(())
    }
}

impl Times {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds"))
    }

    pub(crate) fn record(&mut self, time: std::time::Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    pub(crate) fn count(&self) -> f64 {
        self.0.len() as f64
    }

    #[allow(clippy::cast_precision_loss, reason = "microseconds of at most a minute")]
    pub(crate) fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// The median of figures, or 0 for an empty list.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => 0.0,
        count if count % 2 == 1 => figures[count / 2],
        count => f64::midpoint(figures[count / 2 - 1], figures[count / 2]),
    }
}

/// Formats a figure with about three significant digits.
pub(crate) fn short(figure: f64) -> String {
    let size = figure.abs();
    match size {
        _ if size >= 1000.0 => grouped(figure.round()),
        _ if size >= 100.0 => format!("{figure:.0}"),
        _ if size >= 10.0 => format!("{figure:.1}"),
        _ if size > 0.0 => format!("{figure:.2}"),
        _ => "0".to_owned(),
    }
}

fn grouped(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 && digits.as_bytes()[at - 1] != b'-' {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_formatted_and_medians_computed() {
        assert_eq!(
            [0.0, 0.004, 2.34567, 23.4567, 234.567, 23456.7, 2_345_678.9].map(short),
            ["0", "0.00", "2.35", "23.5", "235", "23,457", "2,345,679"]
        );
        assert_eq!([median([3.0, 1.0, 2.0]), median([4.0, 1.0]), median([])], [2.0, 2.5, 0.0]);
    }
}

//! Parses durations of the command line.

use std::time::Duration;

/// Parses `700ms`, `0.7s`, `2m` or `1h 30m`.
pub(crate) fn parse(value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value)
        .map_err(|error| format!("{error}; it takes a number and a unit, such as 700ms, 0.7s or 2m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(parse("700ms"), parse("0.7s"));
        assert_eq!(parse("1h 30m"), Ok(Duration::from_secs(5400)));
        for bad in ["0.7", "7", "", "soon", "-1s"] {
            assert!(parse(bad).unwrap_err().contains("0.7s"), "{bad}");
        }
    }
}

//! Parses durations of the command line.

use std::time::Duration;

/// Parses `700ms`, `0.7s`, `2m` or `1h 30m`.
pub(crate) fn parse(value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value).map_err(|error| {
        let problem = match value.parse::<f64>() {
            Ok(seconds) if seconds >= 0.0 => format!("it has no unit; `{value}s` are seconds"),
            _ => error.to_string(),
        };
        format!("{problem}; it takes a number and a unit, such as 700ms, 0.7s or 2m")
    })
}

/// Parses a duration of at least one millisecond.
pub(crate) fn parse_positive(value: &str) -> Result<Duration, String> {
    let duration = parse(value)?;
    if duration < Duration::from_millis(1) { Err("the shortest is 1ms".to_owned()) } else { Ok(duration) }
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
        assert!(parse("5").unwrap_err().starts_with("it has no unit; `5s` are seconds; "));
    }

    #[test]
    fn a_positive_duration_is_at_least_one_millisecond() {
        assert_eq!(parse_positive("1ms"), Ok(Duration::from_millis(1)));
        for bad in ["0s", "999us", "1ns"] {
            assert!(parse_positive(bad).unwrap_err().contains("1ms"), "{bad}");
        }
        assert!(parse_positive("1").unwrap_err().contains("0.7s"));
    }
}

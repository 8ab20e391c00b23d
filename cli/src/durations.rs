//! Durations on the command line: a whole number and a unit.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a time is a whole number with a unit: ms, s, m or h, such as 500ms or 10m")]
pub(crate) struct ParseDurationError;

/// Reads `500ms`, `30s`, `10m`, `2h`.
pub(crate) fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| ParseDurationError)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(ParseDurationError),
    };
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or(ParseDurationError)
}

/// In ms; longer than 2^64 ms is as long as that.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        assert_eq!(parse("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7200)));
        for wrong in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "1d",
            "99999999999999999999s",
            "9999999999999999999h",
        ] {
            assert_eq!(parse(wrong), Err(ParseDurationError), "{wrong}");
        }
    }
}

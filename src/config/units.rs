//! Durations and sizes as people write them: `25s`, `1h30m`, `256KiB`.

use std::time::Duration;

/// Units of time, longest first, with their length in milliseconds.
const TIME: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of size with their length in bytes: IEC 80000-13 powers of 1024, SI powers of 1000.
const SIZE: [(&str, u64); 8] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Why a text is not a duration or a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Nothing is there.
    #[error("is empty")]
    Empty,
    /// A part does not start with a digit: a sign, a decimal point, a word.
    #[error("is not whole numbers with units")]
    NotANumber,
    /// A duration without a unit says nothing.
    #[error("has no unit")]
    NoUnit,
    /// The unit is none of those known.
    #[error("has an unknown unit")]
    UnknownUnit,
    /// `1m1h`, `1s1s`.
    #[error("must name its units from the longest to the shortest, each once")]
    Order,
    /// More than 64 bits hold.
    #[error("is too large")]
    TooLarge,
}

/// Splits the leading digits off.
fn number(text: &str) -> Result<(u64, &str), UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Err(UnitError::NotANumber);
    }
    Ok((digits.parse().map_err(|_| UnitError::TooLarge)?, rest))
}

/// Reads `25s`, `5m`, `1h`, `1d`, `1500ms`, or several of them from long to short: `1h30m`.
///
/// # Errors
/// Says what is wrong. A number without a unit is refused, also `0`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(UnitError::Empty);
    }
    let mut shorter_than = u64::MAX;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (count, after) = number(rest)?;
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            return Err(if after.is_empty() { UnitError::NoUnit } else { UnitError::NotANumber });
        }
        let length = TIME
            .iter()
            .find_map(|(name, length)| (*name == unit).then_some(*length))
            .ok_or(UnitError::UnknownUnit)?;
        if length >= shorter_than {
            return Err(UnitError::Order);
        }
        shorter_than = length;
        total = count
            .checked_mul(length)
            .and_then(|part| total.checked_add(part))
            .ok_or(UnitError::TooLarge)?;
        rest = after;
    }
    Ok(Duration::from_millis(total))
}

/// Writes a duration so that [`parse_duration`] reads it back; less than a millisecond is cut.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    if rest == 0 {
        return "0s".to_owned();
    }
    // 1500ms is how people write it, not 1s500ms.
    if rest < 60_000 && !rest.is_multiple_of(1_000) {
        return format!("{rest}ms");
    }
    let mut parts = Vec::new();
    for (unit, length) in TIME {
        let count = rest / u128::from(length);
        rest %= u128::from(length);
        if count > 0 {
            parts.push(format!("{count}{unit}"));
        }
    }
    parts.concat()
}

/// Reads a number of bytes: `4096`, `512B`, `256KiB`, `1MiB`, `64KB`.
///
/// # Errors
/// Says what is wrong.
pub fn parse_size(text: &str) -> Result<usize, UnitError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(UnitError::Empty);
    }
    let (count, unit) = number(text)?;
    let length = match unit {
        "" => 1,
        unit if unit.starts_with(|c: char| c.is_ascii_alphabetic()) => SIZE
            .iter()
            .find_map(|(name, length)| (*name == unit).then_some(*length))
            .ok_or(UnitError::UnknownUnit)?,
        _ => return Err(UnitError::NotANumber),
    };
    count
        .checked_mul(length)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or(UnitError::TooLarge)
}

/// Writes a size so that [`parse_size`] reads it back, in the largest power of 1024 that divides
/// it.
#[must_use]
pub fn format_size(bytes: usize) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, millis) in [
            ("25s", 25_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1500ms", 1_500),
            ("1d", 86_400_000),
            ("1h30m", 5_400_000),
            ("1m1ms", 60_001),
            (" 0s ", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for (text, error) in [
            ("", UnitError::Empty),
            ("25", UnitError::NoUnit),
            ("0", UnitError::NoUnit),
            ("1h30", UnitError::NoUnit),
            ("s", UnitError::NotANumber),
            ("-5s", UnitError::NotANumber),
            ("1.5s", UnitError::NotANumber),
            ("1h 30m", UnitError::NotANumber),
            ("5 s", UnitError::NotANumber),
            ("5w", UnitError::UnknownUnit),
            ("5S", UnitError::UnknownUnit),
            ("5µs", UnitError::NotANumber),
            ("30m1h", UnitError::Order),
            ("1s1s", UnitError::Order),
            ("99999999999999999999s", UnitError::TooLarge),
            ("18446744073709551615d", UnitError::TooLarge),
        ] {
            assert_eq!(parse_duration(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("4096", 4096),
            ("0", 0),
            ("512B", 512),
            ("256KiB", 262_144),
            ("1MiB", 1_048_576),
            ("64KB", 64_000),
            ("64kB", 64_000),
            ("2GiB", 2_147_483_648),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for (text, error) in [
            ("", UnitError::Empty),
            ("KiB", UnitError::NotANumber),
            ("-1", UnitError::NotANumber),
            ("1.5MiB", UnitError::NotANumber),
            ("1 MiB", UnitError::NotANumber),
            ("1M", UnitError::UnknownUnit),
            ("1kib", UnitError::UnknownUnit),
            ("18446744073709551615GiB", UnitError::TooLarge),
        ] {
            assert_eq!(parse_size(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn durations_are_written_as_people_write_them() {
        for (millis, text) in
            [(0, "0s"), (1, "1ms"), (1_500, "1500ms"), (90_000, "1m30s"), (3_600_000, "1h")]
        {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
    }

    proptest! {
        #[test]
        fn a_duration_survives_writing_and_reading(millis in any::<u64>()) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn a_size_survives_writing_and_reading(bytes in any::<usize>(), shift in 0..40_u32) {
            let bytes = bytes >> shift << shift;
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_answered(text in "[0-9a-zA-Zµ. -]{0,24}") {
            if let Ok(duration) = parse_duration(&text) {
                prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            }
            if let Ok(bytes) = parse_size(&text) {
                prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
            }
        }
    }
}

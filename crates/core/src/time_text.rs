//! The clock, at the precision everything keeps: microseconds. What is stored, compared and shown to
//! clients is then the same instant to the digit (control-plane 3.3: `startedAfter` is inclusive).

use time::OffsetDateTime;

/// The current time in UTC, cut to microseconds.
pub fn now() -> OffsetDateTime {
    truncated(OffsetDateTime::now_utc())
}

fn truncated(at: OffsetDateTime) -> OffsetDateTime {
    let nanosecond = at.nanosecond() / 1000 * 1000;
    // Fewer nanoseconds than there were are always in range.
    at.replace_nanosecond(nanosecond).unwrap_or(at)
}

/// Microseconds since the Unix epoch, as the store keeps times.
pub(crate) fn to_micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

/// The reverse of [`to_micros`]; `None` for a number outside of what a date can be.
pub(crate) fn from_micros(micros: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_the_store_to_the_microsecond() {
        let at = now();
        assert_eq!(from_micros(to_micros(at)), Some(at));
    }
}

//! Durations as Gateway API writes them (GEP-2257): one to four numbers of at most five digits with `h`, `m`, `s` or `ms`.

use std::time::Duration;

/// Reads a duration; `None` when the text is none.
pub(crate) fn read_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 5 || parts == 4 {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, length) = match rest.as_bytes() {
            [b'm', b's', ..] => (Duration::from_millis(1), 2),
            [b'h', ..] => (Duration::from_secs(3600), 1),
            [b'm', ..] => (Duration::from_secs(60), 1),
            [b's', ..] => (Duration::from_secs(1), 1),
            _ => return None,
        };
        rest = &rest[length..];
        // 99,999 hours four times over fits by far.
        total += unit * u32::try_from(number).ok()?;
        parts += 1;
    }
    (parts > 0).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_durations_of_gep_2257() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("10s", 10_000),
            ("1m", 60_000),
            ("1h30m5s10ms", 5_405_010),
            ("2h1s", 7_201_000),
        ] {
            assert_eq!(read_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in ["", "10", "s", "1d", "-1s", "1.5s", "100000s", "1s1s1s1s1s", "1 s", "1µs"] {
            assert_eq!(read_duration(text), None, "{text}");
        }
    }
}

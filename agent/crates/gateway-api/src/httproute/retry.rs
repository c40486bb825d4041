//! `rules[].retry` (GEP-1731).

use tidegate_model::Retry;

use crate::{duration::read_duration, generated::http_route::HttpRouteRetry};

/// Attempts after the first when `attempts` is not set (default of the API).
const DEFAULT_ATTEMPTS: u32 = 1;

/// Reads a rule's retries; the error names what cannot be carried out.
pub(super) fn read_retry(field: &str, retry: &HttpRouteRetry) -> Result<Retry, String> {
    let mut codes = Vec::new();
    for (index, &code) in retry.codes.iter().flatten().enumerate() {
        match u16::try_from(code) {
            Ok(code) if (400..=599).contains(&code) => codes.push(code),
            _ => return Err(format!("{field}.retry.codes[{index}]: {code} is no status to retry: write 400 to 599")),
        }
    }
    codes.sort_unstable();
    codes.dedup();
    let attempts = match retry.attempts {
        None => DEFAULT_ATTEMPTS,
        Some(attempts) => u32::try_from(attempts)
            .map_err(|_| format!("{field}.retry.attempts: {attempts} is out of range: write 0 to {}", u32::MAX))?,
    };
    let read = |text: &String| {
        read_duration(text)
            .ok_or_else(|| format!("{field}.retry.backoff: {text:?} is no duration: write it like 100ms or 1s"))
    };
    Ok(Retry { codes, attempts, backoff: retry.backoff.as_ref().map(read).transpose()? })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn retry(codes: &[i64], attempts: Option<i64>, backoff: Option<&str>) -> Result<Retry, String> {
        let source = HttpRouteRetry { codes: Some(codes.to_vec()), attempts, backoff: backoff.map(str::to_owned) };
        read_retry("spec.rules[0]", &source)
    }

    #[test]
    fn reads_codes_attempts_and_backoff() {
        assert_eq!(
            retry(&[503, 500, 503], Some(3), Some("250ms")),
            Ok(Retry { codes: vec![500, 503], attempts: 3, backoff: Some(Duration::from_millis(250)) })
        );
        assert_eq!(retry(&[], None, None), Ok(Retry { codes: vec![], attempts: 1, backoff: None }));
        assert_eq!(retry(&[500], Some(0), None).map(|retry| retry.attempts), Ok(0));
    }

    #[test]
    fn names_what_cannot_be_retried() {
        for (codes, attempts, backoff, named) in [
            (&[200][..], None, None, "spec.rules[0].retry.codes[0]"),
            (&[500, 600], None, None, "spec.rules[0].retry.codes[1]"),
            (&[-1], None, None, "codes[0]"),
            (&[], Some(-1), None, "retry.attempts"),
            (&[], Some(i64::MAX), None, "retry.attempts"),
            (&[], None, Some("soon"), "retry.backoff"),
        ] {
            let error = retry(codes, attempts, backoff).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}

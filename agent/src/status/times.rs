//! Times as Kubernetes writes them.

use jiff::Timestamp;

/// Now, to the second, as conditions have it.
pub fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Now, to the microsecond, as Leases have it.
pub fn now_micro() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_form_of_the_api() {
        let (second, micro) = (now(), now_micro());
        assert_eq!((second.len(), micro.len()), ("2026-11-23T17:00:00Z".len(), "2026-11-23T17:00:00.000000Z".len()));
        assert!(second.parse::<Timestamp>().is_ok() && micro.parse::<Timestamp>().is_ok());
    }
}

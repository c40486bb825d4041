//! Kubernetes quantities (`500m`, `512Mi`), as far as limits of CPU and memory need them.

use crate::api::Quantity;

/// Suffixes with what they multiply by; the longest match wins, `m` is a thousandth.
const SUFFIXES: [(&str, u128); 12] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// The quantity in thousandths, rounded up; `None` when it is not written as a quantity or does not fit.
fn thousandths(quantity: &Quantity) -> Option<u64> {
    let text = match quantity {
        Quantity::Whole(number) => return number.checked_mul(1000),
        Quantity::Text(text) => text.trim(),
    };
    let (number, factor) = if let Some(number) = text.strip_suffix('m') {
        (number, 1)
    } else {
        SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|number| (number, factor * 1000)))
            .unwrap_or((text, 1000))
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.len() <= 18;
    if (whole.is_empty() && fraction.is_empty()) || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    u64::try_from(digits.checked_mul(factor)?.div_ceil(scale)).ok()
}

/// Thousandths of a core.
pub(crate) fn read_cpu(quantity: &Quantity) -> Option<u64> {
    thousandths(quantity).filter(|&millis| millis > 0)
}

/// Bytes.
pub(crate) fn read_memory(quantity: &Quantity) -> Option<u64> {
    match quantity {
        Quantity::Whole(bytes) => Some(*bytes),
        Quantity::Text(_) => thousandths(quantity).map(|thousandths| thousandths.div_ceil(1000)),
    }
    .filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_writes() {
        let text = |text: &str| Quantity::Text(text.to_owned());
        for (quantity, millis) in [("1", 1000), ("500m", 500), ("0.5", 500), ("2.25", 2250), ("1k", 1_000_000)] {
            assert_eq!(read_cpu(&text(quantity)), Some(millis), "{quantity}");
        }
        assert_eq!(read_cpu(&Quantity::Whole(2)), Some(2000));
        for (quantity, bytes) in [("512Mi", 512 << 20), ("1Gi", 1 << 30), ("1.5Gi", 3 << 29), ("1M", 1_000_000)] {
            assert_eq!(read_memory(&text(quantity)), Some(bytes), "{quantity}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for quantity in ["", "m", ".", "1x", "-1", "1e400", "0", "99999999999999999999Ei", "1.2.3", "१"] {
            let quantity = Quantity::Text(quantity.to_owned());
            assert_eq!(read_cpu(&quantity), None, "{quantity:?}");
            assert_eq!(read_memory(&quantity), None, "{quantity:?}");
        }
    }
}

//! Kubernetes' quantities of memory: "512Mi", "1.5G", "1e9", "268435456".
//!
//! Invariant: what is no quantity of bytes is `None`. Absent: quantities of processors.

/// In bytes, rounded up, as Kubernetes does.
pub(super) fn bytes(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, f64); 13] = [
        ("Ki", 1_024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("m", 0.001),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let found =
        SUFFIXES.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)));
    let (number, unit) = found.unwrap_or((text, 1.0));
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let number: f64 = if is_number { number.parse().ok()? } else { return None };
    let bytes = (number * unit).ceil();
    (bytes > 0.0 && bytes < 9.0e18).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("512Mi", Some(512 << 20)),
            ("1.5Gi", Some(1_610_612_736)),
            ("500M", Some(500_000_000)),
            ("1e9", Some(1_000_000_000)),
            ("268435456", Some(268_435_456)),
            ("1500m", Some(2)),
            ("", None),
            ("Mi", None),
            ("-5Mi", None),
            ("inf", None),
            ("NaN", None),
            ("1e400", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}

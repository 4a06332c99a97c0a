//! What this machine has, as far as policies rest on it.
//!
//! Owner: `config::load` asks once. Invariant: what cannot be read is not known, and bounds
//! nothing. Absent: what the machine can enforce (`doctor`).

/// Of the machine's memory, what one agent may at most learn to use; the rest is for everybody
/// else on it.
const SHARE_PERCENT: u64 = 80;

/// The most memory that one agent may learn to use here.
pub(crate) fn memory_max_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(total_bytes(&meminfo)? / 100 * SHARE_PERCENT)
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_from_its_line() {
        let meminfo = "MemTotal:       24689212 kB\nMemFree:         1 kB\n";
        assert_eq!(total_bytes(meminfo), Some(24_689_212 * 1_024));
        for strange in ["", "MemTotal: many kB", "MemTotal: 5 MB"] {
            assert_eq!(total_bytes(strange), None, "{strange}");
        }
    }
}

//! Bodies of requests: whatever comes is refused or taken, and what is taken keeps the bounds.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| dormouse::parse_bodies(bytes));

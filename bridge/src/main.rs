//! The static binary.

fn main() {}

//! The program `dormouse`. Everything is in the library beside it: see `lib.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dormouse::main()
}
